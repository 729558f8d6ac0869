"""The CPU engine: the compiled kernels over threads, dense or within a certified bound.

A row's numbers do not depend on the rows beside it, nor on the number of threads: threads share out rows.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.clusters import Clusters
from sfg_dist.flow.cpu_kernels import dense_rows
from sfg_dist.flow.cpu_traversal import cluster_rows
from sfg_dist.flow.simd import has_avx512
from sfg_dist.flow.wide_sums import wide_rows

# Shares of the tolerance that is left, by level from the leaves up: measured on the power table, flat near these.
_SPEND = (1.0, 0.9, 0.3)
_ROWS_A_TASK = 64
_ALPHA_LEAST = 1e-6  # below it all weights are equal to rounding, and z / alpha would overflow
HAS_AVX512 = has_avx512()
_NARROW_DIM = 12  # without AVX-512, up to this many columns the kernels here are faster than torch's attention
_UNROLLED_DIM = 64  # the kernel of differences is compiled for its number of columns, and grows with it
_LOGIT_SLACK = 1e-4
# Where a row would open more than this share of the nodes over the leaves, summing all rows is the faster way.
_DENSE_SHARE = (
    ((8, 0.9), (10**9, 0.6)) if HAS_AVX512 else ((12, 2.0), (24, 0.75), (10**9, 0.5))
)  # up to so many columns


class Sums(NamedTuple):
    """What the kernels give for each row.

    Attributes:
        mean: posterior mean, float32, shape (num_rows, dim).
        log_kernel_sum: log sum_j exp(-|z - alpha x_j|^2 / (2 beta^2)), float64, shape (num_rows,).
        variance: sum_j w_j |x_j - mean|^2, float32, shape (num_rows,); meaningless where it was not asked for.
        bound: certified bound of the mean's error, float64; 0 where all rows were summed, -1 where none was.
        work: pairs, stand-ins and nodes of each row, int64, shape (num_rows, 3).
    """

    mean: NDArray[np.float32]
    log_kernel_sum: NDArray[np.float64]
    variance: NDArray[np.float32]
    bound: NDArray[np.float64]
    work: NDArray[np.int64]


def _prepare(z_t: Tensor, alpha: Tensor, beta_sq: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float64], Sums]:
    scale = alpha.double().clamp_min(_ALPHA_LEAST).reshape(-1)
    x = (z_t.double() / scale[:, None]).to(torch.float32).contiguous().numpy()
    inv_sigma_sq = (scale.square() / beta_sq.double().reshape(-1)).contiguous().numpy()
    rows, dim = x.shape
    sums = Sums(
        np.empty((rows, dim), np.float32),
        np.empty(rows),
        np.empty(rows, np.float32),
        np.zeros(rows),
        np.zeros((rows, 3), np.int64),
    )
    return x, inv_sigma_sq, sums


def has_dense(dim: int) -> bool:
    """Whether the kernels here are the fastest dense engine in so many columns: without AVX-512, torch's is in many."""
    return HAS_AVX512 or dim <= _NARROW_DIM


def dense_sums(
    z_t: Tensor,
    alpha: Tensor,
    beta_sq: Tensor,
    blocks: NDArray[np.float32],
    num_reference: int,
    largest_square: float,
    variance: bool = True,
) -> Sums:
    """Sums over all rows in ``blocks``, whose largest |x|^2 is ``largest_square``.

    Args:
        z_t: noisy states, float32, shape (num_rows, dim); alpha and beta_sq one a row.
        variance: also the variances.
    """
    x, inv_sigma_sq, sums = _prepare(z_t, alpha, beta_sq)
    sums.work[:, 0] = num_reference

    def work(part: slice) -> None:
        _add_dense(np.arange(part.start, part.stop), x, inv_sigma_sq, blocks, largest_square, sums, variance)

    _share_out(work, len(x))
    return sums


