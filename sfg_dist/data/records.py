"""Files that hold named columns: .csv and its kin, .parquet, and folders of either.

Nulls are NaN, booleans 0 and 1. Text and dates are refused by name, unless ``data.columns`` leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.csv_columns import MAX_DIGITS, decimal_values
from sfg_dist.data.csv_dialect import TextFormat
from sfg_dist.data.csv_read import read_csv
from sfg_dist.data.folders import is_folder, is_prefix, read_folder
from sfg_dist.data.location import AbsentError, is_text, open_bytes, reading
from sfg_dist.data.naming import check_columns
from sfg_dist.errors import DataError
from sfg_dist.words import counted

_NULL_TEXTS = frozenset({"", "NA", "N/A", "NULL", "null", "NaN", "nan", "n/a", "#N/A"})


def read_records(
    source: str, columns: Sequence[str] | None, text: TextFormat | None = None
) -> tuple[NDArray[np.float64], tuple[str, ...], str]:
    """Read the wanted columns of a source of named columns.

    Args:
        source: path or URL.
        columns: names wanted, in order; None is all.
        text: what the user says of .csv files.

    Returns:
        Values, shape (num_rows, num_columns), the names, and how the source was read.

    Raises:
        DataError: the file or one of the wanted columns cannot be used.
    """
    table, read_as = read_columns(source, columns, text or TextFormat())
    names = tuple(table.column_names)
    values = np.empty((table.num_rows, len(names)))
    for index, name in enumerate(names):
        values[:, index] = numbers(source, name, table.column(index))
    return values, names, read_as


def read_columns(source: str, columns: Sequence[str] | None, text: TextFormat) -> tuple[Any, str]:
    """The wanted columns as an Arrow table with the types that they have in the source, and how it was read."""
    if not is_folder(source):
        try:
            return read_file(source, columns, text)
        except AbsentError:
            if not is_prefix(source):
                raise
    return read_folder(source, columns, lambda file, wanted: _read_part(file, wanted, text))


def _read_part(file: str, columns: Sequence[str] | None, text: TextFormat) -> tuple[Any, str]:
    """``read_file``; what is no number is refused with this file's name, not the folder's."""
    import pyarrow as pa

    table, read_as = read_file(file, columns, text)
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_temporal(kind) or not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind)):
            numbers(file, name, column)
    return table, read_as


def read_file(source: str, columns: Sequence[str] | None, text: TextFormat) -> tuple[Any, str]:
    """``read_columns`` of one file."""
    if is_text(source):
        with open_bytes(source) as stream:
            return read_csv(source, stream.read(), columns, text)
    if text.given:
        raise DataError(f"{source}: {text.given[0]} is for .csv files: leave it out")
    with open_bytes(source) as stream:
        return _read_parquet(source, stream, columns)


def _read_parquet(source: str, stream: Any, columns: Sequence[str] | None) -> tuple[Any, str]:
    from pyarrow import parquet

    with reading(source):
        file = parquet.ParquetFile(stream)
        # pandas writes its index as a column of this name
        names = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
    wanted = check_columns(source, names, columns)
    with reading(source):
        return file.read(columns=list(wanted)).select(list(wanted)), f"{counted(len(names), 'column')}, parquet"


def numbers(source: str, name: str, column: Any) -> NDArray[np.float64]:
    """A column of an Arrow table as float64, nulls as NaN.

    Raises:
        DataError: it holds something else than numbers.
    """
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _parse_text(source, name, column.to_pylist())
    if pa.types.is_temporal(kind):
        raise DataError(
            f"{source}: column {name!r} holds dates or times ({kind}): expected numbers; "
            "convert it, or leave it out with data.columns"
        )
    if pa.types.is_decimal128(kind) and kind.precision <= MAX_DIGITS:
        return decimal_values(column)
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    ):
        raise DataError(f"{source}: column {name!r} has type {kind}: expected numbers; leave it out with data.columns")
    with reading(source):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def _parse_text(source: str, name: str, texts: Sequence[str | None]) -> NDArray[np.float64]:
    values = np.empty(len(texts))
    for row, text in enumerate(texts, start=1):
        cell = (text or "").strip()
        if cell in _NULL_TEXTS:
            values[row - 1] = np.nan
        elif _is_number(cell):
            values[row - 1] = float(cell)
        else:
            shown = cell if len(cell) <= 40 else cell[:37] + "..."
            raise DataError(
                f"{source}: column {name!r} holds text: {shown!r} in data row {row} (counted from 1); "
                "expected numbers; leave the column out with data.columns"
            )
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # Python reads 1_000 as a number, nobody else does
