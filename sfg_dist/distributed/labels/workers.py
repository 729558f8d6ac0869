"""What the driver knows of its workers, and how it tells others."""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sfg_dist.distributed.labels.events import AttemptFailed, LabelEvent, Snapshot, WorkerState
from sfg_dist.distributed.labels.ledger import Ledger
from sfg_dist.distributed.labels.pace import ShardTimes
from sfg_dist.distributed.labels.pool import Pool, WorkerInfo

SNAPSHOT_S = 2.0
KEPT_FAILURES = 50


@dataclass
class Call:
    """Shards handed to a worker together."""

    attempts: dict[int, int]  # the number of the attempt at each shard, in order
    begun: float  # when the worker came to it, by the pool's clock; for a waiting call, when it was handed over


@dataclass
class Worker:
    """One worker of the pool."""

    name: str  # its id in the pool
    role: str
    started: float  # when it was asked for, by the pool's clock
    is_ready: bool = False  # whether it has answered
    info: WorkerInfo | None = None  # where it runs; None until it has answered
    calls: deque[Call] = field(default_factory=deque)  # what it holds, the one at work first
    leave_by: float | None = None  # when it must be gone, by the pool's clock; None while it stays
    done: int = 0  # done, rows: shards that it has committed, and their rows
    rows: int = 0
    busy_s: float = 0.0  # seconds at work

    @property
    def kind(self) -> str:
        """Name of its device: workers of one kind give the same bits and take about the same time."""
        return self.role if self.info is None else self.info.device

    @property
    def host(self) -> str | None:
        """Where it runs; None until it has answered."""
        return None if self.info is None else self.info.host

    @property
    def pid(self) -> int | None:
        """Its process; None until it has answered."""
        return None if self.info is None else self.info.pid

    @property
    def state(self) -> str:
        """ "starting", "idle", "at work" or "leaving"."""
        if self.leave_by is not None:
            return "leaving"
        return ("at work" if self.calls else "idle") if self.is_ready else "starting"

    def can_take(self, calls: int) -> bool:
        """Whether it can be handed another call, where ``calls`` are the most that it may hold."""
        return self.is_ready and self.leave_by is None and len(self.calls) < calls

    def left(self, times: ShardTimes, now: float) -> float | None:
        """Seconds until its call at work should end, None where nobody knows; 0 where it has none."""
        if not self.calls:
            return 0.0
        expected = times.expected(self.kind, len(self.calls[0].attempts))
        return None if expected is None else max(0.0, expected - (now - self.calls[0].begun))


def slow_calls(workers: Iterable[Worker], times: ShardTimes, now: float) -> list[tuple[bool, Call, str]]:
    """The calls of slow workers: whether it is at work, the call, the kind of worker. Waiting calls come first."""
    found: list[tuple[bool, float, Call, str]] = []
    for worker in workers:
        if worker.calls and times.is_slow(worker.kind, len(worker.calls[0].attempts), now - worker.calls[0].begun):
            found += [(number == 0, call.begun, call, worker.kind) for number, call in enumerate(worker.calls)]
    return [(is_at_work, call, kind) for is_at_work, _, call, kind in sorted(found, key=lambda entry: entry[:2])]


@dataclass(frozen=True)
class DriverId:
    """A driver's id, which no other driver has: its host (in characters for a file name), process and a random part."""

    host: str
    pid: int
    token: str

    @classmethod
    def new(cls) -> DriverId:
        """An id for this process."""
        host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64]
        return cls(host, os.getpid(), secrets.token_hex(4))

    def __str__(self) -> str:
        return f"{self.host}-{self.pid}-{self.token}"


class Reporter:
    """Tells what happens, as events, and how all stands, as snapshots; times are by the pool's clock."""

    def __init__(
        self,
        driver: DriverId,
        pool: Pool,
        on_event: Callable[[LabelEvent], None] | None,
        on_snapshot: Callable[[Snapshot], None] | None,
    ) -> None:
        self._driver = driver
        self._pool, self._on_event, self._on_snapshot = pool, on_event, on_snapshot
        self._begun, self._unix_begun = pool.now(), pool.unix_time()
        self._next = self._begun
        self._failures: deque[tuple[float, AttemptFailed]] = deque(maxlen=KEPT_FAILURES)
        self._num_failures: Counter[str] = Counter()
        self._rows: dict[str, int] = {}  # of workers that are gone too

    def emit(self, event: LabelEvent) -> None:
        """Tell of an event; failed attempts are kept for the snapshots."""
        if isinstance(event, AttemptFailed):
            self._failures.append((round(self._unix(self._pool.now()), 3), event))
            self._num_failures[event.action] += 1
        if self._on_event is not None:
            self._on_event(event)

    def snapshot_if_due(self, ledger: Ledger, workers: Mapping[str, Worker]) -> None:
        """Tell how all stands, unless that was done a moment ago."""
        if self._on_snapshot is not None and self._pool.now() >= self._next:
            self.snapshot(ledger, workers, is_running=True)

    def snapshot(self, ledger: Ledger, workers: Mapping[str, Worker], *, is_running: bool) -> None:
        """Tell how all stands."""
        if self._on_snapshot is None:
            return
        now = self._pool.now()
        self._next = now + SNAPSHOT_S
        self._rows |= {worker.name: worker.rows for worker in workers.values()}
        self._on_snapshot(
            Snapshot(
                driver=str(self._driver),
                host=self._driver.host,
                pid=self._driver.pid,
                started=round(self._unix_begun, 3),
                updated=round(self._unix(now), 3),
                is_running=is_running,
                total=ledger.total,
                done=ledger.done,
                todo=ledger.num_open,
                workers=tuple(self._state_of(worker) for worker in workers.values()),
                failures=tuple(self._failures),
                rows_per_s=round(sum(self._rows.values()) / max(1e-3, now - self._begun), 3),
                num_failures=dict(self._num_failures),
            )
        )

    def _state_of(self, worker: Worker) -> WorkerState:
        shard, attempt = next(iter(worker.calls[0].attempts.items())) if worker.calls else (None, None)
        since = worker.calls[0].begun if worker.calls else worker.started
        return WorkerState(
            worker=worker.name,
            kind=worker.kind,
            host=worker.host,
            pid=worker.pid,
            device=None if worker.info is None else worker.info.device,
            state=worker.state,
            shard=shard,
            attempt=attempt,
            since=round(self._unix(since), 3),
            done=worker.done,
            rows=worker.rows,
            seconds=round(worker.busy_s, 3),
        )

    def _unix(self, at: float) -> float:
        return self._unix_begun + (at - self._begun)
