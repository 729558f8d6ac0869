"""The table of a job: read and prepared, and compared with the store and the generator made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sfg_dist.data.cells import check_experts
from sfg_dist.data.naming import listed
from sfg_dist.job.config import READING_KEYS, Job
from sfg_dist.job.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.data import Prepared, Table, TableSettings, TextFormat
    from sfg_dist.model.generator import Generator
    from sfg_dist.store import Pairs


def prepare_table(job: Job, held: Table | None = None) -> Prepared:
    """The table of a job, cleaned and split; a table larger than labels.memory_gib is read in passes if its keys allow.

    ``held`` is the table itself, where it is in memory already.

    Raises:
        DataError: the table cannot be used as it stands.
    """
    from sfg_dist.data import prepare

    try:
        prepared = prepare(job.data.source, table_settings(job), held=held, memory_gib=job.labels.memory_gib)
    except MemoryError:
        raise DataError(
            f"{job.data.source} does not fit into memory: set labels.memory_gib to read it in parts, or data.max_rows "
            f"to take fewer rows"
        ) from None
    check_target(prepared.source, prepared.columns, job.evaluate.target, "evaluate.target")
    check_experts(prepared.transform, job.train.cells, job.train.experts)
    return prepared


def check_target(source: str, columns: Sequence[str], target: str | None, key: str) -> None:
    """Refuse a target that is none of the columns, with their names; ``key`` is where it was named."""
    if target is not None and target not in columns:
        raise DataError(f"{key}: {source} has no column {target!r}; it has {listed(list(columns))}")


def table_of_store(table: Prepared, pairs: Pairs) -> Prepared:
    """The table with the transform of a store.

    Where this version would fit another transform, the table's report leaves out grids and values that repeat, and has
    the columns that the store looks up.

    Raises:
        DataError: the store was made from another table.
    """
    from sfg_dist.data import Transform
    from sfg_dist.store.pairs import OTHERWISE

    is_same = category_types(table) == pairs.plan.identity.get("types", {})
    if not is_same or table.table_fingerprint() != pairs.plan.identity["table"]:
        why = "" if pairs.plan.has_names else f" ({OTHERWISE})"
        raise DataError(
            f"{table.source} is not the table that {pairs.location.url} was made from{why}: bring it back, "
            f"or choose another output.dir and run again"
        )
    arrays, metadata = pairs.transform
    fitted, transform = table.transform.to_arrays(), Transform.from_arrays(arrays, metadata)
    report = table.report
    if not all(np.array_equal(array, fitted.get(name, ()), equal_nan=True) for name, array in arrays.items()):
        report = {**report, "ties": {}, "atoms": {}, "determined": transform.determined}
    return replace(table, transform=transform, report=report)


def category_types(table: Prepared) -> dict[str, dict[str, Any]]:
    """The types of category columns by name, as a plan has them: rows of codes do not say what the codes are."""
    return {name: type_.to_dict() for name, type_ in table.types.items() if type_.is_coded}


def rows_of_generator(table: Prepared, generator: Generator, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of a part of the table in the generator's units, which may have other offsets than the table's.

    Raises:
        DataError: the generator was made from other columns.
    """
    from sfg_dist.data import Table

    if table.columns != generator.columns:
        raise DataError(
            f"{table.source} is read as columns {listed(table.columns)}, the generator has "
            f"{listed(generator.columns)}: bring the table back, or choose another output.dir and run again"
        )
    return Table(rows, table.columns, table.source, types=table.transform.types).retyped(generator.types)


def held_out_conditions(table: Prepared, generator: Generator, num_rows: int) -> NDArray[np.float64]:
    """Conditions for samples that are evaluated: those of the validation rows, again from the first one on.

    With the conditions of the very rows that samples are compared with, a classifier under cross-validation learns from
    each row the opposite of its twin, and its AUC is too low: 0.478 instead of 0.501 for a perfect sampler of a table
    with two columns.

    Raises:
        DataError: there are no validation rows.
    """
    if not len(table.validation):
        raise DataError(
            "data.split leaves no validation rows, and the samples that are judged take their conditions "
            "from those rows: give them a share"
        )
    held_out = rows_of_generator(table, generator, table.validation)[:, generator.split.places]
    return np.resize(held_out, (num_rows, held_out.shape[1]))


def table_settings(job: Job) -> TableSettings:
    """What a job says of its table."""
    from sfg_dist.data import TableSettings

    keys = job.data.model_dump(exclude={"source", *READING_KEYS})
    return TableSettings(**keys, kind=job.transform.kind, text=text_format(job))


def text_format(job: Job) -> TextFormat:
    """What the job says of .csv files."""
    from sfg_dist.data import TextFormat

    return TextFormat(**job.data.model_dump(include=READING_KEYS))
