"""Posterior moments on a GPU: streaming softmax kernels in Triton, dense or over chosen blocks of the reference.

Conventions: all is in the reference's centred coordinates, float32, rows are samples. With x~ = z_t / alpha and
i2s = alpha^2 / (2 beta^2) the weights are w_j = softmax_j(-i2s |x~ - x_j|^2). A query is given as

    an anchor a, a point of the data's bounding box (x~ itself when it lies inside), and
    a tilt    h = 2 i2s (x~ - a), zero when it does,

so that, up to a term common to all j, logit_j = -i2s |a - x_j|^2 + h . (x_j - a). Nothing here grows as alpha -> 0,
where x~ goes to infinity and h stays finite; at alpha = 0 both are zero and the weights are uniform. Sums are taken
relative to the anchor, sum_j p_j (x_j - a) and sum_j p_j |x_j - a|^2, so m - a and the variance keep their digits
where the reference is dense about the query.

Rounding of a logit, and what each kernel does about it:

    narrow (dim < 16)   differences x_j - a are formed first; the error is 1e-7 of the logit itself
    wide   (dim >= 16)  matrix products about the centre c of each block of references; the error is
                        6e-8 i2s (|a - c| + |x_j - c|)^2, "tf32x3" products add 2^-21 of 2 i2s |a - c| |x_j - c|;
                        sum p_j |x_j - a|^2 is rounded likewise, to 6e-8 (|a - c| + |x_j - c|)^2

A reference ordered into compact blocks (``make_blocks``) has small |x_j - c|, and blocks with large |a - c| carry no
weight where i2s is large, so what is left is the rounding of an honest distance. Without blocks c = 0 and the error
is that of a plain product, 6e-8 i2s |a| |x|.

Nothing imports this module but its caller; without triton it still imports, and ``is_available`` says no.
"""
# ruff: noqa: RUF005
# The kernels grow tuples by concatenation, which is the form that Triton's compiler takes.

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, no_type_check

import torch
from torch import Tensor

try:
    import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
    import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
except ImportError:  # the CPU engines do without
    triton = None
    tl = None

Precision: TypeAlias = Literal["tf32x3", "ieee", "tf32"]

WIDE_DIM = 16  # the smallest side of a matrix product in Triton
MAX_DIM = 256
_LOG2E = math.log2(math.e)
_CHUNK_ELEMENTS = 1 << 24  # of (tiles, blocks) held at once while blocks are chosen


def is_available(device: torch.device | str) -> bool:
    """Whether the kernels run on ``device``: CUDA with triton, or any device under triton's interpreter."""
    if triton is None:
        return False
    if type(_attend_narrow).__name__ == "InterpretedFunction":
        return True
    return torch.device(device).type == "cuda" and torch.cuda.is_available()


def _jit(function: Callable[..., None]) -> Any:
    # Row and block counts change from call to call, and would otherwise be compiled for anew by their divisibility.
    counts = ("num_rows", "num_reference", "num_blocks", "num_splits", "column_stride")
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    if triton is None:
        return function
    return triton.jit(do_not_specialize=[name for name in counts if name in arguments])(function)


