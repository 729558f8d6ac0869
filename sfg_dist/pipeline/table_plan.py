"""From a job and its prepared table to the frame and the plan of its store, whether the table is in memory or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sfg_dist.data.naming import listed
from sfg_dist.job.config import READING_KEYS
from sfg_dist.job.errors import DataError
from sfg_dist.job.plan import REFERENCE_BLOCK_ROWS
from sfg_dist.pipeline.plan import make_plan, uses_clusters

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.data import Prepared, TableSettings, TextFormat
    from sfg_dist.job.config import Job
    from sfg_dist.job.plan import Plan
    from sfg_dist.model.generator import Generator
    from sfg_dist.store import Frame, Pairs

Order = Callable[["NDArray[np.float32]"], "NDArray[np.int64]"]


def prepare_table(job: Job) -> Prepared:
    """The table of a job, cleaned and split; one larger than labels.memory_gib in passes, where its keys allow it.

    Raises:
        DataError: the table cannot be used as it stands.
    """
    from sfg_dist.data import prepare

    try:
        return prepare(job.data.source, table_settings(job), memory_gib=job.labels.memory_gib)
    except MemoryError:
        raise DataError(
            f"{job.data.source} does not fit into memory: set labels.memory_gib to read it in parts, or data.max_rows "
            f"to take fewer rows"
        ) from None


def table_of_store(table: Prepared, pairs: Pairs) -> Prepared:
    """The table with the transform that a store holds, which this version may fit otherwise.

    Where it does, the table's report says nothing of grids and of values that repeat.

    Raises:
        DataError: the store was made from another table.
    """
    from sfg_dist.data import Transform
    from sfg_dist.store.pairs import OTHERWISE

    if table.table_fingerprint() != pairs.plan.identity["table"]:
        why = "" if pairs.plan.has_names else f" ({OTHERWISE})"
        raise DataError(
            f"{table.source} is not the table that {pairs.location.url} was made from{why}: bring it back, "
            f"or choose another output.dir and run again"
        )
    arrays, metadata = pairs.transform
    fitted = table.transform.to_arrays()
    if all(np.array_equal(array, fitted.get(name, ()), equal_nan=True) for name, array in arrays.items()):
        report = table.report
    else:
        report = {**table.report, "ties": {}, "atoms": {}}
    return replace(table, transform=Transform.from_arrays(arrays, metadata), report=report)


def validation_rows(table: Prepared, generator: Generator) -> NDArray[np.float64]:
    """The validation rows as a generator counts them: with the offsets that its columns had.

    Raises:
        DataError: the generator was made from other columns.
    """
    from sfg_dist.data import Table

    if table.columns != generator.columns:
        raise DataError(
            f"{table.source} is read as columns {listed(table.columns)}, the generator has "
            f"{listed(generator.columns)}: bring the table back, or choose another output.dir and run again"
        )
    rows = Table(table.validation, table.columns, table.source, types=table.transform.types)
    return rows.retyped(generator.types)


def table_settings(job: Job) -> TableSettings:
    """What a job says of its table."""
    from sfg_dist.data import TableSettings

    keys = job.data.model_dump(exclude={"source", *READING_KEYS})
    return TableSettings(**keys, kind=job.transform.kind, text=_text_format(job))


def _text_format(job: Job) -> TextFormat:
    """What the job says of .csv files."""
    from sfg_dist.data import TextFormat

    return TextFormat(**job.data.model_dump(include=READING_KEYS))


def frame_of(job: Job, table: Prepared, make_order: Order) -> Frame:
    """What the frame of a job's store is made of.

    Args:
        job: the checked job.
        table: its prepared table.
        make_order: orders a block of the reference in compact clusters, where labels use some.

    Raises:
        DataError: the user's query points cannot be used.
    """
    from sfg_dist.data import read_queries
    from sfg_dist.store import Frame, RowBlocks

    transform = table.transform
    return Frame(
        table.reference()
        if table.is_whole
        else RowBlocks(table.num_train, transform.dim, lambda: table.reference_blocks(REFERENCE_BLOCK_ROWS)),
        transform.to_arrays(),
        transform.to_metadata(),
        read_queries(job.labels.latents, transform, job.labels.direction, _text_format(job)),
        make_order if uses_clusters(job, table.num_train) else None,
    )


def plan_of(
    job: Job,
    table: Prepared,
    frame: Frame,
    *,
    existing: Plan | None = None,
) -> Plan:
    """The plan of a job over its prepared table.

    Args:
        job: the checked job.
        table: its prepared table.
        frame: what the store's frame is made of.
        existing: the plan that is there already.

    Raises:
        ConfigError: something shall be chosen for the reference, which cannot be done for one larger than memory; or
            one blur does not suit all columns.
    """
    from sfg_dist.store import RowBlocks

    whole = frame.reference if isinstance(frame.reference, np.ndarray) else None
    is_fitted = job.labels.time_grid == "fitted" and whole is not None and existing is None
    assert frame.queries is None or isinstance(frame.queries, np.ndarray)
    return make_plan(
        job,
        table=table.table_fingerprint(),
        reference=whole,
        reference_fingerprint=table.reference_fingerprint() if whole is None else frame.reference_fingerprint,
        dim=table.transform.dim,
        columns=table.columns,
        queries=frame.queries,
        blocks=RowBlocks.of(frame.reference).read,
        flow_columns=table.transform.flow_columns,
        order=frame.order if is_fitted and frame.make_order is not None else None,
        existing=existing,
    )
