"""The log density of the blurred data, in label coordinates: by its kernel sum, or along the probability-flow ODE.

A label is z / alpha at the data end of the flow. So its law is the reference set blurred with sigma = s beta / alpha,
where s is the reference's spread. Both methods give the density of that law. The kernel sum is in closed form and takes
one pass over the reference. The other method is the change of variables along the flow, and so gives the density of
what the flow itself makes of N(0, I). Both are computed for x / s, whose log density is larger by d log s.
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
from sfg_dist.flow.posterior.reference import PreparedReference, Rows, rows_and_reference
from sfg_dist.flow.schedule import Schedule, ScheduleName
from sfg_dist.flow.solver import TABLEAUX, Flow, add_slopes, runge_kutta_step
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
    costs one evaluation of the posterior. The ODE costs ``num_evaluations`` of them and has the solver's error too; its
    use is to judge the flow, whose density it follows. It is stiff at places that the law does not reach: halfway
    between references a distance g apart its rate is g^2 alpha / (8 t_min) in these units, and steps longer than about
    2 over that rate diverge.

    Args:
        x: places in the reference's coordinates, shape (num_rows, dim); a tensor on any device, or a numpy array.
        reference: samples of the data, shape (num_reference, dim); or a prepared Reference.
        t_min: variance at which the flow ends, the blur, in units of s^2, in (0, 1).
        schedule: "linear" (the paper's) or "linear_floor" (its published code's, with floor t_min).
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
        Song et al. 2021, Score-Based Generative Modeling through SDEs, arXiv 2011.13456, section 4.3. The divergence is
        exact here, from the posterior's second moment.

    Examples:
        >>> log_density(np.array([[0.0], [2.0]]), np.array([[-1.0], [1.0]]), t_min=0.25).round(4)
        array([-1.6385, -2.3315])
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    if method not in ("kernel", "ode"):
        raise ValueError(f'method must be "kernel" or "ode", got {method!r}')
    flow = Flow(Schedule(schedule, t_min), _SOLVER, num_evaluations, direction="encode")
    places, prepared = rows_and_reference(x, "x", reference, dtype or torch.float64, sigma_data)
    warn_of_uneven(prepared.spreads, 2)
    alpha, center = flow.schedule.alpha(flow.schedule.t_end), prepared.center.to(places.device)
    kept = places.dtype if places.is_floating_point() else prepared.dtype
    values = torch.empty(len(places), dtype=kept, device=places.device)
    # From the density of z = alpha (x - center) / scale to that of x.
    volume = prepared.dim * (math.log(alpha) - math.log(prepared.scale))
    for first in range(0, len(places), batch_size):
        rows = places[first : first + batch_size]
        z = torch.zeros(batch_size, prepared.dim, dtype=prepared.dtype, device=places.device)
        # Centred in float64, whatever the arithmetic: an offset of the data must not cost digits.
        z[: len(rows)] = alpha * ((rows.double() - center) / prepared.scale)
        if method == "kernel":
            log_p = _blurred_log_density(z, prepared, flow.schedule, flow.schedule.t_end, backend)
        else:
            log_p = _log_density_along_flow(z, prepared, flow, backend)
        values[first : first + batch_size] = (log_p + volume)[: len(rows)]
    return values if isinstance(x, Tensor) else values.cpu().numpy()


def _blurred_log_density(
    z: Tensor, reference: PreparedReference, schedule: Schedule, t: float, backend: Backend
) -> Tensor:
    """log p_t(z) = log sum_j exp(-|z - alpha x_j|^2 / (2 beta^2)) - log J - d/2 log(2 pi beta^2), in float64."""
    alpha, beta_sq = schedule.alpha(t), schedule.beta_sq(t)
    normaliser = math.log(reference.num_reference) + reference.dim / 2 * math.log(2 * math.pi * beta_sq)
    if alpha == 0:  # pure noise: every reference has the same weight
        return -z.double().square().sum(dim=1) / (2 * beta_sq) + math.log(reference.num_reference) - normaliser
    moments = posterior_moments(z, reference, alpha=alpha, beta_sq=beta_sq, backend=backend)
    assert moments.log_kernel_sum is not None  # the blocks lie in this process
    return moments.log_kernel_sum - normaliser


def _log_density_along_flow(z: Tensor, reference: PreparedReference, flow: Flow, backend: Backend) -> Tensor:
    """Log density of states at the data end, carried from the noise end by the exact divergence, in float64.

    Along dz/dlambda = f the density of the moving state obeys d(log p)/dlambda = -div f, hence
    log p(z at the data end) = log p(z at the noise end) + integral of div f from the data end to the noise end.
    """
    dim, tableau, schedule = reference.dim, TABLEAUX[flow.solver], flow.schedule
    divergences: list[Tensor] = []  # at the stages of a step

    def velocity(log_beta_sq: float, state: Tensor) -> Tensor:
        beta_sq = math.exp(log_beta_sq)
        alpha = schedule.alpha_of_beta_sq(beta_sq)
        if alpha == 0:  # m is the centre and does not depend on z
            divergences.append(torch.full_like(state[:, 0], dim / 2))
            return state / 2
        moments = posterior_moments(state, reference, alpha=alpha, beta_sq=beta_sq, backend=backend)
        assert moments.variance is not None  # asked for
        # div m = alpha v / beta^2
        divergences.append(dim / 2 - (beta_sq + alpha / 2) * (alpha / beta_sq) * moments.variance)
        return schedule.velocity(state, beta_sq, moments.mean)

    integral = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for start, stop in itertools.pairwise(flow.grid()):
        divergences.clear()
        z, _ = runge_kutta_step(velocity, tableau, start, stop - start, z, velocity(start, z))
        integral = add_slopes(integral, stop - start, tableau.b, divergences)
    return _blurred_log_density(z, reference, schedule, 1.0, backend) + integral
