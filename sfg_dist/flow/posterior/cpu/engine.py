"""The CPU engine: the compiled kernels over threads, dense or within a certified bound.

Threads share out the rows, and a row's numbers depend neither on the rows beside it nor on the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sfg_dist.flow.posterior.clusters import Clusters
from sfg_dist.flow.posterior.cpu.kernels import dense_rows
from sfg_dist.flow.posterior.cpu.leaf_sums import HUGE
from sfg_dist.flow.posterior.cpu.simd import has_avx512
from sfg_dist.flow.posterior.cpu.traversal import CARRIED, LEAST_MASS, cluster_rows
from sfg_dist.flow.posterior.cpu.wide_sums import wide_rows
from sfg_dist.flow.posterior.moments import PosteriorMoments, Request

# Shares of the remaining tolerance that a level may use, from the leaves up. Measured on the power table; other values
# near these are as good.
_SPEND = (1.0, 0.9, 0.3)
_ROWS_A_TASK = 64
_LEAST_RATIO = 1e-6  # of alpha to beta
_FARTHEST = 1e9  # coordinates of x~ stay well below those of padding rows, and their squares within float32
_VANISHING = 1e-30  # weights at the edge of float32 add this to a bound though everything was opened
HAS_AVX512 = has_avx512()
_NARROW_DIM = 12  # without AVX-512, up to this many columns the kernels here are faster than torch's attention
UNROLLED_DIM = 64  # the code of the kernel of differences grows with the number of columns
_LOGIT_SLACK = 1e-4
# Pairs of a largest number of columns and a share: if a row would open more than this share of the nodes over the
# leaves, summing all rows is faster.
_DENSE_SHARE = ((8, 0.9), (10**9, 0.6)) if HAS_AVX512 else ((12, 2.0), (24, 0.75), (10**9, 0.5))


class Sums(NamedTuple):
    """What the kernels give for each row."""

    mean: NDArray[np.float32]  # posterior mean, float32, shape (num_rows, dim)
    log_kernel_sum: NDArray[np.float64]  # log sum_j exp(-|z - alpha x_j|^2 / (2 beta^2)), float64, shape (num_rows,)
    # sum_j w_j |x_j - mean|^2, float32, shape (num_rows,); meaningless where it was not asked for
    variance: NDArray[np.float32]
    # certified bound of the mean's error, float64; 0 where all rows were summed, -1 where none was, and NaN where a
    # query is not finite or out of reach
    bound: NDArray[np.float64]
    work: NDArray[np.int64]  # pairs, stand-ins and nodes of each row, int64, shape (num_rows, 3)

    def take(self, part: NDArray[np.int64]) -> Sums:
        """A copy of the numbered rows."""
        return Sums(self.mean[part], self.log_kernel_sum[part], self.variance[part], self.bound[part], self.work[part])

    def put(self, part: NDArray[np.int64], sums: Sums) -> None:
        """Write the numbered rows."""
        self.mean[part], self.log_kernel_sum[part], self.variance[part], self.bound[part], self.work[part] = sums

    def moments(self, request: Request) -> PosteriorMoments:
        """The sums as tensors over the same memory."""
        mean, log_kernel_sum, variance, bound = (torch.from_numpy(values) for values in self[:4])
        pairs = torch.from_numpy(self.work[:, 0])
        return PosteriorMoments(mean, variance if request.variance else None, log_kernel_sum, bound, pairs)


class Queries(NamedTuple):
    """Rows as the kernels take them."""

    x: NDArray[np.float32]  # x~ = z / alpha, float32, shape (num_rows, dim)
    inv_sigma_sq: NDArray[np.float64]  # alpha^2 / beta^2, float64
    log_shift: NDArray[np.float64]  # to be added to the log of the kernel sum, float64
    rows: NDArray[np.int64]  # numbers of the rows that can be computed; the others get NaN
    squares: tuple[int, ...]  # (0,) where squares are summed for variances, else ()

    def room(self) -> Sums:
        """Sums to be filled in: NaN for rows that cannot be computed."""
        rows, dim = self.x.shape
        bound = np.full(rows, np.nan)
        bound[self.rows] = 0
        return Sums(
            np.full((rows, dim), np.nan, np.float32),
            np.full(rows, np.nan),
            np.full(rows, np.nan, np.float32),
            bound,
            np.zeros((rows, 3), np.int64),
        )


def queries_of(request: Request) -> Queries:
    """The rows of a request as queries.

    Where alpha is next to nothing beside beta, x~ and sigma would overflow. There sigma is taken smaller and x~ so that
    the exponent's term linear in x is exact; the quadratic one is off by 5e-13 |x|^2.
    """
    z = request.z_t.detach().double().numpy()
    signal, noise_sq = (value.detach().double().reshape(-1).numpy() for value in (request.alpha, request.beta_sq))
    with np.errstate(all="ignore"):  # what is not finite is found below
        scale = np.maximum(signal, _LEAST_RATIO * np.sqrt(noise_sq))
        x = (z * (signal / scale**2)[:, None]).astype(np.float32)
        inv_sigma_sq = scale**2 / noise_sq
        squares = np.einsum("ij,ij->i", z, z)
        x_squares = np.einsum("ij,ij->i", x, x, dtype=np.float64)
        log_shift = np.where(scale > signal, (x_squares * inv_sigma_sq - squares / noise_sq) / 2, 0.0)
        fine = (np.abs(x) < _FARTHEST).all(axis=1) & (inv_sigma_sq > 0) & np.isfinite(inv_sigma_sq)
    return Queries(x, inv_sigma_sq, log_shift, np.flatnonzero(fine), (0,) * request.variance)


def has_dense(dim: int) -> bool:
    """Whether the kernels here are the fastest dense engine; without AVX-512 torch's is faster in many columns."""
    return HAS_AVX512 or dim <= _NARROW_DIM


