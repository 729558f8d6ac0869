"""A time grid fitted to the data: evaluations of the posterior mean where they lower the error most for their cost.

On tables of many rows the cost of an evaluation differs 25-fold along the flow, and each table has its errors at other
times. With u = k / n the graded grid of ``solver`` is lambda = log(t_min) u^p. A fitted one has as many points, but
their density in u is a piecewise linear rho, exp(theta_j) at ``NUM_KNOTS`` even knots:

    lambda_k = log(t_min) v_k^p,    int_0^{v_k} rho dv = (k / n) int_0^1 rho dv

Pilot rows go through the flow on the graded grid and on trial ones. Their errors d, shape (num_rows, dim), are linear
in theta to first order. So a round of ``NUM_KNOTS`` trials gives the derivatives of every pilot's error vector, signs
included. The best theta of this linear model within a trust region is found without the flow, and then tried. The
objective is the cost at equal error,

    log cost + (1 / ORDER) (log central error + log tail error) / 2,

since with exponential Adams methods of order 4 an error falls about as the fourth power of the evaluations (measured).
Central and tail error are geometric means over bands of the sorted errors, because a quantile of a few pilots is mostly
noise. A trial counts only if neither is larger than the graded grid's, so the result is never worse on the pilots. If
none counts, the result is the graded grid.

Measured with "exp_abm4" on 1024 rows that were no pilots, median and 90th percentile of the label error and thousands
of pairs summed a label:

    table   t_min  evaluations  graded                 fitted
    power   1e-4   22           8.8e-4  4.9e-3   880   6.9e-4  5.5e-3   786
    power   1e-4   24           6.8e-4  3.7e-3   958   5.5e-4  4.3e-3   851
    power   1e-3   22           6.7e-4  4.0e-3  1060   3.5e-4  4.1e-3   963
    gas     1e-4   22           5.1e-4  2.6e-3   289   4.6e-4  2.3e-3   302
    moons   1e-4   16           9.5e-4  4.2e-3    30   6.7e-4  3.2e-3    30
    moons   1e-4   20           5.1e-4  2.3e-3    38   2.9e-4  1.5e-3    38
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfg_dist.flow.schedule import Schedule
from sfg_dist.flow.solver import GRADING, graded_grid

Solve = Callable[[Sequence[float]], tuple[NDArray[np.floating], float]]
"""A grid of lambdas -> (end points of the pilot rows, shape (num_rows, dim), and what they cost, in any unit)."""

NUM_PILOTS = 192
NUM_KNOTS = 5
NUM_ROUNDS = 3
ORDER = 4.0
CENTER, TAIL = (0.3, 0.7), (0.82, 0.98)  # bands of the sorted errors
TAIL_SLACK = 1.0
_PROBE = 0.15  # of theta, for a derivative
_TRUST = 0.4
_LEAST_GAIN = 0.01
_MARGIN, _PENALTY = 0.02, 4.0
_NUM_GUESSES = 600  # of theta within the model, which cost next to nothing
_ERROR_FLOOR = 1e-6  # what float32 leaves of an error
_DIGITS = 4


@dataclass(frozen=True)
class FittedGrid:
    """A time grid, and the pilots' costs and errors on it as shares of those on the graded grid of as many steps."""

    # lambda = log beta^2 from 0 (noise) down to log t_min (data), num_steps + 1 falling numbers
    points: tuple[float, ...]
    is_graded: bool  # nothing better was found, and this is the graded grid
    cost: float = 1.0  # cost of a label
    center: float = 1.0  # geometric mean of the central errors, at most 1
    tail: float = 1.0  # geometric mean of the large errors


