"""Columns that a sample is given: which they are among the flow's columns, and what a user says of them.

The whole table has one transform. In the flow's rows, the columns named by ``data.condition`` are conditions, in the
order in which they are named. The others are targets, in the order of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import FLOAT, ColumnType, UnfitValueError
from sfg_dist.data.frames import is_frame, rows_of_frame
from sfg_dist.data.naming import check_columns
from sfg_dist.data.transform import Transform
from sfg_dist.job.errors import ConfigError, DataError, SfgError

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ColumnSplit:
    """Targets and conditions among the flow's columns."""

    names: tuple[str, ...]  # of the conditions, in their order
    targets: NDArray[np.intp]  # flow columns that are drawn, ascending
    conditions: NDArray[np.intp]  # flow columns that are given, in the order of ``names``
    places: NDArray[np.intp]  # the user's columns that hold the conditions, in the same order

    @classmethod
    def of(cls, transform: Transform, names: Sequence[str]) -> ColumnSplit:
        """The split of a table's columns."""
        flow_columns = transform.flow_columns
        for name in names:
            if name not in flow_columns:
                raise DataError(f"column {name!r} of data.condition is constant: leave it out of the conditions")
        conditions = np.array([flow_columns.index(name) for name in names], dtype=np.intp)
        targets = np.setdiff1d(np.arange(transform.dim), conditions)
        if not len(targets):
            raise DataError("data.condition names every column that changes: none is left to draw")
        places = np.array([transform.columns.index(name) for name in names], dtype=np.intp)
        return cls(tuple(names), targets, conditions, places)

    def flow_conditions(self, transform: Transform, conditions: _Array) -> NDArray[np.float32]:
        """Conditions in the user's units as the flow sees them.

        A value on a grid goes to the middle of its cell, and a repeated value to that of its interval.
        """
        rows = np.repeat(transform.inverse(np.zeros((1, transform.dim))), len(conditions), axis=0)
        rows[:, self.places] = conditions
        return np.ascontiguousarray(transform.forward(rows)[:, self.conditions])

    def join(self, transform: Transform, labels: NDArray[Any], conditions: _Array) -> _Array:
        """The user's rows of labels, with conditions in the user's units in their own columns."""
        flow_rows = np.zeros((len(labels), transform.dim))
        flow_rows[:, self.targets] = labels
        rows = transform.inverse(flow_rows)
        rows[:, self.places] = conditions
        return transform.looked_up(rows)


def conditions_last(source: str, columns: Sequence[str], names: Sequence[str]) -> list[int]:
    """The places of a table's columns, with the conditions behind the others.

    Examples:
        >>> conditions_last("table.csv", ("a", "b", "c", "d"), ("c", "a"))
        [1, 3, 2, 0]
    """
    check_columns(source, columns, names, key="data.condition")
    places = [columns.index(name) for name in names]
    return [place for place in range(len(columns)) if place not in places] + places


def read_given(
    given: Any,
    names: Sequence[str],
    n: int,
    types: Sequence[ColumnType] = (),
    may_miss: Sequence[bool] = (),
) -> _Array | None:
    """What a user gave, as an array in the order of ``names``, one row or n of them; None where nothing is to be given.

    ``given`` holds a value or n values of the column's type, by name; or it is a table in memory; or an array of shape
    (len(names),), (1, len(names)) or (n, len(names)), for one name also (n,). ``types`` are those of the conditions,
    whose value - offset is returned; float64 if not given. ``may_miss`` says which may be missing (None or NaN); none
    if not given.

    Raises:
        ConfigError: it is missing, or nothing is to be given; a name is missing or unknown; the shape is wrong; or a
            value is not a finite number.

    Examples:
        >>> read_given({"b": [3.0, 4.0], "a": 1.0}, ("a", "b"), 2)
        array([[1., 3.],
               [1., 4.]])
    """
    if not names:
        if given is not None:
            raise ConfigError("this generator was trained without data.condition: leave the given values out")
        return None
    wanted, types = ", ".join(names), tuple(types) or (FLOAT,) * len(names)
    if given is None:
        raise ConfigError(f"this generator needs values of {wanted}: give them by given= in Python, or by --given")
    try:
        if is_frame(given) and not isinstance(given, np.ndarray):
            rows = rows_of_frame(given, names, types)
        elif isinstance(given, Mapping):
            unknown = [name for name in given if name not in names]
            missing = [name for name in names if name not in given]
            if unknown or missing:
                what = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is not one of them"
                raise ConfigError(f"given: {what}; this generator takes {wanted}")
            columns = [_column(name, type_, given[name]) for name, type_ in zip(names, types, strict=True)]
            rows = np.stack(np.broadcast_arrays(*columns), axis=1)
        else:
            values = np.asarray(given)
            values = values.reshape(-1, 1) if values.ndim < 2 and len(names) == 1 else np.atleast_2d(values)
            if values.ndim == 2 and values.shape[1] == len(names):
                columns = [_column(*column) for column in zip(names, types, values.T, strict=True)]
                rows = np.stack(columns, axis=1)
            else:
                rows = np.empty(values.shape)
    except (TypeError, ValueError) as error:
        if isinstance(error, SfgError):
            raise
        raise ConfigError(f"given: expected numbers for {wanted}, one or {n:,} each: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != len(names) or len(rows) not in (1, n):
        raise ConfigError(
            f"given: has shape {rows.shape}, expected (1, {len(names)}) or ({n}, {len(names)}): the columns {wanted}"
        )
    finite_conditions(rows, names, may_miss)
    return rows


def finite_conditions(rows: _Array, names: Sequence[str], may_miss: Sequence[bool] = ()) -> None:
    """Refuse conditions that are infinite, or missing where the column never is (``may_miss``).

    Raises:
        ConfigError: with the column and the row.
    """
    is_bad = np.isinf(rows) | (np.isnan(rows) & ~np.array(may_miss or [False] * len(names)))
    if is_bad.any():
        row, column = np.argwhere(is_bad)[0]
        raise ConfigError(f"given: {names[column]!r} is {rows[row, column]} in row {row} (counted from 0)")


def _column(name: str, type_: ColumnType, values: Any) -> _Array:
    try:
        found = type_.from_user(values)
        type_.check_held(found)
    except UnfitValueError as error:
        raise ConfigError(f"given: {name!r}: {error}") from error
    return found
