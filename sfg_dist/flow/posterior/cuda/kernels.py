"""Triton kernels of the posterior moments on a GPU: streaming softmax sums, one of differences, one of products.

Conventions: all is in the reference's centred coordinates, float32, rows are samples. With x~ = z_t / alpha and
i2s = alpha^2 / (2 beta^2) the weights are w_j = softmax_j(-i2s |x~ - x_j|^2). A query is given as

    an anchor a, a point of the data's bounding box (x~ itself when it lies inside), and
    a tilt    h = 2 i2s (x~ - a), zero when it does,

so that, up to a term common to all j, logit_j = -i2s |a - x_j|^2 + h . (x_j - a). Nothing here grows as alpha -> 0,
where x~ goes to infinity and h stays finite; at alpha = 0 both are zero and the weights are uniform. Sums are taken
relative to the anchor, sum_j p_j (x_j - a) and sum_j p_j |x_j - a|^2, so m - a and the variance keep their digits
where the reference is dense about the query.

Rounding of a logit, and what each kernel does about it:

    narrow (dim < 16)   differences x_j - a are formed first; the error is 1e-7 of i2s |a - x_j|^2 + |h| |x_j - a|
    wide   (dim >= 16)  matrix products about the centre c of each block of references; the error is
                        6e-8 i2s (|a - c| + |x_j - c|)^2, "tf32x3" products add 2^-21 of 2 i2s |a - c| |x_j - c|;
                        sum p_j |x_j - a|^2 is rounded likewise, to 6e-8 (|a - c| + |x_j - c|)^2

A reference ordered into compact blocks (``make_blocks``) has small |x_j - c|, and blocks with large |a - c| carry no
weight where i2s is large, so what is left is the rounding of an honest distance.

``blocks`` orders a reference and chooses among its blocks, ``sums`` launches the kernels, and ``engine`` makes moments
of what they sum. Without triton all of them import, and ``is_available`` says no.
"""
# ruff: noqa: RUF005
# The kernels grow tuples by concatenation, which is the form that Triton's compiler takes.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, no_type_check

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # the CPU engines do without
    triton = None
    tl = None

WIDE_DIM = 16  # the smallest side of a matrix product in Triton
MAX_DIM = 256
LOG2E = math.log2(math.e)  # the kernels take powers of two: i2s and h come multiplied by it


def is_available(device: torch.device | str) -> bool:
    """Whether the kernels run on ``device``: CUDA with triton, or any device under triton's interpreter."""
    if triton is None:
        return False
    if type(attend_narrow).__name__ == "InterpretedFunction":
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
def attend_narrow(
    anchor_ptr, tilt_ptr, scale_ptr, columns_ptr, offset_ptr, index_ptr, maximum_ptr, total_ptr, difference_ptr,
    second_ptr, num_rows, num_reference, num_blocks, num_splits, column_stride, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_ROWS: tl.constexpr, TILTED: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
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
    # Places in the tile's own list: added to ``first`` they would pass 2^31 where all lists together come close to it.
    begin = tl.minimum(split * share, count)
    end = tl.minimum(begin + share, count)
    for position in range(first + begin, first + end):
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
def attend_wide(
    anchor_ptr, tilt_ptr, scale_ptr, x_ptr, center_ptr, offset_ptr, index_ptr, maximum_ptr, total_ptr, difference_ptr,
    second_ptr, num_rows, num_reference, num_blocks, num_splits, DIM: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_ROWS: tl.constexpr, TILTED: tl.constexpr, LISTED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
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
    # Places in the tile's own list: added to ``first`` they would pass 2^31 where all lists together come close to it.
    begin = tl.minimum(split * share, count)
    end = tl.minimum(begin + share, count)
    for position in range(first + begin, first + end):
        block = position
        if LISTED:
            block = tl.load(index_ptr + position)
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
