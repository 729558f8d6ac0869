"""Schedules against their definitions and the general form of the probability-flow ODE."""

import math

import pytest
import torch

from sfg_dist.flow.schedule import Schedule


@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
def test_linear_is_the_papers(t):
    schedule = Schedule("linear", 1e-3)
    assert schedule.alpha(t) == pytest.approx(1 - t)
    assert schedule.beta_sq(t) == pytest.approx(t)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_linear_floor_is_the_published_codes(t):
    schedule = Schedule("linear_floor", 0.01)
    assert schedule.alpha(t) == pytest.approx(1 - 0.99 * t)
    assert schedule.beta_sq(t) == pytest.approx(0.01 + 0.99 * t)


@pytest.mark.parametrize("name", ["linear", "linear_floor"])
def test_both_run_from_unit_variance_to_t_min(name):
    schedule = Schedule(name, 0.02)
    assert schedule.beta_sq(1.0) == pytest.approx(1.0)
    assert schedule.beta_sq(schedule.t_end) == pytest.approx(0.02)
    assert schedule.log_beta_sq_end == pytest.approx(math.log(0.02))


@pytest.mark.parametrize("name", ["linear", "linear_floor"])
def test_velocity_is_the_general_form(name):
    # dz/dt = (beta'/beta) z + (alpha' - alpha beta'/beta) m, with derivatives by finite differences.
    schedule, t, h = Schedule(name, 0.05), 0.4, 1e-6
    beta = [math.sqrt(schedule.beta_sq(t + s)) for s in (-h, h)]
    alpha = [schedule.alpha(t + s) for s in (-h, h)]
    beta_rate = (beta[1] - beta[0]) / (2 * h) / math.sqrt(schedule.beta_sq(t))
    alpha_rate = (alpha[1] - alpha[0]) / (2 * h)
    z, m = torch.tensor([[1.7]], dtype=torch.float64), torch.tensor([[-0.6]], dtype=torch.float64)
    expected = beta_rate * z + (alpha_rate - schedule.alpha(t) * beta_rate) * m
    torch.testing.assert_close(schedule.velocity_t(z, t, m), expected, rtol=1e-6, atol=1e-8)


def test_alpha_follows_beta_sq():
    for name in ("linear", "linear_floor"):
        schedule = Schedule(name, 0.03)
        for t in (0.1, 0.9):
            assert schedule.alpha_of_beta_sq(schedule.beta_sq(t)) == pytest.approx(schedule.alpha(t))


@pytest.mark.parametrize(("name", "t_min"), [("cosine", 0.1), ("linear", 0.0), ("linear", 1.0)])
def test_refuses(name, t_min):
    with pytest.raises(ValueError, match=r"schedule must be|t_min must lie"):
        Schedule(name, t_min)
