"""Opens a table to be read by ranges of rows, for tables that are larger than memory.

| suffix | how a range is read |
| --- | --- |
| .parquet | the row groups that it lies in, one at a time, only the columns wanted |
| .zarr | the chunks that it lies in |
| .npy | mapped into memory (local files only) |
| a folder or glob of .parquet | those of its files, one below the other |

The other formats are read whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.array_file import DEFAULT_ARRAY, ArrayFile
from sfg_dist.data.arrays import open_arrays
from sfg_dist.data.cf import Packing
from sfg_dist.data.column_type import FLOAT, ColumnType
from sfg_dist.data.declared_sizes import check_stored
from sfg_dist.data.folder_rows import open_folder_rows
from sfg_dist.data.folders import is_folder, is_prefix, parts_of
from sfg_dist.data.naming import check_columns
from sfg_dist.data.numpy_files import check_end, open_npy
from sfg_dist.data.parquet_file import parquet_rows
from sfg_dist.data.row_reader import ColumnChoice, RowReader
from sfg_dist.data.sources import existing_path, open_ranges, reading, suffix_of
from sfg_dist.data.surveys import arrow_of, column_of, float_block, numpy_survey, sample_block, settled
from sfg_dist.data.unfit import columns_are, each_fit
from sfg_dist.job.errors import DataError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.words import counted

SUFFIXES = (".parquet", ".zarr", ".npy")
_PART_ROWS = 1 << 16

_Array = NDArray[np.float64]


def has_row_ranges(source: str) -> bool:
    """Whether a source is of a format that is read by ranges of rows."""
    if is_folder(source):
        return all(suffix_of(part.source) == ".parquet" for part in parts_of(source))
    suffix = suffix_of(source)
    return suffix in SUFFIXES and not (suffix == ".npy" and is_url(source))


@contextmanager
def open_rows(
    source: str | Path,
    *,
    array: str = DEFAULT_ARRAY,
    columns: Sequence[str] | None = None,
    identifiers: str = "refuse",
    asked: Mapping[str, Any] | None = None,
    types: Mapping[str, ColumnType] | None = None,
) -> Iterator[RowReader]:
    """Open a .parquet, .zarr or local .npy table, a path or an ``s3://`` URL, to be read by ranges of rows.

    Columns whose type does not say their offset, 64-bit integers and stamps, are read once to find it. ``array`` is as
    for ``open_table``; for the others see ``ColumnChoice``.

    Raises:
        DataError: the source does not exist, is of another format, or cannot be used.

    Examples:
        >>> with open_rows("table.parquet") as rows:      # doctest: +SKIP
        ...     first = rows.read(0, 1000)
    """
    source = str(source)
    suffix, choice = suffix_of(source), ColumnChoice(columns, identifiers, asked or {}, types)
    if not has_row_ranges(source):
        raise DataError(
            f"{source}: only .parquet, .zarr and local .npy tables, and folders of .parquet, can be read by "
            f"ranges; convert it, or leave out labels.memory_gib to read it whole"
        )
    if is_folder(source) or (suffix == ".parquet" and is_prefix(source)):
        with open_folder_rows(source, choice) as reader:
            yield reader
    elif suffix == ".parquet":
        with open_ranges(source) as stream:
            yield parquet_rows(source, stream, choice)
    elif suffix == ".npy":
        yield _npy_rows(source, choice)
    else:
        with open_arrays(source) as file:
            yield _zarr_rows(source, file, array, choice)


def _npy_rows(source: str, choice: ColumnChoice) -> RowReader:
    path = existing_path(source)
    with path.open("rb") as stream:
        open_npy(source, stream).dtype(DEFAULT_ARRAY)  # refuses what cannot be mapped
    with reading(source):
        table: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    check_end(source, path.stat().st_size > table.offset + table.nbytes)
    width = _width(source, table)
    facts = path.stat()
    # A file with holes takes less space on the disk than its size; some file systems do not say how much.
    stored = min(facts.st_size, 512 * facts.st_blocks or facts.st_size)
    check_stored(source, f"a table of {table.shape} {table.dtype}", table.shape, table.dtype, stored)
    names = table.dtype.names or tuple(f"c{index}" for index in range(width))
    return _matrix_rows(source, table, names, choice)


def _zarr_rows(source: str, file: ArrayFile, array: str, choice: ColumnChoice) -> RowReader:
    name = file.find(array)
    if name not in file.names:
        raise DataError(f"{source} has no array {name!r}; {file.listing()}")
    assert file.node is not None
    table = file.node(name)
    width = _width(source, table)
    names: tuple[str, ...] = table.dtype.names or file.column_names(name)
    packing = None if table.dtype.names else file.packing(name, table.dtype)
    is_typed = name == DEFAULT_ARRAY and file.types is not None and len(file.types) == width
    if choice.types is None and (is_typed or (packing is not None and packing.is_scaled)):
        known = dict(zip(names, (file.types if is_typed else None) or (FLOAT,) * width, strict=True))
        wanted = check_columns(source, names, choice.columns)
        choice = replace(choice, types={column: known[column] for column in wanted})
    return _matrix_rows(source, table, names, choice, packing, [repr(name), *file.notes], is_typed=is_typed)


def _width(source: str, table: Any) -> int:
    if table.dtype.names is not None and table.ndim == 1:
        return len(table.dtype.names)
    if table.ndim not in (1, 2) or table.dtype.kind not in "fiubmM":
        raise DataError(
            f"{source} is {table.ndim}-D {table.dtype}: expected one or two dimensions of numbers, with one row for "
            "each sample"
        )
    return int(table.shape[1]) if table.ndim == 2 else 1


def _matrix_rows(
    source: str,
    table: Any,
    names: tuple[str, ...],
    choice: ColumnChoice,
    packing: Packing | None = None,
    words: Sequence[str] = ("'X'",),
    *,
    is_typed: bool = False,
) -> RowReader:
    """The rows of an array; ``is_typed`` says that it is a table of samples, which holds value - offset."""
    num_rows = int(table.shape[0])
    # Rows are read in parts of whole chunks, so that a few columns of many rows never load all columns at once.
    step = -(-_PART_ROWS // table.chunks[0]) * table.chunks[0] if hasattr(table, "chunks") else _PART_ROWS

    def part(start: int, stop: int) -> NDArray[Any]:
        rows = np.asarray(table[start:stop])
        rows = rows if packing is None else packing.unpack(rows)
        return rows if rows.ndim == 2 or rows.dtype.names is not None else rows[:, None]

    types = choice.types
    if types is None:
        wanted = check_columns(source, names, choice.columns)
        index = [names.index(name) for name in wanted]
        with columns_are(names):
            surveys = each_fit(
                wanted, lambda name: numpy_survey(source, name, [part(0, 0)], names.index(name), choice.asked)
            )
        if any(survey.needs_values for survey in surveys.values()):
            for start in range(0, num_rows, step):
                with reading(source):
                    rows = part(start, min(start + step, num_rows))
                for name, place in zip(wanted, index, strict=True):
                    surveys[name].add(arrow_of(column_of(source, rows, place, name)))
        with columns_are(names):
            types = settled(source, surveys, choice.identifiers)

    def fetch(start: int, stop: int, asked: Sequence[str]) -> _Array:
        values = np.empty((stop - start, len(asked)))
        low = start
        while low < stop:
            high = min(stop, (low // step + 1) * step)
            some = values[low - start : high - start]
            if is_typed:
                some[:] = sample_block(source, part(low, high), names, {name: types[name] for name in asked}, low)
            else:
                some[:] = float_block(source, part(low, high), names, types, asked)
            low = high
        return values

    read_as = ", ".join([f"{counted(len(names), 'column')} of {words[0]}", *words[1:]])
    return RowReader(source, tuple(types), num_rows, tuple(types.values()), fetch, read_as)
