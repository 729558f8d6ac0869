"""Labels what a store still lacks, and leaves word of it in the store: what label, repair and extend have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from sfg_dist.distributed.labels.monitor import Monitor
from sfg_dist.job.object_stores import absolute_url

if TYPE_CHECKING:
    from sfg_dist.distributed.labels.metrics import LabelMetrics
    from sfg_dist.job.config import ExecutorConfig
    from sfg_dist.store import Pairs
    from sfg_dist.store.snapshot import SnapshotDocument

SHARD_KEYS = ("shard", "rows", "seconds", "attempt", "host", "pid", "device")
"""What an event says of a commit record; the rest is in the record."""

Emit = Callable[..., None]
"""Told every event: its name, then its details by keyword."""


def label_pending(
    pairs: Pairs,
    executor: ExecutorConfig,
    *,
    num_threads: int,
    memory_gib: float | None,
    emit: Emit,
    only: Collection[int] | None = None,
    reserved: Mapping[str, float] | None = None,
    on_snapshot: Callable[[SnapshotDocument], None] | None = None,
) -> None:
    """Label the pending shards of a store, by actors of the running Ray session or in this process.

    Files that killed writers left half written are swept away before and after.

    Args:
        pairs: the open store.
        executor: which, and how many.
        num_threads: CPU threads of an actor.
        memory_gib: memory for the reference in each; None for as much as it takes.
        emit: told what happens.
        only: leave pending shards that are not among these as they are.
        reserved: of Ray's resources, what something else holds meanwhile.
        on_snapshot: told every snapshot of the driver too.

    Raises:
        LabelingError: a shard could not be labelled.
        ClusterError: the cluster cannot hold an actor.
        StoreError: a shard could not be written, or what is there could not be listed.
    """
    from sfg_dist.distributed.labels.actors import label_with_actors
    from sfg_dist.distributed.labels.inline import label_inline
    from sfg_dist.distributed.labels.workers import DriverId
    from sfg_dist.store import sweep_partials

    sweep_partials(pairs, refuse_links=True)
    driver = DriverId.new()
    with Monitor(pairs.location, str(driver)) as monitor:
        metrics = _metrics(pairs) if executor.kind == "ray" else None

        def on_event(event: str, **details: Any) -> None:
            if metrics is not None:
                metrics.event(event, **details)
            if event == "shard":
                record = details.pop("record")
                details |= {key: record[key] for key in SHARD_KEYS if key in record}
            monitor.event(event, **details)
            emit(event, **details)

        def note_snapshot(snapshot: SnapshotDocument) -> None:
            if metrics is not None:
                metrics.snapshot(snapshot)
            monitor.snapshot(snapshot)
            if on_snapshot is not None:
                on_snapshot(snapshot)

        options: dict[str, Any] = {
            "driver": driver,
            "num_threads": num_threads,
            "memory_gib": memory_gib,
            "max_attempts": executor.max_attempts,
            "on_event": on_event,
            "on_snapshot": note_snapshot,
            "only": only,
        }
        if executor.notice_s is not None:
            options["notice_s"] = executor.notice_s
        url = absolute_url(pairs.location.url)
        if executor.kind == "inline":
            label_inline(url, **options)
        else:
            label_with_actors(
                url,
                num_actors=executor.num_actors,
                num_gpus_per_actor=executor.num_gpus_per_actor,
                num_cpu_actors=executor.num_cpu_actors,
                actors_per_group=executor.actors_per_group,
                shard_timeout_s=executor.shard_timeout_s,
                reserved=reserved,
                **options,
            )
    sweep_partials(pairs)


def _metrics(pairs: Pairs) -> LabelMetrics:
    from sfg_dist.distributed.labels.metrics import LabelMetrics

    return LabelMetrics(pairs.location.url)
