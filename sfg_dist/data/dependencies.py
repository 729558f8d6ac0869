"""Columns that another one determines: found, left out of the flow, and looked up on the way back.

A column is determined by another one if rows with the same value there have the same value here, in all rows of the
table. That is taken for a law, and not for chance or a repetition of rows, if

- the other column is discrete and has at least 20 rows a value on average, and two that differ in other columns;
- chance would do it with odds below e^-14, by a union bound: the number of maps, V^L for L values there and V here,
  times the probability exp(-n H) that n rows with entropy H here follow a given one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.end_to_end import cut
from sfg_dist.data.grid import float32_spacing
from sfg_dist.data.row_reader import RowReader
from sfg_dist.job.errors import DataError

_Array = NDArray[np.float64]

_LEAST_ROWS = 20.0  # of each value of the other column, on average
_LEAST_DIFFERENT = 2.0  # of them that differ, on average
_ODDS = 14.0
_FIRST_ROWS, _BLOCK_ROWS = 1 << 10, 1 << 16  # most pairs are told apart by few rows
MAX_LEVELS = 1 << 16


@dataclass(frozen=True, eq=False)
class Lookup:
    """The values of a column by those of the column that determines it; numbers are value - offset."""

    column: int  # the place of the determined column among the table's
    by: int  # that of the column that determines it
    keys: _Array  # values of that column, ascending, a missing one the last
    values: _Array  # of the determined column for each

    def look_up(self, values: _Array) -> _Array:
        """The value for each of ``by``; a number that no row had is taken for the nearest that one had."""
        has_gap = bool(np.isnan(self.keys[-1]))
        known = len(self.keys) - has_gap
        above = np.searchsorted(self.keys[:known], values).clip(0, known - 1)
        below = np.maximum(above - 1, 0)
        with np.errstate(invalid="ignore"):
            is_below = np.abs(values - self.keys[below]) < np.abs(values - self.keys[above])
        places = np.where(is_below, below, above)
        return self.values[np.where(np.isnan(values) & has_gap, len(self.keys) - 1, places)]

    def differs(self, rows: _Array, *, is_rounded: bool = False) -> NDArray[np.bool_]:
        """The rows whose pair of values the table never had.

        Args:
            rows: with the column that determines on its grid, as the keys are.
            is_rounded: the determined column may miss the table's values by the rounding of float32, and by what a
                grid forgives; never by so much that a value is nearer to another one.
        """
        by = rows[:, self.by]
        known = np.isin(by, self.keys) | (np.isnan(by) & np.isnan(self.keys[-1]))
        wanted, found = self.look_up(by), rows[:, self.column]
        is_off = wanted != found
        if is_rounded:
            values = np.unique(self.values[~np.isnan(self.values)])
            gap = np.diff(values).min() if len(values) > 1 else np.abs(values).max(initial=0.0)
            slack = np.minimum(1e-6 * gap + 0.51 * float32_spacing(wanted), 0.25 * gap)
            is_off &= ~(np.abs(wanted - found) <= slack)
        return ~known | (is_off & ~(np.isnan(wanted) & np.isnan(found)))


@dataclass(eq=False)
class _Pair:
    """A column that may determine another one, and the values found so far."""

    keys: _Array
    values: _Array  # for each key
    is_known: NDArray[np.bool_]  # which of them a row had

    def holds(self, places: NDArray[np.intp], values: _Array) -> bool:
        """Take more rows; whether each value has had one value until now."""
        before, seen = self.values[places], self.is_known[places]
        is_same = (before == values) | (np.isnan(before) & np.isnan(values))
        if not is_same[seen].all():
            return False
        self.values[places], self.is_known[places] = values, True
        again = self.values[places]
        return bool(((again == values) | (np.isnan(again) & np.isnan(values))).all())


def find_lookups(reader: RowReader, levels: Mapping[str, _Array], never: Sequence[str]) -> tuple[Lookup, ...]:
    """The lookups of a table's columns, in the order of the columns that are looked up.

    Args:
        reader: all complete rows, on the grids of their columns.
        levels: the values of each discrete column that may determine others, ascending, a missing one the last.
        never: columns that stay in the flow.
    """
    names, num_rows = list(reader.columns), reader.num_rows
    usable = {name: keys for name, keys in levels.items() if 2 <= len(keys) <= min(MAX_LEVELS, num_rows / _LEAST_ROWS)}
    first = reader.read(0, min(num_rows, _FIRST_ROWS)) if usable else np.zeros((0, len(names)))
    pairs = {
        (by, names[place]): _Pair(keys, np.full(len(keys), np.nan), np.zeros(len(keys), dtype=bool))
        for by, keys in usable.items()
        for place in _unrefuted(first, names.index(by)).tolist()
        if names[place] != by and names[place] not in never
    }
    if not pairs:
        return ()
    counts: dict[tuple[str, str], NDArray[np.intp]] = {}
    num_different, start = 0, 0
    seen: set[bytes] = set()
    while start < num_rows and pairs:
        stop = min(start + (_FIRST_ROWS if not start else _BLOCK_ROWS), num_rows)
        rows = reader.read(start, stop)
        places = {by: places_of(usable[by], rows[:, names.index(by)]) for by in {by for by, _ in pairs}}
        for key in list(pairs):
            by, name = key
            if not pairs[key].holds(places[by], rows[:, names.index(name)]):
                del pairs[key]
                continue
            found = np.bincount(places[by], minlength=len(usable[by]))
            counts[key] = counts[key] + found if key in counts else found
        if start < _BLOCK_ROWS and pairs:  # rows that repeat are no evidence; the first ones say whether they do
            seen.update(row.tobytes() for row in rows + 0.0)
            num_different = len(seen)
        start = stop
    first_rows = min(num_rows, _FIRST_ROWS + _BLOCK_ROWS)
    kept = {
        key: pair
        for key, pair in pairs.items()
        if _is_law(pair, counts[key]) and num_different * num_rows >= _LEAST_DIFFERENT * len(pair.keys) * first_rows
    }
    return _chosen(kept, names, reader.types_by_name, never)


def first_value(values: _Array) -> float:
    """A value that stands for a column until it is looked up: the first that is not missing."""
    return float(values[~np.isnan(values)][0])


def _unrefuted(rows: _Array, by: int) -> NDArray[np.intp]:
    """The columns that have one value for each value of column ``by`` in some rows."""
    ordered = rows[np.argsort(rows[:, by], kind="stable")]
    is_other = (ordered[1:] != ordered[:-1]) & ~(np.isnan(ordered[1:]) & np.isnan(ordered[:-1]))
    return np.flatnonzero(~(is_other & ~is_other[:, [by]]).any(axis=0))


def places_of(keys: _Array, values: _Array) -> NDArray[np.intp]:
    """The place of each value among the keys, all of which are there."""
    places = np.searchsorted(keys, values)  # NaN goes behind all numbers, where its key is
    return np.minimum(places, len(keys) - 1)


def _is_law(pair: _Pair, counts: NDArray[np.intp]) -> bool:
    """Whether a union bound over all maps leaves no room for chance."""
    codes = np.unique(pair.values[pair.is_known], return_inverse=True)[1]
    shares = np.bincount(codes, weights=counts[pair.is_known])
    num_rows, num_values = shares.sum(), len(shares)
    if num_values < 2 or np.isnan(pair.values).all():
        return False
    shares = shares[shares > 0] / num_rows
    entropy = -float((shares * np.log(shares)).sum())
    return len(counts) * np.log(num_values) - num_rows * entropy < -_ODDS


def _chosen(
    pairs: Mapping[tuple[str, str], _Pair], names: list[str], types: Mapping[str, ColumnType], never: Sequence[str]
) -> tuple[Lookup, ...]:
    """One lookup for each column that can be left out; numbers are kept rather than categories, finer columns too."""

    def rank(name: str) -> tuple[bool, int, bool, int]:
        """What is given, determines others, and is a number, stays; of equals the first."""
        finest = max((len(pair.keys) for (by, _), pair in pairs.items() if by == name), default=0)
        return name in never, finest, not types[name].is_coded, -names.index(name)

    left_out: dict[str, Lookup] = {}
    sources: set[str] = set()
    for name in sorted({name for _, name in pairs}, key=rank):
        found = [by for by, other in pairs if other == name and by not in left_out]
        if not found or name in sources:
            continue
        by = max(found, key=rank)
        pair = pairs[by, name]
        sources.add(by)
        is_known = pair.is_known
        left_out[name] = Lookup(names.index(name), names.index(by), pair.keys[is_known], pair.values[is_known])
    return tuple(sorted(left_out.values(), key=lambda lookup: lookup.column))


def lookups_to_arrays(lookups: Sequence[Lookup]) -> dict[str, NDArray[Any]]:
    """Lookups end to end, for a file of named arrays; none where there are none."""
    if not lookups:
        return {}
    return {
        "lookup_columns": np.array([[each.column, each.by, len(each.keys)] for each in lookups], dtype=np.int64),
        "lookup_keys": np.concatenate([each.keys for each in lookups]),
        "lookup_values": np.concatenate([each.values for each in lookups]),
    }


def lookups_from_arrays(arrays: Mapping[str, NDArray[Any]], constants: _Array) -> tuple[Lookup, ...]:
    """The lookups that ``lookups_to_arrays`` wrote, for a table with these ``constants``.

    Raises:
        DataError: the arrays do not fit each other, or are no lookups.
        KeyError: one is missing.
    """
    if "lookup_columns" not in arrays:
        return ()
    columns, keys, values = (np.array(arrays[f"lookup_{name}"]) for name in ("columns", "keys", "values"))
    is_whole = columns.ndim == 2 and columns.shape[1] == 3 and columns.dtype.kind == "i"
    if not is_whole or keys.ndim != 1 or keys.shape != values.shape or {keys.dtype, values.dtype} != {np.dtype(float)}:
        raise DataError("the saved transform is damaged: its lookups have no common shape")
    places, counts = columns[:, :2], columns[:, 2]
    if (columns < 0).any() or (counts < 1).any() or (places >= len(constants)).any():
        raise DataError("the saved transform is damaged: its lookups are none of its columns")
    if np.isnan(constants[places[:, 0]]).any() or not np.isnan(constants[places[:, 1]]).all():
        raise DataError("the saved transform is damaged: a column is looked up by one that the flow does not see")
    found, parts = [], [cut(some, counts, "values of lookups") for some in (keys, values)]
    for (column, by, _), some, given in zip(columns.tolist(), *parts, strict=True):
        inner = some[:-1] if np.isnan(some[-1]) else some
        if not len(inner) or not np.isfinite(inner).all() or (np.diff(inner) <= 0).any() or np.isinf(given).any():
            raise DataError("the saved transform is damaged: keys of a lookup that do not ascend")
        found.append(Lookup(column, by, some, given))
    return tuple(found)
