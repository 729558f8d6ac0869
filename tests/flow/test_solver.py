"""The solver against the Gaussian oracle, whose flow is known, and against the rules of Runge-Kutta methods."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from sfg_dist.flow.oracle import GaussianOracle
from sfg_dist.flow.schedule import Schedule
from sfg_dist.flow.solver import TABLEAUX, integrate, num_steps, time_grid, trajectory

GAUSSIAN = GaussianOracle(torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("name", TABLEAUX)
def test_order_conditions(name):
    # sum b = 1; sum b c = 1/2; sum b c^2 = 1/3, sum b A c = 1/6; and the four of order 4.
    tableau = TABLEAUX[name]
    exact = lambda numbers: [Fraction(n).limit_denominator(100) for n in numbers]  # noqa: E731
    a, b, c = [exact(row) for row in tableau.a], exact(tableau.b), exact(tableau.c)
    s = range(len(b))
    assert all(sum(a[i]) == c[i] and len(a[i]) == i for i in s)
    ac = [sum(a[i][j] * c[j] for j in range(i)) for i in s]
    ac2 = [sum(a[i][j] * c[j] ** 2 for j in range(i)) for i in s]
    aac = [sum(a[i][j] * ac[j] for j in range(i)) for i in s]
    conditions = [
        [(sum(b), 1)],
        [(sum(b[i] * c[i] for i in s), Fraction(1, 2))],
        [(sum(b[i] * c[i] ** 2 for i in s), Fraction(1, 3)), (sum(b[i] * ac[i] for i in s), Fraction(1, 6))],
        [
            (sum(b[i] * c[i] ** 3 for i in s), Fraction(1, 4)),
            (sum(b[i] * c[i] * ac[i] for i in s), Fraction(1, 8)),
            (sum(b[i] * ac2[i] for i in s), Fraction(1, 12)),
            (sum(b[i] * aac[i] for i in s), Fraction(1, 24)),
        ],
    ]
    holds = [all(left == right for left, right in level) for level in conditions]
    assert all(holds[: tableau.order])
    assert not all(holds[: tableau.order + 1]) or tableau.order == 4


def gaussian_error(schedule, solver, steps, direction, kind="graded"):
    ends = [(schedule.alpha(1.0), 1.0), (schedule.alpha(schedule.t_end), schedule.beta_sq(schedule.t_end))]
    if direction == "encode":
        ends.reverse()
    z = torch.tensor([[1.0, -0.4], [-2.0, 0.9], [0.1, 3.0]], dtype=torch.float64)
    got = integrate(
        GAUSSIAN.posterior_mean,
        z,
        schedule=schedule,
        solver=solver,
        num_evaluations=steps * TABLEAUX[solver].num_stages,
        kind=kind,
        direction=direction,
    )
    return float((got - GAUSSIAN.transport(z, *ends)).norm(dim=1).max())


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize(
    "schedule", [Schedule("linear", 1e-3), Schedule("linear_floor", 0.01)], ids=["linear", "floor"]
)
@pytest.mark.parametrize("solver", TABLEAUX)
def test_measured_order_is_the_declared_one(solver, schedule, direction):
    errors = [gaussian_error(schedule, solver, steps, direction) for steps in (40, 80, 160)]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(TABLEAUX[solver].order, abs=0.3)


@pytest.mark.parametrize("name", ["linear", "linear_floor"])
def test_uniform_euler_converges_with_order_one(name):
    errors = [gaussian_error(Schedule(name, 0.05), "euler", steps, "decode", "uniform") for steps in (400, 800)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)


def test_graded_grid():
    grid = time_grid(Schedule("linear", 1e-4), 8)
    assert grid[0] == 0
    assert grid[-1] == pytest.approx(math.log(1e-4))
    steps = [b - a for a, b in itertools.pairwise(grid)]
    assert all(later < earlier < 0 for earlier, later in itertools.pairwise(steps))


def test_trajectory_visits_every_grid_point():
    schedule = Schedule("linear", 1e-2)
    z = torch.zeros(3, 2, dtype=torch.float64)
    points = list(trajectory(GAUSSIAN.posterior_mean, z, schedule=schedule, num_evaluations=16))
    assert len(points) == 5
    assert points[0][0] == 1.0
    assert points[-1][0] == pytest.approx(1e-2)
    assert points[0][1] is z


@pytest.mark.parametrize(
    ("solver", "evaluations", "message"),
    [("rk4", 30, "take 28 or 32"), ("rk4", 3, "take 4 or 8"), ("rk9", 8, "solver must be one of")],
)
def test_refuses(solver, evaluations, message):
    with pytest.raises(ValueError, match=message):
        num_steps(solver, evaluations)
