"""What a job says, and what every other room needs.

The job file comes in: ``config`` has its keys, and ``toml_documents`` checks a document and words what is wrong. The
plan of a store is the other document (``plan``). Errors, words for values and sizes, bounded reading of JSON, and the
settings of a process live here too. This room imports no other room.
"""
