"""Workers: they make the labels of a store (``labels``) and train the network on it (``fit``), with Ray or without.

What both need is here: the Ray cluster and its nodes (``cluster``, ``nodes``), child processes (``child``), and signals
to stop (``stopping``). This is the only room that imports ray, and it does so inside the functions that need it. It may
not import pipeline, studies or cli.
"""
