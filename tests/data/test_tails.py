"""The law beyond a column's outermost training rows: fitted, inverted, and what a row out there costs."""

import numpy as np
import pytest
from scipy import integrate, stats

from sfg_dist.data import Transform, prepare
from sfg_dist.data.quantile import fit_curve
from sfg_dist.data.tails import LEAST_SHAPE, Tail, fit_tails, tails
from sfg_dist.job.errors import DataError

LAWS = {
    "cauchy": (stats.cauchy(), 1.0),
    "t2": (stats.t(2), 0.5),
    "pareto": (stats.pareto(2.5), 0.4),
    "normal": (stats.norm(), LEAST_SHAPE),
    "uniform": (stats.uniform(), LEAST_SHAPE),
}


def draw(name, num_rows=20_000, seed=0):
    return LAWS[name][0].rvs(num_rows, random_state=seed)


def fit(values, bounds="observed", **arguments):
    return Transform.fit(values[:, None], ["a"], bounds=bounds, **arguments)


def cost(transform, values):
    """Nats that values cost under a law that is normal in the flow's coordinates."""
    rows = np.asarray(values, dtype=np.float64)[:, None]
    scores = transform.forward(rows)[:, 0].astype(np.float64)
    return 0.5 * scores**2 + 0.5 * np.log(2 * np.pi) - transform.log_det_jacobian(rows)


@pytest.mark.parametrize("name", LAWS)
def test_the_shape_is_that_of_the_law(name):
    values = draw(name)
    scale, shape = fit_tails(values, fit_curve(values, None))[1]
    assert shape == pytest.approx(LAWS[name][1], abs=0.2)
    # the mean excess of the fitted law's lower half, beside that of the true law, given that the row is exceeded
    law, end = LAWS[name][0], values.max()
    truth = law.isf(law.sf(end) / 2) - end
    assert scale * (2**shape - 1) / shape == pytest.approx(truth, rel=1.5) or name == "uniform"


def test_an_outlier_decides_nothing():
    values = np.random.default_rng(0).standard_normal(5000)
    far = np.append(values[1:], 1e9)
    laws = [fit_tails(rows, fit_curve(rows, None))[1] for rows in (values, far)]
    assert laws[1][1] == LEAST_SHAPE
    assert laws[1][0] < 4 * laws[0][0]


@pytest.mark.parametrize("values", [np.arange(8.0), np.repeat([0.0, 1.0], 500)], ids=["few", "equal"])
def test_rows_that_are_few_or_equal_have_a_law_of_the_slope_of_the_curve(values):
    """Straight on, the rows at 1e6 would cost more than 1e10 nats."""
    transform = fit(values)
    curve = transform.curves[0]
    slopes = np.diff(curve.values)[[0, -1]] / np.maximum(np.abs(curve.scores[[1, -2]]), 1)
    np.testing.assert_allclose(transform.tails[0], np.stack([slopes, [LEAST_SHAPE] * 2], axis=1))
    assert (cost(transform, [-1e6, 1e6]) < 200).all()
    # samples of an open range stay near the rows
    assert np.abs(fit(values, "none").inverse(np.array([[-4.0], [4.0]]))).max() < 12 * np.ptp(values)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("steps", [{}, {"a": 2.0**-20}], ids=["free", "grid"])
