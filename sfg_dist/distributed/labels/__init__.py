"""The labels of a store, shard by shard.

An opened store comes in. A driver hands its shards to workers (``driver``, ``crew``), which are Ray actors
(``ray_pool``) or this process (``inline``); ``worker_count`` decides how many. Each labels its shard (``labeler``) and
has the store commit it. Events go out to whoever listens. This folder and ``fit`` do not import each other.
"""
