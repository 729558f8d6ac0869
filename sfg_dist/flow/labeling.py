"""Labels and scores: the flow's public functions, for tensors or numpy arrays on any device.

Rows come and go in the reference's own coordinates. Inside, all is centred and of spread 1 (see ``spread``): with
x' = (x - c) / s and z' = z - alpha c / s the flow has the same form, and float32 logits keep their digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.adaptive import integrate_adaptive
from sfg_dist.flow.certificate import CHECKED_ROWS, Measured, Watch, fit_certificate
from sfg_dist.flow.fitted_grid import NUM_PILOTS, FittedGrid, fit_grid
from sfg_dist.flow.posterior.backends import BY_ROW, Backend, choose_backend
from sfg_dist.flow.posterior.posterior import posterior_moments
from sfg_dist.flow.posterior.reference import PreparedReference, Rows, rows_and_reference
from sfg_dist.flow.schedule import Schedule, ScheduleName
from sfg_dist.flow.solver import Denoiser, Direction, Flow, TimeGrid, integrate, num_steps, trajectory
from sfg_dist.flow.spread import SigmaData, check_blur, check_dtype, check_start, check_unit, warn_of_uneven
from sfg_dist.job import arguments

R = TypeVar("R", Tensor, NDArray[np.floating])
DEFAULT_BATCH_SIZE = 1024
DEFAULT_TOLERANCE = 1e-3
# The fixed cost of an evaluation in pairs: 3500 and 4600 were measured on the gas turbine and the power table with the
# sparse engine. It changes nothing where every row is summed.
_EVALUATION_PAIRS = 4000
_LEAST_EXACT_EVALUATIONS = 32  # of the pilots' own exact labels


@dataclass
class Effort:
    """What making labels took; the functions that make them add to it."""

    rows: int = 0  # rows integrated, those that fill up a batch included
    evaluations: int = 0  # evaluations of the posterior mean, summed over rows
    pairs: int = 0  # pairs of a latent and a reference that were summed one by one
    # the largest certified bound of |m - m_exact| at any evaluation, in the reference's units; 0 where every row was
    # summed
    bound: float = 0.0
    exceeded: int = 0  # rows whose step control used up its evaluations
    measured: int = 0  # evaluations whose error was measured, for labels under a measured certificate
    over: int = 0  # those of them whose error was above what the certificate expects
    largest: float = 0.0  # the largest measured error, in units of sigma_data
    bounded: int = 0  # rows that were integrated under the certified bound because too many of their batch were over


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
    sigma_data: SigmaData = "auto",
    certificate: Literal["bound", "measured"] = "bound",
) -> R:
    """Labels of latents: end points of the probability-flow ODE of x / s, with the exact score of the reference set.

        dz/dlambda = z / 2 - (beta^2 + alpha / 2) m(z, t),    lambda = log beta^2,    label = z(t_min) / alpha(t_min)

    Args:
        latents: N(0, I) draws for "decode" or rows like the reference's for "encode", shape (num_rows, dim).
        reference: samples of the data, shape (num_reference, dim); or a prepared Reference.
        t_min: variance at which the flow ends, the blur of the labels, in units of s^2.
        schedule: "linear" (the paper's) or "linear_floor" (its published code's, with floor t_min).
        direction: "decode" maps latents to labels, "encode" labels to latents.
        solver: a method by name, one of SOLVERS: exponential Adams (exp_...) or Runge-Kutta.
        num_evaluations: evaluations of the posterior mean, a whole number of the solver's steps.
        time_grid: one of ``Flow``, or "fitted" to the reference at the cost of about 4600 labels (``fit_time_grid``).
        batch_size: rows integrated together. A row's bits do not depend on num_rows.
        dtype: precision of the arithmetic, torch.float32 (default) or torch.float64; a Reference brings its own.
        backend: how the posterior mean is computed; see ``posterior_moments``.
        tolerance: certified bound of the 2-norm of the posterior mean's error at every evaluation, in units of s; 0
            sums over every row. It applies where clusters pay: in float32, from 4096 rows on.
        solver_tolerance: with it each row chooses its own steps, for errors of about this size, in units of s.
        effort: counts what was done.
        sigma_data: s, the unit of the flow; "auto" is the reference's spread (``spread``). A Reference brings its own.
        certificate: whether the tolerance is that certified bound ("bound"), or the error that half of the labels keep
            against those of exact sums, as measured, faster on large references ("measured"; see ``certificate``).

    Returns:
        End points, shape of ``latents``, same container, device and dtype (of the arithmetic, for integer latents).

    Raises:
        ValueError: a setting or a latent does not fit, or the labels cannot be told apart; see ``spread``.

    Warns:
        UserWarning: columns differ more than 30-fold in spread, or the spread from a given sigma_data.

    Examples:
        >>> label_latents(np.array([[-1.0], [1.0]]), np.array([[-3.0], [5.0]]), t_min=1e-6).round(2)
        array([[-3.],
               [ 5.]])
    """
    evaluations, batch_rows = arguments.whole_number("num_evaluations", num_evaluations), _batch_rows(batch_size)
    noise, tolerance = Schedule(schedule, arguments.number("t_min", t_min)), arguments.number("tolerance", tolerance)
    grid: TimeGrid = "graded" if isinstance(time_grid, str) and time_grid == "fitted" else time_grid
    flow = Flow(noise, solver, evaluations, grid, direction, solver_tolerance)
    if certificate not in ("bound", "measured"):
        raise ValueError(f'certificate must be "bound" or "measured", got {certificate!r}')
    whole = certificate == "measured"
    start, prepared = rows_and_reference(latents, "latents", reference, dtype or torch.float32, sigma_data, whole=whole)
    dtype = start.dtype if start.is_floating_point() else prepared.dtype
    _check_spread(prepared, flow, dtype)
    if grid is not time_grid:
        flow = replace(flow, time_grid=fit_time_grid(prepared, flow, backend=backend, tolerance=tolerance).points)
    measured = fit_certificate(prepared, flow, tolerance=tolerance) if whole else None
    # Step control fills up what it needs.
    is_filled = choose_backend(prepared, backend, tolerance) not in BY_ROW and solver_tolerance is None
    labels = torch.empty(start.shape, dtype=dtype, device=start.device)
    for first in range(0, len(start), batch_rows):
        part = slice(first, first + batch_rows)
        labels[part] = label_batch(
            start[part], prepared, flow, batch_rows=batch_rows if is_filled else 0,
            backend=backend, tolerance=tolerance, effort=effort, measured=measured,
        )  # fmt: skip
    return labels if isinstance(latents, Tensor) else labels.cpu().numpy()


def _check_spread(prepared: PreparedReference, flow: Flow, dtype: torch.dtype) -> None:
    """Refuse a reference whose labels could not be told apart, and warn the caller's caller of an uneven one."""
    if prepared.spreads is not None:
        check_blur(prepared.spreads, prepared.scale, flow.schedule)
        check_start(prepared.center, prepared.scale, flow.schedule)
        check_unit(prepared.spreads, prepared.scale, flow.schedule, stacklevel=3)
        warn_of_uneven(prepared.spreads, stacklevel=3)
    if flow.direction == "decode":
        check_dtype(prepared.center, prepared.spreads, prepared.scale, dtype)


