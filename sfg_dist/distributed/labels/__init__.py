"""The labels of a store, shard by shard.

An opened store comes in. A driver hands its shards to workers (``driver``, ``crew``), which are Ray actors
(``ray_pool``), processes of this machine (``process_pool``) or this process (``inline``): ``choice`` says which, and
``worker_count`` how many. Each labels its shard (``labeler``) and has the store commit it. Events go out to whoever
listens. This folder and ``fit`` do not import each other.
"""
