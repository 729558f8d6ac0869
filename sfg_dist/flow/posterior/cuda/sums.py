"""The launch of the kernels: sums over all blocks of a reference, or over those that a list names.

Conventions are those of ``kernels``: a query is an anchor a, i2s and a tilt h, and sums are relative to the anchor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfg_dist.flow.posterior.cuda.blocks import Blocks
from sfg_dist.flow.posterior.cuda.kernels import LOG2E, MAX_DIM, WIDE_DIM, attend_narrow, attend_wide, is_available

_PRECISION = "tf32x3"  # of the matrix products for dim >= 16: three products of TF32 are of float32 grade


class Tiles(NamedTuple):
    """Shape of one program: queries a tile, references a step, warps and pipeline stages."""

    rows: int
    step: int
    num_warps: int
    num_stages: int


def tiles_for(dim: int) -> Tiles:
    """The tile used for ``dim`` columns; ``rows`` is the number of queries that share a list of blocks."""
    if dim <= 4:
        return Tiles(256, 16, 4, 2)
    if dim < 8:
        return Tiles(128, 16, 4, 2)
    if dim < WIDE_DIM:
        return Tiles(128, 8, 4, 2)
    # Chosen from the compiler's register and shared-memory figures for sm_90; larger tiles spill more, 32 rows beyond
    # 128 columns ten times as much.
    if dim <= 64:
        return Tiles(64, 32, 4, 1)
    return Tiles(32, 32, 4, 1) if dim <= 128 else Tiles(16, 32, 8, 1)


@dataclass(frozen=True)
class PartialMoments:
    """Unnormalised sums over part of the reference, relative to each row's anchor; see ``finish``.

    With p_j = exp(logit_j - log_max):
    """

    log_max: Tensor  # largest logit met, shape (num_rows,); -inf where no reference was visited
    total: Tensor  # sum p_j, shape (num_rows,)
    difference: Tensor  # sum p_j (x_j - a), shape (num_rows, dim)
    second: Tensor  # sum p_j |x_j - a|^2, shape (num_rows,)

    def finish(self, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log of the kernel sum, mean m, and v = sum w |x - m|^2 >= 0; the mean is anchor + (m - anchor)."""
        shift = self.difference / self.total[:, None]
        variance = (self.second / self.total - shift.square().sum(dim=1)).clamp_min(0)
        return self.log_max + self.total.log(), anchor + shift, variance