def dense_sums(request: Request, blocks: NDArray[np.float32], num_reference: int, largest_square: float) -> Sums:
    """Sums over all rows in ``blocks``, whose largest |x|^2 is ``largest_square``."""
    queries = queries_of(request)
    sums = queries.room()
    sums.work[:, 0] = num_reference
    share_out(lambda part: _add_dense(part, queries, blocks, largest_square, sums), queries.rows)
    return sums


def needs_differences(request: Request, largest_square: float) -> NDArray[np.bool_]:
    """Rows for which expanded exponents are too inaccurate; their error is about 6e-8 |x~| |x| / sigma^2."""
    queries = queries_of(request)
    return _needs_differences(queries, np.arange(len(queries.x)), largest_square)


def _needs_differences(queries: Queries, rows: NDArray[np.int64], largest_square: float) -> NDArray[np.bool_]:
    if queries.x.shape[1] > UNROLLED_DIM:
        return np.zeros(len(rows), bool)
    x = queries.x[rows]
    products = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64) * largest_square)
    return 2.0**-24 * (largest_square + products) * queries.inv_sigma_sq[rows] >= _LOGIT_SLACK


def _add_dense(
    rows: NDArray[np.int64], queries: Queries, blocks: NDArray[np.float32], largest_square: float, sums: Sums
) -> None:
    """Dense sums of the numbered rows, each by the kernel that is fast and exact enough for it."""
    flat, dim, squares = blocks.reshape(-1), queries.x.shape[1], queries.squares
    narrow = _needs_differences(queries, rows, largest_square) if HAS_AVX512 else np.ones(len(rows), bool)
    for is_narrow in (False, True):
        part = rows[narrow == is_narrow]
        if not len(part):
            continue
        mean, log_sum = np.empty((len(part), dim), np.float32), np.empty(len(part))
        spread = np.empty(len(part), np.float32)
        x, inv_sigma_sq = queries.x[part], queries.inv_sigma_sq[part]
        if is_narrow:
            axes = tuple(range(dim))
            dense_rows(x, inv_sigma_sq, flat, len(blocks), mean, log_sum, spread, axes, squares)
        else:
            wide_rows(x, inv_sigma_sq, flat, len(blocks), mean, log_sum, spread, squares)
        sums.mean[part], sums.variance[part] = mean, spread
        sums.log_kernel_sum[part] = log_sum + queries.log_shift[part]


