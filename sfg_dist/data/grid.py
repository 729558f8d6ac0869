"""Columns measured in steps: finds the step, and moves between values and the cells of the grid.

A grid is ``offset + k * step`` for whole k. Cell k is [offset + k step, offset + (k + 1) step). Dequantization spreads
the value at its lower edge over the cell. Values that a file stored as float32 miss their decimals by half a unit in
the last place of float32; within that they count as on the grid. Whole numbers up to 2^53, and decimals that are stored
as the nearest double up to 2^50 units of the last one, are found by exact integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

_MAX_DECIMALS = 8  # of columns that reach 1 or more; smaller columns get the zeros behind their point in addition
_MAX_WHOLE = 2.0**53
_MAX_UNITS = 2.0**50  # of the last decimal: beyond, a product with a step that is no power of two misses its cell
_MAX_CHANCE_LOG = -20.0  # log of the largest chance that numbers off any grid pass as being on it
_FINE = 2.0**31  # with more cells, a cell and its noise together are rounded noticeably
_NUM_FEW = 1024
_EDGE = 2.0**-20  # the noise keeps off the ends of its cell


@dataclass(frozen=True)
class Grid:
    """``offset + k * step``, in the column's units; step > 0."""

    step: float
    offset: float

    def values(self, cells: _Array) -> _Array:
        """The values of cells, each the double nearest to its decimal number.

        Examples:
            >>> Grid(step=0.1, offset=0.0).values(np.array([3.0])).item()
            0.3
        """
        values = self.offset + cells * self.step
        decimals = self.num_decimals
        # values beyond 2^52 units of the last decimal have no further decimals
        is_exact = np.abs(values) < 2.0**52 / 10.0 ** min(decimals, 300)
        return np.where(is_exact, np.round(values, min(decimals, 22)), values)

    @property
    def num_decimals(self) -> int:
        """Decimals of the values' numbers."""
        return max(_decimals(self.step), _decimals(self.offset))

    def coordinates(self, values: _Array) -> _Array:
        """Places of values in steps from the offset; whole where they are on the grid up to rounding."""
        places = (values - self.offset) / self.step
        whole = np.rint(places)
        return np.where(np.abs(places - whole) <= self._tolerance(values), whole, places)

    def snap(self, values: _Array) -> _Array:
        """The same values, with those put on the grid that miss it by rounding alone."""
        places = self.coordinates(values)
        return np.where(places == np.floor(places), self.values(np.floor(places)), values)

    def moved(self, origin: float) -> Grid:
        """The grid as it is when ``origin`` is taken off all values."""
        return Grid(self.step, self.offset - origin)

    def cells(self, values: _Array) -> _Array:
        """The cell that each value lies in."""
        cells: _Array = np.floor((values - self.offset) / self.step)
        return cells

    def cells_between(self, values: Sequence[float]) -> _Array:
        """The cells of the smallest and the largest value of a column."""
        return np.floor(self.coordinates(np.array(values)))

    def cells_within(self, ends: Sequence[float | str]) -> _Array:
        """First and last cell of a range; an open end stays open."""
        with np.errstate(invalid="ignore"):  # an open end is infinite
            low, high = self.coordinates(np.array(ends, dtype=np.float64))
        return np.array([np.ceil(low), np.floor(high)])

    def spread(self, values: _Array, noise: _Array | None, origin: float) -> _Array:
        """Values, shape (num_rows,), spread over their cells, with ``origin`` taken off.

        ``noise`` is the place of each within its cell, in [0, 1), shape (num_rows,); None stands for the middle.
        """
        added: Any = 0.5 if noise is None else noise.clip(_EDGE, 1 - _EDGE)
        inner, places = self.moved(origin), self.coordinates(values)
        spread: _Array = inner.offset + (places + added) * inner.step
        if max(abs(inner.offset) / inner.step, np.abs(places).max(initial=0.0)) > _FINE:
            for place in (0.0, 0.5):  # the edge itself may be rounded into the next cell
                is_next = (places == np.floor(places)) & (inner.cells(spread) != places)
                spread[is_next] = inner.offset + (places[is_next] + place) * inner.step
        return spread

    def _tolerance(self, values: _Array) -> _Array:
        rounding = 0.51 * float32_spacing(values) / self.step
        limited: _Array = np.minimum(1e-6 + rounding, 0.25)
        return limited


