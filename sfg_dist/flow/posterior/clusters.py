"""Compact clusters of a reference set: an ordering of its rows and the moments of nested runs of them.

The rows are ordered by binary splits at multiples of a node's size, so the tree is implicit: leaf i is rows
[i L, (i + 1) L), and node i of one level holds nodes [8 i, 8 i + 8) of the level below. A split takes the column and
the place that lower the sum of squares about the parts' means most. Halving the widest side, as a k-d tree does,
spends its splits on the tails of a column whose bulk is narrow (on the power table its leaves are 1.7 times as wide).
For every node stand its number of rows n, centre c, box, radius rho, and with d = x - c

    C = E d d',    trace E|d|^2,    largest eigenvalue of C,    E|d|^4,    w = E d |d|^2,    T_ijk = E d_i d_j d_k,

as far as the dimension allows: C up to ``MAX_COVARIANCE_DIM`` columns and T up to ``MAX_THIRD_DIM``. The build is
deterministic, so clusters are a function of the rows alone, whoever builds them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.kernel_cache import cached_njit
from sfg_dist.job.threads import usable_cpus

F = np.float32
FAN = 8
LEAF_ROWS = 32
PADDING = F(1e10)  # so far off that its weight is nothing, near enough that its square is finite
MAX_COVARIANCE_DIM = 32
MAX_THIRD_DIM = 8
MAX_TOP_NODES = 16
PARALLEL_ROWS = 1 << 18
SPLIT_SAMPLE = 1024
_CHUNK_LEAVES = 1 << 12  # laid out at a time
_NODE_ROWS = 1 << 17  # whose nodes are made at a time
_EIGEN_NODES = 1 << 12  # whose covariances are looked at together

Mapper = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Clusters:
    """The ordered rows and the nodes over them; all levels lie one after the other, leaves first."""

    order: NDArray[np.int64]  # row numbers of the reference in the clusters' order, int64, shape (num_rows,)
    # the ordered rows, column by column within leaves, and |x|^2 as the last column: float32, shape (num_leaves, dim +
    # 1, LEAF_ROWS). Rows that fill up the last leaf lie at PADDING.
    blocks: NDArray[np.float32]
    largest_square: float  # the largest |x|^2
    num_rows: int  # rows of the reference
    dim: int  # columns of the reference
    offsets: NDArray[np.int64]  # first node of each level, and the end; multiples of FAN, int64
    sizes: NDArray[np.int64]  # nodes of each level, int64
    # of each group of FAN nodes the centres, boxes (low, high) and scalars (count, radius, E|d|^2, largest eigenvalue
    # of C, E|d|^4): float32, shape (num_nodes / FAN, 3 dim + 5, FAN)
    bounds: NDArray[np.float32]
    # of each node the centre, C, T over pairs i <= j (off-diagonal ones counted twice) and w, as far as
    # ``moment_order`` goes: float32, shape (num_nodes, rows, dim padded to a multiple of 8)
    moments: NDArray[np.float32]

    @property
    def moment_order(self) -> int:
        """Highest moment that a stand-in uses: 3, 2, or 1."""
        return moment_order(self.dim)


def moment_order(dim: int) -> int:
    """Highest moment kept in ``dim`` columns: a third-moment tensor must stay small beside the rows of a leaf."""
    return 3 if dim <= MAX_THIRD_DIM else 2 if dim <= MAX_COVARIANCE_DIM else 1


def build_order(rows: NDArray[np.float32], *, mapper: Mapper = map) -> NDArray[np.int64]:
    """The clusters' ordering of rows, float32, shape (num_rows, dim), finite: row numbers, int64, shape (num_rows,).

    ``mapper`` runs a function over independent subtrees: ``map`` of a pool, or tasks of a cluster.
    """
    order = np.arange(len(rows), dtype=np.int64)
    starts = [0]
    if len(rows) > PARALLEL_ROWS:
        columns = np.ascontiguousarray(rows.T)
        starts = sorted(_order_range(columns, order, 0, len(rows), LEAF_ROWS, PARALLEL_ROWS // 2))
    parts = list(itertools.pairwise([*starts, len(rows)]))
    orders = mapper(order_part, [rows[order[low:high]] for low, high in parts])
    return np.concatenate([order[low:high][part] for (low, high), part in zip(parts, orders, strict=True)])


def split_once(columns: NDArray[np.float32], order: NDArray[np.int64], low: int, high: int) -> list[int]:
    """Split ``order[low:high]`` of rows that are given by their columns, once; the first places of both parts."""
    return sorted(_order_range(columns, order, low, high, LEAF_ROWS, high - low - 1))


def order_part(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """The ordering of one subtree's rows."""
    order = np.arange(len(rows), dtype=np.int64)
    _order_range(np.ascontiguousarray(rows.T), order, 0, len(rows), LEAF_ROWS, LEAF_ROWS)
    return order


