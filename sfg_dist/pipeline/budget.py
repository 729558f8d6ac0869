"""Labels and a fit within so many seconds: how many pairs there are time for shows once the first ones are made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sfg_dist.job.config import Job
from sfg_dist.pipeline.output import Listener
from sfg_dist.pipeline.pipeline import Pipeline

if TYPE_CHECKING:
    from sfg_dist.data import Prepared

MOST_PAIRS, NUM_EPOCHS = 1_000_000, 200
"""Where a budget of time ends labels and the fit, and the job does not say otherwise."""
PACE_MARGIN = 0.95
MAX_GROWTH = 16  # of the pairs at once, so that the pace is known better before the most of them
COMPILED_ROWS = 8192  # enough for clusters, whose code takes longest


def compile_kernels(job: Job, prepared: Prepared) -> None:
    """Before the clock: the kernels of this table's width, compiled once a machine and then read from numba's cache."""
    from sfg_dist.flow import label_latents

    reference = prepared.flow_rows("train")
    rows = job.labels.num_reference if job.labels.estimator == "minibatch" else COMPILED_ROWS
    latents = np.zeros((8, reference.shape[1]), dtype=np.float32)
    label_latents(latents, reference[:rows], tolerance=job.labels.tolerance)


def label_within(
    job: Job, prepared: Prepared, limit_s: float, started: float, *, listener: Listener | None = None, there: int = 0
) -> Job:
    """Label as many pairs as the time allows, the job's number at most; the job with the number made.

    One shard first, then more by the pace so far; each part is a store's extension, with the bits of a single run.

    Args:
        job: of the labels.
        prepared: its table.
        limit_s: the seconds that labels may take, from ``started`` on.
        started: a time of ``time.perf_counter``.
        listener: called with every event.
        there: pairs that the store in output.dir has already, finished or not.
    """
    wanted, shard_rows = job.labels.num_pairs, job.labels.shard_rows
    made = there or min(wanted, shard_rows * (2 if job.labels.direction == "both" else 1))
    part = job.changed(labels={"num_pairs": made})
    begun_s = started

    def on_event(event: Mapping[str, Any]) -> None:
        nonlocal begun_s
        if event["event"] == "stage_started" and event["stage"] == "label":  # the store is made, once
            begun_s = time.perf_counter()
        if listener is not None:
            listener(event)

    _in_session(Pipeline(part, on_event, prepared=prepared), "label")
    pace = made / (time.perf_counter() - begun_s)
    while True:
        before_s = time.perf_counter()
        left_s = limit_s - (before_s - started)
        target = next_target(made, wanted, pace=pace, left_s=left_s, shard_rows=shard_rows)
        if target == made:
            return part
        part = job.changed(labels={"num_pairs": target})
        _in_session(Pipeline(part, listener, prepared=prepared), "extend")
        pace, made = (target - made) / (time.perf_counter() - before_s), target


def _in_session(pipeline: Pipeline, stage: str) -> None:
    with pipeline.session():
        getattr(pipeline, stage)()


def next_target(made: int, wanted: int, *, pace: float, left_s: float, shard_rows: int) -> int:
    """How many pairs to have next: what the time left allows in whole shards, not too many more at once; or all.

    Of ``wanted`` pairs ``made`` are there, which is the answer where nothing more fits; ``pace`` is in pairs a second.

    Examples:
        >>> next_target(4096, 200_000, pace=1000.0, left_s=10.0, shard_rows=4096)
        12288
    """
    target = min(wanted, MAX_GROWTH * made)
    affordable = made + PACE_MARGIN * pace * left_s
    if affordable < target:
        target = int(affordable) // shard_rows * shard_rows
    return max(made, target)
