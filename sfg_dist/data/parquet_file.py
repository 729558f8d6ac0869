"""A .parquet file. What it declares is checked before its values are read."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.declared_sizes import check_held, check_stored
from sfg_dist.data.naming import check_columns, listed
from sfg_dist.data.row_reader import ColumnChoice, RowReader, overlaps
from sfg_dist.data.sources import reading
from sfg_dist.data.surveys import Survey, settled, survey_of, to_float
from sfg_dist.data.unfit import columns_are, each_fit
from sfg_dist.job.errors import DataError
from sfg_dist.job.words import counted

_MOST_US = (2**63 - 1) // 1000  # microseconds that nanoseconds reach

_Array = NDArray[np.float64]


def open_parquet(source: str, stream: Any, columns: Collection[str] | None = None) -> tuple[Any, Any, list[str]]:
    """The file, its Arrow schema, and its columns without the index that pandas writes.

    Text is read as dictionaries, which take no more memory than what the file holds. The metadata of the schema's
    fields are for ``survey_of``: what the file itself has there is left out. ``columns`` are those to be read, or all.
    """
    import pyarrow as pa
    from pyarrow import parquet

    from sfg_dist.data.categories import is_text

    stream.seek(0)
    if stream.read(4) == b"PARE":
        raise DataError(f"{source} is encrypted, which is not read: write it without encryption")
    with reading(source):
        file = parquet.ParquetFile(stream)
        unit = _int96_unit(source, stream, file, columns)
        file = parquet.ParquetFile(stream, coerce_int96_timestamp_unit=unit) if unit else file
        schema = file.schema_arrow
        names = [name for name in schema.names if not name.startswith("__index_level_")]
        marks = {field.name: {b"stored": str(field.type).encode()} for field in schema if is_text(field.type)}
        schema = pa.schema([field.with_metadata(marks.get(field.name)) for field in schema])
        if marks:
            stream.seek(0)
            file = parquet.ParquetFile(stream, read_dictionary=list(marks), coerce_int96_timestamp_unit=unit)
        size = stream.seek(0, io.SEEK_END)
    shape = (file.metadata.num_rows, len(names))
    if min(shape) < 0:
        raise DataError(f"{source} declares {shape[0]} rows: the file is damaged")
    check_stored(source, _words(*shape), shape, None, size)
    return file, schema, names


def _int96_unit(source: str, stream: Any, file: Any, columns: Collection[str] | None) -> str | None:
    """ "us" where stamps of 96 bits, as Spark writes them, lie beyond what nanoseconds reach: Arrow wraps these around.

    None where all lie within, from 1677 to 2262. Such stamps have no statistics.
    """
    import pyarrow as pa
    from pyarrow import parquet

    is_wanted = set(file.schema_arrow.names if columns is None else columns)
    places = _places(file.metadata).items()
    of_96 = [name for name, place in places if file.metadata.schema.column(place).physical_type == "INT96"]
    names = [name for name in of_96 if name in is_wanted]

    def ticks(opened: Any, group: int) -> dict[str, NDArray[np.int64]]:
        table = opened.read_row_group(group, columns=names)
        return {name: table.column(name).cast(pa.int64()).fill_null(0).to_numpy() for name in names}

    coarse = parquet.ParquetFile(stream, coerce_int96_timestamp_unit="us")
    is_beyond = False
    for group in range(file.num_row_groups if names else 0):
        check_readable(source, file, names, [group])
        is_beyond |= any(np.abs(us).max(initial=0) > _MOST_US for us in ticks(coarse, group).values())
    for group in range(file.num_row_groups if is_beyond else 0):
        fine = ticks(file, group)
        for name, us in ticks(coarse, group).items():
            if (us.view(np.uint64) * np.uint64(1000) != fine[name].view(np.uint64)).any():
                raise DataError(
                    f"{source}: column {name!r} holds nanoseconds, beside stamps outside the years 1677 to 2262, which "
                    "no type of 64 bits holds together: write stamps of microseconds, or leave it out with data.columns"
                )
    return "us" if is_beyond else None


def check_readable(source: str, file: Any, names: Sequence[str], groups: Iterable[int] | None = None) -> None:
    """Refuse columns, of some row groups or of all, that memory does not hold, as values or as unpacked pages."""
    metadata, places = file.metadata, _places(file.metadata)
    rows = pages = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups) if groups is None else groups):
        rows += group.num_rows
        for name in names:
            if name not in places:
                continue
            column = group.column(places[name])
            pages += column.total_uncompressed_size
            if column.num_values != group.num_rows:  # Arrow would read as many, whatever the number of rows
                raise DataError(
                    f"{source}: column {name!r} has {column.num_values:,} values in {group.num_rows:,} rows: the file "
                    "is damaged"
                )
    check_held(source, _words(rows, len(names)), (rows, len(names)))
    check_held(source, f"what the {len(names)} columns hold unpacked", (-(-pages // 8),))


def parquet_words(file: Any, names: Sequence[str]) -> str:
    """How a file is read, and what becomes of an index that pandas wrote into it as columns."""
    try:
        said = (file.schema_arrow.pandas_metadata or {}).get("index_columns", ())
    except ValueError:  # another program's, and no JSON
        said = ()
    index = [name for name in said if isinstance(name, str)]
    kept = [name for name in index if name in names]
    words = [counted(len(names), "column"), "parquet"]
    words += [f"with the index of pandas ({listed(kept)})"] if kept else []
    is_left = len(kept) < len(index) or len(names) < len(file.schema_arrow.names)
    return ", ".join([*words, *(["row names of pandas left out"] if is_left else [])])


def parquet_rows(source: str, stream: Any, choice: ColumnChoice) -> RowReader:
    """The rows of an open file, a row group at a time."""
    types = choice.types
    file, schema, names = open_parquet(source, stream, choice.columns if types is None else types)
    with reading(source):
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    if types is None:
        with columns_are(names):
            wanted = check_columns(source, names, choice.columns)
            surveys = parquet_surveys(source, file, [schema.field(name) for name in wanted], choice.asked)
            types = settled(source, surveys, choice.identifiers)
    kept: dict[tuple[int, tuple[str, ...]], Any] = {}  # the last row group only: ranges are asked for in order

    def group_of(group: int, asked: tuple[str, ...]) -> Any:
        if (group, asked) not in kept:
            kept.clear()
            check_readable(source, file, asked, [group])
            kept[group, asked] = file.read_row_group(group, columns=list(asked))
        return kept[group, asked]

    def fetch(start: int, stop: int, asked: Sequence[str]) -> _Array:
        values = np.empty((stop - start, len(asked)))
        for group, first, low, high in overlaps(sizes, start, stop):
            table = group_of(group, tuple(asked)).slice(low - first, high - low)
            for index, name in enumerate(asked):
                values[low - start : high - start, index] = to_float(source, name, types[name], table.column(name))
        return values

    return RowReader(source, tuple(types), sum(sizes), tuple(types.values()), fetch, parquet_words(file, names))


def parquet_surveys(
    source: str, file: Any, fields: Sequence[Any], asked: Mapping[str, Any] | None = None
) -> dict[str, Survey]:
    """Surveys of columns: by the statistics of integers where there are any, else by reading what types do not say.

    ``fields`` are those of the file's schema, ``asked`` as for ``survey_of``.
    """
    by_name = {field.name: field for field in fields}
    surveys = each_fit(
        by_name, lambda name: survey_of(source, name, by_name[name], by_name[name].metadata, asked=asked)
    )
    places = _places(file.metadata)
    for name, survey in surveys.items():
        for group in range(file.num_row_groups if survey.needs_values else 0):
            statistics = file.metadata.row_group(group).column(places[name]).statistics if name in places else None
            if (ends := _ends_of_statistics(statistics, survey.type)) is not None:
                survey.add_ends(ends)
            else:
                check_readable(source, file, [name], [group])
                with reading(source):
                    column = file.read_row_group(group, columns=[name]).column(name)
                survey.add(column)
    return surveys


def _ends_of_statistics(statistics: Any, type_: ColumnType) -> tuple[int, int] | None:
    """Smallest and largest value of an int64 column's row group by its statistics; None if they do not say."""
    if (
        type_.dtype != "int64"
        or type_.is_coded
        or statistics is None
        or not statistics.has_min_max
        or statistics.physical_type != "INT64"
    ):
        return None
    return int(statistics.min_raw), int(statistics.max_raw)


def _places(metadata: Any) -> dict[str, int]:
    """Where columns that are no part of a list stand in a file."""
    columns = ((index, metadata.schema.column(index)) for index in range(len(metadata.schema)))
    return {column.path: index for index, column in columns if not column.max_repetition_level}


def _words(num_rows: int, num_columns: int) -> str:
    return f"a table of {num_rows:,} rows and {num_columns:,} columns"
