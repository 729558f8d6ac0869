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
Where a node keeps its third and fourth cumulants, these may be added (``normal_series``). Then what is left is counted
as k_6^2 p_3^2 (p_2^2 + p_3^2 D^2) / sigma^10, with k_6^2 = k_3^4 / 20 + k_4^3 / 100, which served best. Nodes that are
wide against sigma, where the series says nothing, stand for their rows only where no row of their box weighs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sfg_dist.flow.posterior.cpu.leaf_sums import HUGE, word
from sfg_dist.flow.posterior.cpu.simd import (
    LANES,
    cached_njit,
    call,
    compare,
    constant,
    exp2_steps,
    finish,
    fma,
    load,
    root,
    smaller,
    splat,
    spread,
    store,
)

F = np.float32
NUMBERS = 4  # of a row's state, before x~ and the guess of its mean: slope, anchor, squared bar, 1 / sigma^2
EXTRA = 5  # of a node's numbers, after Q: n sqrt(sigma^2k / det V), (k_j / sigma^(j-1))^2 for j = 2, 3, 4 and 6
WIDE = 1e30  # k_3 of a node that is wide against sigma is above
_WORTH = 0.6  # of the bar: stand-ins whose error is below go without their third and fourth cumulants
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
        square = third * third * inv
        sixth = fma(square * square, splat(F(1 / 20)), fourth * fourth * fourth * inv * splat(F(1 / 100)))
        store(laws, law + 8 * (head + 4), smaller(sixth, splat(F(WIDE))))
        if num_wide > 0:
            for lane in range(8):
                if sizes[is_wide + lane] > sigma:
                    laws[law + 8 * (head + 2) + lane] = HUGE


