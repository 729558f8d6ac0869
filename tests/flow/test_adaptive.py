"""Adaptive integration: its errors follow its tolerance, and a row's bits are its own."""

import math

import numpy as np
import pytest
import torch
from oracle import GaussianOracle

from sfg_dist.flow import Reference, denoiser_of
from sfg_dist.flow.adaptive import ADAPTIVE_SOLVERS, _row_weights, integrate_adaptive
from sfg_dist.flow.multistep import adams_weights
from sfg_dist.flow.schedule import Schedule
from sfg_dist.flow.solver import Flow, integrate

VARIANCES = torch.tensor([0.5, 2.0], dtype=torch.float64)
GAUSSIAN = GaussianOracle(torch.tensor([0.3, -1.0], dtype=torch.float64), VARIANCES)


def gaussian_mean(z, alpha, beta_sq):
    """The oracle's posterior mean with one time a row."""
    alpha, beta_sq = (torch.as_tensor(number, dtype=torch.float64).reshape(-1, 1) for number in (alpha, beta_sq))
    return GAUSSIAN.mean + alpha * VARIANCES / (alpha**2 * VARIANCES + beta_sq) * (z - alpha * GAUSSIAN.mean)


@pytest.fixture(scope="module")
def case(moons):
    latents = torch.randn(150, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = denoiser_of(Reference(moons, dtype=torch.float64, sigma_data=1.0), "fused")
    schedule = Schedule("linear", 1e-4)
    exact = integrate(denoiser, latents, Flow(schedule, "rk4", 640))
    return denoiser, latents, schedule, exact


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize(
    "schedule", [Schedule("linear", 1e-3), Schedule("linear_floor", 0.01)], ids=["linear", "floor"]
)
@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS)
def test_gaussian_flow_within_the_tolerance(solver, schedule, direction):
    ends = [(schedule.alpha(1.0), 1.0), (schedule.alpha(schedule.t_end), schedule.beta_sq(schedule.t_end))]
    if direction == "encode":
        ends.reverse()
    z = torch.tensor([[1.0, -0.4], [-2.0, 0.9], [0.1, 3.0]], dtype=torch.float64)
    # In "encode" the flow stretches early errors by up to 1 / beta.
    stretch = 1.0 if direction == "decode" else schedule.t_min**-0.5
    for tolerance in (1e-4, 1e-6):
        flow = Flow(schedule, solver, direction=direction, solver_tolerance=tolerance)
        got = integrate_adaptive(gaussian_mean, z, flow, max_evaluations=2000)
        error = float((got.states - GAUSSIAN.transport(z, *ends)).norm(dim=1).max())
        assert error < 30 * tolerance * stretch
        assert not got.exceeded.any()


@pytest.mark.slow
@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS)
def test_median_label_error_is_below_the_tolerance(case, solver):
    denoiser, latents, schedule, exact = case
    got = integrate_adaptive(denoiser, latents, Flow(schedule, solver, solver_tolerance=1e-3))
    error = (got.states - exact).norm(dim=1) / schedule.alpha(schedule.t_end)
    assert error.median() < 1e-3
    assert error.quantile(0.99) < 3e-2
    assert not got.exceeded.any()


@pytest.mark.slow
def test_rows_differ_in_their_evaluations_and_few_are_needed(case):
    denoiser, latents, schedule, _ = case
    evaluations = integrate_adaptive(denoiser, latents, Flow(schedule, solver_tolerance=1e-3)).num_evaluations
    assert evaluations.dtype == torch.int64
    assert evaluations.double().mean() < 22
    assert evaluations.min() < evaluations.max() < 32


@pytest.mark.slow
def test_evaluations_counted_are_evaluations_made(case):
    denoiser, latents, schedule, _ = case
    calls = []

    def counting(z, alpha, beta_sq):
        calls.append(len(z))
        return denoiser(z, alpha, beta_sq)

    got = integrate_adaptive(counting, latents, Flow(schedule, "dopri5", solver_tolerance=1e-3))
    assert len(calls) == got.num_evaluations.max()
    assert all(rows % 64 == 0 for rows in calls)
    assert calls[-1] < calls[0]  # finished rows leave


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["exp_abm4", "dopri5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_of_a_row_do_not_depend_on_the_other_rows(moons, solver, dtype):
    denoiser = denoiser_of(Reference(moons, dtype=dtype, sigma_data=1.0), "fused")
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(200, 2, generator=generator, dtype=dtype)
    others = torch.randn(200, 2, generator=generator, dtype=dtype)
    flow = Flow(Schedule("linear", 1e-3), solver, solver_tolerance=1e-3)
    solve = lambda z: integrate_adaptive(denoiser, z, flow)  # noqa: E731
    whole, again, part = solve(latents), solve(latents), solve(latents[:70])
    mixed = others.clone()
    mixed[100:150] = latents[100:150]
    beside_others = solve(mixed)
    assert torch.equal(whole.states, again.states)
    assert torch.equal(whole.states[:70], part.states)
    assert torch.equal(whole.num_evaluations[:70], part.num_evaluations)
    assert len(part.states) == len(part.num_evaluations) == len(part.exceeded) == 70  # nothing of what fills a batch up
    assert torch.equal(whole.states[100:150], beside_others.states[100:150])


@pytest.mark.slow
def test_a_budget_too_small_is_kept_and_flagged(case):
    denoiser, latents, schedule, exact = case
    got = integrate_adaptive(denoiser, latents, Flow(schedule, solver_tolerance=1e-7), max_evaluations=30)
    assert got.num_evaluations.max() <= 30
    assert got.exceeded.all()
    assert torch.isfinite(got.states).all()
    assert (got.states - exact).norm(dim=1).median() < 0.5


def test_row_weights_are_the_weights_of_the_grid():
    for schedule in (Schedule("linear", 1e-4), Schedule("linear_floor", 0.01)):
        for at, to, nodes in ((-1.0, -1.7, [-1.0, -0.6, -0.2]), (-2.0, -1.5, [-2.0, -2.2, -3.0, -4.0])):
            expected = adams_weights(schedule, at, to, nodes)
            padded = torch.tensor([nodes + [0.0] * (5 - len(nodes))], dtype=torch.float64)
            at_to = (torch.tensor([number], dtype=torch.float64) for number in (at, to))
            got = _row_weights(schedule, *at_to, padded, torch.tensor([len(nodes)]))[0]
            np.testing.assert_allclose(got.numpy(), expected + [0.0] * (5 - len(nodes)), rtol=1e-12)


def test_no_rows():
    flow = Flow(Schedule(), solver_tolerance=1e-3)
    got = integrate_adaptive(gaussian_mean, torch.zeros(0, 2, dtype=torch.float64), flow)
    assert got.states.shape == (0, 2)
    assert len(got.num_evaluations) == len(got.exceeded) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "rk4"}, "adaptive solver must be one of"),
        ({"solver_tolerance": 0.0}, "tolerance"),
        ({"solver_tolerance": math.inf}, "tolerance"),
        ({"solver_tolerance": None}, "tolerance"),
        ({"direction": "sideways"}, "direction"),
        ({"solver": "dopri5"}, "at least 7"),
    ],
)
def test_refuses(settings, message):
    z = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        integrate_adaptive(gaussian_mean, z, Flow(Schedule(), **({"solver_tolerance": 1e-3} | settings)), 6)
