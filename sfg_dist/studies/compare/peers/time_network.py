"""The network of the peers that learn a field over time or noise: a residual MLP, with features of the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfg_dist.studies.compare.peers.peer import Peer

NUM_FREQUENCIES = 16
MAX_FREQUENCY = 32.0  # half periods over a unit of time


class _Block(nn.Module):
    """h + W2 act(W1 norm(h)), width unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Shape (num_rows, width) in and out."""
        projected: Tensor = self.project(nn.functional.gelu(self.expand(self.norm(h))))
        return h + projected


class TimeMLP(nn.Module):
    """A residual network of rows and times, with ``depth`` blocks; its last layer starts at zero.

    It is not ``model.MLP`` with more columns: a change of the generator must not change its peers.
    """

    frequencies: Tensor

    def __init__(self, dim: int, *, width: int, depth: int) -> None:
        super().__init__()
        powers = torch.linspace(0, math.log(MAX_FREQUENCY), NUM_FREQUENCIES).exp()
        self.register_buffer("frequencies", math.pi * powers)
        self.rows = nn.Linear(dim, width)
        self.time = nn.Linear(2 * NUM_FREQUENCIES + 1, width, bias=False)  # by itself: in sampling it is one row
        self.hidden = nn.Sequential(*(_Block(width) for _ in range(depth)), nn.LayerNorm(width))
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, rows: Tensor, times: Tensor) -> Tensor:
        """Shape (num_rows, dim) of rows, shape (num_rows, dim), at times of order 1, shape (num_rows, 1) or (1, 1)."""
        angles = times * self.frequencies
        features = torch.cat([times, angles.sin(), angles.cos()], dim=1)
        result: Tensor = self.out(self.hidden(self.rows(rows) + self.time(features)))
        return result


class TimeField(Peer):
    """A peer of dim columns whose network is of rows and times."""

    def __init__(self, dim: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.dim = dim
        self.network = TimeMLP(dim, width=width, depth=depth)


def spread_uniform(rows: Tensor) -> Tensor:
    """A number of [0, 1) for each row, shape (num_rows, 1): one uniform draw, shifted evenly from row to row.

    Each number has a uniform law, and a sum over the rows has less noise than with independent draws.
    """
    shifts = torch.arange(len(rows), device=rows.device)[:, None] / len(rows)
    return (torch.rand(1, 1, device=rows.device) + shifts) % 1