def _add_dense(
    rows: NDArray[np.int64],
    x: NDArray[np.float32],
    inv_sigma_sq: NDArray[np.float64],
    blocks: NDArray[np.float32],
    largest_square: float,
    sums: Sums,
    variance: bool,
) -> None:
    """Dense sums of the numbered rows, each by the kernel that is fast and exact enough for it."""
    flat, dim, squares = blocks.reshape(-1), x.shape[1], (0,) * variance
    if HAS_AVX512:
        # Expanded exponents are wrong by about this much; where it shows, the differences of the other kernel pay.
        norms = np.sqrt(np.einsum("ij,ij->i", x[rows], x[rows], dtype=np.float64) * largest_square)
        wide = 2.0**-24 * (largest_square + norms) * inv_sigma_sq[rows] < _LOGIT_SLACK
        wide |= dim > _UNROLLED_DIM
    else:
        wide = np.zeros(len(rows), bool)
    for is_wide in (True, False):
        part = rows[wide == is_wide]
        if not len(part):
            continue
        mean, log_sum, spread = (
            np.empty((len(part), dim), np.float32),
            np.empty(len(part)),
            np.empty(len(part), np.float32),
        )
        if is_wide:
            wide_rows(x[part], inv_sigma_sq[part], flat, len(blocks), mean, log_sum, spread, squares)
        else:
            axes = tuple(range(dim))
            dense_rows(x[part], inv_sigma_sq[part], flat, len(blocks), mean, log_sum, spread, axes, squares)
        sums.mean[part], sums.log_kernel_sum[part], sums.variance[part] = mean, log_sum, spread


def cluster_sums(
    z_t: Tensor, alpha: Tensor, beta_sq: Tensor, clusters: Clusters, tolerance: float, variance: bool = True
) -> Sums:
    """Sums within a certified bound; arguments as for ``dense_sums``.

    Rows for which skipping does not pay are summed densely; where another engine does that faster (``has_dense``), they
    are left to it with a bound of -1.
    """
    x, inv_sigma_sq, sums = _prepare(z_t, alpha, beta_sq)
    share = next(share for dim, share in _DENSE_SHARE if clusters.dim <= dim)
    spend = np.array([*_SPEND, *[_SPEND[-1]] * len(clusters.sizes)])
    axes, squares = tuple(range(clusters.dim)), (0,) * variance
    flat = clusters.bounds.reshape(-1), clusters.moments.reshape(-1), clusters.blocks.reshape(-1)

    def run(part: slice, aim: float) -> None:
        cluster_rows(
            x[part], inv_sigma_sq[part], aim, share, spend, clusters.offsets, clusters.sizes, *flat,
            clusters.moment_order, sums.mean[part], sums.log_kernel_sum[part], sums.variance[part], sums.bound[part],
            sums.work[part], axes, squares,
        )  # fmt: skip

    def work(part: slice) -> None:
        run(part, tolerance)
        # The allowance is spent against a guess of the mean; where the mean came out elsewhere, aim lower. An aim of
        # zero opens every node whose weight does not vanish in float32.
        for row in part.start + np.flatnonzero(~(sums.bound[part] <= tolerance)):
            for aim in (tolerance / 4, tolerance / 32, 0.0):
                run(slice(row, row + 1), aim)
                if sums.bound[row] <= tolerance:
                    break
        left = part.start + np.flatnonzero(sums.bound[part] < 0)
        if len(left) and has_dense(clusters.dim):
            _add_dense(left, x, inv_sigma_sq, clusters.blocks, clusters.largest_square, sums, variance)
            sums.bound[left] = 0
            sums.work[left, 0] = clusters.num_rows

    _share_out(work, len(x))
    return sums


def _share_out(work: Callable[[slice], None], num_rows: int) -> None:
    """Call ``work`` on parts of the rows from as many threads as torch may use; each takes the next part there is."""
    parts = iter([slice(first, min(first + _ROWS_A_TASK, num_rows)) for first in range(0, num_rows, _ROWS_A_TASK)])

    def take() -> None:
        for part in parts:  # a list's iterator gives each part to one thread
            work(part)

    threads = min(torch.get_num_threads(), -(-num_rows // _ROWS_A_TASK))
    others = [_pool(threads - 1).submit(take) for _ in range(threads - 1)] if threads > 1 else []
    take()
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sfg_dist")
