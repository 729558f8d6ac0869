"""The posterior's sums on CPUs, row by row: streamed over all rows, or over clusters within a certified bound.

Everything is in x~ = z / alpha with sigma = beta / alpha, so that weights are exp(-|x~ - x_j|^2 / (2 sigma^2)). One row
is one call's work: what it gives does not depend on the rows beside it. Squared distances are sums of squared
differences, which keep their digits where |z|^2 - 2 z.x + |x|^2 loses them.

For one row the nodes of each level, coarse to fine, are either left out, replaced by their moments, or opened; with
u = a.d, a = (x~ - c) / sigma^2, q = |d|^2 / (2 sigma^2), K = n exp(-|x~ - c|^2 / (2 sigma^2)), a node's share is

    sum_j w_j = K E e^(u - q) ~ K (1 + E u^2 / 2 - E q + E u^3 / 6 - E u q),
    sum_j w_j d_j = K E d e^(u - q) ~ K (C a + T a a / 2 - w / (2 sigma^2)),

to the order of the moments at hand; the remainders are bounded by the next absolute moments times e^max(u - q). With m^
the result, |m - m^| <= sum over nodes of |error in sum_j w_j (x_j - m^)| / Z, and Z is bounded from below by Jensen's
inequality, sum_j w_j >= n exp(-(|x~ - c|^2 + E|d|^2) / (2 sigma^2)). The errors with the smallest bounds are taken
first, as many as the tolerance allows.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sfg_dist.flow.simd import exp2, fma, larger, least, load, root, smaller, splat, store, total, where_below

F = np.float32
LOG2E = F(1.4426950408889634)
HUGE = F(3.0e38)
LEAF = 32
FLUSH = 64  # leaves after which float32 sums go over into float64
MARGIN = F(24)  # a weight may exceed that at the anchor by 2^24 before a new anchor is taken
NUM_BINS = 96


@njit(nogil=True, error_model="numpy", forceinline=True)
def _stream(blocks, dim, leaves, first, stop, query, near, scale, anchor, lanes):  # type: ignore[no-untyped-def]
    """Add leaves[first:stop] to ``lanes``, eight a column, then mass and squares; weights relative to the anchor.

    The anchor is a squared distance, about the smallest so far: its difference from another one is exact where it
    matters, so that weights are right relative to each other however many sigmas off the rows are.

    Returns the place whose leaf it could not add because it holds a row far closer than the anchor, or ``stop``. Each
    leaf is read from the cache twice: for its weights, and for its sums.
    """
    mass, square = load(lanes, 8 * dim), load(lanes, 8 * dim + 8)
    slope, level = splat(scale), splat(anchor)
    size = (dim + 1) * LEAF
    place = first
    while place < stop:
        base = leaves[place] * size
        a = splat(F(0))
        b, c, d = a, a, a
        for k in range(dim):
            at = base + k * LEAF
            q = splat(query[k])
            s, t = load(blocks, at) - q, load(blocks, at + 8) - q
            u, v = load(blocks, at + 16) - q, load(blocks, at + 24) - q
            a, b, c, d = fma(s, s, a), fma(t, t, b), fma(u, u, c), fma(v, v, d)
        if (anchor - least(smaller(smaller(a, b), smaller(c, d)))) * scale > MARGIN:
            break
        s, t = exp2((level - a) * slope), exp2((level - b) * slope)
        u, v = exp2((level - c) * slope), exp2((level - d) * slope)
        mass = mass + ((s + t) + (u + v))
        if not near:
            at = base + dim * LEAF
            a, b, c, d = load(blocks, at), load(blocks, at + 8), load(blocks, at + 16), load(blocks, at + 24)
        square = fma(s, a, fma(t, b, fma(u, c, fma(v, d, square))))
        for k in range(dim):
            at = base + k * LEAF
            left = fma(load(blocks, at), s, load(blocks, at + 8) * t)
            right = fma(load(blocks, at + 16), u, load(blocks, at + 24) * v)
            store(lanes, 8 * k, load(lanes, 8 * k) + (left + right))
        place += 1
    store(lanes, 8 * dim, mass)
    store(lanes, 8 * dim + 8, square)
    return place


@njit(nogil=True, error_model="numpy", forceinline=True)
def _closest(blocks, dim, leaf, query):  # type: ignore[no-untyped-def]
    """Smallest squared distance to a row of the leaf."""
    best = HUGE
    base = leaf * (dim + 1) * LEAF
    for j in range(0, LEAF, 8):
        square = splat(F(0))
        for k in range(dim):
            step = load(blocks, base + k * LEAF + j) - splat(query[k])
            square = fma(step, step, square)
        best = min(best, least(square))
    return best


@njit(nogil=True, error_model="numpy", inline="always")
def _fade(old, new, scale):  # type: ignore[no-untyped-def]
    """What sums under the anchor ``old`` are worth under ``new`` <= old."""
    return np.exp2(max((np.float64(new) - np.float64(old)) * np.float64(scale), -1000.0))


@njit(nogil=True, error_model="numpy", forceinline=True)
def _flush(dim, lanes, sums64, side64):  # type: ignore[no-untyped-def]
    """Move the lanes into the float64 sums: thousands of float32 additions would lose digits."""
    for k in range(dim):
        side64[k] += total(load(lanes, 8 * k))
    sums64[0] += total(load(lanes, 8 * dim))
    sums64[1] += total(load(lanes, 8 * dim + 8))
    lanes[:] = 0


@njit(nogil=True, error_model="numpy", forceinline=True)
def _add_leaves(  # type: ignore[no-untyped-def]
    blocks, dim, leaves, num, query, near, scale, anchor, lanes, sums64, side64
):
    """Add the ``num`` leaves of the list; the anchor, drawn in where they hold a far closer row."""
    place = 0
    while place < num:
        end = min(num, place + FLUSH)
        place = _stream(blocks, dim, leaves, place, end, query, near, scale, anchor, lanes)
        _flush(dim, lanes, sums64, side64)
        if place < end:
            closest = _closest(blocks, dim, leaves[place], query)
            _rescale(_fade(anchor, closest, scale), sums64, side64)
            anchor = closest
    return anchor


@njit(nogil=True, error_model="numpy", forceinline=True)
def _rescale(fade, sums64, side64):  # type: ignore[no-untyped-def]
    for k in range(len(sums64)):
        sums64[k] *= fade
    for k in range(len(side64)):
        side64[k] *= fade


@njit(nogil=True, error_model="numpy", inline="always")
def _finish(row, dim, origin, half, anchor, sums64, side64, mean, log_sum, variance):  # type: ignore[no-untyped-def]
    square = 0.0
    for k in range(dim):
        mean[row, k] = side64[k] / sums64[0]
        step = side64[k] / sums64[0] - origin[k]
        square += step * step
    log_sum[row] = np.log(sums64[0]) - np.float64(anchor) * half
    variance[row] = max(sums64[1] / sums64[0] - square, 0.0)


@njit(nogil=True, error_model="numpy", cache=True)
def dense_rows(x, inv_sigma_sq, blocks, num_leaves, mean, log_sum, variance):  # type: ignore[no-untyped-def]
    """Mean, log sum_j w_j and variance of every row of ``x`` over all leaves; ``blocks`` flat."""
    dim = x.shape[1]
    query, origin = np.zeros(dim, F), np.zeros(dim, F)
    lanes = np.zeros(8 * dim + 16, F)
    sums64, side64 = np.zeros(2), np.zeros(dim)
    leaves = np.arange(num_leaves)
    for row in range(x.shape[0]):
        # Squares are taken about x~, where the variance keeps its digits, but far from the data about the centre.
        near = inv_sigma_sq[row] > 1
        for k in range(dim):
            query[k] = x[row, k]
            origin[k] = x[row, k] if near else F(0)
        side64[:] = 0
        sums64[:] = 0
        scale = F(0.5 * inv_sigma_sq[row]) * LOG2E
        anchor = _add_leaves(blocks, dim, leaves, num_leaves, query, near, scale, HUGE, lanes, sums64, side64)
        _finish(row, dim, origin, 0.5 * inv_sigma_sq[row], anchor, sums64, side64, mean, log_sum, variance)


@njit(nogil=True, error_model="numpy", forceinline=True)
def _measure(bounds, dim, group, at, query, guess, far, gap, off):  # type: ignore[no-untyped-def]
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
def _bound(  # type: ignore[no-untyped-def]
    bounds,
    dim,
    group,
    at,
    moments,
    is_leaf,
    least_reach,
    inv_sq,
    scale,
    anchor,
    far,
    gap,
    off,
    kernel,
    mass_error,
    error,
    jensen,
):
    """Bounds of a group's error in sum_j w_j (x_j - guess) where a node is left out or stands for its rows.

    The better of the two is kept; ``kernel`` is K for a stand-in and negative for a node left out. Returns the group's
    mass at least, by Jensen's inequality.
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
    # K e^max(u - q), see the module's text; one power of two, because K and its growth may each leave exp2's range
    # where their product does not. The growth is not more than to the nearest row.
    weight = larger(k, smaller(most, count * exp2((level - d2) * slope + u * splat(LOG2E))))
    mass = mass * weight
    stand = fma(mass, reach, weight * first)
    if is_leaf:  # its rows cost no more than its moments
        stand = splat(HUGE)
    store(kernel, at, where_below(omit, stand, splat(F(-1)), k))
    store(mass_error, at, where_below(omit, stand, most, mass))
    store(error, at, smaller(omit, stand))
    j = count * exp2((level - d2 - square) * slope)
    store(jensen, at, j)
    return total(j)