def fit_grid(solve: Solve, exact: NDArray[np.floating], *, schedule: Schedule, num_steps: int) -> FittedGrid:
    """The grid of ``num_steps`` steps with the lowest cost at equal error; see the module's docstring.

    ``solve`` takes the pilot rows along a grid, 22 times at most; the result is deterministic if it is. ``exact`` are
    the rows' end points from a much finer grid, shape (num_rows, dim). Inner points have 4 digits.

    Raises:
        ValueError: num_steps is not positive.

    Examples:
        >>> fit_grid(lambda grid: (np.zeros((8, 1)), 1.0), np.zeros((8, 1)), schedule=Schedule(), num_steps=2).is_graded
        True
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be positive, got {num_steps}")
    trials = _Trials(solve, exact, schedule, num_steps)
    rng = np.random.default_rng(0)
    trust = _TRUST
    for _ in range(NUM_ROUNDS if num_steps > 1 and trials.best.is_finite else 0):
        here = trials.best
        probes = [trials.run(here.theta + _PROBE * axis) for axis in np.eye(NUM_KNOTS)]
        if not all(probe.is_finite for probe in probes):
            break
        slopes = np.stack([probe.errors - here.errors for probe in probes]) / _PROBE
        cost_slopes = np.array([math.log(probe.cost / here.cost) for probe in probes]) / _PROBE
        move = _best_move(trials, here, slopes, cost_slopes, trust, rng)
        if not any(trials.run(here.theta + share * move).score < here.score for share in (1.0, 0.5)):
            trust /= 3
    best = trials.best
    if best.score > -_LEAST_GAIN:
        return FittedGrid(tuple(graded_grid(schedule, num_steps)), is_graded=True)
    cost, center, tail = trials.shares(best.errors, best.cost)
    return FittedGrid(best.points, is_graded=False, cost=cost, center=center, tail=tail)


@dataclass(frozen=True)
class _Trial:
    """A grid that the pilots went along: its theta and points, their errors (num_rows, dim), cost and score."""

    theta: NDArray[np.float64]
    points: tuple[float, ...]
    errors: NDArray[np.float64]
    cost: float
    score: float = 0.0

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.errors).all())


class _Trials:
    """Runs grids and keeps the best, the graded one at first."""

    def __init__(self, solve: Solve, exact: NDArray[np.floating], schedule: Schedule, num_steps: int) -> None:
        self._solve, self._exact, self._schedule, self._num_steps = solve, exact, schedule, num_steps
        theta = np.zeros(NUM_KNOTS)
        points = tuple(graded_grid(schedule, num_steps))
        ends, cost = solve(points)
        self._graded = self.best = _Trial(theta, points, self._errors(ends), cost)

    def run(self, theta: NDArray[np.float64]) -> _Trial:
        points = grid_points(self._schedule, self._num_steps, theta)
        ends, cost = self._solve(points)
        errors = self._errors(ends)
        shares = self.shares(errors, cost)
        is_better = shares[1] <= 1 and shares[2] <= TAIL_SLACK  # not where an error is not finite
        trial = _Trial(theta, points, errors, cost, _score(*shares) if is_better else math.inf)
        if trial.score < self.best.score:
            self.best = trial
        return trial

    def shares(self, errors: NDArray[np.float64], cost: float) -> tuple[float, float, float]:
        """Cost, central error and tail error, as shares of the graded grid's."""
        center, tail = _bands(errors)
        graded_center, graded_tail = _bands(self._graded.errors)
        return cost / self._graded.cost, center / graded_center, tail / graded_tail

    def _errors(self, ends: NDArray[np.floating]) -> NDArray[np.float64]:
        return ends.astype(np.float64) - self._exact.astype(np.float64)


def grid_points(schedule: Schedule, num_steps: int, theta: NDArray[np.float64]) -> tuple[float, ...]:
    """Points whose density in u is exp(theta) at even knots and linear between, inner ones rounded to 4 digits."""
    places = np.linspace(0.0, 1.0, 1025)
    density = np.interp(places, np.linspace(0.0, 1.0, len(theta)), np.exp(theta))
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    inner = np.interp(np.arange(1, num_steps) / num_steps, mass / mass[-1], places) ** GRADING
    end = schedule.log_beta_sq_end
    return (0.0, *(float(f"{end * place:.{_DIGITS}g}") for place in inner), end)


def _bands(errors: NDArray[np.float64]) -> tuple[float, float]:
    """Geometric means of the central and of the large errors."""
    logs = np.sort(np.log(np.linalg.norm(errors, axis=1) + _ERROR_FLOOR))
    center, tail = (
        math.exp(logs[int(low * len(logs)) : max(1, math.ceil(high * len(logs)))].mean())
        for low, high in (CENTER, TAIL)
    )
    return center, tail


def _score(cost: float, center: float, tail: float) -> float:
    """Log of the cost at equal error, 0 for the graded grid."""
    return math.log(cost) + (math.log(center) + math.log(tail)) / (2 * ORDER)


def _best_move(
    trials: _Trials,
    here: _Trial,
    slopes: NDArray[np.float64],
    cost_slopes: NDArray[np.float64],
    trust: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The change of theta with the lowest score in the linear model, by a random search about the best so far."""

    def predicted(move: NDArray[np.float64]) -> float:
        shares = trials.shares(
            here.errors + np.tensordot(move, slopes, axes=1), here.cost * math.exp(cost_slopes @ move)
        )
        over = (math.log(shares[1]) + _MARGIN, math.log(shares[2] / TAIL_SLACK) + _MARGIN)
        return _score(*shares) + _PENALTY * sum(max(0.0, value) for value in over)

    best = np.zeros(NUM_KNOTS)
    lowest, spread = predicted(best), trust / 2
    for _ in range(_NUM_GUESSES):
        move = (best + spread * rng.standard_normal(NUM_KNOTS)).clip(-trust, trust)
        move -= move.mean()  # the sum of theta changes nothing
        score = predicted(move)
        if score < lowest:
            best, lowest = move, score
        else:
            spread = max(0.98 * spread, 0.02)
    return best
