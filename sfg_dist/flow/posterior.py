"""The posterior mean under the empirical law of a reference set: softmax attention, streamed.

Conventions: z_t = alpha x + beta eps, rows are samples, all arrays of one call share device and dtype. With

    logit_j = (alpha / beta^2) z . x_j - (alpha^2 / (2 beta^2)) |x_j|^2

the weights are w_j = softmax_j(logit_j): the term -|z|^2 / (2 beta^2) is common to all j and drops out. Written so, a
query is (alpha z, -alpha^2 / 2) / beta^2, a key is (x_j, |x_j|^2) and a value is the key itself, so one attention gives
m = sum_j w_j x_j and sum_j w_j |x_j|^2 together, and its log-sum-exp gives the density. alpha and beta may differ from
row to row, because they stand in the query only.

Rounding: a logit's float32 error is about 6e-8 |z| |x| alpha / beta^2, so the reference is centred first, which
``Reference`` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows: TypeAlias = Tensor | NDArray[np.floating]
Backend = Literal["auto", "fused", "blocked"]

# Tiles of the blocked engine: one tile of logits fits in a core's cache on CPUs, and fills a GPU on CUDA.
_TILE = {"cpu": (256, 1024), "cuda": (8192, 16384)}
_LOGIT_FLOOR = -87.0  # exp(-87) is the smallest normal float32; below it some CPUs' exp is 30 times slower


class Reference:
    """The data behind the score: a reference set, centred once and kept on one device.

    Args:
        rows: samples of the data, shape (num_reference, dim), a tensor or a numpy array, finite.
        device: where the work is done; the rows' own device by default.
        dtype: torch.float32 (default) or torch.float64, the precision of all arithmetic.

    Attributes:
        center: mean of the rows, shape (dim,), float64 on the CPU.
        keys: centred rows with their squared norm as one more column, shape (num_reference, dim + 1).

    Raises:
        ValueError: the rows are not a finite, non-empty table.
    """

    def __init__(
        self, rows: Rows, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        table = to_tensor(rows)
        if table.ndim != 2 or 0 in table.shape:
            raise ValueError(f"the reference must be a non-empty table of rows, got shape {tuple(table.shape)}")
        if not table.is_floating_point():
            table = table.to(torch.float32)
        finite = torch.isfinite(table).all(dim=1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0, 0])
            raise ValueError(f"the reference is not finite: row {bad} holds {table[bad].tolist()}")
        device = table.device if device is None else torch.device(device)
        table = table.to(device=device, dtype=torch.float64)
        center = table.mean(dim=0)
        centred = (table - center).to(dtype)
        # The norm is taken of the rounded rows, so that key and norm belong to the same point.
        norm_sq = centred.double().square().sum(dim=1, keepdim=True).to(dtype)
        self.center = center.cpu()
        self.keys = torch.cat([centred, norm_sq], dim=1).contiguous()

    @property
    def num_reference(self) -> int:
        """Number of rows."""
        return self.keys.shape[0]

    @property
    def dim(self) -> int:
        """Number of columns."""
        return self.keys.shape[1] - 1

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.keys.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the arithmetic."""
        return self.keys.dtype

    def subset(self, index: Tensor | NDArray[np.integer]) -> Reference:
        """A reference of the rows at ``index``, centred about its own mean."""
        rows = self.keys[torch.as_tensor(index, device=self.device), :-1].double()
        return Reference(rows + self.center.to(self.device), dtype=self.dtype)


def to_tensor(rows: Rows) -> Tensor:
    """Rows as a tensor without history; numpy arrays that torch cannot share, read-only or strided, are copied."""
    if isinstance(rows, Tensor):
        return rows.detach()
    array = np.require(rows, requirements=["C", "W"])
    if array.dtype.kind not in "fiub":
        raise ValueError(f"expected a table of numbers, got an array of {array.dtype}")
    return torch.from_numpy(array)


def as_reference(reference: Rows | Reference, like: Tensor, dtype: torch.dtype) -> Reference:
    """``reference`` as a Reference on the device of ``like``; a prepared one is taken as it stands."""
    if isinstance(reference, Reference):
        if reference.device != like.device:
            raise ValueError(f"the reference is on {reference.device}, the rows are on {like.device}")
        return reference
    return Reference(reference, device=like.device, dtype=dtype)


@dataclass(frozen=True)
class PosteriorMoments:
    """What one pass over the reference gives, in the reference's centred coordinates.

    Attributes:
        mean: m = sum_j w_j x_j, shape (num_rows, dim).
        log_sum_exp: log sum_j exp(logit_j), shape (num_rows,), or None.
        variance: v = sum_j w_j |x_j|^2 - |m|^2, the trace of the posterior covariance, shape (num_rows,), >= 0.
    """

    mean: Tensor
    log_sum_exp: Tensor | None
    variance: Tensor


