"""The stages of a job in their order, and the output directory that they leave.

A checked job comes in. The table is prepared (``table``) and planned (``plan``), the rooms below label, train, sample
and evaluate, and the report goes out (``report``). Only the command line and the studies may import this room.
"""
