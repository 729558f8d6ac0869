"""The log density along an ODE, with the exact divergence of its velocity.

    d(log p)/dt = -div v(x, t) along dx/dt = v(x, t)

References:
    Chen et al. 2018, Neural Ordinary Differential Equations, arXiv 1806.07366 (instantaneous change of variables).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def transported_log_density(velocity: Velocity, rows: Tensor, times: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Carry rows from the first to the last time by classical Runge-Kutta steps, and sum up the divergence.

    ``velocity`` is v(x, t), shape (num_rows, dim) in and out; a row's velocity depends on this row alone. There is one
    time more than steps, rising or falling.

    Returns:
        The rows at the last time, and log p(rows, first time) - log p(rows then, last time), shape (num_rows,).
    """
    x, change = rows, torch.zeros(len(rows), device=rows.device)
    for start, stop in pairwise(times):
        step, middle = stop - start, (start + stop) / 2
        v1, d1 = _with_divergence(velocity, x, start)
        v2, d2 = _with_divergence(velocity, x + step / 2 * v1, middle)
        v3, d3 = _with_divergence(velocity, x + step / 2 * v2, middle)
        v4, d4 = _with_divergence(velocity, x + step * v3, stop)
        x = x + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        change = change + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return x, change


def _with_divergence(velocity: Velocity, rows: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """v and div v: one backward pass a column, since each row's velocity is its own."""
    with torch.enable_grad():
        x = rows.detach().requires_grad_()
        v = velocity(x, t)
        divergence = torch.zeros(len(rows), device=rows.device)
        for column in range(rows.shape[1]):
            (gradient,) = torch.autograd.grad(v[:, column].sum(), x, retain_graph=True)
            divergence += gradient[:, column]
    return v.detach(), divergence


def log_normal(rows: Tensor, scale: float = 1.0) -> Tensor:
    """Log density of N(0, scale^2 I) in nats, shape (num_rows,)."""
    dim = rows.shape[1]
    return -0.5 * (rows / scale).square().sum(dim=1) - dim * (math.log(scale) + 0.5 * math.log(2 * math.pi))
