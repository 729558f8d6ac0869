"""The tables of a judgement: those of a run, or files that any generator may have written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import MAX_WHOLE, PER_SECOND, TEMPORAL, ColumnType, asked_categories
from sfg_dist.data.csv_dialect import TextFormat
from sfg_dist.data.naming import NoColumnError
from sfg_dist.data.sources import is_text
from sfg_dist.data.table import Table, open_table
from sfg_dist.data.unfit import UnfitColumnsError
from sfg_dist.evaluate.compared_rows import row_keys, share_in
from sfg_dist.evaluate.judgement import ColumnKind, JudgedColumn, JudgedTables
from sfg_dist.job.config import DataConfig
from sfg_dist.job.errors import DataError
from sfg_dist.pipeline.table import check_target

if TYPE_CHECKING:
    from sfg_dist.data import Prepared

MIN_ROWS = 20
"""Of each table: with fewer rows no figure says anything."""
_MOST_SHARED, _FEW_REPEATED = 0.5, 0.1
"""Held-out rows are taken for training rows where a larger share equals one, and fewer training rows equal another."""
_KINDS: Mapping[str, ColumnKind] = {
    "float": "number", "decimal": "number", "time": "number", "duration": "number", "integer": "integer",
    "boolean": "boolean", "timestamp": "datetime", "date": "datetime", "category": "category", "ordinal": "category",
}  # fmt: skip
_JOB_KEY = re.compile(rf"\bdata\.({'|'.join(DataConfig.model_fields)})\b")
_TRUTHS = ("false", "true")
_DAY_S = 86_400

_Array = NDArray[np.float64]


def tables_of_run(
    prepared: Prepared, samples: _Array, types: Sequence[ColumnType], target: str | None = None
) -> JudgedTables:
    """The tables of a run.

    Args:
        prepared: the run's table; its test rows are the held-out rows.
        samples: rows that its generator drew, float64 of value - offset, shape (num_samples, num_columns).
        types: the generator's types of the columns, which ``samples`` are written in.
        target: the column that utility predicts.
    """
    own = prepared.transform.types
    columns = tuple(_column(name, type_) for name, type_ in prepared.types.items())
    return JudgedTables(
        columns,
        samples=plain_rows(samples, types),
        held_out=plain_rows(prepared.test, own),
        train=plain_rows(prepared.train, own),
        target=target,
    )


def tables_of_files(
    samples: str | Path, held_out: str | Path, train: str | Path | None = None, target: str | None = None
) -> JudgedTables:
    """The tables of files; their columns are matched by name.

    The training table says which columns there are, in which order and of which types, or ``held_out`` without one. Its
    identifiers and free text are left out with a warning.

    Args:
        samples, held_out, train: each a path, a URL or a name, as ``open_table`` takes it.
        target: the column that utility predicts.

    Raises:
        DataError: a table cannot be read, is too short, lacks a column or has one of another type, or holds infinity;
            ``held_out`` has rows of ``train``; or ``target`` is none of the columns.
    """
    first = _open(held_out if train is None else train)
    check_target(first.source, first.columns, target, "--target")
    tables = [first, _open(samples, first)] + ([] if train is None else [_open(held_out, first)])
    for table in tables:
        _check_rows(table)
    joined = [_joined(place, tables) for place in range(len(first.columns))]
    rows = [np.stack([values[index] for _, values in joined], axis=1) for index in range(len(tables))]
    if train is not None:
        _check_held_out(tables[2].source, rows[2], first.source, rows[0])
    return JudgedTables(
        tuple(column for column, _ in joined),
        samples=rows[1],
        held_out=rows[0] if train is None else rows[2],
        train=None if train is None else rows[0],
        target=target,
    )


def _open(source: str | Path, first: Table | None = None) -> Table:
    """A table; with the columns of the ``first``, and what are categories there as categories.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if first is None:
            return open_table(source, identifiers="drop")
        asked = asked_categories(first.columns, first.types)
        text = TextFormat.of_types(first.types) if is_text(str(source)) else None
        return open_table(source, columns=first.columns, asked=asked, text=text)
    except DataError as error:
        raise _without_job(error, first) from None


def _without_job(error: DataError, first: Table | None) -> DataError:
    """What is wrong with a table, for a user who has no job whose keys could mend it."""
    if isinstance(error, UnfitColumnsError):
        message = f"{error.fact}; leave the column out of the tables"
    elif isinstance(error, NoColumnError) and first is not None:
        message = f"{error.fact} as {first.source} has; {error.hint}"
    else:
        message = str(error)
    if key := _JOB_KEY.search(message):
        message += f" (there is no job here that could set {key[0]}: change the file)"
    return DataError(message)


def _has_some(values: _Array) -> bool:
    return not np.isnan(values).all()


def _check_rows(table: Table) -> None:
    if len(table.values) < MIN_ROWS:
        raise DataError(f"{table.source} has {len(table.values)} rows: expected at least {MIN_ROWS} to judge by")
    if len(places := np.argwhere(np.isinf(table.values))):
        row, column = places[0]
        raise DataError(
            f"{table.source}: column {table.columns[column]!r} holds infinity in row {row + 1}: leave it out"
        )


