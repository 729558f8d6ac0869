"""Labels and scores: the flow's public functions, for tensors or numpy arrays on any device.

The reference is taken as it stands: coordinates in, coordinates out. Inside, all is centred: with z' = z - alpha c and
x' = x - c the flow has the same form, and float32 logits keep their digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist import values
from sfg_dist.flow.adaptive import integrate_adaptive
from sfg_dist.flow.backends import Backend, choose_backend
from sfg_dist.flow.fitted_grid import NUM_PILOTS, FittedGrid, fit_grid
from sfg_dist.flow.posterior import posterior_moments
from sfg_dist.flow.reference import PreparedReference, Rows, as_reference, to_tensor
from sfg_dist.flow.schedule import Schedule, ScheduleName
from sfg_dist.flow.solver import Denoiser, Direction, TimeGrid, integrate, num_steps, trajectory

R = TypeVar("R", Tensor, NDArray[np.floating])
DEFAULT_BATCH_SIZE = 1024
DEFAULT_TOLERANCE = 1e-3
# What an evaluation costs beside the pairs that it sums, in pairs: 3500 and 4600 measured on the gas turbine and the
# power table with the sparse engine; it moves nothing where every row is summed.
_EVALUATION_PAIRS = 4000
_LEAST_EXACT_EVALUATIONS = 32  # of the pilots' own exact labels


@dataclass
class Effort:
    """What labels took, summed up while they are made.

    Attributes:
        rows: rows integrated, those that fill up a batch included.
        evaluations: evaluations of the posterior mean, over rows.
        pairs: pairs of a latent and a reference that were summed one by one.
        bound: the largest certified bound of |m - m_exact| at any evaluation; 0 where every row was summed.
        exceeded: rows whose step control used up its evaluations.
    """

    rows: int = 0
    evaluations: int = 0
    pairs: int = 0
    bound: float = 0.0
    exceeded: int = 0


def label_latents(
    latents: R,
    reference: Rows | PreparedReference,
    *,
    t_min: float = 1e-4,
    schedule: ScheduleName = "linear",
    direction: Direction = "decode",
    solver: str = "exp_abm4",
    num_evaluations: int = 22,
    time_grid: TimeGrid | Literal["fitted"] = "graded",
    batch_size: int = DEFAULT_BATCH_SIZE,
    dtype: torch.dtype | None = None,
    backend: Backend = "auto",
    tolerance: float = DEFAULT_TOLERANCE,
    solver_tolerance: float | None = None,
    effort: Effort | None = None,
) -> R:
    """Labels of latents: end points of the probability-flow ODE with the exact score of the reference set.

        dz/dlambda = z / 2 - (beta^2 + alpha / 2) m(z, t),    lambda = log beta^2,    label = z(t_min) / alpha(t_min)

    Args:
        latents: start points, N(0, I) draws for "decode" or rows in the reference's coordinates for "encode", shape
            (num_rows, dim); a tensor on any device, or a numpy array.
        reference: samples of the data, shape (num_reference, dim); or a prepared Reference.
        t_min: variance at which the flow ends, the blur of the labels in squared units of the reference.
        schedule: "linear" (the paper's) or "linear_floor" (its published code's, with floor t_min).
        direction: "decode" maps latents to labels, "encode" labels to latents.
        solver: a method by name: exponential Adams (exp_ab1, exp_ab2, exp_ab4, exp_abm3, exp_abm4, exp_abm5), or
            Runge-Kutta (euler, midpoint, heun, ralston3, kutta3, rk4, rk38, bs32, dopri5, tsit5).
        num_evaluations: evaluations of the posterior mean, a whole number of the solver's steps.
        time_grid: "graded" in log beta^2, or "uniform" in t as published; "fitted" to the reference at the cost of
            about 4600 labels, once for a prepared Reference and these settings (see ``fit_time_grid``); or a list of
            log beta^2 from 0 to log t_min, one more than the solver makes steps.
        batch_size: rows integrated together; the last batch is padded, so a row's bits do not depend on num_rows.
        dtype: precision of the arithmetic, torch.float32 (default) or torch.float64; a Reference brings its own.
        backend: how the posterior mean is computed; see ``posterior_moments``.
        tolerance: certified bound of the 2-norm of the posterior mean's error at every evaluation, in the reference's
            units; 0 sums over every row. It applies where clusters pay: in float32 on the CPU, from 4096 rows on.
        solver_tolerance: with it each row chooses its own steps, for errors of about this size; without it all rows
            make ``num_evaluations`` on the fixed grid.
        effort: counts what was done, where given.

    Returns:
        End points, shape of ``latents``, same container, device and dtype (of the arithmetic, for integer latents).

    Raises:
        ValueError: shapes or settings do not fit, or a latent is not finite.

    References:
        Liu et al. 2024, arXiv 2310.14458; the graded grid and the regular form are this project's.

    Example:
        >>> label_latents(np.array([[-1.0], [1.0]]), np.array([[-3.0], [5.0]]), t_min=1e-6).round(2)
        array([[-3.],
               [ 5.]])
    """
    start = to_tensor(latents)
    if start.ndim != 2:
        raise ValueError(f"latents must have shape (num_rows, dim), got {tuple(start.shape)}")
    batch_size = values.whole_number("batch_size", batch_size)
    num_evaluations = values.whole_number("num_evaluations", num_evaluations)
    t_min, tolerance = values.number("t_min", t_min), values.number("tolerance", tolerance)
    if not bool(torch.isfinite(start).all()):
        bad = int((~torch.isfinite(start).all(dim=1)).nonzero()[0, 0])
        raise ValueError(f"latents are not finite: row {bad} holds {start[bad].tolist()}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    prepared = as_reference(reference, start, dtype or torch.float32)
    if start.shape[1] != prepared.dim:
        raise ValueError(f"latents have {start.shape[1]} columns, the reference has {prepared.dim}")
    kind: TimeGrid
    if isinstance(time_grid, str) and time_grid == "fitted":
        if solver_tolerance is not None:
            raise ValueError('time_grid = "fitted" is a grid for all rows; with solver_tolerance each has its own')
        kind = fit_time_grid(
            prepared, schedule=Schedule(schedule, t_min), direction=direction, solver=solver,
            num_evaluations=num_evaluations, backend=backend, tolerance=tolerance,
        ).points  # fmt: skip
    else:
        kind = time_grid
    dtype = start.dtype if start.is_floating_point() else prepared.dtype
    labels = torch.empty(start.shape, dtype=dtype, device=start.device)
    for first in range(0, len(start), batch_size):
        rows = start[first : first + batch_size]
        padded = torch.zeros(batch_size, prepared.dim, dtype=prepared.dtype, device=start.device)
        padded[: len(rows)] = rows
        ends = label_batch(
            padded,
            prepared,
            schedule=Schedule(schedule, t_min),
            direction=direction,
            solver=solver,
            num_evaluations=num_evaluations,
            kind=kind,
            backend=backend,
            tolerance=tolerance,
            solver_tolerance=solver_tolerance,
            effort=effort,
        )
        labels[first : first + batch_size] = ends[: len(rows)]
    return labels if isinstance(latents, Tensor) else labels.cpu().numpy()


def label_batch(
    rows: Tensor,
    reference: PreparedReference,
    *,
    schedule: Schedule,
    direction: Direction,
    solver: str,
    num_evaluations: int,
    kind: TimeGrid,
    backend: Backend = "auto",
    tolerance: float = 0.0,
    solver_tolerance: float | None = None,
    effort: Effort | None = None,
) -> Tensor:
    """One batch through the flow, in the reference's coordinates, device and dtype; shapes as for label_latents."""
    batch_rows = len(rows)
    if choose_backend(reference, backend, tolerance) == "sparse":
        # A row's numbers are its own there, so a padded batch is cut after the first of the zeros that fill it up.
        filled = rows.any(dim=1).nonzero()
        rows = rows[: (int(filled[-1]) + 2 if len(filled) else 1)]
    if effort is not None:
        effort.rows += len(rows)
    data_end = (schedule.alpha(schedule.t_end), reference.center.to(rows))
    noise_end = (schedule.alpha(1.0), data_end[1])
    (alpha, center), (alpha_stop, _) = (noise_end, data_end) if direction == "decode" else (data_end, noise_end)
    # A latent is a state z; a label is z / alpha. Both are moved about the reference's centre.
    z = rows - alpha * center if direction == "decode" else alpha * (rows - center)
    denoiser = denoiser_of(reference, backend, tolerance, effort)
    if solver_tolerance is None:
        z = integrate(
            denoiser,
            z,
            schedule=schedule,
            solver=solver,
            num_evaluations=num_evaluations,
            kind=kind,
            direction=direction,
        )
    else:
        result = integrate_adaptive(
            denoiser, z, schedule=schedule, solver=solver, tolerance=solver_tolerance, direction=direction
        )
        z = result.states
        if effort is not None:
            effort.exceeded += int(result.exceeded.sum())
    ends = z / alpha_stop + center if direction == "decode" else z + alpha_stop * center
    return torch.cat([ends, ends[-1:].expand(batch_rows - len(ends), -1)])


