"""The driver's view of a store, and what a worker does when it is called."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfg_dist.distributed.failure import Failure
from sfg_dist.distributed.labels.events import Record
from sfg_dist.distributed.labels.pool import Result, Task, WorkerInfo

if TYPE_CHECKING:
    from sfg_dist.store import Pairs

LOOKUPS_AT_ONCE = 16


class Shards:
    """The driver's view of a store of pairs, of all shards or ``only`` of some."""

    def __init__(self, pairs: Pairs, only: Collection[int] | None = None) -> None:
        self._pairs = pairs
        self._only = None if only is None else frozenset(only)

    @property
    def total(self) -> int:
        """Shards in all, but for pending ones that are not to be looked at."""
        left_out = 0 if self._only is None else len(set(self._pairs.pending()) - self._only)
        return self._pairs.plan.num_shards - left_out

    def pending(self) -> list[int]:
        """Shards still to do, in order."""
        return [shard for shard in self._pairs.pending() if self._only is None or shard in self._only]

    def committed(self) -> set[int]:
        """Shards with a commit record; one listing."""
        return self._pairs.committed()

    def finished(self, shards: Iterable[int]) -> dict[int, Record]:
        """Commit records of those among ``shards`` that are done."""
        wanted = list(shards)
        if len(wanted) <= 1:
            return {shard: record for shard in wanted if (record := self._record(shard)) is not None}
        with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as threads:
            records = zip(wanted, threads.map(self._record, wanted), strict=True)
            return {shard: record for shard, record in records if record is not None}

    def rows(self, shard: int) -> int:
        """Rows of a shard."""
        start, stop = self._pairs.plan.shard_range(shard)
        return stop - start

    def _record(self, shard: int) -> Record | None:
        return self._pairs.commit_record(shard) if self._pairs.is_done(shard) else None


@dataclass(frozen=True)
class Maker:
    """Makes a labeler where it is called: in the process that it is sent to."""

    labeler: Callable[..., Any]
    url: str
    arguments: Mapping[str, Any]

    def __call__(self) -> Any:
        """Make one."""
        return self.labeler(self.url, **self.arguments)


def worker_info(labeler: Any) -> WorkerInfo:
    """Where a labeler runs."""
    device = getattr(labeler, "device", None)
    name = platform.machine()
    if device is not None and device.type == "cuda":
        import torch

        name = torch.cuda.get_device_name(device)
    return WorkerInfo(socket.gethostname(), os.getpid(), name)


def label_tasks(labeler: Any, tasks: Sequence[Task], *, keep_exceptions: bool = False) -> list[Result]:
    """Label some shards, one after the other; an error of one does not keep the others from being done.

    ``keep_exceptions`` holds on to the exceptions themselves, for a caller in this process.
    """
    results = []
    for shard, attempt in tasks:
        started = time.monotonic()
        record, failure = None, None
        try:
            record = labeler.label(shard, attempt)
        except Exception as error:
            failure = Failure.of(error, keep=keep_exceptions)
        results.append(Result(shard, time.monotonic() - started, record, failure))
    return results
