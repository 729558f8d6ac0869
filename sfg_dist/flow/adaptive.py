"""Adaptive integration of the probability-flow ODE: every row has its own place lambda and its own steps.

Rows are evaluated together, each at its own alpha and beta^2. A row's result does not depend on the other rows: a
finished row leaves the batch, and the rest keep their places modulo a register block (see ``seats``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfg_dist.flow.multistep import GAUSS_NODES, GAUSS_WEIGHTS, MULTISTEP
from sfg_dist.flow.posterior.seats import MULTIPLE, seats
from sfg_dist.flow.schedule import Schedule, T
from sfg_dist.flow.solver import TABLEAUX, Denoiser, Flow, add_slopes

ADAPTIVE_SOLVERS = (
    *(name for name, tableau in TABLEAUX.items() if tableau.b_embedded),
    *(name for name, method in MULTISTEP.items() if method.corrector),
)
_FIRST_STEP = 0.1  # in lambda; the control finds its own in two or three steps
_SAFETY = 0.9
_RESERVED_STEPS = 8  # the last steps of a row's budget, which reach the end whatever their error


@dataclass(frozen=True)
class AdaptiveResult:
    """What ``integrate_adaptive`` gives."""

    states: Tensor  # states at the end of the flow, shape (num_rows, dim)
    num_evaluations: Tensor  # evaluations of each row, rejected steps included, shape (num_rows,), int64
    # rows that used up ``max_evaluations`` and made steps above the tolerance, shape (num_rows,), bool
    exceeded: Tensor


def integrate_adaptive(denoiser: Denoiser, z: Tensor, flow: Flow, max_evaluations: int = 200) -> AdaptiveResult:
    """The state at the other end of the flow, each row with steps that suit it.

    A step is taken where the estimate of its error satisfies |e|_2 <= c tolerance. The estimate is the distance of the
    embedded method from the method, or of the prediction from the correction. The constant c, 25 for Adams methods and
    10 for Runge-Kutta pairs, was fitted to make the tolerance the target of the median label error. Measured with
    "exp_abm4" on two moons and on 20,000 rows of the power table, tolerances from 3e-5 to 3e-3: the median label error
    is 0.3 to 1 times the tolerance, the 90th percentile 1 to 8 times, the 99th 3 to 35 times (the larger ratios at the
    smaller tolerances). With 200,000 rows and 1e-3: 0.8, 3 and 230 times, since about one latent in a hundred stands at
    a fork of that flow and no local control sees it. The next step is

        h' = 0.9 h r^(-0.7 / k) r_before^(0.4 / k),    r = |e| / (c tolerance)

    with k the order of e in h and r_before that of the step before (PI control).

    A row that nears ``max_evaluations`` takes its last 8 steps whatever their error and is flagged. So the result is
    always complete, and the flag says which rows to doubt.

    Args:
        denoiser: gives the posterior mean at (z_t, alpha, beta_sq), the latter two of shape (num_rows,).
        z: states at t = 1 for "decode", at the data end for "encode", shape (num_rows, dim).
        flow: the settings. Its solver is one of ADAPTIVE_SOLVERS; "exp_abm4" and "exp_abm5" need the fewest
            evaluations for an error. Its solver_tolerance is a 2-norm in units of the reference's spread.
        max_evaluations: evaluations that a row may use.

    Raises:
        ValueError: the solver has no error estimate, or a setting is out of range.

    References:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, sections II.4 and III.5; Gustafsson 1991,
        Control theoretic techniques for stepsize selection in explicit Runge-Kutta methods, ACM TOMS 17.
    """
    attempt, num_rows = _attempt(denoiser, flow, max_evaluations), len(z)
    start, end = 0.0, flow.schedule.log_beta_sq_end
    if flow.direction == "encode":
        start, end = end, start
    if not num_rows:
        return AdaptiveResult(z.clone(), z.new_zeros(0, dtype=torch.int64), z.new_zeros(0, dtype=torch.bool))
    # Rows that fill up the batch are copies and are dropped at the end.
    z = z[torch.arange(-(-num_rows // MULTIPLE) * MULTIPLE, device=z.device) % num_rows]
    attempt.begin(z, start)
    sign = math.copysign(1.0, end - start)
    lam = torch.full((len(z),), start, dtype=torch.float64, device=z.device)
    step = torch.full_like(lam, min(_FIRST_STEP, abs(end - start)))
    previous = torch.ones_like(lam)
    evaluations = torch.ones_like(lam, dtype=torch.int64)
    exceeded = torch.zeros_like(lam, dtype=torch.bool)
    while True:
        rows, real = seats(lam != end)
        if not len(rows):
            break
        remaining = (end - lam[rows]).abs()
        attempts_left = (max_evaluations - evaluations[rows]) // attempt.cost
        floor = torch.where(attempts_left <= _RESERVED_STEPS, remaining / attempts_left, 0.0)
        wanted = torch.maximum(step[rows], floor)
        h = torch.where(wanted > 0.9 * remaining, remaining, wanted)
        to = torch.where(h == remaining, end, lam[rows] + sign * h)
        states, error, order = attempt.take(rows, z[rows], lam[rows], to)
        # A state that is not finite counts as a large error.
        ratio = (error / attempt.largest_error).nan_to_num(nan=1e9, posinf=1e9).clamp(1e-6, 1e9)
        forced = (floor > step[rows]) | (attempts_left <= 1)
        accepted = (ratio <= 1) | forced
        growth = _SAFETY * ratio ** (-0.7 / order) * previous[rows] ** (0.4 / order)
        shrink = (_SAFETY * ratio ** (-1 / order)).clamp(0.2, 1.0)
        factor = torch.where(ratio <= 1, growth.clamp(0.3, attempt.max_growth), shrink)

        rows, kept = rows[real], accepted[real]
        evaluations[rows] += attempt.cost
        exceeded[rows] |= (forced & (ratio > 1))[real]
        step[rows] = (h * factor)[real]
        taken = rows[kept]
        z[taken], lam[taken] = states[real][kept], to[real][kept]
        previous[taken] = ratio[real][kept].clamp(1e-4, 1.0)
        attempt.accept(taken, real, kept, to)
    return AdaptiveResult(z[:num_rows], evaluations[:num_rows], exceeded[:num_rows])


def _attempt(denoiser: Denoiser, flow: Flow, max_evaluations: int) -> _Embedded | _Adams:
    """What takes the steps of the flow's solver."""
    if flow.solver not in ADAPTIVE_SOLVERS:
        raise ValueError(f"an adaptive solver must be one of {', '.join(ADAPTIVE_SOLVERS)}, got {flow.solver!r}")
    tolerance = flow.solver_tolerance
    if tolerance is None or not (tolerance > 0 and math.isfinite(tolerance)):
        raise ValueError(f"solver_tolerance must be positive, got {tolerance}")
    attempt = (_Embedded if flow.solver in TABLEAUX else _Adams)(denoiser, flow)
    attempt.largest_error = attempt.calibration * tolerance
    if max_evaluations < 1 + attempt.cost:
        raise ValueError(
            f"max_evaluations must be at least {1 + attempt.cost} for {flow.solver}, got {max_evaluations}"
        )
    return attempt


