"""The chosen blur against brute force, and on the tables that mislead a leave-one-out likelihood."""

import numpy as np
import pytest
import torch

from sfg_dist.flow import Schedule, bandwidth
from sfg_dist.flow.bandwidth import choose_t_min


def brute_force(rows, t, schedule="linear"):
    """Leave-one-out mean log likelihood by the whole matrix of differences, duplicates left out together."""
    noise = Schedule(schedule, t)
    blur_sq = noise.beta_sq(noise.t_end) / noise.alpha(noise.t_end) ** 2
    distance_sq = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    exponent = np.where(distance_sq == 0, -np.inf, -distance_sq / (2 * blur_sq))
    top = exponent.max(axis=1)
    log_sum = top + np.log(np.exp(exponent - top[:, None]).sum(axis=1))
    others = (distance_sq > 0).sum(axis=1)
    return (log_sum - np.log(others) - rows.shape[1] / 2 * np.log(2 * np.pi * blur_sq)).mean()


def table(num_rows, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((num_rows, dim))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "linear_floor"])
@pytest.mark.parametrize("tile", [(256, 1024), (7, 1), (16, 13)])
def test_every_candidate_is_the_brute_force(schedule, tile, device, monkeypatch):
    monkeypatch.setattr(bandwidth, "_TILE", {device.type: tile, "cuda": tile})
    rows = np.concatenate([table(60, 3), table(10, 3)[:4], [[9.0, -9.0, 9.0]]])  # four duplicates and an outlier
    choice = choose_t_min(torch.from_numpy(rows).to(device), schedule=schedule, sigma_data=1.0)
    assert choice.num_duplicates == 4
    for t, log_likelihood in choice.candidates:
        assert log_likelihood == pytest.approx(brute_force(rows, t, schedule), rel=1e-5, abs=1e-4)
    assert (choice.t_min, choice.log_likelihood) == max(choice.candidates, key=lambda pair: pair[1])
    assert [t for t, _ in choice.candidates] == sorted(t for t, _ in choice.candidates)
    assert (choice.candidates[0][0], choice.candidates[-1][0]) == (1e-5, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("num_rows", "dim"), [(400, 1), (400, 2), (300, 8)])
def test_maximum_is_the_brute_force_maximum(num_rows, dim):
    rows = table(num_rows, dim)
    choice = choose_t_min(rows, sigma_data=1.0)
    fine = np.geomspace(1e-3, 0.49, 120)
    values = [brute_force(rows, t) for t in fine]
    assert abs(np.log(choice.t_min / fine[np.argmax(values)])) < 0.2
    assert choice.log_likelihood > max(values) - 5e-3
    assert not choice.is_floor
    assert not choice.is_ceiling


def test_moons(moons):
    choice = choose_t_min(moons, sigma_data=1.0)
    assert 5e-4 < choice.t_min < 2e-2
    assert len(choice.candidates) < 25


def test_gaussian_sample_asks_for_silvermans_blur():
    rows = table(2000, 1)
    choice = choose_t_min(rows, max_queries=2000, sigma_data=1.0)
    sigma = np.sqrt(choice.t_min) / (1 - choice.t_min)
    silverman = 1.06 * 2000 ** (-1 / 5)
    assert silverman / 2 < sigma < silverman * 2


def test_duplicates_do_not_call_for_less_blur():
    rows = table(300, 2)
    once, thrice = choose_t_min(rows, sigma_data=1.0), choose_t_min(np.repeat(rows, 3, axis=0), sigma_data=1.0)
    assert thrice.num_duplicates == 600
    assert thrice.t_min == pytest.approx(once.t_min)
    assert thrice.log_likelihood == pytest.approx(once.log_likelihood, abs=1e-5)
    assert not thrice.is_floor


def test_negative_zero_is_a_duplicate_of_zero():
    rows = np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, 3.0]])
    assert choose_t_min(rows, sigma_data=1.0).num_duplicates == 1


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_float32_rows_far_from_the_origin(offset, device):
    # The offset costs the input its digits (6e-5 here), not the distances theirs.
    rows = torch.from_numpy(table(400, 3) * 0.05 + offset).float().to(device)
    exact = rows.double().cpu().numpy()
    choice = choose_t_min(rows, sigma_data=1.0)
    assert choice.log_likelihood == pytest.approx(brute_force(exact - offset, choice.t_min), abs=1e-4)


def test_one_dense_cluster_far_out():
    # |x| of 300 beside a cluster of width 0.01: in float32 the expanded square would be noise of 5e-3, sigma^2 is 1e-5.
    rows = np.concatenate([table(300, 2) * 0.01 + 300, table(10, 2) - 300])
    choice = choose_t_min(rows, sigma_data=1.0)
    assert choice.log_likelihood == pytest.approx(brute_force(rows, choice.t_min), rel=1e-5)


def test_bounds_are_reported():
    lattice = np.repeat(np.arange(10.0), 5)[:, None] + 1e-7 * np.arange(50)[:, None]
    choice = choose_t_min(lattice, floor=1e-4, sigma_data=1.0)
    assert choice.is_floor
    assert choice.t_min == 1e-4
    wide = choose_t_min(table(50, 2) * 100, sigma_data=1.0)
    assert wide.is_ceiling
    assert wide.t_min == 0.5


def test_queries_are_a_seeded_sample():
    rows = table(3000, 2)
    first, again, whole = (choose_t_min(rows, max_queries=number, sigma_data=1.0) for number in (200, 200, 3000))
    assert first == again
    assert whole.log_likelihood == pytest.approx(first.log_likelihood, abs=0.3)
    assert 0.4 < first.t_min / whole.t_min < 2.5


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (np.zeros(3), {}, "table"),
        (np.zeros((0, 2)), {}, "table"),
        (np.zeros((1, 2)), {}, "two different rows"),
        (np.ones((5, 2)), {}, "two different rows"),
        (np.array([[0.0], [np.nan]]), {}, "row 1"),
        (np.eye(3), {"floor": 0.0}, "floor"),
        (np.eye(3), {"floor": 0.5}, "floor"),
        (np.eye(3), {"max_queries": 0}, "max_queries"),
        (np.eye(3), {"schedule": "cosine"}, "schedule"),
    ],
)
def test_refuses_bad_calls(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        choose_t_min(rows, **settings, sigma_data=1.0)