def build_clusters(rows: NDArray[np.float32], *, order: NDArray[np.int64] | None = None) -> Clusters:
    """The moments of every node over the ordered rows: a centred reference, float32, shape (num_rows, dim), finite.

    ``order`` is what ``build_order`` gave for the same rows, if it was made earlier.
    """
    num_rows, dim = rows.shape
    if order is None:
        order = build_order(rows)
    ordered = np.ascontiguousarray(rows[order])
    shapes, (sizes, offsets) = clusters_shapes(num_rows, dim), levels(num_rows)
    bounds, table = np.zeros(shapes["bounds"], F), np.zeros(shapes["moments"], F)
    fill_nodes(ordered, bounds, table)
    return Clusters(
        order=order,
        blocks=make_blocks(ordered),
        largest_square=largest_square(ordered),
        num_rows=num_rows,
        dim=dim,
        offsets=offsets,
        sizes=sizes,
        bounds=bounds,
        moments=table,
    )


def fill_nodes(
    ordered: NDArray[np.float32],
    bounds: NDArray[np.float32],
    table: NDArray[np.float32],
    *,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Write ``Clusters.bounds`` and ``Clusters.moments``, which are zeros, over the ordered rows.

    Threads share out the nodes. ``done`` is called after each part of them.
    """
    num_rows, dim = ordered.shape
    sizes, offsets = _levels(num_rows)
    moments = moment_order(dim)

    def fill(level: int, first: int) -> None:
        span, step = LEAF_ROWS * FAN**level, _step(level)
        rows = ordered[first * span : (first + step) * span]
        _node_moments(rows, span, offsets[level] + first, min(step, sizes[level] - first), moments, bounds, table)

    def widest(nodes: slice) -> None:
        covariance = table[nodes, 1 : 1 + dim, :dim].astype(np.float64)
        found = np.linalg.eigvalsh(covariance)[:, -1]
        bounds[nodes.start // FAN : nodes.stop // FAN, 3 * dim + 3] = found.reshape(-1, FAN).clip(0)

    with ThreadPoolExecutor(usable_cpus() if num_rows > PARALLEL_ROWS else 1) as pool:
        for level, size in enumerate(sizes):
            for _ in pool.map(partial(fill, level), range(0, size, _step(level))):
                done()
        if moments >= 2:
            starts = range(0, len(table), _EIGEN_NODES)
            for _ in pool.map(widest, [slice(start, min(start + _EIGEN_NODES, len(table))) for start in starts]):
                done()
        else:
            bounds[:, 3 * dim + 3] = bounds[:, 3 * dim + 2]
    bounds[:, 3 * dim + 1 :] *= F(1 + 1e-6)  # bounds may be rounded up, never down


def _step(level: int) -> int:
    """So many nodes of a level are filled in at a time."""
    return max(1, _NODE_ROWS // (LEAF_ROWS * FAN**level))


def largest_square(rows: NDArray[np.float32]) -> float:
    """The largest |x|^2 of rows."""
    return float(np.einsum("ij,ij->i", rows, rows, dtype=np.float64).max())


def levels(num_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``Clusters.sizes`` and ``Clusters.offsets`` of a table of so many rows."""
    sizes, offsets = _levels(num_rows)
    return np.array(sizes, dtype=np.int64), np.array(offsets, dtype=np.int64)


def clusters_shapes(num_rows: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of ``Clusters`` over a table of this size, by name."""
    sizes, offsets = _levels(num_rows)
    pairs = dim * (dim + 1) // 2
    rows = {1: 1, 2: 1 + dim, 3: 2 + dim + pairs}[moment_order(dim)]
    return {
        "blocks": (sizes[0], dim + 1, LEAF_ROWS),
        "bounds": (offsets[-1] // FAN, 3 * dim + 5, FAN),
        "moments": (offsets[-1], rows, -(-dim // 8) * 8),
        "offsets": (len(offsets),),
        "sizes": (len(sizes),),
    }


def _levels(num_rows: int) -> tuple[list[int], list[int]]:
    """Nodes of each level, leaves first; and the first node of each, and the end."""
    sizes = [-(-num_rows // LEAF_ROWS)]
    while sizes[-1] > MAX_TOP_NODES:
        sizes.append(-(-sizes[-1] // FAN))
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // FAN) * FAN)  # whole groups, so that a group is read without a test
    return sizes, offsets


def make_blocks(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows column by column within leaves, then |x|^2; see ``Clusters.blocks``."""
    num_rows, dim = rows.shape
    num_blocks = -(-num_rows // LEAF_ROWS)
    blocks = _aligned((num_blocks, dim + 1, LEAF_ROWS))
    for start in range(0, num_blocks, _CHUNK_LEAVES):
        part = blocks[start : start + _CHUNK_LEAVES]
        own = rows[start * LEAF_ROWS : (start + len(part)) * LEAF_ROWS]
        table = np.full((len(part) * LEAF_ROWS, dim + 1), PADDING)
        table[len(own) :, dim] = dim * PADDING * PADDING
        table[: len(own), :dim] = own
        table[: len(own), dim] = np.einsum("ij,ij->i", own, own, dtype=np.float64)
        part[:] = table.reshape(len(part), LEAF_ROWS, dim + 1).transpose(0, 2, 1)
    return blocks


def _aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array that starts at a cache line, so that no vector of it lies across two."""
    size = math.prod(shape)
    room = np.empty(size + 16, F)
    first = -(room.ctypes.data // F().itemsize) % 16
    return room[first : first + size].reshape(shape)


@cached_njit(nogil=True)
def _quickselect(key, order, low, high, k):
    """Reorder order[low:high] so that keys before place k are not above those from k on."""
    high -= 1
    while low < high:
        a, b, c = key[order[low]], key[order[(low + high) >> 1]], key[order[high]]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while key[order[i]] < pivot:
                i += 1
            while key[order[j]] > pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            return


@cached_njit(nogil=True)
def _best_split(columns, order, first, last, unit):
    """Column and place, a multiple of ``unit``, whose split takes the most from the sum of squares; the gain.

    Splitting n rows into n_l and n_r takes n_l n_r / n (mean_r - mean_l)^2 of it. Looked at on evenly spaced rows.
    """
    rows = last - first
    num, parts = min(rows, SPLIT_SAMPLE), -(-rows // unit)
    best, column, part = 0.0, -1, 1
    values = np.empty(num)
    for k in range(columns.shape[0]):
        mean = 0.0
        for i in range(num):
            values[i] = columns[k, order[first + i * rows // num]]
            mean += values[i] / num
        values.sort()
        below, place = 0.0, 0  # sum about the mean of the values below the split
        for p in range(1, parts):
            left = p * unit * num // rows
            while place < left:
                below += values[place] - mean
                place += 1
            if 0 < left < num:
                gain = below * below * num / (left * (num - left))
                if gain > best:
                    best, column, part = gain, k, p
    return column, first + part * unit


@cached_njit(nogil=True)
def _order_range(columns, order, low, high, leaf_rows, stop_rows):
    """Split order[low:high] until parts have at most ``stop_rows`` rows; the parts' first places.

    A run of up to eight nodes of one size is cut between two of them, so that nodes stay whole whatever the shares.
    """
    stack = [(low, high)]
    starts = [low for _ in range(0)]
    while len(stack) > 0:
        first, last = stack.pop()
        if last - first <= stop_rows:
            starts.append(first)
            continue
        unit = leaf_rows
        while unit * FAN < last - first:
            unit *= FAN
        column, middle = _best_split(columns, order, first, last, unit)
        if column >= 0:
            _quickselect(columns[column], order, first, last, middle)
        stack.append((first, middle))
        stack.append((middle, last))
    return starts


@cached_njit(nogil=True)
def _node_moments(rows, span, offset, size, moments, bounds, table):
    """Bounds and moments of one level's nodes, each of ``span`` rows."""
    num_rows, dim = rows.shape
    mean, delta = np.zeros(dim), np.zeros(dim)
    second = np.zeros((dim, dim))
    pairs = dim * (dim + 1) // 2
    cube = np.zeros((pairs + 1, dim))
    for i in range(size):
        begin, end = i * span, min(num_rows, (i + 1) * span)
        node = offset + i
        group, lane = node // 8, node % 8
        count = end - begin
        mean[:] = 0
        second[:] = 0
        cube[:] = 0
        for k in range(dim):
            low, high = rows[begin, k], rows[begin, k]
            for r in range(begin, end):
                value = rows[r, k]
                mean[k] += value
                low = min(low, value)
                high = max(high, value)
            bounds[group, k, lane] = mean[k] / count
            bounds[group, dim + k, lane] = low
            bounds[group, 2 * dim + k, lane] = high
            table[node, 0, k] = bounds[group, k, lane]
        squares, fourth, radius_sq = 0.0, 0.0, 0.0
        for r in range(begin, end):
            square = 0.0
            for k in range(dim):
                delta[k] = rows[r, k] - bounds[group, k, lane]
                square += delta[k] * delta[k]
            squares += square
            fourth += square * square
            radius_sq = max(radius_sq, square)
            if moments >= 2:
                for k in range(dim):
                    for m in range(dim):
                        second[k, m] += delta[k] * delta[m]
            if moments >= 3:
                p = 0
                for k in range(dim):
                    for m in range(k, dim):
                        product = delta[k] * delta[m] * (1.0 if k == m else 2.0)
                        for n in range(dim):
                            cube[p, n] += product * delta[n]
                        p += 1
                for n in range(dim):
                    cube[pairs, n] += square * delta[n]
        bounds[group, 3 * dim, lane] = count
        bounds[group, 3 * dim + 1, lane] = math.sqrt(radius_sq)
        bounds[group, 3 * dim + 2, lane] = squares / count
        bounds[group, 3 * dim + 4, lane] = fourth / count
        if moments >= 2:
            for k in range(dim):
                for m in range(dim):
                    table[node, 1 + k, m] = second[k, m] / count
        if moments >= 3:
            for p in range(pairs + 1):
                for n in range(dim):
                    table[node, 1 + dim + p, n] = cube[p, n] / count
