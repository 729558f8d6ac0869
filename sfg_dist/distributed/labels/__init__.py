"""The labels of a store, shard by shard.

An opened store comes in. A driver hands its shards to workers (``driver``, ``crew``), which are Ray actors
(``ray_pool``), processes of this machine (``process_pool``) or this process (``inline``); ``choice`` says which. Each
labels its shard (``labeler``) and commits it to the store; events about it go out. This room and ``fit`` do not import
each other.
"""