def find_grid(distinct: _Array) -> Grid | None:
    """The grid that the distinct values of a column, ascending, lie on; None if there is none.

    It has the largest decimal step that fits.

    The fewest decimals are sought at which every value is whole up to rounding (of float32 if the column holds nothing
    finer), and at which that is not chance. The step is the greatest common divisor of the differences, and the offset
    is the smallest value.

    Examples:
        >>> find_grid(np.array([0.1, 0.3, 0.7]))
        Grid(step=0.2, offset=0.1)
    """
    largest = np.abs(distinct).max()
    if len(distinct) < 2 or not 1e-9 <= largest < _MAX_WHOLE:
        return None
    return _rounded_grid(distinct, largest) or _exact_grid(distinct)


def find_whole(distinct: _Array) -> Grid | None:
    """The grid of a column of distinct values, ascending, that are all whole numbers below 2^53.

    Beyond 2^23 every value that float32 holds is whole. From 2^24 on, where its neighbours are further than one apart,
    the smaller values must show that the column has whole numbers.

    Examples:
        >>> find_whole(np.array([3.0, 10.0, 24.0]))
        Grid(step=7.0, offset=3.0)
    """
    if len(distinct) < 2 or max(-distinct[0], distinct[-1]) >= _MAX_WHOLE or np.any(distinct != np.rint(distinct)):
        return None
    certain = max(-distinct[0], distinct[-1]) < 2.0**24 or not is_float32(distinct)
    return _grid_of_whole(distinct, 1.0, distinct, certain=certain)


def grid_of_type(distinct: _Array, unit: float) -> Grid | None:
    """The grid with the largest step of distinct values, ascending, that are multiples of ``unit`` by their type.

    ``unit`` is positive; below 1 it is the reciprocal of a whole number. None where a value is no multiple, or there
    are fewer than two.

    Examples:
        >>> grid_of_type(np.array([60.0, 180.0, 600.0]), 1.0)
        Grid(step=60.0, offset=60.0)
    """
    per_unit = round(1 / unit) if unit < 1 else 1.0
    whole = np.rint(distinct * per_unit) if unit < 1 else np.rint(distinct / unit)
    is_held = np.abs(whole).max() < _MAX_WHOLE
    again = whole / per_unit if unit < 1 else whole * unit
    if len(distinct) < 2 or not is_held or np.any(again != distinct):
        return None
    if unit < 1:
        return _grid_of_whole(whole, per_unit, distinct, certain=True)
    divisor = int(np.gcd.reduce(np.diff(whole.astype(np.int64))))
    return Grid(divisor * unit, float(distinct[0]))


def _rounded_grid(distinct: _Array, largest: float) -> Grid | None:
    """The grid of values that are off by some units in the last place, of float32 if they hold nothing finer."""
    few = _few(distinct)
    loosest = 4 * np.spacing(largest) + (0.51 * float32_spacing(few) if is_float32(few) else np.zeros(len(few)))
    if not any(_fits(few, loosest, decimals) for decimals in _decimals_within(largest, loosest.max())):
        return None  # as on most columns, at a small share of the time
    exact = np.full(len(distinct), 4 * np.spacing(largest))
    grid = _decimal_grid(distinct, exact)
    if not is_float32(distinct):
        return grid
    spacing = float32_spacing(distinct)
    if grid and grid.step >= 4 * spacing.max():
        return grid  # else the step may only be float32's own at these values
    return _decimal_grid(distinct, exact + 0.51 * spacing)


def _exact_grid(distinct: _Array) -> Grid | None:
    """The grid of values that are the doubles nearest to their decimals."""
    if grid := find_whole(distinct):
        return grid
    largest, few = np.abs(distinct).max(), _few(distinct)
    for decimals in range(1, _MAX_DECIMALS + 1):
        scale = 10.0**decimals
        if np.rint(largest * scale) >= _MAX_UNITS:
            return None
        if not np.array_equal(np.rint(few * scale) / scale, few):
            continue
        whole = np.rint(distinct * scale)
        if np.array_equal(whole / scale, distinct):
            return _grid_of_whole(whole, scale, distinct, certain=False)
    return None


