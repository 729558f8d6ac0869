"""One run of a scaling study: labels by so many actors, or a fit by so many workers, and where their time went."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sfg_dist.distributed.labels.events import LabelEvent, ShardDone, Snapshot, WorkerStarted
from sfg_dist.distributed.labels.label import label_pending
from sfg_dist.distributed.labels.pool import Policy
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.job.errors import ClusterError

if TYPE_CHECKING:
    from sfg_dist.job.config import ExecutorConfig
    from sfg_dist.store import Pairs


@dataclass
class Measured:
    """A run.

    Attributes:
        stage: "label" or "train".
        num_workers: actors, or training workers.
        wall_s: of the whole stage, Ray's own start left out.
        rows: pairs made, or rows trained on.
        parts_s: mean seconds a worker: start (process, imports), load (reference read and prepared), integrate, write
            (with reading back and the commit), wait (for the driver, and for others' last shards), end (until all
            processes are gone). For a fit: start, step, end.
        driver_s: processor time of the driver's thread from the first worker on.
        num_shards, shard_bytes: of the store, for a simulation.
        shard_s: integration of each whole shard that is not the first of its worker.
        warm_up_s: how much longer a worker's first shard took.
    """

    stage: str
    num_workers: int
    wall_s: float
    rows: int
    parts_s: dict[str, float]
    driver_s: float = 0.0
    num_shards: int = 0
    shard_bytes: int = 0
    shard_s: list[float] = field(default_factory=list)
    warm_up_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As a document."""
        return asdict(self)


def measure_labels(
    pairs: Pairs, executor: ExecutorConfig, *, num_threads: int, memory_gib: float | None = None
) -> Measured:
    """Label a store that has no shard yet, as ``sfg label`` does, within a running Ray session.

    Args:
        pairs: the store.
        executor: with the number of actors.
        num_threads: of each.
        memory_gib: of each actor's reference.

    Raises:
        ClusterError: not all actors found a place, or as ``label_pending``.
        LabelingError: as ``label_pending``.
    """
    num_actors = executor.num_actors
    assert num_actors is not None, "a run has its number of actors"
    seen, plan = _Seen(), pairs.plan
    started = time.perf_counter()
    settings = LabelSettings(
        num_threads=num_threads,
        memory_gib=memory_gib,
        policy=Policy.of(executor),
        on_event=seen.on_event,
        on_snapshot=seen.on_snapshot,
    )
    label_pending(pairs, executor, settings)
    wall_s = time.perf_counter() - started
    if len(seen.starts) < min(num_actors, plan.num_shards):
        raise ClusterError(
            f"{num_actors} actors were asked for and {len(seen.starts)} began before the labels were done: a job of so "
            f"few seconds is too short for this study; raise labels.num_pairs"
        )
    integrate_s = sum(seconds for _, seconds, _ in seen.shards)
    busy_s = sum(worker.seconds for worker in seen.last.workers) if seen.last else 0.0
    parts = {
        "start": sum(seen.starts) / num_actors,
        "load": sum(seen.loads) / num_actors,
        "integrate": integrate_s / num_actors,
        "write": max(0.0, busy_s - integrate_s) / num_actors,
    }
    end_s = max(0.0, started + wall_s - seen.last_shard_at)
    parts["wait"] = max(0.0, wall_s - end_s - sum(parts.values()))
    parts["end"] = end_s
    shard_s, warm_up_s = seen.steady_shards(plan.shard_rows)
    return Measured(
        "label", num_actors, wall_s, plan.num_pairs, parts, seen.driver_s, plan.num_shards,
        2 * 4 * plan.dim * min(plan.shard_rows, plan.num_pairs), shard_s, warm_up_s,
    )  # fmt: skip


class _Seen:
    """What the driver told of a run."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.loads: list[float] = []
        self.shards: list[tuple[tuple[Any, Any], float, int]] = []  # process, seconds, rows
        self.last: Snapshot | None = None
        self.driver_s = self.last_shard_at = self._thread_s = 0.0

    def on_event(self, event: LabelEvent) -> None:
        """Of the driver, in its thread, behind all that a label run does with it."""
        if isinstance(event, WorkerStarted):
            load_s = event.load_s or 0.0
            if not self.starts:
                self._thread_s = time.thread_time()
            self.starts.append(event.seconds - load_s)
            self.loads.append(load_s)
        elif isinstance(event, ShardDone):
            record = event.record
            first, stop = record["rows"]
            self.shards.append(((record.get("host"), record.get("pid")), float(record["seconds"]), stop - first))
            self.driver_s, self.last_shard_at = time.thread_time() - self._thread_s, time.perf_counter()

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """The last one tells how long the workers were busy."""
        self.last = snapshot

    def steady_shards(self, whole_rows: int) -> tuple[list[float], float]:
        """Seconds of whole shards but each worker's first, all where there are no others; and what the first cost."""
        first: dict[Any, float] = {}
        rest = []
        for process, seconds, rows in self.shards:
            if process not in first:
                first[process] = seconds
            elif rows == whole_rows:
                rest.append(seconds)
        if not rest:
            return [seconds for _, seconds, _ in self.shards], 0.0
        middle = statistics.median(rest)
        return rest, statistics.fmean(max(0.0, seconds - middle) for seconds in first.values())


def measure_fit(
    url: str,
    checkpoints: str,
    settings: Any,
    num_workers: int,
    *,
    num_cpus_per_worker: int | None = None,
    use_gpu: bool | None = None,
) -> Measured:
    """Fit within a running Ray session; the first epoch, in which everything is read for the first time, counts too.

    Args:
        url: the complete store.
        checkpoints: a directory that is not there yet.
        settings: of the fit; its epochs end it, not the clock.
        num_workers: ranks.
        num_cpus_per_worker, use_gpu: as for ``fit_with_workers``.

    Raises:
        TrainingError, ClusterError: as ``fit_with_workers``.
    """
    from sfg_dist.distributed.fit.training import fit_with_workers

    entries: list[Mapping[str, float]] = []
    heard: list[float] = []

    def on_epoch(entry: Mapping[str, float]) -> None:
        entries.append(entry)
        heard.append(time.perf_counter())

    started, used = time.perf_counter(), time.thread_time()
    fit_with_workers(
        url,
        checkpoints,
        settings.model_copy(update={"num_workers": num_workers}),
        num_cpus_per_worker=num_cpus_per_worker,
        use_gpu=use_gpu,
        on_epoch=on_epoch,
    )
    wall_s = time.perf_counter() - started
    steps_s = float(entries[-1]["elapsed_s"])
    # Word of an epoch is never early: the least delay is the nearest to the truth.
    begun = min(at - float(entry["elapsed_s"]) for at, entry in zip(heard, entries, strict=True))
    start_s = min(max(0.0, begun - started), wall_s - steps_s)
    parts = {"start": start_s, "step": steps_s, "end": max(0.0, wall_s - steps_s - start_s)}
    rows = int(entries[-1]["step"]) * settings.batch_size
    return Measured("train", num_workers, wall_s, rows, parts, time.thread_time() - used)
