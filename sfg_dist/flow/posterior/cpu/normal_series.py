"""Third and fourth cumulants of the nodes above the leaves, and what they add to the nodes' normal laws.

Notation as in ``normal_laws``. With y = V^-1 d and W = V^-1, the mass of a node is by Edgeworth's series that of its
law times 1 + q,

    q = K_ijk (y_i y_j y_k - 3 W_ij y_k) / 6 + K_ijkl (y_i y_j y_k y_l - 6 W_ij y_k y_l + 3 W_ij W_kl) / 24,

summed over all indices. sum_j w_j x_j = x~ Z + sigma^2 dZ/dx~ for any law, so that the columns' sums grow by the mass
times q (c + Q d) + (I - Q) g, where g is the gradient of q in y. Cumulants lie in the order of i <= j <= k <= l.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement
from math import factorial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from sfg_dist.flow.posterior.cpu.leaf_sums import LEAF, word
from sfg_dist.flow.posterior.cpu.normal_laws import Nodes, arrays_of
from sfg_dist.flow.posterior.cpu.simd import LANES, cached_njit, fma, load, splat, store, total

F = np.float32


@cache
def _places(dim: int, order: int) -> dict[tuple[int, ...], int]:
    """The place of each sorted index of ``order`` columns."""
    return {index: place for place, index in enumerate(combinations_with_replacement(range(dim), order))}


def _times(index: Sequence[int]) -> float:
    """In how many orders the items of an index can stand."""
    number = factorial(len(index))
    for item in set(index):
        number //= factorial(index.count(item))
    return float(number)


def num_cumulants(dim: int) -> int:
    """How many third and fourth cumulants a node of so many columns has."""
    return len(_places(dim, 3)) + len(_places(dim, 4))


def num_terms(dim: int) -> int:
    """How many numbers ``series_terms`` gives for a node."""
    return dim + len(_places(dim, 2)) + 1


def index_table(dim: int) -> NDArray[np.int64]:
    """The indices of all cumulants, int64, shape (num_cumulants, 4): i, j, k, l, and -1 for l of the third ones."""
    thirds = [(*index, -1) for index in _places(dim, 3)]
    return np.array([*thirds, *_places(dim, 4)], dtype=np.int64)


def multiplicities(dim: int) -> NDArray[np.float32]:
    """In how many orders the indices of each cumulant can stand, float32, shape (num_cumulants,)."""
    return np.array([_times(index) for order in (3, 4) for index in _places(dim, order)], F)


def contractions(dim: int) -> NDArray[np.int64]:
    """For each term but the last the cumulants that it sums: int64, shape (dim + pairs, pairs).

    Item p of a row stands beside W_jk, the p-th of the pairs j <= k.
    """
    pairs, offset = _places(dim, 2), len(_places(dim, 3))
    thirds = [[_places(dim, 3)[tuple(sorted((i, *pair)))] for pair in pairs] for i in range(dim)]
    fourths = [[offset + _places(dim, 4)[tuple(sorted((*own, *pair)))] for pair in pairs] for own in pairs]
    return np.array([*thirds, *fourths], dtype=np.int64)


@cached_njit
def node_cumulants(
    blocks, bounds, moments, width, rows_a_node, offsets, sizes, level, start, stop, index, num_thirds, table, axes
):  # fmt: skip
    """Write the cumulants of some nodes of a level above the leaves to ``table``, flat of (groups, num_cumulants, 8).

    Nodes over leaves are summed over their rows, those above over the nodes below, which must be there. ``blocks``,
    ``bounds`` and ``moments``, of ``rows_a_node`` rows of ``width`` numbers a node, are those of the clusters, flat.
    The first ``num_thirds`` rows of ``index`` are of third cumulants.
    """
    dim, num, first = len(axes), len(index), offsets[1] // 8
    lanes, steps = np.empty(8 * num, F), np.empty(dim * LEAF, F)
    sums, shift = np.empty(num), np.empty(dim)
    own, third = np.empty((dim, dim)), np.empty((dim, dim, dim))
    for i in range(start, stop):
        node = offsets[level] + i
        base, lane = node // 8 * (3 * dim + 5), node % 8
        children = range(8 * i, min(8 * i + 8, sizes[level - 1]))
        sums[:] = 0
        lanes[:] = 0
        count = bounds[(base + 3 * dim) * 8 + lane]
        for child in children:
            below = offsets[level - 1] + child
            there, seat = below // 8 * (3 * dim + 5), below % 8
            num_rows = bounds[(there + 3 * dim) * 8 + seat]
            if level == 1:
                for k in range(dim):
                    for r in range(LEAF):
                        step = blocks[(child * (dim + 1) + k) * LEAF + r] - bounds[(base + k) * 8 + lane]
                        steps[k * LEAF + r] = step if r < num_rows else F(0)
                for r in range(0, LEAF, 8):
                    for p in range(num):
                        a, b = load(steps, index[p, 0] * LEAF + r), load(steps, index[p, 1] * LEAF + r)
                        product = a * b * load(steps, index[p, 2] * LEAF + r)
                        if p >= num_thirds:
                            product = product * load(steps, index[p, 3] * LEAF + r)
                        store(lanes, 8 * p, load(lanes, 8 * p) + product)
                continue
            for k in range(dim):
                shift[k] = bounds[(there + k) * 8 + seat] - bounds[(base + k) * 8 + lane]
                for j in range(dim):
                    own[k, j] = moments[(below * rows_a_node + 1 + k) * width + j]
            for p in range(num):
                a, b, c, d = index[p, 0], index[p, 1], index[p, 2], index[p, 3]
                value = np.float64(table[((below // 8 - first) * num + p) * 8 + seat])
                if p < num_thirds:
                    third[a, b, c] = value
                    value += own[a, b] * shift[c] + own[a, c] * shift[b] + own[b, c] * shift[a]
                    value += shift[a] * shift[b] * shift[c]
                else:
                    value += own[a, b] * own[c, d] + own[a, c] * own[b, d] + own[a, d] * own[b, c]
                    value += third[a, b, c] * shift[d] + third[a, b, d] * shift[c]
                    value += third[a, c, d] * shift[b] + third[b, c, d] * shift[a]
                    value += own[a, b] * shift[c] * shift[d] + own[a, c] * shift[b] * shift[d]
                    value += own[a, d] * shift[b] * shift[c] + own[b, c] * shift[a] * shift[d]
                    value += own[b, d] * shift[a] * shift[c] + own[c, d] * shift[a] * shift[b]
                    value += shift[a] * shift[b] * shift[c] * shift[d]
                sums[p] += value * num_rows
        for k in range(dim):
            for j in range(dim):
                own[k, j] = moments[(node * rows_a_node + 1 + k) * width + j]
        for p in range(num):
            value = (sums[p] + total(load(lanes, 8 * p))) / count
            if p >= num_thirds:
                a, b, c, d = index[p, 0], index[p, 1], index[p, 2], index[p, 3]
                value -= own[a, b] * own[c, d] + own[a, c] * own[b, d] + own[a, d] * own[b, c]
            table[((node // 8 - first) * num + p) * 8 + lane] = value


@cached_njit
def series_terms(laws, law_size, first, table, num, contracted, sigma_sq, terms, axes):
    """Write what ``correct`` needs of the nodes at one sigma to ``terms``, flat of (groups, num_terms, 8).

    With sums over all indices these are K_ijk W_jk / 2, K_ijkl W_kl / 2 by its upper triangle, and
    K_ijkl W_ij W_kl / 8. ``laws`` are of ``law_size`` numbers a node, from group ``first`` on ``table`` has ``num``
    cumulants of each.
    """
    dim, (size, pairs) = len(axes), contracted.shape
    zero, inv = splat(F(0)), splat(F(1 / sigma_sq))
    inverse = np.empty(8 * pairs, F)  # W, twice off the diagonal
    for group in range(len(table) // (8 * num)):
        p = 0
        for i in range(dim):
            for j in range(i, dim):
                share = load(laws, ((first + group) * law_size + p) * 8)
                store(inverse, 8 * p, (splat(F(1)) - share) * inv if i == j else (zero - share - share) * inv)
                p += 1
        last = zero
        for row in range(size):
            value = zero
            for p in range(pairs):
                value = fma(load(table, (group * num + contracted[row, p]) * 8), load(inverse, 8 * p), value)
            store(terms, (group * (size + 1) + row) * 8, value * splat(F(1 / 2)))
            if row >= dim:
                last = fma(value, load(inverse, 8 * (row - dim)), last)
        store(terms, (group * (size + 1) + size) * 8, last * splat(F(1 / 8)))


class _Series:
    """Emits q and g of eight nodes from y."""

    def __init__(self, nodes: Nodes, own: Any, arrays: tuple[Any, Any], y: list[Any]) -> None:
        self.nodes, self.y, self.dim = nodes, y, len(y)
        self._own, (self._cumulants, self._terms) = own, arrays

    def _read(self, array: Any, size: int, row: int) -> Any:
        builder = self.nodes.builder
        place = builder.add(builder.mul(self._own, word(LANES * size)), word(LANES * row))
        return builder.load(builder.bitcast(builder.gep(array, [place]), self.nodes.zero.type.as_pointer()), align=4)

    def _contracted(self, order: int) -> list[Any]:
        """For each i the cumulants of this order summed over products of y in all other indices, over (order - 1)!."""
        nodes, dim, mul = self.nodes, self.dim, self.nodes.builder.fmul
        offset = 0 if order == 3 else len(_places(dim, 3))
        sums = [nodes.zero] * dim
        for others in _places(dim, order - 1):
            product = nodes.number(_times(others) / factorial(order - 1))
            for column in others:
                product = mul(product, self.y[column])
            for i in range(dim):
                place = offset + _places(dim, order)[tuple(sorted((i, *others)))]
                sums[i] = nodes.fma(self._read(self._cumulants, num_cumulants(dim), place), product, sums[i])
        return sums

    def sums(self) -> tuple[Any, list[Any]]:
        """q, and g by columns."""
        nodes, dim, y = self.nodes, self.dim, self.y
        sub, mul, number = nodes.builder.fsub, nodes.builder.fmul, nodes.number
        cubic, quartic = self._contracted(3), self._contracted(4)
        terms = [self._read(self._terms, num_terms(dim), row) for row in range(num_terms(dim))]
        linear, square = terms[:dim], [nodes.zero] * dim
        for (i, j), place in _places(dim, 2).items():
            square[i] = nodes.fma(terms[dim + place], y[j], square[i])
            if j > i:
                square[j] = nodes.fma(terms[dim + place], y[i], square[j])
        q, slopes = terms[-1], []
        for k in range(dim):
            slopes.append(sub(nodes.builder.fadd(sub(cubic[k], linear[k]), quartic[k]), square[k]))
            share = nodes.fma(number(1 / 3), cubic[k], mul(number(1 / 4), quartic[k]))
            share = sub(sub(share, linear[k]), mul(number(1 / 2), square[k]))
            q = nodes.fma(share, y[k], q)
        return q, slopes


@intrinsic
def correct(
    typing_context, bounds, laws, cumulants, terms, group, own, states, state_at, lanes, lanes_at, bits, axes,
    series,
):  # fmt: skip
    """Add to ``lanes`` what their cumulants change in the sums of some nodes of one group, as ``weigh`` added them.

    ``bits`` say of which. ``own`` is the group's number among those of ``cumulants`` and ``terms``. Without
    ``series`` there are no cumulants, and nothing is done.
    """
    dim, place = len(axes), types.intp
    signature = types.void(
        bounds, laws, cumulants, terms, place, place, states, place, lanes, place, types.int64, axes, series
    )  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not len(series):
            return context.get_dummy_value()
        data = arrays_of(context, builder, signature, arguments)
        arrays = {
            "bounds": data[0], "laws": data[1], "states": builder.gep(data[6], [data[7]]),
            "lanes": builder.gep(data[8], [data[9]]),
        }  # fmt: skip
        nodes = Nodes(builder, arrays, data[4:5], dim, 0)
        steps, square, gap, _ = nodes.distances()
        moved, near = nodes.shrunk(steps, square)
        y = [builder.fmul(builder.fsub(steps[k], moved(k)), nodes.state(3)) for k in range(dim)]
        q, slopes = _Series(nodes, data[5], (data[2], data[3]), y).sums()
        mass = nodes.masses(gap, square, near)[2]
        lane_bits = ir.Constant(ir.VectorType(ir.IntType(8), LANES), [1 << lane for lane in range(LANES)])
        byte = builder.trunc(data[10], ir.IntType(8))
        every = ir.Constant(lane_bits.type, ir.Undefined)
        every = builder.insert_element(every, byte, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        every = builder.shuffle_vector(every, every, zeros)
        none = ir.Constant(lane_bits.type, [0] * LANES)
        is_meant = builder.icmp_unsigned("!=", builder.and_(every, lane_bits), none)
        shrunk, _ = nodes.shrunk(slopes, nodes.zero)
        sums = [q]
        for k in range(dim):
            mean = builder.fadd(nodes.bound(k), moved(k))
            sums.append(nodes.fma(q, mean, builder.fsub(slopes[k], shrunk(k))))
        for row, value in enumerate(sums):
            at = nodes.lanes(row)
            value = builder.select(is_meant, builder.fmul(mass, value), nodes.zero)
            builder.store(builder.fadd(builder.load(at, align=4), value), at, align=4)
        return context.get_dummy_value()

    return signature, generate