def _batch_rows(batch_size: int) -> int:
    batch_rows = arguments.whole_number("batch_size", batch_size)
    if batch_rows < 1:
        raise ValueError(f"batch_size must be positive, got {batch_rows}")
    return batch_rows


def label_batch(
    rows: Tensor,
    reference: PreparedReference,
    flow: Flow,
    *,
    batch_rows: int = 0,
    backend: Backend = "auto",
    tolerance: float = 0.0,
    effort: Effort | None = None,
    measured: Measured | None = None,
) -> Tensor:
    """One batch through the flow, in the reference's coordinates, device and dtype; see ``label_latents``.

    Args:
        rows: start points, shape (num_rows, dim). In float64 they keep the digits of a reference far from 0, whatever
            the arithmetic.
        batch_rows: a dense engine gets so many rows, because the shape of a matrix product decides its last bits. What
            is missing is filled up with places amid the data. Engines BY_ROW take one such row at most.
        measured: a measured certificate. Evaluations are measured again for the first rows, and where it does not hold
            of them the whole batch goes by the bound.

    Returns:
        End points, shape (num_rows, dim), in the precision that the reference centres rows in.
    """
    num_rows, schedule, is_decode = len(rows), flow.schedule, flow.direction == "decode"
    missing = max(0, batch_rows - num_rows)
    if choose_backend(reference, backend, tolerance) in BY_ROW:
        missing = min(missing, 1)
    rows = rows.to(reference.states_dtype)
    center, scale = reference.center.to(rows), reference.scale
    filler = torch.zeros_like(center) if is_decode else center
    rows = torch.cat([rows, filler.expand(missing, -1)])
    # A latent is a state z; a label is z / alpha. Both are moved about the reference's centre and divided by its scale.
    alpha, alpha_noise = schedule.alpha(schedule.t_end), schedule.alpha(1.0)
    z = rows - alpha_noise * (center / scale) if is_decode else alpha * ((rows - center) / scale)
    z = z.to(reference.dtype)
    effort = effort or Effort()
    effort.rows += len(rows)
    if measured is None:
        ends = _solve(z, reference, flow, backend, tolerance, effort)
    else:
        watch = Watch(measured, reference, min(CHECKED_ROWS, num_rows))
        ends = integrate(watch.beside(denoiser_of(reference, backend, tolerance, effort, measured)), z, flow)
        effort.measured += watch.num_measured
        effort.over += watch.over
        effort.largest = max(effort.largest, watch.largest)
        if not watch.holds():
            ends = _solve(z, reference, flow, backend, tolerance, effort)
            effort.bounded += num_rows
    z = ends[:num_rows].to(rows)
    return scale * (z / alpha) + center if is_decode else z + alpha_noise * (center / scale)


