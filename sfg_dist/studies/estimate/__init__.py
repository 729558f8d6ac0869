"""`sfg plan`: what a job will take in time, memory and disk, before it runs.

A job comes in; a few shards of it are labelled in a child process (``calibration``), and figures for the whole go out
(``estimate``). No study imports another.
"""
