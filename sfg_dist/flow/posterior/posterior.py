"""The posterior mean under the empirical law of a reference set: softmax attention, streamed.

Conventions: z_t = alpha x + beta eps, rows are samples, all arrays of one call share device and dtype. With

    logit_j = (alpha / beta^2) z . x_j - (alpha^2 / (2 beta^2)) |x_j|^2

the weights are w_j = softmax_j(logit_j): the term -|z|^2 / (2 beta^2) is common to all j and drops out. Written so, a
query is (alpha z, -alpha^2 / 2) / beta^2, a key is (x_j, |x_j|^2) and a value is the key itself, so one attention gives
m = sum_j w_j x_j and sum_j w_j |x_j|^2 together, and its log-sum-exp gives the density. alpha and beta may differ from
row to row, because they stand in the query only.

The rows are those of a ``Reference``, (x - center) / scale, and so are z, beta and the moments in these coordinates.
Rounding: a logit's float32 error is about 6e-8 |z| |x| alpha / beta^2, which is why they are centred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.posterior.attention import attend_blocked, attend_fused
from sfg_dist.flow.posterior.backends import Backend, choose_backend, dense_engine
from sfg_dist.flow.posterior.merging import Merger
from sfg_dist.flow.posterior.reference import PreparedReference, ReferenceBlock, Rows, as_reference
from sfg_dist.flow.posterior.seats import LANES, seats

if TYPE_CHECKING:
    from sfg_dist.flow.posterior.cpu.blocks import Dense
    from sfg_dist.flow.posterior.cpu.engine import Sums


@dataclass(frozen=True)
class PosteriorMoments:
    """What one pass over the reference gives, in the reference's centred coordinates of spread 1.

    Attributes:
        mean: m = sum_j w_j x_j, shape (num_rows, dim).
        log_sum_exp: log sum_j exp(logit_j), shape (num_rows,), or None.
        variance: v = sum_j w_j |x_j|^2 - |m|^2, the posterior covariance's trace, shape (num_rows,), >= 0, or None.
        log_kernel_sum: log sum_j exp(-|z_t - alpha x_j|^2 / (2 beta^2)), float64, shape (num_rows,), or None.
        bound: certified bound of the 2-norm of the mean's error, float64, shape (num_rows,); None where every row was
            summed. Of log_kernel_sum and variance a sparse engine certifies nothing: with a tolerance up to about a
            quarter of the mass may be left out where it does not move the mean, without one none is.
        pairs: rows of the reference that each row summed one by one, shape (num_rows,), or None.
    """

    mean: Tensor
    log_sum_exp: Tensor | None
    variance: Tensor | None
    log_kernel_sum: Tensor | None = None
    bound: Tensor | None = None
    pairs: Tensor | None = None


def posterior_moments(
    z_t: Tensor,
    reference: PreparedReference,
    *,
    alpha: float | Tensor,
    beta_sq: float | Tensor,
    log_sum_exp: bool = False,
    variance: bool = True,
    backend: Backend = "auto",
    tolerance: float = 0.0,
) -> PosteriorMoments:
    """Posterior moments of x given z_t, in the reference's inner coordinates: z_t is alpha x' + beta eps with
    x' = (x - center) / scale.

    Args:
        z_t: noisy states, shape (num_rows, dim), of the reference's device and dtype.
        reference: the prepared reference set.
        alpha: signal scale, a number or one a row, shape (num_rows,), >= 0.
        beta_sq: noise variance, a number or one a row, > 0.
        log_sum_exp: also return the log of the sum of the unnormalised weights.
        variance: also return the trace of the posterior covariance; labels do without, a tenth faster on CPUs.
        backend: "auto" is "sparse" where a tolerance is given and there are rows enough for it to pay, else "dense".
            "sparse" (float32 on the CPU) skips and sums up clusters within the tolerance; "dense" is the fastest exact
            one: "native", the compiled kernels (float32 on the CPU), "fused", torch's attention kernel
            (CPU), "triton" (float32 on CUDA), or "blocked", tiles through plain matrix products on any device.
        tolerance: certified bound of the 2-norm of the mean's error that "sparse" keeps, in units of ``scale``.

    Returns:
        The moments; see PosteriorMoments.

    Raises:
        ValueError: the shapes do not fit, beta_sq is not positive, or the backend cannot do what is asked.
    """
    if z_t.ndim != 2 or z_t.shape[1] != reference.dim:
        raise ValueError(f"z_t must have shape (num_rows, {reference.dim}), got {tuple(z_t.shape)}")
    if z_t.dtype != reference.dtype:
        raise ValueError(f"z_t is {z_t.dtype}, the reference is {reference.dtype}")
    if bool((torch.as_tensor(beta_sq) <= 0).any()):
        raise ValueError("beta_sq must be positive")
    chosen = choose_backend(reference, backend, tolerance)
    if not len(z_t):  # the fused kernel divides by the number of rows
        empty = z_t.new_zeros(0)
        return PosteriorMoments(
            z_t.clone(), empty if log_sum_exp else None, empty if variance else None, empty.double()
        )
    call = _Call(z_t, _column(alpha, z_t), _column(beta_sq, z_t), log_sum_exp, variance)
    elsewhere = reference.moments_elsewhere(z_t, call.alpha[:, 0], call.beta_sq[:, 0], tolerance, chosen == "sparse")
    if elsewhere is not None:
        return elsewhere
    if reference.num_blocks == 1:
        (block,) = reference.blocks()
        return _of_block(call, block, chosen, tolerance)
    if chosen == "sparse" and reference.device.type == "cpu":
        return _sparse_over_blocks(call, reference, tolerance)
    return _dense_over_blocks(call, reference, chosen)


class _Call(NamedTuple):
    """What is asked of the posterior: rows, their scales, shape (num_rows, 1) each, and what to return beside."""

    z_t: Tensor
    alpha: Tensor
    beta_sq: Tensor
    log_sum_exp: bool
    variance: bool

    def take(self, rows: Tensor) -> _Call:
        return self._replace(z_t=self.z_t[rows], alpha=self.alpha[rows], beta_sq=self.beta_sq[rows])


def _of_block(call: _Call, block: ReferenceBlock, chosen: Backend, tolerance: float) -> PosteriorMoments:
    """The moments over one block by the engine that was chosen."""
    z_t, alpha, beta_sq, log_sum_exp, variance = call
    if chosen == "dense":
        chosen = dense_engine(block)
    if chosen == "triton" or (chosen == "sparse" and block.device.type != "cpu"):
        return _triton(call, block, tolerance if chosen == "sparse" else 0.0)
    if chosen == "sparse":
        return _sparse(call, block, tolerance)
    if chosen == "native":
        from sfg_dist.flow.posterior.cpu.engine import dense_sums

        sums = dense_sums(z_t, alpha, beta_sq, block.leaves, block.num_rows, block.largest_square, variance)
        return _of_sums(sums, call)
    query = torch.cat([alpha * z_t, -0.5 * alpha.square()], dim=1) / beta_sq
    moments, lse = (attend_fused if chosen == "fused" else attend_blocked)(query, block.keys)
    mean = moments[:, :-1]
    spread = (moments[:, -1] - mean.square().sum(dim=1)).clamp_min(0) if variance else None
    log_kernel_sum = lse.double() - _log_offset(z_t, beta_sq)
    return PosteriorMoments(mean, lse if log_sum_exp else None, spread, log_kernel_sum)


def _log_offset(z_t: Tensor, beta_sq: Tensor) -> Tensor:
    """|z|^2 / (2 beta^2), what logits leave out because it is common to all references; float64."""
    return z_t.double().square().sum(dim=1) / (2 * beta_sq.double().reshape(-1))


def _sparse(call: _Call, block: ReferenceBlock, tolerance: float) -> PosteriorMoments:
    from sfg_dist.flow.posterior.cpu.engine import cluster_sums

    sums = cluster_sums(call.z_t, call.alpha, call.beta_sq, block.clusters, tolerance, call.variance)
    moments = _of_sums(sums, call)
    left = np.flatnonzero(sums.bound < 0)
    if len(left):
        _put(moments, left, _dense_rows(call, block, left), call, block.num_rows)
    return moments


def _sparse_over_blocks(call: _Call, reference: PreparedReference, tolerance: float) -> PosteriorMoments:
    from sfg_dist.flow.posterior.cpu.blocks import blocked_cluster_sums

    dense = dense_within(call.z_t, call.alpha, call.beta_sq, call.variance)
    sums = blocked_cluster_sums(call.z_t, call.alpha, call.beta_sq, reference, tolerance, dense, call.variance)
    moments = _of_sums(sums, call)
    left = np.flatnonzero(sums.bound < 0)
    if len(left):
        merger = Merger()
        for block in reference.blocks():
            _ = block.clusters  # whose order of rows moves the last bits: one just loaded must have them too
            merger.add(*_dense_rows(call, block, left))
            del block
        _put(moments, left, merger.result(), call, reference.num_reference)
    return moments


def dense_within(z_t: Tensor, alpha: Tensor, beta_sq: Tensor, variance: bool) -> Dense:
    """What the sparse engine asks for rows that would open most of a block; scales of shape (num_rows, 1)."""
    call = _Call(z_t, alpha, beta_sq, False, variance)

    def dense(block: ReferenceBlock, rows: NDArray[np.int64]) -> tuple[NDArray, NDArray, NDArray]:
        mean, log_kernel_sum, spread = _dense_rows(call, block, rows)
        return mean.numpy(), log_kernel_sum.numpy(), np.zeros(len(rows)) if spread is None else spread.numpy()

    return dense


def _dense_over_blocks(call: _Call, reference: PreparedReference, chosen: Backend) -> PosteriorMoments:
    """Every pair, block after block. A Triton engine's bound within a block says nothing of the block's mass, so it
    leaves nothing out either."""
    merger = Merger()
    bounded = False
    for block in reference.blocks():
        part = _of_block(call._replace(log_sum_exp=False), block, "dense" if chosen == "sparse" else chosen, 0.0)
        assert part.log_kernel_sum is not None
        merger.add(part.mean, part.log_kernel_sum, part.variance if call.variance else None)
        bounded = bounded or part.bound is not None
        del block  # before the next one is loaded
    mean, log_kernel_sum, variance = merger.result()
    dtype = call.z_t.dtype
    lse = (log_kernel_sum + _log_offset(call.z_t, call.beta_sq)).to(dtype) if call.log_sum_exp else None
    return PosteriorMoments(
        mean.to(dtype),
        lse,
        None if variance is None else variance.to(dtype),
        log_kernel_sum,
        # NaN where a query is out of reach, as for one block.
        torch.where(mean.isnan().any(dim=1), math.nan, torch.zeros_like(log_kernel_sum)) if bounded else None,
    )


def _dense_rows(call: _Call, block: ReferenceBlock, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean, log kernel sum and variance of the numbered rows over all of a block, whatever rows are beside them.

    By the kernels here where they are the fastest, else by torch's attention but for rows where the rounding of its
    products would show.
    """
    from sfg_dist.flow.posterior.cpu.engine import needs_differences

    z_t, alpha, beta_sq = call.z_t, call.alpha, call.beta_sq
    fine = needs_differences(z_t, alpha, beta_sq, block.largest_square)[rows]
    if dense_engine(block) == "native":
        fine[:] = True
    mean = torch.empty(len(rows), z_t.shape[1])
    log_kernel_sum = torch.empty(len(rows), dtype=torch.float64)
    variance = torch.empty(len(rows)) if call.variance else None
    for engine, places in (("native", np.flatnonzero(fine)), ("fused", np.flatnonzero(~fine))):
        if not len(places):
            continue
        seated = torch.from_numpy(rows[places])
        real = torch.ones(len(seated), dtype=torch.bool)
        if engine == "fused":
            active = torch.zeros(-(-len(z_t) // LANES) * LANES, dtype=torch.bool)
            active[seated] = True
            seated, real = seats(active)
        dense = _of_block(call.take(seated)._replace(log_sum_exp=False), block, engine, 0.0)  # type: ignore[arg-type]
        at = torch.from_numpy(places[np.searchsorted(rows[places], seated[real].numpy())])
        assert dense.log_kernel_sum is not None
        mean[at], log_kernel_sum[at] = dense.mean[real], dense.log_kernel_sum[real]
        if variance is not None and dense.variance is not None:
            variance[at] = dense.variance[real]
    return mean, log_kernel_sum, variance


def _put(
    moments: PosteriorMoments,
    rows: NDArray[np.int64],
    dense: tuple[Tensor, Tensor, Tensor | None],
    call: _Call,
    num_reference: int,
) -> None:
    """Write what a dense pass gave for the numbered rows."""
    index = torch.from_numpy(rows)
    mean, log_kernel_sum, variance = dense
    moments.mean[index] = mean.to(moments.mean.dtype)
    assert moments.log_kernel_sum is not None
    moments.log_kernel_sum[index] = log_kernel_sum
    if moments.log_sum_exp is not None:
        offset = _log_offset(call.z_t, call.beta_sq)[index]
        moments.log_sum_exp[index] = (log_kernel_sum + offset).to(moments.log_sum_exp.dtype)
    if moments.variance is not None and variance is not None:
        moments.variance[index] = variance.to(moments.variance.dtype)
    assert moments.bound is not None
    assert moments.pairs is not None
    moments.bound[index] = 0
    moments.pairs[index] = num_reference


def _triton(call: _Call, block: ReferenceBlock, tolerance: float) -> PosteriorMoments:
    from sfg_dist.flow.posterior.cuda.engine import posterior_moments_cuda

    result = posterior_moments_cuda(
        call.z_t, block.device_blocks, alpha=call.alpha[:, 0], beta_sq=call.beta_sq[:, 0], tolerance=tolerance or None
    )
    log_kernel_sum = result.log_sum_exp.double() - _log_offset(call.z_t, call.beta_sq)
    return PosteriorMoments(
        result.mean,
        result.log_sum_exp if call.log_sum_exp else None,
        result.variance,
        log_kernel_sum,
        result.error_bound.double(),
    )


def _of_sums(sums: Sums, call: _Call) -> PosteriorMoments:
    log_kernel_sum = torch.from_numpy(sums.log_kernel_sum)
    lse = (log_kernel_sum + _log_offset(call.z_t, call.beta_sq)).to(call.z_t.dtype) if call.log_sum_exp else None
    return PosteriorMoments(
        torch.from_numpy(sums.mean),
        lse,
        torch.from_numpy(sums.variance) if call.variance else None,
        log_kernel_sum,
        torch.from_numpy(sums.bound),
        torch.from_numpy(sums.work[:, 0]),
    )


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    column = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return column.reshape(-1, 1).expand(like.shape[0], 1)


def posterior_mean(z_t: Tensor, reference: Rows | PreparedReference, *, alpha: float, beta: float) -> Tensor:
    """Posterior mean E[x | z_t] under the empirical law of the reference set.

        w_j = softmax_j(-|z_t - alpha x_j|^2 / (2 beta^2)),    E[x | z_t] = sum_j w_j x_j

    The softmax is streamed, so memory does not grow with num_rows * num_reference and no weight underflows to 0 / 0.

    Args:
        z_t: noisy states at one common time, shape (num_rows, dim).
        reference: samples of the data, shape (num_reference, dim), same units as z_t / alpha; or a Reference.
        alpha: signal scale at t, dimensionless, >= 0.
        beta: noise standard deviation at t, in the units of z_t, > 0.

    Returns:
        Posterior means, shape (num_rows, dim).

    Raises:
        ValueError: beta is not positive, or the reference set is empty.

    References:
        Song et al. 2021, Score-Based Generative Modeling through SDEs, arXiv 2011.13456.

    Example:
        >>> posterior_mean(torch.tensor([[0.5]]), torch.tensor([[-1.0], [1.0]]), alpha=1.0, beta=1.0)
        tensor([[0.4621]])
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    prepared = as_reference(reference, z_t, z_t.dtype)
    center, scale = prepared.center.to(z_t.device), prepared.scale
    states = ((z_t.double() - alpha * center) / scale).to(prepared.dtype)
    mean = posterior_moments(states, prepared, alpha=alpha, beta_sq=(beta / scale) ** 2).mean
    return (scale * mean.double() + center).to(z_t.dtype)
