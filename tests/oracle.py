"""Laws whose posterior mean, score, density and flow are known in closed form; the maths is tested against them.

All are of x itself; at time t the law of z_t = alpha x + beta eps is again of the same family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MixtureOracle:
    """A mixture of axis-aligned Gaussians, sum_k pi_k N(mu_k, diag(s_k)).

    Attributes:
        weights: pi, shape (num_components,), summing to 1.
        means: mu, shape (num_components, dim).
        variances: s, shape (num_components, dim), >= 0; zero makes the empirical law of ``means``.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def _component_log_density(self, z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        variance = alpha**2 * self.variances + beta_sq
        squares = (z[:, None, :] - alpha * self.means).square() / variance
        return -0.5 * (squares + variance.log() + math.log(2 * math.pi)).sum(dim=2) + self.weights.log()

    def log_density(self, z: Tensor, alpha: float = 1.0, beta_sq: float = 0.0) -> Tensor:
        """log p_t(z) in nats, shape (num_rows,)."""
        return self._component_log_density(z, alpha, beta_sq).logsumexp(dim=1)

    def posterior_mean(self, z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        """E[x | z_t], shape of ``z``.

        m = sum_k r_k (mu_k + alpha s_k / (alpha^2 s_k + beta^2) (z - alpha mu_k)),    r = responsibilities
        """
        responsibilities = self._component_log_density(z, alpha, beta_sq).softmax(dim=1)
        gain = alpha * self.variances / (alpha**2 * self.variances + beta_sq)
        component_means = self.means + gain * (z[:, None, :] - alpha * self.means)
        return (responsibilities[:, :, None] * component_means).sum(dim=1)

    def score(self, z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        """Gradient of log p_t at z, shape of ``z``."""
        return -(z - alpha * self.posterior_mean(z, alpha, beta_sq)) / beta_sq

    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Draws of x, shape (num_rows, dim)."""
        index = torch.multinomial(self.weights, num_rows, replacement=True, generator=generator)
        noise = torch.randn(num_rows, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[index] + self.variances[index].sqrt() * noise


@dataclass(frozen=True)
class GaussianOracle:
    """N(mu, diag(s)), whose probability flow is a straight rescaling along every axis.

    Attributes:
        mean: mu, shape (dim,).
        variance: s, shape (dim,).
    """

    mean: Tensor
    variance: Tensor

    def posterior_mean(self, z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        """E[x | z_t] = mu + alpha s / (alpha^2 s + beta^2) (z - alpha mu), shape of ``z``."""
        gain = alpha * self.variance / (alpha**2 * self.variance + beta_sq)
        return self.mean + gain * (z - alpha * self.mean)

    def transport(self, z: Tensor, start: tuple[float, float], stop: tuple[float, float]) -> Tensor:
        """Exact flow of z between two (alpha, beta_sq).

        z' = alpha' mu + sqrt((alpha'^2 s + beta'^2) / (alpha^2 s + beta^2)) (z - alpha mu)
        """
        (alpha, beta_sq), (alpha_stop, beta_sq_stop) = start, stop
        spread = (alpha_stop**2 * self.variance + beta_sq_stop) / (alpha**2 * self.variance + beta_sq)
        return alpha_stop * self.mean + spread.sqrt() * (z - alpha * self.mean)
