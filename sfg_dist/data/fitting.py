"""Fits the map of one column to its training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.bounds import FREE, Bounds, Range, ends_of, range_of
from sfg_dist.data.column_type import FLOAT, ColumnType
from sfg_dist.data.grid import Grid, float32_spacing
from sfg_dist.data.quantile import Curve, fit_curve
from sfg_dist.job.errors import DataError

_FAR = 2.0**20  # a grid this many times its range away from 0 is mapped from its own offset
_LEAST_SPACINGS = 32.0  # a column that is mapped as it stands spans at least so many steps of float32

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ColumnFacts:
    """What is known of a column before its map is fitted."""

    name: str
    type: ColumnType = FLOAT
    constant: float | None = None  # the value of a column that the flow does not see
    grid: Grid | None = None  # the grid to dequantize by
    # smallest and largest value that samples of a column with a grid take; default: of the training rows
    limits: Range | None = None
    # values to give back exactly ("quantile"). On a grid, nothing is drawn between them and their neighbours.
    atoms: _Array | None = None


@dataclass(frozen=True, eq=False)
class ColumnMap:
    """The fitted map of a column. Its numbers are entries of the arrays of ``Transform``."""

    facts: ColumnFacts
    cell_range: Range = (0.0, 0.0)
    origin: float = 0.0
    bounds: Range = FREE
    location: float = 0.0
    scale: float = 1.0
    curve: Curve | None = None


def fit_column(facts: ColumnFacts, values: _Array, kind: str, bounds: Bounds, noise: _Array | None) -> ColumnMap:
    """Fit the map of a column to its training rows, contiguous, finite and in the user's units, shape (num_rows,).

    ``bounds`` are as for ``Transform.fit``. ``noise`` lies in [0, 1), shape (num_rows,); None puts every value at the
    middle of its cell.
    """
    if facts.constant is not None:
        return ColumnMap(facts)
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise DataError(f"column {facts.name!r} is constant ({low}): name it in constants")
    grid, cell_range, origin, ends = facts.grid, (0.0, 0.0), 0.0, FREE
    if grid:
        given = None if isinstance(bounds, str) else bounds.get(facts.name)
        cells = grid.cells_within(given) if given else grid.cells_between(facts.limits or (low, high))
        cell_range = (float(cells[0]), float(cells[1]))
        is_far = abs(grid.offset) > _FAR * (high - low)
        is_coarse = kind == "none" and _float32_step(low, high) > grid.step / 4
        origin = grid.offset if is_far or is_coarse else 0.0
        values = grid.spread(values, noise, origin)
    else:
        ends = range_of(facts.name, values, bounds)
        if kind == "none":
            _check_float32(facts.name, low, high)
    if kind == "standardize":
        scale = max(float(values.std()), 1e-100)
        return ColumnMap(facts, cell_range, origin, ends, float(values.mean()), scale)
    if kind == "none":
        return ColumnMap(facts, cell_range, origin, ends)
    atoms = grid.coordinates(facts.atoms) if grid and facts.atoms is not None else facts.atoms
    curve = fit_curve(values, grid and grid.moved(origin), atoms)
    return ColumnMap(facts, cell_range, origin, ends_of(curve, ends), curve=curve)


def _float32_step(low: float, high: float) -> float:
    return float(float32_spacing(np.array([max(abs(low), abs(high))]))[0])


def _check_float32(name: str, low: float, high: float) -> None:
    """Refuse to map a column as it stands where float32 makes most of its values one."""
    spacing = _float32_step(low, high)
    if high - low < _LEAST_SPACINGS * spacing < np.inf:
        raise DataError(
            f"column {name!r} lies between {low!r} and {high!r}, where float32 has "
            f'steps of {spacing:g}: transform.kind = "none" would lose it; use "quantile" or "standardize"'
        )
