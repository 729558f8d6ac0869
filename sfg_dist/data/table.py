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
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import bundled, toy
from sfg_dist.data.array_file import DEFAULT_ARRAY, ArrayFile
from sfg_dist.data.arrays import open_arrays
from sfg_dist.data.column_files import read_column_files, typed_columns
from sfg_dist.data.column_type import FLOAT, ColumnType, UnfitValueError
from sfg_dist.data.csv_dialect import TextFormat
from sfg_dist.data.folders import is_folder
from sfg_dist.data.naming import check_columns, nearest
from sfg_dist.data.sources import KNOWN_SUFFIXES, TEXT_SUFFIXES, open_bucket, suffix_of
from sfg_dist.data.surveys import sample_block, typed_blocks
from sfg_dist.data.unfit import columns_are
from sfg_dist.job.errors import DataError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.words import counted

BUILTIN_NAMES: tuple[str, ...] = (*toy.NAMES, *bundled.NAMES)

_RECORDS = (*TEXT_SUFFIXES, ".parquet", "")  # "" is a folder
PARTS = ("train", "validation", "test")
LogDensity = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def is_table(place: str) -> bool:
    """Whether what a user names is a table and not a job file; its name alone decides, and whether it is a folder.

    Examples:
        >>> is_table("moons"), is_table("s3://bucket/rows/"), is_table("table.csv"), is_table("my_job.toml")
        (True, True, True, False)
    """
    return place in BUILTIN_NAMES or is_folder(place) or suffix_of(place) not in ("", ".toml")


@dataclass(frozen=True, eq=False)
class Table:
    """A table of numbers."""

    # float64 of value - offset (of its type), shape (num_rows, num_columns), missing values NaN
    values: NDArray[np.float64]
    columns: tuple[str, ...]  # one name a column
    source: str  # the path, URL or name that it came from
    # exact log density in nats of rows (num_rows, num_columns), where it is known
    log_density: LogDensity | None = None
    types: tuple[ColumnType, ...] = ()  # of the columns, in order
    read_as: str = ""  # how a file was read, in words
    # rows of each part of a table that is split already, whose parts lie one below the other; else empty
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.types:
            object.__setattr__(self, "types", (FLOAT,) * len(self.columns))

    @property
    def parts(self) -> dict[str, NDArray[np.float64]]:
        """The rows of each part; a table that is not split has the one part "table"."""
        if not self.sizes:
            return {"table": self.values}
        return dict(zip(self.sizes, np.split(self.values, np.cumsum([*self.sizes.values()])[:-1]), strict=True))

    def select(self, places: Sequence[int], log_density: LogDensity | None = None) -> Table:
        """The table of some columns by their places; with a density of their own, if that is known."""
        return replace(
            self,
            values=np.ascontiguousarray(self.values[:, places]),
            columns=tuple(self.columns[place] for place in places),
            types=tuple(self.types[place] for place in places),
            log_density=log_density,
        )

    def retyped(self, types: Sequence[ColumnType]) -> NDArray[np.float64]:
        """The values as those of columns of other types: with their units and offsets.

        Raises:
            DataError: a value is none of its column's new type.
        """
        columns = []
        for index, (found, wanted) in enumerate(zip(self.types, types, strict=True)):
            try:
                columns.append(wanted.take_over(self.values[:, index], found))
            except UnfitValueError as error:
                raise DataError(f"{self.source}: column {self.columns[index]!r} {error}") from None
        return np.stack(columns, axis=1)


