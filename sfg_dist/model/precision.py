"""Where bfloat16 is worth its rounding."""

from __future__ import annotations

import functools

import torch


@functools.cache  # asked at every step of the optimiser, and the CPU's answer is a table made anew
def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products of bfloat16 have units of their own: a GPU's, or a CPU's tiles (AMX).

    Without them they are emulated, which is slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # younger than the oldest torch that is supported
    return bool(capabilities is not None and capabilities().get("amx_bf16"))
