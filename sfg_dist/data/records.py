"""Files that hold named columns: .csv and .parquet.

Columns are typed as the file says (``column_type``). Text is refused by name, unless ``data.columns`` leaves it out;
only the text of a .csv is read as numbers.
A .csv file is UTF-8, separated by commas, semicolons or tabs (the most frequent of them in its first line);
if its first line is all numbers it has no header, and its columns are c0, c1, ...
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.location import open_bytes, reading, suffix_of
from sfg_dist.data.naming import check_columns
from sfg_dist.data.surveys import settled, style_of, survey_of, to_float
from sfg_dist.errors import DataError

_NULL_TEXTS = frozenset({"", "NA", "N/A", "NULL", "null", "NaN", "nan", "n/a", "#N/A"})


def read_records(
    source: str, columns: Sequence[str] | None, identifiers: str = "refuse"
) -> tuple[NDArray[np.float64], dict[str, ColumnType]]:
    """Read the wanted columns of a .csv or .parquet source.

    Args:
        source: path or URL.
        columns: names wanted, in order; None is all.
        identifiers: "refuse" or "drop" columns of whole numbers that float64 cannot tell apart.

    Returns:
        value - offset, shape (num_rows, num_columns), and the type of each column by its name.

    Raises:
        DataError: the file or one of the wanted columns cannot be used.
    """
    with open_bytes(source) as stream:
        read = _read_csv if suffix_of(source) == ".csv" else _read_parquet
        table, names = read(source, stream, columns)
    surveys = {}
    for index, name in enumerate(names):
        field, is_text = table.field(index), suffix_of(source) == ".csv"
        surveys[name] = survey_of(source, name, table.column(index), field.metadata, is_text=is_text)
        surveys[name].add(table.column(index))
    types = settled(source, surveys, identifiers)
    values = np.empty((table.num_rows, len(types)))
    for index, (name, type_) in enumerate(types.items()):
        values[:, index] = to_float(source, name, type_, table.column(name))
    return values, types


def _read_csv(source: str, stream: BinaryIO, columns: Sequence[str] | None) -> tuple[Any, tuple[str, ...]]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    with reading(source):
        num_blank, line = 0, stream.readline().decode("utf-8-sig")
        while line and not line.strip():
            num_blank, line = num_blank + 1, stream.readline().decode("utf-8")
        stream.seek(0)
    if not line.strip():
        raise DataError(f"{source} is empty (blank lines only): expected a table")
    separator = max(",;\t", key=line.count)
    cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]
    has_header = not all(_is_number(cell) for cell in cells)
    names = [cell if has_header and cell else f"c{index}" for index, cell in enumerate(cells)]
    wanted = check_columns(source, names, columns)
    with reading(source):
        read = arrow_csv.ReadOptions(column_names=names, skip_rows=num_blank + has_header)
        parse = arrow_csv.ParseOptions(delimiter=separator)
        table = arrow_csv.read_csv(
            stream,
            read_options=read,
            parse_options=parse,
            convert_options=arrow_csv.ConvertOptions(include_columns=list(wanted)),
        )
        styled = [
            field.name for field in table.schema if pa.types.is_boolean(field.type) or pa.types.is_timestamp(field.type)
        ]
        if styled:
            stream.seek(0)
            convert = arrow_csv.ConvertOptions(include_columns=styled, column_types=dict.fromkeys(styled, pa.string()))
            texts = arrow_csv.read_csv(stream, read_options=read, parse_options=parse, convert_options=convert)
    for index, name in enumerate(wanted):
        column = table.column(index)
        if pa.types.is_string(column.type):
            numbers = _parse_text(source, name, column.to_pylist())
            table = table.set_column(index, name, pa.array(numbers, from_pandas=True))
        elif name in styled and (style := style_of(texts.column(name), column)):
            table = table.set_column(index, pa.field(name, column.type, metadata={"style": style}), column)
    return table, wanted


def _read_parquet(source: str, stream: BinaryIO, columns: Sequence[str] | None) -> tuple[Any, tuple[str, ...]]:
    from pyarrow import parquet

    with reading(source):
        file = parquet.ParquetFile(stream)
        # pandas writes its index as a column of this name
        names = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
    wanted = check_columns(source, names, columns)
    with reading(source):
        return file.read(columns=list(wanted)).select(list(wanted)), wanted


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
