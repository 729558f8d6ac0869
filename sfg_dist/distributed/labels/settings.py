"""What a run of labels is asked for, whoever does the work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sfg_dist.distributed.labels.driver import Driver
from sfg_dist.distributed.labels.events import LabelEvent, Snapshot
from sfg_dist.distributed.labels.pool import Policy, Pool
from sfg_dist.distributed.labels.shards import Shards
from sfg_dist.distributed.labels.workers import DriverId


@dataclass(frozen=True)
class LabelSettings:
    """Settings of a run of labels."""

    num_threads: int = 1  # CPU threads of a worker
    # memory that a worker may hold resident, in GiB; None for what its machine has free
    memory_gib: float | None = None
    only: Collection[int] | None = None  # pending shards to label; None for all
    policy: Policy = field(default_factory=Policy)  # how patient the driver is
    # the class whose ``label(shard, attempt)`` does the work; None for ShardLabeler
    labeler: Callable[..., Any] | None = None
    driver: DriverId | None = None  # the driver's id; None for a new one
    on_event: Callable[[LabelEvent], None] | None = None  # told what happens
    # told how all stands, every two seconds at most and at the end
    on_snapshot: Callable[[Snapshot], None] | None = None

    @property
    def labeler_class(self) -> Callable[..., Any]:
        """What makes the labelers; importing it takes seconds."""
        from sfg_dist.distributed.labels.labeler import ShardLabeler

        return self.labeler or ShardLabeler

    @property
    def labeler_arguments(self) -> dict[str, float]:
        """Keyword arguments of each labeler."""
        return {"num_threads": self.num_threads} | ({} if self.memory_gib is None else {"memory_gib": self.memory_gib})

    def new_driver(self, shards: Shards, pool: Pool, roles: Mapping[str, int]) -> Driver:
        """The loop over a pool of workers."""
        return Driver(
            shards,
            pool,
            roles,
            total=shards.total,
            driver=self.driver,
            policy=self.policy,
            on_event=self.on_event,
            on_snapshot=self.on_snapshot,
        )
