"""Columns measured in steps: finding the step, and moving between values and the cells of the grid.

A grid is ``offset + k * step`` for whole k. Cell k is [offset + k step, offset + (k + 1) step):
dequantization spreads the value at its lower edge over it. Values that a file stored as float32 miss their
decimals by half a unit in the last place of float32; within that they count as on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

_MAX_DECIMALS = 8  # for columns that reach 1 or more; smaller ones get as many digits again as they start behind
_MAX_CHANCE_LOG = -20.0  # log of the chance, at most, that numbers off any grid pass as being on it


@dataclass(frozen=True)
class Grid:
    """``offset + k * step``, in the column's units; step > 0."""

    step: float
    offset: float

    def values(self, cells: _Array) -> _Array:
        """The values of cells, each the double nearest to its decimal number.

        Example:
            >>> Grid(step=0.1, offset=0.0).values(np.array([3.0])).item()
            0.3
        """
        values = self.offset + cells * self.step
        decimals = self.num_decimals
        # beyond 2^52 units of the last decimal, values hold no more than that anyway
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
        """The same values with those that miss the grid by rounding alone put on it."""
        places = self.coordinates(values)
        return np.where(places == np.floor(places), self.values(np.floor(places)), values)

    def _tolerance(self, values: _Array) -> _Array:
        rounding = 0.51 * _float32_spacing(values) / self.step
        limited: _Array = np.minimum(1e-6 + rounding, 0.25)
        return limited


def find_grid(values: _Array) -> Grid | None:
    """The grid that all values of a column lie on: a decimal step, the largest one that fits.

    The fewest decimals are sought at which every value is whole up to rounding (of float32 if the column
    holds nothing finer), and at which that is not chance; the step is the greatest common divisor of the
    differences.

    Args:
        values: a column, finite, shape (num_rows,).

    Returns:
        The grid with its offset at the smallest value; None if there is none.

    Example:
        >>> find_grid(np.array([0.1, 0.3, 0.7]))
        Grid(step=0.2, offset=0.1)
    """
    distinct = np.unique(values)
    largest = np.abs(distinct).max()
    if len(distinct) < 2 or not 1e-9 <= largest < 1e15:
        return None
    exact = np.full(len(distinct), 4 * np.spacing(largest))
    grid = _decimal_grid(distinct, exact)
    if not _is_float32(distinct):
        return grid
    spacing = _float32_spacing(distinct)
    if grid and grid.step >= 4 * spacing.max():
        return grid  # else its step is only how coarse float32 is out there
    return _decimal_grid(distinct, exact + 0.51 * spacing)


def _decimal_grid(distinct: _Array, rounding: _Array) -> Grid | None:
    """The grid of distinct values that are off by at most ``rounding`` each."""
    largest = np.abs(distinct).max()
    for decimals in range(_MAX_DECIMALS + 1 + max(0, -int(np.floor(np.log10(largest))))):
        scaled, tolerance = distinct * 10.0**decimals, rounding * 10.0**decimals
        if np.abs(scaled).max() >= 2**52 or tolerance.max() >= 0.25:
            return None
        whole = np.rint(scaled)
        chance_log = np.log(2 * tolerance).sum()
        if chance_log < _MAX_CHANCE_LOG and np.all(np.abs(scaled - whole) <= tolerance):
            divisor = int(np.gcd.reduce((whole - whole[0]).astype(np.int64)))
            scale = 10.0**decimals
            return Grid(divisor / scale, float(whole[0]) / scale) if divisor else None
    return None


def grid_of_step(values: _Array, step: float) -> Grid:
    """The grid of a given step that most of the values lie on, starting at or below the smallest one.

    Args:
        values: a column, finite, shape (num_rows,).
        step: distance of neighbours, > 0.

    Example:
        >>> grid_of_step(np.array([0.28, 2.0, 3.0, 7.0]), 1.0)
        Grid(step=1.0, offset=0.0)
    """
    phases = np.round(values / step % 1, 3) % 1
    found, first, counts = np.unique(phases, return_index=True, return_counts=True)
    most = int(np.argmax(counts))
    anchor = 0.0
    if found[most] != 0:
        anchor = float(values[first[most]])
        anchor = float(str(np.float32(anchor))) if _is_float32(values) else anchor
    lowest = np.floor(Grid(step, anchor).coordinates(values).min())
    return Grid(step, float(Grid(step, anchor).values(np.asarray(lowest))))


def tied_share(values: _Array) -> float:
    """The share of rows whose value another row has too.

    Example:
        >>> tied_share(np.array([1.0, 1.0, 2.0, 3.0]))
        0.5
    """
    counts = np.unique(values, return_counts=True)[1]
    return float(counts[counts > 1].sum() / len(values))


def _decimals(value: float) -> int:
    exponent = Decimal(repr(float(value))).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _is_float32(values: _Array) -> bool:
    """Whether the values hold no more than float32 does."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float32).astype(np.float64), values))


def _float32_spacing(values: _Array) -> _Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.nan_to_num(np.spacing(np.abs(values).astype(np.float32)), nan=np.inf).astype(np.float64)
