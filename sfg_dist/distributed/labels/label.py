"""Labels what a store still lacks, and leaves word of it in the store: what label, repair and extend have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sfg_dist.distributed.labels.monitor import Monitor
from sfg_dist.distributed.labels.pool import Policy
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.job.object_stores import absolute_url

if TYPE_CHECKING:
    from sfg_dist.distributed.labels.events import LabelEvent, Snapshot
    from sfg_dist.job.config import ExecutorConfig, Job
    from sfg_dist.store import Pairs


def label_settings(job: Job, emit: Callable[..., None]) -> LabelSettings:
    """The settings that a job asks for; ``emit`` is told every event by its name and its details."""
    return LabelSettings(
        num_threads=job.labels.num_threads,
        memory_gib=job.labels.memory_gib,
        policy=Policy.of(job.executor),
        on_event=lambda event: emit(event.name, **event.details()),
    )


def label_pending(
    pairs: Pairs, executor: ExecutorConfig, asked: LabelSettings, *, reserved: Mapping[str, float] | None = None
) -> None:
    """Label the pending shards of a store, by actors of the running Ray session or in this process.

    Files that killed writers left half written are swept away before and after.

    Args:
        pairs: the open store.
        executor: which workers, and how many.
        asked: all else, without a driver's id.
        reserved: of Ray's resources, what something else holds meanwhile.

    Raises:
        LabelingError: a shard could not be labelled.
        ConfigError: the cluster cannot hold an actor.
        ClusterError: the cluster failed.
        StoreError: a shard could not be written, or what is there could not be listed.
    """
    from sfg_dist.distributed.labels.actors import label_with_actors
    from sfg_dist.distributed.labels.inline import label_inline
    from sfg_dist.distributed.labels.metrics import LabelMetrics
    from sfg_dist.distributed.labels.workers import DriverId
    from sfg_dist.store import sweep_partials

    sweep_partials(pairs, refuse_links=True)
    driver = DriverId.new()
    with Monitor(pairs.location, str(driver)) as monitor:
        listeners: list[Monitor | LabelMetrics] = [monitor]
        if executor.kind == "ray":
            listeners.insert(0, LabelMetrics(pairs.location.url))

        def on_event(event: LabelEvent) -> None:
            for listener in listeners:
                listener.event(event)
            if asked.on_event is not None:
                asked.on_event(event)

        def on_snapshot(snapshot: Snapshot) -> None:
            for listener in listeners:
                listener.snapshot(snapshot)
            if asked.on_snapshot is not None:
                asked.on_snapshot(snapshot)

        settings = replace(asked, driver=driver, on_event=on_event, on_snapshot=on_snapshot)
        url = absolute_url(pairs.location.url)
        if executor.kind == "inline":
            label_inline(url, settings)
        else:
            label_with_actors(url, executor, settings, reserved=reserved)
    sweep_partials(pairs)
