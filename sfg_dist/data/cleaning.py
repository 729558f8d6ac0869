"""What a table holds before it is split: missing values, constant columns, grids, values that repeat, duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.atoms import find_atoms, find_sentinels
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.grid import Grid, find_grid, find_whole, grid_of_step, grid_of_type, share_of_ties
from sfg_dist.data.naming import check_columns, listed
from sfg_dist.data.transform import MAX_VALUE
from sfg_dist.job.errors import DataError

# Above this share of rows with a tied value a column counts as measured in steps. Ties by chance in float32
# columns stay below it up to about 10,000 rows; above that the grid test, which chance does not pass,
# decides alone.
TIED_SHARE = 0.01
# Of a column that is neither on a grid nor repeats single values, the middle 90 % must hold as many steps of float64
# and be as wide; what is narrower is rounding, and samples of it would be too.
_LEAST_SPACINGS, _LEAST_WIDTH, _LEAST_ROWS = 2.0**10, 1e-90, 10

_Array = NDArray[np.float64]


def check_size(source: str, rows: _Array, names: Sequence[str]) -> None:
    """Refuse finite values that the flow's arithmetic cannot hold.

    Raises:
        DataError: with the column and the row of the first.
    """
    if not rows.size or max(np.fmax.reduce(rows, axis=None), -np.fmin.reduce(rows, axis=None)) <= MAX_VALUE:
        return
    with np.errstate(invalid="ignore"):
        is_large = (np.abs(rows) > MAX_VALUE) & (np.abs(rows) < np.inf)
    if is_large.any():
        row, column = np.argwhere(is_large)[0]
        raise value_too_large(source, names[column], float(rows[row, column]), int(row))


def value_too_large(source: str, name: str, value: float, row: int) -> DataError:
    """The refusal of a value that the flow's arithmetic cannot hold."""
    return DataError(
        f"{source}: column {name!r} holds {value} in row {row} (counted from 0): expected finite numbers up to "
        f"{MAX_VALUE:g}"
    )


def drop_missing(source: str, rows: _Array, names: Sequence[str], missing: str) -> _Array:
    """The rows without NaN and infinite values.

    Args:
        source: for messages.
        rows: shape (num_rows, num_columns).
        names: of the columns.
        missing: "refuse" or "drop".

    Raises:
        DataError: a value is missing and ``missing`` is "refuse".
    """
    if missing not in ("refuse", "drop"):
        raise DataError(f'data.missing = {missing!r}: expected "refuse" or "drop"')
    bad = ~np.isfinite(rows)
    if not bad.any():
        return rows
    counts = bad.sum(axis=0)
    if missing == "drop" and counts.max() < len(rows):
        return rows[~bad.any(axis=1)]
    first_row = int(np.argmax(bad[:, np.flatnonzero(counts)[0]]))
    raise missing_values(source, names, counts, first_row, int(bad.any(axis=1).sum()), len(rows))


def missing_values(
    source: str, names: Sequence[str], counts: NDArray[np.intp], first_row: int, num_incomplete: int, num_rows: int
) -> DataError:
    """The refusal of a table with missing or infinite values.

    Args:
        source: for the message.
        names: of the columns.
        counts: missing or infinite values of each column, shape (num_columns,), not all 0.
        first_row: the first row in which the first column concerned has one.
        num_incomplete: rows that have one.
        num_rows: rows of the table.
    """
    if empty := [name for name, count in zip(names, counts, strict=True) if count == num_rows]:
        return DataError(
            f"{source}: no value of {'column' if len(empty) == 1 else 'columns'} {listed(empty)} is there and finite: "
            "choose the columns that have values with data.columns"
        )
    affected = np.flatnonzero(counts)
    more = [f"{names[column]!r} has {counts[column]}" for column in affected[1:6]]
    if len(affected) > 6:
        more.append(f"{len(affected) - 6} more columns have some")
    return DataError(
        f"{source}: column {names[affected[0]]!r} has {counts[affected[0]]} missing or infinite values, the first in "
        f"row {first_row} (counted from 0){'; ' if more else ''}{', '.join(more)}; "
        f'set data.missing = "drop" to leave out the {num_incomplete} incomplete rows of {num_rows}, '
        "or leave columns out with data.columns"
    )


def find_constants(
    source: str,
    rows: _Array,
    names: Sequence[str],
    constant: str,
    *,
    where: str = "all rows",
    known: Mapping[str, float] | None = None,
    types: Sequence[ColumnType] = (),
) -> dict[str, float]:
    """The columns that never change, with their value.

    Args:
        source: for messages.
        rows: finite, shape (num_rows, num_columns).
        names: of the columns.
        constant: "refuse" or "keep".
        where: which rows these are, for messages.
        known: constant columns found before.
        types: of the columns, for messages.

    Raises:
        DataError: there is one and ``constant`` is "refuse", or no other column is left.
    """
    if constant not in ("refuse", "keep"):
        raise DataError(f'data.constant = {constant!r}: expected "refuse" or "keep"')
    is_constant = rows.min(axis=0) == rows.max(axis=0)
    found = {
        name: float(rows[0, column])
        for column, name in enumerate(names)
        if is_constant[column] and name not in (known or {})
    }
    if found and constant == "refuse":
        word = "column" if len(found) == 1 else "columns"
        verb = "is" if len(found) == 1 else "are"
        first = next(iter(found))
        value = types[list(names).index(first)].shown(found[first]) if types else found[first]
        raise DataError(
            f"{source}: {word} {listed(list(found))} {verb} constant over {where} "
            f"({first!r} is always {value}); "
            'set data.constant = "keep" to leave such columns out of the flow and put them back in samples, '
            "or leave them out with data.columns"
        )
    if is_constant.all():
        raise DataError(f"{source}: every column is constant over {where}: there is nothing to learn")
    return found


