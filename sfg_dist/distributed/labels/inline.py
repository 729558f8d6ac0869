"""Labels without Ray: the driver's loop over one worker in this process, or over processes of this machine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sfg_dist.distributed.failure import Failure
from sfg_dist.distributed.labels.pool import Answered, Drain, Lost, PoolEvent, Ready, RealTime, Result, Task
from sfg_dist.distributed.labels.process_pool import ProcessPool, Template
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.distributed.labels.shards import Maker, Shards, label_tasks, worker_info
from sfg_dist.distributed.stopping import stop_signals
from sfg_dist.store import open_pairs


class InlinePool(RealTime):
    """One worker at a time, which works while the driver waits; ``make`` makes the labeler of each."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._labeler: Any = None
        self._number = 0
        self._name: str | None = None
        self._calls: deque[Sequence[Task]] = deque()

    def start(self, role: str) -> str:
        """Note that a worker is wanted; it is made while the driver waits."""
        self._number += 1
        self._name = f"{role}-{self._number}"
        return self._name

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        """Keep a call until the driver waits."""
        self._calls.append(tasks)

    def wait(self, timeout_s: float) -> list[PoolEvent]:
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


def label_inline(url: str, settings: LabelSettings | None = None, *, opened: list[Any] | None = None) -> None:
    """Label all pending shards of a store in this process, one after the other; an ``opened`` labeler is taken out.

    Raises:
        LabelingError: shards were given up; the message has every attempt's reason.
        StoreError: the store cannot be read, or its disk stayed full.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR2 came; what is committed is kept.
    """
    settings = settings or LabelSettings()
    opened = [] if opened is None else opened
    make = Maker(settings.labeler_class, url, settings.labeler_arguments)
    pool = InlinePool(lambda: opened.pop() if opened else make())
    driver = settings.new_driver(Shards(open_pairs(url), settings.only), pool, {"inline": 1})
    # A shard that will not end in time is dropped where it is: the store's protocol takes any cut.
    with stop_signals(driver.request_stop, patience=driver.patience, notice_s=settings.policy.notice_s):
        driver.run()


def label_with_processes(
    url: str, number: int, settings: LabelSettings | None = None, *, template: Template | None = None
) -> None:
    """Label all pending shards of a store by processes of this machine, to the same bits.

    Args:
        url: the store.
        number: of the processes.
        settings: all else.
        template: one that was started before; it ends here.

    Raises:
        LabelingError: shards were given up; the message has every attempt's reason.
        ClusterError: no process could be started.
        StoreError: the store cannot be read, or its disk stayed full.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR2 came; what is committed is kept.
    """
    settings = settings or LabelSettings()
    make = Maker(settings.labeler_class, url, settings.labeler_arguments)
    pool = ProcessPool(make, num_threads=settings.num_threads, template=template)
    driver = settings.new_driver(Shards(open_pairs(url), settings.only), pool, {"process": number})
    with stop_signals(driver.request_stop, notice_s=settings.policy.notice_s):
        try:
            driver.run()
        finally:
            pool.close()
            driver.settle()
