"""The log density of the blurred data, in label coordinates: by its kernel sum, or along the probability-flow ODE.

A label is z / alpha at the data end of the flow, so its law is the reference set blurred with sigma = s beta / alpha
there, s the reference's spread. Both methods give the density of that law; the first in closed form with one pass over
the reference, the second by the change of variables along the flow, which is also the density of what the flow itself
makes of N(0, I). Both are computed for x / s, whose log density is larger by d log s.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.posterior.backends import Backend
from sfg_dist.flow.posterior.posterior import posterior_moments
from sfg_dist.flow.posterior.reference import PreparedReference, Rows, as_reference, to_tensor
from sfg_dist.flow.schedule import Schedule, ScheduleName
from sfg_dist.flow.solver import TABLEAUX, num_steps, time_grid
from sfg_dist.flow.spread import SigmaData, warn_of_uneven

R = TypeVar("R", Tensor, NDArray[np.floating])
DensityMethod = Literal["kernel", "ode"]
_SOLVER = "rk4"


def log_density(
    x: R,
    reference: Rows | PreparedReference,
    *,
    t_min: float = 1e-3,
    schedule: ScheduleName = "linear",
    method: DensityMethod = "kernel",
    num_evaluations: int = 64,
    batch_size: int = 1024,
    dtype: torch.dtype | None = None,
    backend: Backend = "auto",
    sigma_data: SigmaData = "auto",
) -> R:
    """Log density of labels: of the reference set blurred with sigma = s beta / alpha at the data end of the flow.

        "kernel":  log p(x) = log sum_j exp(-|x - x_j|^2 / (2 sigma^2)) - log J - d/2 log(2 pi sigma^2)
        "ode":     log p(x) = log p_1(z_1) + integral of div dlambda + d log (alpha / s),
                   div = d/2 - (beta^2 + alpha/2) (alpha / beta^2) v,    lambda = log beta^2 from log t_min to 0

    with s the spread of the reference, z_1 the latent of x, p_1 the law at the noise end (N(0, I) for "linear", the
    kernel sum at alpha = f for "linear_floor") and v the trace of the posterior covariance. The kernel sum is exact and
    costs one evaluation of the posterior. The ODE costs ``num_evaluations`` of them and has the solver's error besides;
    it is there to judge the flow, whose density it follows. It is stiff at places that the law does not reach: halfway
    between references a distance g apart its rate is g^2 alpha / (8 t_min) in these units, and a step longer than about
    2 over that diverges.

    Args:
        x: places in the reference's coordinates, shape (num_rows, dim); a tensor on any device, or a numpy array.
        reference: samples of the data, shape (num_reference, dim); or a prepared Reference.
        t_min: variance at which the flow ends, the blur, in units of s^2, in (0, 1).
        schedule: "linear" (the paper's) or "linear_floor" (its published code's, with floor t_min).
        method: "kernel" or "ode".
        num_evaluations: evaluations of the posterior in "ode", a multiple of 4; unused by "kernel".
        batch_size: rows worked on together; the last batch is padded, so a row's bits do not depend on num_rows.
        dtype: precision of the arithmetic, torch.float64 (default) or torch.float32; a Reference brings its own. In
            float32 the engines of matrix products lose about 1e-7 |x|^2 / t_min nats of the kernel sum, and v in "ode"
            is a difference of moments whose error grows so too.
        backend: how the posterior is computed; see ``posterior_moments``.
        sigma_data: s in the reference's units; as for ``label_latents``.

    Returns:
        Log densities in nats per unit volume of the reference's coordinates, shape (num_rows,), container, device and
        dtype of ``x`` (dtype of the arithmetic, for integers).

    Raises:
        ValueError: shapes or settings do not fit, or a row is not finite.

    Warns:
        UserWarning: columns differ more than 30-fold in spread.

    References:
        Song et al. 2021, Score-Based Generative Modeling through SDEs, arXiv 2011.13456, section 4.3 (likelihood by
        the probability-flow ODE). The divergence is exact here, from the posterior's second moment.

    Example:
        >>> log_density(np.array([[0.0], [2.0]]), np.array([[-1.0], [1.0]]), t_min=0.25).round(4)
        array([-1.6385, -2.3315])
        >>> log_density(np.array([[0.0], [2.0]]), np.array([[-1.0], [1.0]]), t_min=0.25, method="ode").round(4)
        array([-1.6385, -2.3315])
    """
    places = to_tensor(x, "x")
    if places.ndim != 2:
        raise ValueError(f"x must have shape (num_rows, dim), got {tuple(places.shape)}")
    finite = torch.isfinite(places).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0, 0])
        raise ValueError(f"x is not finite: row {bad} holds {places[bad].tolist()}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    if method not in ("kernel", "ode"):
        raise ValueError(f'method must be "kernel" or "ode", got {method!r}')
    noise = Schedule(schedule, t_min)
    prepared = as_reference(reference, places, dtype or torch.float64, sigma_data)
    if places.shape[1] != prepared.dim:
        raise ValueError(f"x has {places.shape[1]} columns, the reference has {prepared.dim}")
    steps = num_steps(_SOLVER, num_evaluations) if method == "ode" else 0
    warn_of_uneven(prepared.spreads, 2)

    alpha = noise.alpha(noise.t_end)
    center = prepared.center.to(places.device)
    values = torch.empty(
        len(places), dtype=places.dtype if places.is_floating_point() else prepared.dtype, device=places.device
    )
    for first in range(0, len(places), batch_size):
        rows = places[first : first + batch_size]
        z = torch.zeros(batch_size, prepared.dim, dtype=prepared.dtype, device=places.device)
        # Centred in float64, whatever the arithmetic: an offset of the data must not cost digits.
        z[: len(rows)] = alpha * ((rows.double() - center) / prepared.scale)
        if method == "kernel":
            log_p = _blurred_log_density(z, prepared, alpha, noise.beta_sq(noise.t_end), backend)
        else:
            log_p = _log_density_along_flow(z, prepared, noise, steps, backend)
        # From the density of z = alpha (x - center) / scale to that of x.
        volume = prepared.dim * (math.log(alpha) - math.log(prepared.scale))
        values[first : first + batch_size] = (log_p + volume)[: len(rows)]
    return values if isinstance(x, Tensor) else values.cpu().numpy()


def _blurred_log_density(
    z: Tensor, reference: PreparedReference, alpha: float, beta_sq: float, backend: Backend
) -> Tensor:
    """log p_t(z) = log sum_j exp(-|z - alpha x_j|^2 / (2 beta^2)) - log J - d/2 log(2 pi beta^2), in float64."""
    normaliser = math.log(reference.num_reference) + reference.dim / 2 * math.log(2 * math.pi * beta_sq)
    if alpha == 0:  # pure noise: every reference has the same weight
        return -z.double().square().sum(dim=1) / (2 * beta_sq) + math.log(reference.num_reference) - normaliser
    moments = posterior_moments(z, reference, alpha=alpha, beta_sq=beta_sq, log_sum_exp=True, backend=backend)
    assert moments.log_kernel_sum is not None  # it was asked for
    return moments.log_kernel_sum - normaliser


def _log_density_along_flow(
    z: Tensor, reference: PreparedReference, schedule: Schedule, steps: int, backend: Backend
) -> Tensor:
    """Log density of states at the data end, carried from the noise end by the exact divergence, in float64.

    Along dz/dlambda = f the density of the moving state obeys d(log p)/dlambda = -div f, hence
    log p(z at the data end) = log p(z at the noise end) + integral of div f from the data end to the noise end.
    """
    dim, tableau, grid = reference.dim, TABLEAUX[_SOLVER], time_grid(schedule, steps)[::-1]

    def slope(log_beta_sq: float, state: Tensor) -> tuple[Tensor, Tensor]:
        beta_sq = math.exp(log_beta_sq)
        alpha = schedule.alpha_of_beta_sq(beta_sq)
        if alpha == 0:  # m is the centre and does not depend on z
            return state / 2, torch.full_like(state[:, 0], dim / 2)
        moments = posterior_moments(state, reference, alpha=alpha, beta_sq=beta_sq, backend=backend)
        assert moments.variance is not None  # asked for
        # div m = alpha v / beta^2
        divergence = dim / 2 - (beta_sq + alpha / 2) * (alpha / beta_sq) * moments.variance
        return schedule.velocity(state, beta_sq, moments.mean), divergence

    integral = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for start, stop in itertools.pairwise(grid):
        h = stop - start
        slopes: list[Tensor] = []
        for row, node, weight in zip(tableau.a, tableau.c, tableau.b, strict=True):
            velocity, divergence = slope(start + node * h, _add(z, h, row, slopes))
            slopes.append(velocity)
            integral += h * weight * divergence
        z = _add(z, h, tableau.b, slopes)
    return _blurred_log_density(z, reference, schedule.alpha(1.0), schedule.beta_sq(1.0), backend) + integral


def _add(z: Tensor, h: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            z = z + (h * weight) * slope
    return z
