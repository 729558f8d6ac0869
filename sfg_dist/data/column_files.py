"""Files that hold named columns: .csv and its kin, .parquet, and folders of either.

Columns have the types that the file says (``column_type``), or that the job asks for (``data.types``).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.csv_dialect import TextFormat
from sfg_dist.data.csv_read import read_csv
from sfg_dist.data.csv_text import check_text
from sfg_dist.data.folders import is_folder, is_prefix, read_folder
from sfg_dist.data.naming import check_columns
from sfg_dist.data.parquet_file import check_readable, open_parquet, parquet_words
from sfg_dist.data.sources import AbsentError, is_text, open_bytes, reading
from sfg_dist.data.surveys import Survey, settled, survey_of, to_float
from sfg_dist.data.unfit import columns_are, each_fit
from sfg_dist.job.errors import DataError


def read_column_files(
    source: str,
    columns: Sequence[str] | None,
    identifiers: str = "refuse",
    text: TextFormat | None = None,
    asked: Mapping[str, Any] | None = None,
) -> tuple[NDArray[np.float64], dict[str, ColumnType], str]:
    """The wanted columns of a source of named columns; ``asked`` as for ``survey_of``.

    Returns:
        value - offset, shape (num_rows, num_columns); the types by name; and how the source was read, in words.
    """
    table, read_as = read_columns(source, columns, text or TextFormat(), asked)
    return *typed_columns(source, table, identifiers, asked), read_as


def typed_columns(
    source: str, table: Any, identifiers: str = "refuse", asked: Mapping[str, Any] | None = None
) -> tuple[NDArray[np.float64], dict[str, ColumnType]]:
    """The columns of an Arrow table: value - offset, shape (num_rows, num_columns), and the types by name."""
    with columns_are(table.column_names):
        surveys = _surveys(source, table, asked)
        for name, survey in surveys.items():
            survey.add(table.column(name))
        types = settled(source, surveys, identifiers)
        values = np.empty((table.num_rows, len(types)))
        for index, (name, type_) in enumerate(types.items()):
            values[:, index] = to_float(source, name, type_, table.column(name))
    return values, types


def _surveys(source: str, table: Any, asked: Mapping[str, Any] | None) -> dict[str, Survey]:
    return each_fit(
        table.column_names,
        lambda name: survey_of(source, name, table.column(name), table.schema.field(name).metadata, asked),
    )


def read_columns(
    source: str, columns: Sequence[str] | None, text: TextFormat, asked: Mapping[str, Any] | None = None
) -> tuple[Any, str]:
    """The wanted columns as an Arrow table with the types that they have in the source, and how it was read."""
    if not is_folder(source):
        try:
            return read_file(source, columns, text, asked)
        except AbsentError:
            if not is_prefix(source):
                raise
    return read_folder(source, columns, lambda file, wanted: _read_part(file, wanted, text, asked))


def _read_part(
    file: str, columns: Sequence[str] | None, text: TextFormat, asked: Mapping[str, Any] | None
) -> tuple[Any, str]:
    """``read_file`` of a folder's file, so that a refusal of a type names this file, not the folder."""
    table, read_as = read_file(file, columns, text, asked)
    with columns_are(table.column_names):
        _surveys(file, table, asked)
    return table, read_as


def read_file(
    source: str, columns: Sequence[str] | None, text: TextFormat, asked: Mapping[str, Any] | None = None
) -> tuple[Any, str]:
    """``read_columns`` of one file."""
    if is_text(source):
        with open_bytes(source) as stream:
            check_text(source, stream.seek(0, io.SEEK_END))
            stream.seek(0)
            return read_csv(source, stream.read(), columns, text, asked)
    if text.given:
        raise DataError(f"{source}: {text.given[0]} is for .csv files: leave it out")
    with open_bytes(source) as stream:
        return _read_parquet(source, stream, columns, asked)


def _read_parquet(
    source: str, stream: Any, columns: Sequence[str] | None, asked: Mapping[str, Any] | None
) -> tuple[Any, str]:
    file, schema, names = open_parquet(source, stream, columns)
    wanted = check_columns(source, names, columns)
    check_readable(source, file, wanted)
    with columns_are(names):  # a column of lists may hold far more values than rows: it is refused unread
        each_fit(wanted, lambda name: survey_of(source, name, schema.field(name), schema.field(name).metadata, asked))
    with reading(source):
        table = file.read(columns=list(wanted)).select(list(wanted))
    for place, name in enumerate(wanted):
        marked = table.schema.field(place).with_metadata(schema.field(name).metadata)
        table = table.set_column(place, marked, table.column(place))
    return table, parquet_words(file, names)
