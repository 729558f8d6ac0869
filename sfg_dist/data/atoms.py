"""Values that repeat beside a continuum: zeros of rain, clips at the ends, a sentinel, a default.

A value is such an atom if it holds more rows than ties by chance would give it. The neighbours say what chance gives,
because whatever makes ties there (float32, few digits, rows read twice) makes as many here: the rows of a value after
its first one are taken for Poisson with the mean of the values beside it (256 on each side, the larger mean, and half
a row more than was seen). An atom must hold four times as many, since a law is not flat. Where at most 1000 values
that all repeat are the whole column, or nine tenths of its rows, they are atoms, unless float32 has no finer ones.

On a grid every value is exact anyway. There an atom is a sentinel: a value at an end of the column that repeats, with
a gap beside it ten times the largest gap among the others. Nothing is drawn in that gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported when they are first used
from numpy.typing import NDArray

from sfg_dist.data.grid import float32_spacing, is_float32

_Array = NDArray[np.float64]
_Float32s = NDArray[np.float32]

MAX_ATOMS = 1000
_NUM_NEIGHBOURS, _LEAST_NEIGHBOURS = 256, 32
_FALSE_ALARMS = 1e-4  # expected in a column without atoms
_PRIOR_ROWS, _PROMINENCE = 0.5, 4.0
_LEAST_COUNT = 3
_LEAST_HEAVY = 4  # rows of a value in a column of repeated values; rows drawn with replacement repeat less often
_MOST_ROWS = 0.9
_LEAST_SPACINGS = 16.0
_LEAST_SENTINELS, _SENTINEL_GAP = 5, 10.0
_EDGE = 2.0**-20  # as for cells of a grid: the noise keeps off the ends


@dataclass(frozen=True, eq=False)
class Atoms:
    """The atoms of a column with their intervals of normal scores, ascending, each array of shape (num_atoms,)."""

    values: _Array  # in the column's units
    low: _Array  # score at which each interval begins, minus infinity for an atom at the lower end
    high: _Array  # score at which it ends, infinity for an atom at the upper end

    def __len__(self) -> int:
        return len(self.values)

    def shares(self) -> _Array:
        """The probability of each atom."""
        upper = self.low > 0  # there both probabilities are near 1, and the other tail has more digits
        ndtr = scipy.special.ndtr
        return np.where(upper, ndtr(-self.low) - ndtr(-self.high), ndtr(self.high) - ndtr(self.low))

    def find(self, values: _Array) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Which values are atoms, and which atom each of those is."""
        places = np.searchsorted(self.values, values).clip(0, len(self.values) - 1)
        is_atom = self.values[places] == values
        return is_atom, places[is_atom]

    def scores(self, which: NDArray[np.intp], noise: _Array | float) -> _Array:
        """Scores of atoms: for noise uniform in [0, 1) they are uniform in probability over the atom's interval."""
        low, high = self.low[which], self.high[which]
        share = np.clip(noise, _EDGE, 1 - _EDGE)
        ndtr, ndtri = scipy.special.ndtr, scipy.special.ndtri
        lower = ndtri(ndtr(low) + share * (ndtr(high) - ndtr(low)))
        upper = -ndtri(ndtr(-low) + share * (ndtr(-high) - ndtr(-low)))
        return np.where(low > 0, upper, lower)

    def hold(self, values: _Array, scores: _Float32s) -> _Float32s:
        """Scores of values, held on their own side of each interval's ends where float32 would round them across."""
        ends = np.stack([self.low, self.high], axis=1).ravel()
        above = _next_float32(ends)
        lowest = np.concatenate([[-np.inf], above]).astype(np.float32)
        highest = np.concatenate([np.nextafter(above, np.float32(-np.inf)), [np.inf]]).astype(np.float32)
        highest[np.isposinf(np.append(ends, 0.0))] = np.inf
        if np.isneginf(ends[0]):  # no value lies below an atom at the lower end
            highest[0] = highest[1]
        cells = np.searchsorted(self.values, values, side="left") + np.searchsorted(self.values, values, side="right")
        if np.isposinf(ends[-1]):
            lowest[-1] = lowest[-2]
        return np.clip(scores, lowest[cells], highest[cells])


