"""The rows of a folder of .parquet files, read by ranges across the files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.folders import Part, check_same_columns, common_type, decoded, folder_words, key_values, parts_of
from sfg_dist.data.naming import check_columns
from sfg_dist.data.parquet_file import open_parquet, parquet_rows, parquet_surveys
from sfg_dist.data.row_reader import ColumnChoice, RowReader, overlaps
from sfg_dist.data.sources import open_ranges, reading
from sfg_dist.data.surveys import Survey, settled, survey_of, to_float
from sfg_dist.data.unfit import columns_are, each_fit
from sfg_dist.job.words import counted

_Array = NDArray[np.float64]


@contextlib.contextmanager
def open_folder_rows(source: str, choice: ColumnChoice) -> Iterator[RowReader]:
    """Open the rows of all files of a folder; one file is open at a time."""
    parts, columns, types = parts_of(source), choice.columns, choice.types
    keys, stack = list(parts[0].keys), contextlib.ExitStack()
    names: list[str] = []
    with columns_are(names):
        own, sizes, surveys = _survey_parts(source, parts, columns, names, None if types is not None else choice.asked)
        asked = [key for key in keys if columns is None or key in columns]
        given = each_fit(asked, lambda key: key_values(source, key, parts))
        if types is None:
            for key, values in given.items():
                surveys[key] = survey_of(source, key, _column_of(values), asked=choice.asked)
                with_rows = [value for value, size in zip(values, sizes, strict=True) if size]
                if with_rows:
                    surveys[key].add(_column_of(with_rows), [size for size in sizes if size])
            wanted = check_columns(source, [*own, *keys], columns)
            types = settled(source, {name: surveys[name] for name in wanted}, choice.identifiers)
    found = {name: type_ for name, type_ in types.items() if name not in given}
    is_open: dict[int, RowReader] = {}

    def reader_of(number: int) -> RowReader:
        if number not in is_open:
            stack.close()
            is_open.clear()
            stream = stack.enter_context(open_ranges(parts[number].source))
            is_open[number] = parquet_rows(parts[number].source, stream, ColumnChoice(types=found))
        return is_open[number]

    def fetch(start: int, stop: int, names: Sequence[str]) -> _Array:
        values = np.empty((stop - start, len(names)))
        stored = [name for name in names if name not in given]
        places = [names.index(name) for name in stored]
        for number, begin, low, high in overlaps(sizes, start, stop):
            rows = slice(low - start, high - start)
            values[rows, places] = reader_of(number).read(low - begin, high - begin, stored)
            for key in set(names) & set(given):
                values[rows, names.index(key)] = to_float(
                    source, key, types[key], _column_of(given[key][number : number + 1])
                )
        return values

    read_as = folder_words(len(parts), f"{counted(len(own), 'column')}, parquet", keys, False)
    with stack:
        yield RowReader(source, tuple(types), sum(sizes), tuple(types.values()), fetch, read_as)


def _column_of(values: Sequence[Any]) -> Any:
    """Arrow scalars of one type as an array."""
    import pyarrow as pa

    return pa.array([value.as_py() for value in values], values[0].type)


def _survey_parts(
    source: str,
    parts: Sequence[Part],
    columns: Sequence[str] | None,
    every: list[str],
    to_ask: Mapping[str, Any] | None,
) -> tuple[list[str], list[int], dict[str, Survey]]:
    """The files' columns, the rows of each, and a survey of each wanted column over all of them.

    All columns, with those of the folders' names, are put into ``every`` as soon as they are known. ``to_ask`` is as
    for ``survey_of``; None where the types are known, and nothing is surveyed.
    """
    import pyarrow as pa

    keys = list(parts[0].keys)
    asked = None if columns is None else [name for name in columns if name not in keys]
    own: list[str] = []
    sizes: list[int] = []
    found: dict[str, list[tuple[Any, int]]] = {}
    by_part: list[dict[str, Survey]] = []
    for part in parts:
        with open_ranges(part.source) as stream, reading(part.source):
            file, schema, names = open_parquet(part.source, stream, asked)
            wanted = check_columns(part.source, names, asked)
            if sizes:
                check_same_columns(parts[0].source, own if asked is None else asked, part.source, wanted)
            own = own or names
            every[:] = [*own, *keys]
            sizes.append(file.metadata.num_rows)
            for name in wanted:
                found.setdefault(name, []).append((schema.field(name).type, sizes[-1]))
            asked_fields = [schema.field(name) for name in wanted]
            by_part.append({} if to_ask is None else parquet_surveys(part.source, file, asked_fields, to_ask))
    surveys = {}
    kinds = each_fit([] if to_ask is None else found, lambda name: common_type(parts, name, found[name]))
    for name, kind in kinds.items():
        types = found[name]
        of_kind = [survey[name] for survey, type_ in zip(by_part, types, strict=True) if decoded(type_[0]) == kind]
        if any(rows and decoded(type_) not in (kind, pa.null()) for type_, rows in types):
            of_kind = [_mixed_survey(parts, name, kind, to_ask)]
        surveys[name] = of_kind[0]
        for survey in of_kind[1:]:
            surveys[name].join(survey)
    return own, sizes, surveys


def _mixed_survey(parts: Sequence[Part], name: str, kind: Any, to_ask: Mapping[str, Any] | None) -> Survey:
    """The survey of a column that files have in several types, by all of its values, a row group at a time."""
    import pyarrow as pa

    survey = survey_of(parts[0].source, name, pa.field(name, kind), asked=to_ask)
    for part in parts:
        with open_ranges(part.source) as stream, reading(part.source):
            file, _, _ = open_parquet(part.source, stream, [name])
            for group in range(file.num_row_groups if survey.needs_values else 0):
                column = file.read_row_group(group, columns=[name]).column(name)
                # A survey of stamps takes those of other units, and keeps what does not fit for its error.
                is_taken = pa.types.is_null(column.type) or pa.types.is_timestamp(kind)
                survey.add(column if is_taken else column.cast(kind))
    return survey.shortened()
