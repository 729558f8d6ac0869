"""What a driver tells while it labels: events as they happen, and snapshots of how all stands.

Each event is written to logs as one JSON line, with its name, then its fields in their order. A snapshot is one JSON
document. Both are for people, dashboards and metrics; the store's protocol reads neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

Record = Mapping[str, Any]
"""A commit record, as the store reads and writes it."""
JsonObject = Mapping[str, Any]
"""What is written as one JSON object."""

RECORD_KEYS = ("shard", "rows", "seconds", "attempt", "host", "pid", "device")
"""What a log's line about a shard repeats of its commit record."""


@dataclass(frozen=True)
class LabelEvent:
    """Something that happened in a run of labels."""

    name: ClassVar[str]

    def details(self) -> JsonObject:
        """What a log's line says beside time and name."""
        return vars(self)


@dataclass(frozen=True)
class ExecutorChosen(LabelEvent):
    """Who makes the labels: ``executor`` is "inline" or "ray"; the words say why."""

    name = "executor"
    stage: str
    executor: str
    num_processes: int
    words: str


@dataclass(frozen=True)
class WorkerStarted(LabelEvent):
    """A worker is ready, so many seconds after it was asked for; ``load_s`` of them went into the reference."""

    name = "worker_started"
    worker: str
    kind: str
    seconds: float
    host: str
    pid: int
    device: str
    load_s: float | None = None

    def details(self) -> JsonObject:
        """Without ``load_s`` where the worker did not measure it."""
        return {key: value for key, value in vars(self).items() if key != "load_s" or value is not None}


@dataclass(frozen=True)
class WorkerLost(LabelEvent):
    """A worker is gone, or hangs and is given up."""

    name = "worker_lost"
    worker: str
    reason: str


@dataclass(frozen=True)
class ShardDone(LabelEvent):
    """A shard is committed."""

    name = "shard"
    done: int  # shards committed so far
    total: int  # shards in all
    record: Record  # the commit record
    # what its worker spent on it, the write included; None where this run's worker did not make it
    seconds: float | None = None

    def details(self) -> JsonObject:
        """What the record says stands in place of the record; its ``seconds`` are those of the integration."""
        own = {"done": self.done, "total": self.total, "seconds": self.seconds}
        return own | {key: self.record[key] for key in RECORD_KEYS if key in self.record}


@dataclass(frozen=True)
class AttemptFailed(LabelEvent):
    """An attempt at a shard failed; ``action`` is "retry" or "give_up", ``error`` the class of the error."""

    name = "attempt_failed"
    shard: int
    action: str
    attempt: int
    worker: str
    reason: str
    error: str


@dataclass(frozen=True)
class Backup(LabelEvent):
    """A second worker begins a shard that takes the first one long."""

    name = "backup"
    shard: int
    worker: str


@dataclass(frozen=True)
class Draining(LabelEvent):
    """A node is about to go away, at ``deadline`` in seconds since 1970; None where no time was given."""

    name = "draining"
    node: str
    deadline: float | None


@dataclass(frozen=True)
class Stopping(LabelEvent):
    """No more shards are handed out."""

    name = "stopping"
    reason: str


@dataclass(frozen=True)
class WorkerState:
    """One worker in a snapshot.

    The store's ``status`` reads it back and describes the fields. Host, pid and device are None until the worker has
    answered; shard and attempt are None while it has none.
    """

    worker: str
    kind: str
    host: str | None
    pid: int | None
    device: str | None
    state: str
    shard: int | None
    attempt: int | None
    since: float
    done: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    """How a run stands; the store's ``status`` reads it back and describes the fields."""

    driver: str
    host: str
    pid: int
    started: float
    updated: float
    is_running: bool
    total: int
    done: int
    todo: int
    workers: tuple[WorkerState, ...]
    failures: tuple[tuple[float, AttemptFailed], ...]
    rows_per_s: float
    num_failures: Mapping[str, int]

    def to_json(self) -> JsonObject:
        """As a document."""
        failures = [{"time": at, **failure.details()} for at, failure in self.failures]
        return {**vars(self), "workers": [vars(worker) for worker in self.workers], "failures": failures}
