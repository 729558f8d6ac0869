"""A reference on its device in compact blocks, and which of them a tile of queries needs.

Conventions: centred coordinates; rows are float32, boxes, moments, weights and bounds float64; x~ = z_t / alpha and
i2s = alpha^2 / (2 beta^2) are those of ``kernels``. A tile is a run of queries that share one list of blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 24  # of (tiles, blocks) held at once while blocks are chosen
_NUM_NEAREST = 4  # blocks whose sum bounds the sum over all from below


@dataclass(frozen=True)
class Blocks:
    """A reference ordered into compact blocks of ``block_rows`` rows, the last one ragged, with what bounds need."""

    rows: Tensor  # the ordered rows, float32, shape (num_reference, dim), contiguous
    order: Tensor  # where each row stood in the table given, shape (num_reference,)
    block_rows: int  # rows a block, a multiple of 64
    centers: Tensor  # mean of each block as the kernels use it, float32, shape (num_blocks, dim)
    mean: Tensor  # the same in float64
    low: Tensor  # least coordinates of each block, float64, shape (num_blocks, dim)
    high: Tensor  # greatest coordinates
    counts: Tensor  # rows of each block, float64, shape (num_blocks,)
    spread: Tensor  # mean of |x - mean|^2 in each block, float64
    radius: Tensor  # greatest |x - mean| in each block, float64

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.centers.shape[0]


@dataclass(frozen=True)
class Selection:
    """Which reference blocks each query tile visits, as compressed rows, and what the others cost at most."""

    offsets: Tensor  # shape (num_tiles + 1,), int32; tile i visits entries offsets[i] to offsets[i + 1] of indices
    indices: Tensor  # block numbers, ascending in each tile, int32
    error_bound: Tensor  # bound on |m - m_kept| for every query of the tile, 2-norm, float64, shape (num_tiles,)


def order_rows(points: Tensor, block_rows: int) -> Tensor:
    """An order in which blocks of ``block_rows`` rows are compact: nodes are halved across their widest side.

    Halves are whole blocks, so only the last block is ragged. For finite points, shape (num_rows, dim), the order has
    shape (num_rows,), int64; it is the same for the same points on every device up to ties.
    """
    num_rows, dim = points.shape
    device = points.device
    order = torch.arange(num_rows, device=device)
    num_blocks = -(-num_rows // block_rows)
    block_of_place = order // block_rows
    sizes = torch.tensor([num_blocks], device=device)
    for _ in range(max(num_blocks - 1, 0).bit_length()):
        node = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)[block_of_place]
        ordered = points[order]
        where = node[:, None].expand(num_rows, dim)
        empty = points.new_zeros(len(sizes), dim)
        low = empty.scatter_reduce(0, where, ordered, "amin", include_self=False)
        high = empty.scatter_reduce(0, where, ordered, "amax", include_self=False)
        axis = (high - low).argmax(dim=1)
        value = ordered.gather(1, axis[node, None])[:, 0]
        by_value = torch.argsort(value, stable=True)
        order = order[by_value[torch.argsort(node[by_value], stable=True)]]
        left = (sizes + 1) // 2
        sizes = torch.stack([left, sizes - left], dim=1).reshape(-1)
        sizes = sizes[sizes > 0]
    return order


def make_blocks(rows: Tensor, *, block_rows: int = 128) -> Blocks:
    """The reference in compact blocks of ``block_rows`` rows, a multiple of 64.

    ``rows`` are centred, float32, of shape (num_reference, dim).
    """
    if not len(rows) or block_rows % 64:
        raise ValueError(f"rows to order and blocks of a multiple of 64 rows expected, got {len(rows)}, {block_rows}")
    order = order_rows(rows, block_rows)
    ordered = rows[order].contiguous()
    num_blocks = -(-len(rows) // block_rows)
    padding = ordered[-1:].expand(num_blocks * block_rows - len(rows), -1)
    cells = torch.cat([ordered, padding]).reshape(num_blocks, block_rows, -1)
    counts = torch.full((num_blocks,), float(block_rows), dtype=torch.float64, device=rows.device)
    counts[-1] = len(rows) - (num_blocks - 1) * block_rows
    live = (torch.arange(block_rows, device=rows.device) < counts[:, None]).double()
    mean = torch.einsum("bnd,bn->bd", cells.double(), live) / counts[:, None]
    distance_sq = (cells.double() - mean[:, None]).square().sum(dim=2)
    return Blocks(
        rows=ordered,
        order=order,
        block_rows=block_rows,
        centers=mean.float().contiguous(),
        mean=mean,
        low=cells.amin(dim=1).double(),
        high=cells.amax(dim=1).double(),
        counts=counts,
        spread=(distance_sq * live).sum(dim=1) / counts,
        radius=distance_sq.amax(dim=1).sqrt(),
    )


def nearest_blocks(points: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Lists of the few blocks whose means are nearest to each point: offsets and indices, as ``attend`` takes."""
    count = min(_NUM_NEAREST, blocks.num_blocks)
    chunk = max(1, _CHUNK_ELEMENTS // blocks.num_blocks)
    parts = [torch.cdist(part, blocks.mean).topk(count, dim=1, largest=False).indices for part in points.split(chunk)]
    offsets = torch.arange(0, (len(points) + 1) * count, count, device=points.device)
    return offsets.to(torch.int32), torch.cat(parts).reshape(-1).to(torch.int32)


def select_blocks(
    tile_low: Tensor,
    tile_high: Tensor,
    scale_low: Tensor,
    scale_high: Tensor,
    blocks: Blocks,
    *,
    tolerance: float,
    log_sum: Tensor | None = None,
) -> Selection:
    """The reference blocks that the queries of each tile need, with a certified bound on what the others would do.

        |m - m_kept| = |sum over omitted of w_j (x_j - m_kept)| <= sum over omitted blocks b of W_b D_b

    D_b is the greatest distance from block b's box to the box of the kept blocks, in which m_kept lies. W_b <=
    n_b exp(-i2s l_b^2) / Z with l_b the least distance from the tile's box to the block (its box or its ball), and
    Z >= sum_b n_b exp(-i2s u_b^2) over all blocks, where u_b^2 is the greatest |x~ - mean_b|^2 + spread_b: by
    Jensen's inequality the mean of exp(-i2s |x~ - x|^2) is at least exp(-i2s mean |x~ - x|^2). The cheapest blocks
    are left out until the tolerance is used; a second pass measures D_b to what the first one kept, and leaves out
    more.

    Args:
        tile_low: least coordinates of each tile's queries x~ = z_t / alpha, float64, shape (num_tiles, dim).
        tile_high: greatest coordinates.
        scale_low: least i2s of each tile's queries, float64, shape (num_tiles,).
        scale_high: greatest i2s.
        blocks: the ordered reference.
        tolerance: budget of each tile, in the reference's units, >= 0; no bound passes it.
        log_sum: a lower bound on log Z of every query of a tile, shape (num_tiles,), float64, where a sum over near
            blocks is at hand; much sharper than Jensen's over the tile's box where the box is wider than sigma.

    Returns:
        The lists and the bounds; see Selection.
    """
    num_tiles, dim = tile_low.shape
    num_blocks = blocks.num_blocks
    chunk = max(1, _CHUNK_ELEMENTS // num_blocks)
    counted, listed, bounds = [], [], []
    for start in range(0, num_tiles, chunk):
        part = slice(start, start + chunk)
        low, high = tile_low[part], tile_high[part]
        shape = (len(low), num_blocks)
        near_sq, ball_sq, far_sq = (low.new_zeros(shape) for _ in range(3))
        for k in range(dim):
            low_k, high_k, mean_k = low[:, k, None], high[:, k, None], blocks.mean[None, :, k]
            gap = torch.maximum(blocks.low[None, :, k] - high_k, low_k - blocks.high[None, :, k]).clamp_min_(0)
            near_sq.addcmul_(gap, gap)
            gap = torch.maximum(mean_k - high_k, low_k - mean_k)
            ball_sq.addcmul_(gap.clamp_min(0), gap.clamp_min(0))
            gap = torch.maximum(high_k - mean_k, mean_k - low_k)
            far_sq.addcmul_(gap, gap)
        near_sq = torch.maximum(near_sq, (ball_sq.sqrt() - blocks.radius).clamp_min(0).square())
        far_sq += blocks.spread
        least, most = scale_low[part, None], scale_high[part, None]
        log_counts = blocks.counts.log()
        log_weight = torch.zeros_like(near_sq)  # a share is at most 1
        if log_sum is not None:
            log_weight = torch.minimum(log_weight, log_counts - least * near_sq - log_sum[part, None])
        # Exponents relative to the nearest far bound: valid for every i2s of the tile, whichever sign they have.
        shift = far_sq.amin(dim=1, keepdim=True)
        far_sq, near_sq = far_sq - shift, near_sq - shift
        log_jensen = torch.logsumexp(log_counts - most * far_sq, dim=1, keepdim=True)
        exponent = torch.where(near_sq > 0, least, most) * near_sq
        log_weight = torch.minimum(log_weight, log_counts - exponent - log_jensen)
        kept = torch.ones(shape, dtype=torch.bool, device=low.device)
        for _ in range(2):
            kept = _drop_cheapest(log_weight.exp() * _reach(kept, blocks), kept, tolerance)
        bounds.append((log_weight.exp() * _reach(kept, blocks)).masked_fill(kept, 0).sum(dim=1))
        counted.append(kept.sum(dim=1))
        listed.append(kept.nonzero()[:, 1].to(torch.int32))
    offsets = torch.zeros(num_tiles + 1, dtype=torch.int64, device=tile_low.device)
    if num_tiles:
        torch.cumsum(torch.cat(counted), dim=0, out=offsets[1:])
    if int(offsets[-1]) >= 2**31:
        raise ValueError(f"{int(offsets[-1])} pairs of tile and block pass 2^31: pass fewer queries at a time")
    indices = torch.cat(listed) if listed else offsets.new_zeros(0, dtype=torch.int32)
    return Selection(offsets.to(torch.int32), indices, torch.cat(bounds) if bounds else tile_low.new_zeros(0))


def _drop_cheapest(cost: Tensor, kept: Tensor, tolerance: float) -> Tensor:
    """Which kept blocks stay when the cheapest are left out while all that is left out costs at most the tolerance."""
    # What is out already stays out: a block that came back would stretch the box to which the costs are measured.
    place = cost.masked_fill(~kept, -1).argsort(dim=1)
    # The bound adds the same costs in another order, hence the margin.
    stays = cost.gather(1, place).cumsum(dim=1) > tolerance * (1 - 1e-9)
    stays[:, -1] = True
    return torch.empty_like(stays).scatter_(1, place, stays) & kept


def _reach(kept: Tensor, blocks: Blocks) -> Tensor:
    """Greatest distance from each block's box to the box of the kept blocks of each tile, shape of ``kept``."""
    reach_sq = blocks.low.new_zeros(kept.shape)
    for k in range(blocks.low.shape[1]):
        low_k, high_k = blocks.low[None, :, k], blocks.high[None, :, k]
        hull_low = torch.where(kept, low_k, math.inf).amin(dim=1, keepdim=True)
        hull_high = torch.where(kept, high_k, -math.inf).amax(dim=1, keepdim=True)
        side = torch.maximum(high_k - hull_low, hull_high - low_k)
        reach_sq.addcmul_(side, side)
    return reach_sq.sqrt()