@njit(nogil=True, error_model="numpy", forceinline=True)
def _stand_in(table, dim, node, moments, k, inv_sq, square, query, origin, slope, stands):  # type: ignore[no-untyped-def]
    """Add a node's moments, weighted K, to ``stands``: columns, then mass, then squares; the mass added."""
    width = -(-dim // 8) * 8
    pairs = dim * (dim + 1) // 2
    rows = 1 if moments == 1 else 1 + dim if moments == 2 else 2 + dim + pairs
    base = node * rows * width
    half = F(0.5) * inv_sq
    for c in range(0, width, 8):
        store(slope, c, (load(query, c) - load(table, base + c)) * splat(inv_sq))
    masses, rest = splat(F(0)), splat(F(0))
    for c in range(0, width, 8):
        a = load(slope, c)
        step = load(table, base + c) - load(origin, c)
        shifted = splat(F(0))
        if moments >= 2:
            at = base + width + c
            for i in range(dim):
                shifted = fma(load(table, at), splat(slope[i]), shifted)
                at += width
            masses = fma(a * splat(F(0.5)), shifted, masses)
            if moments >= 3:
                cubic = splat(F(0))
                for i in range(dim):
                    row = splat(F(0))
                    for m in range(i, dim):
                        row = fma(load(table, at), splat(slope[m]), row)
                        at += width
                    cubic = fma(row, splat(slope[i]), cubic)
                skew = load(table, at) * splat(half)
                masses = fma(a, cubic * splat(F(1 / 6)) - skew, masses)
                rest = fma(a * splat(F(2) / inv_sq), skew, rest)
                shifted = fma(cubic, splat(F(0.5)), shifted) - skew
        rest = fma(step + step, shifted, rest)
        store(slope, width + c, shifted)
    mass = F(1) - square * half + total(masses)
    squares = splat(F(0))
    for c in range(0, width, 8):
        step = load(table, base + c) - load(origin, c)
        squares = fma(step, step, squares)
        side = fma(splat(mass), load(table, base + c), load(slope, width + c))
        store(stands, c, fma(splat(k), side, load(stands, c)))
    stands[width] += k * mass
    stands[width + 1] += k * (square + total(fma(squares, splat(mass), rest)))
    return k * mass


@njit(nogil=True, error_model="numpy", forceinline=True)
def _limit(error, n, allowed, bins):  # type: ignore[no-untyped-def]
    """The error below which all nodes together stay within ``allowed``: a histogram over powers of two."""
    if not allowed > 0:
        return F(0)
    unit = F(1.0 / allowed)
    bins[:] = 0
    for j in range(n):
        e = error[j] * unit
        if e < F(1):
            exponent = np.int64(127) - np.int64(F(e).view(np.int32) >> 23)
            bins[min(max(exponent, 0), NUM_BINS - 1)] += e
    taken = 0.0
    place = NUM_BINS
    for b in range(NUM_BINS - 1, -1, -1):
        taken += bins[b]
        if taken > 1.0:
            break
        place = b
    if place == NUM_BINS:
        return F(0)
    return F(allowed) * F(2.0 ** min(1 - place, 0))


@njit(nogil=True, error_model="numpy", cache=True)
def cluster_rows(  # type: ignore[no-untyped-def]
    x, inv_sigma_sq, tolerance, dense_share, spend, offsets, sizes, bounds, table, blocks, moments,
    mean, log_sum, variance, bound, work,
):  # fmt: skip
    """As ``dense_rows``, with a certified bound of |m - m_exact| a row, which ``tolerance`` aims at.

    A row whose share of leaves to sum one by one exceeds ``dense_share``, or whose float32 logits do not compare, is
    left for a dense pass: its bound is -1.
    ``spend`` says which share of the tolerance that is left each level may use, leaves first. ``bounds``, ``table`` and
    ``blocks`` are flat. ``work`` counts pairs, stand-ins and nodes of each row.
    """
    dim = x.shape[1]
    width = -(-dim // 8) * 8
    num_levels = len(sizes)
    room = offsets[1] - offsets[0] + 8
    query, origin = np.zeros(width, F), np.zeros(width, F)
    lanes, stands = np.zeros(8 * dim + 16, F), np.zeros(width + 16, F)
    side64 = np.zeros(dim)
    # Mass, square, error bound so far, mass that stand-ins hold at least, their mass errors, then all mass errors of
    # each level: all relative to the anchor, so that one loop rescales them.
    sums64 = np.zeros(5 + num_levels)
    # Nodes left out are counted as if this much farther off, so that those near the mean cannot all be left out: what
    # is left out then holds at most a quarter of the mass.
    least_reach = F(4 * tolerance)
    guess, guesses = np.zeros(dim, F), np.zeros((num_levels, dim), F)
    groups, open_ = np.empty(room, np.int64), np.empty(room, np.int64)
    far, gap, off, jensen = np.empty(room, F), np.empty(room, F), np.empty(room, F), np.empty(room, F)
    kernel, mass_error, error = np.empty(room, F), np.empty(room, F), np.empty(room, F)
    slope, bins, blend = np.zeros(2 * width, F), np.zeros(NUM_BINS), np.zeros(dim)
    for row in range(x.shape[0]):
        near = inv_sigma_sq[row] > 1
        for k in range(dim):
            query[k] = x[row, k]
            origin[k] = x[row, k] if near else F(0)
            guess[k] = 0
        side64[:] = 0
        sums64[:] = 0
        inv_sq = F(inv_sigma_sq[row])
        scale = F(0.5) * inv_sq * LOG2E
        anchor = HUGE
        num_pairs = num_stand_ins = num_nodes = 0
        num_open = 0
        num_groups = (sizes[num_levels - 1] + 7) // 8
        for i in range(num_groups):
            groups[i] = offsets[num_levels - 1] // 8 + i
        is_dense = False
        for level in range(num_levels - 1, -1, -1):
            n = 8 * num_groups
            num_nodes += n
            closest = HUGE
            for i in range(num_groups):
                closest = min(closest, _measure(bounds, dim, groups[i], 8 * i, query, guess, far, gap, off))
            if closest < anchor:  # by Jensen the nearest row is not farther than a node's mean squared distance
                _rescale(_fade(anchor, closest, scale), sums64, side64)
                anchor = closest
            open_mass = 0.0
            for i in range(num_groups):
                open_mass += _bound(
                    bounds, dim, groups[i], 8 * i, moments, level == 0, least_reach, inv_sq, scale, anchor, far, gap,
                    off, kernel, mass_error, error, jensen,
                )  # fmt: skip
            allowed = (tolerance * (sums64[3] + open_mass) - sums64[2]) * spend[level]
            # The smallest errors are taken first, as many as the allowance covers.
            limit = _limit(error, n, allowed, bins)
            for k in range(dim):
                guesses[level, k] = guess[k]
                blend[k] = 0
            num_open = 0
            weight = 0.0
            for j in range(n):
                group = groups[j // 8]
                scalars = (group * (3 * dim + 5) + 3 * dim) * 8 + j % 8
                if bounds[scalars] == 0:
                    continue
                if error[j] < limit:
                    sums64[2] += error[j]
                    sums64[5 + level] += mass_error[j]
                    if kernel[j] > 0:
                        num_stand_ins += 1
                        mass = _stand_in(
                            table, dim, 8 * group + j % 8, moments, kernel[j], inv_sq, bounds[scalars + 16], query,
                            origin, slope, stands,
                        )  # fmt: skip
                        sums64[3] += max(mass - mass_error[j], F(0))
                        sums64[4] += mass_error[j]
                else:
                    open_[num_open] = 8 * group + j % 8 - offsets[level]
                    num_open += 1
                    weight += jensen[j]
                    if level > 0:
                        for k in range(dim):
                            blend[k] += jensen[j] * table_center(bounds, dim, group, k, j % 8)
            for k in range(dim):
                side64[k] += stands[k]
            sums64[0] += stands[width]
            sums64[1] += stands[width + 1]
            stands[:] = 0
            if level > 0:
                if weight + sums64[0] > 0:
                    for k in range(dim):
                        guess[k] = (blend[k] + side64[k]) / (weight + sums64[0])
                num_groups = num_open
                for i in range(num_open):
                    groups[i] = offsets[level - 1] // 8 + open_[i]
            elif num_open > dense_share * sizes[0]:
                is_dense = True
            else:
                anchor = _add_leaves(blocks, dim, open_, num_open, query, near, scale, anchor, lanes, sums64, side64)
                num_pairs = num_open * LEAF
        work[row, 0] = num_pairs
        work[row, 1] = num_stand_ins
        work[row, 2] = num_nodes
        # By Jensen the mass is not below 1 relative to the anchor, and at most a quarter was left out. Where it came
        # out less, x~ is so many sigmas from any row that float32 distances to nodes and to rows do not compare.
        if is_dense or not sums64[0] > 0.25:
            bound[row] = -1
            continue
        _finish(row, dim, origin, 0.5 * inv_sigma_sq[row], anchor, sums64, side64, mean, log_sum, variance)
        for level in range(num_levels):
            moved = 0.0
            for k in range(dim):
                step = mean[row, k] - guesses[level, k]
                moved += step * step
            sums64[2] += sums64[5 + level] * np.sqrt(moved)
        floor = sums64[0] - sums64[4]
        bound[row] = sums64[2] / floor if floor > 0 else np.inf


@njit(inline="always")
def table_center(bounds, dim, group, k, lane):  # type: ignore[no-untyped-def]
    """Column k of the centre of a group's node."""
    return bounds[(group * (3 * dim + 5) + k) * 8 + lane]