def open_table(
    source: str | Path,
    *,
    array: str = DEFAULT_ARRAY,
    append: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    identifiers: str = "refuse",
    asked: Mapping[str, Any] | None = None,
    seed: int = 0,
    max_rows: int | None = None,
    text: TextFormat | None = None,
) -> Table:
    """Open a table.

    Args:
        source: a built-in name, a path, a glob, or an ``s3://`` URL.
        array: the array to take from a file with several. If this is X and the file has none, the only 2-D array is
            taken.
        append: more arrays of the file, put behind as columns named after them.
        columns: the columns to take, in order; None is all.
        identifiers: "refuse" or "drop" columns of whole numbers that float64 cannot tell apart, and of free text.
        asked: what the job says of columns, by name (``data.types``).
        seed: for sets that are drawn.
        max_rows: rows to draw of a toy set (default 20,000); the first rows of any other table.
        text: how .csv files are written; by default their lines decide all of it.

    Raises:
        DataError: the source does not exist or cannot be used; the message names it, and the column and row.

    Examples:
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
        values, types, read_as = read_column_files(source, columns, identifiers, text, asked)
    else:
        _refuse_text(source, text)
        with open_arrays(source) as file:
            values, types, read_as = _read_arrays(file, array, append, columns, identifiers, asked)
    _check_size(source, *values.shape)
    check_asked(source, types, asked)
    return Table(values[:max_rows], tuple(types), source, types=tuple(types.values()), read_as=read_as)


def open_columns(
    source: str, columns: Any, *, identifiers: str = "refuse", asked: Mapping[str, Any] | None = None, read_as: str = ""
) -> Table:
    """The table of columns in memory, an Arrow table of plain values.

    Args:
        source: what messages call it.
        columns: the Arrow table.
        identifiers, asked: as for ``open_table``.
        read_as: how it was read, in words.

    Raises:
        DataError: a column cannot be used, or there are no rows.
    """
    values, types = typed_columns(source, columns, identifiers, asked)
    _check_size(source, *values.shape)
    check_asked(source, types, asked)
    return Table(values, tuple(types), source, types=tuple(types.values()), read_as=read_as)


def open_split(
    source: str | Path,
    *,
    arrays: Mapping[str, str | Sequence[str] | None],
    columns: Sequence[str] | None = None,
    identifiers: str = "refuse",
    asked: Mapping[str, Any] | None = None,
) -> Table:
    """Open a table that is split already: its parts lie in separate arrays of one .npz, .h5, .hdf5 or .zarr.

    Args:
        arrays: for train, validation and test the name of an array, or a list of names to put one below the other;
            validation may be left out.
        source, columns, identifiers, asked: as for ``open_table``.

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
    blocks: list[NDArray[Any]] = []
    array_names: list[str] = []
    ends = [0]
    with open_arrays(source) as file:
        for part in PARTS:
            given = arrays.get(part) or ()
            for name in [given] if isinstance(given, str) else given:
                array_names.append(name)
                blocks.append(file.matrix(name))
                if len(blocks) == 1:
                    first_name, names = name, _names_of(file, [name], blocks)[0]
                elif len(found := _names_of(file, [name], blocks[-1:])[0]) != len(names):
                    raise DataError(
                        f"{source}: array {name!r} has {len(found)} columns, {first_name!r} has "
                        f"{len(names)}: the parts of a split table must have the same columns"
                    )
            ends.append(len(blocks))
    wanted = check_columns(source, names, columns)
    with columns_are(names):
        values, types = _typed_parts(file, array_names, blocks, names, wanted, identifiers, asked)
    sizes = {part: sum(map(len, values[first:stop])) for part, (first, stop) in zip(PARTS, pairwise(ends), strict=True)}
    for part in ("train", "test"):
        _check_size(f"{source}: the {part} part", sizes[part], len(types))
    read_as, rows = ", ".join(file.notes), np.concatenate(values)
    return Table(rows, tuple(types), source, types=tuple(types.values()), read_as=read_as, sizes=sizes)


def _open_builtin(name: str, *, seed: int, max_rows: int | None) -> Table:
    if name in toy.NAMES:
        values = toy.draw(name, max_rows or toy.DEFAULT_NUM_ROWS, seed)
        return Table(values, ("x", "y"), name, partial(toy.log_density, name))
    values, names = bundled.load(name)
    return Table(values[:max_rows], names, name, types=(bundled.type_of(name),) * len(names))


