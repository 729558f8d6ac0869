"""The training of the network on a store's pairs, by one process or by several ranks of Ray Train.

A store comes in, whole or still growing. The store's stream orders its batches, the room model takes the steps
(``fit_loop`` puts both together), checkpoints keep what was done (``checkpoints``), and a generator goes out
(``generator``). This folder and ``labels`` do not import each other.
"""
