"""The number of rows to a probability of a column's curve is chosen by the values, in whatever order they are."""

import warnings

import numpy as np
import pytest

from sfg_dist.data import Transform, prepare
from sfg_dist.data.quantile import choose_spacing, fit_curve


@pytest.mark.parametrize("name", ["normal", "heaps"])
def test_it_does_not_depend_on_the_order_of_the_rows(name):
    random = np.random.default_rng(0)
    values = random.standard_normal(8000)
    if name == "heaps":
        values = random.integers(0, 40, 8000) + 0.02 * values
    expected = {"normal": 200, "heaps": 20}[name]
    knots = fit_curve(values, None).values
    for rows in (values, np.sort(values), np.sort(values)[::-1]):
        assert choose_spacing(rows, len(rows)) == expected
        np.testing.assert_array_equal(fit_curve(rows, None).values, knots)
    pairs = np.repeat(values, 2)
    assert choose_spacing(pairs, len(pairs)) == expected


def test_a_sorted_file_of_a_smooth_law_has_few_knots(tmp_path):
    values = np.sort(np.random.default_rng(0).standard_normal((8000, 2)), axis=0)
    np.save(tmp_path / "t.npy", values)
    for memory in ({}, {"memory_gib": 1e-9}):  # whole, and in passes
        prepared = prepare(tmp_path / "t.npy", shuffle="none", dequantize="none", **memory)
        assert all(len(curve.values) < 80 for curve in prepared.transform.curves)


def test_values_too_close_for_a_quotient_of_their_gaps_are_no_trouble():
    values = 10 ** -(np.random.default_rng(0).random(3000) * 320)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transform = Transform.fit(values, ["a"])
        flow = transform.forward(values)
    assert np.isfinite(flow).all()
    assert np.isfinite(1 / transform.tails[0, :, 0]).all()
