"""The labels of a store, shard by shard.

An opened store comes in. A driver hands its shards to workers (``driver``, ``crew``), which are Ray actors (``ray_pool``) or
this process (``inline``); each labels its shard (``labeler``) and commits it to the store. Events about them go out.
This room and ``fit`` do not import each other.
"""
