"""Compiled interpolation in tables of knots, several times as fast as numpy's operations over all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sfg_dist.job.kernel_cache import cached_njit

CELLS = 512  # of a table of first guesses
LEAST_LOGIT = 25.0

_Array = NDArray[np.float64]
_compiled = cached_njit(nogil=True, error_model="numpy")
_inlined = njit(nogil=True, error_model="numpy", forceinline=True)


@_compiled
def _first_guesses(knots: _Array) -> NDArray[np.int32]:
    """The interval of the left edge of each of ``CELLS`` equal cells from the first knot to the last, and of its end.

    A search among all knots takes ten times as long as one within a cell: no processor foresees its branches.
    """
    guesses = np.empty(CELLS + 1, np.int32)
    interval, last = 0, len(knots) - 2
    width = (knots[-1] - knots[0]) / CELLS
    for cell in range(CELLS + 1):
        edge = knots[0] + cell * width
        while interval < last and edge >= knots[interval + 1]:
            interval += 1
        guesses[cell] = interval
    return guesses


@_inlined
def _interval(knots: _Array, guesses: NDArray[np.int32], x: float) -> int:
    """The interval of x, 0 to len(knots) - 2: the last whose first knot is at most x."""
    span = knots[-1] - knots[0]
    place = (x - knots[0]) * (CELLS / span) if span > 0 else 0.0
    place = place if place > 0.0 else 0.0
    cell = int(place) if place < CELLS else CELLS - 1
    low, high = guesses[cell], guesses[cell + 1] + 1
    while high - low > 1:
        middle = (low + high) >> 1
        if x >= knots[middle]:
            low = middle
        else:
            high = middle
    return low


@_inlined
def _share(knots: _Array, interval: int, x: float) -> float:
    """How far x is into its interval, within 0 and 1."""
    width = knots[interval + 1] - knots[interval]
    if not width > 0:
        return 0.0
    return min(max((x - knots[interval]) / width, 0.0), 1.0)


@_compiled
def map_columns(rows: _Array, knots: _Array, values: _Array) -> _Array:
    """Each column of rows (num_rows, dim) through a polyline, given by its values at ascending knots (dim, num_knots).

    Beyond the ends a row keeps its distance from the last knot.
    """
    mapped = np.empty_like(rows)
    for column in range(rows.shape[1]):
        places, images = knots[column], values[column]
        guesses, first, last = _first_guesses(places), places[0], places[-1]
        for row in range(rows.shape[0]):
            x = rows[row, column]
            k = _interval(places, guesses, x)
            inside = images[k] + _share(places, k, x) * (images[k + 1] - images[k])
            mapped[row, column] = inside + min(x - first, 0.0) + max(x - last, 0.0)
    return mapped


@_inlined
def _shifted(
    x: float,
    value: float,
    centers: _Array,
    center_guesses: NDArray[np.int32],
    means: _Array,
    spreads: _Array,
    knots: _Array,
    knot_guesses: NDArray[np.int32],
    shifts: _Array,
) -> float:
    """One map of ``move_columns``: a value of its column j where column i is x."""
    window = _interval(centers, center_guesses, x)
    share = _share(centers, window, x)
    mean = means[window] + share * (means[window + 1] - means[window])
    spread = spreads[window] + share * (spreads[window + 1] - spreads[window])
    residual = (value - mean) / spread
    k = _interval(knots, knot_guesses, residual)
    rest = _share(knots, k, residual)
    lower = shifts[window, k] + rest * (shifts[window, k + 1] - shifts[window, k])
    upper = shifts[window + 1, k] + rest * (shifts[window + 1, k + 1] - shifts[window + 1, k])
    return value + spread * (lower + share * (upper - lower))


@_compiled
def move_columns(
    rows: _Array,
    columns: NDArray[np.int64],
    centers: _Array,
    means: _Array,
    spreads: _Array,
    knots: _Array,
    shifts: _Array,
) -> None:
    """Apply ``PairMaps``, whose arrays these are, to rows (num_rows, dim) in place."""
    for number in range(columns.shape[0]):  # a map after the other: its table stays in the first cache
        i, j = columns[number]
        center, mean, spread, knot, shift = (
            centers[number], means[number], spreads[number], knots[number], shifts[number]
        )  # fmt: skip
        near, far = _first_guesses(center), _first_guesses(knot)
        for row in range(rows.shape[0]):
            rows[row, j] = _shifted(rows[row, i], rows[row, j], center, near, mean, spread, knot, far, shift)


@_compiled
def move_by_parts(rows: _Array, parts: _Array, width: float, maps: _Array, shifts: _Array) -> _Array:
    """rows + sum over k of w_k (rows @ maps[k] + shifts[k]), w_k in proportion to exp(-|row - parts[k]|^2 / 2 width^2).

    Parts with a weight of less than exp(-LEAST_LOGIT) of the largest are passed over. A row has the same bits in any
    company, which a matrix product of all rows would not promise.
    """
    num_rows, dim = rows.shape
    moved = np.empty_like(rows)
    change, far = np.empty(dim), np.empty(len(parts))
    scale = 0.5 / width**2
    for row in range(num_rows):
        for k in range(len(parts)):
            square = 0.0
            for i in range(dim):
                square += (rows[row, i] - parts[k, i]) ** 2
            far[k] = scale * square
        nearest, total = far.min(), 0.0
        change[:] = 0.0
        for k in range(len(parts)):
            below = far[k] - nearest
            if below < LEAST_LOGIT:
                weight = np.exp(-below)
                total += weight
                for j in range(dim):
                    change[j] += weight * shifts[k, j]
                for i in range(dim):
                    x = weight * rows[row, i]
                    for j in range(dim):
                        change[j] += x * maps[k, i, j]
        for j in range(dim):
            moved[row, j] = rows[row, j] + change[j] / total
    return moved


@_compiled
def residuals(x: _Array, values: _Array, centers: _Array, means: _Array, spreads: _Array) -> _Array:
    """(value - mean) / spread, with mean and spread at x between the centers; shape (num_rows,)."""
    found = np.empty_like(values)
    guesses = _first_guesses(centers)
    for row in range(len(values)):
        window = _interval(centers, guesses, x[row])
        share = _share(centers, window, x[row])
        mean = means[window] + share * (means[window + 1] - means[window])
        spread = spreads[window] + share * (spreads[window + 1] - spreads[window])
        found[row] = (values[row] - mean) / spread
    return found


@_compiled
def histogram(first: NDArray[np.uint8], second: NDArray[np.uint8], num_cells: int) -> NDArray[Any]:
    """Shares of rows in the pairs of cells, shape (num_cells * num_cells,), of each row's cell in two columns."""
    counts = np.zeros(num_cells * num_cells)
    for row in range(len(first)):
        counts[first[row] * num_cells + second[row]] += 1
    return counts / max(1, len(first))