@_jit
@no_type_check
def _attend_narrow(
    anchor_ptr,
    tilt_ptr,
    scale_ptr,
    columns_ptr,
    offset_ptr,
    index_ptr,
    maximum_ptr,
    total_ptr,
    difference_ptr,
    second_ptr,
    num_rows,
    num_reference,
    num_blocks,
    num_splits,
    column_stride,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILTED: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Plain float32 arithmetic on tiles (BLOCK_N references, BLOCK_M queries), one column of the data at a time.

    Queries lie along the threads, so that every sum over references stays inside a thread.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    column_stride = tl.multiple_of(column_stride.to(tl.int64), 16)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < num_rows
    wide_rows = rows.to(tl.int64)
    scale = tl.load(scale_ptr + rows, mask=live, other=0.0)
    anchor = ()
    tilt = ()
    difference = ()
    for k in tl.static_range(DIM):
        anchor = anchor + (tl.load(anchor_ptr + wide_rows * DIM + k, mask=live, other=0.0),)
        if TILTED:
            tilt = tilt + (tl.load(tilt_ptr + wide_rows * DIM + k, mask=live, other=0.0),)
        difference = difference + (tl.zeros((BLOCK_M,), tl.float32),)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    second = tl.zeros((BLOCK_M,), tl.float32)
    first = 0
    count = num_blocks
    if LISTED:
        first = tl.load(offset_ptr + tile)
        count = tl.load(offset_ptr + tile + 1) - first
    share = (count + num_splits - 1) // num_splits
    begin = first + split * share
    end = tl.minimum(begin + share, first + count)
    for position in range(begin, end):
        block = position
        if LISTED:
            block = tl.load(index_ptr + position)
        for part in range(0, BLOCK_ROWS, BLOCK_N):
            # The columns are padded with zeros to whole blocks: loads need no mask, logits do.
            j = block * BLOCK_ROWS + part + tl.arange(0, BLOCK_N)
            distance_sq = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            slope = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            deltas = ()
            for k in tl.static_range(DIM):
                x_k = tl.load(columns_ptr + k * column_stride + j)
                delta = x_k[:, None] - anchor[k][None, :]
                distance_sq += delta * delta
                if TILTED:
                    slope += tilt[k][None, :] * delta
                deltas = deltas + (delta,)
            logits = slope - scale[None, :] * distance_sq
            logits = tl.where((j < num_reference)[:, None], logits, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(logits, 0))
            rescale = tl.exp2(maximum - new_maximum)
            weights = tl.exp2(logits - new_maximum[None, :])
            total = total * rescale + tl.sum(weights, 0)
            second = second * rescale + tl.sum(weights * distance_sq, 0)
            moved = ()
            for k in tl.static_range(DIM):
                moved = moved + (difference[k] * rescale + tl.sum(weights * deltas[k], 0),)
            difference = moved
            maximum = new_maximum
    out = split.to(tl.int64) * num_rows + wide_rows
    tl.store(maximum_ptr + out, maximum, mask=live)
    tl.store(total_ptr + out, total, mask=live)
    tl.store(second_ptr + out, second, mask=live)
    for k in tl.static_range(DIM):
        tl.store(difference_ptr + out * DIM + k, difference[k], mask=live)


@_jit
@no_type_check
def _attend_wide(
    anchor_ptr,
    tilt_ptr,
    scale_ptr,
    x_ptr,
    center_ptr,
    offset_ptr,
    index_ptr,
    maximum_ptr,
    total_ptr,
    difference_ptr,
    second_ptr,
    num_rows,
    num_reference,
    num_blocks,
    num_splits,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILTED: tl.constexpr,
    LISTED: tl.constexpr,
    CENTERED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Matrix products on tiles (BLOCK_M queries, BLOCK_N references) about the centre of each reference block.

    With e = a - c and y = x - c:  -i2s |a - x|^2 + h . (x - a) = (2 i2s e + h) . y - i2s |y|^2 - (i2s |e|^2 + h . e).
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < num_rows
    wide_rows = rows.to(tl.int64)
    columns = tl.arange(0, PADDED)
    inside = columns < DIM
    cells = wide_rows[:, None] * DIM + columns[None, :]
    filled = live[:, None] & inside[None, :]
    scale = tl.load(scale_ptr + rows, mask=live, other=0.0)
    anchor = tl.load(anchor_ptr + cells, mask=filled, other=0.0)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    second = tl.zeros((BLOCK_M,), tl.float32)
    difference = tl.zeros((BLOCK_M, PADDED), tl.float32)
    first = 0
    count = num_blocks
    if LISTED:
        first = tl.load(offset_ptr + tile)
        count = tl.load(offset_ptr + tile + 1) - first
    share = (count + num_splits - 1) // num_splits
    begin = first + split * share
    end = tl.minimum(begin + share, first + count)
    for position in range(begin, end):
        block = position
        if LISTED:
            block = tl.load(index_ptr + position)
        e = anchor
        center = tl.zeros((PADDED,), tl.float32)
        if CENTERED:
            center = tl.load(center_ptr + block * DIM + columns, mask=inside, other=0.0)
            e = anchor - center[None, :]
        e_sq = tl.sum(e * e, 1)
        query = 2.0 * scale[:, None] * e
        offset = scale * e_sq
        if TILTED:
            tilt = tl.load(tilt_ptr + cells, mask=filled, other=0.0)
            query += tilt
            offset += tl.sum(tilt * e, 1)
        for part in range(0, BLOCK_ROWS, BLOCK_N):
            j = block * BLOCK_ROWS + part + tl.arange(0, BLOCK_N)
            known = j < num_reference
            used = known[:, None] & inside[None, :]
            y = tl.load(x_ptr + j.to(tl.int64)[:, None] * DIM + columns[None, :], mask=used, other=0.0)
            if CENTERED:
                y = tl.where(used, y - center[None, :], 0.0)
            y_sq = tl.sum(y * y, 1)
            logits = tl.dot(query, tl.trans(y), input_precision=PRECISION)
            logits = logits - scale[:, None] * y_sq[None, :] - offset[:, None]
            logits = tl.where(known[None, :], logits, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(logits, 1))
            rescale = tl.exp2(maximum - new_maximum)
            weights = tl.exp2(logits - new_maximum[:, None])
            mass = tl.sum(weights, 1)
            pulled = tl.dot(weights, y, input_precision=PRECISION)
            total = total * rescale + mass
            difference = difference * rescale[:, None] + (pulled - mass[:, None] * e)
            spread = tl.sum(weights * y_sq[None, :], 1) - 2.0 * tl.sum(pulled * e, 1) + mass * e_sq
            second = second * rescale + spread
            maximum = new_maximum
    out = split.to(tl.int64) * num_rows + wide_rows
    tl.store(maximum_ptr + out, maximum, mask=live)
    tl.store(total_ptr + out, total, mask=live)
    tl.store(second_ptr + out, second, mask=live)
    tl.store(difference_ptr + out[:, None] * DIM + columns[None, :], difference, mask=filled)


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
    # Chosen from the compiler's register and shared-memory figures for sm_90; larger tiles spill.
    if dim <= 64:
        return Tiles(64, 32, 4, 1)
    return Tiles(32, 32, 4, 1) if dim <= 128 else Tiles(32, 32, 8, 1)


@dataclass(frozen=True)
class Blocks:
    """A reference ordered into compact blocks of ``block_rows`` rows, the last one ragged, with what bounds need.

    Attributes:
        rows: the ordered rows, float32, shape (num_reference, dim), contiguous.
        order: where each row stood in the table given, shape (num_reference,).
        block_rows: rows a block, a multiple of 64.
        centers: mean of each block as the kernels use it, float32, shape (num_blocks, dim).
        mean: the same in float64.
        low: least coordinates of each block, float64, shape (num_blocks, dim).
        high: greatest coordinates.
        counts: rows of each block, float64, shape (num_blocks,).
        spread: mean of |x - mean|^2 in each block, float64.
        radius: greatest |x - mean| in each block, float64.
    """

    rows: Tensor
    order: Tensor
    block_rows: int
    centers: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    counts: Tensor
    spread: Tensor
    radius: Tensor

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.centers.shape[0]


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


@dataclass(frozen=True)
class Selection:
    """Which reference blocks each query tile visits, as compressed rows, and what leaving out the rest costs at most.

    Attributes:
        offsets: shape (num_tiles + 1,), int32; tile i visits indices[offsets[i]:offsets[i + 1]].
        indices: block numbers, ascending in each tile, int32.
        error_bound: bound on |m - m_kept| for every query of the tile, 2-norm, float64, shape (num_tiles,).
    """

    offsets: Tensor
    indices: Tensor
    error_bound: Tensor


class PosteriorMomentsGpu(NamedTuple):
    """Mean, log-sum-exp (in the convention of ``posterior``) and variance, with a bound on what was left out.

    ``error_bound`` bounds |mean - exact mean| from omitted blocks in exact arithmetic, float32 rounding apart; it is
    zero for a dense pass.
    """

    mean: Tensor
    log_sum_exp: Tensor
    variance: Tensor
    error_bound: Tensor


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
    if offsets.dtype != torch.int32 or indices.dtype != torch.int32:
        raise ValueError(f"offsets and indices must be int32, got {offsets.dtype} and {indices.dtype}")
    return _attend(anchor, inv_two_sigma_sq, blocks, tilt, (offsets, indices), precision, num_splits, tiles)


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
    if any(part.dtype != torch.float32 or part.device != anchor.device for part in (anchor, scale, x)):
        raise ValueError("anchors, inv_two_sigma_sq and reference must be float32 and on one device")
    if not is_available(anchor.device):
        raise ValueError(f"the kernels do not run on {anchor.device}: CUDA and triton are needed")
    tiles = tiles or tiles_for(dim)
    # Without blocks any size will do; several steps a block keep the loop's overhead small.
    block_rows = reference.block_rows if isinstance(reference, Blocks) else max(128, tiles.step)
    if len(x) >= 2**31 - block_rows:
        raise ValueError(f"at most 2^31 references a pass, got {len(x)}: stream them")
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
    tilt = None if tilt is None else (tilt * _LOG2E).contiguous()
    scale = (scale * _LOG2E).contiguous()  # the kernels take powers of two
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
            _attend_narrow[(num_tiles, num_splits)](
                anchor, tilt, scale, columns, offsets, indices, *outputs, *counts, columns.stride(0), **options
            )
        else:
            _attend_wide[(num_tiles, num_splits)](
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
    log_max.mul_(1 / _LOG2E)
    return merge([PartialMoments(log_max[i], total[i], difference[i], second[i]) for i in range(num_splits)])


def _splits_to_fill(num_tiles: int, num_blocks: int, device: torch.device) -> int:
    num_cores = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    # Four programs a multiprocessor, but no program with less than four blocks.
    return max(1, min(-(-4 * num_cores // max(num_tiles, 1)), num_blocks // 4, 65535))


def merge(parts: Sequence[PartialMoments]) -> PartialMoments:
    """Sums over the union of disjoint parts of the reference, taken with the same anchors."""
    if len(parts) == 1:
        return parts[0]
    log_max = torch.stack([part.log_max for part in parts]).amax(dim=0)
    finite = torch.where(torch.isinf(log_max), 0, log_max)
    total = torch.zeros_like(parts[0].total)
    difference = torch.zeros_like(parts[0].difference)
    second = torch.zeros_like(parts[0].second)
    for part in parts:
        factor = torch.exp(part.log_max - finite)
        total += factor * part.total
        difference += factor[:, None] * part.difference
        second += factor * part.second
    return PartialMoments(log_max, total, difference, second)


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
    """
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


def order_rows(points: Tensor, block_rows: int) -> Tensor:
    """An order in which blocks of ``block_rows`` rows are compact: nodes are halved across their widest side.

    Args:
        points: rows, shape (num_rows, dim), finite.
        block_rows: rows of a block; halves are whole blocks, so only the last block is ragged.

    Returns:
        The order, shape (num_rows,), int64; the same for the same points on every device up to ties.
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


def make_blocks(rows: Tensor, *, block_rows: int = 128, order: Tensor | None = None) -> Blocks:
    """The reference in compact blocks; ``order`` is computed by ``order_rows`` unless it is given.

    Args:
        rows: centred rows, float32, shape (num_reference, dim).
        block_rows: rows of a block, a multiple of 64.
        order: a permutation of the rows.

    Returns:
        The ordered rows with their blocks' boxes, balls and moments.
    """
    if not len(rows) or block_rows % 64:
        raise ValueError(f"rows to order and blocks of a multiple of 64 rows expected, got {len(rows)}, {block_rows}")
    order = order_rows(rows, block_rows) if order is None else order
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


def nearest_blocks(points: Tensor, blocks: Blocks, num_nearest: int = 4) -> tuple[Tensor, Tensor]:
    """Lists of the blocks whose means are nearest to each point: offsets and indices, as ``attend_blocks`` takes."""
    count = min(num_nearest, blocks.num_blocks)
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
    are left out until the tolerance is used; a second pass measures D_b to what the first one kept.

    Args:
        tile_low: least coordinates of each tile's queries x~ = z_t / alpha, float64, shape (num_tiles, dim).
        tile_high: greatest coordinates.
        scale_low: least i2s of each tile's queries, float64, shape (num_tiles,).
        scale_high: greatest i2s.
        blocks: the ordered reference.
        tolerance: budget of each tile, in the reference's units, >= 0.
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
            kept = _drop_cheapest(log_weight.exp() * _reach(kept, blocks), tolerance)
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


def _drop_cheapest(cost: Tensor, tolerance: float) -> Tensor:
    """Which blocks stay when the cheapest are left out while their costs sum to no more than the tolerance."""
    ascending, place = cost.sort(dim=1)
    stays = ascending.cumsum(dim=1) > tolerance
    stays[:, -1] = True
    return torch.empty_like(stays).scatter_(1, place, stays)


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
    if z_t.ndim != 2 or z_t.dtype != torch.float32:
        raise ValueError(f"z_t must be a float32 table, got {z_t.dtype} of shape {tuple(z_t.shape)}")
    num_rows, dim = z_t.shape
    # The few numbers of a row are made in float64: i2s reaches 1e5, and log-sum-exp is a difference of such terms.
    alpha_row, beta_sq_row = (
        torch.as_tensor(value, dtype=torch.float64, device=z_t.device).expand(num_rows) for value in (alpha, beta_sq)
    )
    if bool((beta_sq_row <= 0).any()):
        raise ValueError("beta_sq must be positive")
    scale = alpha_row.square() / (2 * beta_sq_row)
    rows = reference.rows if isinstance(reference, Blocks) else reference
    streamed = stream_rows is not None or rows.device.type != z_t.device.type
    if streamed and (tolerance is not None or isinstance(reference, Blocks)):
        raise ValueError("a streamed reference is a plain table, and every pair is computed: tolerance must be None")
    if tolerance is not None and not isinstance(reference, Blocks):
        reference = make_blocks(rows)
    low, high = rows.amin(dim=0).to(z_t.device), rows.amax(dim=0).to(z_t.device)
    query = z_t.double() / alpha_row.clamp_min(1e-8)[:, None]
    anchor = torch.minimum(torch.maximum(query.float(), low), high)
    exact_anchor = anchor.double()
    # h = 2 i2s (x~ - a) = alpha (z_t - alpha a) / beta^2, also where it only undoes the rounding of x~ to float32.
    tilt = (alpha_row / beta_sq_row)[:, None] * (z_t.double() - alpha_row[:, None] * exact_anchor)
    # Skipped where every query lies inside the data's box: what is left then is the rounding of z_t itself.
    h = tilt.float() if bool((query.float() != anchor).any()) else None
    i2s = scale.float()
    bound = scale.new_zeros(num_rows)
    if streamed:
        sums = attend_streamed(
            anchor, i2s, rows, stream_rows=stream_rows or 1 << 20, tilt=h, precision=precision, tiles=tiles
        )
    elif tolerance is None or not num_rows:
        sums = attend_dense(anchor, i2s, reference, tilt=h, precision=precision, tiles=tiles)
    else:
        assert isinstance(reference, Blocks)
        shape = tiles or tiles_for(dim)
        order = order_rows(anchor, shape.rows)
        num_tiles = -(-num_rows // shape.rows)
        # A short last tile is filled up with its own last row.
        filled = order[torch.arange(num_tiles * shape.rows, device=order.device).clamp_max(num_rows - 1)]
        boxes = query[filled].reshape(num_tiles, shape.rows, dim)
        scales = scale[filled].reshape(num_tiles, shape.rows)
        tile_low, tile_high = boxes.amin(dim=1), boxes.amax(dim=1)
        visit = partial(
            attend_blocks,
            anchor[order],
            i2s[order],
            reference,
            tilt=None if h is None else h[order],
            precision=precision,
            tiles=shape,
        )
        # The sum over a few near blocks bounds Z from below: log Z = log of the kernel's sum - i2s |x~ - a|^2.
        near = visit(*nearest_blocks((tile_low + tile_high) / 2, reference))
        beyond = scale * (query - exact_anchor).square().sum(dim=1)
        log_sum = near.log_max.double() + near.total.double().log()
        slack = 1e-3 + 1e-6 * scale[order] * (near.second / near.total).double() + 1e-6 * log_sum.abs()
        row_sum = log_sum - slack - beyond[order]
        row_sum = row_sum[torch.arange(num_tiles * shape.rows, device=order.device).clamp_max(num_rows - 1)]
        selection = select_blocks(
            tile_low,
            tile_high,
            scales.amin(dim=1),
            scales.amax(dim=1),
            reference,
            tolerance=tolerance,
            log_sum=row_sum.reshape(num_tiles, shape.rows).amin(dim=1),
        )
        part = visit(selection.offsets, selection.indices)
        back = torch.argsort(order)
        sums = PartialMoments(part.log_max[back], part.total[back], part.difference[back], part.second[back])
        bound[order] = selection.error_bound.repeat_interleave(shape.rows)[:num_rows]
    log_kernel, mean, variance = sums.finish(anchor)
    # logit_j of ``posterior`` is -i2s |x_j|^2 + alpha z_t . x_j / beta^2 = ours + i2s |a|^2 + h . a.
    log_sum_exp = log_kernel.double() + scale * exact_anchor.square().sum(dim=1) + (tilt * exact_anchor).sum(dim=1)
    return PosteriorMomentsGpu(mean, log_sum_exp.float(), variance, bound)
