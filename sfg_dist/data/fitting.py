"""Fits the map of one column to its training rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.bounds import FREE, Bounds, Range, ends_of, range_of
from sfg_dist.data.coding import Coding
from sfg_dist.data.column_type import FLOAT, ColumnType
from sfg_dist.data.discrete_curves import atoms_curve, with_missing
from sfg_dist.data.grid import Grid, float32_spacing
from sfg_dist.data.quantile import Curve, fit_curve
from sfg_dist.data.tails import fit_tails
from sfg_dist.job.errors import DataError

KINDS = ("quantile", "standardize", "none")
"""Of transforms."""

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
    # of a category column, its codes in the order of their places, a missing value as NaN among them
    order: _Array | None = None
    # in a column of numbers: 1 or -1 where missing values are kept, beyond the upper or the lower end
    missing: int = 0


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
    tails: _Array = field(default_factory=lambda: np.zeros((2, 2)))
    coding: Coding = field(default_factory=Coding)


def fit_column(facts: ColumnFacts, values: _Array, kind: str, bounds: Bounds, noise: _Array | None) -> ColumnMap:
    """Fit the map of a column to its training rows, contiguous and in the user's units, shape (num_rows,).

    They are finite, but NaN where missing values are kept. ``bounds`` are as for ``Transform.fit``. ``noise`` lies in
    [0, 1), shape (num_rows,); None puts every value at the middle of its cell.
    """
    if facts.constant is not None:
        return ColumnMap(facts)
    if facts.order is not None:
        return _fit_categories(facts, facts.order, values, kind, noise)
    if facts.missing:
        return _fit_with_missing(facts, values, kind, bounds, noise)
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
    edges = _cell_edges(grid.moved(origin), atoms, values) if grid and atoms is not None else None
    laws = fit_tails(values, curve, edges)
    return ColumnMap(facts, cell_range, origin, ends_of(curve, ends), curve=curve, tails=laws)


def _cell_edges(grid: Grid, atoms: _Array, values: _Array) -> _Array:
    """Both edges of the cells of ``atoms`` that some of the values lie in, shape (2 * num_atoms,)."""
    present = atoms[np.isin(atoms, grid.cells(values))]
    return np.concatenate([grid.offset + (present + side) * grid.step for side in (0, 1)])


def _fit_categories(facts: ColumnFacts, order: _Array, values: _Array, kind: str, noise: _Array | None) -> ColumnMap:
    """The map of a category column: an interval of scores for each, or the places of all as a grid."""
    is_gap = np.isnan(order)
    codes = order[~is_gap].astype(np.intp)
    places = np.empty(len(codes))
    places[codes] = np.flatnonzero(~is_gap)
    coding = Coding(places, float(np.argmax(is_gap)) if is_gap.any() else np.nan)
    found = coding.encode(values, facts.name)
    cells = (0.0, float(len(order) - 1))
    if kind == "quantile":
        counts = np.bincount(found.astype(np.intp), minlength=len(order))
        return ColumnMap(facts, bounds=cells, curve=atoms_curve(counts), coding=coding)
    grid = Grid(1.0, 0.0)
    on_grid = replace(facts, grid=grid)
    if kind == "none":
        return ColumnMap(on_grid, cells, coding=coding)
    spread = grid.spread(found, noise, 0.0)
    return ColumnMap(
        on_grid, cells, location=float(spread.mean()), scale=max(float(spread.std()), 1e-100), coding=coding
    )


def _fit_with_missing(facts: ColumnFacts, values: _Array, kind: str, bounds: Bounds, noise: _Array | None) -> ColumnMap:
    """The map of a column of numbers with missing values, from the map of the others."""
    is_gap = np.isnan(values)
    present, num_missing = np.ascontiguousarray(values[~is_gap]), int(is_gap.sum())
    if not len(present):
        raise DataError(f"column {facts.name!r} has no value in the training rows: leave it out with data.columns")
    side, low, high = facts.missing, float(present.min()), float(present.max())
    if low == high:  # one value, and missing ones
        apart = max(abs(low) / 8, 1.0)
        gap = low + side * apart
        counts = np.array([num_missing, len(present)][::-side])
        ends = (min(low, gap), max(low, gap))
        knots = np.concatenate([[ends[0] - apart], np.repeat(ends, 2), [ends[1] + apart]])
        curve = Curve(knots, atoms_curve(counts).scores) if kind == "quantile" else None
        location, scale = (0.0, 1.0) if kind != "standardize" else (low, apart)
        plain = replace(facts, grid=None)
        return ColumnMap(plain, (0.0, 0.0), 0.0, ends, location, scale, curve, coding=Coding(None, gap, low))
    inner = None if noise is None else noise[~is_gap]
    base = fit_column(replace(facts, missing=0), present, kind, bounds, inner)
    if base.curve is not None:
        curve, gap, end = with_missing(base.curve, len(values), num_missing, is_above=side > 0)
        ends = (gap, base.bounds[1]) if side < 0 else (base.bounds[0], gap)
        return replace(base, facts=facts, bounds=ends, curve=curve, coding=Coding(None, gap, end))
    end = (low if side < 0 else high + (facts.grid.step if facts.grid else 0.0)) - base.origin
    gap = end + side * max((high - low) / 8, 2 * facts.grid.step if facts.grid else 0.0)
    ends = FREE if base.bounds == FREE else (gap, base.bounds[1]) if side < 0 else (base.bounds[0], gap)
    scale = base.scale
    if kind == "standardize":
        scale = max(scale, abs(gap - base.location) / 8)
    return replace(base, facts=facts, bounds=ends, scale=scale, coding=Coding(None, gap, end))


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