class _Attempt:
    """Steps of one method for rows that each stand at their own lambda."""

    largest_error: float  # of a step that is taken

    def __init__(self, denoiser: Denoiser, flow: Flow) -> None:
        self.denoiser, self.schedule = denoiser, flow.schedule

    def mean_at(self, lam: T, states: Tensor) -> Tensor:
        """Posterior mean at one lambda, or one a row."""
        beta_sq = lam.exp() if isinstance(lam, Tensor) else math.exp(lam)
        return self.denoiser(states, self.schedule.alpha_of_beta_sq(beta_sq), beta_sq)


class _Embedded(_Attempt):
    """Steps of an embedded Runge-Kutta pair whose last stage is the next step's first."""

    max_growth = 5.0
    calibration = 10.0

    def __init__(self, denoiser: Denoiser, flow: Flow) -> None:
        super().__init__(denoiser, flow)
        self.tableau = TABLEAUX[flow.solver]
        self.cost = self.tableau.evaluations_per_step

    def begin(self, z: Tensor, start: float) -> None:
        """Evaluate all rows at lambda = ``start``."""
        self.slope = self.schedule.velocity(z, math.exp(start), self.mean_at(start, z))

    def take(self, rows: Tensor, z: Tensor, lam: Tensor, to: Tensor) -> tuple[Tensor, Tensor, float]:
        """The numbered rows' states at ``to``, the norm of the estimated error, and its order in the step."""
        h = (to - lam)[:, None]
        tableau, slopes = self.tableau, [self.slope[rows]]
        for weights, node in zip(tableau.a[1:], tableau.c[1:], strict=True):
            place = to if node == 1 else lam + node * (to - lam)
            state = add_slopes(z, h, weights, slopes)
            factor = ((1 + self.schedule.floor + place.exp()) / 2)[:, None].to(z)
            slopes.append(state / 2 - factor * self.mean_at(place, state))
        self.last = slopes[-1]
        difference = [b - e for b, e in zip(tableau.b, tableau.b_embedded, strict=True)]
        error = add_slopes(torch.zeros_like(z), h, difference, slopes).double().norm(dim=1)
        # The last row of a FSAL tableau is b, so the last stage's state is the step's result.
        return state, error, float(tableau.embedded_order + 1)

    def accept(self, taken: Tensor, real: Tensor, kept: Tensor, to: Tensor) -> None:
        """Keep what the last step evaluated for the rows ``taken``: of the real seats, those that were kept."""
        self.slope[taken] = self.last[real][kept]


