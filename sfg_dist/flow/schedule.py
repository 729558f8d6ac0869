"""Noise schedules: alpha and beta of the forward noising z_t = alpha_t x + beta_t eps, as functions of t alone.

t = 0 is data and t = 1 is noise. Both schedules here reach beta_t^2 = 1 at t = 1, and along both alpha is a straight
line in beta^2, so that with lambda = log beta^2 the probability-flow ODE has one regular form (see ``solver``):

    dz/dlambda = z / 2 - (beta^2 + alpha / 2) m(z, t)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

ScheduleName = Literal["linear", "linear_floor"]
SCHEDULE_NAMES: tuple[ScheduleName, ...] = ("linear", "linear_floor")
T = TypeVar("T", float, Tensor)


@dataclass(frozen=True)
class Schedule:
    """A variance-increasing schedule, linear in t, with the time at which the flow stops.

        linear        alpha = 1 - t,           beta^2 = t,                t in [t_min, 1]
        linear_floor  alpha = 1 - (1 - f) t,   beta^2 = f + (1 - f) t,    t in [0, 1],  f = t_min

    "linear" is the schedule of the paper; "linear_floor" is the one in its authors' published code (f = 0.01), whose
    final blur is beta = sqrt(f) and whose law at t = 1 is not exactly N(0, I), because alpha is f there.

    References:
        Liu et al. 2024, Diffusion-Model-Assisted Supervised Learning of Generative Models for Density Estimation,
        arXiv 2310.14458.

    Examples:
        >>> Schedule("linear", 1e-3).alpha(0.25), Schedule("linear_floor", 0.01).beta_sq(0.0)
        (0.75, 0.01)
    """

    name: ScheduleName = "linear"  # "linear" or "linear_floor"
    t_min: float = 1e-4  # where the flow ends, 0 < t_min < 1; the floor f of the final variance for "linear_floor"

    def __post_init__(self) -> None:
        if self.name not in SCHEDULE_NAMES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULE_NAMES)}, got {self.name!r}")
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min must lie in (0, 1), got {self.t_min}")

    @property
    def floor(self) -> float:
        """The variance f at t = 0: zero for the paper's schedule."""
        return self.t_min if self.name == "linear_floor" else 0.0

    @property
    def t_end(self) -> float:
        """The time at which the flow from noise to data stops."""
        return 0.0 if self.name == "linear_floor" else self.t_min

    def alpha(self, t: T) -> T:
        """Signal scale at t, dimensionless."""
        return 1 - (1 - self.floor) * t

    def beta_sq(self, t: T) -> T:
        """Noise variance at t, in units of sigma_data^2 (see ``spread``)."""
        return self.floor + (1 - self.floor) * t

    def alpha_of_beta_sq(self, beta_sq: T) -> T:
        """Signal scale where the noise variance is ``beta_sq``."""
        return 1 + self.floor - beta_sq

    def velocity_t(self, z_t: Tensor, t: float, posterior_mean: Tensor) -> Tensor:
        """dz/dt of the probability-flow ODE, shape of ``z_t``.

        dz/dt = (1 - f) / beta^2 * dz/dlambda
        """
        beta_sq = self.beta_sq(t)
        return (1 - self.floor) / beta_sq * self.velocity(z_t, beta_sq, posterior_mean)

    def velocity(self, z_t: Tensor, beta_sq: float, posterior_mean: Tensor) -> Tensor:
        """dz/dlambda at lambda = log beta^2, shape of ``z_t``; regular for every beta in (0, 1].

        dz/dlambda = z / 2 - (beta^2 + alpha / 2) m
        """
        return z_t / 2 - (beta_sq + self.alpha_of_beta_sq(beta_sq) / 2) * posterior_mean

    @property
    def blur(self) -> float:
        """Standard deviation of the labels' blur, beta / alpha at the data end, in units of sigma_data."""
        return self.beta_sq(self.t_end) ** 0.5 / self.alpha(self.t_end)

    @property
    def log_beta_sq_end(self) -> float:
        """lambda at the data end of the flow: log t_min for both schedules; lambda is 0 at the noise end."""
        return math.log(self.t_min)
