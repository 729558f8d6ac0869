"""Nodes that stand for their rows as normal laws: their numbers at one sigma, and what eight of them are to one row.

Notation as in ``kernels`` and ``nodes``. A node of n rows with mean c and covariance S counts as N(c, S). With
V = S + sigma^2 I, d = x~ - c and Q = S V^-1 its mass and its posterior mean are

    n sqrt(sigma^2k / det V) exp(-d' V^-1 d / 2),    c + Q d,    d' V^-1 d = (d'd - d' Q d) / sigma^2.

Q comes from the principal axes of S, with g = lambda / (lambda + sigma^2) on each. In many columns only the first few
axes are kept, and the others share their mean eigenvalue: Q = g_0 I + sum_k (g_k - g_0) u_k u_k'.

What is left out are the cumulants from the third on (Edgeworth's series), and what the covariance lost. With
u = |d| / sigma, D the distance from c to the mean over sigma, and k_j the size of what is left out of the cumulant j,
the square of the error in sum_j w_j (x_j - m) is about

    mass^2 sum_j (k_j / sigma^(j-1))^2 (p_(j-1)^2 + p_j^2 D^2),

p_1 = u, p_2 = (u^2 + 1) / 2, p_3 = (u^3 + 3 u) / 6, p_4 = (u^4 + 6 u^2 + 3) / 24. A row near x~ that is far from the
others of its node weighs more than the law knows. So what one row at the node's edge may weigh beyond the law's mass,
times its distance to the mean, is added. This is no bound: the threshold that it is compared with is what was measured.
Nodes that are wide against sigma, where the series says nothing, stand for their rows only where no row of their box
weighs anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sfg_dist.flow.posterior.cpu.leaf_sums import HUGE, word
from sfg_dist.flow.posterior.cpu.simd import (
    cached_njit,
    call,
    compare,
    constant,
    exp2_steps,
    finish,
    fma,
    load,
    root,
    splat,
    spread,
    store,
)

F = np.float32
NUMBERS = 4  # of a row's state, before x~ and the guess of its mean: slope, anchor, squared bar, 1 / sigma^2
EXTRA = 4  # of a node's numbers, after Q: n sqrt(sigma^2k / det V), (k_j / sigma^(j-1))^2 for j = 2, 3, 4
_WIDE = 1e30  # k_3 of a node that is wide against sigma is above
_MOST = 126.0


def law_rows(dim: int, rank: int) -> int:
    """How many numbers ``normal_laws`` gives for a node."""
    return (1 + rank if rank else dim * (dim + 1) // 2) + EXTRA


@cached_njit
def normal_laws(values, vectors, sizes, sigma_sq, axes, rank, laws):
    """Write the numbers of each node at one sigma to ``laws``, flat of (groups, law_rows, 8).

    They are Q by its upper triangle, or where ``rank`` axes are kept g_0 and the g_k - g_0; and then EXTRA numbers.
    ``values`` is flat of (groups, axes + 1, 8), the last being what all other axes share, ``vectors`` of (groups, axes,
    columns, 8), and ``sizes`` of (groups, 5, 8): n, k_2, k_3, k_4 and the largest sigma at which a node is wide.
    """
    dim, num_axes = len(axes), len(rank) if len(rank) > 0 else len(axes)
    head = 1 + num_axes if len(rank) > 0 else dim * (dim + 1) // 2
    zero, one, noise, sigma = splat(F(0)), splat(F(1)), splat(F(sigma_sq)), F(np.sqrt(sigma_sq))
    inv, inv_sq, inv_cube = splat(F(1) / sigma), splat(F(1 / sigma_sq)), splat(F(sigma_sq**-1.5))
    shares = np.empty(8 * (num_axes + 1), F)
    for group in range(len(sizes) // 40):
        law, size = group * (head + EXTRA) * 8, group * 40
        is_wide, num_wide = group * 40 + 32, 0
        for lane in range(8):
            num_wide += sizes[is_wide + lane] > sigma
        if num_wide == 8:
            for p in range(head + EXTRA):
                store(laws, law + 8 * p, zero)
            store(laws, law + 8 * (head + 2), splat(HUGE))
            continue
        det = one
        for k in range(num_axes + 1):
            value = load(values, (group * (num_axes + 1) + k) * 8)
            share = value / (value + noise)
            store(shares, 8 * k, share)
            for _ in range(1 if k < num_axes else dim - num_axes):
                det = det * (one - share)
        if len(rank) > 0:
            rest = load(shares, 8 * num_axes)
            store(laws, law, rest)
            for k in range(num_axes):
                store(laws, law + 8 * (1 + k), load(shares, 8 * k) - rest)
        else:
            for p in range(head):
                store(laws, law + 8 * p, zero)
            for k in range(dim):
                start, p = (group * dim + k) * dim * 8, 0
                for i in range(dim):
                    step = load(shares, 8 * k) * load(vectors, start + 8 * i)
                    for j in range(i, dim):
                        at = law + 8 * p
                        store(laws, at, fma(step, load(vectors, start + 8 * j), load(laws, at)))
                        p += 1
        second, third, fourth = load(sizes, size + 8) * inv, load(sizes, size + 16) * inv_sq, load(sizes, size + 24)
        fourth = fourth * inv_cube
        store(laws, law + 8 * head, load(sizes, size) * root(det))
        store(laws, law + 8 * (head + 1), second * second)
        store(laws, law + 8 * (head + 2), third * third)
        store(laws, law + 8 * (head + 3), fourth * fourth)
        if num_wide > 0:
            for lane in range(8):
                if sizes[is_wide + lane] > sigma:
                    laws[law + 8 * (head + 2) + lane] = HUGE


class _Node:
    """Emits what a group of eight nodes is to one row; each method returns values that stay in registers."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, dim: int, rank: int) -> None:
        self.builder, self.dim, self.rank = builder, dim, rank
        self.zero = constant(0.0)
        self._vector = self.zero.type.as_pointer()
        data = [
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, arguments, strict=True)
        ]
        self._bounds, self._laws, self._vectors, group, self._state, self.lanes = data[:6]
        self._bounds_at = builder.mul(group, word(8 * (3 * dim + 5)))
        self._laws_at = builder.mul(group, word(8 * law_rows(dim, rank)))
        self._vectors_at = builder.mul(group, word(8 * rank * dim))
        self.head = law_rows(dim, rank) - EXTRA

    def at(self, array: Any, base: Any, row: int) -> Any:
        place = self.builder.gep(array, [self.builder.add(base, word(8 * row))])
        return self.builder.bitcast(place, self._vector)

    def lane(self, row: int) -> Any:
        return self.builder.bitcast(self.builder.gep(self.lanes, [word(8 * row)]), self._vector)

    def bound(self, row: int) -> Any:
        return self.builder.load(self.at(self._bounds, self._bounds_at, row), align=4)

    def law(self, row: int) -> Any:
        return self.builder.load(self.at(self._laws, self._laws_at, row), align=4)

    def _vector_of(self, axis: int, column: int) -> Any:
        return self.builder.load(self.at(self._vectors, self._vectors_at, axis * self.dim + column), align=4)

    def state(self, place: int) -> Any:
        return spread(self.builder, self.builder.load(self.builder.gep(self._state, [word(place)])))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return call(self.builder, "fma", a, b, c)

    def distances(self) -> tuple[list[Any], Any, Any, Any]:
        """Steps d, |d|^2, the squared distances of the boxes, and those of c from the guess of the mean."""
        builder, dim = self.builder, self.dim
        steps, square, gap, off = [], self.zero, self.zero, self.zero
        for k in range(dim):
            q, center = self.state(NUMBERS + k), self.bound(k)
            steps.append(builder.fsub(q, center))
            square = self.fma(steps[k], steps[k], square)
            low, high = self.bound(dim + k), self.bound(2 * dim + k)
            out = compare(builder, ">", builder.fsub(low, q), builder.fsub(q, high))
            out = compare(builder, ">", out, self.zero)
            gap = self.fma(out, out, gap)
            away = builder.fsub(center, self.state(NUMBERS + dim + k))
            off = self.fma(away, away, off)
        return steps, square, gap, off

    def shrunk(self, steps: list[Any], square: Any) -> tuple[list[Any], Any]:
        """Q d and d' Q d."""
        builder, dim = self.builder, self.dim
        if self.rank:
            rest = self.law(0)
            moved = [builder.fmul(rest, step) for step in steps]
            near = builder.fmul(rest, square)
            for axis in range(self.rank):
                along = self.zero
                for k in range(dim):
                    along = self.fma(self._vector_of(axis, k), steps[k], along)
                scaled = builder.fmul(along, self.law(1 + axis))
                near = self.fma(scaled, along, near)
                for k in range(dim):
                    moved[k] = self.fma(self._vector_of(axis, k), scaled, moved[k])
            return moved, near
        moved, near, row = [self.zero] * dim, self.zero, 0
        for i in range(dim):
            for j in range(i, dim):
                value = self.law(row)
                moved[i] = self.fma(value, steps[j], moved[i])
                if j > i:
                    moved[j] = self.fma(value, steps[i], moved[j])
                row += 1
        for k in range(dim):
            near = self.fma(moved[k], steps[k], near)
        return moved, near

    def shape(self, u_sq: Any, reach_sq: Any, third: Any) -> Any:
        """The sum over the cumulants that are left out; see the module's text."""
        builder, mul, add = self.builder, self.builder.fmul, self.builder.fadd
        a, b = add(u_sq, constant(1.0)), add(u_sq, constant(3.0))
        c = self.fma(u_sq, add(u_sq, constant(6.0)), constant(3.0))
        p2 = mul(mul(a, a), constant(1 / 4))
        p3 = mul(mul(u_sq, constant(1 / 36)), mul(b, b))
        p4 = mul(mul(c, c), constant(1 / 576))
        shape = mul(third, self.fma(p3, reach_sq, p2))
        shape = self.fma(self.law(self.head + 3), self.fma(p4, reach_sq, p3), shape)
        if self.rank:
            shape = self.fma(self.law(self.head + 1), self.fma(p2, reach_sq, u_sq), shape)
        return compare(builder, "<", shape, constant(_WIDE))

    def add(self, first: int, mass: Any, moved: list[Any]) -> None:
        """Add masses, and masses times posterior means, to the lanes from ``first`` on."""
        builder = self.builder
        builder.store(builder.fadd(builder.load(self.lane(first), align=4), mass), self.lane(first), align=4)
        for k in range(self.dim):
            place = self.lane(first + 1 + k)
            mean = builder.fadd(self.bound(k), moved[k])
            builder.store(self.fma(mass, mean, builder.load(place, align=4)), place, align=4)


