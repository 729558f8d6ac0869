"""From a job and its prepared table to the frame and the plan of its store."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from sfg_dist.distributed.executor import why_ray
from sfg_dist.job.config import READING_KEYS, Job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.fingerprint import fingerprint
from sfg_dist.job.plan import REFERENCE_BLOCK_ROWS, Plan
from sfg_dist.job.seal import FORMAT_VERSION, LATER_FORMAT_VERSION
from sfg_dist.job.version import versions
from sfg_dist.pipeline.choices import (
    check_spreads,
    choose_blur,
    choose_unit,
    debiased_frame,
    fit_grids,
    measure_certificates,
    measure_columns,
    t_min_of,
)
from sfg_dist.pipeline.table import category_types, text_format

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.data import Prepared
    from sfg_dist.store import Frame, Pairs, RowBlocks

# Keys of the labels table that change neither the bits nor their meaning. ``latents`` is a path: its content counts.
NOT_IDENTITY = {"num_pairs", "num_threads", "memory_gib", "latents"}

MakeOrder = Callable[["NDArray[np.float32]"], "NDArray[np.int64]"]
"""Orders a block of the reference in compact clusters."""


def frame_of(job: Job, table: Prepared, make_order: MakeOrder) -> Frame:
    """The frame of a job's store, from its prepared table; ``make_order`` is used where labels use clusters.

    Raises:
        DataError: the user's query points cannot be used.
    """
    from sfg_dist.data import read_queries
    from sfg_dist.store import Frame

    transform, is_measured = table.transform, job.labels.certificate == "measured"
    if is_measured and not table.is_whole:
        from sfg_dist.distributed.labels.ordering import order_of_mapped as make_order
    return Frame(
        _reference_of(table, is_mapped=is_measured),
        transform.to_arrays(),
        transform.to_metadata(),
        read_queries(job.labels.latents, transform, job.labels.direction, text_format(job)),
        make_order if uses_clusters(job, table.num_train) else None,
        block_rows=table.num_train if is_measured else REFERENCE_BLOCK_ROWS,
    )


def _reference_of(table: Prepared, *, is_mapped: bool) -> NDArray[np.float32] | RowBlocks:
    """The reference of a store: in memory, or of a larger table in blocks, or mapped from a temporary file.

    Raises:
        ConfigError: the directory for temporary files has no room.
    """
    from sfg_dist.flow.posterior.mapped import Scratch
    from sfg_dist.store import RowBlocks

    if table.is_whole:
        return table.reference()
    shape = (table.num_train, table.transform.dim)
    if not is_mapped:
        return RowBlocks(*shape, lambda: table.reference_blocks(REFERENCE_BLOCK_ROWS))
    scratch, start = Scratch(), 0
    rows = scratch.array(shape)
    for block in table.reference_blocks(REFERENCE_BLOCK_ROWS):
        rows[start : start + len(block)] = block
        start += len(block)
        scratch.release()
    return rows


def uses_clusters(job: Job, num_reference: int) -> bool:
    """Whether labels of this job use clusters of the reference."""
    from sfg_dist.flow.posterior.backends import SPARSE_ROWS

    return (
        job.data.condition is None
        and job.labels.estimator == "full"
        and job.labels.tolerance > 0
        and num_reference >= SPARSE_ROWS
    )


def cluster_order(job: Job, ray: Callable[[], AbstractContextManager[object]]) -> MakeOrder:
    """A function that orders a block: in this process's threads, or a large one by tasks on Ray.

    Args:
        job: whose executor orders.
        ray: a context in which Ray is up.
    """

    def make_order(reference: NDArray[np.float32]) -> NDArray[np.int64]:
        from sfg_dist.distributed.labels.ordering import CLUSTER_ROWS, order_with_tasks, order_with_threads

        is_whole = job.labels.certificate == "measured"
        if why_ray(job.executor) is None or len(reference) < CLUSTER_ROWS:
            return order_with_threads(reference, is_whole=is_whole)
        with ray():
            return order_with_tasks(reference, is_whole=is_whole)

    return make_order


def plan_of(job: Job, table: Prepared, frame: Frame, *, existing: Plan | None = None) -> tuple[Plan, Frame]:
    """The plan of a job over its prepared table, and the frame with the debiased reference if labels are made from one.

    The path of the table is no part of a plan: fingerprints say what was read from there. The reference's fingerprint
    alone would not do, since a quantile or standardizing transform takes away a change of units. The unit and a fitted
    grid follow from the rest of the identity, so both are taken from a plan that is there already. So is what debiasing
    gave, and the frame is then left as it is.

    Args:
        job: the checked job.
        table: its prepared table.
        frame: what the store's frame is made of.
        existing: the plan that is there already. One of version 0.1.0 has no unit and goes on without.

    Raises:
        ConfigError: something must be chosen from a reference larger than memory, or one blur does not suit all
            columns.
    """
    from sfg_dist.store import RowBlocks

    job = job.changed(labels={"t_min": t_min_of(job, table, existing)})
    whole = frame.reference if table.is_whole and isinstance(frame.reference, np.ndarray) else None
    queries = frame.queries
    assert queries is None or isinstance(queries, np.ndarray)
    names = table.transform.flow_columns
    unit, spread = {}, None
    if existing is not None:
        unit = {name: value for name, value in existing.identity.items() if name == "sigma_data"}
    elif job.transform.kind == "none":
        spread = measure_columns(RowBlocks.of(frame.reference).read())
        unit = {"sigma_data": choose_unit(job, spread, names)}
    sigma_data = unit.get("sigma_data", 1.0)
    if existing is not None and job.labels.debias is not False:
        blur = existing.identity["blur"]
    else:
        blur = choose_blur(job, whole, sigma_data)
    if spread is not None:
        check_spreads(job, spread, names, sigma_data, blur["t_min"])
    identity = {
        **identity_of_keys(job),
        "table": table.table_fingerprint(),
        "reference": frame.reference_fingerprint,
        "queries": None if queries is None else fingerprint(queries),
        "blur": blur,
        **unit,
    }
    if words := category_types(table):
        identity["types"] = words
    if existing is not None:
        identity |= {name: value for name, value in existing.identity.items() if name == "debiased"}
    elif blur.get("debias", job.labels.debias):
        in_memory = whole is not None
        frame = debiased_frame(frame, job.labels.schedule, blur["t_min"], sigma_data, is_in_memory=in_memory)
        identity["debiased"] = frame.score_fingerprint
    if job.labels.time_grid == "fitted":
        if existing is None and whole is None:
            raise ConfigError('labels.time_grid = "fitted": the reference must be in memory for that: take "graded"')
        if existing is None:
            identity["time_grid"] = fit_grids(job, frame, blur["t_min"], sigma_data)
        elif "time_grid" in existing.identity:
            identity["time_grid"] = existing.identity["time_grid"]
    if job.labels.certificate == "measured":
        if existing is not None:
            identity |= {name: value for name, value in existing.identity.items() if name == "certificate"}
        else:
            identity["certificate"] = measure_certificates(job, frame, identity, is_mapped=whole is None)
    is_later = job.labels.certificate == "measured" or "debiased" in identity
    plan = Plan(
        identity=identity,
        num_pairs=job.labels.num_pairs if queries is None else len(queries),
        dim=table.transform.dim,
        shard_rows=job.labels.shard_rows,
        columns=tuple(table.columns),
        source=job.data.source,
        versions=versions(),
        format_version=LATER_FORMAT_VERSION if is_later else FORMAT_VERSION,
    )
    return plan, frame


def identity_of_keys(job: Job) -> dict[str, dict[str, Any]]:
    """The tables of the job that decide the bits of labels, as they read back from JSON."""
    tables = {
        # which identifiers were left out shows in the columns
        "data": job.data.model_dump(exclude={"source", "identifiers", *READING_KEYS}, exclude_none=True),
        "transform": job.transform.model_dump(exclude_none=True),
        "labels": job.labels.model_dump(exclude=NOT_IDENTITY, exclude_none=True),
    }
    if job.data.bounds == "observed":  # so it was not in the plans of stores before there was a choice
        del tables["data"]["bounds"]
    elif not isinstance(job.data.bounds, str):  # JSON has no infinity
        ends = job.data.bounds.items()
        tables["data"]["bounds"] = {
            name: [str(end) if end in (np.inf, -np.inf) else end for end in pair] for name, pair in ends
        }
    # A table's fingerprint and types say the rest of how it was read, and stores before these choices lack them.
    del tables["data"]["dependencies"]
    if job.data.types == "auto":
        del tables["data"]["types"]
    if job.data.missing == "keep":  # the table that "refuse" would take is the same, and any other has gaps
        tables["data"]["missing"] = "refuse"
    if job.labels.certificate == "bound":  # nor was there a choice of certificates
        del tables["labels"]["certificate"]
    if job.labels.debias is False:
        del tables["labels"]["debias"]
    if job.data.condition is not None:
        from sfg_dist.flow.conditional import DEFAULT_NEIGHBORS

        tables["labels"].setdefault("condition_neighbors", DEFAULT_NEIGHBORS)
        tables["labels"].setdefault("condition_adjust", "linear")
    keys: dict[str, dict[str, Any]] = json.loads(json.dumps(tables))
    return keys


def warn_of_plain_process(plan: Plan) -> None:
    """Warn that a store of version 0.1.0 without a transform goes on with noise of spread 1."""
    if plan.identity.get("transform", {}).get("kind") == "none" and "sigma_data" not in plan.identity:
        warnings.warn(
            'the store was begun by version 0.1.0 with transform.kind = "none", and goes on with sigma_data = 1: if '
            "the spread of its rows is far from 1, take another output.dir",
            stacklevel=3,
        )


def warn_of_old_store(pairs: Pairs) -> None:
    """Warn that a store of version 0.1.0 keeps its own rows and transform."""
    if not pairs.plan.has_names:
        warnings.warn(
            f"{pairs.location.url} was begun by version 0.1.0, and keeps its rows and transform, without types of "
            "columns. This version may read or transform the table otherwise: it does so only in another output.dir",
            stacklevel=3,
        )
