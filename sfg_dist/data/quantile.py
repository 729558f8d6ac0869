"""A column to a standard normal through its training quantiles: a strictly increasing piecewise-linear curve.

    z = Phi^-1(F(x)),    F the distribution function of the training rows

F is read at knots: at most 800 equally spaced probabilities, 400 equally spaced normal scores (they resolve
the tails), and around every value that holds a share of the rows above 1/500. Few rows get few knots, about
20 rows each in the bulk, since a curve through every row would fit its noise.

- Tied values are one knot at their mid-rank score.
- A column on a grid is spread evenly over its cells: cells with many rows have knots at their two edges, and
  F is exact there whatever noise was drawn. Cells without rows between two such cells get a sliver of the
  scores.
- Beyond both ends the curve goes on straight. Its slope dx/dz is that of the last interval, limited to
  between 0.1 and 1 times the middle slope, (x at z = 1.28 - x at z = -1.28) / 2.56: an outlier does not
  throw samples beyond itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from sfg_dist.data.grid import Grid

_Array = NDArray[np.float64]

_NUM_PROBABILITIES, _NUM_SCORES = 800, 400
_HEAVY_SHARE, _HEAVY_COUNT = 1 / 500, 8
_END_LEVEL = 0.25  # ranks: the outer edge of the first and last cell lies a quarter of a row inside 0 and 1
_MIDDLE_SCORE = 1.28
_MIN_GAP = 2.0**-36  # knots closer than this times their size are one, or x could not hold what z tells apart
_EMPTY_CELL_SCORE = 1e-6  # score given to an empty cell, from 1e-5 to 1e-3 a gap: float32 can still tell them apart


@dataclass(frozen=True, eq=False)
class Curve:
    """Knots of a strictly increasing curve; the outermost two only carry the slope of the continuation.

    Attributes:
        values: in the column's units, increasing, shape (num_knots,).
        scores: normal scores, increasing, shape (num_knots,).
    """

    values: _Array
    scores: _Array

    def to_scores(self, values: _Array) -> _Array:
        """Map values to normal scores, same shape."""
        return _follow(values, self.values, self.scores)

    def to_values(self, scores: _Array) -> _Array:
        """Map normal scores to values, same shape."""
        return _follow(scores, self.scores, self.values)

    def log_slope(self, values: _Array) -> _Array:
        """log dz/dx at values, same shape."""
        piece = _piece(values, self.values)
        slopes: _Array = np.log(np.diff(self.scores)) - np.log(np.diff(self.values))
        return slopes[piece]


def fit_curve(values: _Array, grid: Grid | None) -> Curve:
    """Fit the curve of one column.

    Args:
        values: training values, not all equal, shape (num_rows,); with a grid, spread over its cells already.
        grid: the column's grid, or None.

    Example:
        >>> curve = fit_curve(np.linspace(0.0, 1.0, 1001), None)
        >>> curve.to_scores(np.array([0.5])).round(3).item()
        0.0
    """
    num_rows = len(values)
    places, ranks, is_kept = _distribution(values, grid)
    levels = np.concatenate([_levels(num_rows), ranks[is_kept], ranks[[0, -1]]])
    knots = np.concatenate([np.interp(_levels(num_rows), ranks, places), places[is_kept], places[[0, -1]]])
    order = np.lexsort([levels, knots])
    knots, levels = knots[order], levels[order]
    inside = (levels >= ranks[0]) & (levels <= ranks[-1])
    knots, levels = _merge_close(knots[inside], levels[inside])
    scores = _separate(knots, ndtri(levels), grid)
    return _continue(knots, scores)


def _levels(num_rows: int) -> _Array:
    """Probabilities at which the distribution is read."""
    ends = ndtri(0.5 / num_rows), ndtri(1 - 0.5 / num_rows)
    num_probabilities = int(np.clip(num_rows // 20, 10, _NUM_PROBABILITIES))
    probabilities = (np.arange(num_probabilities) + 0.5) / num_probabilities
    scores: _Array = ndtr(np.linspace(*ends, int(np.clip(num_rows // 40, 10, _NUM_SCORES))))
    return np.sort(np.concatenate([probabilities, scores]))


def _distribution(values: _Array, grid: Grid | None) -> tuple[_Array, _Array, NDArray[np.bool_]]:
    """The distribution function as a polyline: places, probabilities, and which points must be knots."""
    num_rows = len(values)
    threshold = max(_HEAVY_COUNT, num_rows * _HEAVY_SHARE)
    distinct, counts = np.unique(values, return_counts=True)
    before = np.cumsum(counts) - counts
    mid_ranks = (before + counts / 2) / num_rows
    if grid is None:
        return distinct, mid_ranks, counts >= threshold
    cells, start, of_cell = np.unique(
        np.floor((distinct - grid.offset) / grid.step), return_index=True, return_inverse=True
    )
    cell_counts = np.bincount(of_cell, weights=counts)
    is_heavy = cell_counts >= threshold
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
    return places[order], ranks[order], is_edge[order]


def _merge_close(knots: _Array, levels: _Array) -> tuple[_Array, _Array]:
    """Drop knots that lie too close behind another one."""
    kept = [0]
    tolerance = np.maximum(np.abs(knots) * _MIN_GAP, 1e-100)
    for index in range(1, len(knots)):
        if knots[index] - knots[kept[-1]] > tolerance[index] and levels[index] >= levels[kept[-1]]:
            kept.append(index)
    if len(kept) == 1:
        kept = [0, len(knots) - 1]
    return knots[kept], levels[kept]


def _separate(knots: _Array, scores: _Array, grid: Grid | None) -> _Array:
    """Make the scores increase strictly where cells without rows lie between two knots."""
    num_empty = np.diff(knots) / grid.step if grid else np.zeros(len(knots) - 1)
    least = np.clip(num_empty * _EMPTY_CELL_SCORE, 1e-5, 1e-3)
    widths = np.diff(scores)
    # intervals that hold rows stay as they are, however narrow, as long as float64 tells their ends apart
    widths = np.where(widths > 1e-9, widths, least)
    return scores[0] + np.concatenate([[0.0], np.cumsum(widths)])


def _continue(knots: _Array, scores: _Array) -> Curve:
    """Add a knot beyond each end, one score away."""
    reach = min(_MIDDLE_SCORE, -scores[0], scores[-1])  # positive: the ends' mid-ranks lie on either side of 1/2
    low, high = np.interp([-reach, reach], scores, knots)
    middle = (high - low) / (2 * reach)
    slopes = np.diff(knots) / np.diff(scores)
    held = np.abs(knots[[0, -1]]) * _MIN_GAP  # less than this is lost beside a far outlier
    first, last = np.maximum(np.clip(slopes[[0, -1]], 0.1 * middle, middle), held)
    values = np.concatenate([[knots[0] - first], knots, [knots[-1] + last]])
    return Curve(values, np.concatenate([[scores[0] - 1], scores, [scores[-1] + 1]]))


def _piece(places: _Array, knots: _Array) -> NDArray[np.intp]:
    return np.clip(np.searchsorted(knots, places, side="right") - 1, 0, len(knots) - 2)


def _follow(places: _Array, knots: _Array, heights: _Array) -> _Array:
    """The polyline through (knots, heights), its first and last piece continued for ever."""
    slopes = np.diff(heights) / np.diff(knots)
    piece = _piece(places, knots)
    followed = heights[piece] + (places - knots[piece]) * slopes[piece]
    # rounding must not carry a place over the next knot, or the curve would fall there
    limits = np.append(heights[1:-1], np.inf)
    reached: _Array = np.minimum(followed, limits[piece])
    return reached
