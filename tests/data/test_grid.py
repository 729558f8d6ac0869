"""Finding the step of a column, and moving between values and cells."""

import numpy as np
import pytest

from sfg_dist.data.grid import Grid, find_grid, find_whole, grid_of_step, grid_of_type

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("step", "offset", "num_cells"),
    [
        (1, 0, 256),
        (0.1, -19.9, 500),
        (0.01, 985.85, 4000),
        (0.001, 0.082, 9000),
        (5, 3, 30),
        (100, 100, 90),
        (0.5, 0, 20),
        (1e-5, 0.0925, 2000),
        (0.25, 0.1, 40),
        (1e6, 0, 50),
        (2e-9, 1e-9, 100),
    ],
)
def test_step_is_found_through_rounding(step, offset, num_cells, dtype):
    cells = np.unique(np.concatenate([[0, 1, num_cells], RANDOM.integers(0, num_cells, 300)]))
    exact = np.array([round(offset + int(cell) * step, 12) for cell in cells])
    grid = find_grid(exact.astype(dtype).astype(np.float64))
    assert grid == Grid(pytest.approx(step), pytest.approx(offset))
    np.testing.assert_array_equal(grid.snap(exact.astype(dtype).astype(np.float64)), exact)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e9])
def test_continuous_values_have_no_grid(scale, dtype):
    values = (scale * RANDOM.standard_normal(400)).astype(dtype).astype(np.float64)
    assert find_grid(np.repeat(values, 2)) is None


def test_values_computed_by_arithmetic_are_on_the_grid():
    values = np.cumsum(np.full(50, 0.1))
    assert find_grid(values) == Grid(0.1, 0.1)
    np.testing.assert_array_equal(Grid(0.1, 0.1).snap(values), np.arange(1, 51) / 10)


@pytest.mark.parametrize("place", [1, 5, -2])
def test_one_value_among_many_is_enough_to_have_no_grid(place):
    values = np.arange(5000) * 0.01
    assert find_grid(values) == Grid(0.01, 0.0)
    values[place] += 0.004321987
    assert find_grid(values) is None


def test_two_values():
    assert find_grid(np.array([0.0, 1.0, 1.0])) == Grid(1.0, 0.0)
    assert find_grid(np.array([2.5, 7.0])) == Grid(4.5, 2.5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("largest", [2**22 + 3, 2**23 + 1, 2**24 - 1])
def test_whole_numbers_as_large_as_float32_holds(largest, dtype):
    values = np.unique(np.append(largest - RANDOM.integers(0, 3000, 500), largest)).astype(dtype).astype(float)
    assert find_grid(np.repeat(values, 2)) == Grid(1.0, values[0])
    assert find_whole(values) == Grid(1.0, values[0])


@pytest.mark.parametrize("largest", [2**49, 2**52 + 1, 2**53 - 1])
def test_whole_numbers_as_large_as_doubles_hold(largest):
    values = np.unique(np.array([largest - int(less) for less in RANDOM.integers(0, 10**6, 500) * 3], dtype=float))
    assert find_grid(values) == find_whole(values) == Grid(3.0, values[0])
    assert find_grid(np.append(values, 2.0**53)) is None


def test_large_decimals():
    values = np.unique(np.round(RANDOM.integers(0, 10**15, 300) / 100, 2))
    assert find_grid(values) == Grid(0.01, values[0])


@pytest.mark.parametrize("scale", [1e3, 1e7, 1e8, 1e9])
def test_float32_is_not_taken_for_whole_numbers(scale):
    values = np.unique((scale * RANDOM.standard_normal(400)).astype(np.float32).astype(float))
    assert find_whole(values) is None
    if scale <= 1e7:
        assert find_whole(np.unique(np.rint(values))) == Grid(1.0, np.rint(values[0]))


@pytest.mark.parametrize(
    ("values", "unit", "grid"),
    [
        ([3, 10, 24], 1.0, Grid(7.0, 3.0)),
        ([0.25, 0.3, 12.35], 0.01, Grid(0.05, 0.25)),
        ([1e13 + 0.01, 1e13 + 0.02, 1e13 + 5.5], 0.01, Grid(0.01, 1e13 + 0.01)),
        ([1.7e18, 1.7e18 + 6e10, 1.7e18 + 18e10], 1e9, Grid(6e10, 1.7e18)),
        ([0.5, 1.0], 1.0, None),
        ([0.123, 1.0], 0.01, None),
        ([4.0], 1.0, None),
        ([0.0, 2.0**53], 1.0, None),
    ],
)
def test_a_type_says_the_unit(values, unit, grid):
    assert grid_of_type(np.array(values, dtype=float), unit) == grid


@pytest.mark.parametrize("value", [0.0, 1e300, 1e-300])
def test_out_of_reach(value):
    assert find_grid(np.array([0.0, value])) is None


def test_given_step_follows_the_majority():
    values = np.array([0.2856, 2.0, 3.0, 3.0, 7.0, 8.5])
    grid = grid_of_step(values, 1.0)
    assert grid == Grid(1.0, 0.0)
    np.testing.assert_array_equal(grid.coordinates(values), values)
    half = grid_of_step(np.array([0.5, 1.5, 2.5, 3.0]), 1.0)
    assert half == Grid(1.0, 0.5)


def test_given_step_on_float32():
    values = np.array([0.1, 0.4, 1036.6, 12.3], np.float32).astype(np.float64)
    grid = grid_of_step(values, 0.1)
    assert grid == Grid(0.1, 0.1)
    np.testing.assert_array_equal(grid.snap(values), [0.1, 0.4, 1036.6, 12.3])
