"""The posterior mean under the empirical law of a reference set: softmax attention, streamed.

Conventions: z_t = alpha x + beta eps, rows are samples, all arrays of one call share device and dtype. With

    logit_j = (alpha / beta^2) z . x_j - (alpha^2 / (2 beta^2)) |x_j|^2

the weights are w_j = softmax_j(logit_j): the term -|z|^2 / (2 beta^2) is common to all j and drops out. Written so, a
query is (alpha z, -alpha^2 / 2) / beta^2, a key is (x_j, |x_j|^2) and a value is the key itself. One attention then
gives m = sum_j w_j x_j and sum_j w_j |x_j|^2 together, and its log-sum-exp gives the density. alpha and beta may differ
from row to row, because they stand in the query only.

The rows are those of a ``Reference``, (x - center) / scale, and so are z, beta and the moments in these coordinates.
Rounding: a logit's float32 error is about 6e-8 |z| |x| alpha / beta^2, which is why rows are centred.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.posterior.attention import attend_blocked, attend_fused
from sfg_dist.flow.posterior.backends import Backend, check_measurable, choose_backend, dense_engine
from sfg_dist.flow.posterior.merging import Merger
from sfg_dist.flow.posterior.moments import PosteriorMoments, Request
from sfg_dist.flow.posterior.reference import PreparedReference, Rows, as_reference
from sfg_dist.flow.posterior.reference_block import ReferenceBlock
from sfg_dist.flow.posterior.seats import LANES, seats


def posterior_moments(
    z_t: Tensor,
    reference: PreparedReference,
    *,
    alpha: float | Tensor,
    beta_sq: float | Tensor,
    variance: bool = True,
    backend: Backend = "auto",
    tolerance: float = 0.0,
    threshold: float = 0.0,
) -> PosteriorMoments:
    """Posterior moments of x' = (x - center) / scale given z_t = alpha x' + beta eps.

    Args:
        z_t: noisy states, shape (num_rows, dim), of the reference's device and dtype.
        reference: the prepared reference set.
        alpha: signal scale, a number or one a row, shape (num_rows,), >= 0.
        beta_sq: noise variance, a number or one a row, > 0.
        variance: also return the trace of the posterior covariance; labels do without, a tenth faster on CPUs.
        backend: "auto" is "sparse" where a tolerance is given and there are rows enough for it to pay, else "dense".
            "sparse" (float32 on the CPU, or on a GPU with Triton) leaves out and sums up clusters within the tolerance.
            "dense" is the fastest of the exact ones: "native", the compiled kernels (float32 on the CPU), "fused",
            torch's attention kernel (CPU), "triton" (float32 on CUDA), and "blocked", tiles through plain matrix
            products on any device.
        tolerance: certified bound of the 2-norm of the mean's error that "sparse" keeps, in units of ``scale``.
        threshold: above 0, "sparse" goes by the error that a cluster is expected to add and not by a bound; see
            ``certificate``, which measures what thresholds give. On the CPU, without variance, at one time, over a
            reference in one block.

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
    request = Request(z_t, _column(alpha, z_t), _column(beta_sq, z_t), variance)
    if not len(z_t):  # the fused kernel divides by the number of rows
        empty = z_t.new_zeros(0)
        return PosteriorMoments(z_t.clone(), empty if variance else None, empty.double())
    if (elsewhere := reference.moments_elsewhere(request, tolerance, is_sparse=chosen == "sparse")) is not None:
        return elsewhere
    if chosen != "sparse":
        return _dense(request, reference, DENSE_ENGINES[chosen])
    if threshold > 0 or reference.device.type == "cpu":
        if threshold > 0:
            moments = _measured(request, reference, threshold, tolerance)
        else:
            moments = _clustered(request, reference, tolerance)
        reference.relieve()
        return moments
    # A bound within one of several blocks says nothing of the block's mass, so there nothing is left out.
    engine = partial(_triton, tolerance=tolerance) if reference.num_blocks == 1 else _triton
    return _dense(request, reference, engine)


def _native(request: Request, block: ReferenceBlock) -> PosteriorMoments:
    from sfg_dist.flow.posterior.cpu.engine import dense_sums

    return dense_sums(request, block.leaves, block.num_rows, block.largest_square).moments(request)


