"""The driver's loop over one worker in this process: what an actor does, without Ray."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sfg_dist.distributed.labels.driver import Driver
from sfg_dist.distributed.labels.pool import (
    Answered,
    Drain,
    Event,
    Failure,
    Lost,
    Policy,
    Progress,
    Ready,
    Result,
    Task,
)
from sfg_dist.distributed.labels.shards import Shards, label_tasks, worker_info
from sfg_dist.distributed.labels.workers import DriverId
from sfg_dist.distributed.stopping import stop_signals
from sfg_dist.store import open_pairs
from sfg_dist.store.snapshot import SnapshotDocument


class InlinePool:
    """One worker at a time, which works while the driver waits.

    Args:
        make: makes the labeler; called again where the driver replaces its worker.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._labeler: Any = None
        self._number = 0
        self._name: str | None = None
        self._calls: deque[Sequence[Task]] = deque()

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def unix_time(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def start(self, role: str) -> str:
        """Note that a worker is wanted; it is made while the driver waits."""
        self._number += 1
        self._name = f"{role}-{self._number}"
        return self._name

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        """Keep a call until the driver waits."""
        self._calls.append(tasks)

    def wait(self, timeout_s: float) -> list[Event]:
        """Do what is next: make the worker, or one call."""
        if self._name is not None and self._labeler is None:
            try:
                self._labeler = self._make()
            except Exception as error:
                name, self._name = self._name, None
                return [Lost(name, Failure.of(error, keep=True), is_refusal=True)]
            return [Ready(self._name, worker_info(self._labeler))]
        if self._name is not None and self._calls:
            results: list[Result] = label_tasks(self._labeler, self._calls.popleft(), keep_exceptions=True)
            return [Answered(self._name, results)]
        time.sleep(timeout_s)
        return []

    def kill(self, worker: str) -> None:
        """Let go of the labeler and all that it holds."""
        if worker == self._name:
            self._name = self._labeler = None
            self._calls.clear()

    def draining(self) -> Mapping[str, Drain]:
        """Nothing: this process hears of its end by a signal."""
        return {}

    def resources(self) -> str:
        """What there is to run workers on."""
        return "one worker in this process"


def label_inline(
    url: str,
    *,
    num_threads: int = 1,
    memory_gib: float | None = None,
    max_attempts: int = 4,
    notice_s: float = Policy.notice_s,
    driver: DriverId | None = None,
    on_progress: Progress | None = None,
    on_event: Callable[..., None] | None = None,
    on_snapshot: Callable[[SnapshotDocument], None] | None = None,
    only: Collection[int] | None = None,
    labeler: Callable[..., Any] | None = None,
    policy: Policy | None = None,
) -> None:
    """Label all pending shards of a store in this process, one after the other.

    Args:
        url: the store.
        num_threads: CPU threads.
        memory_gib: host memory that the reference may take; None for all of it.
        max_attempts: failed attempts at a shard before it is given up.
        notice_s: how long the shard at work may go on after SIGUSR2.
        driver: the driver's id; a new one if not given.
        on_progress: called after every commit.
        on_event: called with a name and details when something happens (see ``Driver``).
        on_snapshot: called with the state of everything, at most every two seconds and at the end.
        only: leave pending shards that are not among these as they are.
        labeler: the class whose ``label(shard, attempt)`` does the work; ShardLabeler if None.
        policy: the driver's patience, where the two keys above are not enough.

    Raises:
        LabelingError: shards were given up; the message has every attempt's reason.
        StoreError: the store cannot be read, or its disk stayed full.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR2 came; what is committed is kept.
    """
    shards = Shards(open_pairs(url), only)

    def make_labeler() -> Any:
        from sfg_dist.distributed.labels.labeler import ShardLabeler

        make: Callable[..., Any] = labeler or ShardLabeler
        more = {} if memory_gib is None else {"memory_gib": memory_gib}
        return make(url, num_threads=num_threads, **more)

    policy = policy or Policy(max_attempts=max_attempts, notice_s=notice_s)
    loop = Driver(
        shards,
        InlinePool(make_labeler),
        {"inline": 1},
        total=shards.total,
        driver=driver,
        policy=policy,
        on_progress=on_progress,
        on_event=on_event,
        on_snapshot=on_snapshot,
    )
    # A shard that will not end in time is dropped where it is: the store's protocol takes any cut.
    with stop_signals(loop.request_stop, patience=loop.patience, notice_s=policy.notice_s):
        loop.run()