def find_grids(
    source: str,
    rows: _Array,
    names: tuple[str, ...],
    constants: Mapping[str, float],
    dequantize: str | Mapping[str, float],
    steps_known: Mapping[str, float] | None = None,
) -> tuple[dict[str, Grid], dict[str, dict[str, Any]], dict[str, dict[float, int]]]:
    """The columns to dequantize, with their grids; what was found in each with ties or a grid; values that repeat.

    Args:
        source: for messages.
        rows: finite, shape (num_rows, num_columns).
        names: of the columns.
        constants: columns to pass over.
        dequantize: "auto", "none", or the step of each column to dequantize.
        steps_known: for columns whose type says that their values are multiples of something: of what.

    Returns:
        Grids by column; a report by column; and the rows of each value that repeats beside a continuum, or far from
        the rest of a grid.

    Raises:
        DataError: a step is given for an unknown column, or is not positive; or a column's values are closer together
            than float64 tells apart.
    """
    steps = dequantize if isinstance(dequantize, Mapping) else {}
    if isinstance(dequantize, str) and dequantize not in ("auto", "none"):
        raise DataError(f'data.dequantize = {dequantize!r}: expected "auto", "none" or a table of column = step')
    check_columns(source, names, list(steps), key="data.dequantize")
    for name, step in steps.items():
        if not 0 < step < np.inf:
            raise DataError(f"data.dequantize: the step of column {name!r} is {step}: expected a positive number")
    grids: dict[str, Grid] = {}
    report: dict[str, dict[str, Any]] = {}
    atoms: dict[str, dict[float, int]] = {}
    for column, name in enumerate(names):
        if name in constants:
            continue
        values = rows[:, column]
        distinct, counts = np.unique(values, return_counts=True)
        share = share_of_ties(counts)
        found, reason = _grid_found(distinct, share, (steps_known or {}).get(name))
        if name in steps:
            grid: Grid | None = grid_of_step(values, float(steps[name]))
            reason = "step given by data.dequantize"
        elif dequantize != "auto":
            grid, reason = None, 'not asked for: data.dequantize is "none" or names other columns'
        else:
            grid = found
        entry: dict[str, Any] = {"share": share, "step": None, "reason": reason}
        if grid:
            grids[name] = grid
            places = grid.coordinates(values)
            entry |= {"step": grid.step, "offset": grid.offset}
            entry["off_grid_share"] = float(np.mean(places != np.floor(places)))
        if share > TIED_SHARE or grid:
            report[name] = entry
        repeated = np.array([], dtype=np.intp)
        if grid:
            distinct = grid.snap(distinct)
            repeated = find_sentinels(distinct, counts)
        elif not found:
            repeated = find_atoms(distinct, counts) if dequantize != "none" else repeated
            _check_resolved(source, name, np.delete(distinct, repeated))
        if len(repeated):
            atoms[name] = {float(distinct[place]) + 0.0: int(counts[place]) for place in repeated}
    return grids, report, atoms


def _grid_found(distinct: _Array, share: float, unit: float | None) -> tuple[Grid | None, str]:
    """The grid of a column and why it has it."""
    if unit is not None and (grid := grid_of_type(distinct, unit)):
        return grid, "a grid by its type"
    is_tied = share > TIED_SHARE
    if grid := find_whole(distinct):
        return grid, "tied, on a grid" if is_tied else "whole numbers"
    if is_tied and (grid := find_grid(distinct)):
        return grid, "tied, on a grid"
    return None, "tied, but the values lie on no common grid"


def _check_resolved(source: str, name: str, distinct: _Array) -> None:
    """Refuse a column whose values are a few steps of float64 apart, or all but zero."""
    if len(distinct) < _LEAST_ROWS:
        return
    low, high = distinct[round(0.05 * len(distinct))], distinct[-1 - round(0.05 * len(distinct))]
    spacing = float(np.spacing(max(abs(low), abs(high))))
    if high - low < max(_LEAST_SPACINGS * spacing, _LEAST_WIDTH):
        raise DataError(
            f"{source}: most of column {name!r} lies between {float(low)!r} and {float(high)!r}, where double "
            f"precision has steps of {spacing:g}: its values cannot be told apart well enough; take an offset off it "
            "or rescale it before it is written, or leave it out with data.columns"
        )


def atoms_report(
    atoms: Mapping[str, Mapping[float, int]],
    grids: Mapping[str, Grid],
    types: Mapping[str, ColumnType],
    num_rows: int,
    kind: str,
) -> dict[str, Any]:
    """What a report says of values that repeat: whether the transform holds them, and each value's rows and share."""
    return {
        name: {
            "held": kind == "quantile" or name in grids,
            "values": [
                {"value": types[name].shown(value), "count": rows, "share": rows / num_rows}
                for value, rows in counts.items()
            ],
        }
        for name, counts in atoms.items()
    }


def num_duplicates(rows: _Array) -> int:
    """How many rows are equal to an earlier one.

    Example:
        >>> num_duplicates(np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]]))
        1
    """
    alive = np.arange(len(rows))
    groups = np.zeros(len(rows), dtype=np.int64)
    num_groups = 1
    for column in range(rows.shape[1]):
        if not len(alive):
            return 0
        distinct, codes = np.unique(rows[alive, column], return_inverse=True)
        _, groups, counts = np.unique(groups * len(distinct) + codes, return_inverse=True, return_counts=True)
        is_shared = counts > 1
        kept = is_shared[groups]
        groups = (np.cumsum(is_shared) - 1)[groups[kept]]
        alive, num_groups = alive[kept], int(is_shared.sum())
    return len(alive) - num_groups
