"""Cells of columns: which values are cells of their own, and that cells are what the map makes of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from sfg_dist.data.cells import MAX_CELLS, cell_edges, draws_cells
from sfg_dist.data.fitting import ColumnFacts, fit_column
from sfg_dist.data.grid import Grid
from sfg_dist.data.transform import Transform
from sfg_dist.job.errors import DataError


def transform_of(columns, **facts):
    """A map of columns by name, of which some have facts."""
    maps = []
    for name, values in columns.items():
        noise = np.random.default_rng(1).random(len(values))
        maps.append(fit_column(ColumnFacts(name, **facts.get(name, {})), values, "quantile", "observed", noise))
    return Transform.of_columns("quantile", maps)


def table(num_rows=4000, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.choice(4, num_rows, p=[0.5, 0.3, 0.15, 0.05]).astype(float)
    rain = np.where(rng.random(num_rows) < 0.7, 0.0, rng.exponential(size=num_rows))
    gaps = np.where(rng.random(num_rows) < 0.004, np.nan, rng.normal(size=num_rows))
    columns = {"code": codes, "rain": rain, "gaps": gaps, "free": rng.normal(size=num_rows)}
    order = np.array([2.0, 0.0, 3.0, 1.0])
    facts = {"code": {"order": order}, "rain": {"atoms": np.array([0.0])}, "gaps": {"missing": -1}}
    return columns, transform_of(columns, **facts)


def test_categories_atoms_and_gaps_are_cells_of_their_own():
    columns, transform = table()
    code, rain, gaps, free = cell_edges(transform, np.arange(4))
    shares = [np.mean(columns["code"] == value) for value in (2, 0, 3)]
    assert code == pytest.approx(np.cumsum(shares), abs=1e-6)
    assert rain[0] == pytest.approx(np.mean(columns["rain"] == 0), abs=1e-6)
    assert gaps[0] == pytest.approx(np.isnan(columns["gaps"]).mean(), abs=1e-6)
    assert MAX_CELLS / 2 < len(free) < MAX_CELLS * 1.2
    assert np.diff(free).max() < 2 / MAX_CELLS


def test_the_edges_of_a_column_cost_no_inversion_of_others(monkeypatch):
    _, transform = table()
    inverted = []
    inverse_of = Transform.inverse_of

    def noted(self, index, values):
        inverted.append(index)
        return inverse_of(self, index, values)

    whole = cell_edges(transform, np.arange(4))
    monkeypatch.setattr(Transform, "inverse_of", noted)
    (edges,) = cell_edges(transform, np.array([2]))
    assert set(inverted) == {2}
    assert np.array_equal(edges, whole[2])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(6, 300))
def test_what_is_drawn_within_a_cell_stays_in_it(seed, num_values):
    rng = np.random.default_rng(seed)
    values = rng.geometric(3 / num_values, 2000).astype(float)
    values[:2] = [1.0, 2.0]
    transform = transform_of({"count": values, "other": rng.normal(size=2000)}, count={"grid": None})
    edges = cell_edges(transform, np.array([0]))[0]
    assert (np.diff(edges) > 0).all()
    ends = np.concatenate([[0.0], edges, [1.0]])
    inside = ends[:-1, None] + np.diff(ends)[:, None] * np.array([2.0**-10, 0.5, 1 - 2.0**-10])
    rows = np.zeros((inside.size, 2))
    rows[:, 0] = ndtri(inside.ravel())
    again = transform.forward(transform.inverse(rows), noise=np.full((len(rows), 2), 0.5))
    home = np.repeat(np.arange(len(ends) - 1), 3)
    found = np.searchsorted(edges, ndtr(again[:, 0].astype(float)))
    assert np.count_nonzero(found != home) <= max(3, 0.01 * len(home))  # one cell may come back at its very end


def test_a_column_of_few_values_has_a_cell_for_each():
    rng = np.random.default_rng(0)
    hours = rng.integers(0, 24, 3000).astype(float)
    transform = transform_of({"hour": hours}, hour={"grid": Grid(1.0, 0.0)})
    (edges,) = cell_edges(transform, np.array([0]))
    assert len(edges) == 23
    assert edges == pytest.approx([np.mean(hours <= hour) for hour in range(23)], abs=1e-3)


def test_only_tables_with_categories_or_gaps_draw_cells_unless_asked():
    _, mixed = table()
    plain = transform_of({"free": np.random.default_rng(0).normal(size=500)})
    rain = transform_of({"rain": np.repeat([0.0, 1.0, 2.5], 400)}, rain={"atoms": np.array([0.0, 1.0, 2.5])})
    assert not draws_cells(rain, "auto")
    assert draws_cells(mixed, "auto")
    assert not draws_cells(plain, "auto")
    assert draws_cells(plain, True)
    assert not draws_cells(mixed, False)
    flat = Transform.fit(np.arange(9.0)[:, None], ["a"], kind="standardize")
    assert not draws_cells(flat, "auto")
    with pytest.raises(DataError, match=r"train\.cells = true needs transform\.kind"):
        draws_cells(flat, True)
