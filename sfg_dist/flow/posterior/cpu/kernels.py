"""The posterior's sums on CPUs, row by row, over all leaves or over those that ``traversal`` picks for a row.

Everything is in x~ = z / alpha with sigma = beta / alpha, so that weights are exp(-|x~ - x_j|^2 / (2 sigma^2)). A row's
result does not depend on the rows beside it. They share only the reading of leaves, a window of them at a time, so that
leaves come from the cache. Squared distances are sums of squared differences, which keep their digits where
|z|^2 - 2 z.x + |x|^2 loses them.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sfg_dist.flow.posterior.cpu.leaf_sums import FLUSH, HUGE, LEAF, SUMS, add_leaves
from sfg_dist.flow.posterior.cpu.simd import cached_njit, fma, least, load, smaller, splat

F = np.float32
LOG2E = F(1.4426950408889634)
WINDOW_FLOATS = 1 << 17  # leaves read together: 512 KB, within a core's second-level cache


@njit(nogil=True, error_model="numpy", forceinline=True)
def closest_square(blocks, dim, leaf, query):
    """Smallest squared distance to a row of the leaf."""
    base = leaf * (dim + 1) * LEAF
    best = splat(HUGE)
    for j in range(0, LEAF, 8):
        square = splat(F(0))
        for k in range(dim):
            step = load(blocks, base + k * LEAF + j) - splat(query[k])
            square = fma(step, step, square)
        best = smaller(square, best)
    return least(best)


@cached_njit
def dense_rows(x, inv_sigma_sq, blocks, num_leaves, mean, log_sum, variance, axes, squares):
    """Mean, log sum_j w_j and variance of every row of ``x`` over all leaves; ``blocks`` flat.

    ``axes`` and ``squares`` are as in ``leaf_sums``; with squares = () the variances are meaningless.
    """
    rows, dim = x.shape
    leaves = np.arange(num_leaves).astype(np.int32)
    anchors, sums64, side64 = np.empty(rows, F), np.zeros((rows, 2)), np.zeros((rows, dim))
    sums = np.empty(dim + SUMS, F)
    anchors[:] = HUGE
    for first in range(-FLUSH, num_leaves, FLUSH):
        # The first leaf alone sets the anchor with the loop's own rounding; otherwise all weights may vanish.
        start, stop = (0, 1) if first < 0 else (max(first, 1), min(first + FLUSH, num_leaves))
        for row in range(rows):
            scale = F(0.5 * inv_sigma_sq[row]) * LOG2E
            anchors[row] = add_leaves(
                blocks, leaves, start, stop, x[row], inv_sigma_sq[row] > 1, scale, anchors[row], sums, sums64[row],
                side64[row], axes, squares,
            )  # fmt: skip
    for row in range(rows):
        finish(row, x, inv_sigma_sq, anchors, sums64, side64, mean, log_sum, variance)


@cached_njit
def listed_rows(
    x, inv_sigma_sq, blocks, leaves, counts, num_leaves, anchors, sums64, side64, mean, log_sum, variance, axes, squares
):
    """As ``dense_rows`` over each row's own leaves[row, :counts[row]], ascending, added to the sums it has.

    Rows with a negative count are left out. Anchors and ``sums64`` are updated, for the bounds that depend on them.
    """
    rows, dim = x.shape
    sums = np.empty(dim + SUMS, F)
    place = np.zeros(rows, np.int64)
    window = max(FLUSH, WINDOW_FLOATS // ((dim + 1) * LEAF))
    for low in range(0, num_leaves, window):
        for row in range(rows):
            first = stop = place[row]
            while stop < counts[row] and leaves[row, stop] < low + window:
                stop += 1
            place[row] = stop
            if stop > first:
                scale = F(0.5 * inv_sigma_sq[row]) * LOG2E
                anchors[row] = add_leaves(
                    blocks, leaves[row], first, stop, x[row], inv_sigma_sq[row] > 1, scale, anchors[row], sums,
                    sums64[row], side64[row], axes, squares,
                )  # fmt: skip
    for row in range(rows):
        if counts[row] >= 0:
            finish(row, x, inv_sigma_sq, anchors, sums64, side64, mean, log_sum, variance)


@njit(nogil=True, error_model="numpy", inline="always")
def finish(row, x, inv_sigma_sq, anchors, sums64, side64, mean, log_sum, variance):
    """Write a row's mean, log sum and variance from its sums."""
    # Squares are about x~ near the data, where the variance keeps its digits so; far from it, about the centre.
    near = inv_sigma_sq[row] > 1
    mass, square = sums64[row, 0], 0.0
    for k in range(x.shape[1]):
        mean[row, k] = side64[row, k] / mass
        step = side64[row, k] / mass - (x[row, k] if near else F(0))
        square += step * step
    log_sum[row] = np.log(mass) - np.float64(anchors[row]) * 0.5 * inv_sigma_sq[row]
    variance[row] = max(sums64[row, 1] / mass - square, 0.0)
