"""Labels what a store still lacks, and leaves word of it in the store: what label, repair and extend have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sfg_dist.distributed.executor import why_ray
from sfg_dist.distributed.labels.events import ExecutorChosen
from sfg_dist.distributed.labels.monitor import Monitor
from sfg_dist.distributed.labels.pool import Policy
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.distributed.labels.shards import Maker, Shards
from sfg_dist.job.object_stores import absolute_url

if TYPE_CHECKING:
    from sfg_dist.distributed.labels.choice import Choice
    from sfg_dist.distributed.labels.events import LabelEvent, Snapshot
    from sfg_dist.distributed.labels.labeler import ShardLabeler
    from sfg_dist.distributed.labels.process_pool import Template
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


@dataclass(frozen=True)
class Means:
    """What a run of labels may use."""

    # the key that asks for Ray, as ``executor.why_ray`` says it; None where the rate decides
    why_ray: str | None = None
    need_ray: Callable[[], None] = lambda: None  # starts Ray; called before it is used
    # of the machine's or Ray's resources, what something else holds meanwhile
    reserved: Mapping[str, float] = field(default_factory=dict)
    template: Template | None = None  # of processes, where one was started before; it is closed by who made it


def label_pending(pairs: Pairs, executor: ExecutorConfig, asked: LabelSettings, means: Means | None = None) -> None:
    """Label the pending shards of a store, by actors of Ray, by processes of this machine, or in this process.

    Files that killed writers left half written are swept away before and after.

    Args:
        pairs: the open store.
        executor: which workers, and how many.
        asked: all else, without a driver's id.
        means: what may be used; without it, a Ray that runs already.

    Raises:
        LabelingError: a shard could not be labelled.
        ConfigError: the cluster cannot hold an actor.
        ClusterError: the cluster failed, or no process could be started.
        StoreError: a shard could not be written, or what is there could not be listed.
    """
    from sfg_dist.distributed.labels.actors import label_with_actors
    from sfg_dist.distributed.labels.inline import label_inline, label_with_processes
    from sfg_dist.distributed.labels.metrics import LabelMetrics
    from sfg_dist.distributed.labels.workers import DriverId
    from sfg_dist.store import sweep_partials

    means = means or Means(why_ray(executor))
    sweep_partials(pairs, refuse_links=True)
    choice, labeler = _choose(pairs, executor, asked, means)
    opened = [] if labeler is None else [labeler]  # which the pool takes, so that it can let go of it
    del labeler
    if choice.executor == "ray":
        means.need_ray()
    driver = DriverId.new()
    with Monitor(pairs.location, str(driver)) as monitor:
        listeners: list[Monitor | LabelMetrics] = [monitor]
        if choice.executor == "ray":
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
        on_event(ExecutorChosen("label", choice.executor, choice.num_processes, choice.words))
        if choice.executor == "ray":
            label_with_actors(url, executor, settings, reserved=means.reserved)
        elif choice.num_processes:
            label_with_processes(url, choice.num_processes, settings, template=means.template)
        else:
            label_inline(url, settings, opened=opened)
    sweep_partials(pairs)


def _choose(
    pairs: Pairs, executor: ExecutorConfig, asked: LabelSettings, means: Means
) -> tuple[Choice, ShardLabeler | None]:
    """Who labels, and an open labeler of this process where one measured."""
    from sfg_dist.distributed.labels import choice
    from sfg_dist.distributed.machine import this_machine

    if means.why_ray is not None:
        return choice.choose(executor, None, num_processes=0, why=means.why_ray), None
    machine, pending = this_machine(), Shards(pairs, asked.only).pending()
    reserved_cpus, num_gpus = means.reserved.get("CPU", 0.0), len(machine.gpus)
    number = choice.num_processes(executor, asked.num_threads, machine, reserved_cpus=reserved_cpus)
    fitting = choice.num_fitting(
        pairs.plan, machine, asked.memory_gib, num_reference=pairs.num_reference, has_clusters=pairs.has_order
    )
    number = min(number, fitting, len(pending))
    has_choice = bool(pending) and num_gpus != 1 and not choice.is_one(executor)
    alone_s, labeler = None, None
    # A budget of memory is a process's own: this one may hold the table too.
    if has_choice and asked.memory_gib is None:
        make = Maker(asked.labeler_class, absolute_url(pairs.location.url), asked.labeler_arguments)
        alone_s, labeler = choice.measured(pairs, pending, make)
    start_s = choice.PROCESS_START_S if means.template is None else choice.FORK_START_S
    found = choice.choose(executor, alone_s, num_processes=number, num_gpus=num_gpus, start_s=start_s)
    if labeler is not None and (found.executor == "ray" or found.num_processes):
        labeler.close()
        labeler = None
    return found, labeler