class Nodes:
    """Emits what one or two groups of eight nodes are to one row; each method returns values that stay in registers.

    A group's own chain of dependent instructions is longer than a processor looks ahead; two hide each other's latency.
    With AVX-512 both are one vector.
    """

    def __init__(self, builder: Any, arrays: Mapping[str, Any], groups: Sequence[Any], dim: int, rank: int) -> None:
        self.builder, self.dim, self.rank = builder, dim, rank
        self._arrays, self._groups, self._width = arrays, groups, LANES * len(groups)
        self.zero = self.number(0.0)
        self._half = constant(0.0).type.as_pointer()
        self.head = law_rows(dim, rank) - EXTRA

    def number(self, value: float) -> Any:
        """The same number for every node."""
        return constant(value, self._width)

    def read(self, name: str, size: int, row: int) -> Any:
        """One number of each node of the groups, of ``size`` numbers a node in the array of this name."""
        halves, array = [], self._arrays[name]
        for group in self._groups:
            place = self.builder.add(self.builder.mul(group, word(LANES * size)), word(LANES * row))
            pointer = self.builder.bitcast(self.builder.gep(array, [place]), self._half)
            halves.append(self.builder.load(pointer, align=4))
        if len(halves) == 1:
            return halves[0]
        every = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), [*range(2 * LANES)])
        return self.builder.shuffle_vector(*halves, every)

    def bound(self, row: int) -> Any:
        """A row of ``Clusters.bounds``."""
        return self.read("bounds", 3 * self.dim + 5, row)

    def law(self, row: int) -> Any:
        """One of the nodes' numbers, see ``normal_laws``."""
        return self.read("laws", self.head + EXTRA, row)

    def _vector(self, axis: int, column: int) -> Any:
        return self.read("vectors", self.rank * self.dim, axis * self.dim + column)

    def lanes(self, row: int) -> Any:
        """Where a sum of the nodes lies."""
        place = self.builder.gep(self._arrays["lanes"], [word(2 * LANES * row)])
        return self.builder.bitcast(place, self.zero.type.as_pointer())

    def state(self, place: int) -> Any:
        """A number of the row's state, for every node."""
        pointer = self.builder.gep(self._arrays["states"], [word(place)])
        return spread(self.builder, self.builder.load(pointer), self._width)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c."""
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

    def shrunk(self, steps: list[Any], square: Any) -> tuple[Callable[[int], Any], Any]:
        """What gives a column of Q d when it is needed, and d' Q d."""
        builder, dim = self.builder, self.dim
        if self.rank:
            rest, scaled = self.law(0), []
            near = builder.fmul(rest, square)
            for axis in range(self.rank):
                along = self.zero
                for k in range(dim):
                    along = self.fma(self._vector(axis, k), steps[k], along)
                scaled.append(builder.fmul(along, self.law(1 + axis)))
                near = self.fma(scaled[axis], along, near)

            def column(k: int) -> Any:
                value = builder.fmul(rest, steps[k])
                for axis in range(self.rank):
                    value = self.fma(self._vector(axis, k), scaled[axis], value)
                return value

            return column, near
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
        return moved.__getitem__, near

    def masses(self, gap: Any, square: Any, near: Any) -> tuple[Any, Any, Any]:
        """The most that a row of each node may weigh, and all of its rows; and the mass of its law, capped by that."""
        builder = self.builder
        slope, level = self.state(0), self.state(1)
        exponents = [builder.fmul(builder.fsub(level, value), slope) for value in (gap, builder.fsub(square, near))]
        powers = finish(exp2_steps(builder, [compare(builder, "<", value, self.number(_MOST)) for value in exponents]))
        most = builder.fmul(self.bound(3 * self.dim), powers[0])
        # A normal law reaches beyond the box of its rows, and falls short of a row far from the others.
        return powers[0], most, compare(builder, "<", builder.fmul(self.law(self.head), powers[1]), most)

    def shapes(self, u_sq: Any, reach_sq: Any, third: Any) -> tuple[Any, Any]:
        """The sums over the cumulants that are left out, without and with the series; see the module's text."""
        mul, add, number = self.builder.fmul, self.builder.fadd, self.number
        a, b = add(u_sq, number(1.0)), add(u_sq, number(3.0))
        c = self.fma(u_sq, add(u_sq, number(6.0)), number(3.0))
        p2 = mul(mul(a, a), number(1 / 4))
        p3 = mul(mul(u_sq, number(1 / 36)), mul(b, b))
        p4 = mul(mul(c, c), number(1 / 576))
        weight = self.fma(p3, reach_sq, p2)
        shape = self.fma(self.law(self.head + 3), self.fma(p4, reach_sq, p3), mul(third, weight))
        if self.rank:
            shape = self.fma(self.law(self.head + 1), self.fma(p2, reach_sq, u_sq), shape)
        rest = mul(self.law(self.head + 4), mul(p3, weight))
        return compare(self.builder, "<", shape, number(WIDE)), compare(self.builder, "<", rest, number(WIDE))

    def add(self, first: int, mass: Any, moved: Callable[[int], Any]) -> None:
        """Add masses, and masses times posterior means, to the lanes from ``first`` on."""
        builder, place = self.builder, self.lanes(first)
        builder.store(builder.fadd(builder.load(place, align=4), mass), place, align=4)
        for k in range(self.dim):
            place, mean = self.lanes(first + 1 + k), builder.fadd(self.bound(k), moved(k))
            builder.store(self.fma(mass, mean, builder.load(place, align=4)), place, align=4)


def _flag(builder: Any, value: Any) -> Any:
    return builder.trunc(value, ir.IntType(1)) if value.type.width > 1 else value


