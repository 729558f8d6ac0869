"""Posterior moments on a GPU by the Triton kernels: dense, streamed, or with blocks left out within a tolerance.

Conventions are those of ``triton_kernels``. The few numbers of a row (i2s, tilt, log-sum-exp, bound) are made in
float64: i2s reaches 1e5, and a log-sum-exp is a difference of such terms. The sums of many are float32.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sfg_dist.flow.posterior.cuda.blocks import Blocks, make_blocks, nearest_blocks, order_rows, select_blocks
from sfg_dist.flow.posterior.cuda.kernels import WIDE_DIM
from sfg_dist.flow.posterior.cuda.sums import (
    PartialMoments,
    Precision,
    Tiles,
    attend_blocks,
    attend_dense,
    attend_streamed,
    tiles_for,
)


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
        return _Queries(*(None if part is None else part[index] for part in self))  # type: ignore[arg-type]


# A forward pass only: without this a gradient would flow through the anchors, and be wrong.
@torch.no_grad()
def posterior_moments_cuda(
    z_t: Tensor,
    reference: Tensor | Blocks,
    *,
    alpha: float | Tensor,
    beta_sq: float | Tensor,
    tolerance: float | None = None,
    stream_rows: int | None = None,
    precision: Precision = "tf32x3",
    tiles: Tiles | None = None,
) -> PosteriorMomentsGpu:
    """Posterior moments of x given z_t in centred coordinates, by the Triton kernels.

    Args:
        z_t: noisy states about ``alpha * center``, float32, shape (num_rows, dim), on the device that computes.
        reference: centred rows, float32, shape (num_reference, dim), or rows in blocks. Rows in host memory are
            streamed to a CUDA device.
        alpha: signal scale, a number or one a row, shape (num_rows,), >= 0.
        beta_sq: noise variance, a number or one a row, > 0.
        tolerance: None for every pair; else blocks of references are left out while the certified bound on the
            mean's error stays below it.
        stream_rows: rows copied at a time where the reference is streamed; given, it forces streaming.
        precision: of the matrix products for dim >= 16.
        tiles: shape of a program, by dim by default.

    Returns:
        Mean, log-sum-exp, variance and the bound, one a row.

    Raises:
        ValueError: shapes or types do not fit, beta_sq is not positive, or a tolerance is asked of a streamed pass.
    """
    rows = reference.rows if isinstance(reference, Blocks) else reference
    if z_t.ndim != 2 or z_t.dtype != torch.float32:
        raise ValueError(f"z_t must be a float32 table, got {z_t.dtype} of shape {tuple(z_t.shape)}")
    if rows.ndim != 2 or rows.shape[1] != z_t.shape[1] or not len(rows):
        raise ValueError(f"a reference of {z_t.shape[1]} columns expected, got shape {tuple(rows.shape)}")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    streamed = stream_rows is not None or rows.device.type != z_t.device.type
    if streamed and (tolerance is not None or isinstance(reference, Blocks)):
        raise ValueError("a streamed reference is a plain table, and every pair is computed: tolerance must be None")
    queries = _queries(z_t, rows, alpha, beta_sq)
    anchor, scale, tilt = queries.anchor, queries.kernel_scale, queries.kernel_tilt
    bound = queries.scale.new_zeros(len(z_t))
    if streamed:
        pieces = 1 << 20 if stream_rows is None else stream_rows
        sums = attend_streamed(anchor, scale, rows, stream_rows=pieces, tilt=tilt, precision=precision, tiles=tiles)
    elif tolerance is None or not len(z_t):
        sums = attend_dense(anchor, scale, reference, tilt=tilt, precision=precision, tiles=tiles)
    else:
        blocks = reference if isinstance(reference, Blocks) else make_blocks(rows)
        sums, bound = _attend_sparse(queries, blocks, tolerance, precision, tiles or tiles_for(z_t.shape[1]))
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
    low, high = rows.amin(dim=0).to(z_t.device), rows.amax(dim=0).to(z_t.device)
    place = z_t.double() / alpha_row.clamp_min(1e-8)[:, None]
    anchor = torch.minimum(torch.maximum(place.float(), low), high)
    # h = 2 i2s (x~ - a) = alpha (z_t - alpha a) / beta^2, also where it only undoes the rounding of x~ to float32.
    tilt = (alpha_row / beta_sq_row)[:, None] * (z_t.double() - alpha_row[:, None] * anchor.double())
    # Skipped where every query lies inside the data's box: what is left then is the rounding of z_t itself.
    outside = bool((place.float() != anchor).any())
    return _Queries(place, scale, tilt, anchor, scale.float(), tilt.float() if outside else None)


def _attend_sparse(
    queries: _Queries, blocks: Blocks, tolerance: float, precision: Precision, shape: Tiles
) -> tuple[PartialMoments, Tensor]:
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
    visit = partial(
        attend_blocks,
        ordered.anchor,
        ordered.kernel_scale,
        blocks,
        tilt=ordered.kernel_tilt,
        precision=precision,
        tiles=shape,
    )
    # The sum over a few near blocks bounds Z from below, for every query of a tile by the least of its rows.
    offsets, indices = nearest_blocks((tile_low + tile_high) / 2, blocks)
    reach = _reach_of_products(ordered.anchor[seat], indices, blocks, num_tiles) if dim >= WIDE_DIM else None
    floor = _log_sum_floor(visit(offsets, indices), ordered, None if reach is None else reach[:num_rows], precision)
    selection = select_blocks(
        tile_low,
        tile_high,
        scales.amin(dim=1),
        scales.amax(dim=1),
        blocks,
        tolerance=tolerance,
        log_sum=floor[seat].reshape(num_tiles, shape.rows).amin(dim=1),
    )
    part = visit(selection.offsets, selection.indices)
    back = torch.argsort(order)
    sums = PartialMoments(part.log_max[back], part.total[back], part.difference[back], part.second[back])
    return sums, selection.error_bound.repeat_interleave(shape.rows)[:num_rows][back]


def _log_sum_floor(near: PartialMoments, queries: _Queries, reach: Tensor | None, precision: Precision) -> Tensor:
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
    digits = 1e-3 if reach is not None and precision == "tf32" else 1e-6
    rounding = digits * (queries.scale * squared + queries.tilt.norm(dim=1) * squared.sqrt() + log_sum.abs())
    lost = (queries.tilt - given).norm(dim=1) * (spread + digits * squared).sqrt()
    return log_sum - beyond - lost - rounding - 1e-3


def _reach_of_products(anchor: Tensor, indices: Tensor, blocks: Blocks, num_tiles: int) -> Tensor:
    """Greatest |a - c| + |x - c| over the listed blocks of each tile, as many in each: the size of the factors."""
    listed = indices.long().reshape(num_tiles, -1)
    away = torch.cdist(anchor.double().reshape(num_tiles, -1, anchor.shape[1]), blocks.mean[listed])
    return (away + blocks.radius[listed][:, None]).amax(dim=2).reshape(-1)
