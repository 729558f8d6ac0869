"""Exponential Adams methods: one evaluation of the posterior mean a step, the rest of the flow integrated exactly.

With s = alpha / beta the probability-flow ODE reads d(z / beta) = m ds, so that over one step, for every schedule,

    z_1 = (beta_1 / beta_0) z_0 + beta_1 int m ds.

A frozen posterior mean, which is what the flow has near the data, costs no error at any step length. Between grid
points m is a polynomial through the latest evaluations. Their weights are integrals of Lagrange polynomials, found in
float64 for the grid at hand. On the way to the data the polynomial's variable is beta^2, which predicts m best, because
near the data m is smooth in the noise's variance (power table, 24 evaluations: median error 6.9e-4, against 9.5e-4 in
beta and 1.8e-3 in lambda). On the way to noise it is lambda = log beta^2: beta grows from step to step there, and
extrapolation in it is unstable.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from sfg_dist.flow.schedule import Schedule

GAUSS_NODES, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(24)  # exact to float64 for steps of lambda up to about 10


@dataclass(frozen=True)
class Multistep:
    """An exponential Adams method, whose order grows from 1 over the first steps.

    A corrector repeats each step once m is known at its end: predict, evaluate, correct (PEC). m is not evaluated again
    at the corrected state, so the corrector costs nothing.
    """

    predictor: int  # number of evaluations that the Adams-Bashforth polynomial of m goes through
    # the same of the Adams-Moulton polynomial, the one at the step's end included; 0 for no corrector
    corrector: int = 0

    @property
    def order(self) -> int:
        """Classical order of convergence, if the starting values are of that order."""
        return min(self.corrector, self.predictor + 1) if self.corrector else self.predictor


# exp_ab1 is DDIM; exp_ab2 is close to DPM-Solver++(2M), exp_abm3 and exp_abm4 to UniPC, in the variable beta^2.
MULTISTEP = {
    "exp_ab1": Multistep(1),
    "exp_ab2": Multistep(2),
    "exp_ab4": Multistep(4),
    "exp_abm3": Multistep(3, 3),
    "exp_abm4": Multistep(4, 4),
    "exp_abm5": Multistep(5, 5),
}


def multistep_trajectory(
    mean_at: Callable[[float, Tensor], Tensor], z: Tensor, schedule: Schedule, method: Multistep, grid: Sequence[float]
) -> Iterator[tuple[float, Tensor]]:
    """(lambda, state) at every grid point, from the states ``z`` at ``grid[0]`` on, shape (num_rows, dim).

    Inner states are corrected ones. The last step has no evaluation at its end, so the last state is a prediction.
    ``mean_at``: (lambda, state) -> posterior mean is called once a step, at the step's start. The grid is of lambda =
    log beta^2, monotone either way.

    References:
        Hochbruck, Ostermann 2011, Exponential multistep methods of Adams-type, BIT 51; Zhao et al. 2023, UniPC,
        arXiv 2302.04867, for the free corrector.
    """
    past: deque[tuple[float, Tensor]] = deque(maxlen=max(method.predictor, method.corrector))
    before, predicted = z, z
    for index, (at, to) in enumerate(itertools.pairwise(grid)):
        past.append((at, mean_at(at, predicted)))
        state = predicted
        if method.corrector and index:
            state = _step(schedule, before, grid[index - 1], at, list(past)[-method.corrector :])
        yield at, state
        before, predicted = state, _step(schedule, state, at, to, list(past)[-method.predictor :])
    yield grid[-1], predicted


def adams_weights(schedule: Schedule, at: float, to: float, nodes: Sequence[float]) -> list[float]:
    """Weights of the means at ``nodes`` in the step from lambda = ``at`` to ``to``.

        w_j = beta_1 int l_j ds,    ds / dlambda = -((1 + f) / beta + beta) / 2

    where l_j are the Lagrange polynomials of the nodes, in beta^2 towards the data (``to`` < ``at``) and in lambda
    towards noise, and f is the schedule's floor.
    """
    lam = (to - at) / 2 * GAUSS_NODES + (to + at) / 2
    beta = np.exp(lam / 2)
    kernel = -(to - at) / 4 * GAUSS_WEIGHTS * ((1 + schedule.floor) / beta + beta) * math.exp(to / 2)
    places, place_nodes = (np.exp(lam), np.exp(np.asarray(nodes))) if to < at else (lam, np.asarray(nodes))
    weights = []
    for j, node in enumerate(place_nodes):
        others = np.delete(place_nodes, j)
        lagrange = np.prod((places[:, None] - others) / (node - others), axis=1)
        weights.append(float(kernel @ lagrange))
    return weights


@lru_cache(maxsize=1 << 10)
def _kept_weights(schedule: Schedule, at: float, to: float, nodes: tuple[float, ...]) -> list[float]:
    """``adams_weights``, which are the same for each batch."""
    return adams_weights(schedule, at, to, nodes)


def _step(schedule: Schedule, z: Tensor, at: float, to: float, past: list[tuple[float, Tensor]]) -> Tensor:
    weights = _kept_weights(schedule, at, to, tuple(node for node, _ in past))
    z = math.exp((to - at) / 2) * z
    for weight, (_, mean) in zip(weights, past, strict=True):
        z = z + weight * mean
    return z