def _select(table: Table, columns: Sequence[str] | None) -> Table:
    wanted = check_columns(table.source, table.columns, columns)
    return table if wanted == table.columns else table.select([table.columns.index(name) for name in wanted])


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
    file: ArrayFile,
    array: str,
    append: Sequence[str],
    columns: Sequence[str] | None,
    identifiers: str,
    asked: Mapping[str, Any] | None,
) -> tuple[NDArray[np.float64], dict[str, ColumnType], str]:
    chosen = file.find(array)
    arrays = (chosen, *append)
    blocks = [file.matrix(name) for name in arrays]
    for name, block in zip(append, blocks[1:], strict=True):
        if len(block) != len(blocks[0]):
            raise DataError(
                f"{file.source}: array {name!r} (data.append) has {len(block)} rows, "
                f"{chosen!r} has {len(blocks[0])}: they must match"
            )
    names = _names_of(file, arrays, blocks)
    flat = [name for some in names for name in some]
    read_as = f"{counted(len(flat), 'column')} of {', '.join(map(repr, arrays))}"
    wanted = check_columns(file.source, flat, columns)
    check_columns(file.source, flat, None)
    values: list[NDArray[np.float64]] = []
    types: dict[str, ColumnType] = {}
    for name, block, some in zip(arrays, blocks, names, strict=True):
        if here := [column for column in some if column in wanted]:
            with columns_are(flat):
                rows, found = _typed_parts(file, [name], [block], some, here, identifiers, asked)
            values += rows
            types |= found
    order = [name for name in wanted if name in types]
    table = values[0] if len(values) == 1 else np.concatenate([np.empty((len(blocks[0]), 0)), *values], axis=1)
    if order != list(types):
        table = np.ascontiguousarray(table[:, [list(types).index(name) for name in order]])
    return table, {name: types[name] for name in order}, ", ".join([read_as, *file.notes])


def _typed_parts(
    file: ArrayFile,
    arrays: Sequence[str],
    blocks: Sequence[NDArray[Any]],
    names: Sequence[str],
    wanted: Sequence[str],
    identifiers: str,
    asked: Mapping[str, Any] | None,
) -> tuple[list[NDArray[np.float64]], dict[str, ColumnType]]:
    """The wanted columns of arrays one below the other, and their types.

    A table of samples says the types of its X, and holds value - offset.
    """
    types, places = file.types, [list(names).index(name) for name in wanted]
    if types is None or len(types) != len(names) or DEFAULT_ARRAY not in arrays:
        if list(wanted) != list(names) and blocks[0].dtype.names is None:
            blocks = [block[:, places] for block in blocks]
        return typed_blocks(file.source, blocks, wanted, identifiers, asked)
    if set(arrays) != {DEFAULT_ARRAY}:
        other = next(name for name in arrays if name != DEFAULT_ARRAY)
        raise DataError(
            f"{file.source}: array {DEFAULT_ARRAY!r} is a table of samples, whose columns have types; array {other!r} "
            "has none: write both to one file without the attribute types"
        )
    found = {name: types[place] for name, place in zip(wanted, places, strict=True)}
    return [sample_block(file.source, block, names, found) for block in blocks], found


def _names_of(file: ArrayFile, names: Sequence[str], blocks: Sequence[NDArray[Any]]) -> list[tuple[str, ...]]:
    """The columns of an array and of those put behind it."""
    widths = [1 if block.dtype.names is not None else block.shape[1] for block in blocks]
    plain = file.column_names(names[0], list(zip(names[1:], widths[1:], strict=True)))
    starts = [sum(widths[:place]) for place in range(len(blocks))]
    return [
        block.dtype.names if block.dtype.names is not None else plain[start : start + width]
        for block, start, width in zip(blocks, starts, widths, strict=True)
    ]


def _refuse_arrays(source: str, what: str, array: str, append: Sequence[str]) -> None:
    if array != DEFAULT_ARRAY or append:
        key = "data.append" if append else "data.array"
        raise DataError(f"{source}: {what} has no named arrays; leave out {key}")


def check_asked(source: str, types: Mapping[str, ColumnType], asked: Mapping[str, Any] | None) -> None:
    """Refuse ``data.types`` that name a column which is not read."""
    check_columns(source, list(types), list(asked or ()), key="data.types")


def _refuse_text(source: str, text: TextFormat | None) -> None:
    if text is not None and text.given:
        raise DataError(f"{source}: {text.given[0]} is for .csv files: leave it out")


def _check_size(source: str, num_rows: int, num_columns: int) -> None:
    if 0 in (num_rows, num_columns):
        raise DataError(f"{source} has {num_rows} rows and {num_columns} columns: expected some of both")
