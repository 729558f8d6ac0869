"""What the driver's loop needs: a pool of workers with a clock, and a look at the store.

Ray's actors, processes of this machine, one worker in this process, simulated workers and the scripted ones of tests
have the same interface. A worker answers its calls in the order in which they were handed to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sfg_dist.distributed.failure import Failure
from sfg_dist.distributed.labels.events import Record
from sfg_dist.job.config import ExecutorConfig

Task = tuple[int, int]
"""(shard, number of the attempt, from 1)."""


@dataclass(frozen=True)
class Result:
    """The answer to one task: a commit record or a failure, and the seconds that the worker spent on it."""

    shard: int
    seconds: float
    record: Record | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker runs."""

    host: str  # host, pid: its process
    pid: int
    device: str  # name of its device, as its commit records have it
    # seconds that it took to open the store and prepare the reference; None where nobody measured them
    load_s: float | None = None


@dataclass(frozen=True)
class Ready:
    """A worker answers, and can be given work."""

    worker: str
    info: WorkerInfo


@dataclass(frozen=True)
class Answered:
    """A worker has finished the first of its calls, with a result for each task in the call's order."""

    worker: str
    results: Sequence[Result]


@dataclass(frozen=True)
class Lost:
    """A worker is gone, or could not be started; ``is_refusal`` where it said so itself, as it began."""

    worker: str
    failure: Failure
    is_refusal: bool = False


PoolEvent = Ready | Answered | Lost


@dataclass(frozen=True)
class Drain:
    """Notice that a node goes away at a deadline by the pool's clock, which is infinite where none was given."""

    node: str
    deadline: float


class Pool(Protocol):
    """Workers that come and go."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""

    def unix_time(self) -> float:
        """Seconds since 1970, for people."""

    def start(self, role: str) -> str:
        """Begin to start a worker; its id. It tells that it is ready by an event."""

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        """Hand a call to a worker, to be done after those that it has."""

    def wait(self, timeout_s: float) -> list[PoolEvent]:
        """All events that have come; waits for the first of them, but not longer than ``timeout_s``."""

    def kill(self, worker: str) -> None:
        """End a worker at once, whatever it does; nothing happens where it has ended."""

    def draining(self) -> Mapping[str, Drain]:
        """Workers whose machine is about to go away."""

    def resources(self) -> str:
        """What there is to run workers on, in words, for an error message."""


class RealTime:
    """The clock of a pool whose workers are no simulation."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def unix_time(self) -> float:
        """Seconds since 1970."""
        return time.time()


class ShardStore(Protocol):
    """What the driver asks of the store."""

    def pending(self) -> list[int]:
        """Shards still to do, in order."""

    def committed(self) -> set[int]:
        """Shards with a commit record."""

    def finished(self, shards: Iterable[int]) -> dict[int, Record]:
        """Commit records of those among ``shards`` that are done."""

    def rows(self, shard: int) -> int:
        """Rows of a shard."""


@dataclass(frozen=True)
class Policy:
    """How patient the driver is."""

    max_attempts: int = 4  # failed attempts at a shard before it is given up
    max_given_up: int = 3  # shards given up before the run stops early
    # a shard that runs longer hangs; None for 10 times the median of its kind of worker, but 60 s
    shard_timeout_s: float | None = None
    start_timeout_s: float = 600.0  # how long no worker at all may be ready
    full_wait_s: float = 60.0  # how long a full disk is waited for, all pauses together
    grace_s: float = 5.0  # how long shards at work may go on after a request to stop
    # the same after SIGUSR2, a scheduler's notice; shards that would take longer are ended at once
    notice_s: float = 30.0
    refresh_s: float = 30.0  # shortest time between two looks at what another driver has committed
    tick_s: float = 0.5  # time between two looks at the clock
    seed: int = 0  # of the jitter in pauses, and of the order after another driver was met

    @classmethod
    def of(cls, executor: ExecutorConfig) -> Policy:
        """The patience that a job asks for."""
        notice_s = cls.notice_s if executor.notice_s is None else executor.notice_s
        return cls(executor.max_attempts, shard_timeout_s=executor.shard_timeout_s, notice_s=notice_s)

    def grace_for(self, reason: str | None) -> float:
        """How long shards at work may go on after a request to stop for this reason."""
        return self.notice_s if reason == "SIGUSR2" else self.grace_s
