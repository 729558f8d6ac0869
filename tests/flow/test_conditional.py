"""Conditional labels against closed forms: the kernel's sums, and the jointly Gaussian case, whose law is known."""

import numpy as np
import pytest
import torch

from sfg_dist.flow import (
    ConditionalReference,
    Effort,
    Flow,
    Reference,
    Schedule,
    label_given,
    label_latents,
    posterior_mean,
)

RHO = 0.8
SPREAD_SQ = 1 - RHO**2  # of u given c, where (u, c) is Gaussian with variances 1 and correlation RHO


def gaussian(num_rows, seed=0):
    c, e = np.random.default_rng(seed).standard_normal((2, num_rows))
    return np.stack([RHO * c + np.sqrt(SPREAD_SQ) * e, c], axis=1).astype(np.float32)


def labels_at(reference, place, latents, t_min=1e-3):
    rows = torch.full((len(latents), 2), float(place), dtype=reference.dtype)
    rows[:, 0] = torch.from_numpy(latents)
    return label_given(rows, reference, Flow(Schedule("linear", t_min)))[:, 0].numpy()


@pytest.mark.parametrize("bandwidth", [None, 0.3])
@pytest.mark.parametrize("neighbors", [40, 1000])
def test_the_posterior_mean_is_the_weighted_sum(bandwidth, neighbors):
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((300, 5)).astype(np.float32)
    reference = ConditionalReference(
        rows, 2, neighbors=neighbors, bandwidth=bandwidth, adjust=False, dtype=torch.float64, sigma_data=1.0
    )
    conditions = generator.standard_normal((7, 2)).astype(np.float32)
    z = generator.standard_normal((7, 3))
    alpha, beta_sq = 0.7, 0.2
    found = reference.neighbourhood(conditions).posterior_mean(torch.from_numpy(z), alpha, beta_sq).numpy()
    targets, places = rows[:, :3].astype(np.float64), rows[:, 3:].astype(np.float64)
    for row in range(7):
        distance = np.linalg.norm(conditions[row] - places, axis=1)
        nearest = np.argsort(distance)[:neighbors]
        h = bandwidth or distance[nearest[-1]] / 2
        squares = ((z[row] - alpha * targets[nearest]) ** 2).sum(axis=1)
        weights = np.exp(-squares / (2 * beta_sq) - distance[nearest] ** 2 / (2 * h**2))
        expected = weights @ targets[nearest] / weights.sum()
        np.testing.assert_allclose(found[row], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_a_kernel_as_wide_as_the_world_gives_the_unconditional_flow():
    rows = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32)
    reference = ConditionalReference(
        rows, 1, neighbors=400, bandwidth=1e6, adjust=False, dtype=torch.float64, sigma_data=1.0
    )
    targets = Reference(torch.from_numpy(rows[:, :2]), dtype=torch.float64, sigma_data=1.0)
    z = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nearby = reference.neighbourhood(np.zeros((9, 1), np.float32))
    expected = posterior_mean(z, targets, alpha=0.6, beta=0.4**0.5)
    torch.testing.assert_close(nearby.posterior_mean(z, 0.6, 0.4), expected, rtol=1e-9, atol=1e-9)
    given = torch.cat([z, torch.zeros(9, 1, dtype=torch.float64)], dim=1)
    labels = label_given(given, reference, Flow(Schedule("linear", 1e-3)))
    torch.testing.assert_close(
        labels[:, :2], label_latents(z, targets, t_min=1e-3, dtype=torch.float64, sigma_data=1.0), rtol=1e-7, atol=1e-7
    )
    assert (labels[:, 2] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("place", [-1.5, 0.0, 0.7])
@pytest.mark.parametrize("adjust", [False, True])
def test_a_gaussian_law_smeared_by_the_kernel_and_carried_back(place, adjust):
    """Kernel h times N(0, 1): c_j ~ N(c / (1 + h^2), h^2 / (1 + h^2)), and u = rho c_j + e; adjusted, u = rho c + e."""
    h = 0.5
    reference = ConditionalReference(gaussian(60_000), 1, neighbors=60_000, bandwidth=h, adjust=adjust, sigma_data=1.0)
    mean = RHO * place if adjust else RHO * place / (1 + h**2)
    variance = SPREAD_SQ if adjust else SPREAD_SQ + RHO**2 * h**2 / (1 + h**2)
    t_min = 1e-2
    blurred = np.sqrt(variance + t_min / (1 - t_min) ** 2)
    latents = np.linspace(-2, 2, 9).astype(np.float32)
    labels = labels_at(reference, place, latents, t_min)
    # some 12,000 rows count: a mean is known to 0.006, a spread to 0.7 %, a quantile at 2 to 0.015
    np.testing.assert_allclose(labels, mean + blurred * latents, atol=0.035)


@pytest.mark.slow
def test_neighbours_follow_the_density_and_the_law_at_its_edge():
    rows = gaussian(20_000, seed=1)
    inside = rows[np.abs(rows[:, 1]) < 1]
    reference = ConditionalReference(inside, 1, neighbors=800, sigma_data=1.0)
    latents = np.random.default_rng(2).standard_normal(2000).astype(np.float32)
    for place in (0.99, -0.99, 0.0):  # at 0.99 all neighbours lie on one side
        labels = labels_at(reference, place, latents)
        assert labels.mean() - np.sqrt(SPREAD_SQ) * latents.mean() == pytest.approx(RHO * place, abs=0.06)
        assert labels.std() / latents.std() == pytest.approx(np.sqrt(SPREAD_SQ), rel=0.08)


def test_rows_do_not_depend_on_the_others_of_their_batch():
    reference = ConditionalReference(gaussian(3000), 1, neighbors=100, sigma_data=1.0)
    draw = np.random.default_rng(3)
    one, other = (torch.from_numpy(draw.standard_normal((64, 2)).astype(np.float32)) for _ in range(2))
    other[10] = one[5]
    flow = Flow(Schedule("linear", 1e-3))
    effort = Effort()
    first, second = (label_given(rows, reference, flow, effort=effort) for rows in (one, other))
    assert torch.equal(first[5], second[10])
    assert (effort.rows, effort.evaluations, effort.pairs) == (128, 128 * 22, 128 * 22 * 100)


def test_equal_conditions_and_more_neighbours_than_rows():
    rows = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    rows[:, 1] = 2.0
    rows[:, 2] = np.repeat([0.0, 1.0], 25)
    reference = ConditionalReference(rows, 2, neighbors=25, sigma_data=1.0)
    given = np.array([[2.0, 0.0], [2.0, 1.0]], np.float32)
    nearby = reference.neighbourhood(given)
    means = nearby.posterior_mean(torch.zeros(2, 1), 0.0, 1.0)[:, 0].numpy()
    np.testing.assert_allclose(means, [rows[:25, 0].mean(), rows[25:, 0].mean()], rtol=1e-5, atol=1e-6)
    everything = ConditionalReference(rows, 2, neighbors=10**6, sigma_data=1.0).neighbourhood(given)
    assert everything.targets.shape == (2, 50, 1)
    assert torch.isfinite(everything.posterior_mean(torch.zeros(2, 1), 0.5, 1e-6)).all()
    assert ConditionalReference(rows, 2, neighbors=1, sigma_data=1.0).neighbourhood(given).targets.shape == (2, 1, 1)


@pytest.mark.parametrize("num_conditions", [0, 3, 4])
def test_targets_and_conditions_are_both_needed(num_conditions):
    with pytest.raises(ValueError, match="of 3 columns are conditions"):
        ConditionalReference(np.zeros((9, 3), np.float32), num_conditions, sigma_data=1.0)


def test_on_a_device(device):
    rows = gaussian(3000)
    given = torch.from_numpy(gaussian(32, seed=4))
    flow = Flow(Schedule("linear", 1e-3))
    here = label_given(given, ConditionalReference(rows, 1, dtype=torch.float64, sigma_data=1.0), flow)
    there = label_given(given.to(device), ConditionalReference(rows, 1, device=device, sigma_data=1.0), flow)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)
