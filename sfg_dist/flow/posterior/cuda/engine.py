"""Posterior moments on a GPU by the Triton kernels: over every pair, or with blocks left out within a tolerance.

Conventions are those of ``kernels``. The few numbers of a row (i2s, tilt, log-sum-exp, bound) are made in float64: i2s
reaches 1e5, and a log-sum-exp is a difference of such terms. The sums of many are float32.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sfg_dist.flow.posterior.cuda.blocks import Blocks, nearest_blocks, order_rows, select_blocks
from sfg_dist.flow.posterior.cuda.kernels import WIDE_DIM
from sfg_dist.flow.posterior.cuda.sums import PartialMoments, Tiles, attend, tiles_for

_DIGITS = 1e-6  # of float32 sums


class PosteriorMomentsGpu(NamedTuple):
    """Mean, log-sum-exp (in the convention of ``posterior``) and variance, with a bound on what was left out.

    ``error_bound`` bounds |mean - exact mean| from omitted blocks, rounding of the sums apart; it is zero for a dense
    pass. It and ``log_sum_exp``, from which a caller takes terms as large again, are float64.
    """

    mean: Tensor
    log_sum_exp: Tensor
    variance: Tensor
    error_bound: Tensor


class _Queries(NamedTuple):
    """Rows as the kernels take them, and what float32 would lose of them."""

    place: Tensor  # x~, float64
    scale: Tensor  # i2s, float64
    tilt: Tensor  # h, float64
    anchor: Tensor  # a, float32
    kernel_scale: Tensor  # i2s, float32
    kernel_tilt: Tensor | None  # h, float32; None where every x~ lies in the data's box

    def take(self, index: Tensor) -> _Queries:
        """The queries at ``index``."""
        place, scale, tilt, anchor, kernel_scale = (part[index] for part in self[:5])
        kernel_tilt = None if self.kernel_tilt is None else self.kernel_tilt[index]
        return _Queries(place, scale, tilt, anchor, kernel_scale, kernel_tilt)


# A forward pass only: without this a gradient would flow through the anchors, and be wrong.
@torch.no_grad()
def posterior_moments_cuda(
    z_t: Tensor,
    blocks: Blocks,
    *,
    alpha: float | Tensor,
    beta_sq: float | Tensor,
    tolerance: float = 0.0,
    tiles: Tiles | None = None,
) -> PosteriorMomentsGpu:
    """Posterior moments of x given z_t in centred coordinates, by the Triton kernels.

    The states are about ``alpha * center``, float32, shape (num_rows, dim), on the device that computes. The signal
    scale ``alpha`` >= 0 and the noise variance ``beta_sq`` > 0 are numbers or one a row, shape (num_rows,). A
    ``tolerance`` of 0 sums every pair; else blocks are left out while the certified bound on the mean's error stays
    below. ``tiles`` is the shape of a program, by dim by default.

    Raises:
        ValueError: shapes or types do not fit, or beta_sq is not positive.
    """
    if z_t.ndim != 2 or z_t.dtype != torch.float32:
        raise ValueError(f"z_t must be a float32 table, got {z_t.dtype} of shape {tuple(z_t.shape)}")
    if blocks.rows.shape[1] != z_t.shape[1]:
        raise ValueError(f"a reference of {z_t.shape[1]} columns expected, got shape {tuple(blocks.rows.shape)}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    queries = _queries(z_t, blocks.rows, alpha, beta_sq)
    anchor, bound = queries.anchor, queries.scale.new_zeros(len(z_t))
    if tolerance and len(z_t):
        sums, bound = _attend_sparse(queries, blocks, tolerance, tiles or tiles_for(z_t.shape[1]))
    else:
        sums = attend(anchor, queries.kernel_scale, blocks, tilt=queries.kernel_tilt, tiles=tiles)
    log_kernel, mean, variance = sums.finish(anchor)
    # logit_j of ``posterior`` is -i2s |x_j|^2 + alpha z_t . x_j / beta^2 = ours + i2s |a|^2 + h . a.
    exact_anchor = anchor.double()
    common = queries.scale * exact_anchor.square().sum(dim=1) + (queries.tilt * exact_anchor).sum(dim=1)
    return PosteriorMomentsGpu(mean, log_kernel.double() + common, variance, bound)


def _queries(z_t: Tensor, rows: Tensor, alpha: float | Tensor, beta_sq: float | Tensor) -> _Queries:
    alpha_row, beta_sq_row = (
        torch.as_tensor(value, dtype=torch.float64, device=z_t.device).expand(len(z_t)) for value in (alpha, beta_sq)
    )
    if not bool((beta_sq_row > 0).all()):
        raise ValueError("beta_sq must be positive")
    scale = alpha_row.square() / (2 * beta_sq_row)
    low, high = rows.amin(dim=0), rows.amax(dim=0)
    place = z_t.double() / alpha_row.clamp_min(1e-8)[:, None]
    anchor = torch.minimum(torch.maximum(place.float(), low), high)
    # h = 2 i2s (x~ - a) = alpha (z_t - alpha a) / beta^2, also where it only undoes the rounding of x~ to float32.
    tilt = (alpha_row / beta_sq_row)[:, None] * (z_t.double() - alpha_row[:, None] * anchor.double())
    # Skipped where every query lies inside the data's box: what is left then is the rounding of z_t itself.
    outside = bool((place.float() != anchor).any())
    return _Queries(place, scale, tilt, anchor, scale.float(), tilt.float() if outside else None)


def _attend_sparse(queries: _Queries, blocks: Blocks, tolerance: float, shape: Tiles) -> tuple[PartialMoments, Tensor]:
    """Sums over the blocks that each tile of queries needs, and the bound of each row, in the rows' own order."""
    num_rows, dim = queries.anchor.shape
    order = order_rows(queries.anchor, shape.rows)
    num_tiles = -(-num_rows // shape.rows)
    # A short last tile is filled up with its own last row.
    seat = torch.arange(num_tiles * shape.rows, device=order.device).clamp_max(num_rows - 1)
    ordered = queries.take(order)
    boxes = ordered.place[seat].reshape(num_tiles, shape.rows, dim)
    scales = ordered.scale[seat].reshape(num_tiles, shape.rows)
    tile_low, tile_high = boxes.amin(dim=1), boxes.amax(dim=1)
    visit = partial(attend, ordered.anchor, ordered.kernel_scale, blocks, tilt=ordered.kernel_tilt, tiles=shape)
    # The sum over a few near blocks bounds Z from below, for every query of a tile by the least of its rows.
    near = nearest_blocks((tile_low + tile_high) / 2, blocks)
    reach = _reach_of_products(ordered.anchor[seat], near[1], blocks, num_tiles) if dim >= WIDE_DIM else None
    floor = _log_sum_floor(visit(lists=near), ordered, None if reach is None else reach[:num_rows])
    selection = select_blocks(
        tile_low,
        tile_high,
        scales.amin(dim=1),
        scales.amax(dim=1),
        blocks,
        tolerance=tolerance,
        log_sum=floor[seat].reshape(num_tiles, shape.rows).amin(dim=1),
    )
    part = visit(lists=(selection.offsets, selection.indices))
    back = torch.argsort(order)
    sums = PartialMoments(part.log_max[back], part.total[back], part.difference[back], part.second[back])
    return sums, selection.error_bound.repeat_interleave(shape.rows)[:num_rows][back]


def _log_sum_floor(near: PartialMoments, queries: _Queries, reach: Tensor | None) -> Tensor:
    """A lower bound on log Z, Z = sum_j exp(-i2s |x~ - x_j|^2), of each query from the kernels' sums over near blocks.

        log Z >= log of the kernel's sum - i2s |x~ - a|^2 - |h - h'| sqrt(E |x - a|^2) - rounding

    h' is the tilt that the kernel was given, in float32 or not at all, and E is under the kernel's own weights: by
    Jensen's inequality log E exp((h - h') . (x - a)) >= E (h - h') . (x - a). A logit is a difference of terms of size
    i2s |x - a|^2 and |h| |x - a|; in matrix products ``reach`` stands for |x - a|.
    """
    spread = (near.second / near.total).double().clamp_min(0)
    given = torch.zeros_like(queries.tilt) if queries.kernel_tilt is None else queries.kernel_tilt.double()
    log_sum = near.log_max.double() + near.total.double().log()
    beyond = queries.scale * (queries.place - queries.anchor.double()).square().sum(dim=1)
    squared = spread if reach is None else reach.square()
    rounding = _DIGITS * (queries.scale * squared + queries.tilt.norm(dim=1) * squared.sqrt() + log_sum.abs())
    lost = (queries.tilt - given).norm(dim=1) * (spread + _DIGITS * squared).sqrt()
    return log_sum - beyond - lost - rounding - 1e-3


def _reach_of_products(anchor: Tensor, indices: Tensor, blocks: Blocks, num_tiles: int) -> Tensor:
    """Greatest |a - c| + |x - c| over the listed blocks of each tile, as many in each: the size of the factors."""
    listed = indices.long().reshape(num_tiles, -1)
    away = torch.cdist(anchor.double().reshape(num_tiles, -1, anchor.shape[1]), blocks.mean[listed])
    return (away + blocks.radius[listed][:, None]).amax(dim=2).reshape(-1)
