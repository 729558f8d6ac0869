"""The kernels' launch: sums over a whole reference, over listed blocks of it, or streamed from host memory.

Conventions are those of ``triton_kernels``: a query is an anchor a, i2s and a tilt h, and sums are relative to the
anchor, so parts of a reference that are summed with the same anchors add up (``merge``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from sfg_dist.flow.posterior.cuda.blocks import Blocks
from sfg_dist.flow.posterior.cuda.kernels import LOG2E, MAX_DIM, WIDE_DIM, attend_narrow, attend_wide, is_available

Precision: TypeAlias = Literal["tf32x3", "ieee", "tf32"]


class Tiles(NamedTuple):
    """Shape of one program: queries a tile, references a step, warps and pipeline stages."""

    rows: int
    step: int
    num_warps: int
    num_stages: int


def tiles_for(dim: int) -> Tiles:
    """The tile used for ``dim`` columns; ``rows`` is what queries are grouped by for ``attend_blocks``."""
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
    """Unnormalised sums over part of the reference, relative to each row's anchor; see ``merge`` and ``finish``.

    With p_j = exp(logit_j - log_max):

    Attributes:
        log_max: largest logit met, shape (num_rows,); -inf where no reference was visited.
        total: sum p_j, shape (num_rows,).
        difference: sum p_j (x_j - a), shape (num_rows, dim).
        second: sum p_j |x_j - a|^2, shape (num_rows,).
    """

    log_max: Tensor
    total: Tensor
    difference: Tensor
    second: Tensor

    def finish(self, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log of the kernel sum, mean m, and v = sum w |x - m|^2 >= 0; the mean is anchor + (m - anchor)."""
        shift = self.difference / self.total[:, None]
        variance = (self.second / self.total - shift.square().sum(dim=1)).clamp_min(0)
        return self.log_max + self.total.log(), anchor + shift, variance


def attend_dense(
    anchor: Tensor,
    inv_two_sigma_sq: Tensor,
    reference: Tensor | Blocks,
    *,
    tilt: Tensor | None = None,
    precision: Precision = "tf32x3",
    num_splits: int | None = None,
    tiles: Tiles | None = None,
) -> PartialMoments:
    """Kernel sums over the whole reference.

        p_j = exp(-i2s |a - x_j|^2 + h . (x_j - a))

    Args:
        anchor: the queries x~ = z_t / alpha, or points near the data that stand for them, shape (num_rows, dim).
        inv_two_sigma_sq: i2s = alpha^2 / (2 beta^2) of each row, shape (num_rows,).
        reference: centred rows, shape (num_reference, dim), or rows in blocks, whose centres keep digits at small i2s.
        tilt: h = 2 i2s (x~ - a), shape (num_rows, dim); None where the anchors are the queries.
        precision: of the matrix products for dim >= 16: "tf32x3" or "ieee" are of float32 grade, "tf32" is not.
        num_splits: programs that share the references of one query tile; chosen to fill the GPU by default.
        tiles: shape of a program, by dim by default.

    Returns:
        The sums; see PartialMoments.

    Raises:
        ValueError: shapes or types do not fit.
    """
    return _attend(anchor, inv_two_sigma_sq, reference, tilt, None, precision, num_splits, tiles)


def attend_blocks(
    anchor: Tensor,
    inv_two_sigma_sq: Tensor,
    blocks: Blocks,
    offsets: Tensor,
    indices: Tensor,
    *,
    tilt: Tensor | None = None,
    precision: Precision = "tf32x3",
    num_splits: int | None = None,
    tiles: Tiles | None = None,
) -> PartialMoments:
    """Kernel sums over listed blocks; rows come in tiles of ``tiles.rows`` that share a list. See ``attend_dense``.

    Args:
        anchor: the queries or their stand-ins, shape (num_rows, dim).
        inv_two_sigma_sq: i2s of each row, shape (num_rows,).
        blocks: the ordered reference.
        offsets: start of each tile's list and the end of the last, shape (num_tiles + 1,), int32.
        indices: the lists one after another, int32.
        tilt: h = 2 i2s (x~ - a), or None.
        precision: of the matrix products for dim >= 16.
        num_splits: programs that share one tile's list.
        tiles: shape of a program, by dim by default.

    Returns:
        The sums over the listed blocks, to which a caller may ``merge`` others with the same anchors.

    Raises:
        ValueError: shapes or types do not fit, or there is not one list a tile.
    """
    if any(part.dtype != torch.int32 or part.device != anchor.device for part in (offsets, indices)):
        raise ValueError(
            f"offsets and indices must be int32 on {anchor.device}, got {offsets.dtype} on {offsets.device} and "
            f"{indices.dtype} on {indices.device}"
        )
    lists = (offsets.contiguous(), indices.contiguous())
    return _attend(anchor, inv_two_sigma_sq, blocks, tilt, lists, precision, num_splits, tiles)


