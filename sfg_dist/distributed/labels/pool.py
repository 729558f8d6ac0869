"""What the driver's loop needs of the world: a pool of workers with a clock, and a look at the store.

Ray's actors, one worker in this process, and scripted or simulated pools in tests stand behind the same interface. A
worker answers its calls in the order in which they were handed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sfg_dist.job import errors
from sfg_dist.job.object_stores import without_credentials
from sfg_dist.store.commits import CommitRecord

Progress = Callable[[int, int, CommitRecord], None]
"""(shards done, shards in all, the commit record just made)."""
Task = tuple[int, int]
"""(shard, number of the attempt, from 1)."""

WORKER_LOST, HANGS = NO_EXCEPTION = ("WorkerLost", "Hangs")  # failures that no exception tells of
OUT_OF_MEMORY = ("out of memory", "cannot allocate memory", "can't allocate memory")


@dataclass(frozen=True)
class Failure:
    """Why an attempt, or a worker, failed; plain text, because an exception may not survive the way between processes.

    Attributes:
        error: name of the exception's class.
        message: what it said.
        is_worker_spent: whether its process had better be replaced: memory that is short stays fragmented, and after
            an error of the device every later call fails too.
        exception: the exception itself where it was raised in this process.
    """

    error: str
    message: str
    is_worker_spent: bool = False
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, error: BaseException, *, keep: bool = False) -> Failure:
        """The failure that an exception tells of; ``keep`` holds on to the exception too."""
        message = without_credentials(str(error).strip()) or type(error).__name__
        text = message.lower()
        spent = (
            isinstance(error, MemoryError)
            or any(words in text for words in OUT_OF_MEMORY)
            or "cuda error" in text
            or type(error).__module__.startswith("ray.")  # a member of its group is gone
        )
        return cls(type(error).__name__, message, spent, error if keep else None)

    @property
    def known_class(self) -> type[errors.SfgError] | None:
        """The package's own class of the error, None for any other."""
        found = getattr(errors, self.error, None)
        return found if isinstance(found, type) and issubclass(found, errors.SfgError) else None

    def is_a(self, kind: type[errors.SfgError]) -> bool:
        """Whether the error is of one of the package's own classes."""
        return self.known_class is not None and issubclass(self.known_class, kind)

    def __str__(self) -> str:
        return self.message if self.known_class or self.error in NO_EXCEPTION else f"{self.error}: {self.message}"


@dataclass(frozen=True)
class Result:
    """The answer to one task: a commit record, or why there is none.

    Attributes:
        shard: which.
        seconds: what the worker spent on it.
        record: the commit record.
        failure: why there is none.
    """

    shard: int
    seconds: float
    record: CommitRecord | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class Ready:
    """A worker answers, and can be given work.

    Attributes:
        worker: its id.
        info: host, pid, device; more is allowed.
    """

    worker: str
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Answered:
    """A worker has finished the first of its calls.

    Attributes:
        worker: its id.
        results: one a task, in the call's order.
    """

    worker: str
    results: Sequence[Result]


@dataclass(frozen=True)
class Lost:
    """A worker is gone, or could not be started.

    Attributes:
        worker: its id.
        failure: why.
        is_refusal: whether the worker itself said so when it started (it could not open the store, say).
    """

    worker: str
    failure: Failure
    is_refusal: bool = False


Event = Ready | Answered | Lost


@dataclass(frozen=True)
class Drain:
    """Notice that a machine goes away.

    Attributes:
        node: which.
        deadline: when, by the pool's clock; infinite where none was given.
    """

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

    def wait(self, timeout_s: float) -> list[Event]:
        """All events that have come; waits for the first of them, but not longer than ``timeout_s``."""

    def kill(self, worker: str) -> None:
        """End a worker at once, whatever it does; nothing happens where it has ended."""

    def draining(self) -> Mapping[str, Drain]:
        """Workers whose machine is about to go away."""

    def resources(self) -> str:
        """What there is to run workers on, in words, for an error message."""


class ShardStore(Protocol):
    """What the driver asks of the store."""

    def pending(self) -> list[int]:
        """Shards still to do, in order."""

    def committed(self) -> set[int]:
        """Shards with a commit record."""

    def finished(self, shards: Iterable[int]) -> dict[int, CommitRecord]:
        """Commit records of those among ``shards`` that are done."""

    def rows(self, shard: int) -> int:
        """Rows of a shard."""


@dataclass(frozen=True)
class Policy:
    """How patient the driver is.

    Attributes:
        max_attempts: failed attempts at a shard before it is given up.
        max_given_up: shards given up before the run stops early.
        shard_timeout_s: a shard that runs longer hangs; None: 10 times the median of its kind of worker, at least 60.
        start_timeout_s: how long no worker at all may be ready.
        full_wait_s: how long a full disk is waited for, all pauses together.
        grace_s: how long shards at work may go on after a request to stop.
        notice_s: the same where a scheduler gave notice by SIGUSR2; those that would take longer are ended at once.
        refresh_s: shortest time between two looks at what another driver has committed.
        tick_s: time between two looks at the clock.
        seed: of the jitter in pauses, and of the order after another driver was met.
    """

    max_attempts: int = 4
    max_given_up: int = 3
    shard_timeout_s: float | None = None
    start_timeout_s: float = 600.0
    full_wait_s: float = 60.0
    grace_s: float = 5.0
    notice_s: float = 30.0
    refresh_s: float = 30.0
    tick_s: float = 0.5
    seed: int = 0

    def grace_for(self, reason: str | None) -> float:
        """How long shards at work may go on after a request to stop for this reason."""
        return self.notice_s if reason == "SIGUSR2" else self.grace_s
