"""What every peer can do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Sampler = Callable[[int, torch.Generator], Tensor]
"""Draws so many rows, shape (num_rows, dim), by a generator on the peer's device."""


class Peer(nn.Module):
    """A generator that is fitted to rows in the flow's coordinates, shape (num_rows, dim)."""

    def loss(self, rows: Tensor) -> Tensor:
        """What is minimised over batches of rows, a scalar."""
        raise NotImplementedError

    def log_density(self, rows: Tensor) -> Tensor:
        """Log density in nats, shape (num_rows,)."""
        raise NotImplementedError
