"""The innermost loop of the CPU kernels: weights of a leaf's rows and their sums, as LLVM code made for each dimension.

One leaf is LEAF rows, column by column. A row's weight is 2^((anchor - |x~ - x_j|^2) scale). The anchor is a squared
distance, about the smallest one. Its difference from another is exact where it matters, so weights are right relative
to each other however many sigmas away the rows are.

The loop is pipelined by hand: it computes the distances of one leaf, the exponentials of the leaf before and the sums
of the one before that together. A leaf's own chain of dependent instructions takes some 70 cycles, more than a
processor looks ahead; three interleaved leaves hide each other's latency (measured with AVX-512 at 6 columns: 14 cycles
for 16 pairs instead of 18). All sums stay in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from sfg_dist.flow.posterior.cpu.simd import call, compare, constant, exp2_steps, finish, fold, has_avx512, spread

F = np.float32
LEAF = 32
WIDTH = 16 if has_avx512() else 8
SUMS = 3  # beside the columns: mass, weighted squares, smallest squared distance
FLUSH = 128  # leaves after which float32 sums are added to float64: thousands of additions would lose digits
AHEAD = 4  # leaves to prefetch: lists skip leaves, so the processor cannot guess the next ones (a tenth faster)
CACHE_LINE = 16  # floats
MARGIN = F(24)  # a weight may exceed that at the anchor by 2^24 before a new anchor is taken
HUGE = F(3.0e38)
WORD = ir.IntType(64)


def word(value: int) -> ir.Constant:
    """A 64-bit integer."""
    return ir.Constant(WORD, value)


def _prefetch(builder: Any, data: Any, base: Any, num: int) -> None:
    """Prefetch the cache lines of ``num`` floats from ``base`` on."""
    byte_pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte_pointer, *[ir.IntType(32)] * 3])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch")
    to_read_and_keep = [ir.Constant(ir.IntType(32), flag) for flag in (0, 3, 1)]
    for place in range(0, num, CACHE_LINE):
        pointer = builder.gep(data, [builder.add(base, word(place))])
        builder.call(function, [builder.bitcast(pointer, byte_pointer), *to_read_and_keep])


@intrinsic
def _sum_leaves(typing_context, blocks, leaves, first, stop, query, near, scale, anchor, sums, axes, squares):
    """Write to ``sums`` those of leaves[first:stop], stop > first: columns, mass, squares, least squared distance.

    ``axes`` has one item a column, so that its type tells their number to the compiler. ``squares`` is (0,) if they are
    wanted and () if not. Squares are about x~ if ``near``, else they are the |x|^2 of the blocks' last column.
    """
    dim, per_leaf, wants_squares = len(axes), LEAF // WIDTH, len(squares) > 0
    signature = types.void(
        blocks, leaves, types.intp, types.intp, query, types.boolean, types.float32, types.float32, sums, axes, squares
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def data(place: int) -> Any:
            return context.make_array(signature.args[place])(context, builder, arguments[place]).data

        rows, list_, query_data, target = data(0), data(1), data(4), data(8)
        first, stop, near = arguments[2], arguments[3], arguments[5]
        near = builder.trunc(near, ir.IntType(1)) if near.type.width > 1 else near
        slope, level = spread(builder, arguments[6], WIDTH), spread(builder, arguments[7], WIDTH)
        query = [spread(builder, builder.load(builder.gep(query_data, [word(k)])), WIDTH) for k in range(dim)]
        zero, one = constant(0.0, WIDTH), word(1)

        def base_of(place: Any) -> Any:
            leaf = builder.sext(builder.load(builder.gep(list_, [place])), WORD)
            return builder.mul(leaf, word((dim + 1) * LEAF))

        def column(base: Any, k: int, j: int) -> Any:
            pointer = builder.gep(rows, [builder.add(base, word(k * LEAF + j * WIDTH))])
            return builder.load(builder.bitcast(pointer, zero.type.as_pointer()), align=4)

        before = builder.block
        last, end = builder.sub(stop, one), builder.add(stop, word(2))
        start = base_of(first)
        step = builder.fdiv(ir.Constant(ir.FloatType(), 126.0), arguments[6])
        step = compare(builder, ">", step, arguments[7])  # no less than the anchor, where it would be lost to rounding
        no_weight = builder.fadd(arguments[7], step)
        far = spread(builder, no_weight, WIDTH)
        head, body, done = (builder.append_basic_block(name) for name in ("leaves", "leaf", "leaves_done"))
        builder.branch(head)
        builder.position_at_end(head)

        def carried(initial: Any) -> Any:
            phi = builder.phi(initial.type)
            phi.add_incoming(initial, before)
            return phi

        place = carried(first)
        one_back, two_back = carried(start), carried(start)
        totals = [carried(zero) for _ in range(dim + 2)] + [carried(constant(float(HUGE), WIDTH))]
        # Before the first leaf: no weight, and distances that give next to none.
        weights = [carried(zero) for _ in range(per_leaf)]
        weighted = [carried(zero) for _ in range(per_leaf)]  # squared distances that belong to the weights
        squares = [carried(far) for _ in range(per_leaf)]
        builder.cbranch(builder.icmp_signed("<", place, end), body, done)

        builder.position_at_end(body)

        def later(at: Any) -> Any:
            return builder.select(builder.icmp_signed("<", at, last), at, last)

        # Past the end the last leaf is read again; what comes of it is never added.
        base = base_of(later(place))
        _prefetch(builder, rows, base_of(later(builder.add(place, word(AHEAD)))), dim * LEAF)
        exponents = [builder.fmul(builder.fsub(level, square), slope) for square in squares]
        steps = exp2_steps(builder, exponents)
        new_weights: list[Any] | None = None
        new_squares = [zero] * per_leaf
        new_totals = list(totals)
        for k in range(dim):
            for j in range(per_leaf):
                step = builder.fsub(column(base, k, j), query[k])
                new_squares[j] = call(builder, "fma", step, step, new_squares[j]) if k else builder.fmul(step, step)
            if new_weights is None:
                try:
                    next(steps)
                except StopIteration as finished:
                    new_weights = finished.value
            for j in range(per_leaf):
                new_totals[k] = call(builder, "fma", weights[j], column(two_back, k, j), new_totals[k])
        new_weights = finish(steps) if new_weights is None else new_weights
        for j in range(per_leaf):
            new_totals[dim] = builder.fadd(new_totals[dim], weights[j])
            if wants_squares:
                square = builder.select(near, weighted[j], column(two_back, dim, j))
                new_totals[dim + 1] = call(builder, "fma", weights[j], square, new_totals[dim + 1])
            new_totals[dim + 2] = compare(builder, "<", new_totals[dim + 2], new_squares[j])
        following = builder.add(place, one)
        latch = builder.block
        pairs = [(place, following), (one_back, base), (two_back, one_back)]
        pairs += [*zip(totals, new_totals, strict=True), *zip(weights, new_weights, strict=True)]
        pairs += [*zip(weighted, squares, strict=True), *zip(squares, new_squares, strict=True)]
        for phi, value in pairs:
            phi.add_incoming(value, latch)
        builder.branch(head)
        builder.position_at_end(done)
        for k, value in enumerate(totals):
            combine = (lambda a, b: compare(builder, "<", a, b)) if k == dim + 2 else builder.fadd
            builder.store(fold(builder, value, combine), builder.gep(target, [word(k)]))
        return context.get_dummy_value()

    return signature, generate


@njit(nogil=True, error_model="numpy", inline="always")
def fade(old, new, scale):
    """The factor that turns sums under the anchor ``old`` into sums under ``new`` <= old."""
    return np.exp2(max((np.float64(new) - np.float64(old)) * np.float64(scale), -1000.0))


@njit(nogil=True, error_model="numpy", inline="always")
def draw_in(old, new, scale, sums64, side64):
    """Turn a row's sums under the anchor ``old`` into those under ``new`` <= old."""
    share = fade(old, new, scale)
    for k in range(len(sums64)):
        sums64[k] *= share
    for k in range(len(side64)):
        side64[k] *= share


@njit(nogil=True, error_model="numpy")
def add_leaves(blocks, leaves, first, stop, query, near, scale, anchor, sums, sums64, side64, axes, squares):
    """Add leaves[first:stop] to the float64 sums; return the anchor, which moves in if they hold a far closer row.

    ``sums`` is scratch for dim + SUMS numbers; ``sums64`` starts with mass and squares.
    """
    dim = len(axes)
    place = first
    while place < stop:
        end = min(stop, place + FLUSH)
        _sum_leaves(blocks, leaves, place, end, query, near, scale, anchor, sums, axes, squares)
        closest = sums[dim + 2]
        if (anchor - closest) * scale > MARGIN:  # weights may have overflowed: take these leaves again
            draw_in(anchor, closest, scale, sums64, side64)
            anchor = closest
            continue
        for k in range(dim):
            side64[k] += sums[k]
        sums64[0] += sums[dim]
        sums64[1] += sums[dim + 1]
        place = end
    return anchor