def fit_time_grid(
    reference: PreparedReference,
    *,
    schedule: Schedule,
    direction: Direction = "decode",
    solver: str = "exp_abm4",
    num_evaluations: int = 22,
    backend: Backend = "auto",
    tolerance: float = DEFAULT_TOLERANCE,
) -> FittedGrid:
    """The time grid fitted to a reference, at the cost of about 4600 labels; kept with it for the next call.

    The pilots are N(0, I) draws for "decode", draws of the blurred reference for "encode", by a fixed seed, and their
    exact labels those of "exp_abm4" with twice the evaluations. The cost of an evaluation is the number of pairs that
    it sums one by one and a constant: counted, not timed, so one machine always gives the same grid.

    Args:
        reference: the prepared reference set.
        schedule: alpha and beta, and where the flow ends.
        direction: "decode" from noise to data, "encode" from data to noise.
        solver: a method by name, as for ``label_latents``.
        num_evaluations: evaluations of the posterior mean, a whole number of the solver's steps.
        backend: how the posterior mean is computed; see ``posterior_moments``.
        tolerance: certified bound of the posterior mean's error, as the labels will have it.

    Returns:
        The grid and its gain on the pilots; see FittedGrid.

    Raises:
        ValueError: a setting does not fit.
    """
    key = (schedule, direction, solver, num_evaluations, backend, tolerance)
    if (kept := reference.fitted_grids.get(key)) is not None:
        return kept
    steps = num_steps(solver, num_evaluations)
    rng = np.random.default_rng(0)
    pilots = torch.from_numpy(rng.standard_normal((NUM_PILOTS, reference.dim)))
    if direction == "encode":
        picked = reference.take(rng.integers(reference.num_reference, size=NUM_PILOTS))
        blur = schedule.beta_sq(schedule.t_end) ** 0.5 / schedule.alpha(schedule.t_end)
        pilots = picked + blur * pilots
    pilots = pilots.to(device=reference.device, dtype=reference.dtype)

    def run(method: str, evaluations: int, kind: TimeGrid) -> tuple[NDArray[np.floating], float]:
        effort = Effort()
        ends = label_batch(
            pilots, reference, schedule=schedule, direction=direction, solver=method, num_evaluations=evaluations,
            kind=kind, backend=backend, tolerance=tolerance, effort=effort,
        )  # fmt: skip
        return ends.cpu().numpy(), float(max(1, effort.pairs + _EVALUATION_PAIRS * effort.evaluations))

    def solve(grid: Sequence[float]) -> tuple[NDArray[np.floating], float]:
        return run(solver, num_evaluations, grid)

    exact, _ = run("exp_abm4", max(2 * num_evaluations, _LEAST_EXACT_EVALUATIONS), "graded")
    fitted = fit_grid(solve, exact, schedule=schedule, num_steps=steps)
    reference.fitted_grids[key] = fitted
    return fitted


