"""One row of the posterior and one group of nodes: distances, error bounds, and the moments that stand for a node.

Notation as in ``kernels``. With u = a.d, a = (x~ - c) / sigma^2, q = |d|^2 / (2 sigma^2), K = n exp(-|x~ - c|^2 /
(2 sigma^2)), a node's share is

    sum_j w_j = K E e^(u - q) ~ K (1 + E u^2 / 2 - E q + E u^3 / 6 - E u q),
    sum_j w_j d_j = K E d e^(u - q) ~ K (C a + T a a / 2 - w / (2 sigma^2)),

to the order of the moments at hand; the remainders are bounded by the next absolute moments times e^max(u - q). A
node's mass is at least n exp(-(|x~ - c|^2 + E|d|^2) / (2 sigma^2)), by Jensen's inequality. All masses are relative to
the anchor, a squared distance: 2^((anchor - |x~ - x_j|^2) scale).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sfg_dist.flow.posterior.cpu.kernels import LOG2E
from sfg_dist.flow.posterior.cpu.leaf_sums import HUGE, LEAF
from sfg_dist.flow.posterior.cpu.simd import (
    bits_below,
    exp2,
    fma,
    larger,
    least,
    load,
    root,
    smaller,
    splat,
    store,
    total,
    where_below,
)

F = np.float32


@njit(nogil=True, error_model="numpy", forceinline=True)
def measure(bounds, dim, group, at, query, guess, far, gap, off):
    """|x~ - c|^2, squared distance of the box, |c - guess|^2 of a group of nodes; the least mean square distance."""
    base = group * (3 * dim + 5) * 8
    d, g, m = splat(F(0)), splat(F(0)), splat(F(0))
    zero = splat(F(0))
    for k in range(dim):
        q = splat(query[k])
        c = load(bounds, base + 8 * k)
        s, t = c - q, c - splat(guess[k])
        u = larger(larger(load(bounds, base + 8 * (dim + k)) - q, q - load(bounds, base + 8 * (2 * dim + k))), zero)
        d, m, g = fma(s, s, d), fma(t, t, m), fma(u, u, g)
    store(far, at, d)
    store(gap, at, g)
    store(off, at, m)
    mean_square = where_below(load(bounds, base + 24 * dim), zero, splat(HUGE), d + load(bounds, base + 24 * dim + 16))
    return least(mean_square)


@njit(nogil=True, error_model="numpy", forceinline=True)
def bound_nodes(
    bounds, dim, group, at, moments, least_reach, inv_sq, scale, anchor, far, gap, off, kernel, mass_error, error,
    jensen,
):  # fmt: skip
    """Bounds of the error in sum_j w_j (x_j - guess) of each node of a group, left out or standing for its rows.

    The smaller bound is kept; ``kernel`` is K for a stand-in and negative for a node left out. Returns a lower bound of
    the group's mass, by Jensen's inequality.
    """
    base = (group * (3 * dim + 5) + 3 * dim) * 8
    count, radius, square = load(bounds, base), load(bounds, base + 8), load(bounds, base + 16)
    widest, fourth = load(bounds, base + 24), load(bounds, base + 32)
    slope, level, zero = splat(scale), splat(anchor), splat(F(0))
    inv, half = splat(inv_sq), splat(F(0.5) * inv_sq)
    d2 = load(far, at)
    distance, reach = root(d2), root(load(off, at))
    inside = larger(distance - radius, zero)
    near = larger(inside * inside, load(gap, at))
    most = count * exp2((level - near) * slope)
    omit = most * (reach + radius + splat(least_reach))
    k = count * exp2((level - d2) * slope)
    a = distance * inv
    u = a * radius
    a_sq = a * a
    u_sq = a_sq * widest
    half_sq = half * half
    if moments == 3:
        spread = a_sq * fourth
        mass = smaller(u * u * u_sq, a_sq * spread) * splat(F(1 / 24)) + (
            half * smaller(radius * radius * u_sq, spread) + half_sq * fourth
        ) * splat(F(0.5))
        first = (
            smaller(radius * u * u_sq, a * spread) * splat(F(1 / 6))
            + half * a * fourth
            + radius * half_sq * fourth * splat(F(0.5))
        )
    elif moments == 2:
        cube = radius * square
        mass = u * u_sq * splat(F(1 / 6)) + half * radius * root(square * u_sq) + half_sq * fourth * splat(F(0.5))
        first = smaller(radius * u_sq, a_sq * cube) * splat(F(0.5)) + half * cube
    else:
        mixed = root(square * u_sq)
        mass = u_sq * splat(F(0.5)) + half * radius * mixed + half_sq * fourth * splat(F(0.5))
        first = mixed + half * radius * square
    # K e^max(u - q), see the module's text, as one power of two: K and the growth may each leave exp2's range though
    # their product does not. The product is not more than the weight at the nearest possible row.
    weight = larger(k, smaller(most, count * exp2((level - d2) * slope + u * splat(LOG2E))))
    mass = mass * weight
    stand = fma(mass, reach, weight * first)
    store(kernel, at, where_below(omit, stand, splat(F(-1)), k))
    store(mass_error, at, where_below(omit, stand, most, mass))
    store(error, at, smaller(omit, stand))
    j = count * exp2((level - d2 - square) * slope)
    store(jensen, at, j)
    return total(j)


@njit(nogil=True, error_model="numpy", forceinline=True)
def bound_leaves(bounds, dim, group, at, least_reach, scale, anchor, far, gap, off, mass_error, error):
    """As ``bound_nodes`` for leaves. They are left out or summed: their rows cost no more than their moments."""
    base = (group * (3 * dim + 5) + 3 * dim) * 8
    count, radius, square = load(bounds, base), load(bounds, base + 8), load(bounds, base + 16)
    slope, level, zero = splat(scale), splat(anchor), splat(F(0))
    d2 = load(far, at)
    inside = larger(root(d2) - radius, zero)
    most = count * exp2((level - larger(inside * inside, load(gap, at))) * slope)
    store(mass_error, at, most)
    store(error, at, most * (root(load(off, at)) + radius + splat(least_reach)))
    return total(count * exp2((level - d2 - square) * slope))


@njit(nogil=True, error_model="numpy", forceinline=True)
def stand_in(table, axes, node, moments, k, inv_sq, square, query, origin, slope, products, stands):
    """Add a node's moments, weighted K, to ``stands``: columns, then mass, then squares. Returns the mass."""
    dim = len(axes)
    width = (dim + 7) // 8 * 8
    pairs = dim * (dim + 1) // 2
    rows = 1 if moments == 1 else 1 + dim if moments == 2 else 2 + dim + pairs
    base = node * rows * width
    half = F(0.5) * inv_sq
    for c in range(0, width, 8):
        store(slope, c, (load(query, c) - load(table, base + c)) * splat(inv_sq))
    if moments >= 3:
        p = 0
        for i in range(dim):
            for m in range(i, dim):
                products[p] = slope[i] * slope[m]
                p += 1
    masses, rest, squares = splat(F(0)), splat(F(0)), splat(F(0))
    for c in range(0, width, 8):
        a = load(slope, c)
        step = load(table, base + c) - load(origin, c)
        shifted = splat(F(0))
        if moments >= 2:
            at = base + width + c
            for i in range(dim):
                shifted = fma(load(table, at + i * width), splat(slope[i]), shifted)
            masses = fma(a * splat(F(0.5)), shifted, masses)
        if moments >= 3:
            at = base + (1 + dim) * width + c
            even, odd = splat(F(0)), splat(F(0))  # two sums, so that neither waits for the other
            for p in range(pairs // 2):
                even = fma(load(table, at + 2 * p * width), splat(products[2 * p]), even)
                odd = fma(load(table, at + (2 * p + 1) * width), splat(products[2 * p + 1]), odd)
            if pairs % 2 == 1:
                even = fma(load(table, at + (pairs - 1) * width), splat(products[pairs - 1]), even)
            cubic = even + odd
            skew = load(table, at + pairs * width) * splat(half)
            masses = fma(a, cubic * splat(F(1 / 6)) - skew, masses)
            rest = fma(a * splat(F(2) / inv_sq), skew, rest)
            shifted = fma(cubic, splat(F(0.5)), shifted) - skew
        rest = fma(step + step, shifted, rest)
        squares = fma(step, step, squares)
        store(slope, width + c, shifted)
    mass = F(1) - square * half + total(masses)
    for c in range(0, width, 8):
        side = fma(splat(mass), load(table, base + c), load(slope, width + c))
        store(stands, c, fma(splat(k), side, load(stands, c)))
    stands[width] += k * mass
    stands[width + 1] += k * (square + total(fma(squares, splat(mass), rest)))
    return k * mass


@njit(nogil=True, error_model="numpy", forceinline=True)
def whole_bits(bounds, dim, group, at, far, off, scale, anchor, least_reach, limit):
    """Bits of the nodes none of whose leaves could be left out for ``limit``, by a quick lower bound."""
    base = (group * (3 * dim + 5) + 3 * dim) * 8
    radius = load(bounds, base + 8)
    farthest = root(load(far, at)) + radius
    least_mass = splat(F(LEAF)) * exp2((splat(anchor) - farthest * farthest) * splat(scale))
    return bits_below(limit, least_mass * (root(load(off, at)) + splat(least_reach)))


@njit(nogil=True, error_model="numpy", forceinline=True)
def empty_bits(bounds, dim, group):
    """Bits of the places of a group that hold no node, and are never opened."""
    return bits_below(load(bounds, (group * (3 * dim + 5) + 3 * dim) * 8), splat(F(0.5)))
