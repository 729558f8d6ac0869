"""The stages of a job in their order, and the output directory that they leave.

A checked job comes in. The table is prepared (``table``) and planned (``plan``), the rooms below label, train, sample
and evaluate (``pipeline``). Events go out to a listener and to the store's log (``output``), and the content of the
report (``report``) to the room evaluate, which renders the page. Only the command line and the studies may import this
room.
"""