def arrays_of(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """The data of arguments that are arrays, and the others as they are."""
    return [
        context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def _bits(builder: Any, flags: Any) -> Any:
    """Flags of nodes as the bits of a whole number."""
    return builder.zext(builder.bitcast(flags, ir.IntType(flags.type.count)), ir.IntType(64))


def _enough(builder: Any, flags: Any, least: Any) -> Any:
    """For all nodes of both groups, whether so many of the own group's have their flag."""
    halves, bits = [], _bits(builder, flags)
    for group in range(2):
        own = builder.trunc(builder.lshr(bits, word(LANES * group)), ir.IntType(LANES))
        is_enough = builder.icmp_signed(">=", builder.zext(builder.ctpop(own), ir.IntType(64)), least)
        halves.append(builder.sext(is_enough, ir.IntType(LANES)))
    both = [builder.zext(half, ir.IntType(2 * LANES)) for half in halves]
    whole = builder.or_(both[0], builder.shl(both[1], ir.Constant(ir.IntType(2 * LANES), LANES)))
    return builder.bitcast(whole, flags.type)


@intrinsic
def weigh(
    typing_context, bounds, laws, vectors, first, second, states, state_at, lanes, lanes_at, is_pair, is_last,
    least_worth, axes, rank, series,
):  # fmt: skip
    """Judge two groups of nodes for one row: bits of those to be opened. The others are added to ``lanes``.

    The code is unrolled for the number of columns, one item of ``axes`` each, so that d and Q d stay in registers. From
    ``state_at`` on ``states`` has NUMBERS numbers of the row, x~, and the guess of its mean. From ``lanes_at`` on
    ``lanes`` has mass and columns of the nodes that stand for their rows, 16 places each, then those of all nodes as
    far as they are neither wide nor far off, then the least mean square distances. Without ``is_pair`` the second group
    is left out. For the ``is_last`` level nothing is added for all nodes.

    With ``series``, (0,) or (), sixteen more bits say which stand-ins are worth ``correct``: those of a group with
    ``least_worth`` of them.
    """
    dim = len(axes)
    place = types.intp
    signature = types.int64(
        bounds, laws, vectors, place, place, states, place, lanes, place, types.boolean, types.boolean,
        place, axes, rank, series,
    )  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = arrays_of(context, builder, signature, arguments)
        arrays = {
            "bounds": data[0], "laws": data[1], "vectors": data[2], "states": builder.gep(data[5], [data[6]]),
            "lanes": builder.gep(data[7], [data[8]]),
        }  # fmt: skip
        nodes = Nodes(builder, arrays, data[3:5], dim, len(rank))
        pair, is_last = (_flag(builder, arguments[place]) for place in (9, 10))
        steps, square, gap, off = nodes.distances()
        moved, near = nodes.shrunk(steps, square)
        bar, inv_sq = nodes.state(2), nodes.state(3)
        one_row, most, mass = nodes.masses(gap, square, near)
        count, lone = nodes.bound(3 * dim), compare(builder, ">", builder.fsub(one_row, mass), nodes.zero)
        radius, third = nodes.bound(3 * dim + 1), nodes.law(nodes.head + 2)
        reach_sq = nodes.fma(radius, radius, off)
        u_sq = builder.fmul(square, inv_sq)
        shape, rest = nodes.shapes(u_sq, builder.fmul(off, inv_sq), third)
        radius_error = builder.fmul(builder.fmul(lone, lone), reach_sq)
        is_narrow = builder.fcmp_ordered("<", third, nodes.number(WIDE))
        certain = builder.fmul(builder.fmul(most, most), reach_sq)
        mass_sq = builder.fmul(mass, mass)

        def too_much(left_out: Any) -> Any:
            error = builder.select(is_narrow, nodes.fma(mass_sq, left_out, radius_error), certain)
            return builder.fcmp_ordered(">", compare(builder, "<", error, certain), bar)

        opens, worth = too_much(shape), None
        if len(series):
            corrected = too_much(compare(builder, "<", shape, rest))
            low_bar = builder.fmul(bar, nodes.number(_WORTH**2))
            worth = builder.fcmp_ordered(">", builder.fmul(mass_sq, shape), low_bar)
            worth = builder.and_(worth, builder.and_(is_narrow, builder.not_(corrected)))
            enough = _enough(builder, worth, data[11])
            worth = builder.and_(worth, enough)
            opens = builder.select(enough, corrected, opens)
        bits = _bits(builder, opens)
        if worth is not None:
            bits = builder.or_(bits, builder.shl(_bits(builder, worth), word(2 * LANES)))
        last = nodes.lanes(2 * (dim + 1))
        is_empty = builder.fcmp_ordered("<=", count, nodes.zero)
        jensen = builder.fadd(square, nodes.bound(3 * dim + 2))
        jensen = builder.select(is_empty, nodes.number(float(HUGE)), jensen)
        builder.store(compare(builder, "<", builder.load(last, align=4), jensen), last, align=4)
        one, none = constant(1.0), constant(0.0)
        every = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), [*range(2 * LANES)])
        live = builder.shuffle_vector(one, builder.select(pair, one, none), every)
        mass = builder.fmul(mass, live)
        nodes.add(0, builder.select(opens, nodes.zero, mass), moved)
        with builder.if_then(builder.not_(is_last)):
            # Laws far from a row weigh more than their rows, beyond float32 where no node is near it.
            is_near = builder.fcmp_ordered("<", u_sq, nodes.number(48.0 + 4 * dim))
            nodes.add(dim + 1, builder.select(builder.and_(is_narrow, is_near), mass, nodes.zero), moved)
        return builder.select(pair, bits, builder.and_(bits, word(0x00FF00FF)))

    return signature, generate
