"""Which clusters a row of the posterior leaves out, which stand for their rows, and which are summed row by row.

Notation as in ``kernels`` and ``nodes``. The nodes of each level, coarse to fine, are either left out, replaced by
their moments, or opened. With m^ the result, |m - m^| <= sum over nodes of |error in sum_j w_j (x_j - m^)| / Z. Z is
bounded from below by the nearest row of a leaf found by greedy descent, and by the nodes' own least masses. The errors
with the smallest bounds are taken first, as many as the tolerance allows.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sfg_dist.flow.posterior.cpu.kernels import LOG2E, closest_square, listed_rows
from sfg_dist.flow.posterior.cpu.leaf_sums import HUGE, LEAF, draw_in
from sfg_dist.flow.posterior.cpu.nodes import bound_leaves, bound_nodes, empty_bits, measure, stand_in, whole_bits
from sfg_dist.flow.posterior.cpu.simd import (
    bits_below,
    cached_njit,
    fma,
    least,
    load,
    smaller,
    splat,
    store,
    total,
    where_below,
)

F = np.float32
ROUNDING = 2.0**-24  # of each addition of error bounds, in float32
CARRIED = 6  # a row's sums: mass, squares, error, floor, the stand-ins' mass errors, all mass errors
# If each leaf of a node would cost this share of the tolerance, all are opened without a look at them.
WHOLE = F(2.0**-7)
LEAST_MASS = 0.25  # the least that may be found of a mass of 1 or more


@njit(nogil=True, error_model="numpy", forceinline=True)
def _nearest_node(bounds, dim, group, query):
    """The node of a group whose centre is nearest, and its squared distance."""
    base = group * (3 * dim + 5) * 8
    square = splat(F(0))
    for k in range(dim):
        step = load(bounds, base + 8 * k) - splat(query[k])
        square = fma(step, step, square)
    square = where_below(load(bounds, base + 24 * dim), splat(F(0)), splat(HUGE), smaller(square, splat(HUGE / F(2))))
    nearest = least(square)
    for j in range(7):
        if bits_below(splat(nearest), square) & (1 << j) == 0:
            return 8 * group + j, nearest
    return 8 * group + 7, nearest


@njit(nogil=True, error_model="numpy")
def descend(bounds, blocks, dim, offsets, sizes, query):
    """A leaf near x~, and the squared distance of its nearest row."""
    top = len(sizes) - 1
    node, nearest = 0, HUGE
    for group in range(offsets[top] // 8, offsets[top] // 8 + (sizes[top] + 7) // 8):
        candidate, square = _nearest_node(bounds, dim, group, query)
        if square < nearest or group == offsets[top] // 8:
            node, nearest = candidate, square
    for level in range(top, 0, -1):
        node, nearest = _nearest_node(bounds, dim, offsets[level - 1] // 8 + node - offsets[level], query)
    return node, closest_square(blocks, dim, node, query)


@cached_njit
def nearest_rows(x, offsets, sizes, bounds, blocks, anchors):
    """Lower each row's anchor to the squared distance of a row that a greedy descent finds; see ``cluster_rows``."""
    dim = x.shape[1]
    for row in range(len(x)):
        _, square = descend(bounds, blocks, dim, offsets, sizes, x[row])
        if square < anchors[row]:
            anchors[row] = square


@njit(nogil=True, error_model="numpy", forceinline=True)
def _limit(error, num_groups, allowed):
    """The error below which all nodes together stay within ``allowed``, to a factor of two."""
    least_error = F(1e-38)
    if not allowed > 8e-38:
        return least_error
    zero = splat(F(0))
    top = F(allowed)
    t1, t2, t3, t4 = splat(top / F(2)), splat(top / F(4)), splat(top / F(8)), splat(top / F(16))
    t5, t6, t7, t8 = splat(top / F(32)), splat(top / F(64)), splat(top / F(128)), splat(top / F(256))
    s1, s2, s3, s4, s5, s6, s7, s8 = zero, zero, zero, zero, zero, zero, zero, zero
    for i in range(num_groups):
        e = load(error, 8 * i)
        s1, s2 = s1 + where_below(t1, e, zero, e), s2 + where_below(t2, e, zero, e)
        s3, s4 = s3 + where_below(t3, e, zero, e), s4 + where_below(t4, e, zero, e)
        s5, s6 = s5 + where_below(t5, e, zero, e), s6 + where_below(t6, e, zero, e)
        s7, s8 = s7 + where_below(t7, e, zero, e), s8 + where_below(t8, e, zero, e)
    for place, spent in enumerate((total(s1), total(s2), total(s3), total(s4), total(s5), total(s6), total(s7))):
        if spent <= top:
            return max(top / F(2 << place), least_error)
    if total(s8) <= top:
        return max(top / F(256), least_error)
    return max(top / F(8 * num_groups), least_error)


