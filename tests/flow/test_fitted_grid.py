"""Time grids fitted to the data: their form, their gain on rows that were no pilots, and what is refused."""

import itertools
import math

import numpy as np
import pytest
import torch

from sfg_dist.flow import Effort, Flow, Reference, Schedule, fit_time_grid, graded_grid, label_latents
from sfg_dist.flow.fitted_grid import NUM_KNOTS, NUM_PILOTS, fit_grid, grid_points

SCHEDULE = Schedule("linear", 1e-4)


@pytest.fixture(scope="module")
def heavy_tailed():
    """20,000 rows of log-normal columns, standardised: enough for the sparse engine."""
    rows = np.exp(0.7 * np.random.default_rng(0).standard_normal((20_000, 3)))
    rows = rows.clip(*np.quantile(rows, [0.0005, 0.9995], axis=0))
    return ((rows - rows.mean(axis=0)) / rows.std(axis=0)).astype(np.float32)


@pytest.fixture(scope="module")
def few_moons(moons):
    return moons[::4].astype(np.float32)


def errors(labels, exact):
    return np.linalg.norm(labels - exact, axis=1)


def test_even_density_is_the_graded_grid():
    points = grid_points(SCHEDULE, 22, np.zeros(NUM_KNOTS))
    assert points == pytest.approx(graded_grid(SCHEDULE, 22), rel=1e-3)
    assert points[-1] == math.log(1e-4)


@pytest.mark.parametrize("theta", [[1.0, 0.0, 0.0, 0.0, -1.0], [-1.5, 0.0, 1.5, 0.0, -1.5]])
def test_points_fall_from_end_to_end_and_lie_where_the_density_is(theta):
    points = grid_points(SCHEDULE, 64, np.array(theta))
    assert len(points) == 65
    assert (points[0], points[-1]) == (0.0, math.log(1e-4))
    assert all(after < before for before, after in itertools.pairwise(points))
    # Steps in u = (lambda / log t_min)^(2/3) are inversely as the density.
    steps = np.diff((np.array(points) / points[-1]) ** (2 / 3))
    middles = (np.arange(64) + 0.5) / 64
    places = np.interp(middles, np.arange(65) / 64, (np.array(points) / points[-1]) ** (2 / 3))
    density = np.interp(places, np.linspace(0, 1, NUM_KNOTS), np.exp(theta))
    products = (steps * density)[1:]
    assert products == pytest.approx(np.full(63, products.mean()), rel=0.05)


def solve_with(error_of):
    """A made-up flow: the pilots' errors are those of a grid, one column."""
    calls = []

    def solve(grid):
        calls.append(grid)
        return np.outer(np.linspace(1.0, 2.0, NUM_PILOTS), np.atleast_1d(error_of(grid))), 1.0

    return solve, calls


def test_finds_the_density_of_a_made_up_error():
    # The error of a step is its length to the fifth, and a hundred times as much in the second half of u.
    def error_of(grid):
        places = (np.array(grid) / grid[-1]) ** (2 / 3)
        return 100 * ((np.diff(places) ** 5) * (1 + 99 * (places[1:] > 0.5))).sum()

    solve, calls = solve_with(error_of)
    fitted = fit_grid(solve, np.zeros((NUM_PILOTS, 1)), schedule=SCHEDULE, num_steps=20)
    assert not fitted.is_graded
    assert len(calls) <= 22
    assert fitted.center == pytest.approx(fitted.tail, rel=1e-4)
    assert fitted.center == pytest.approx(error_of(fitted.points) / error_of(graded_grid(SCHEDULE, 20)), rel=0.1)
    assert fitted.center < 0.5


@pytest.mark.parametrize("error_of", [lambda grid: 0.0, lambda grid: float("nan")], ids=["zero", "nan"])
@pytest.mark.parametrize("num_steps", [1, 12])
def test_falls_back_to_the_graded_grid(error_of, num_steps):
    solve, _ = solve_with(error_of)
    fitted = fit_grid(solve, np.zeros((NUM_PILOTS, 1)), schedule=SCHEDULE, num_steps=num_steps)
    assert fitted.is_graded
    assert list(fitted.points) == graded_grid(SCHEDULE, num_steps)
    assert (fitted.cost, fitted.center, fitted.tail) == (1, 1, 1)


@pytest.mark.long
@pytest.mark.slow
def test_lower_error_on_two_moons_for_as_many_evaluations(moons):
    reference = Reference(moons.astype(np.float32), sigma_data=1.0)
    fitted = fit_time_grid(reference, Flow(SCHEDULE, num_evaluations=20))
    again = fit_time_grid(Reference(moons.astype(np.float32), sigma_data=1.0), Flow(SCHEDULE, num_evaluations=20))
    assert fitted == again
    assert not fitted.is_graded
    assert max(fitted.center, fitted.tail, fitted.cost) <= 1
    latents = np.random.default_rng(1).standard_normal((400, 2))
    exact = label_latents(latents, moons, num_evaluations=96, dtype=torch.float64, batch_size=400, sigma_data=1.0)
    graded, better = (
        errors(label_latents(latents, reference, num_evaluations=20, time_grid=kind, sigma_data=1.0), exact)
        for kind in ("graded", "fitted")
    )
    assert np.median(better) < 0.8 * np.median(graded)
    assert np.quantile(better, 0.9) < np.quantile(graded, 0.9)


