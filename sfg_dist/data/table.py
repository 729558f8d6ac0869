"""A table by its name: built-in sets, and files of arrays or columns, local or in S3.

| suffix | what is read |
| --- | --- |
| .npy | the array |
| .npz, .h5, .hdf5, .nc, .zarr | the array ``array``, then those in ``append``; names from ``columns`` |
| .csv, .tsv, .txt, .parquet | the columns |
| a folder or glob of .parquet or .csv | the columns of all files |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import bundled, toy
from sfg_dist.data.arrays import DEFAULT_ARRAY, ArrayFile, open_arrays
from sfg_dist.data.csv_dialect import TextFormat
from sfg_dist.data.folders import is_folder
from sfg_dist.data.location import KNOWN_SUFFIXES, TEXT_SUFFIXES, open_bucket, suffix_of
from sfg_dist.data.naming import check_columns, nearest
from sfg_dist.data.records import read_records
from sfg_dist.errors import DataError
from sfg_dist.objects import is_url
from sfg_dist.words import counted

BUILTIN_NAMES: tuple[str, ...] = (*toy.NAMES, *bundled.NAMES)

_RECORDS = (*TEXT_SUFFIXES, ".parquet", "")  # "" is a folder
LogDensity = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Table:
    """A table of numbers.

    Attributes:
        values: float64, shape (num_rows, num_columns), missing values NaN.
        columns: one name a column.
        source: the path, URL or name that it came from.
        log_density: exact log density in nats of rows (num_rows, num_columns), where it is known.
        read_as: how a file was read, in words.
    """

    values: NDArray[np.float64]
    columns: tuple[str, ...]
    source: str
    log_density: LogDensity | None = None
    read_as: str = ""


@dataclass(frozen=True, eq=False)
class SplitTable:
    """A table that comes split already: float64 parts with the same columns; validation may be empty."""

    train: NDArray[np.float64]
    validation: NDArray[np.float64]
    test: NDArray[np.float64]
    columns: tuple[str, ...]
    source: str
    read_as: str = ""


def open_table(
    source: str | Path,
    *,
    array: str = DEFAULT_ARRAY,
    append: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    seed: int = 0,
    max_rows: int | None = None,
    text: TextFormat | None = None,
) -> Table:
    """Open a table.

    Args:
        source: a built-in name, a path, a glob, or an ``s3://`` URL.
        array: the array wanted of a file with several; if it is left at X and there is none, the only 2-D
            array.
        append: more arrays of the file, put behind as columns named after them.
        columns: the columns wanted, in order; None is all.
        seed: for sets that are drawn.
        max_rows: rows to draw of a toy set (default 20,000); the first rows of any other table.
        text: what the user says of .csv files; by default all of it is decided from their lines.

    Raises:
        DataError: the source does not exist or cannot be used; the message names it, and the column and row.

    Example:
        >>> table = open_table("moons", max_rows=100)
        >>> table.values.shape, table.columns
        ((100, 2), ('x', 'y'))
    """
    source = str(source)
    if source in BUILTIN_NAMES:
        table = _open_builtin(source, seed=seed, max_rows=max_rows)
        _refuse_arrays(source, "a built-in table", array, append)
        _refuse_text(source, text)
        return _select(table, columns)
    suffix = _check_source(source)
    if suffix in _RECORDS:
        _refuse_arrays(source, f"a {suffix} file" if suffix else "a folder", array, append)
        values, names, read_as = read_records(source, columns, text)
    else:
        _refuse_text(source, text)
        with open_arrays(source) as file:
            values, names, read_as = _read_arrays(file, array, append)
        wanted = check_columns(source, names, columns)
        if wanted != names:
            values = np.ascontiguousarray(values[:, [names.index(name) for name in wanted]])
            names = wanted
    _check_size(source, values)
    return Table(values[:max_rows], names, source, read_as=read_as)


def open_split(
    source: str | Path,
    *,
    arrays: Mapping[str, str | Sequence[str] | None],
    columns: Sequence[str] | None = None,
) -> SplitTable:
    """Open a table whose parts lie in separate arrays of one .npz, .h5, .hdf5 or .zarr.

    Args:
        source: a path or an ``s3://`` URL.
        arrays: for train, validation and test the name of an array, or a list of names to put one below the
            other; validation may be left out.
        columns: the columns wanted, in order; None is all.

    Raises:
        DataError: an array is missing, or the widths differ.
    """
    source = str(source)
    suffix = ".builtin" if source in BUILTIN_NAMES else _check_source(source)
    if suffix in (".npy", ".builtin", *_RECORDS):
        raise DataError(f"{source}: data.arrays needs a file of several arrays (.npz, .h5, .hdf5 or .zarr)")
    for part in ("train", "test"):
        if not arrays.get(part):
            raise DataError(f"{source}: data.arrays.{part} must name at least one array")
    parts: dict[str, NDArray[np.float64]] = {}
    with open_arrays(source) as file:
        width, first_name = None, ""
        for part in ("train", "validation", "test"):
            given = arrays.get(part) or ()
            blocks = []
            for name in [given] if isinstance(given, str) else given:
                blocks.append(file.matrix(name))
                if width is None:
                    width, first_name = blocks[-1].shape[1], name
                elif blocks[-1].shape[1] != width:
                    raise DataError(
                        f"{source}: array {name!r} has {blocks[-1].shape[1]} columns, {first_name!r} has "
                        f"{width}: the parts of a split table must have the same columns"
                    )
            parts[part] = np.concatenate(blocks) if blocks else np.empty((0, width or 0))
        names = file.column_names(first_name, [])
    wanted = check_columns(source, names, columns)
    index = [names.index(name) for name in wanted]
    for part in ("train", "test"):
        _check_size(f"{source}: the {part} part", parts[part])
    train, validation, test = (np.ascontiguousarray(parts[part][:, index]) for part in ("train", "validation", "test"))
    return SplitTable(train, validation, test, columns=wanted, source=source, read_as=", ".join(file.notes))


def _open_builtin(name: str, *, seed: int, max_rows: int | None) -> Table:
    if name in toy.NAMES:
        values = toy.draw(name, max_rows or toy.DEFAULT_NUM_ROWS, seed)
        return Table(values, ("x", "y"), name, partial(toy.log_density, name))
    values, names = bundled.load(name)
    return Table(values[:max_rows], names, name)


def _select(table: Table, columns: Sequence[str] | None) -> Table:
    wanted = check_columns(table.source, table.columns, columns)
    if wanted == table.columns:
        return table
    index = [table.columns.index(name) for name in wanted]
    # the density of some columns, or of columns in another order, is another function
    return Table(np.ascontiguousarray(table.values[:, index]), wanted, table.source)


def _check_source(source: str) -> str:
    """The suffix of a source that is worth opening; empty for a folder or a glob."""
    suffix = suffix_of(source)
    if is_url(source):
        open_bucket(source)
    if is_folder(source):
        return ""
    if suffix in KNOWN_SUFFIXES:
        return suffix
    close = nearest(source, BUILTIN_NAMES)
    hint = f"did you mean {close!r}? " if close and not suffix else ""
    found = f"the suffix {suffix}" if suffix else "neither a built-in name nor a known suffix"
    raise DataError(
        f"{source}: {hint}expected a file ending in {', '.join(KNOWN_SUFFIXES)}, a folder "
        f"of .parquet or .csv files, "
        f"or one of the built-in tables {', '.join(toy.NAMES)}, {bundled.SUMMARY}; found {found}"
    )


def _read_arrays(
    file: ArrayFile, array: str, append: Sequence[str]
) -> tuple[NDArray[np.float64], tuple[str, ...], str]:
    chosen = file.find(array)
    blocks = [file.matrix(chosen)]
    for name in append:
        blocks.append(file.matrix(name))
        if len(blocks[-1]) != len(blocks[0]):
            raise DataError(
                f"{file.source}: array {name!r} (data.append) has {len(blocks[-1])} rows, "
                f"{chosen!r} has {len(blocks[0])}: they must match"
            )
    names = file.column_names(chosen, [(name, block.shape[1]) for name, block in zip(append, blocks[1:], strict=True)])
    check_columns(file.source, names, None)
    read_as = f"{counted(len(names), 'column')} of {', '.join(map(repr, (chosen, *append)))}"
    return (np.concatenate(blocks, axis=1) if append else blocks[0]), names, ", ".join([read_as, *file.notes])


def _refuse_arrays(source: str, what: str, array: str, append: Sequence[str]) -> None:
    if array != DEFAULT_ARRAY or append:
        key = "data.append" if append else "data.array"
        raise DataError(f"{source}: {what} has no named arrays; leave out {key}")


def _refuse_text(source: str, text: TextFormat | None) -> None:
    if text is not None and text.given:
        raise DataError(f"{source}: {text.given[0]} is for .csv files: leave it out")


def _check_size(source: str, values: NDArray[np.float64]) -> None:
    if 0 in values.shape:
        raise DataError(f"{source} has {values.shape[0]} rows and {values.shape[1]} columns: expected some of both")
