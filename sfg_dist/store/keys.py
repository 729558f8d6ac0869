"""Which shard an object of a store belongs to, told by its key."""

from __future__ import annotations

import re

from sfg_dist.job.plan import Plan
from sfg_dist.store.arrays import object_key
from sfg_dist.store.commits import commit_key

COMMIT_NAME = re.compile(r"commits/(\d{8,})\.json")
OBJECT_NAME = re.compile(r"(?:extensions/(\d{4})/)?(latents|labels)/c/(\d+)/0")


def shard_of_key(plan: Plan, key: str) -> int | None:
    """The shard whose latents, labels or commit record have this key, None where it is no shard's."""
    shard = shard_of_object(plan, key)
    return shard_of_commit(plan, key) if shard is None else shard


def shard_of_commit(plan: Plan, key: str) -> int | None:
    """The shard whose commit record has this key, None where it is no shard's."""
    match = COMMIT_NAME.fullmatch(key)
    shard = int(match[1]) if match else -1
    return shard if 0 <= shard < plan.num_shards and key == commit_key(shard) else None


def shard_of_object(plan: Plan, key: str) -> int | None:
    """The shard whose latents or labels have this key, None where it is no shard's."""
    match = OBJECT_NAME.fullmatch(key)
    record = int(match[1] or 0) if match else len(plan.ends)
    if match is None or record >= len(plan.ends):
        return None
    shards, number = plan.record_shards(record), int(match[3])
    shard = shards.start + number
    return shard if number < len(shards) and key == object_key(plan, match[2], shard) else None