def attend(
    anchor: Tensor,
    inv_two_sigma_sq: Tensor,
    blocks: Blocks,
    *,
    tilt: Tensor | None = None,
    lists: tuple[Tensor, Tensor] | None = None,
    num_splits: int | None = None,
    tiles: Tiles | None = None,
) -> PartialMoments:
    """Kernel sums over the blocks of a reference.

        p_j = exp(-i2s |a - x_j|^2 + h . (x_j - a))

    Args:
        anchor: the queries x~ = z_t / alpha, or points near the data that stand for them, shape (num_rows, dim).
        inv_two_sigma_sq: i2s = alpha^2 / (2 beta^2) of each row, shape (num_rows,).
        blocks: the ordered reference.
        tilt: h = 2 i2s (x~ - a), shape (num_rows, dim); None where the anchors are the queries.
        lists: the blocks that each tile of ``tiles.rows`` rows visits: start of each tile's list and the end of the
            last, shape (num_tiles + 1,), and the lists one after another, int32 both. None for all blocks.
        num_splits: programs that share the blocks of one tile; chosen to fill the GPU by default.
        tiles: shape of a program, by dim by default.

    Raises:
        ValueError: shapes or types do not fit, or there is not one list a tile.
    """
    num_rows, dim = anchor.shape
    tiles = tiles or tiles_for(dim)
    num_tiles = -(-num_rows // tiles.rows)
    _check(anchor, inv_two_sigma_sq, blocks, tilt, lists, tiles)
    if not num_rows:
        empty = inv_two_sigma_sq.new_empty(0)
        return PartialMoments(empty, empty, anchor.clone(), empty)
    if num_splits is None:
        num_splits = _splits_to_fill(num_tiles, blocks.num_blocks, anchor.device)
    anchor = anchor.contiguous()
    tilt = None if tilt is None else (tilt * LOG2E).contiguous()
    scale = (inv_two_sigma_sq * LOG2E).contiguous()  # the kernels take powers of two
    log_max = scale.new_empty(num_splits, num_rows)
    total = torch.empty_like(log_max)
    second = torch.empty_like(log_max)
    difference = scale.new_empty(num_splits, num_rows, dim)
    offsets, indices = (None, None) if lists is None else (part.contiguous() for part in lists)
    outputs = (log_max, total, difference, second)
    counts = (num_rows, len(blocks.rows), blocks.num_blocks, num_splits)
    options: dict[str, int] = {
        "BLOCK_M": tiles.rows,
        "BLOCK_N": tiles.step,
        "BLOCK_ROWS": blocks.block_rows,
        "DIM": dim,
        "TILTED": tilt is not None,
        "LISTED": lists is not None,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
        "enable_fp_fusion": True,
    }
    with torch.cuda.device_of(anchor):
        if dim < WIDE_DIM:
            # Column by column and padded to whole blocks, so that a thread loads neighbours of one column at once.
            columns = scale.new_zeros(dim, blocks.num_blocks * blocks.block_rows)
            columns[:, : len(blocks.rows)] = blocks.rows.T
            attend_narrow[(num_tiles, num_splits)](
                anchor, tilt, scale, columns, offsets, indices, *outputs, *counts, columns.stride(0), **options
            )
        else:
            padded = max(WIDE_DIM, 1 << (dim - 1).bit_length())
            attend_wide[(num_tiles, num_splits)](
                anchor, tilt, scale, blocks.rows, blocks.centers, offsets, indices, *outputs, *counts,
                PADDED=padded, PRECISION=_PRECISION, **options,
            )  # fmt: skip
    return _add_up(log_max.mul_(1 / LOG2E), total, difference, second)


def _check(
    anchor: Tensor,
    scale: Tensor,
    blocks: Blocks,
    tilt: Tensor | None,
    lists: tuple[Tensor, Tensor] | None,
    tiles: Tiles,
) -> None:
    """Refuse what the kernels cannot take."""
    num_rows, dim = anchor.shape
    x = blocks.rows
    if x.shape[1] != dim or not 1 <= dim <= MAX_DIM:
        raise ValueError(f"rows of 1 to {MAX_DIM} columns expected, got {tuple(anchor.shape)} and {tuple(x.shape)}")
    if scale.shape != (num_rows,) or (tilt is not None and tilt.shape != anchor.shape):
        raise ValueError(f"one inv_two_sigma_sq and one tilt a row expected for anchors of shape {tuple(anchor.shape)}")
    parts = (anchor, scale, x) if tilt is None else (anchor, scale, x, tilt)
    if any(part.dtype != torch.float32 or part.device != anchor.device for part in parts):
        raise ValueError("anchors, tilts, inv_two_sigma_sq and reference must be float32 and on one device")
    if not is_available(anchor.device):
        raise ValueError(f"the kernels do not run on {anchor.device}: CUDA and triton are needed")
    if len(x) >= 2**31 - blocks.block_rows:
        raise ValueError(f"at most 2^31 references a pass, got {len(x)}")
    if num_rows >= 2**31 - tiles.rows:
        raise ValueError(f"at most 2^31 queries a pass, got {num_rows}: pass fewer at a time")
    if blocks.block_rows % tiles.step:
        raise ValueError(f"block_rows must be a multiple of {tiles.step}, got {blocks.block_rows}")
    if lists is None:
        return
    if any(part.dtype != torch.int32 or part.device != anchor.device for part in lists):
        raise ValueError(f"lists of blocks must be int32 on {anchor.device}, got {lists[0].dtype} and {lists[1].dtype}")
    num_tiles = -(-num_rows // tiles.rows)
    if len(lists[0]) != num_tiles + 1:
        raise ValueError(f"{num_tiles} tiles of {tiles.rows} rows need {num_tiles + 1} offsets, got {len(lists[0])}")


def _splits_to_fill(num_tiles: int, num_blocks: int, device: torch.device) -> int:
    num_cores = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    # Four programs a multiprocessor, but no program with less than four blocks.
    return max(1, min(-(-4 * num_cores // max(num_tiles, 1)), num_blocks // 4, 65535))


def _add_up(log_max: Tensor, total: Tensor, difference: Tensor, second: Tensor) -> PartialMoments:
    """Sums over the first axis, the parts, written over the arguments: few launches, however many parts."""
    if len(log_max) == 1:
        return PartialMoments(log_max[0], total[0], difference[0], second[0])
    largest = log_max.amax(dim=0)
    factor = log_max.sub_(torch.where(torch.isinf(largest), 0, largest)).exp_()
    # Not a matrix product, which may be allowed TF32.
    return PartialMoments(
        largest,
        total.mul_(factor).sum(dim=0),
        difference.mul_(factor[:, :, None]).sum(dim=0),
        second.mul_(factor).sum(dim=0),
    )
