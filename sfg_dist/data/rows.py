"""A table read by ranges of rows, for tables that are larger than memory.

| suffix | how a range is read |
| --- | --- |
| .parquet | the row groups that it lies in, one at a time, only the columns wanted |
| .zarr | the chunks that it lies in |
| .npy | mapped into memory (local files only) |
| a folder or glob of .parquet | those of its files, one below the other |

The other formats are read whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.arrays import DEFAULT_ARRAY, ArrayFile, open_arrays
from sfg_dist.data.cf import Packing
from sfg_dist.data.column_type import FLOAT, ColumnType
from sfg_dist.data.folders import (
    Part,
    check_same_columns,
    common_type,
    folder_words,
    is_folder,
    is_prefix,
    key_values,
    parts_of,
)
from sfg_dist.data.location import local_path, open_bucket, reading, suffix_of
from sfg_dist.data.naming import check_columns
from sfg_dist.data.numpy_files import check_end
from sfg_dist.data.parquet_file import check_rows, open_parquet, survey_column
from sfg_dist.data.records import index_words
from sfg_dist.data.sizes import check_stored
from sfg_dist.data.surveys import (
    Survey,
    arrow_of,
    column_of,
    ends_of_statistics,
    float_block,
    numpy_survey,
    settled,
    survey_of,
    to_float,
)
from sfg_dist.job.errors import DataError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.words import counted

SUFFIXES = (".parquet", ".zarr", ".npy")
_PART_ROWS = 1 << 16

_Array = NDArray[np.float64]
_Types = Mapping[str, ColumnType]


@dataclass(frozen=True, eq=False)
class RowReader:
    """An open table of which any range of rows can be read.

    Attributes:
        source: path or URL.
        columns: one name a column.
        num_rows: rows of the table.
        types: of the columns; their offsets are those of the table read whole.
        fetch: (first row, row after the last, names of the columns) -> float64 (rows, columns).
        read_as: how it is read, in words.
    """

    source: str
    columns: tuple[str, ...]
    num_rows: int
    types: tuple[ColumnType, ...]
    fetch: Callable[[int, int, Sequence[str]], _Array]
    read_as: str = ""

    @classmethod
    def over(
        cls, values: _Array, source: str, columns: tuple[str, ...], types: tuple[ColumnType, ...], read_as: str = ""
    ) -> RowReader:
        """A table in memory, shape (num_rows, num_columns); all columns in their order are not copied."""

        def fetch(start: int, stop: int, asked: Sequence[str]) -> _Array:
            rows = values[start:stop]
            return rows if tuple(asked) == columns else rows[:, [columns.index(name) for name in asked]]

        return cls(source, columns, len(values), types, fetch, read_as)

    @property
    def types_by_name(self) -> dict[str, ColumnType]:
        """The types of the columns by name, in order."""
        return dict(zip(self.columns, self.types, strict=True))

    @property
    def num_bytes(self) -> int:
        """What the table takes in memory as float64."""
        return 8 * self.num_rows * len(self.columns)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> _Array:
        """Rows ``start`` to ``stop``: float64 of value - offset, shape (stop - start, number of columns), missing NaN.

        Raises:
            DataError: the range lies outside the table, or cannot be read.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise DataError(f"{self.source} has {self.num_rows} rows: rows {start} to {stop} are not all there")
        with reading(self.source):
            return self.fetch(start, stop, self.columns if columns is None else columns)

    def blocks(self, block_rows: int, columns: Sequence[str] | None = None) -> Iterator[_Array]:
        """All rows in order, ``block_rows`` at a time."""
        for start in range(0, self.num_rows, block_rows):
            yield self.read(start, min(start + block_rows, self.num_rows), columns)


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
    types: Mapping[str, ColumnType] | None = None,
) -> Iterator[RowReader]:
    """Open a .parquet, .zarr or local .npy table to be read by ranges of rows.

    Columns whose type does not say their offset, 64-bit integers and stamps, are read once to find it.

    Args:
        source: a path or an ``s3://`` URL.
        array: the array wanted of a .zarr group, as for ``open_table``.
        columns: the columns wanted, in order; None is all.
        identifiers: as for ``open_table``.
        types: the table's columns by name, where it was opened before: nothing is read to find them.

    Raises:
        DataError: the source does not exist, is of another format, or cannot be used.

    Example:
        >>> with open_rows("table.parquet") as rows:      # doctest: +SKIP
        ...     first = rows.read(0, 1000)
    """
    source = str(source)
    suffix = suffix_of(source)
    if not has_row_ranges(source):
        raise DataError(
            f"{source}: only .parquet, .zarr and local .npy tables, and folders of .parquet, can be read by "
            f"ranges; convert it, or leave out labels.memory_gib to read it whole"
        )
    if is_folder(source) or (suffix == ".parquet" and is_prefix(source)):
        with contextlib.ExitStack() as stack:
            yield _folder_rows(source, parts_of(source), columns, identifiers, types, stack)
    elif suffix == ".parquet":
        with _open_file(source) as stream:
            yield _parquet_rows(source, stream, columns, identifiers, types)
    elif suffix == ".npy":
        yield _npy_rows(source, columns, identifiers, types)
    else:
        with open_arrays(source) as file:
            yield _zarr_rows(source, file, array, columns, identifiers, types)


