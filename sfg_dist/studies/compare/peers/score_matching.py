"""Denoising score matching: a denoiser over noise levels, sampled by the reverse SDE or by its ODE.

    D(z, sigma) = c_skip z + c_out F(c_in z, c_noise),    score(z, sigma) = (D(z, sigma) - z) / sigma^2
    loss = E |F - (x - c_skip z) / c_out|^2,    z = x + sigma e,    log sigma ~ N(LOG_SIGMA_MEAN, LOG_SIGMA_STD^2)

The noise is added without shrinking the data (sigma from SIGMA_MAX to SIGMA_MIN); the data have a deviation of about 1.

References:
    Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364; Song et al.
    2021, Score-Based Generative Modeling through SDEs, arXiv 2011.13456.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from sfg_dist.studies.compare.peers.ode_density import log_normal, transported_log_density
from sfg_dist.studies.compare.peers.time_network import TimeField, spread_uniform

SIGMA_DATA = 1.0
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.0, 1.4
NUM_SDE_STEPS = 500
NUM_ODE_STEPS = 50  # of Heun: 99 evaluations
NUM_LIKELIHOOD_STEPS = 40  # of RK4


class ScoreModel(TimeField):
    """A denoiser over noise levels."""

    def denoise(self, z: Tensor, sigma: Tensor) -> Tensor:
        """D(z, sigma), shape (num_rows, dim), of z, the same shape, and sigma, shape (num_rows, 1) or (1, 1)."""
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        c_skip, c_out = SIGMA_DATA**2 / total**2, sigma * SIGMA_DATA / total
        result: Tensor = c_skip * z + c_out * self.network(z / total, sigma.log() / 4)
        return result

    def loss(self, rows: Tensor) -> Tensor:
        """Weighted denoising error of a batch of data, one noise level for each row, spread evenly over their law."""
        uniform = spread_uniform(rows).clamp(1e-5, 1 - 1e-5)
        sigma = (LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.special.ndtri(uniform)).exp()
        denoised = self.denoise(rows + sigma * torch.randn_like(rows), sigma)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2  # makes every level's first loss 1
        return (weight * (denoised - rows).square()).mean()

    def sample_sde(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Rows by ``NUM_SDE_STEPS`` steps of the reverse SDE, shape (num_rows, dim).

        A step is exact for a denoiser that stays as it is: with r = (sigma_next / sigma)^2,
        z_next = D + r (z - D) + sigma_next sqrt(1 - r) e.
        """
        z = self._start(num_rows, generator)
        levels = noise_levels(NUM_SDE_STEPS)
        for sigma, following in pairwise(levels):
            denoised = self._denoise_at(z, sigma)
            ratio = (following / sigma) ** 2
            noise = torch.randn(num_rows, self.dim, generator=generator, device=generator.device)
            z = denoised + ratio * (z - denoised) + following * math.sqrt(1 - ratio) * noise
        return self._denoise_at(z, levels[-1])

    def sample_ode(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Rows by ``NUM_ODE_STEPS`` Heun steps of the probability-flow ODE, shape (num_rows, dim)."""
        z = self._start(num_rows, generator)
        levels = noise_levels(NUM_ODE_STEPS - 1)
        for sigma, following in pairwise(levels):
            slope = self.velocity(z, sigma)
            ahead = self.velocity(z + (following - sigma) * slope, following)
            z = z + (following - sigma) / 2 * (slope + ahead)
        return self._denoise_at(z, levels[-1])  # the Euler step to sigma = 0

    def velocity(self, z: Tensor, sigma: float) -> Tensor:
        """dz/dsigma of the probability-flow ODE, (z - D) / sigma."""
        return (z - self._denoise_at(z, sigma)) / sigma

    def log_density(self, rows: Tensor) -> Tensor:
        """Log density in nats, shape (num_rows,), of the data blurred by SIGMA_MIN: along the ODE, exact divergence."""

        def velocity(z: Tensor, log_sigma: float) -> Tensor:  # in log sigma, where the grid may be even
            return z - self._denoise_at(z, math.exp(log_sigma))

        times = torch.linspace(math.log(SIGMA_MIN), math.log(SIGMA_MAX), NUM_LIKELIHOOD_STEPS + 1).tolist()
        ends, change = transported_log_density(velocity, rows, times)
        return log_normal(ends, math.hypot(SIGMA_MAX, SIGMA_DATA)) + change

    def _denoise_at(self, z: Tensor, sigma: float) -> Tensor:
        return self.denoise(z, torch.full((1, 1), sigma, device=z.device))

    def _start(self, num_rows: int, generator: torch.Generator) -> Tensor:
        return SIGMA_MAX * torch.randn(num_rows, self.dim, generator=generator, device=generator.device)


def noise_levels(num_steps: int) -> list[float]:
    """SIGMA_MAX to SIGMA_MIN, ``num_steps`` + 1 of them, even in their RHO-th root."""
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return [(high + index / num_steps * (low - high)) ** RHO for index in range(num_steps + 1)]
