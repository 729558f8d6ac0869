"""A column to a standard normal through its training quantiles: a strictly increasing piecewise-linear curve.

    z = Phi^-1(F(x)),    F the distribution function of the training rows

F is read at knots: at most 800 equally spaced probabilities, half as many equally spaced normal scores (they resolve
the tails), and around every value that holds a share of the rows above 1/500. Few rows get few knots, since a curve
through every row would fit its noise: of 20, 50, 100 and 200 rows to a probability, the number by which the curve of
each half of the values gives the other half the highest likelihood. Equal rows are one value, and the halves do not
depend on the order of the rows.

- Tied values are one knot at their mid-rank score.
- A column on a grid is spread evenly over its cells. Cells with many rows have knots at their two edges, and F is
  exact there whatever noise was drawn. Cells without rows between two such cells get a sliver of the scores.
- Beyond both ends the curve goes on straight. Its slope dx/dz is that of the last interval, limited to between 0.1 and
  1 times the middle slope, (x at z = 1.28 - x at z = -1.28) / 2.56. So an outlier does not throw samples beyond itself.
  Where a law was fitted to an end (``tails``), it takes the straight line's place.
- An atom, a value that repeats beside a continuum, is two knots of one value. All of the scores between them, with
  exactly its share, give it back. The rows between two atoms have a curve of their own. It ends as far from its last
  row as its eighth one lies, or at the atom if that is nearer: nothing lies between a sentinel and the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy  # its parts are imported when they are first used
from numpy.typing import NDArray

from sfg_dist.data.atoms import Atoms
from sfg_dist.data.end_to_end import cut
from sfg_dist.data.grid import Grid
from sfg_dist.job.errors import DataError

_Array = NDArray[np.float64]

_NUM_PROBABILITIES, _NUM_SCORES, _LEAST_KNOTS = 800, 400, 10
_SPACINGS = (20, 50, 100, 200)  # rows to a probability
_HEAVY_SHARE, _HEAVY_COUNT = 1 / 500, 8
_END_LEVEL = 0.25  # rows: the outer edges of the first and last cell lie this far inside ranks 0 and 1
_MIDDLE_SCORE = 1.28
MIN_GAP = 2.0**-36  # closer knots, relative to their size, are merged: x could not hold what z tells apart
_FAR = 2.0**20  # so many times its spread away from 0, a column has its gaps measured from its median
_EDGE_ROWS = 8
_LEAST_RISE = 1e-12
_EMPTY_CELL_SCORE = 1e-6  # score given to an empty cell, from 1e-5 to 1e-3 a gap: float32 can still tell them apart


@dataclass(frozen=True, eq=False)
class Curve:
    """The knots of an increasing curve; the outermost two only carry the slope of the continuation."""

    values: _Array  # in the column's units, increasing, an atom twice, shape (num_knots,)
    scores: _Array  # normal scores, increasing, twice the same where no row lies between two values, shape (num_knots,)

    @cached_property
    def atoms(self) -> Atoms:
        """The values that repeat; none where the curve is strictly increasing."""
        first = np.flatnonzero(self.values[1:] == self.values[:-1])
        low = np.where(first == 1, -np.inf, self.scores[first])
        high = np.where(first == len(self.values) - 3, np.inf, self.scores[first + 1])
        return Atoms(self.values[first], low, high)

    def to_scores(self, values: _Array) -> _Array:
        """Map values to normal scores, same shape; an atom to the upper end of its interval."""
        return _follow(values, self.values, self.scores)

    def to_values(self, scores: _Array) -> _Array:
        """Map normal scores to values, same shape."""
        return _follow(scores, self.scores, self.values)

    def log_slope(self, values: _Array) -> _Array:
        """log dz/dx at values that are no atoms, same shape."""
        piece = _piece(values, self.values)
        # the density between training rows may be as good as zero, but a row there has a likelihood
        rises = np.maximum(np.diff(self.scores), _LEAST_RISE)
        with np.errstate(divide="ignore"):
            slopes: _Array = np.log(rises) - np.log(np.diff(self.values))
        return slopes[piece]


def curves_to_arrays(curves: Sequence[Curve]) -> dict[str, NDArray[Any]]:
    """Curves end to end, for a file of named arrays."""
    return {
        "knot_counts": np.array([len(curve.values) for curve in curves], dtype=np.int64),
        "knot_values": np.concatenate([curve.values for curve in curves]),
        "knot_scores": np.concatenate([curve.scores for curve in curves]),
    }


def curves_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> tuple[Curve, ...]:
    """The curves that ``curves_to_arrays`` wrote.

    Raises:
        DataError: their arrays do not fit each other, or are no curves.
        KeyError: one is missing.
    """
    counts, values, scores = (np.array(arrays[f"knot_{name}"]) for name in ("counts", "values", "scores"))
    if counts.dtype.kind != "i" or values.dtype != np.float64 or scores.dtype != np.float64:
        raise DataError("the saved transform is damaged: its knots have other types than were saved")
    if not (counts.ndim == values.ndim == 1 and values.shape == scores.shape and (counts > 3).all()):
        raise DataError("the saved transform is damaged: its knots have no common shape")
    if not np.isfinite(values).all() or not np.isfinite(scores).all():
        raise DataError("the saved transform is damaged: knots are missing")
    curves = tuple(map(Curve, cut(values, counts, "knots"), cut(scores, counts, "knots")))
    if any((np.diff(knots) < 0).any() for curve in curves for knots in (curve.values, curve.scores)):
        raise DataError("the saved transform is damaged: knots that do not ascend")
    if any((np.diff(knots)[[0, -1]] <= 0).any() for curve in curves for knots in (curve.values, curve.scores)):
        raise DataError("the saved transform is damaged: a curve that ends at once")
    return curves


def fit_curve(values: _Array, grid: Grid | None, atoms: _Array | None = None) -> Curve:
    """Fit the curve of one column to its training values, not all equal, shape (num_rows,).

    With a grid the values are spread over its cells already. ``atoms`` are the values to give back exactly, or with a
    grid their cells. Those that no row has are left out.

    Examples:
        >>> curve = fit_curve(np.linspace(0.0, 1.0, 1001), None)
        >>> curve.to_scores(np.array([0.9])).round(1).item()
        1.3
    """
    num_rows = len(values)
    if grid is None and atoms is not None and len(atoms):
        return _fit_with_atoms(values, atoms)
    places, ranks, is_kept, lonely = _distribution(values, grid, atoms)
    free = values[np.isin(values, places[~is_kept])] if grid else values  # cells with many rows have their edges
    read = _levels(num_rows, choose_spacing(free, num_rows))
    levels = np.concatenate([read, ranks[is_kept], ranks[[0, -1]]])
    knots = np.concatenate([np.interp(read, ranks, places), places[is_kept], places[[0, -1]]])
    order = np.lexsort([levels, knots])
    is_edge = (np.arange(len(knots)) >= len(read)) & (np.arange(len(knots)) < len(knots) - 2) & (grid is not None)
    knots, levels, is_edge = knots[order], levels[order], is_edge[order]
    inside = (levels >= ranks[0]) & (levels <= ranks[-1])
    middle = _middle(places, ranks)
    most = grid.step / 4 if grid else np.inf
    knots, levels = _merge_close(knots[inside], levels[inside], middle, most, is_edge[inside])
    scores = _separate(knots, scipy.special.ndtri(levels), grid, lonely)
    return _continue(knots, scores, middle)


def _fit_with_atoms(values: _Array, wanted: _Array) -> Curve:
    num_rows = len(values)
    distinct, counts = np.unique(values + 0.0, return_counts=True)  # never a negative zero
    above = np.cumsum(counts)
    is_atom = np.isin(distinct, wanted)
    # a value alone between two atoms, or between one and the end, has no neighbour to say how far it reaches
    beside = np.concatenate([[True], is_atom, [True]])
    is_atom |= beside[:-2] & beside[2:]
    is_kept = counts >= max(_HEAVY_COUNT, num_rows * _HEAVY_SHARE)
    middle = _middle(distinct[~is_atom], (above - counts / 2)[~is_atom] / num_rows)
    read = _levels(num_rows, choose_spacing(values[~np.isin(values, distinct[is_atom])], num_rows))
    knots, levels = [], []
    starts = np.flatnonzero(np.diff(is_atom, prepend=not is_atom[0]))
    for start, stop in zip(starts, np.append(starts[1:], len(distinct)), strict=True):
        if is_atom[start]:
            knots.append(np.repeat(distinct[start:stop], 2))
            ends = np.stack([above[start:stop] - counts[start:stop], above[start:stop]], axis=1).ravel()
            levels.append(ends / num_rows)
            continue
        places, ranks = distinct[start:stop], (above - counts / 2)[start:stop] / num_rows
        reach = min(_EDGE_ROWS, stop - start) - 1
        points, kept = [places], [is_kept[start:stop]]
        if start:
            edge = max(distinct[start - 1], places[0] - (places[reach] - places[0]))
            points.insert(0, np.array([edge]))
            kept.insert(0, np.array([True]))
            ranks = np.append(above[start - 1] / num_rows, ranks)
        if stop < len(distinct):
            edge = min(distinct[stop], places[-1] + (places[-1] - places[-1 - reach]))
            points.append(np.array([edge]))
            kept.append(np.array([True]))
            ranks = np.append(ranks, above[stop - 1] / num_rows)
        piece = _piece_knots(read, np.concatenate(points), ranks, np.concatenate(kept), middle)
        knots.append(piece[0])
        levels.append(piece[1])
    joined = np.concatenate(knots), np.concatenate(levels).clip(_END_LEVEL / num_rows, 1 - _END_LEVEL / num_rows)
    is_new = np.append(True, (np.diff(joined[0]) != 0) | (np.diff(joined[1]) != 0))
    return _continue(joined[0][is_new], scipy.special.ndtri(joined[1][is_new]), middle)


def _piece_knots(
    read: _Array, places: _Array, ranks: _Array, is_kept: NDArray[np.bool_], middle: float
) -> tuple[_Array, _Array]:
    """Knots and probabilities of the rows between two atoms, or beyond one; ``read`` are the probabilities of all."""
    apart = 0.2 * read[0]  # a tenth of a row's share
    levels = read[(read > ranks[0] + apart) & (read < ranks[-1] - apart)]
    is_kept[[0, -1]] = True
    knots = np.concatenate([np.interp(levels, ranks, places), places[is_kept]])
    levels = np.concatenate([levels, ranks[is_kept]])
    order = np.lexsort([levels, knots])
    knots, levels = _merge_close(knots[order], levels[order], middle)
    # the ends stay where they are, since atoms begin there
    knots[-1], levels[-1] = places[-1], ranks[-1]
    return knots, levels


def _levels(num_rows: int, spacing: int) -> _Array:
    """Probabilities at which the distribution is read, ascending from half a row's share."""
    ends = scipy.special.ndtri(0.5 / num_rows), scipy.special.ndtri(1 - 0.5 / num_rows)
    num_probabilities = _num_probabilities(num_rows, spacing)
    probabilities = (np.arange(num_probabilities) + 0.5) / num_probabilities
    num_scores = int(np.clip(num_rows // (2 * spacing), _LEAST_KNOTS, _NUM_SCORES))
    scores: _Array = scipy.special.ndtr(np.linspace(*ends, num_scores))
    return np.sort(np.concatenate([probabilities, scores]))


def _num_probabilities(num_rows: int, spacing: int) -> int:
    return int(np.clip(num_rows // spacing, _LEAST_KNOTS, _NUM_PROBABILITIES))


def choose_spacing(values: _Array, num_rows: int) -> int:
    """How many of a column's ``num_rows`` rows there are to a probability, by ``values``, which are no atoms."""
    distinct, counts = np.unique(values, return_counts=True)
    is_second = np.random.default_rng(0).permutation(len(distinct)) % 2 == 1
    halves = ~is_second, is_second
    apart = {_num_probabilities(num_rows, spacing): spacing for spacing in reversed(_SPACINGS)}
    if len(apart) == 1 or len(distinct) < 4 * _SPACINGS[-1]:
        return _SPACINGS[0]
    gains = dict.fromkeys(sorted(apart.values()), 0.0)
    for known, held_out in (halves, halves[::-1]):
        places, number = distinct[known], int(counts[known].sum())
        ranks = (np.cumsum(counts[known]) - counts[known] / 2) / number
        inside = distinct[held_out & (distinct > places[0]) & (distinct < places[-1])]
        for spacing in gains:
            levels = _levels(number, spacing)
            knots, first = np.unique(np.interp(levels, ranks, places), return_index=True)
            curve = Curve(knots, scipy.special.ndtri(levels[first]))
            gains[spacing] += float((curve.log_slope(inside) - curve.to_scores(inside) ** 2 / 2).sum())
    return max(gains, key=lambda spacing: gains[spacing])


def _distribution(
    values: _Array, grid: Grid | None, atoms: _Array | None
) -> tuple[_Array, _Array, NDArray[np.bool_], _Array]:
    """The distribution function as a polyline: places, probabilities, which points must be knots, and places of gaps.

    A gap beside an atom of a grid is given by its lower end. The cells at both of its ends are exact.
    """
    num_rows = len(values)
    threshold = max(_HEAVY_COUNT, num_rows * _HEAVY_SHARE)
    distinct, counts = np.unique(values, return_counts=True)
    before = np.cumsum(counts) - counts
    mid_ranks = (before + counts / 2) / num_rows
    if grid is None:
        return distinct, mid_ranks, counts >= threshold, distinct[:0]
    cells, start, of_cell = np.unique(
        np.floor((distinct - grid.offset) / grid.step), return_index=True, return_inverse=True
    )
    cell_counts = np.bincount(of_cell, weights=counts)
    is_heavy = cell_counts >= threshold
    is_lonely = np.isin(cells, np.array([]) if atoms is None else atoms)
    before_gap = is_lonely[:-1] | is_lonely[1:]
    is_heavy[:-1] |= before_gap
    is_heavy[1:] |= before_gap
    is_light_row = ~is_heavy[of_cell]
    # counts are added before they are divided, so that neighbours, or cells across a gap, meet at equal ranks
    below = before[start][is_heavy] / num_rows
    above = (before[start] + cell_counts)[is_heavy] / num_rows
    low, high = (grid.offset + (cells[is_heavy] + side) * grid.step for side in (0, 1))
    places = np.concatenate([distinct[is_light_row], low, high])
    ranks = np.concatenate([mid_ranks[is_light_row], below, above])
    ranks = ranks.clip(_END_LEVEL / num_rows, 1 - _END_LEVEL / num_rows)
    is_edge = np.arange(len(places)) >= is_light_row.sum()
    order = np.lexsort([ranks, places])
    gaps = grid.offset + (cells[:-1][before_gap] + 1) * grid.step
    return places[order], ranks[order], is_edge[order], gaps


def _middle(places: _Array, ranks: _Array) -> float:
    """The median of a column that lies far from 0 for its spread, from which its gaps are measured; else 0."""
    if not len(places):
        return 0.0
    low, middle, high = np.interp([0.16, 0.5, 0.84], ranks, places)
    return float(middle) if abs(middle) > _FAR * (high - low) > 0 else 0.0


def _least_gap(knots: _Array, middle: float) -> _Array:
    gaps: _Array = np.abs(knots - middle) * MIN_GAP
    return np.maximum(gaps, 4 * np.spacing(np.abs(knots))) if middle else gaps


def _merge_close(
    knots: _Array, levels: _Array, middle: float, most: float = np.inf, is_edge: NDArray[np.bool_] | None = None
) -> tuple[_Array, _Array]:
    """Drop knots that lie too close behind another one; no distance above ``most`` is too close.

    The edge of a cell stays, and what lies too close before it goes: between its edges a cell has its share.
    """
    kept = [0]
    edges = np.zeros(len(knots), dtype=bool) if is_edge is None else is_edge
    tolerance = np.minimum(np.maximum(_least_gap(knots, middle), 1e-100), most)
    for index in range(1, len(knots)):
        if knots[index] - knots[kept[-1]] > tolerance[index] and levels[index] >= levels[kept[-1]]:
            kept.append(index)
        elif edges[index] and not edges[kept[-1]] and len(kept) > 1:
            kept[-1] = index
    if len(kept) == 1:
        kept = [0, len(knots) - 1]
    return knots[kept], levels[kept]


def _separate(knots: _Array, scores: _Array, grid: Grid | None, lonely: _Array) -> _Array:
    """Make the scores increase strictly where cells without rows lie between two knots, except beside an atom."""
    num_empty = np.diff(knots) / grid.step if grid else np.zeros(len(knots) - 1)
    least = np.clip(num_empty * _EMPTY_CELL_SCORE, 1e-5, 1e-3)
    if len(lonely):
        least[np.isin(knots[:-1], lonely)] = 0.0
    widths = np.diff(scores)
    # intervals that hold rows stay as they are, however narrow, as long as float64 tells their ends apart
    widths = np.where(widths > 1e-9, widths, least)
    return scores[0] + np.concatenate([[0.0], np.cumsum(widths)])


def _continue(knots: _Array, scores: _Array, far_middle: float) -> Curve:
    """Add a knot beyond each end, one score away."""
    reach = min(_MIDDLE_SCORE, -scores[0], scores[-1])  # positive: the ends' mid-ranks lie on either side of 1/2
    low, high = np.interp([-reach, reach], scores, knots)
    middle = (high - low) / (2 * reach) or (knots[-1] - knots[0]) / (scores[-1] - scores[0])
    slopes = _slopes(scores, knots)
    held = _least_gap(knots[[0, -1]], far_middle)  # beside a far outlier, less than this is lost in rounding
    first, last = np.maximum(np.clip(slopes[[0, -1]], 0.1 * middle, middle), np.maximum(held, 1e-100))
    values = np.concatenate([[knots[0] - first], knots, [knots[-1] + last]])
    return Curve(values, np.concatenate([[scores[0] - 1], scores, [scores[-1] + 1]]))


def _piece(places: _Array, knots: _Array) -> NDArray[np.intp]:
    return np.clip(np.searchsorted(knots, places, side="right") - 1, 0, len(knots) - 2)


def _slopes(knots: _Array, heights: _Array) -> _Array:
    """The slope of each piece; 0 for a piece without width, or with one that float64 cannot divide by."""
    widths, rises = np.diff(knots), np.diff(heights)
    is_wide = np.minimum(widths, 1.0) * np.finfo(np.float64).max > np.maximum(rises, 0.0)
    return np.divide(rises, widths, out=np.zeros(len(widths)), where=is_wide)


def _follow(places: _Array, knots: _Array, heights: _Array) -> _Array:
    """The polyline through (knots, heights); its first and last piece go on for ever."""
    slopes = _slopes(knots, heights)
    piece = _piece(places, knots)
    followed = heights[piece] + (places - knots[piece]) * slopes[piece]
    # rounding must not carry a place over the next knot, or the curve would fall there
    limits = np.append(heights[1:-1], np.inf)
    reached: _Array = np.minimum(followed, limits[piece])
    return reached
