"""One row of the posterior over nodes that stand for their rows as normal laws, within a threshold of expected error.

Notation as in ``kernels`` and ``nodes``. A node of n rows with mean c and covariance S counts as N(c, S). With
V = S + sigma^2 I, d = x~ - c and Q = S V^-1 its mass and its posterior mean are

    n sqrt(sigma^2k / det V) exp(-d' V^-1 d / 2),    c + Q d,    d' V^-1 d = (d'd - d' Q d) / sigma^2.

What is left out are the cumulants from the third on (Edgeworth's series). With u = |d| / sigma, D the distance from c
to the mean, and k3 and k4 the sizes of third and fourth cumulants, the error in sum_j w_j (x_j - m) is about

    mass (k3 / sigma^2 (p2 + p3 D / sigma) + k4 / sigma^3 (p3 + p4 D / sigma)),

p2 = (u^2 + 1) / 2, p3 = (u^3 + 3 u) / 6, p4 = (u^4 + 6 u^2 + 3) / 24. A row near x~ that is far from the others of its
node weighs more than the law knows. So what one row at the node's edge may weigh beyond the law's mass, times its
distance to the mean, is added. This is no bound: the threshold that it is compared with is what was measured. Nodes
that are wide against sigma, where the series says nothing, stand for their rows only where no row of their box weighs
anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from sfg_dist.flow.posterior.cpu.kernels import LOG2E, listed_rows
from sfg_dist.flow.posterior.cpu.leaf_sums import HUGE, LEAF, draw_in, word
from sfg_dist.flow.posterior.cpu.simd import (
    bits_below,
    cached_njit,
    call,
    compare,
    constant,
    exp2_steps,
    finish,
    fma,
    fold,
    load,
    root,
    smaller,
    splat,
    spread,
    store,
    total,
    where_below,
)
from sfg_dist.flow.posterior.cpu.traversal import descend

F = np.float32
MARGIN = F(60)  # powers of two that a row may weigh more than at the anchor
EXTRA = 3  # of a node's numbers, after Q: n sqrt(sigma^2k / det V), k3 / sigma^2, k4 / sigma^3


@cached_njit
def normal_laws(covariance, count, sigma_sq, third, fourth, widest, axes, laws):
    """Write the numbers of each node at one sigma to ``laws``, flat of (groups, pairs + EXTRA, 8).

    They are Q by its upper triangle, n sqrt(sigma^2k / det V), and the sizes of cumulants in units of sigma, of which
    the first is HUGE where the node is wider than ``widest`` sigmas. ``covariance`` is flat of (groups, pairs, 8).
    """
    dim = len(axes)
    pairs = dim * (dim + 1) // 2
    inv_sq, inv_cube, sigma = F(1 / sigma_sq), F(sigma_sq**-1.5), F(np.sqrt(sigma_sq))
    inverse, row, pivot, det = np.empty(8 * dim * dim, F), np.empty(8 * dim, F), np.empty(8, F), np.empty(8, F)
    zero, one = splat(F(0)), splat(F(1))
    for group in range(len(count)):
        start, law = group * pairs * 8, group * (pairs + EXTRA) * 8
        num_narrow = 0
        for lane in range(8):
            is_narrow = widest[group, lane] <= sigma
            num_narrow += is_narrow
            laws[law + 8 * (pairs + 1) + lane] = third[group, lane] * inv_sq if is_narrow else HUGE
            laws[law + 8 * (pairs + 2) + lane] = fourth[group, lane] * inv_cube
        if num_narrow == 0:
            for p in range(pairs + 1):
                store(laws, law + 8 * p, zero)
            continue
        p = 0
        for i in range(dim):
            for j in range(i, dim):
                value = load(covariance, start + 8 * p) * splat(inv_sq)
                store(inverse, 8 * (i * dim + j), value)
                store(inverse, 8 * (j * dim + i), value)
                p += 1
            store(inverse, 8 * (i * dim + i), load(inverse, 8 * (i * dim + i)) + one)
        product = one
        for k in range(dim):  # Gauss and Jordan; the pivots of I + S / sigma^2 are 1 or more
            product = product * load(inverse, 8 * (k * dim + k))
            for lane in range(8):
                pivot[lane] = F(1) / inverse[8 * (k * dim + k) + lane]
            for j in range(dim):
                store(row, 8 * j, load(inverse, 8 * (k * dim + j)) * load(pivot, 0))
            for i in range(dim):
                if i != k:
                    factor = zero - load(inverse, 8 * (i * dim + k))
                    for j in range(dim):
                        store(
                            inverse, 8 * (i * dim + j), fma(factor, load(row, 8 * j), load(inverse, 8 * (i * dim + j)))
                        )
                    store(inverse, 8 * (i * dim + k), factor * load(pivot, 0))
            for j in range(dim):
                store(inverse, 8 * (k * dim + j), load(row, 8 * j))
            store(inverse, 8 * (k * dim + k), load(pivot, 0))
        p = 0
        for i in range(dim):
            store(laws, law + 8 * p, one - load(inverse, 8 * (i * dim + i)))
            for j in range(i + 1, dim):
                store(laws, law + 8 * (p + j - i), zero - load(inverse, 8 * (i * dim + j)))
            p += dim - i
        store(det, 0, product)
        for lane in range(8):
            laws[law + 8 * pairs + lane] = count[group, lane] / np.sqrt(det[lane])


@intrinsic
def _weigh(typing_context, bounds, laws, group, at, query, slope, level, mass, most, lone, far, means, axes):
    """Masses, most that they may be, what a lone row may add, distances and posterior means of a group.

    Returns the group's least mean square distance.
    The code is unrolled for the number of columns, one item of ``axes`` each, so that d and Q d stay in registers. The
    means go to ``means`` from ``at`` times the number of columns on.
    """
    dim = len(axes)
    pairs = dim * (dim + 1) // 2
    signature = types.float32(
        bounds, laws, types.intp, types.intp, query, types.float32, types.float32, mass, most, lone, far, means, axes
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def data(place: int) -> Any:
            return context.make_array(signature.args[place])(context, builder, arguments[place]).data

        vector = constant(0.0).type.as_pointer()

        def place_of(array: Any, base: Any, row: int) -> Any:
            return builder.bitcast(builder.gep(array, [builder.add(base, word(8 * row))]), vector)

        bounds_data, laws_data, query_data, means_data = data(0), data(1), data(4), data(11)
        base, law = (builder.mul(arguments[2], word(8 * size)) for size in (3 * dim + 5, pairs + EXTRA))
        at = arguments[3]
        target = builder.mul(at, word(dim))

        def bound(row: int) -> Any:
            return builder.load(place_of(bounds_data, base, row), align=4)

        slope, level, zero = spread(builder, arguments[5]), spread(builder, arguments[6]), constant(0.0)
        steps, d2, gap = [], zero, zero
        for k in range(dim):
            q = spread(builder, builder.load(builder.gep(query_data, [word(k)])))
            steps.append(builder.fsub(q, bound(k)))
            d2 = call(builder, "fma", steps[k], steps[k], d2)
            out = compare(builder, ">", builder.fsub(bound(dim + k), q), builder.fsub(q, bound(2 * dim + k)))
            out = compare(builder, ">", out, zero)
            gap = call(builder, "fma", out, out, gap)
        moved, row = [zero] * dim, 0
        for i in range(dim):
            for j in range(i, dim):
                value = builder.load(place_of(laws_data, law, row), align=4)
                moved[i] = call(builder, "fma", value, steps[j], moved[i])
                if j > i:
                    moved[j] = call(builder, "fma", value, steps[i], moved[j])
                row += 1
        near = zero
        for k in range(dim):
            near = call(builder, "fma", moved[k], steps[k], near)
            builder.store(builder.fadd(bound(k), moved[k]), place_of(means_data, target, k), align=4)
        distance = call(builder, "sqrt", d2)
        inside = compare(builder, ">", builder.fsub(distance, bound(3 * dim + 1)), zero)
        nearest = compare(builder, ">", builder.fmul(inside, inside), gap)
        exponents = [builder.fmul(builder.fsub(level, nearest), slope)]
        exponents.append(builder.fmul(builder.fsub(level, builder.fsub(d2, near)), slope))
        powers = finish(exp2_steps(builder, [compare(builder, "<", value, constant(126.0)) for value in exponents]))
        limit = builder.fmul(bound(3 * dim), powers[0])
        # A normal law reaches beyond the box of its rows, and falls short of a row far from the others.
        law_mass = builder.fmul(builder.load(place_of(laws_data, law, pairs), align=4), powers[1])
        law_mass = compare(builder, "<", law_mass, limit)
        lone = compare(builder, ">", builder.fsub(powers[0], law_mass), zero)
        values = {7: law_mass, 8: limit, 9: lone, 10: distance}
        for place, value in values.items():
            builder.store(value, place_of(data(place), at, 0), align=4)
        is_empty = builder.fcmp_ordered("<=", bound(3 * dim), zero)
        square = builder.select(is_empty, constant(float(HUGE)), builder.fadd(d2, bound(3 * dim + 2)))
        return fold(builder, square, lambda a, b: compare(builder, "<", a, b))

    return signature, generate


@njit(nogil=True, error_model="numpy", forceinline=True)
def _expected_error(bounds, laws, axes, group, at, guess, inv_sigma, mass, most, lone, far):
    """The error that each node of a group is expected to add; see the module's text."""
    dim = len(axes)
    pairs = dim * (dim + 1) // 2
    base, law = group * (3 * dim + 5) * 8, group * (pairs + EXTRA) * 8
    off = splat(F(0))
    for k in range(dim):
        d = load(bounds, base + 8 * k) - splat(guess[k])
        off = fma(d, d, off)
    off = root(off)
    inv = splat(inv_sigma)
    u = load(far, at) * inv
    u2 = u * u
    reach = off * inv
    p2 = fma(u2, splat(F(0.5)), splat(F(0.5)))
    p3 = u * fma(u2, splat(F(1 / 6)), splat(F(0.5)))
    p4 = fma(fma(u2, splat(F(1 / 24)), splat(F(0.25))), u2, splat(F(0.125)))
    third, fourth = load(laws, law + 8 * (pairs + 1)), load(laws, law + 8 * (pairs + 2))
    shape = fma(third, fma(p3, reach, p2), fourth * fma(p4, reach, p3))
    reach = off + load(bounds, base + 24 * dim + 8)
    return smaller(fma(load(mass, at), shape, load(lone, at) * reach), load(most, at) * reach)


