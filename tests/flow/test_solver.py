"""The solver against the Gaussian oracle, whose flow is known, and against the rules of Runge-Kutta methods."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from oracle import GaussianOracle

from sfg_dist.flow.labeling import denoiser_of
from sfg_dist.flow.multistep import MULTISTEP, adams_weights
from sfg_dist.flow.posterior.reference import Reference
from sfg_dist.flow.schedule import Schedule
from sfg_dist.flow.solver import GRADING, SOLVERS, TABLEAUX, Flow, graded_grid, integrate, num_steps, trajectory

GAUSSIAN = GaussianOracle(torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64))


ROUNDING = {"tsit5": 1e-13}  # coefficients that are decimals; the others are fractions and must hold exactly


def exact(numbers):
    return [Fraction(number).limit_denominator(400_000) for number in numbers]


def rooted_trees(size):
    """All rooted trees of that many vertices; a tree is the sorted tuple of the trees at its root."""
    if size == 1:
        return {()}
    grown = set()
    for tree in rooted_trees(size - 1):
        grown |= with_a_leaf(tree)
    return grown


def with_a_leaf(tree):
    trees = {tuple(sorted((*tree, ())))}
    for index, branch in enumerate(tree):
        for grown in with_a_leaf(branch):
            trees.add(tuple(sorted((*tree[:index], grown, *tree[index + 1 :]))))
    return trees


def num_vertices(tree):
    return 1 + sum(map(num_vertices, tree))


def density(tree):
    return num_vertices(tree) * math.prod(map(density, tree))


def stage_sums(tree, a):
    """Elementary weight of a tree at each stage: the product over its branches of sum_j a_ij weight_j(branch)."""
    weights = [Fraction(1)] * len(a)
    for branch in tree:
        inner = stage_sums(branch, a)
        weights = [
            w * sum((x * y for x, y in zip(row, inner, strict=False)), Fraction(0))
            for w, row in zip(weights, a, strict=True)
        ]
    return weights


def order_of(a, b, tolerance):
    """Order of a method by Butcher's conditions sum_i b_i weight_i(tree) = 1 / density(tree), up to 6."""
    for order in range(1, 7):
        for tree in rooted_trees(order):
            defect = sum(x * y for x, y in zip(b, stage_sums(tree, a), strict=True)) - Fraction(1, density(tree))
            if abs(defect) > tolerance:
                return order - 1
    return 6


def test_rooted_trees_are_all_there():
    assert [len(rooted_trees(size)) for size in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("name", TABLEAUX)
def test_order_conditions(name):
    tableau, tolerance = TABLEAUX[name], ROUNDING.get(name, 0)
    read = exact if not tolerance else lambda numbers: [Fraction(number) for number in numbers]
    a, b, c = [read(row) for row in tableau.a], read(tableau.b), read(tableau.c)
    assert all(abs(sum(a[i]) - c[i]) <= tolerance and len(a[i]) == i for i in range(len(b)))
    assert order_of(a, b, tolerance) == tableau.order
    if tableau.b_embedded:
        assert order_of(a, read(tableau.b_embedded), tolerance) == tableau.embedded_order
    if tableau.is_fsal:
        assert (*tableau.a[-1], 0.0) == tableau.b
        assert tableau.c[-1] == 1


def evaluations(solver, steps):
    if solver in MULTISTEP:
        return steps
    return steps * TABLEAUX[solver].evaluations_per_step + TABLEAUX[solver].is_fsal


def gaussian_error(schedule, solver, steps, direction, time_grid=None, grading=GRADING):
    ends = [(schedule.alpha(1.0), 1.0), (schedule.alpha(schedule.t_end), schedule.beta_sq(schedule.t_end))]
    if direction == "encode":
        ends.reverse()
    z = torch.tensor([[1.0, -0.4], [-2.0, 0.9], [0.1, 3.0]], dtype=torch.float64)
    time_grid = time_grid or graded_grid(schedule, steps, grading)
    flow = Flow(schedule, solver, evaluations(solver, steps), time_grid, direction)
    got = integrate(GAUSSIAN.posterior_mean, z, flow)
    return float((got - GAUSSIAN.transport(z, *ends)).norm(dim=1).max())


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize(
    "schedule", [Schedule("linear", 1e-3), Schedule("linear_floor", 0.01)], ids=["linear", "floor"]
)
@pytest.mark.parametrize("solver", TABLEAUX)
def test_measured_order_is_the_declared_one(solver, schedule, direction):
    errors = [gaussian_error(schedule, solver, steps, direction) for steps in (40, 80, 160)]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(TABLEAUX[solver].order, abs=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "linear_floor"])