@njit(nogil=True, error_model="numpy")
def _pick(
    query, inv_sigma_sq, tolerance, share, spare, unit, dense_share, spend, offsets, sizes, bounds, table, blocks,
    moments, axes, known, leaves, sums64, side64, guesses, room, work,
):  # fmt: skip
    """Choose one row's nodes. Returns the number of leaves to sum, or -1 for a dense pass, and the anchor.

    The leaves go to ``leaves``. ``sums64`` holds what is carried from block to block (see ``cluster_rows``), then all
    mass errors of each level. ``guesses`` gets the guess of the mean that each level's errors refer to. ``known`` is
    the anchor so far.
    """
    dim, width = len(axes), len(query)
    num_levels = len(sizes)
    open_, groups, whole, far, gap, off, jensen, kernel, mass_error, error, lanes, origin, slope, products, stands = (
        room
    )
    # Nodes count as if they were this much farther from the mean, so that those near it cannot all be left out: at most
    # a quarter of the mass then is. Without a tolerance no node that has mass may be left out.
    least_reach = F(4 * tolerance) if tolerance > 0 else F(1)
    near = inv_sigma_sq > 1
    for k in range(dim):
        origin[k] = query[k] if near else F(0)
    inv_sq = F(inv_sigma_sq)
    scale = F(0.5) * inv_sq * LOG2E
    leaf, anchor = descend(bounds, blocks, dim, offsets, sizes, query)
    if not anchor < HUGE / F(10):  # squares leave float32, or something is not a number
        return -1, anchor
    if known < anchor:
        anchor = known
    else:
        draw_in(known, anchor, scale, sums64, side64)
    guess = lanes[8 * dim :]
    for k in range(dim):
        guess[k] = bounds[(leaf // 8 * (3 * dim + 5) + k) * 8 + leaf % 8]
        if sums64[0] > 1:  # the blocks so far give a better guess of the mean than this one's leaf
            guess[k] = side64[k] / sums64[0]
    num_groups = (sizes[num_levels - 1] + 7) // 8
    for i in range(num_groups):
        groups[i] = offsets[num_levels - 1] // 8 + i
        whole[i] = 0
    num_open, num_stand_ins, num_nodes = 0, 0, 0
    zero = splat(F(0))
    for level in range(num_levels - 1, -1, -1):
        closest = HUGE
        for i in range(num_groups):
            if whole[i] == 0:
                closest = min(closest, measure(bounds, dim, groups[i], 8 * i, query, guess, far, gap, off))
                num_nodes += 8
        if closest < anchor:  # by Jensen the nearest row is not farther than a node's mean squared distance
            draw_in(anchor, closest, scale, sums64, side64)
            anchor = closest
        open_mass = 0.0
        for i in range(num_groups):
            if whole[i] != 0:
                store(error, 8 * i, splat(HUGE))
            elif level == 0:
                open_mass += bound_leaves(
                    bounds, dim, groups[i], 8 * i, least_reach, scale, anchor, far, gap, off, mass_error, error
                )
            else:
                open_mass += bound_nodes(
                    bounds, dim, groups[i], 8 * i, moments, least_reach, inv_sq, scale, anchor, far, gap, off, kernel,
                    mass_error, error, jensen,
                )  # fmt: skip
        # The nearest row's own mass is 1 or more, though Jensen's bound of its node may be less.
        mass_floor = max(sums64[3] + open_mass, unit)
        allowed = max(tolerance * share * mass_floor - sums64[2], tolerance * spare * mass_floor) * spend[level]
        limit = _limit(error, num_groups, allowed)
        bar, errors, mass_errors, weights = splat(limit), zero, zero, zero
        rounded_up = 1 + (num_groups + 16) * ROUNDING
        if level == 1 or num_levels == 1:
            num_closed = 0.0
            for i in range(num_groups):
                num_closed += total(where_below(bar, load(error, 8 * i), zero, splat(F(1))))
            if 8 * num_groups - num_closed > dense_share * sizes[level]:
                return -1, anchor
        for k in range(dim):
            guesses[level, k] = guess[k]
        num_open = 0
        if level == 0:
            for i in range(num_groups):
                first = 8 * groups[i]
                if whole[i] != 0:
                    for j in range(first, min(first + 8, sizes[0])):
                        leaves[num_open] = j
                        num_open += 1
                    continue
                e = load(error, 8 * i)
                errors = errors + where_below(bar, e, zero, e)
                mass_errors = mass_errors + where_below(bar, e, zero, load(mass_error, 8 * i))
                closed = bits_below(e, bar) | empty_bits(bounds, dim, groups[i])
                for j in range(8):
                    leaves[num_open] = first + j
                    num_open += 1 - ((closed >> j) & 1)
            sums64[2] += total(errors) * rounded_up
            sums64[CARRIED] += total(mass_errors) * rounded_up
            break
        for k in range(8 * dim):
            lanes[k] = 0
        whole_limit = splat(F(tolerance * share * mass_floor) * WHOLE)
        for i in range(num_groups):
            group = groups[i]
            e = load(error, 8 * i)
            errors = errors + where_below(bar, e, zero, e)
            mass_errors = mass_errors + where_below(bar, e, zero, load(mass_error, 8 * i))
            closed = bits_below(e, bar) | empty_bits(bounds, dim, group)
            stand = closed & bits_below(zero, load(kernel, 8 * i))
            j = 0
            while stand >> j != 0:
                if (stand >> j) & 1:
                    num_stand_ins += 1
                    square = bounds[(group * (3 * dim + 5) + 3 * dim + 2) * 8 + j]
                    mass = stand_in(
                        table, axes, 8 * group + j, moments, kernel[8 * i + j], inv_sq, square, query, origin, slope,
                        products, stands,
                    )  # fmt: skip
                    sums64[3] += max(mass - mass_error[8 * i + j], F(0))
                    sums64[4] += mass_error[8 * i + j]
                j += 1
            if closed == 255:
                continue
            masses = where_below(bar, e, load(jensen, 8 * i), zero)
            weights = weights + masses
            base = group * (3 * dim + 5) * 8
            for k in range(dim):
                store(lanes, 8 * k, fma(masses, load(bounds, base + 8 * k), load(lanes, 8 * k)))
            all_of_it = 0
            if level == 1:
                all_of_it = whole_bits(bounds, dim, group, 8 * i, far, off, scale, anchor, least_reach, whole_limit)
            first = 8 * group - offsets[level]
            for j in range(8):
                open_[num_open] = 2 * (first + j) + ((all_of_it >> j) & 1)
                num_open += 1 - ((closed >> j) & 1)
        sums64[2] += total(errors) * rounded_up
        sums64[CARRIED + level] += total(mass_errors) * rounded_up
        for k in range(dim):
            side64[k] += stands[k]
        sums64[0] += stands[width]
        sums64[1] += stands[width + 1]
        stands[:] = 0
        weight = total(weights) + 1e-30
        for k in range(dim):
            guess[k] = (total(load(lanes, 8 * k)) + side64[k]) / (weight + sums64[0])
        num_groups = num_open
        for i in range(num_open):
            groups[i] = offsets[level - 1] // 8 + open_[i] // 2
            whole[i] = open_[i] % 2
    work[0] = num_open * LEAF
    work[1] = num_stand_ins
    work[2] = num_nodes
    return num_open, anchor


@cached_njit
def cluster_rows(
    x, inv_sigma_sq, tolerance, share, spare, unit, least_mass, dense_share, spend, offsets, sizes, bounds, table,
    blocks, moments, anchors, sums64, side64, mean, log_sum, variance, bound, work, axes, squares,
):  # fmt: skip
    """As ``kernels.dense_rows``, with a certified bound of |m - m_exact| of each row, which ``tolerance`` aims at.

    A row that would open more than ``dense_share`` of the nodes over the leaves, or whose float32 logits do not
    compare, is left for a dense pass: its bound is -1. ``spend`` is the share of the remaining tolerance that each
    level may use, leaves first. ``bounds``, ``table`` and ``blocks`` are flat. ``work`` counts pairs, stand-ins and
    nodes of each row.

    For each row there is carried from one block of the reference to the next: its anchor, HUGE at first, a squared
    distance such that the whole mass is not below 1; the columns' sums ``side64``; and in the first CARRIED places of
    ``sums64`` mass, squares, the error's bound, a floor of the mass, the stand-ins' mass errors and all mass errors.
    The last refer to ``mean``, the mean so far, and follow it: |m - a| <= |m - b| + |b - a|. ``share`` of the tolerance
    may be used up after this block. ``spare`` of it may be used within the block in any case, because it is no use to
    open everything once the bound is missed. ``unit`` is the mass that certainly exists, 1 unless other processes share
    it. ``least_mass`` is LEAST_MASS, or below 0 if the anchor may belong to rows elsewhere: then whoever adds their
    sums judges the mass.
    """
    rows, dim = x.shape
    width = -(-dim // 8) * 8
    num_levels = len(sizes)
    nodes = offsets[1] - offsets[0] + 8
    room = (
        np.empty(nodes, np.int64), np.empty(nodes, np.int64), np.zeros(nodes, np.uint8), np.empty(nodes, F),
        np.empty(nodes, F), np.empty(nodes, F), np.empty(nodes, F), np.empty(nodes, F), np.empty(nodes, F),
        np.empty(nodes, F), np.zeros(8 * dim + width, F), np.zeros(width, F), np.zeros(2 * width, F),
        np.zeros(dim * (dim + 1) // 2, F), np.zeros(width + 16, F),
    )  # fmt: skip
    leaves, counts = np.empty((rows, nodes), np.int32), np.empty(rows, np.int64)
    guesses, before = np.zeros((rows, num_levels, dim), F), mean.copy()
    query = np.zeros(width, F)
    for row in range(rows):
        for k in range(dim):  # numba compiles a check of shapes, with its message, for an assignment of arrays
            query[k] = x[row, k]
        counts[row], anchors[row] = _pick(
            query, inv_sigma_sq[row], tolerance, share, spare, unit, dense_share, spend, offsets, sizes, bounds, table,
            blocks, moments, axes, anchors[row], leaves[row], sums64[row], side64[row], guesses[row], room, work[row],
        )  # fmt: skip
    listed_rows(
        x, inv_sigma_sq, blocks, leaves, counts, sizes[0], anchors, sums64, side64, mean, log_sum, variance, axes,
        squares,
    )  # fmt: skip
    for row in range(rows):
        # The mass is not below 1 relative to the anchor, and at most a quarter was left out. If less was found, x~ is
        # so many sigmas from any row that float32 distances to nodes and to rows do not compare.
        if counts[row] < 0 or not sums64[row, 0] > least_mass:
            bound[row] = -1
            continue
        if not sums64[row, 0] > 0:  # the whole mass may vanish beside that of other processes
            for k in range(dim):
                mean[row, k] = guesses[row, 0, k]
        error = sums64[row, 2]
        if sums64[row, 5] > 0:
            error += sums64[row, 5] * _distance(mean[row], before[row])
        for level in range(num_levels):
            error += sums64[row, CARRIED + level] * _distance(mean[row], guesses[row, level])
            sums64[row, 5] += sums64[row, CARRIED + level]
        floor = sums64[row, 0] - sums64[row, 4]
        sums64[row, 2], sums64[row, 3] = error, max(floor, 0.0)
        bound[row] = error / floor if floor > 0 else np.inf


@njit(nogil=True, error_model="numpy", inline="always")
def _distance(a, b):
    square = 0.0
    for k in range(len(a)):
        step = a[k] - b[k]
        square += step * step
    return np.sqrt(square)