@njit(nogil=True, error_model="numpy")
def _pick(
    query, inv_sigma_sq, threshold, offsets, sizes, bounds, laws, blocks, axes, leaves, sums64, side64, room, work
):
    """Choose one row's nodes and add those that stand for their rows. Returns the number of leaves, and the anchor."""
    dim = len(axes)
    pairs = dim * (dim + 1) // 2
    groups, open_, mass, most, lone, far, means, lanes, guess = room
    inv_sq, inv_sigma = F(inv_sigma_sq), F(np.sqrt(inv_sigma_sq))
    scale = F(0.5) * inv_sq * LOG2E
    leaf, anchor = descend(bounds, blocks, dim, offsets, sizes, query)
    if not anchor < HUGE / F(10):  # squares leave float32, or something is not a number
        return -1, anchor
    for k in range(dim):
        guess[k] = bounds[(leaf // 8 * (3 * dim + 5) + k) * 8 + leaf % 8]
    top = len(sizes) - 1
    num_groups = (sizes[top] + 7) // 8
    for i in range(num_groups):
        groups[i] = offsets[top] // 8 + i
    zero, num_open, num_stand_ins, num_nodes = splat(F(0)), 0, 0, 0
    level = top
    while True:
        closest = HUGE
        for k in range(8 * (dim + 1)):
            lanes[k] = 0
        for i in range(num_groups):
            closest = min(
                closest,
                _weigh(bounds, laws, groups[i], 8 * i, query, scale, anchor, mass, most, lone, far, means, axes),
            )
            # A node that is too wide says nothing about its mass.
            narrow = load(laws, (groups[i] * (pairs + EXTRA) + pairs + 1) * 8)
            w = where_below(splat(F(1e30)), narrow, zero, load(mass, 8 * i))
            store(lanes, 0, load(lanes, 0) + w)
            for k in range(dim):
                store(lanes, 8 + 8 * k, fma(w, load(means, 8 * (i * dim + k)), load(lanes, 8 + 8 * k)))
        num_nodes += 8 * num_groups
        if (anchor - closest) * scale > MARGIN:  # masses may have left float32: take this level again
            draw_in(anchor, closest, scale, sums64, side64)
            anchor = closest
            continue
        # The nearest row's own mass is 1 or more, though its nodes say nothing about it yet.
        known = sums64[0] + total(load(lanes, 0))
        if known > 1:
            for k in range(dim):
                guess[k] = (side64[k] + total(load(lanes, 8 + 8 * k))) / known
        bar = splat(F(threshold * max(known, 1.0)))
        for k in range(8 * (dim + 1)):
            lanes[k] = 0
        num_open = 0
        for i in range(num_groups):
            error = _expected_error(bounds, laws, axes, groups[i], 8 * i, guess, inv_sigma, mass, most, lone, far)
            opened = bits_below(bar, error)
            if opened != 255:
                w = where_below(error, bar, load(mass, 8 * i), zero)
                store(lanes, 0, load(lanes, 0) + w)
                for k in range(dim):
                    store(lanes, 8 + 8 * k, fma(w, load(means, 8 * (i * dim + k)), load(lanes, 8 + 8 * k)))
            if opened != 0:
                first = 8 * groups[i] - offsets[level]
                for j in range(8):
                    open_[num_open] = first + j
                    num_open += (opened >> j) & 1
        sums64[0] += total(load(lanes, 0))
        for k in range(dim):
            side64[k] += total(load(lanes, 8 + 8 * k))
        if closest < anchor:  # the nearest row is not farther than a node's mean squared distance
            draw_in(anchor, closest, scale, sums64, side64)
            anchor = closest
        num_stand_ins += 8 * num_groups - num_open
        if level == 0:
            break
        level -= 1
        num_groups = num_open
        for i in range(num_open):
            groups[i] = offsets[level] // 8 + open_[i]
    for i in range(num_open):
        leaves[i] = open_[i]
    work[0] = num_open * LEAF
    work[1] = num_stand_ins
    work[2] = num_nodes
    return num_open, anchor


@cached_njit
def normal_rows(
    x, inv_sigma_sq, threshold, offsets, sizes, bounds, laws, blocks, mean, log_sum, variance, work, counts, sums64,
    axes,
):  # fmt: skip
    """As ``kernels.dense_rows`` without variances, over nodes whose expected error is below ``threshold``.

    ``threshold`` is a share of the whole mass times a length. ``bounds``, ``laws`` (see ``normal_laws``) and ``blocks``
    are flat. ``work`` counts pairs, stand-ins and nodes of each row. ``counts`` is negative for rows whose float32
    distances do not compare; ``sums64`` has each row's mass, relative to that of a near row.
    """
    rows, dim = x.shape
    nodes = offsets[1] - offsets[0] + 8
    room = (
        np.empty(nodes, np.int64), np.empty(nodes, np.int64), np.empty(nodes, F), np.empty(nodes, F),
        np.empty(nodes, F), np.empty(nodes, F), np.empty(nodes * dim, F), np.empty(8 * (dim + 1), F), np.empty(dim, F),
    )  # fmt: skip
    leaves, anchors, side64 = np.empty((rows, nodes), np.int32), np.empty(rows, F), np.zeros((rows, dim))
    for row in range(rows):
        counts[row], anchors[row] = _pick(
            x[row], inv_sigma_sq[row], threshold, offsets, sizes, bounds, laws, blocks, axes, leaves[row], sums64[row],
            side64[row], room, work[row],
        )  # fmt: skip
    listed_rows(
        x, inv_sigma_sq, blocks, leaves, counts, sizes[0], anchors, sums64, side64, mean, log_sum, variance, axes, ()
    )