def _attend(
    anchor: Tensor,
    scale: Tensor,
    reference: Tensor | Blocks,
    tilt: Tensor | None,
    lists: tuple[Tensor, Tensor] | None,
    precision: Precision,
    num_splits: int | None,
    tiles: Tiles | None,
) -> PartialMoments:
    x = reference.rows if isinstance(reference, Blocks) else reference
    num_rows, dim = anchor.shape
    if x.ndim != 2 or x.shape[1] != dim or not 1 <= dim <= MAX_DIM or not len(x):
        raise ValueError(f"rows of 1 to {MAX_DIM} columns expected, got {tuple(anchor.shape)} and {tuple(x.shape)}")
    if scale.shape != (num_rows,) or (tilt is not None and tilt.shape != anchor.shape):
        raise ValueError(f"one inv_two_sigma_sq and one tilt a row expected for anchors of shape {tuple(anchor.shape)}")
    parts = (anchor, scale, x) if tilt is None else (anchor, scale, x, tilt)
    if any(part.dtype != torch.float32 or part.device != anchor.device for part in parts):
        raise ValueError("anchors, tilts, inv_two_sigma_sq and reference must be float32 and on one device")
    if not is_available(anchor.device):
        raise ValueError(f"the kernels do not run on {anchor.device}: CUDA and triton are needed")
    tiles = tiles or tiles_for(dim)
    # Without blocks any size will do; several steps a block keep the loop's overhead small.
    block_rows = reference.block_rows if isinstance(reference, Blocks) else max(128, tiles.step)
    if len(x) >= 2**31 - block_rows:
        raise ValueError(f"at most 2^31 references a pass, got {len(x)}: stream them")
    if num_rows >= 2**31 - tiles.rows:
        raise ValueError(f"at most 2^31 queries a pass, got {num_rows}: pass fewer at a time")
    if block_rows % tiles.step:
        raise ValueError(f"block_rows must be a multiple of {tiles.step}, got {block_rows}")
    num_tiles = -(-num_rows // tiles.rows)
    num_blocks = -(-len(x) // block_rows)
    if lists is not None and len(lists[0]) != num_tiles + 1:
        raise ValueError(f"{num_tiles} tiles of {tiles.rows} rows need {num_tiles + 1} offsets, got {len(lists[0])}")
    if not num_rows:
        empty = scale.new_empty(0)
        return PartialMoments(empty, empty, anchor.clone(), empty)
    if num_splits is None:
        num_splits = _splits_to_fill(num_tiles, num_blocks, anchor.device)
    anchor = anchor.contiguous()
    tilt = None if tilt is None else (tilt * LOG2E).contiguous()
    scale = (scale * LOG2E).contiguous()  # the kernels take powers of two
    log_max = scale.new_empty(num_splits, num_rows)
    total = torch.empty_like(log_max)
    second = torch.empty_like(log_max)
    difference = scale.new_empty(num_splits, num_rows, dim)
    offsets, indices = lists if lists is not None else (None, None)
    outputs = (log_max, total, difference, second)
    counts = (num_rows, len(x), num_blocks, num_splits)
    options: dict[str, Any] = {
        "BLOCK_M": tiles.rows,
        "BLOCK_N": tiles.step,
        "BLOCK_ROWS": block_rows,
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
            columns = x.new_zeros(dim, num_blocks * block_rows)
            columns[:, : len(x)] = x.T
            attend_narrow[(num_tiles, num_splits)](
                anchor, tilt, scale, columns, offsets, indices, *outputs, *counts, columns.stride(0), **options
            )
        else:
            attend_wide[(num_tiles, num_splits)](
                anchor,
                tilt,
                scale,
                x.contiguous(),
                reference.centers if isinstance(reference, Blocks) else None,
                offsets,
                indices,
                *outputs,
                *counts,
                PADDED=max(WIDE_DIM, 1 << (dim - 1).bit_length()),
                CENTERED=isinstance(reference, Blocks),
                PRECISION=precision,
                **options,
            )
    return _add_up(log_max.mul_(1 / LOG2E), total, difference, second)


def _splits_to_fill(num_tiles: int, num_blocks: int, device: torch.device) -> int:
    num_cores = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    # Four programs a multiprocessor, but no program with less than four blocks.
    return max(1, min(-(-4 * num_cores // max(num_tiles, 1)), num_blocks // 4, 65535))


def merge(parts: Sequence[PartialMoments]) -> PartialMoments:
    """Sums over the union of disjoint parts of the reference, taken with the same anchors."""
    if len(parts) == 1:
        return parts[0]
    return _add_up(
        torch.stack([part.log_max for part in parts]),
        torch.stack([part.total for part in parts]),
        torch.stack([part.difference for part in parts]),
        torch.stack([part.second for part in parts]),
    )


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


def attend_streamed(
    anchor: Tensor,
    inv_two_sigma_sq: Tensor,
    rows: Tensor,
    *,
    stream_rows: int = 1 << 20,
    tilt: Tensor | None = None,
    precision: Precision = "tf32x3",
    tiles: Tiles | None = None,
) -> PartialMoments:
    """Kernel sums over a reference in host memory: while one piece is computed on, the next is copied.

    Args:
        anchor: the queries or their stand-ins, on the device, shape (num_rows, dim).
        inv_two_sigma_sq: i2s of each row, on the device.
        rows: centred rows on the host, float32; pinned memory lets the copies run beside the kernels.
        stream_rows: rows of one piece; two pieces are on the device at a time.
        tilt: h = 2 i2s (x~ - a), or None.
        precision: of the matrix products for dim >= 16.
        tiles: shape of a program, by dim by default.

    Returns:
        The sums over all rows.

    Raises:
        ValueError: the rows are not a float32 table, there are none, or a piece has none.
    """
    if rows.ndim != 2 or rows.dtype != torch.float32 or not len(rows) or stream_rows < 1:
        raise ValueError(
            f"float32 rows in pieces of at least one expected, got {rows.dtype} of shape {tuple(rows.shape)} in pieces "
            f"of {stream_rows}"
        )
    starts = range(0, len(rows), stream_rows)
    if anchor.device.type != "cuda":
        pieces = (rows[start : start + stream_rows].to(anchor.device) for start in starts)
        return _accumulate(
            attend_dense(anchor, inv_two_sigma_sq, piece, tilt=tilt, precision=precision, tiles=tiles)
            for piece in pieces
        )

    def compute() -> Iterator[PartialMoments]:
        main = torch.cuda.current_stream(anchor.device)
        side = torch.cuda.Stream(anchor.device)
        side.wait_stream(main)
        buffers = [anchor.new_empty(min(stream_rows, len(rows)), rows.shape[1]) for _ in range(2)]
        copied = [torch.cuda.Event() for _ in range(2)]
        released = [torch.cuda.Event() for _ in range(2)]
        for number, start in enumerate(starts):
            slot = number % 2
            piece = rows[start : start + stream_rows]
            with torch.cuda.stream(side):
                if number >= 2:
                    side.wait_event(released[slot])
                buffers[slot][: len(piece)].copy_(piece, non_blocking=True)
                copied[slot].record(side)
            main.wait_event(copied[slot])
            yield attend_dense(
                anchor, inv_two_sigma_sq, buffers[slot][: len(piece)], tilt=tilt, precision=precision, tiles=tiles
            )
            released[slot].record(main)

    with torch.cuda.device(anchor.device):
        return _accumulate(compute())


def _accumulate(parts: Iterable[PartialMoments]) -> PartialMoments:
    remaining = iter(parts)
    result = next(remaining)
    for part in remaining:
        result = merge([result, part])
    return result