def posterior_moments(
    z_t: Tensor,
    reference: Reference,
    *,
    alpha: float | Tensor,
    beta_sq: float | Tensor,
    log_sum_exp: bool = False,
    backend: Backend = "auto",
) -> PosteriorMoments:
    """Posterior moments of x given z_t, in centred coordinates: z_t is alpha (x - center) + beta eps.

    Args:
        z_t: noisy states about ``alpha * center``, shape (num_rows, dim), of the reference's device and dtype.
        reference: the prepared reference set.
        alpha: signal scale, a number or one a row, shape (num_rows,), >= 0.
        beta_sq: noise variance, a number or one a row, > 0.
        log_sum_exp: also return the log of the sum of the unnormalised weights.
        backend: "fused" is torch's attention kernel (CPU), "blocked" streams tiles through plain matrix products on
            any device, "auto" takes the fused one where it can give what is asked for.

    Returns:
        The moments; see PosteriorMoments.

    Raises:
        ValueError: the shapes do not fit, or beta_sq is not positive.
    """
    if z_t.ndim != 2 or z_t.shape[1] != reference.dim:
        raise ValueError(f"z_t must have shape (num_rows, {reference.dim}), got {tuple(z_t.shape)}")
    if z_t.dtype != reference.dtype:
        raise ValueError(f"z_t is {z_t.dtype}, the reference is {reference.dtype}")
    if bool((torch.as_tensor(beta_sq) <= 0).any()):
        raise ValueError("beta_sq must be positive")
    alpha_column = _column(alpha, z_t)
    beta_sq_column = _column(beta_sq, z_t)
    query = torch.cat([alpha_column * z_t, -0.5 * alpha_column.square()], dim=1) / beta_sq_column
    if not len(z_t):  # the fused kernel divides by the number of rows
        empty = z_t.new_zeros(0)
        return PosteriorMoments(z_t.clone(), empty if log_sum_exp else None, empty)
    fused = backend == "fused" or (backend == "auto" and z_t.device.type == "cpu")
    moments, lse = (_attend_fused if fused else _attend_blocked)(query, reference.keys)
    mean = moments[:, :-1]
    variance = (moments[:, -1] - mean.square().sum(dim=1)).clamp_min(0)
    return PosteriorMoments(mean, lse if log_sum_exp else None, variance)


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    column = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return column.reshape(-1, 1).expand(like.shape[0], 1)


def _attend_fused(query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Torch's CPU attention kernel: it streams with a running maximum and returns the log-sum-exp besides."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[None, None], keys[None, None], keys[None, None], scale=1.0
    )
    return output[0, 0], lse.reshape(-1)


def _attend_blocked(query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles of logits through matrix products, with a running maximum; memory is one tile."""
    tile_rows, tile_keys = _TILE.get(query.device.type, _TILE["cuda"])
    num_rows, width = query.shape
    output = torch.empty(num_rows, width, dtype=query.dtype, device=query.device)
    lse = torch.empty(num_rows, dtype=query.dtype, device=query.device)
    with _full_precision_matmul():
        for start in range(0, num_rows, tile_rows):
            block = query[start : start + tile_rows]
            maximum = block.new_full((len(block), 1), -math.inf)
            total = block.new_zeros((len(block), 1))
            accumulated = block.new_zeros((len(block), width))
            for first in range(0, len(keys), tile_keys):
                tile = keys[first : first + tile_keys]
                logits = block @ tile.T
                new_maximum = torch.maximum(maximum, logits.amax(dim=1, keepdim=True))
                weights = logits.sub_(new_maximum).clamp_(min=_LOGIT_FLOOR).exp_()
                rescale = torch.exp(maximum - new_maximum)
                accumulated = torch.addmm(accumulated * rescale, weights, tile)
                total = total * rescale + weights.sum(dim=1, keepdim=True)
                maximum = new_maximum
            output[start : start + tile_rows] = accumulated / total
            lse[start : start + tile_rows] = (maximum + total.log()).squeeze(1)
    return output, lse


class _full_precision_matmul:
    """TF32 off while logits are formed: its 10-bit mantissa would move weights by factors at small t."""

    def __enter__(self) -> None:
        self._precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self._precision)


def posterior_mean(z_t: Tensor, reference: Rows | Reference, *, alpha: float, beta: float) -> Tensor:
    """Posterior mean E[x | z_t] under the empirical law of the reference set.

        w_j = softmax_j(-|z_t - alpha x_j|^2 / (2 beta^2)),    E[x | z_t] = sum_j w_j x_j

    The softmax is streamed, so memory does not grow with num_rows * num_reference and no weight underflows to 0 / 0.

    Args:
        z_t: noisy states at one common time, shape (num_rows, dim).
        reference: samples of the data, shape (num_reference, dim), same units as z_t / alpha; or a Reference.
        alpha: signal scale at t, dimensionless, >= 0.
        beta: noise standard deviation at t, > 0.

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
    center = prepared.center.to(z_t)
    moments = posterior_moments(z_t - alpha * center, prepared, alpha=alpha, beta_sq=beta**2)
    return moments.mean + center