def _check_held_out(source: str, held_out: _Array, train_source: str, train: _Array) -> None:
    """Refuse held-out rows that are training rows; those of a table with few distinct rows may equal some by chance."""
    shared = share_in(train, held_out)
    if shared <= _MOST_SHARED:
        return
    repeated = sum(count for count in Counter(row_keys(train)).values() if count > 1) / len(train)
    if repeated < _FEW_REPEATED:
        raise DataError(
            f"{source}: {100 * shared:.0f} % of the rows equal a row of {train_source}: --data must hold rows that the "
            f"generator was not fitted to"
        )


def _column(name: str, type_: ColumnType) -> JudgedColumn:
    return JudgedColumn(name, _KINDS[type_.kind], _TRUTHS if type_.kind == "boolean" else type_.categories)


def plain_rows(rows: _Array, types: Sequence[ColumnType]) -> _Array:
    """Rows of value - offset, shape (num_rows, num_columns), in the units of a judgement: see ``_values``."""
    columns = [_values(column, type_, _left_off(column, [type_])) for column, type_ in zip(rows.T, types, strict=True)]
    return np.stack(columns, axis=1)


def _values(values: _Array, type_: ColumnType, left_off: int) -> _Array:
    """The values of a column: stamps and dates in seconds since 1970, times and durations in seconds.

    Those of numbers are without ``left_off``.
    """
    if type_.kind in TEMPORAL:
        # Whole seconds and their parts apart, so that a stamp is one number whatever unit its file has.
        per_second = PER_SECOND.get(type_.unit or "s", 1)
        seconds, rest = divmod(type_.offset, per_second)
        ticks = values + rest
        whole = np.floor(ticks / per_second)
        parts = (ticks - whole * per_second) / per_second
        return (whole + seconds) * _DAY_S if type_.unit == "D" else whole + seconds + parts
    return values + float(type_.offset - left_off)


def _left_off(first: _Array, types: Sequence[ColumnType]) -> int:
    """What is taken off a column of numbers in all tables.

    It is 0 unless float64 does not tell neighbours apart. ``first`` are the values of the first table, and ``types``
    those of all.
    """
    offset = types[0].offset
    if types[0].kind == "integer" and any(type_.offset for type_ in types) and _has_some(first):
        return offset or int(np.nanmin(first))
    return offset if abs(offset) >= MAX_WHOLE else 0


def seconds_of(ticks: _Array, type_: ColumnType) -> _Array:
    """Ticks of a type in seconds; whole seconds are exact."""
    return ticks * _DAY_S if type_.unit == "D" else ticks / PER_SECOND[type_.unit or "s"]


def _joined(place: int, tables: Sequence[Table]) -> tuple[JudgedColumn, list[_Array]]:
    """One column of several tables in common units: its kind is that of the first, its categories are those of all.

    Raises:
        DataError: the tables hold values of different types.
    """
    first, name = tables[0], tables[0].columns[place]
    types = [table.types[place] for table in tables]
    for table, type_ in zip(tables[1:], types[1:], strict=True):
        if _family(type_) != _family(types[0]) and _has_some(table.values[:, place]):
            raise DataError(
                f"{table.source}: column {name!r} holds {type_.words}, and {first.source} has {types[0].words} there: "
                f"write both in one type"
            )
    column = _column(name, types[0])
    if types[0].is_coded:
        names = list(dict.fromkeys(text for type_ in types for text in type_.categories))
        return JudgedColumn(name, column.kind, tuple(names)), [
            _recoded(table.values[:, place], type_, names) for table, type_ in zip(tables, types, strict=True)
        ]
    left_off = _left_off(first.values[:, place], types)
    values = [_values(table.values[:, place], type_, left_off) for table, type_ in zip(tables, types, strict=True)]
    if types[0].kind == "float" and types[0].dtype != "float64":
        # A .csv has the fewest digits that are a float32, and copies of rows must be seen.
        values = [values[0], *(types[0].to_float(types[0].from_float(some)) for some in values[1:])]
    if column.kind == "boolean":
        for table, some in zip(tables, values, strict=True):
            if len(odd := some[~np.isin(some, (0, 1)) & ~np.isnan(some)]):
                raise DataError(
                    f"{table.source}: column {name!r} holds {odd[0]:g}, and {first.source} has true or false"
                )
    return column, values


def _family(type_: ColumnType) -> tuple[str, bool]:
    """What values of a type are compared with: stamps with a zone are instants, and those without are local times."""
    kind = "number" if _KINDS[type_.kind] in ("integer", "boolean") else _KINDS[type_.kind]
    return type_.kind if type_.kind in ("time", "duration") else kind, bool(type_.zone)


def _recoded(codes: _Array, type_: ColumnType, names: Sequence[str]) -> _Array:
    """Codes of a type as places in ``names``; NaN stays."""
    places = np.array([names.index(text) for text in type_.categories] or [0], dtype=np.float64)
    known = np.isfinite(codes)
    return np.where(known, places[np.where(known, codes, 0).astype(np.intp)], np.nan)