def _solve(
    z: Tensor, reference: PreparedReference, flow: Flow, backend: Backend, tolerance: float, effort: Effort
) -> Tensor:
    """The states at the other end of the flow, by the bound or exactly."""
    denoiser = denoiser_of(reference, backend, tolerance, effort)
    if flow.solver_tolerance is None:
        return integrate(denoiser, z, flow)
    result = integrate_adaptive(denoiser, z, flow)
    effort.exceeded += int(result.exceeded.sum())
    return result.states


def fit_time_grid(
    reference: PreparedReference, flow: Flow, *, backend: Backend = "auto", tolerance: float = DEFAULT_TOLERANCE
) -> FittedGrid:
    """The time grid fitted to a reference, at the cost of about 4600 labels; kept with it for the next call.

    The pilots are N(0, I) draws for "decode", draws of the blurred reference for "encode", by a fixed seed. Their exact
    labels are those of "exp_abm4" with twice the evaluations. The cost of an evaluation is the number of pairs that it
    sums one by one and a constant: counted, not timed, so one machine always gives the same grid. The time grid of
    ``flow`` is ignored; ``backend`` and ``tolerance`` are those of the labels, see ``posterior_moments``.

    Raises:
        ValueError: a setting does not fit, or each row would choose its own steps.
    """
    if flow.solver_tolerance is not None:
        raise ValueError('time_grid = "fitted" is a grid for all rows; with solver_tolerance each has its own')
    key = (replace(flow, time_grid="graded"), backend, tolerance)
    if (kept := reference.fitted_grids.get(key)) is not None:
        return kept
    schedule, steps = flow.schedule, num_steps(flow.solver, flow.num_evaluations)
    rng = np.random.default_rng(0)
    pilots = torch.from_numpy(rng.standard_normal((NUM_PILOTS, reference.dim)))
    if flow.direction == "encode":
        picked = reference.take(rng.integers(reference.num_reference, size=NUM_PILOTS))
        pilots = picked + schedule.blur * reference.scale * pilots
    pilots = pilots.to(device=reference.device, dtype=reference.states_dtype)
    unit = reference.scale if flow.direction == "decode" else 1.0  # of the end points; a fit looks at their errors

    def run(trial: Flow) -> tuple[NDArray[np.floating], float]:
        effort = Effort()
        ends = label_batch(pilots, reference, trial, backend=backend, tolerance=tolerance, effort=effort)
        return ends.cpu().numpy() / unit, float(max(1, effort.pairs + _EVALUATION_PAIRS * effort.evaluations))

    def solve(points: Sequence[float]) -> tuple[NDArray[np.floating], float]:
        return run(replace(flow, time_grid=points))

    num_exact = max(2 * flow.num_evaluations, _LEAST_EXACT_EVALUATIONS)
    exact, _ = run(Flow(schedule, "exp_abm4", num_exact, direction=flow.direction))
    fitted = fit_grid(solve, exact, schedule=schedule, num_steps=steps)
    reference.fitted_grids[key] = fitted
    return fitted


def label_paths(
    latents: Tensor, reference: PreparedReference, *, schedule: Schedule, num_evaluations: int = 32
) -> tuple[list[float], Tensor]:
    """The way of latents to their labels by "rk4", for pictures.

    Returns:
        beta^2 at each grid point, and states shape (num_times, num_rows, dim): z_t in the reference's units, so that
        the first ones are the latents times its scale.
    """
    center = (reference.center / reference.scale).to(latents)
    flow = Flow(schedule, "rk4", num_evaluations)
    points = list(trajectory(denoiser_of(reference), latents - schedule.alpha(1.0) * center, flow))
    states = [reference.scale * (z + schedule.alpha_of_beta_sq(beta_sq) * center) for beta_sq, z in points]
    return [beta_sq for beta_sq, _ in points], torch.stack(states)