class _Adams(_Attempt):
    """Steps of an exponential Adams predictor-corrector on each row's own past."""

    cost = 1
    max_growth = 3.0
    calibration = 25.0

    def __init__(self, denoiser: Denoiser, flow: Flow) -> None:
        super().__init__(denoiser, flow)
        self.method = MULTISTEP[flow.solver]
        self.depth = max(self.method.predictor, self.method.corrector - 1)

    def begin(self, z: Tensor, start: float) -> None:
        """As for _Embedded."""
        self.means = self.mean_at(start, z)[:, None].repeat(1, self.depth, 1)  # newest first
        self.places = torch.full((len(z), self.depth), start, dtype=torch.float64, device=z.device)
        self.count = torch.ones(len(z), dtype=torch.int64, device=z.device)

    def take(self, rows: Tensor, z: Tensor, lam: Tensor, to: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As for _Embedded."""
        means, places, count = self.means[rows], self.places[rows], self.count[rows]
        used = count.clamp(max=self.method.predictor)
        carried = ((to - lam) / 2).exp()[:, None].to(z) * z
        predicted = carried + _weigh(means, _row_weights(self.schedule, lam, to, places, used))
        self.mean = self.mean_at(to, predicted)
        means = torch.cat([self.mean[:, None], means], dim=1)
        places = torch.cat([to[:, None], places], dim=1)
        kept = (count + 1).clamp(max=self.method.corrector)
        corrected = carried + _weigh(means, _row_weights(self.schedule, lam, to, places, kept))
        # Both are exact for as many powers as the shorter polynomial has points.
        return corrected, (corrected - predicted).double().norm(dim=1), torch.minimum(used, kept).double() + 1

    def accept(self, taken: Tensor, real: Tensor, kept: Tensor, to: Tensor) -> None:
        """As for _Embedded."""
        self.means[taken] = torch.cat([self.mean[real][kept][:, None], self.means[taken][:, :-1]], dim=1)
        self.places[taken] = torch.cat([to[real][kept][:, None], self.places[taken][:, :-1]], dim=1)
        self.count[taken] = (self.count[taken] + 1).clamp(max=self.depth)


def _weigh(means: Tensor, weights: Tensor) -> Tensor:
    """Sum over the past, term by term: a batched product may round by the shape of the batch."""
    terms = weights.to(means)[:, :, None] * means[:, : weights.shape[1]]
    total = terms[:, 0]
    for index in range(1, terms.shape[1]):
        total = total + terms[:, index]
    return total


def _row_weights(schedule: Schedule, lam: Tensor, to: Tensor, nodes: Tensor, count: Tensor) -> Tensor:
    """``adams_weights`` for every row, of its first ``count`` nodes; the others weigh 0; shape (num_rows, depth)."""
    depth = int(nodes.shape[1])
    half = (to - lam)[:, None] / 2
    x = half * torch.as_tensor(GAUSS_NODES).to(lam) + (to + lam)[:, None] / 2
    beta = (x / 2).exp()
    kernel = -half / 2 * torch.as_tensor(GAUSS_WEIGHTS).to(lam) * ((1 + schedule.floor) / beta + beta)
    kernel = kernel * (to / 2).exp()[:, None]
    decode = (to < lam)[:, None]
    places, place_nodes = torch.where(decode, x.exp(), x), torch.where(decode, nodes.exp(), nodes)
    used = torch.arange(depth, device=lam.device) < count[:, None]
    columns = []
    for j in range(depth):
        lagrange = kernel
        for k in range(depth):
            if k != j:
                both = (used[:, j] & used[:, k])[:, None]
                gap = torch.where(both, place_nodes[:, [j]] - place_nodes[:, [k]], 1.0)
                lagrange = lagrange * torch.where(both, (places - place_nodes[:, [k]]) / gap, 1.0)
        columns.append(torch.where(used[:, j], lagrange.sum(dim=1), 0.0))
    return torch.stack(columns, dim=1)
