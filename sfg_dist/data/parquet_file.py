"""A .parquet file opened, and what it declares looked at before its values are read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from sfg_dist.data.location import reading
from sfg_dist.data.sizes import check_held, check_stored
from sfg_dist.data.surveys import Survey, survey_of
from sfg_dist.job.errors import DataError

_FEW_ROWS = 10
_MOST_TEXT = 64 << 20


def open_parquet(source: str, stream: Any) -> tuple[Any, list[str]]:
    """The file, and its columns without the index that pandas writes.

    Raises:
        DataError: it is damaged, or declares far more rows than it can hold.
    """
    from pyarrow import parquet

    with reading(source):
        file = parquet.ParquetFile(stream)
        names = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
        size = stream.seek(0, io.SEEK_END)
    shape = (file.metadata.num_rows, len(names))
    if min(shape) < 0:
        raise DataError(f"{source} declares {shape[0]} rows: the file is damaged")
    check_stored(source, _words(*shape), shape, None, size)
    return file, names


def check_rows(source: str, file: Any, names: Sequence[str], groups: Iterable[int] | None = None) -> None:
    """Refuse columns, of some row groups or of all, that cannot be held in memory, as values or as packed pages.

    Raises:
        DataError: with both sizes.
    """
    metadata = file.metadata
    groups = list(range(metadata.num_row_groups)) if groups is None else list(groups)
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    check_held(source, _words(rows, len(names)), (rows, len(names)))
    places = _places(metadata)
    pages = sum(
        metadata.row_group(group).column(places[name]).total_uncompressed_size
        for group in groups
        for name in names
        if name in places
    )
    check_held(source, f"what the {len(names)} columns hold unpacked", (-(-pages // 8),))


def survey_column(source: str, file: Any, name: str) -> Survey:
    """The survey of a column by its type; no more is read than the first text of one that is refused for it.

    Raises:
        DataError: it holds neither numbers, booleans, dates nor times.
    """
    field = file.schema_arrow.field(name)
    try:
        return survey_of(source, name, field, field.metadata)
    except DataError:
        place = _places(file.metadata).get(name)
        sizes = [file.metadata.row_group(0).column(place)] if place is not None and file.num_row_groups else []
        if sizes and sizes[0].total_uncompressed_size <= _MOST_TEXT:
            with reading(source):
                head = next(file.iter_batches(batch_size=_FEW_ROWS, columns=[name]), None)
            if head is not None:
                survey_of(source, name, head.column(name), field.metadata)
        raise


def _places(metadata: Any) -> dict[str, int]:
    return {metadata.schema.column(index).path: index for index in range(len(metadata.schema))}


def _words(num_rows: int, num_columns: int) -> str:
    return f"a table of {num_rows:,} rows and {num_columns:,} columns"
