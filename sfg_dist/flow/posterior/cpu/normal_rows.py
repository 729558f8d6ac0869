"""Rows of the posterior over nodes that stand for their rows as normal laws, within a threshold of expected error.

Level by level from the top, a node either stands for its rows or is opened (``normal_laws.weigh``); the rows of opened
leaves are summed. Third and fourth cumulants are added where they are worth it (``normal_series.correct``). What a
level's errors are compared with, the whole mass and a guess of the mean, is what the levels above say: their stand-ins,
and their opened nodes as the laws that they would have stood for.

Several rows go through a level together, a window of nodes at a time, so that these come from the cache. Leaves are
summed in the same way, for more rows together. A row's numbers do not depend on the rows beside it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sfg_dist.flow.posterior.cpu.kernels import LOG2E, finish
from sfg_dist.flow.posterior.cpu.leaf_sums import HUGE, LEAF, SUMS, add_leaves, draw_in, fade
from sfg_dist.flow.posterior.cpu.normal_laws import NUMBERS, weigh
from sfg_dist.flow.posterior.cpu.normal_series import correct
from sfg_dist.flow.posterior.cpu.simd import cached_njit, least, load, smaller, splat, store, total
from sfg_dist.flow.posterior.cpu.traversal import descend

F = np.float32
MARGIN = F(60)  # powers of two that a row may weigh more than at the anchor
MOST_OPEN = 1 << 14  # nodes of a level that a row may open; one that opens more is summed as fast by the bound
LEAF_WINDOW = 1 << 8  # leaves whose rows are read together for all rows of a call
LEAST_WORTH = 3  # nodes of a group over leaves that are worth it; the leaves of fewer cost less
ROWS_TOGETHER = 64  # rows that go through the levels together: their states stay in the caches too
WINDOW_FLOATS = 1 << 16  # numbers of nodes read together: 256 KB, within a core's second-level cache


@njit(nogil=True, error_model="numpy", inline="always")
def slope_of(inv_sigma_sq):
    """What a squared distance is multiplied by in a power of two."""
    return F(0.5) * F(inv_sigma_sq) * LOG2E


@njit(nogil=True, error_model="numpy")
def _visit(
    bounds, laws, vectors, cumulants, terms, first_group, first_own, nodes, start, stop, opened, num_opened, row,
    states, lanes, saved, sums, side, bits, is_last, least_worth, axes, rank, series,
):  # fmt: skip
    """Judge the children of nodes[row, start:stop]; the number of nodes in ``opened``, -1 if there is no room.

    ``sums`` are the stand-ins' mass of the levels above, and the mass that is known of all nodes. They are relative to
    the anchor, which moves in if a far closer row turns up.
    """
    dim = len(axes)
    at, lane, size = row * (NUMBERS + 2 * dim), row * 16 * (2 * dim + 3), 32 * (dim + 1)
    while True:
        for k in range(0, size, 8):
            store(saved, k, load(lanes, lane + k))
        for i in range(start, stop, 2):
            other = min(i + 1, stop - 1)
            bits[(i - start) // 2] = weigh(
                bounds, laws, vectors, first_group + nodes[row, i], first_group + nodes[row, other], states, at, lanes,
                lane, other > i, is_last, least_worth, axes, rank, series,
            )  # fmt: skip
        closest, slope = least(smaller(load(lanes, lane + size), load(lanes, lane + size + 8))), states[at]
        if not (states[at + 1] - closest) * slope > MARGIN:
            break
        # Masses may have left float32: take these nodes again.
        share = splat(F(fade(states[at + 1], closest, slope)))
        for k in range(0, size, 8):
            store(lanes, lane + k, load(saved, k) * share)
        draw_in(states[at + 1], closest, slope, sums[row], side[row])
        states[at + 1] = closest
    for i in range(start, stop):
        sixteen = bits[(i - start) // 2] >> (8 * ((i - start) % 2))
        worth = (sixteen >> 16) & 255
        if worth != 0:
            group = first_group + nodes[row, i]
            correct(
                bounds, laws, cumulants, terms, group, group - first_own, states, at, lanes, lane, worth, axes, series
            )  # fmt: skip
        eight = sixteen & 255
        if eight != 0:
            if num_opened + 8 > opened.shape[1]:
                return -1
            for j in range(8):
                opened[row, num_opened] = 8 * nodes[row, i] + j
                num_opened += (eight >> j) & 1
    return num_opened


@njit(nogil=True, error_model="numpy", inline="always")
def _both(lanes, at):
    return total(load(lanes, at) + load(lanes, at + 8))


@njit(nogil=True, error_model="numpy")
def _judge(row, states, lanes, sums, side, threshold):
    """Add a level's stand-ins to the sums; what the next one is to be compared with."""
    dim = side.shape[1]
    at, lane, size = row * (NUMBERS + 2 * dim), row * 16 * (2 * dim + 3), 16 * (dim + 1)
    sums[row, 1] = sums[row, 0] + _both(lanes, lane + size)
    for k in range(dim):
        if sums[row, 1] > 1:
            columns = side[row, k] + _both(lanes, lane + size + 16 * (1 + k))
            states[at + NUMBERS + dim + k] = F(columns / sums[row, 1])
        side[row, k] += _both(lanes, lane + 16 * (1 + k))
    sums[row, 0] += _both(lanes, lane)
    for k in range(0, 2 * size, 8):
        store(lanes, lane + k, splat(F(0)))
    closest = least(smaller(load(lanes, lane + 2 * size), load(lanes, lane + 2 * size + 8)))
    if closest < states[at + 1]:  # the nearest row is not farther than a node's mean squared distance
        draw_in(states[at + 1], closest, states[at], sums[row], side[row])
        states[at + 1] = closest
    # The nearest row's own mass is 1 or more, though its nodes may say nothing about it yet.
    bar = F(threshold * max(sums[row, 1], 1.0))
    states[at + 2] = bar * bar