def denoiser_of(
    reference: PreparedReference,
    backend: Backend = "auto",
    tolerance: float = 0.0,
    effort: Effort | None = None,
    measured: Measured | None = None,
) -> Denoiser:
    """The posterior mean of a reference as the callable that the solver asks for, centred and of spread 1."""

    def denoiser(z_t: Tensor, alpha: float | Tensor, beta_sq: float | Tensor) -> Tensor:
        if not isinstance(alpha, Tensor) and alpha == 0:
            return torch.zeros_like(z_t)  # pure noise says nothing about x, so m is the mean of the data
        threshold = 0.0
        if measured is not None:
            assert not isinstance(beta_sq, Tensor)
            threshold = measured.threshold(beta_sq)
        moments = posterior_moments(
            z_t, reference, alpha=alpha, beta_sq=beta_sq, variance=False, backend=backend, tolerance=tolerance,
            threshold=threshold,
        )  # fmt: skip
        if effort is not None:
            effort.evaluations += len(z_t)
            pairs = moments.pairs.sum() if moments.pairs is not None else len(z_t) * reference.num_reference
            effort.pairs += int(pairs)
            if moments.bound is not None:
                effort.bound = max(effort.bound, reference.scale * float(moments.bound.nan_to_num(math.inf).max()))
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
    sigma_data: SigmaData = "auto",
) -> R:
    """The score of the noised data at any place and time, the gradient of log p_t at z.

        S(z, t) = -(z - alpha m(z, t)) / (s beta)^2,    z = alpha x + s beta eps

    Args:
        z: places, shape (num_rows, dim); a tensor on any device, or a numpy array.
        reference: samples of the data, shape (num_reference, dim); or a prepared Reference.
        t: time in (0, 1] ("linear") or [0, 1] ("linear_floor"), a number or one a row, shape (num_rows,).
        schedule: "linear" (alpha = 1 - t, beta^2 = t) or "linear_floor".
        floor: the variance f at t = 0 of "linear_floor", in units of s^2; unused by "linear".
        dtype: precision of the arithmetic, torch.float32 (default) or torch.float64.
        backend: how the posterior mean is computed; see ``posterior_moments``.
        sigma_data: s, the spread of the noise at t = 1 in the reference's units; as for ``label_latents``.

    Returns:
        Scores, shape of ``z``, same container, device and dtype; units of 1 / z.

    Raises:
        ValueError: t lies outside its interval, shapes do not fit, or scores do not fit in the dtype of z.

    References:
        Song et al. 2021, Score-Based Generative Modeling through SDEs, arXiv 2011.13456.

    Examples:
        >>> score(np.array([[2.0]]), np.array([[0.0]]), t=0.5)
        array([[-4.]])
    """
    places, prepared = rows_and_reference(z, "z", reference, dtype or torch.float32, sigma_data)
    noise = Schedule(schedule, floor)  # t_min plays no part in "linear" away from the flow's end
    time = torch.as_tensor(t, dtype=prepared.dtype, device=places.device)
    if time.ndim > 1 or (time.ndim == 1 and len(time) != len(places)):
        raise ValueError(f"t must be a number or have shape ({len(places)},), got shape {tuple(time.shape)}")
    beta_sq, alpha = noise.beta_sq(time), noise.alpha(time)
    if bool(((beta_sq <= 0) | (time > 1) | (time < 0) | ~torch.isfinite(time)).any()):
        raise ValueError(f"t must lie in {'(0' if schedule == 'linear' else '[0'}, 1], got {t}")
    warn_of_uneven(prepared.spreads, 2)
    center = prepared.center.to(places.device)
    column = alpha.double().reshape(-1, 1)
    centred = ((places.double() - column * center) / prepared.scale).to(prepared.dtype)
    mean = posterior_moments(centred, prepared, alpha=alpha, beta_sq=beta_sq, variance=False, backend=backend).mean
    values = -(centred - alpha.reshape(-1, 1) * mean) / beta_sq.reshape(-1, 1)
    if prepared.scale != 1:
        values = values.double() / prepared.scale
    kept = places.dtype if places.is_floating_point() else prepared.dtype
    if len(values) and (largest := float(values.abs().max())) > torch.finfo(kept).max:
        raise ValueError(f"z is {kept}, whose range does not hold scores of {largest:.3g}: give it in float64")
    values = values.to(kept)
    return values if isinstance(z, Tensor) else values.cpu().numpy()
