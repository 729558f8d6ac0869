"""From a source to rows that the flow can use: cleaned, split, and mapped.

The steps are: open, choose columns, take complete rows, find constants and grids, split, and fit the transform to the
training rows. Every choice that drops or changes something is a key of the job, and is reported.

The steps see a table as a ``RowReader``. A table in memory is one whose ranges cost nothing, and is shuffled. A table
larger than memory is read in three passes: once for the complete rows, and, some columns at a time, once for their
grids and once for their maps. It keeps the file's order, because a shuffle would read the file at random. Both ways
give the same bits. A table that is split already keeps its parts; only the training rows are shuffled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.cleaning import column_ends, find_complete, joined_ends, num_duplicates
from sfg_dist.data.conditions import ColumnSplit, conditions_last
from sfg_dist.data.findings import Findings
from sfg_dist.data.prepared import Prepared
from sfg_dist.data.row_reader import RowReader
from sfg_dist.data.rows import has_row_ranges, open_rows
from sfg_dist.data.settings import TableSettings
from sfg_dist.data.table import BUILTIN_NAMES, PARTS, Table, open_split, open_table
from sfg_dist.data.toy import NAMES as TOY_NAMES
from sfg_dist.job.errors import DataError
from sfg_dist.job.words import GIB

MIN_ROWS = 20
MIN_TRAIN_ROWS = 10
EVALUATED_ROWS = 200_000
"""Of each part of a table larger than memory, at most this many rows are held for the figures of a report."""
COPIES = 5
"""A column takes so many times its size while its curve is fitted: itself, spread out, sorted, counted."""

_Array = NDArray[np.float64]
_Opener = Callable[[], AbstractContextManager[RowReader]]


def prepare(
    source: str | Path,
    settings: TableSettings | None = None,
    *,
    held: Table | None = None,
    memory_gib: float | None = None,
    **keys: Any,
) -> Prepared:
    """Open a table, clean it, split it and fit the transform.

    Args:
        source: a built-in name, a path, or an ``s3://`` URL.
        settings: what the job says of the table.
        held: the table itself, where it is in memory already; ``source`` is then what messages call it.
        memory_gib: a larger table is not held whole, if it is .parquet, .zarr or local .npy, with
            ``shuffle = "none"`` and neither ``append`` nor ``arrays``; None holds any.
        keys: fields of ``settings`` to change.

    Raises:
        DataError: the table cannot be used as it stands; the message says where and which key would help.

    Examples:
        >>> prepared = prepare("moons", max_rows=1000)
        >>> prepared.train.shape, prepared.reference().dtype
        ((800, 2), dtype('float32'))
    """
    source, settings = str(source), replace(settings or TableSettings(), **keys)
    if held is not None:
        return _prepare_whole(source, settings, held)
    is_in_order = settings.shuffle == "none" and not settings.append and settings.arrays is None
    if memory_gib is None or not is_in_order or source in BUILTIN_NAMES or not has_row_ranges(source):
        return _prepare_whole(source, settings)
    memory_bytes, array = int(memory_gib * GIB), settings.array
    columns, identifiers, asked = settings.columns, settings.identifiers, settings.asked
    with open_rows(source, array=array, columns=columns, identifiers=identifiers, asked=asked) as reader:
        if reader.num_bytes <= memory_bytes:
            return _prepare_whole(source, settings)
        types = dict(zip(reader.columns, reader.types, strict=True))
    if settings.condition:
        raise DataError(
            f"{source} is larger than labels.memory_gib = {memory_gib:g}, and labels for data.condition need it "
            "whole: raise labels.memory_gib, or leave it out and lower data.max_rows"
        )
    return prepare_in_passes(partial(open_rows, source, array=array, types=types), settings, memory_bytes)


def open_whole(source: str, settings: TableSettings, held: Table | None = None) -> Table:
    """The table in memory, ``held`` or opened, with the columns that samples are given behind the others."""
    columns, identifiers = settings.columns, settings.identifiers
    if held is not None:
        table = held
    elif settings.arrays is not None:
        table = open_split(
            source, arrays=settings.arrays, columns=columns, identifiers=identifiers, asked=settings.asked
        )
    else:
        table = open_table(
            source,
            array=settings.array,
            append=settings.append,
            columns=columns,
            identifiers=identifiers,
            asked=settings.asked,
            seed=settings.seed,
            max_rows=settings.max_rows if source in TOY_NAMES else None,
            text=settings.text,
        )
    if not settings.condition:
        return table
    places, density = conditions_last(source, table.columns, settings.condition), table.log_density
    back = np.argsort(places)
    return table.select(places, None if density is None else lambda rows: density(rows[:, back]))


def _prepare_whole(source: str, settings: TableSettings, held: Table | None = None) -> Prepared:
    """Prepare a table in memory."""
    table = open_whole(source, settings, held)
    num_read, num_columns = table.values.shape
    if num_read < MIN_ROWS <= num_columns:
        raise DataError(
            f"{source} has {num_read} rows of {num_columns} columns: expected at least {MIN_ROWS} rows; "
            "MATLAB, Julia and R store a table in HDF5 with rows and columns exchanged: save its transpose"
        )

    def reader(rows: _Array, named: str = source) -> RowReader:
        return RowReader.over(rows, named, table.columns, table.types, table.read_as)

    parts, ends = [], []
    for part, values in table.parts.items():
        whole = reader(values, f"{source}: the {part} part" if table.sizes else source)
        complete = find_complete(whole, settings.missing)
        parts.append(values if complete.num_rows == len(values) else values[np.isfinite(values).all(axis=1)])
        ends += [complete.ends(whole, complete.num_rows)] if complete.num_rows else []
    rows = np.concatenate(parts)
    sizes = _part_sizes(len(rows), settings)
    if table.sizes:
        sizes = dict(zip(PARTS, map(len, parts), strict=True))
        sizes["train"] = min(sizes["train"], settings.max_rows or sizes["train"])
    _check_parts(source, len(rows), num_read, sizes, settings.max_rows)
    findings = Findings.of(reader(rows), joined_ends(ends), settings, num_columns)
    findings.snap(rows, table.columns)
    findings = findings.with_lookups(reader(rows))
    order = _order(len(parts[0]), settings.shuffle, settings.seed)
    if table.sizes:
        train = rows[order[: sizes["train"]]]
        _, validation, test = np.split(rows, np.cumsum([len(part) for part in parts[:-1]]))
        test_places = np.arange(len(test))
    else:
        places = order[: settings.max_rows]
        train, validation, test = _cut(rows[places], sizes)
        test_places = places[len(places) - len(test) :]
    transform = findings.fit(reader(train), column_ends(train), num_columns)
    ColumnSplit.of(transform, settings.condition or ())  # refuses conditions that no sample can be given
    return Prepared(
        source=source,
        train=train,
        validation=validation,
        test=test,
        columns=table.columns,
        transform=transform,
        log_density=table.log_density,
        seed=settings.seed,
        report=findings.report(num_read, transform, sizes, num_duplicates(train)),
        sizes=sizes,
        test_places=test_places,
    )


def prepare_in_passes(open_table: _Opener, settings: TableSettings, memory_bytes: int) -> Prepared:
    """Prepare a table in passes over its rows, which are never held whole; they keep their order.

    ``open_table`` is called once for these passes and once for each later one. Columns and their copies may take
    ``memory_bytes`` at a time; one column is taken in any case.
    """
    with open_table() as whole:
        complete = find_complete(whole, settings.missing)
        reader, num_rows = complete.select(whole), complete.num_rows
        sizes = _part_sizes(num_rows, settings)
        _check_parts(whole.source, num_rows, whole.num_rows, sizes, settings.max_rows)
        at_once = max(1, memory_bytes // (COPIES * 8 * num_rows))
        findings = Findings.of(reader, complete.ends(reader, num_rows), settings, at_once)
        snapped = findings.snapped(reader)
        findings = findings.with_lookups(snapped)
        train = replace(snapped, num_rows=sizes["train"])
        train_ends = complete.ends(reader, sizes["train"])
        findings.snap(train_ends[:2], reader.columns)
        transform = findings.fit(train, train_ends, at_once)
        starts = (0, sizes["train"], sizes["train"] + sizes["validation"])
        train_rows, validation, test = (
            snapped.read(start, start + min(sizes[part], EVALUATED_ROWS))
            for part, start in zip(PARTS, starts, strict=True)
        )

    def read_train(block_rows: int) -> Iterator[_Array]:
        with open_table() as again:
            rows = findings.snapped(complete.select(again))
            yield from replace(rows, num_rows=sizes["train"]).blocks(block_rows)

    return Prepared(
        source=whole.source,
        train=train_rows,
        validation=validation,
        test=test,
        columns=whole.columns,
        transform=transform,
        log_density=None,
        seed=settings.seed,
        report=findings.report(whole.num_rows, transform, sizes, None),  # all rows at once would show duplicates
        sizes=sizes,
        test_places=starts[-1] + np.arange(len(test)),
        read_train=read_train,
    )


def _order(num_rows: int, shuffle: str, seed: int) -> NDArray[np.intp]:
    if shuffle == "permutation":
        return np.random.default_rng(seed).permutation(num_rows)
    if shuffle == "legacy":
        if not 0 <= seed < 2**32:
            raise DataError(f'data.shuffle = "legacy" takes a data.seed from 0 to 4294967295, found {seed}')
        # The same order as RandomState(seed).shuffle(rows), which published splits of the UCI tables use.
        return np.random.RandomState(seed).permutation(num_rows)
    if shuffle == "none":
        return np.arange(num_rows)
    raise DataError(f'data.shuffle = {shuffle!r}: expected "permutation", "legacy" or "none"')


def _cut(rows: _Array, sizes: Mapping[str, int]) -> tuple[_Array, _Array, _Array]:
    """Training, validation and test rows: the last ones are the test, those before them validation."""
    first, last = sizes["train"], sizes["train"] + sizes["validation"]
    return rows[:first], rows[first:last], rows[last:]


def _part_sizes(num_complete: int, settings: TableSettings) -> dict[str, int]:
    """Rows of each part of a table that is not split already."""
    num_rows, split = min(num_complete, settings.max_rows or num_complete), settings.split
    num_test, num_validation = int(split[2] * num_rows), int(split[1] * num_rows)
    return {"train": num_rows - num_validation - num_test, "validation": num_validation, "test": num_test}


def _check_parts(source: str, num_rows: int, num_read: int, sizes: Mapping[str, int], max_rows: int | None) -> None:
    """Refuse a table, or a split of it, that leaves too few rows."""
    dropped = f"{num_read} read, {num_read - num_rows} dropped as incomplete"
    for number, why in ((num_rows, dropped), (sum(sizes.values()), f"data.max_rows = {max_rows}")):
        if number < MIN_ROWS:
            raise DataError(f"{source}: {number} rows are left ({why}): expected at least {MIN_ROWS}")
    if sizes["train"] < MIN_TRAIN_ROWS or not sizes["test"]:
        raise DataError(
            f"{source}: the split leaves {sizes['train']} training, {sizes['validation']} validation "
            f"and {sizes['test']} test rows: expected at least {MIN_TRAIN_ROWS} for training, one for the test "
            "(data.split, data.max_rows)"
        )
