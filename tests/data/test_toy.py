"""Toy sets: the density integrates to one, and is that of the rows drawn."""

from functools import lru_cache

import numpy as np
import pytest

from sfg_dist.data import open_table
from sfg_dist.data.toy import NAMES, draw, log_density

HALF_WIDTH = {"moons": 3.0, "circles": 2.0, "spirals": 4.2, "pinwheel": 3.2, "8gaussians": 3.5}


@lru_cache
def grid_density(name, num_cells):
    """Density at the centres of square cells around the set, the cells' area, and their edges."""
    half = HALF_WIDTH.get(name, 5.0)
    edges = np.linspace(-half, half, num_cells + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    places = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.exp(log_density(name, places)), (edges[1] - edges[0]) ** 2, edges


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one(name):
    density, area, _ = grid_density(name, 250)  # shared with the next test
    assert density.sum() * area == pytest.approx(1, abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_density_is_that_of_the_rows(name):
    num_rows, fine, coarse = 20_000, 250, 25
    density, area, edges = grid_density(name, fine)
    ratio = fine // coarse
    expected = density.reshape(coarse, ratio, coarse, ratio).sum(axis=(1, 3)) * area * num_rows
    counts, _, _ = np.histogram2d(*draw(name, num_rows, seed=3).T, bins=edges[::ratio])
    is_filled = expected > 20
    assert counts[is_filled].sum() > 0.9 * num_rows
    chi_sq = (counts - expected)[is_filled] ** 2 / expected[is_filled]
    # one cell's statistic has mean 1 and variance 2
    assert chi_sq.mean() < 1 + 5 * np.sqrt(2 / is_filled.sum())


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_their_number(name):
    rows = draw(name, 2500, seed=1)
    np.testing.assert_array_equal(rows[:1030], draw(name, 1030, seed=1))
    assert not np.array_equal(rows, draw(name, 2500, seed=2))
    assert np.isfinite(log_density(name, rows)).all()


@pytest.mark.parametrize("name", NAMES)
def test_far_away_is_not_nan(name):
    density = log_density(name, np.array([[1e3, -1e3], [0.0, 0.0]]))
    assert not np.isnan(density).any()
    assert density[0] < -1e4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moons", "spirals"])
def test_quadrature_has_converged(name):
    rows = draw(name, 200, seed=0)
    brute = _brute_force(name, rows)
    np.testing.assert_allclose(log_density(name, rows), brute, atol=1e-5)


def _brute_force(name, rows):
    """The density as the mean of Gaussians at many points of the curve, by its definition."""
    u = (np.arange(40_000) + 0.5) / 40_000
    if name == "moons":
        noise, upper = 0.05, np.stack([np.cos(np.pi * u), np.sin(np.pi * u)], axis=1)
        curve = np.concatenate([upper, [1, 0.5] - upper])
    else:
        angle = 3 * np.pi * np.sqrt(u)
        arm = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 3
        noise, curve = 0.08, np.concatenate([arm, -arm])
    density = [np.exp(-np.sum((row - curve) ** 2, axis=1) / (2 * noise**2)).mean() for row in rows]
    return np.log(density) - np.log(2 * np.pi * noise**2)


def test_table_carries_its_density():
    table = open_table("rings", seed=5)
    assert table.values.shape == (20_000, 2)
    assert table.log_density is not None
    np.testing.assert_array_equal(table.log_density(table.values[:9]), log_density("rings", table.values[:9]))
    assert open_table("rings", columns=["y", "x"], max_rows=9).log_density is None


def test_unknown_name():
    with pytest.raises(ValueError, match="unknown toy set 'moon'"):
        draw("moon", 1, 0)