@pytest.mark.slow
def test_less_work_at_equal_error_where_evaluations_differ_in_cost(heavy_tailed):
    reference = Reference(heavy_tailed, sigma_data=1.0)
    latents = np.random.default_rng(1).standard_normal((512, 3)).astype(np.float32)
    exact = label_latents(latents, reference, t_min=1e-3, num_evaluations=48, tolerance=1e-4, sigma_data=1.0)
    center, tail, pairs = [], [], []
    for kind in ("graded", "fitted"):
        effort = Effort()
        labels = label_latents(
            latents,
            reference,
            t_min=1e-3,
            num_evaluations=20,
            time_grid=kind,
            batch_size=512,
            effort=effort,
            sigma_data=1.0,
        )
        error = errors(labels, exact)
        center.append(np.median(error))
        tail.append(np.quantile(error, 0.9))
        pairs.append(effort.pairs)
    assert pairs[1] < 0.9 * pairs[0]
    assert center[1] < center[0]
    assert tail[1] < tail[0]


@pytest.mark.slow
def test_the_grid_is_fitted_once_and_kept_with_the_reference(moons, monkeypatch):
    from sfg_dist.flow import labeling

    reference, calls = Reference(moons[:300], sigma_data=1.0), []
    monkeypatch.setattr(labeling, "fit_grid", lambda *args, **kwargs: calls.append(1) or fit_grid(*args, **kwargs))
    latents = np.random.default_rng(0).standard_normal((5, 2))
    settings = {"t_min": 1e-3, "num_evaluations": 10}
    first = label_latents(latents, reference, time_grid="fitted", **settings, sigma_data=1.0)
    again = label_latents(latents, reference, time_grid="fitted", **settings, sigma_data=1.0)
    assert len(calls) == 1
    points = fit_time_grid(reference, Flow(Schedule("linear", 1e-3), num_evaluations=10)).points
    by_hand = label_latents(latents, reference, time_grid=points, **settings, sigma_data=1.0)
    assert np.array_equal(first, again)
    assert np.array_equal(first, by_hand)
    label_latents(latents, reference, time_grid="fitted", **(settings | {"num_evaluations": 12}), sigma_data=1.0)
    assert len(calls) == 2


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "num_evaluations", "direction", "name"),
    [
        ("rk4", 40, "decode", "linear"),
        ("dopri5", 31, "decode", "linear_floor"),
        ("exp_abm4", 24, "encode", "linear"),
        ("heun", 24, "encode", "linear_floor"),
    ],
)
def test_any_solver_and_direction(few_moons, solver, num_evaluations, direction, name):
    reference = Reference(few_moons, sigma_data=1.0)
    settings = {"t_min": 1e-2, "schedule": name, "direction": direction, "solver": solver}
    starts = np.random.default_rng(2).standard_normal((300, 2)).astype(np.float32)
    if direction == "encode":
        starts = few_moons[:300] + 0.1 * starts
    exact = label_latents(
        starts,
        few_moons,
        **(settings | {"solver": "rk4"}),
        num_evaluations=320,
        dtype=torch.float64,
        batch_size=300,
        sigma_data=1.0,
    )
    graded, fitted = (
        errors(
            label_latents(
                starts, reference, **settings, num_evaluations=num_evaluations, time_grid=kind, sigma_data=1.0
            ),
            exact,
        )
        for kind in ("graded", "fitted")
    )
    assert np.median(fitted) <= 1.1 * np.median(graded)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_grid": "fitted", "solver_tolerance": 1e-3}, "solver_tolerance"),
        ({"time_grid": "fitted", "solver": "rk4", "num_evaluations": 30}, "multiple of 4"),
        ({"time_grid": [0.0, -1.0, math.log(1e-4)], "num_evaluations": 3}, "4 points"),
        ({"time_grid": [0.0, -1.0, -2.0], "num_evaluations": 2}, "from 0 to log t_min"),
        ({"time_grid": [-0.1, -1.0, math.log(1e-4)], "num_evaluations": 2}, "from 0 to log t_min"),
        ({"time_grid": [0.0, -2.0, -1.0, math.log(1e-4)], "num_evaluations": 3}, "fall"),
        ({"time_grid": [0.0, float("nan"), math.log(1e-4)], "num_evaluations": 2}, "fall"),
    ],
)
def test_refuses(moons, settings, message):
    with pytest.raises(ValueError, match=message):
        label_latents(np.zeros((2, 2)), moons[:50], **settings, sigma_data=1.0)
