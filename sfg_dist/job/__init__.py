"""What a job says, and what every room needs to say it well.

The job file comes in and is checked here (``config``, ``documents``); the plan of a store is its other document
(``plan``). Errors, words for values and sizes, bounded reading of JSON, and the settings of a process live here too.
This room imports no other room.
"""
