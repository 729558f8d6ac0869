"""Flow matching: a velocity field regressed on straight lines between noise and data, then an ODE to sample.

    x_t = (1 - t) e + t x,    e ~ N(0, I),    loss = E |v(x_t, t) - (x - e)|^2

References:
    Lipman et al. 2023, Flow Matching for Generative Modeling, arXiv 2210.02747; Liu et al. 2023, Rectified Flow,
    arXiv 2209.03003.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfg_dist.studies.compare.peers.ode_density import log_normal, transported_log_density
from sfg_dist.studies.compare.peers.time_network import TimeField, spread_uniform

NUM_EVALUATIONS = 100
NUM_LIKELIHOOD_STEPS = 32  # of RK4


class FlowMatching(TimeField):
    """A velocity field between N(0, I) and the data."""

    def velocity(self, rows: Tensor, t: float) -> Tensor:
        """dx/dt at a time of [0, 1], shape (num_rows, dim)."""
        velocity: Tensor = self.network(rows, torch.full((1, 1), t, device=rows.device))
        return velocity

    def loss(self, rows: Tensor) -> Tensor:
        """Mean squared error of a batch of data, with one time for each row, spread evenly over [0, 1]."""
        noise, t = torch.randn_like(rows), spread_uniform(rows)
        predicted = self.network((1 - t) * noise + t * rows, t)
        return (predicted - (rows - noise)).square().mean()

    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Rows by ``NUM_EVALUATIONS`` evaluations of the midpoint rule, shape (num_rows, dim)."""
        x = torch.randn(num_rows, self.dim, generator=generator, device=generator.device)
        step = 2 / NUM_EVALUATIONS
        for index in range(NUM_EVALUATIONS // 2):
            t = index * step
            x = x + step * self.velocity(x + step / 2 * self.velocity(x, t), t + step / 2)
        return x

    def log_density(self, rows: Tensor) -> Tensor:
        """Log density in nats, shape (num_rows,): along the ODE with the exact divergence."""
        times = torch.linspace(1, 0, NUM_LIKELIHOOD_STEPS + 1).tolist()
        latents, change = transported_log_density(self.velocity, rows, times)
        return log_normal(latents) + change
