"""What a job says, and what every other room needs.

The job file comes in and is checked here (``config``, ``toml_documents``). The plan of a store is the other document
(``plan``). Errors, words for values and sizes, bounded reading of JSON, and the settings of a process live here too.
This room imports no other room.
"""