@intrinsic
def weigh(typing_context, bounds, laws, vectors, group, state, lanes, axes, rank):
    """Judge a group of nodes for one row: bits of those to be opened. The others are added to ``lanes``.

    The code is unrolled for the number of columns, one item of ``axes`` each, so that d and Q d stay in registers.
    ``state`` has NUMBERS numbers of the row, x~, and the guess of its mean. ``lanes`` has mass and columns of the nodes
    that stand for their rows, eight places each, then those of the opened ones as far as they are not wide, then the
    least mean square distances.
    """
    dim = len(axes)
    signature = types.int64(bounds, laws, vectors, types.intp, state, lanes, axes, rank)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        node = _Node(context, builder, signature, arguments, dim, len(rank))
        steps, square, gap, off = node.distances()
        moved, near = node.shrunk(steps, square)
        slope, level, bar, inv_sq = (node.state(k) for k in range(NUMBERS))
        exponents = [builder.fmul(builder.fsub(level, value), slope) for value in (gap, builder.fsub(square, near))]
        powers = finish(exp2_steps(builder, [compare(builder, "<", value, constant(_MOST)) for value in exponents]))
        count, law_count = node.bound(3 * dim), node.law(node.head)
        # A normal law reaches beyond the box of its rows, and falls short of a row far from the others.
        most = builder.fmul(count, powers[0])
        mass = compare(builder, "<", builder.fmul(law_count, powers[1]), most)
        lone = compare(builder, ">", builder.fsub(powers[0], mass), node.zero)
        radius, third = node.bound(3 * dim + 1), node.law(node.head + 2)
        reach_sq = node.fma(radius, radius, off)
        shape = node.shape(builder.fmul(square, inv_sq), builder.fmul(off, inv_sq), third)
        error = builder.fmul(builder.fmul(lone, lone), reach_sq)
        error = node.fma(builder.fmul(mass, mass), shape, error)
        is_narrow = builder.fcmp_ordered("<", third, constant(_WIDE))
        certain = builder.fmul(builder.fmul(most, most), reach_sq)
        error = compare(builder, "<", builder.select(is_narrow, error, certain), certain)
        opens = builder.fcmp_ordered(">", error, bar)
        bits = builder.zext(builder.bitcast(opens, ir.IntType(8)), ir.IntType(64))
        last = 2 * (dim + 1)
        is_empty = builder.fcmp_ordered("<=", count, node.zero)
        jensen = builder.select(is_empty, constant(float(HUGE)), builder.fadd(square, node.bound(3 * dim + 2)))
        closest = compare(builder, "<", builder.load(node.lane(last), align=4), jensen)
        builder.store(closest, node.lane(last), align=4)
        node.add(0, builder.select(opens, node.zero, mass), moved)
        with builder.if_then(builder.icmp_unsigned("!=", bits, word(0)), likely=False):
            node.add(dim + 1, builder.select(builder.and_(opens, is_narrow), mass, node.zero), moved)
        return bits

    return signature, generate