def label_paths(
    latents: Tensor, reference: PreparedReference, *, schedule: Schedule, num_evaluations: int = 32
) -> tuple[list[float], Tensor]:
    """The way of latents to their labels, for pictures.

    Returns:
        beta^2 at each grid point, and states shape (num_times, num_rows, dim): z_t in the reference's units.
    """
    center = reference.center.to(latents)
    points = list(
        trajectory(
            denoiser_of(reference),
            latents - schedule.alpha(1.0) * center,
            schedule=schedule,
            num_evaluations=num_evaluations,
        )
    )
    states = [z + schedule.alpha_of_beta_sq(beta_sq) * center for beta_sq, z in points]
    return [beta_sq for beta_sq, _ in points], torch.stack(states)


def denoiser_of(
    reference: PreparedReference, backend: Backend = "auto", tolerance: float = 0.0, effort: Effort | None = None
) -> Denoiser:
    """The posterior mean of a reference as the callable that the solver asks for, in centred coordinates."""

    def denoiser(z_t: Tensor, alpha: float | Tensor, beta_sq: float | Tensor) -> Tensor:
        if not isinstance(alpha, Tensor) and alpha == 0:
            return torch.zeros_like(z_t)  # pure noise says nothing about x: the mean of the data, for free
        moments = posterior_moments(
            z_t, reference, alpha=alpha, beta_sq=beta_sq, variance=False, backend=backend, tolerance=tolerance
        )
        if effort is not None:
            effort.evaluations += len(z_t)
            pairs = moments.pairs.sum() if moments.pairs is not None else len(z_t) * reference.num_reference
            effort.pairs += int(pairs)
            if moments.bound is not None:
                effort.bound = max(effort.bound, float(moments.bound.nan_to_num(math.inf).max()))
        return moments.mean

    return denoiser