def cluster_sums(request: Request, clusters: Clusters, tolerance: float) -> Sums:
    """Sums over clusters, within a certified bound of ``tolerance``.

    Rows for which leaving out does not pay are summed densely. Where another engine does that faster (``has_dense``),
    they are left to it with a bound of -1.
    """
    queries = queries_of(request)
    sums = queries.room()

    def run(part: NDArray[np.int64], aim: float) -> None:
        found = sums.take(part)
        add_clusters(queries, part, clusters, Allowance(aim), fresh(len(part), clusters.dim), found)
        found.log_kernel_sum[:] += queries.log_shift[part]
        sums.put(part, found)

    def work(part: NDArray[np.int64]) -> None:
        run(part, tolerance)
        # Errors are relative to a guess of the mean. If the mean turns out elsewhere, the bound misses the aim and a
        # lower aim is tried. An aim of zero opens every node whose weight does not vanish in float32.
        for aim in (tolerance / 4, tolerance / 32, 0.0) if tolerance > 0 else ():
            over = part[~(sums.bound[part] <= tolerance)]
            if len(over):
                run(over, aim)
        left = part[(sums.bound[part] < 0) | ~(sums.bound[part] <= max(tolerance, _VANISHING))]
        if len(left) and has_dense(clusters.dim):
            _add_dense(left, queries, clusters.blocks, clusters.largest_square, sums)
            sums.bound[left] = 0
            sums.work[left, 0] = clusters.num_rows
        else:
            sums.bound[left] = -1

    share_out(work, queries.rows)
    return sums


class Carried(NamedTuple):
    """What is carried for each row from one block of the reference to the next; see ``traversal.cluster_rows``."""

    anchors: NDArray[np.float32]  # float32, shape (num_rows,)
    sums: NDArray[np.float64]  # float64, shape (num_rows, CARRIED)
    side: NDArray[np.float64]  # sums of the columns, float64, shape (num_rows, dim)

    def take(self, part: NDArray[np.int64]) -> Carried:
        """A copy of the numbered rows."""
        return Carried(self.anchors[part], self.sums[part], self.side[part])

    def put(self, part: NDArray[np.int64], carried: Carried) -> None:
        """Write the numbered rows."""
        self.anchors[part], self.sums[part], self.side[part] = carried


def fresh(num_rows: int, dim: int) -> Carried:
    """The state of rows before the first block."""
    return Carried(np.full(num_rows, HUGE, np.float32), np.zeros((num_rows, CARRIED)), np.zeros((num_rows, dim)))


class Allowance(NamedTuple):
    """How much error a block's clusters may make."""

    aim: float  # the bound of the mean's error to aim at
    share: float = 1.0  # the share of the aim that may be used up after this block
    spare: float = 0.0  # the share of the aim that this block may use in any case
    unit: float = 1.0  # mass, relative to the anchor, that certainly exists
    least_mass: float = LEAST_MASS  # a row with less mass is left for a dense pass


def add_clusters(
    queries: Queries, part: NDArray[np.int64], clusters: Clusters, allowance: Allowance, carried: Carried, found: Sums
) -> None:
    """Add a block's clusters to the numbered rows' ``carried`` sums, in place, and write what they come to.

    ``carried`` and ``found`` are of the numbered rows alone; the mean in ``found`` is that of the blocks before. Where
    the bound comes out as -1, ``carried`` means nothing afterwards.
    """
    dense_share = next(share for dim, share in _DENSE_SHARE if clusters.dim <= dim)
    spend = np.array([*_SPEND, *[_SPEND[-1]] * len(clusters.sizes)])
    sums64 = np.zeros((len(part), CARRIED + len(clusters.sizes)))
    sums64[:, :CARRIED] = carried.sums
    cluster_rows(
        queries.x[part], queries.inv_sigma_sq[part], *allowance, dense_share, spend,
        clusters.offsets, clusters.sizes, clusters.bounds.reshape(-1), clusters.moments.reshape(-1),
        clusters.blocks.reshape(-1), clusters.moment_order, carried.anchors, sums64, carried.side, *found,
        tuple(range(clusters.dim)), queries.squares,
    )  # fmt: skip
    carried.sums[:] = sums64[:, :CARRIED]


def share_out(work: Callable[[NDArray[np.int64]], None], rows: NDArray[np.int64], most: int = _ROWS_A_TASK) -> None:
    """Call ``work`` on parts of the rows from as many threads as torch may use; each takes the next part there is.

    A part has at most ``most`` rows.

    After an error no thread begins another part.
    """
    parts = deque(np.split(rows, range(most, len(rows), most)) if len(rows) else [])
    threads = min(torch.get_num_threads(), len(parts))

    def take() -> None:
        try:
            while parts:
                try:
                    part = parts.popleft()
                except IndexError:  # another thread was faster
                    return
                work(part)
        except BaseException:
            parts.clear()
            raise

    others = [_pool(threads - 1).submit(take) for _ in range(threads - 1)] if threads > 1 else []
    try:
        take()
    finally:
        for other in others:
            if not other.cancel():  # one that never began has nothing left to do
                other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sfg_dist")


# A forked process inherits the pool's record of its threads, but not the threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