def _attention(
    request: Request, block: ReferenceBlock, *, attend: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> PosteriorMoments:
    z_t, alpha, beta_sq, wants_variance = request
    query = torch.cat([alpha * z_t, -0.5 * alpha.square()], dim=1) / beta_sq
    moments, log_sum_exp = attend(query, block.keys)
    mean = moments[:, :-1]
    variance = (moments[:, -1] - mean.square().sum(dim=1)).clamp_min(0) if wants_variance else None
    return PosteriorMoments(mean, variance, log_sum_exp.double() - _log_offset(request))


def _triton(request: Request, block: ReferenceBlock, *, tolerance: float = 0.0) -> PosteriorMoments:
    from sfg_dist.flow.posterior.cuda.engine import posterior_moments_cuda

    mean, log_sum_exp, variance, bound = posterior_moments_cuda(
        request.z_t, block.device_blocks, alpha=request.alpha[:, 0], beta_sq=request.beta_sq[:, 0], tolerance=tolerance
    )
    return PosteriorMoments(mean, variance, log_sum_exp.double() - _log_offset(request), bound.double())


Engine = Callable[[Request, ReferenceBlock], PosteriorMoments]
DENSE_ENGINES: dict[Backend, Engine] = {
    "native": _native,
    "fused": partial(_attention, attend=attend_fused),
    "blocked": partial(_attention, attend=attend_blocked),
    "triton": _triton,
}


def _log_offset(request: Request) -> Tensor:
    """|z|^2 / (2 beta^2), what logits leave out because it is common to all references; float64."""
    return request.z_t.double().square().sum(dim=1) / (2 * request.beta_sq.double().reshape(-1))


def _dense(request: Request, reference: PreparedReference, engine: Engine) -> PosteriorMoments:
    """The moments block after block, merged."""
    if reference.num_blocks == 1:
        (block,) = reference.blocks()
        return engine(request, block)
    merger, bounds = Merger(), []
    for block in reference.blocks():
        part = engine(request, block)
        assert part.log_kernel_sum is not None
        merger.add(part.mean, part.log_kernel_sum, part.variance if request.variance else None)
        if part.bound is not None:
            bounds.append(part.bound)
        del block  # before the next one is loaded
    mean, log_kernel_sum, variance = merger.result()
    dtype = request.z_t.dtype
    # A query out of reach has a mean and a bound of NaN.
    bound = torch.stack(bounds).amax(dim=0).masked_fill(mean.isnan().any(dim=1), torch.nan) if bounds else None
    return PosteriorMoments(mean.to(dtype), None if variance is None else variance.to(dtype), log_kernel_sum, bound)


def _clustered(request: Request, reference: PreparedReference, tolerance: float) -> PosteriorMoments:
    """The moments over clusters on the CPU, and densely for rows that no bound holds of."""
    from sfg_dist.flow.posterior.cpu.blocks import blocked_cluster_sums
    from sfg_dist.flow.posterior.cpu.engine import cluster_sums

    if reference.num_blocks == 1:
        (block,) = reference.blocks()
        sums = cluster_sums(request, block.clusters, tolerance)
    else:
        sums = blocked_cluster_sums(request, reference, tolerance, dense_within(request))
    moments = sums.moments(request)
    left = np.flatnonzero(sums.bound < 0)
    if len(left):
        merger = Merger()
        for block in reference.blocks():
            _ = block.clusters  # whose order of rows moves the last bits: one just loaded must have them too
            merger.add(*_dense_rows(request, block, left))
            del block
        _put(moments, left, merger.result(), reference.num_reference)
    return moments


def _measured(request: Request, reference: PreparedReference, threshold: float, tolerance: float) -> PosteriorMoments:
    """The moments over clusters as normal laws; without a bound."""
    from sfg_dist.flow.posterior.cpu.normal_engine import normal_sums

    check_measurable(reference)
    ratios = request.alpha.square() / request.beta_sq
    if request.variance or bool((ratios != ratios[0]).any()):
        raise ValueError("threshold is for the means of rows at one time: variance must be False")
    (block,) = reference.blocks()
    sums = normal_sums(request, block.clusters, block.normals, threshold, tolerance)
    moments = replace(sums.moments(request), bound=None)
    left = np.flatnonzero(sums.bound < 0)
    if len(left):
        _put(moments, left, _dense_rows(request, block, left), reference.num_reference)
    return moments


def dense_within(request: Request) -> Callable[[ReferenceBlock, NDArray[np.int64]], tuple[NDArray, NDArray, NDArray]]:
    """What the sparse engine asks for rows that would open most of a block; see ``cpu.blocks.Dense``."""

    def dense(block: ReferenceBlock, rows: NDArray[np.int64]) -> tuple[NDArray, NDArray, NDArray]:
        mean, log_kernel_sum, variance = _dense_rows(request, block, rows)
        return mean.numpy(), log_kernel_sum.numpy(), np.zeros(len(rows)) if variance is None else variance.numpy()

    return dense


def _dense_rows(
    request: Request, block: ReferenceBlock, rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean, log kernel sum and variance of the numbered rows over all of a block, whatever rows are beside them.

    By the kernels here where they are the fastest, else by torch's attention but for rows where the rounding of its
    products would show.
    """
    from sfg_dist.flow.posterior.cpu.engine import needs_differences

    num_rows, dim = request.z_t.shape
    fine = needs_differences(request, block.largest_square)[rows]
    if dense_engine(block) == "native":
        fine[:] = True
    mean = torch.empty(len(rows), dim)
    log_kernel_sum = torch.empty(len(rows), dtype=torch.float64)
    variance = torch.empty(len(rows)) if request.variance else None
    for is_native, places in ((True, np.flatnonzero(fine)), (False, np.flatnonzero(~fine))):
        if not len(places):
            continue
        seated = torch.from_numpy(rows[places])
        real = torch.ones(len(seated), dtype=torch.bool)
        if not is_native:
            active = torch.zeros(-(-num_rows // LANES) * LANES, dtype=torch.bool)
            active[seated] = True
            seated, real = seats(active)
        dense = DENSE_ENGINES["native" if is_native else "fused"](request.take(seated), block)
        at = torch.from_numpy(places[np.searchsorted(rows[places], seated[real].numpy())])
        assert dense.log_kernel_sum is not None
        mean[at], log_kernel_sum[at] = dense.mean[real], dense.log_kernel_sum[real]
        if variance is not None and dense.variance is not None:
            variance[at] = dense.variance[real]
    return mean, log_kernel_sum, variance


def _put(
    moments: PosteriorMoments, rows: NDArray[np.int64], dense: tuple[Tensor, Tensor, Tensor | None], num_reference: int
) -> None:
    """Write what a dense pass gave for the numbered rows."""
    index = torch.from_numpy(rows)
    found = (*dense, torch.tensor(0.0), torch.tensor(num_reference))
    targets = (moments.mean, moments.log_kernel_sum, moments.variance, moments.bound, moments.pairs)
    for target, values in zip(targets, found, strict=True):
        if target is not None and values is not None:
            target[index] = values.to(target.dtype)


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

    Examples:
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