@contextmanager
def _open_file(source: str) -> Iterator[Any]:
    """A file that pyarrow reads by ranges, local or an object."""
    if not is_url(source):
        if not local_path(source).exists():
            raise DataError(f"{source} does not exist (current directory: {Path.cwd()})")
        with local_path(source).open("rb") as stream:
            yield stream
        return
    store, key = open_bucket(source)
    with reading(source):
        try:
            object_ = _ObjectFile(store, key)
        except FileNotFoundError:
            raise DataError(f"{source} does not exist") from None
    with io.BufferedReader(object_, buffer_size=1 << 20) as buffered:
        yield buffered


class _ObjectFile(io.RawIOBase):
    """An object of a bucket as a file: every read is one request for a range."""

    def __init__(self, store: Any, key: str) -> None:
        import obstore

        self._store, self._key, self._place = store, key, 0
        self._size = int(obstore.head(store, key)["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        import obstore

        length = min(len(buffer), self._size - self._place)
        if length <= 0:
            return 0
        buffer[:length] = memoryview(obstore.get_range(self._store, self._key, start=self._place, length=length))
        self._place += length
        return length


def _parquet_rows(
    source: str, stream: Any, columns: Sequence[str] | None, identifiers: str, types: _Types | None
) -> RowReader:
    file, names = open_parquet(source, stream)
    with reading(source):
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    if types is None:
        surveys = _parquet_surveys(source, file, check_columns(source, names, columns))
        types = settled(source, surveys, identifiers)
    ends = np.cumsum(sizes, dtype=np.int64)
    kept: dict[tuple[int, tuple[str, ...]], Any] = {}  # the last row group: ranges are asked for in order

    def group_of(group: int, asked: tuple[str, ...]) -> Any:
        if (group, asked) not in kept:
            kept.clear()
            check_rows(source, file, asked, [group])
            kept[group, asked] = file.read_row_group(group, columns=list(asked))
        return kept[group, asked]

    def fetch(start: int, stop: int, asked: Sequence[str]) -> _Array:
        values = np.empty((stop - start, len(asked)))
        for group in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
            first = int(ends[group]) - sizes[group]
            low, high = max(start, first), min(stop, int(ends[group]))
            if low >= high:
                break
            table = group_of(group, tuple(asked)).slice(low - first, high - low)
            for index, name in enumerate(asked):
                values[low - start : high - start, index] = to_float(source, name, types[name], table.column(name))
        return values

    read_as = f"{counted(len(names), 'column')}, parquet{index_words(file.schema_arrow)}"
    num_rows = int(ends[-1]) if len(ends) else 0
    return RowReader(source, tuple(types), num_rows, tuple(types.values()), fetch, read_as)


def _folder_rows(
    source: str,
    parts: Sequence[Part],
    columns: Sequence[str] | None,
    identifiers: str,
    types: _Types | None,
    stack: contextlib.ExitStack,
) -> RowReader:
    """The rows of all files of a folder, one file open at a time."""
    keys = list(parts[0].keys)
    own, sizes, surveys = _survey_parts(source, parts, columns, is_typed=types is not None)
    given = {key: key_values(source, key, parts) for key in keys if columns is None or key in columns}
    if types is None:
        for key, values in given.items():
            surveys[key] = survey_of(source, key, values[0])
            surveys[key].add(_column_of(values))
        wanted = check_columns(source, [*own, *keys], columns)
        types = settled(source, {name: surveys[name] for name in wanted}, identifiers)
    found = {name: type_ for name, type_ in types.items() if name not in given}
    ends = np.cumsum(sizes, dtype=np.int64)
    is_open: dict[int, RowReader] = {}

    def reader_of(number: int) -> RowReader:
        if number not in is_open:
            stack.close()
            is_open.clear()
            stream = stack.enter_context(_open_file(parts[number].source))
            is_open[number] = _parquet_rows(parts[number].source, stream, None, identifiers, found)
        return is_open[number]

    def fetch(start: int, stop: int, names: Sequence[str]) -> _Array:
        values = np.empty((stop - start, len(names)))
        stored = [name for name in names if name not in given]
        places = [names.index(name) for name in stored]
        for number in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
            begin = int(ends[number]) - sizes[number]
            low, high = max(start, begin), min(stop, int(ends[number]))
            if begin >= stop:
                break
            rows = slice(low - start, high - start)
            values[rows, places] = reader_of(number).read(low - begin, high - begin, stored)
            for key in set(names) & set(given):
                values[rows, names.index(key)] = to_float(
                    source, key, types[key], _column_of(given[key][number : number + 1])
                )
        return values

    read_as = folder_words(len(parts), f"{counted(len(own), 'column')}, parquet", keys, False)
    return RowReader(source, tuple(types), int(ends[-1]), tuple(types.values()), fetch, read_as)


def _column_of(values: Sequence[Any]) -> Any:
    """Arrow scalars of one type as an array."""
    import pyarrow as pa

    return pa.array([value.as_py() for value in values], values[0].type)


def _survey_parts(
    source: str, parts: Sequence[Part], columns: Sequence[str] | None, *, is_typed: bool
) -> tuple[list[str], list[int], dict[str, Survey]]:
    """The files' columns, the rows of each, and a survey of each wanted column over all of them."""
    import pyarrow as pa

    keys = list(parts[0].keys)
    asked = None if columns is None else [name for name in columns if name not in keys]
    own: list[str] = []
    sizes: list[int] = []
    found: dict[str, list[tuple[Any, int]]] = {}
    by_part: list[dict[str, Survey]] = []
    for part in parts:
        with _open_file(part.source) as stream, reading(part.source):
            file, names = open_parquet(part.source, stream)
            wanted = check_columns(part.source, names, asked)
            if sizes:
                check_same_columns(parts[0].source, own if asked is None else asked, part.source, wanted)
            own = own or names
            sizes.append(file.metadata.num_rows)
            for name in wanted:
                found.setdefault(name, []).append((file.schema_arrow.field(name).type, sizes[-1]))
            by_part.append({} if is_typed else _parquet_surveys(part.source, file, wanted))
    surveys = {}
    for name, types in {} if is_typed else found.items():
        kind = common_type(parts, name, types)
        of_kind = [survey[name] for survey, type_ in zip(by_part, types, strict=True) if _decoded(type_[0]) == kind]
        if any(rows and _decoded(type_) not in (kind, pa.null()) for type_, rows in types):
            of_kind = [_mixed_survey(parts, name, kind)]
        surveys[name] = of_kind[0]
        for survey in of_kind[1:]:
            surveys[name].join(survey)
    return own, sizes, surveys


def _decoded(kind: Any) -> Any:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _mixed_survey(parts: Sequence[Part], name: str, kind: Any) -> Survey:
    """The survey of a column that files have in several types, by all of its values, a row group at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    survey = Survey(ColumnType.of(kind))
    for part in parts:
        with _open_file(part.source) as stream, reading(part.source):
            file = parquet.ParquetFile(stream)
            for group in range(file.num_row_groups if survey.needs_values else 0):
                column = file.read_row_group(group, columns=[name]).column(name)
                survey.add(column if pa.types.is_null(column.type) else column.cast(kind))
    return survey.shortened()


def _parquet_surveys(source: str, file: Any, names: Sequence[str]) -> dict[str, Survey]:
    """Columns surveyed: by the statistics of integers where they are there, else by reading what does not say."""
    surveys = {name: survey_column(source, file, name) for name in names}
    places = {file.metadata.schema.column(index).path: index for index in range(len(file.metadata.schema))}
    for name, survey in surveys.items():
        for group in range(file.num_row_groups if survey.needs_values else 0):
            statistics = file.metadata.row_group(group).column(places[name]).statistics if name in places else None
            if (ends := ends_of_statistics(statistics, survey.type)) is not None:
                survey.add_ends(ends)
            else:
                check_rows(source, file, [name], [group])
                with reading(source):
                    column = file.read_row_group(group, columns=[name]).column(name)
                survey.add(column)
    return surveys


def _npy_rows(source: str, columns: Sequence[str] | None, identifiers: str, types: _Types | None) -> RowReader:
    path = local_path(source)
    if not path.exists():
        raise DataError(f"{source} does not exist (current directory: {Path.cwd()})")
    with reading(source):
        table: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    check_end(source, path.stat().st_size > table.offset + table.nbytes)
    width = _width(source, table)
    facts = path.stat()
    # A file with holes takes less of the disk than it has bytes; some file systems do not say what it takes.
    stored = min(facts.st_size, 512 * facts.st_blocks or facts.st_size)
    check_stored(source, f"a table of {table.shape} {table.dtype}", table.shape, table.dtype, stored)
    names = table.dtype.names or tuple(f"c{index}" for index in range(width))
    return _matrix_rows(source, table, names, columns, identifiers, types)


def _zarr_rows(
    source: str, file: ArrayFile, array: str, columns: Sequence[str] | None, identifiers: str, types: _Types | None
) -> RowReader:
    name = file.find(array)
    if name not in file.names:
        raise DataError(f"{source} has no array {name!r}; {file.listing()}")
    assert file.node is not None
    table = file.node(name)
    width = _width(source, table)
    names: tuple[str, ...] = table.dtype.names or file.column_names(name)
    if types is None and name == DEFAULT_ARRAY and file.types is not None and len(file.types) == width:
        wanted = check_columns(source, names, columns)
        types = {name: file.types[names.index(name)] for name in wanted}
    packing = None if table.dtype.names else file.packing(name, table.dtype)
    if types is None and packing is not None:
        types = dict.fromkeys(check_columns(source, names, columns), FLOAT)
    words = [repr(name), *file.notes]
    return _matrix_rows(source, table, names, columns, identifiers, types, packing, words)


def _width(source: str, table: Any) -> int:
    if table.dtype.names is not None and table.ndim == 1:
        return len(table.dtype.names)
    if table.ndim not in (1, 2) or table.dtype.kind not in "fiubmM":
        raise DataError(
            f"{source} is {table.ndim}-D {table.dtype}: expected one or two dimensions of numbers, a row a sample"
        )
    return int(table.shape[1]) if table.ndim == 2 else 1


def _matrix_rows(
    source: str,
    table: Any,
    names: tuple[str, ...],
    columns: Sequence[str] | None,
    identifiers: str,
    types: _Types | None,
    packing: Packing | None = None,
    words: Sequence[str] = ("'X'",),
) -> RowReader:
    num_rows = int(table.shape[0])
    # A part at a time, in whole chunks, so that a few columns of many rows never bring in all the others.
    step = -(-_PART_ROWS // table.chunks[0]) * table.chunks[0] if hasattr(table, "chunks") else _PART_ROWS

    def part(start: int, stop: int) -> NDArray[Any]:
        rows = np.asarray(table[start:stop])
        rows = rows if packing is None else packing.unpack(rows)
        return rows if rows.ndim == 2 or rows.dtype.names is not None else rows[:, None]

    if types is None:
        wanted = check_columns(source, names, columns)
        index = [names.index(name) for name in wanted]
        surveys = {
            name: numpy_survey(source, name, [part(0, 0)], place) for name, place in zip(wanted, index, strict=True)
        }
        if any(survey.needs_values for survey in surveys.values()):
            for start in range(0, num_rows, step):
                with reading(source):
                    rows = part(start, min(start + step, num_rows))
                for name, place in zip(wanted, index, strict=True):
                    surveys[name].add(arrow_of(column_of(rows, place, name)))
        types = settled(source, surveys, identifiers)

    def fetch(start: int, stop: int, asked: Sequence[str]) -> _Array:
        values = np.empty((stop - start, len(asked)))
        low = start
        while low < stop:
            high = min(stop, (low // step + 1) * step)
            values[low - start : high - start] = float_block(source, part(low, high), names, types, asked)
            low = high
        return values

    read_as = ", ".join([f"{counted(len(names), 'column')} of {words[0]}", *words[1:]])
    return RowReader(source, tuple(types), num_rows, tuple(types.values()), fetch, read_as)