def score(
    z: R,
    reference: Rows | PreparedReference,
    *,
    t: float | Tensor | NDArray[np.floating],
    schedule: ScheduleName = "linear",
    floor: float = 0.01,
    dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> R:
    """The score of the noised data at any place and time, the gradient of log p_t at z.

        S(z, t) = -(z - alpha m(z, t)) / beta^2

    Args:
        z: places, shape (num_rows, dim); a tensor on any device, or a numpy array.
        reference: samples of the data, shape (num_reference, dim); or a prepared Reference.
        t: time in (0, 1] ("linear") or [0, 1] ("linear_floor"), a number or one a row, shape (num_rows,).
        schedule: "linear" (alpha = 1 - t, beta^2 = t) or "linear_floor".
        floor: the variance f at t = 0 of "linear_floor"; unused by "linear".
        dtype: precision of the arithmetic, torch.float32 (default) or torch.float64.
        backend: how the posterior mean is computed; see ``posterior_moments``.

    Returns:
        Scores, shape of ``z``, same container, device and dtype; units of 1 / z.

    Raises:
        ValueError: t lies outside its interval, or shapes do not fit.

    References:
        Song et al. 2021, Score-Based Generative Modeling through SDEs, arXiv 2011.13456.

    Example:
        >>> score(np.array([[2.0]]), np.array([[0.0]]), t=0.5)
        array([[-4.]])
    """
    places = to_tensor(z)
    if places.ndim != 2:
        raise ValueError(f"z must have shape (num_rows, dim), got {tuple(places.shape)}")
    prepared = as_reference(reference, places, dtype or torch.float32)
    if places.shape[1] != prepared.dim:
        raise ValueError(f"z has {places.shape[1]} columns, the reference has {prepared.dim}")
    if not bool(torch.isfinite(places).all()):
        raise ValueError(f"z is not finite: row {int((~torch.isfinite(places).all(dim=1)).nonzero()[0, 0])}")
    noise = Schedule(schedule, floor)  # t_min plays no part in "linear" away from the flow's end
    time = torch.as_tensor(t, dtype=prepared.dtype, device=places.device)
    if time.ndim > 1 or (time.ndim == 1 and len(time) != len(places)):
        raise ValueError(f"t must be a number or have shape ({len(places)},), got shape {tuple(time.shape)}")
    beta_sq, alpha = noise.beta_sq(time), noise.alpha(time)
    if bool(((beta_sq <= 0) | (time > 1) | (time < 0) | ~torch.isfinite(time)).any()):
        raise ValueError(f"t must lie in {'(0' if schedule == 'linear' else '[0'}, 1], got {t}")
    center = prepared.center.to(places.device)
    column = alpha.double().reshape(-1, 1)
    centred = (places.double() - column * center).to(prepared.dtype)
    mean = posterior_moments(centred, prepared, alpha=alpha, beta_sq=beta_sq, variance=False, backend=backend).mean
    values = -(centred - alpha.reshape(-1, 1) * mean) / beta_sq.reshape(-1, 1)
    values = values.to(places.dtype if places.is_floating_point() else prepared.dtype)
    return values if isinstance(z, Tensor) else values.cpu().numpy()
