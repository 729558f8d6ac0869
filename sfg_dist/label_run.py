"""Labels what a store still lacks, and leaves word of it in the store: what label, repair and extend have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sfg_dist.errors import DataError
from sfg_dist.monitor import Monitor
from sfg_dist.objects import absolute_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.config import ExecutorConfig, LabelsConfig
    from sfg_dist.data import Transform
    from sfg_dist.store import Pairs

Emit = Callable[..., None]
"""Told every event: its name, then its details by keyword."""


def label_pending(
    pairs: Pairs,
    executor: ExecutorConfig,
    *,
    num_threads: int,
    memory_gib: float | None,
    emit: Emit,
) -> None:
    """Label the pending shards of a store, by actors of the running Ray session or in this process.

    Args:
        pairs: the open store.
        executor: which, and how many.
        num_threads: CPU threads of an actor.
        memory_gib: memory for the reference in each; None for as much as it takes.
        emit: told what happens.

    Raises:
        LabelingError: a shard could not be labelled.
        ClusterError: the cluster cannot hold an actor.
        StoreError: a shard could not be written.
    """
    from sfg_dist.distributed.actors import label_with_actors
    from sfg_dist.distributed.labeler import label_inline

    url = absolute_url(pairs.location.url)
    with Monitor(pairs.location) as monitor:

        def on_event(event: str, **details: Any) -> None:
            if event == "shard":
                record = details.pop("record")
                details |= {key: record[key] for key in ("shard", "rows", "seconds", "pid")}
            monitor.event(event, **details)
            emit(event, **details)

        def on_progress(done: int, total: int, record: Mapping[str, Any]) -> None:
            on_event("shard", done=done, total=total, record=record)

        if executor.kind == "inline":
            label_inline(url, num_threads=num_threads, on_progress=on_progress)
            return
        label_with_actors(
            url,
            num_actors=executor.num_actors,
            num_gpus_per_actor=executor.num_gpus_per_actor,
            num_threads=num_threads,
            on_progress=on_progress,
        )


def query_rows(labels: LabelsConfig, transform: Transform) -> NDArray[np.float32] | None:
    """The user's query points in the flow's coordinates: latents as they stand, data through the transform.

    Raises:
        DataError: the table is not one of rows of this flow.
    """
    source = labels.latents
    if source is None:
        return None
    from sfg_dist.data import open_table

    decode = labels.direction == "decode"
    table = open_table(source)
    width = transform.dim if decode else len(transform.columns)
    if not decode and set(transform.columns) <= set(table.columns):
        table = open_table(source, columns=list(transform.columns))  # by name; without names, by position
    if table.values.shape[1] != width:
        raise DataError(f"labels.latents: {source} has {table.values.shape[1]} columns, expected {width}")
    finite = np.isfinite(table.values).all(axis=1)
    if not finite.all():
        raise DataError(f"labels.latents: {source} is not finite in row {int(np.argmin(finite))} (0-based)")
    rows = table.values.astype(np.float32) if decode else transform.forward(table.values, noise=None)
    return np.ascontiguousarray(rows)
