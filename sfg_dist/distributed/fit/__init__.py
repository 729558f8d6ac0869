"""The fit of the network on a store's pairs, by one process or by several ranks of Ray Train.

A store comes in, whole or still growing. Batches go through the trainer of the model room (``fit_loop``), checkpoints
keep what was done (``checkpoints``), and a generator goes out (``generator``). This room and ``labels`` do not import
each other.
"""
