"""One run of a scaling study: labels by so many actors, or a fit by so many workers, and where their time went."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sfg_dist.distributed.labels.events import LabelEvent, ShardDone, Snapshot, WorkerStarted
from sfg_dist.distributed.labels.label import label_pending
from sfg_dist.distributed.labels.pool import Policy
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.job.errors import ClusterError
from sfg_dist.studies.scale.results import Run

if TYPE_CHECKING:
    from sfg_dist.job.config import Job, TrainConfig
    from sfg_dist.store import Pairs


def measure_labels(pairs: Pairs, job: Job) -> Run:
    """Label a store that has no shard yet, as ``sfg label`` does, within a running Ray session.

    Raises:
        ClusterError: not all actors found a place, or as ``label_pending``.
        LabelingError: as ``label_pending``.
    """
    num_actors = job.executor.num_actors
    assert num_actors is not None, "a run has its number of actors"
    seen, plan = _Seen(), pairs.plan
    started = time.perf_counter()
    settings = LabelSettings(
        num_threads=job.labels.num_threads,
        memory_gib=job.labels.memory_gib,
        policy=Policy.of(job.executor),
        on_event=seen.on_event,
        on_snapshot=seen.on_snapshot,
    )
    label_pending(pairs, job.executor, settings)
    wall_s = time.perf_counter() - started
    if len(seen.starts) < min(num_actors, plan.num_shards):
        raise ClusterError(
            f"{num_actors} actors were asked for, and {len(seen.starts)} began before the labels were done: the job "
            "is too short for this study; raise labels.num_pairs"
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
    return Run(
        stage="label",
        mode="strong",
        num_workers=num_actors,
        wall_s=wall_s,
        rows=plan.num_pairs,
        parts_s=parts,
        driver_s=seen.driver_s,
        num_shards=plan.num_shards,
        shard_bytes=2 * 4 * plan.dim * min(plan.shard_rows, plan.num_pairs),
        shard_s=shard_s,
        warm_up_s=warm_up_s,
    )


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
    url: str, checkpoints: str, settings: TrainConfig, num_workers: int, *, num_cpus_per_worker: int, use_gpu: bool
) -> Run:
    """Fit within a running Ray session; the first epoch, in which everything is read for the first time, counts too.

    The store is complete, the directory ``checkpoints`` is not there yet, and the settings' epochs end the fit, not the
    clock. For the others see ``fit_with_workers``.

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
    return Run(
        stage="train",
        mode="strong",
        num_workers=num_workers,
        wall_s=wall_s,
        rows=int(entries[-1]["step"]) * settings.batch_size,
        parts_s={"start": start_s, "step": steps_s, "end": max(0.0, wall_s - steps_s - start_s)},
        driver_s=time.thread_time() - used,
    )