def find_atoms(distinct: _Array, counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """The places of the atoms of a column that has no grid, from its values, ascending, and the rows of each.

    Examples:
        >>> values = np.append(np.random.default_rng(0).random(90), np.full(10, 0.5))
        >>> distinct, counts = np.unique(values, return_counts=True)
        >>> distinct[find_atoms(distinct, counts)]
        array([0.5])
    """
    num_distinct = len(distinct)
    is_atom = np.zeros(num_distinct, dtype=bool)
    candidates = np.flatnonzero(counts >= _LEAST_COUNT)
    while len(candidates):
        expected = _expected(counts, is_atom, candidates)
        further = counts[candidates] - 1
        is_rare = scipy.special.pdtrc(further - 1, expected) * num_distinct < _FALSE_ALARMS
        found = candidates[is_rare & (further > _PROMINENCE * expected)]
        if not len(found):
            break
        is_atom[found] = True
        candidates = np.setdiff1d(candidates, found, assume_unique=True)
    is_atom |= _alone(distinct, counts)
    atoms = np.flatnonzero(is_atom)
    heaviest = np.argsort(-counts[atoms], kind="stable")[:MAX_ATOMS]
    return np.sort(atoms[heaviest])


def find_sentinels(distinct: _Array, counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """The places of the sentinels of a column on a grid, from its values, ascending, and the rows of each.

    Examples:
        >>> find_sentinels(np.array([-999.0, 0.0, 1.0, 2.0, 3.0]), np.array([50, 9, 9, 9, 9]))
        array([0])
    """
    gaps = np.diff(distinct)
    first, last = 0, len(distinct) - 1
    while last - first > 2:
        reach = _SENTINEL_GAP * gaps[first + 1 : last - 1].max()
        is_first = counts[first] >= _LEAST_SENTINELS and gaps[first] > reach
        is_last = counts[last] >= _LEAST_SENTINELS and gaps[last - 1] > reach
        if not (is_first or is_last):
            break
        first, last = first + is_first, last - is_last
    return np.concatenate([np.arange(first), np.arange(last + 1, len(distinct))])


def _expected(counts: NDArray[np.intp], is_atom: NDArray[np.bool_], candidates: NDArray[np.intp]) -> _Array:
    """Rows after the first one that each candidate would hold if it were like its neighbours that are no atoms."""
    others = np.flatnonzero(~is_atom)
    further = np.concatenate([[0], np.cumsum(counts[others] - 1)])
    places = np.searchsorted(others, candidates)
    first = np.maximum(places - _NUM_NEIGHBOURS, 0)
    last = np.minimum(places + 1 + _NUM_NEIGHBOURS, len(others))
    num_below, num_above = places - first, last - places - 1
    below = further[places] - further[first]
    above = further[last] - further[places + 1]
    together = (below + above + _PRIOR_ROWS) / np.maximum(num_below + num_above, 1)
    sides = [
        np.where(number >= _LEAST_NEIGHBOURS, (rows + _PRIOR_ROWS) / np.maximum(number, 1), 0.0)
        for rows, number in ((below, num_below), (above, num_above))
    ]
    expected: _Array = np.maximum(np.maximum(*sides), together)
    return expected


def _alone(distinct: _Array, counts: NDArray[np.intp]) -> NDArray[np.bool_]:
    """The values that repeat, where the column has little else: no continuum has so few values for so many rows."""
    if len(distinct) == 2:
        return np.ones(2, dtype=bool)
    is_heavy = counts >= _LEAST_HEAVY
    are_few = is_heavy.sum() <= MAX_ATOMS and counts[is_heavy].sum() >= _MOST_ROWS * counts.sum()
    return is_heavy if are_few and _are_apart(distinct[is_heavy]) else np.zeros_like(is_heavy)


def _are_apart(distinct: _Array) -> bool:
    """Whether values are further apart than float32's neighbours; true if float32 does not hold them."""
    if len(distinct) < 2 or not is_float32(distinct):
        return True
    gaps = np.diff(distinct)
    return float(np.median(gaps / float32_spacing(distinct[1:]))) >= _LEAST_SPACINGS


def _next_float32(numbers: _Array) -> _Float32s:
    """The smallest float32 that is not below each number."""
    near = numbers.astype(np.float32)
    return np.where(near.astype(np.float64) < numbers, np.nextafter(near, np.float32(np.inf)), near)
