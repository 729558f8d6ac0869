"""What one run does not tell: what a job will take, how it scales, and how it compares with other generators.

Jobs come in and run through the pipeline; a table, a document and a page go out. Only the command line may import this
room.
"""