@njit(nogil=True, error_model="numpy")
def _open(
    x, inv_sigma_sq, threshold, offsets, sizes, bounds, laws, vectors, cumulants, terms, blocks, work, counts, sums64,
    side64, anchors, nodes, opened, room, axes, rank, series,
):  # fmt: skip
    """Take a few rows through all levels: their sums, anchors, and the leaves to be summed.

    These end in ``opened`` if the number of levels is odd, else in ``nodes``. ``room`` is the rows' states and lanes.
    """
    rows, dim = x.shape
    top, stride, lane = len(sizes) - 1, NUMBERS + 2 * dim, 16 * (2 * dim + 3)
    states, lanes, saved, bits, place, num_opened = room
    lanes[:] = 0
    first_own = offsets[1] // 8
    floats, own_floats = 8 * (3 * dim + 5) + len(laws) // (offsets[top + 1] // 8), 0
    if len(cumulants) > 0:
        own_floats = (len(cumulants) + len(terms)) // (offsets[top + 1] // 8 - first_own)
    for row in range(rows):
        leaf, anchors[row] = descend(bounds, blocks, dim, offsets, sizes, x[row])
        if not anchors[row] < HUGE / F(10):  # squares leave float32, or something is not a number
            counts[row] = -1
            continue
        at = row * stride
        states[at], states[at + 1] = slope_of(inv_sigma_sq[row]), anchors[row]
        states[at + 2], states[at + 3] = F(threshold) * F(threshold), inv_sigma_sq[row]
        for k in range(dim):
            states[at + NUMBERS + k] = x[row, k]
            states[at + NUMBERS + dim + k] = bounds[(leaf // 8 * (3 * dim + 5) + k) * 8 + leaf % 8]
        for k in range(0, 16, 8):
            store(lanes, row * lane + 32 * (dim + 1) + k, splat(HUGE))
        counts[row] = (sizes[top] + 7) // 8
        for i in range(counts[row]):
            nodes[row, i] = i
    for level in range(top, -1, -1):
        num_groups, first_group = (sizes[level] + 7) // 8, offsets[level] // 8
        least_worth = 9 if level == 0 else LEAST_WORTH if level == 1 else 1
        window = WINDOW_FLOATS // (floats + own_floats * (level > 0))
        place[:] = 0
        num_opened[:] = 0
        for low in range(0, num_groups, window):
            for row in range(rows):
                start = stop = place[row]
                while stop < counts[row] and nodes[row, stop] < low + window:
                    stop += 1
                place[row] = stop
                if stop > start and num_opened[row] >= 0:
                    num_opened[row] = _visit(
                        bounds, laws, vectors, cumulants, terms, first_group, first_own, nodes, start, stop, opened,
                        num_opened[row], row, states, lanes, saved, sums64, side64, bits, level == 0, least_worth, axes,
                        rank, series,
                    )  # fmt: skip
        for row in range(rows):
            if num_opened[row] < 0:
                counts[row] = -1
            if counts[row] >= 0:
                _judge(row, states, lanes, sums64, side64, threshold)
                work[row, 1] += 8 * counts[row] - num_opened[row]
                work[row, 2] += 8 * counts[row]
                counts[row] = num_opened[row]
        nodes, opened = opened, nodes
    for row in range(rows):
        if counts[row] >= 0:
            anchors[row] = states[row * stride + 1]


@cached_njit
def normal_rows(
    x, inv_sigma_sq, threshold, offsets, sizes, bounds, laws, vectors, cumulants, terms, blocks, mean, log_sum,
    variance, work, counts, sums64, leaves, spare, axes, rank, series,
):  # fmt: skip
    """As ``kernels.dense_rows`` without variances, over nodes whose expected error is below ``threshold``.

    ``threshold`` is a share of the whole mass times a length. ``bounds``, ``laws`` and ``vectors`` (see
    ``normal_laws``), ``cumulants`` and ``terms`` (see ``normal_series``), and ``blocks`` are flat. ``series`` is (0,)
    if there are cumulants, else (). ``work`` counts pairs, stand-ins and nodes of each row. ``counts`` is negative for
    rows whose float32 distances do not compare, and for those that open more nodes of a level than ``leaves``, int32 of
    shape (rows, MOST_OPEN), has room for; ``spare`` is (ROWS_TOGETHER, MOST_OPEN). ``sums64`` has each row's mass,
    relative to that of a near row, in its first place.
    """
    rows, dim = x.shape
    together = min(rows, ROWS_TOGETHER)
    room = (
        np.empty(together * (NUMBERS + 2 * dim), F), np.empty(together * 16 * (2 * dim + 3), F),
        np.empty(16 * (2 * dim + 3), F), np.empty(WINDOW_FLOATS // 64, np.int64), np.empty(together, np.int64),
        np.empty(together, np.int64),
    )  # fmt: skip
    anchors, sums, side64 = np.empty(rows, F), np.empty(dim + SUMS, F), np.zeros((rows, dim))
    for first in range(0, rows, ROWS_TOGETHER):
        stop = min(first + ROWS_TOGETHER, rows)
        nodes, opened = spare, leaves[first:stop]
        if len(sizes) % 2 == 0:
            nodes, opened = opened, nodes
        _open(
            x[first:stop], inv_sigma_sq[first:stop], threshold, offsets, sizes, bounds, laws, vectors, cumulants, terms,
            blocks, work[first:stop], counts[first:stop], sums64[first:stop], side64[first:stop], anchors[first:stop],
            nodes, opened, room, axes, rank, series,
        )  # fmt: skip
    place = np.zeros(rows, np.int64)
    for low in range(0, sizes[0], LEAF_WINDOW):
        for row in range(rows):
            start = stop = place[row]
            while stop < counts[row] and leaves[row, stop] < low + LEAF_WINDOW:
                stop += 1
            place[row] = stop
            if stop > start:
                anchors[row] = add_leaves(
                    blocks, leaves[row], start, stop, x[row], inv_sigma_sq[row] > 1, slope_of(inv_sigma_sq[row]),
                    anchors[row], sums, sums64[row], side64[row], axes, (),
                )  # fmt: skip
    for row in range(rows):
        if counts[row] >= 0:
            finish(row, x, inv_sigma_sq, anchors, sums64, side64, mean, log_sum, variance)
            work[row, 0] = counts[row] * LEAF
