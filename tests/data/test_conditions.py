"""Columns that a sample is given: their place in a prepared table, and what users may say of them."""

import numpy as np
import pytest

from sfg_dist.data import Transform, prepare
from sfg_dist.data.conditions import ColumnSplit, read_given
from sfg_dist.data.toy import draw, log_density, wave_law
from sfg_dist.job.errors import ConfigError, DataError


@pytest.fixture
def table(tmp_path):
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((500, 4))
    rows[:, 1] = 7.0
    rows[:, 2] = generator.poisson(4.0, 500)
    np.save(tmp_path / "table.npy", rows)
    return str(tmp_path / "table.npy"), rows


def test_conditions_become_the_last_columns_in_the_order_they_are_named(table):
    source, rows = table
    prepared = prepare(source, condition=["c2", "c0"], constant="keep", shuffle="none")
    assert prepared.columns == ("c1", "c3", "c2", "c0")
    np.testing.assert_array_equal(prepared.train, rows[:400][:, [1, 3, 2, 0]])
    split = ColumnSplit.of(prepared.transform, ("c2", "c0"))
    assert (split.targets.tolist(), split.conditions.tolist(), split.places.tolist()) == ([0], [1, 2], [2, 3])
    given = prepared.train[:50, 2:]
    flow = split.flow_conditions(prepared.transform, given)
    np.testing.assert_array_equal(flow, prepared.transform.forward(prepared.train[:50])[:, 1:])
    joined = split.join(prepared.transform, np.zeros((50, 1), np.float32), given)
    np.testing.assert_array_equal(joined[:, 2:], given)  # exactly, whatever the transform does
    assert (joined[:, 0] == 7.0).all()


def test_a_known_density_follows_its_columns():
    prepared = prepare("wave", condition=["x"], max_rows=1000)
    assert prepared.columns == ("y", "x")
    rows = prepared.test
    np.testing.assert_allclose(prepared.log_density(rows), log_density("wave", rows[:, ::-1]))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (["c9"], r"no column 'c9' \(data.condition\)"),
        (["c1"], "column 'c1' of data.condition is constant"),
        (["c0", "c2", "c3"], "every column that changes"),
    ],
)
def test_conditions_that_cannot_be(table, condition, message):
    with pytest.raises(DataError, match=message):
        prepare(table[0], condition=condition, constant="keep")


def test_a_given_value_on_a_grid_goes_to_the_middle_of_its_cell():
    rows = np.random.default_rng(0).poisson(4.0, (400, 2)).astype(float)
    transform = Transform.fit(
        rows, ("a", "b"), steps={"b": 1.0}, noise=np.random.default_rng(1).random((400, 2)), kind="standardize"
    )
    split = ColumnSplit.of(transform, ("b",))
    flow = split.flow_conditions(transform, np.array([[3.0]]))
    assert flow[0, 0] == pytest.approx((3.5 - transform.location[1]) / transform.scale[1], rel=1e-6)


@pytest.mark.parametrize(
    "given",
    [{"b": 2, "a": 1.0}, {"a": [1.0], "b": [2.0]}, [1.0, 2.0], [[1, 2]], np.array([[1.0, 2.0]], np.float32)],
    ids=str,
)
def test_one_row_for_all(given):
    np.testing.assert_array_equal(read_given(given, ("a", "b"), 5), [[1.0, 2.0]])


def test_a_row_for_each():
    rows = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(read_given(rows, ("a", "b"), 3), rows)
    np.testing.assert_array_equal(read_given({"a": rows[:, 0], "b": 9}, ("a", "b"), 3), [[0, 9], [2, 9], [4, 9]])
    np.testing.assert_array_equal(read_given(rows[:, 0], ("a",), 3), rows[:, :1])
    assert read_given(None, (), 3) is None


@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        (None, ("a", "b"), "needs values of a, b"),
        ([1.0], (), "trained without data.condition"),
        ({"a": 1.0}, ("a", "b"), "'b' is missing"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, ("a", "b"), "'c' is not one of them"),
        ([1.0, 2.0, 3.0], ("a", "b"), r"shape \(1, 3\), expected \(1, 2\) or \(4, 2\)"),
        (np.zeros((3, 2)), ("a", "b"), r"shape \(3, 2\)"),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0, 3.0]}, ("a", "b"), "expected numbers for a, b"),
        ({"a": "warm", "b": 1.0}, ("a", "b"), "given: 'a': 'warm' is no number"),
        ([[1.0, 2.0], [1.0, 2.0], [1.0, np.nan], [1.0, 2.0]], ("a", "b"), "'b' is nan in row 2"),
        ([np.inf, 1.0], ("a", "b"), "'a' is inf in row 0"),
    ],
)
def test_what_is_given_wrongly(given, names, message):
    with pytest.raises(ConfigError, match=message):
        read_given(given, names, 4)


def test_the_wave_has_its_law():
    rows = draw("wave", 200_000, seed=0)
    near = rows[np.abs(rows[:, 1] - 2.0) < 0.02, 0]
    mean, spread = wave_law(np.array(2.0))
    assert near.mean() == pytest.approx(mean, abs=0.04)
    assert near.std() == pytest.approx(spread, rel=0.06)
    places = np.linspace(-4, 5, 4001)
    for given in (0.0, 1.0, 3.0):
        density = np.exp(log_density("wave", np.column_stack([places, np.full(4001, given)])))
        assert density.sum() * (places[1] - places[0]) == pytest.approx(1 / 3, rel=1e-6)
    assert log_density("wave", np.array([[0.0, 3.1], [0.0, -0.1]])).tolist() == [-np.inf, -np.inf]