def _grid_of_whole(whole: _Array, scale: float, distinct: _Array, *, certain: bool) -> Grid | None:
    """The grid of ``whole / scale``, unless that is chance among the numbers that the column's floats can hold."""
    divisor = int(np.gcd.reduce(np.diff(whole.astype(np.int64))))
    step = divisor / scale
    spacing = float32_spacing(distinct) if is_float32(distinct) else np.spacing(np.abs(distinct))
    if not certain and np.log(np.clip(spacing / step, 1e-300, 1.0)).sum() >= _MAX_CHANCE_LOG:
        return None
    return Grid(step, float(whole[0]) / scale)


def _decimal_grid(distinct: _Array, rounding: _Array) -> Grid | None:
    """The grid of distinct values that are off by at most ``rounding`` each."""
    largest, coarsest = np.abs(distinct).max(), rounding.max()
    few, few_rounding = _few(distinct), _few(rounding)
    for decimals in _decimals_within(largest, coarsest):
        if not _fits(few, few_rounding, decimals):
            continue
        scaled, tolerance = distinct * 10.0**decimals, rounding * 10.0**decimals
        whole = np.rint(scaled)
        chance_log = np.log(2 * tolerance).sum()
        if chance_log < _MAX_CHANCE_LOG and np.all(np.abs(scaled - whole) <= tolerance):
            divisor = int(np.gcd.reduce((whole - whole[0]).astype(np.int64)))
            scale = 10.0**decimals
            return Grid(divisor / scale, float(whole[0]) / scale) if divisor else None
    return None


def _decimals_within(largest: float, coarsest: float) -> Iterator[int]:
    """How many decimals values may have, of which the largest and the coarsest rounding are given."""
    for decimals in range(_MAX_DECIMALS + 1 + max(0, -int(np.floor(np.log10(largest))))):
        if largest * 10.0**decimals >= (_MAX_UNITS if decimals else 2**52) or coarsest * 10.0**decimals >= 0.25:
            return
        yield decimals


def _fits(values: _Array, rounding: _Array, decimals: int) -> bool:
    """Whether values have so many decimals, up to their rounding."""
    scaled = values * 10.0**decimals
    return bool(np.all(np.abs(scaled - np.rint(scaled)) <= rounding * 10.0**decimals))


def _few(values: _Array) -> _Array:
    """Some of a column's values, all over it: on most columns they show at once that a grid does not fit."""
    return values[:: max(1, len(values) // _NUM_FEW)]


def grid_of_step(values: _Array, step: float) -> Grid:
    """The grid of a given step that most of the values lie on; it starts at or below the smallest one.

    Examples:
        >>> grid_of_step(np.array([0.28, 2.0, 3.0, 7.0]), 1.0)
        Grid(step=1.0, offset=0.0)
    """
    phases = np.round(values / step % 1, 3) % 1
    found, first, counts = np.unique(phases, return_index=True, return_counts=True)
    most = int(np.argmax(counts))
    anchor = 0.0
    if found[most] != 0:
        anchor = float(values[first[most]])
        anchor = float(str(np.float32(anchor))) if is_float32(values) else anchor
    lowest = np.floor(Grid(step, anchor).coordinates(values).min())
    return Grid(step, float(Grid(step, anchor).values(np.asarray(lowest))))


def share_of_ties(counts: NDArray[np.intp]) -> float:
    """The share of rows whose value another row has too, from the rows that each value has."""
    return float(counts[counts > 1].sum() / counts.sum())


def _decimals(value: float) -> int:
    exponent = Decimal(repr(float(value))).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def is_float32(values: _Array) -> bool:
    """Whether the values hold no more than float32 does."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float32).astype(np.float64), values))


def float32_spacing(values: _Array) -> _Array:
    """How far float32's neighbours are apart at values; infinity beyond its range."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.nan_to_num(np.spacing(np.abs(values).astype(np.float32)), nan=np.inf).astype(np.float64)