def test_an_atom_says_nothing_of_the_rows_beyond_it(side, steps):
    """With the zeros among its largest rows the law had shape 1.5, and the largest sample was 170,246."""
    random = np.random.default_rng(0)
    known = np.round(random.exponential(size=60) * 2**20) / 2**20
    values = side * np.concatenate([known, np.zeros(3940)])
    transform = fit(values, "none", atoms={"a": np.zeros(1)}, steps=steps)
    law = transform.tails[0, (side + 1) // 2]
    expected = fit_tails(known, fit_curve(known, None))[1]
    assert law[1] == expected[1]
    assert law[0] == pytest.approx(expected[0], rel=1e-4)
    if not steps:  # on a grid samples stay within the rows
        assert transform.inverse(random.standard_normal((20_000, 1))).std() < 2 * values.std()


@pytest.mark.parametrize("name", LAWS)
def test_held_out_rows_cost_what_they_cost_under_the_law(name):
    """Straight on, a few rows of the Cauchy law had the mean far beyond 10,000 nats."""
    transform, held_out = fit(draw(name)), draw(name, 100_000, seed=1)
    costs, truth = cost(transform, held_out), -LAWS[name][0].logpdf(held_out)
    assert costs.mean() == pytest.approx(truth.mean(), abs=0.04)  # what the knots follow by chance
    assert (costs - truth).max() < 25


@pytest.mark.parametrize("bounds", ["observed", "none", {"a": (-5e3, 4e4)}])
@pytest.mark.parametrize("name", ["cauchy", "normal"])
def test_the_density_integrates_to_one(name, bounds):
    values = draw(name, 500).clip(-4000, 4000)
    transform = fit(values, bounds)
    low, high = bounds["a"] if isinstance(bounds, dict) else (-1e12, 1e12)
    curve = transform.curves[0]
    for side, end, first in ((-1, low, curve.values[1]), (1, high, curve.values[-2])):
        # over log of the distance from the row
        distance = np.geomspace(1e-9, abs(end - first), 20_001)
        share = integrate.simpson(np.exp(-cost(transform, first + side * distance)) * distance, np.log(distance))
        assert share == pytest.approx(stats.norm.sf(abs(curve.scores[(1, -2)[side > 0]])), rel=0.01)


@pytest.mark.parametrize("bounds", ["none", {"a": (-np.inf, 1e5)}, {"a": (-1e5, 1e7)}])
def test_values_far_out_come_back(bounds):
    transform = fit(draw("cauchy", 3000).clip(-9e4, 9e4), bounds)
    ends = transform.bounds[0].clip(-1e9, 1e9)
    far = np.concatenate([-np.geomspace(0.999 * -ends[0], 1e3, 40), np.geomspace(1e3, 0.999 * ends[1], 40)])
    flow = transform.forward(far[:, None])
    assert (np.diff(flow[:, 0]) > 0).all()
    np.testing.assert_allclose(transform.inverse(flow)[:, 0], far, rtol=1e-4)


def test_scores_of_any_size_are_finite_values():
    transform = fit(draw("cauchy", 3000), "none")
    values = transform.inverse(np.array([[-1e30], [-1e3], [1e3], [1e30]]))
    assert np.isfinite(values).all()


def test_samples_within_the_observed_range_are_those_of_the_curve_alone():
    values = draw("t2", 2000)
    transform, line = fit(values), np.linspace(-9, 9, 5001)
    expected = transform.curves[0].to_values(line).clip(values.min(), values.max())
    np.testing.assert_array_equal(transform.inverse(line[:, None])[:, 0], expected)


def test_a_saved_law_is_read_and_a_negative_one_refused():
    transform = fit(draw("t2", 2000), "none")
    arrays, words = transform.to_arrays(), transform.to_metadata()
    again = Transform.from_arrays(arrays, words)
    np.testing.assert_array_equal(again.tails, transform.tails)
    with pytest.raises(ValueError, match="a tail below 0"):
        Transform.from_arrays(arrays | {"tails": -arrays["tails"]}, words)


@pytest.mark.parametrize("law", [(1.0, 1.6), (0.0, 0.5), (1e-320, 0.5)], ids=["shape", "no_scale", "small_scale"])
def test_a_saved_law_that_no_fit_gives_is_refused(law):
    transform = fit(draw("t2", 2000), "none")
    damaged = transform.to_arrays() | {"tails": np.array([[(1.0, 0.1), law]])}
    with pytest.raises(DataError, match=r"the saved transform is damaged: a tail whose scale is too small, or whose"):
        Transform.from_arrays(damaged, transform.to_metadata())


def test_a_missing_value_has_no_law_behind_it(tmp_path):
    rows = np.random.default_rng(0).standard_t(2, (2000, 3))
    rows[:, 1:] = rows[:, :1] + 0.1 * rows[:, 1:]
    rows[rows[:, 0] < -1, 1] = np.nan
    rows[rows[:, 0] > 1, 2] = np.nan
    np.save(tmp_path / "t.npy", rows)
    transform = prepare(tmp_path / "t.npy", missing="keep", dequantize="none").transform
    sides = []
    for column in range(3):
        found = tails(transform.curves[column], transform.bounds[column], transform.tails[column])
        sides.append([tail.side for tail in found])
    assert sides == [[-1, 1], [1], [-1]]
    far = np.nanmedian(rows, axis=0) + np.array([[0.0, 1e6, -1e6]])
    assert np.abs(transform.forward(far)).max() < 12


def test_a_column_on_a_grid_has_laws():
    values = np.round(draw("t2", 4000))
    transform = fit(values, steps={"a": 1.0}, noise=np.random.default_rng(1).random((4000, 1)))
    assert (transform.tails[0] > 0).all()
    line = np.arange(-20_000.0, 20_000)
    assert np.exp(-cost(transform, line)).sum() == pytest.approx(1, abs=0.01)
    assert cost(transform, [-1e6, 1e6]).max() < 150


def test_an_atom_has_no_law_behind_it():
    values = np.random.default_rng(0).standard_t(2, 3000).clip(-1, None)
    transform = fit(values, atoms={"a": np.array([-1.0])})
    found = tails(transform.curves[0], transform.bounds[0], transform.tails[0])
    assert [tail.side for tail in found] == [1]


def test_a_model_without_laws_goes_on_as_before():
    curve = fit_curve(draw("normal", 1000), None)
    none, (value, slope) = np.zeros(2), (curve.values[-2], np.diff(curve.values[-2:])[0])
    assert Tail.of(curve, np.inf, 1, none) is None
    assert Tail.of(curve, value, 1, none) is None
    tail = Tail.of(curve, value + 3, 1, none)
    assert (tail.shape, tail.rate) == (0, pytest.approx(curve.scores[-2] / slope))


def test_the_numbers_of_test_rows_are_those_of_the_table(tmp_path):
    rows = np.random.default_rng(0).standard_normal((300, 2))
    np.savez(tmp_path / "t.npz", X=rows, test=rows[:30] + 9)
    np.save(tmp_path / "t.npy", rows)
    for keys in ({}, {"shuffle": "none"}, {"max_rows": 200}):
        prepared = prepare(tmp_path / "t.npy", dequantize="none", **keys)
        np.testing.assert_array_equal(rows[prepared.test_places], prepared.test)
    passes = prepare(tmp_path / "t.npy", dequantize="none", shuffle="none", memory_gib=1e-9)
    assert not passes.is_whole
    np.testing.assert_array_equal(rows[passes.test_places], passes.test)
    split = prepare(tmp_path / "t.npz", arrays={"train": "X", "validation": None, "test": "test"})
    np.testing.assert_array_equal(split.test_places, np.arange(30))