@pytest.mark.parametrize("solver", MULTISTEP)
def test_measured_order_of_multistep_methods(solver, name):
    # The first steps are of low order; on a steeply graded grid they are short enough not to show.
    errors = [gaussian_error(Schedule(name, 0.01), solver, steps, "decode", grading=5.0) for steps in (480, 960)]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(MULTISTEP[solver].order, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("time_grid", ["graded", "uniform"])
@pytest.mark.parametrize("solver", MULTISTEP)
def test_multistep_methods_are_exact_for_a_frozen_posterior_mean(solver, time_grid, direction):
    # z = alpha m + beta eps with one and the same m and eps is the flow to a single reference.
    schedule = Schedule("linear", 1e-3)
    center = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    noise = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    ends = [schedule.alpha(t) * center + schedule.beta_sq(t) ** 0.5 * noise for t in (1.0, schedule.t_end)]
    start, end = ends if direction == "decode" else ends[::-1]
    got = integrate(lambda z, alpha, beta_sq: center, start, Flow(schedule, solver, 6, time_grid, direction))
    torch.testing.assert_close(got, end, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_adams_weights_are_integrals_of_the_kernel(floor):
    # Their sum is beta_1 (s_1 - s_0) with s = alpha / beta; a mean linear in beta^2 has an integral in closed form.
    schedule = Schedule("linear_floor", floor) if floor else Schedule("linear", 1e-4)
    at, to, nodes = -0.5, -2.0, [0.0, -0.2, -0.5]
    beta_0, beta_1 = math.exp(at / 2), math.exp(to / 2)
    s_0, s_1 = ((1 + floor - beta**2) / beta for beta in (beta_0, beta_1))
    weights = adams_weights(schedule, at, to, nodes)
    assert sum(weights) == pytest.approx(beta_1 * (s_1 - s_0), rel=1e-12)
    linear = sum(weight * math.exp(node) for weight, node in zip(weights, nodes, strict=True))
    expected = -beta_1 * ((1 + floor) * (beta_1 - beta_0) + (beta_1**3 - beta_0**3) / 3)
    assert linear == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("solver", "budget"), [(name, evaluations(name, 3)) for name in SOLVERS])
def test_num_evaluations_are_the_calls_made(solver, budget):
    times = []

    def denoiser(z, alpha, beta_sq):
        times.append(beta_sq)
        return GAUSSIAN.posterior_mean(z, alpha, beta_sq)

    z = torch.ones(2, 2, dtype=torch.float64)
    integrate(denoiser, z, Flow(Schedule("linear", 1e-2), solver, budget))
    assert len(times) == budget
    assert times[0] == 1.0
    assert num_steps(solver, budget) == 3


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("solver", "budget", "bound"), [("exp_abm5", 16, 1e-3), ("exp_abm4", 20, 6e-4)])
def test_label_error_of_the_multistep_methods(moons, solver, budget, bound):
    latents = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = denoiser_of(Reference(moons, dtype=torch.float64, sigma_data=1.0), "fused")
    schedule = Schedule("linear", 1e-4)
    exact = integrate(denoiser, latents, Flow(schedule, "rk4", 640))
    got = integrate(denoiser, latents, Flow(schedule, solver, budget))
    error = (got - exact).norm(dim=1) / schedule.alpha(schedule.t_end)
    assert error.median() <= bound * 1.1  # 500 latents know their median to about a tenth
    assert error.quantile(0.9) <= 5e-3


@pytest.mark.parametrize("name", ["linear", "linear_floor"])
def test_uniform_euler_converges_with_order_one(name):
    errors = [gaussian_error(Schedule(name, 0.05), "euler", steps, "decode", "uniform") for steps in (400, 800)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)


def test_graded_grid():
    grid = graded_grid(Schedule("linear", 1e-4), 8)
    assert grid[0] == 0
    assert grid[-1] == pytest.approx(math.log(1e-4))
    steps = [b - a for a, b in itertools.pairwise(grid)]
    assert all(later < earlier < 0 for earlier, later in itertools.pairwise(steps))


def test_trajectory_visits_every_grid_point():
    schedule = Schedule("linear", 1e-2)
    z = torch.zeros(3, 2, dtype=torch.float64)
    points = list(trajectory(GAUSSIAN.posterior_mean, z, Flow(schedule, "rk4", 16)))
    assert len(points) == 5
    assert points[0][0] == 1.0
    assert points[-1][0] == pytest.approx(1e-2)
    assert points[0][1] is z


@pytest.mark.parametrize(
    ("solver", "evaluations", "message"),
    [
        ("rk4", 30, "take 28 or 32"),
        ("rk4", 3, "take 4 or 8"),
        ("rk9", 8, "solver must be one of"),
        ("dopri5", 30, "take 25 or 31"),
        ("exp_abm4", 0, "positive"),
    ],
)
def test_refuses(solver, evaluations, message):
    with pytest.raises(ValueError, match=message):
        num_steps(solver, evaluations)
