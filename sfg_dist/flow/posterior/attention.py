"""Softmax attention by torch: its fused kernel on the CPU, or tile by tile on any device.

Both stream over the keys with a running maximum, so weights never underflow to 0 / 0 and only one tile is in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Tiles of the blocked engine, queries and keys: one tile of logits fits in a core's cache, or fills a GPU.
_TILE = {"cpu": (256, 1024), "cuda": (8192, 16384)}
_LOGIT_FLOOR = -87.0  # exp(-87) is the smallest normal float32; below it some CPUs' exp is 30 times slower


def attend_fused(query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(query keys^T) keys by torch's kernel for the CPU, and the logits' log-sum-exp, shape (num_rows,).

    The query has at least one row, shape (num_rows, width); the keys, shape (num_keys, width), are the values too.
    """
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[None, None], keys[None, None], keys[None, None], scale=1.0
    )
    return output[0, 0], lse.reshape(-1)


def attend_blocked(query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """As ``attend_fused``, on any device: tiles of logits by matrix products."""
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
    """Turns TF32 off while logits are formed: its 10-bit mantissa would change weights by factors at small t."""

    def __enter__(self) -> None:
        self._precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self._precision)
