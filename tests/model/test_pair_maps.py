"""Maps of one column given another: they bring back thin structure, and leave alone what is right."""

import numpy as np
import pytest
import torch

from sfg_dist.job.errors import DocumentError
from sfg_dist.model.calibration import Calibration
from sfg_dist.model.pair_maps import MAX_WINDOWS, PairMaps

NUM_ROWS = 30_000


def curve(seed, blur):
    """Four columns, the second on a curve of the first with a kink, the third and fourth on a line that blur widens."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((NUM_ROWS, 4))
    x[:, 1] = np.maximum(x[:, 0], 0) + blur * x[:, 1]
    x[:, 3] = -x[:, 2] + blur * x[:, 3]
    return x


@pytest.fixture(scope="module")
def maps():
    return PairMaps.fit(curve(0, 0.3), curve(1, 0.3), curve(2, 0.05))


@pytest.mark.slow
def test_a_blurred_curve_is_sharp_again(maps):
    mapped, wanted = maps(curve(3, 0.3)), curve(4, 0.05)
    assert np.std(mapped[:, 1] - np.maximum(mapped[:, 0], 0)) < 0.07
    assert np.std(mapped[:, 3] + mapped[:, 2]) < 0.07
    for column in range(4):  # and each column keeps its law
        levels = np.linspace(0.02, 0.98, 25)
        drawn, expected = (np.quantile(rows[:, column], levels) for rows in (mapped, wanted))
        np.testing.assert_allclose(drawn, expected, atol=0.06)


@pytest.mark.slow
def test_the_pairs_that_differ_are_the_ones_that_are_mapped(maps):
    assert {tuple(sorted(pair)) for pair in maps.columns[:2].tolist()} == {(0, 1), (2, 3)}


@pytest.mark.slow
def test_samples_of_the_very_law_are_hardly_moved():
    rows = curve(5, 0.05)
    moved = PairMaps.fit(curve(0, 0.05), curve(1, 0.05), curve(2, 0.05))(rows)
    assert np.abs(moved - rows).mean() < 0.01


@pytest.mark.slow
def test_a_small_table_is_not_learnt_by_heart():
    """Samples of the very law stay so, whatever noise of 3000 rows the maps are fitted to."""
    rows, fresh = curve(5, 0.05), curve(6, 0.05)
    for seed in range(3):
        mapped = PairMaps.fit(curve(0, 0.05), curve(1, 0.05), curve(10 + seed, 0.05)[:3000])(rows)
        assert np.std(mapped[:, 1] - np.maximum(mapped[:, 0], 0)) == pytest.approx(0.05, rel=0.3)
        assert len(np.unique(mapped.round(6), axis=0)) == len(mapped)
        for column in range(4):
            levels = np.linspace(0.05, 0.95, 19)
            drawn, expected = (np.quantile(table[:, column], levels) for table in (mapped, fresh))
            np.testing.assert_allclose(drawn, expected, atol=0.12)


@pytest.mark.slow
def test_damaged_arrays_are_refused(maps):
    arrays = maps.to_arrays()
    for name, damaged in (("columns", arrays["columns"] - 5), ("means", arrays["means"][:, 1:]),
                          ("shifts", arrays["shifts"][:, :, :-1]), ("centers", arrays["centers"][:, :1])):  # fmt: skip
        with pytest.raises(DocumentError, match="calibration"):
            PairMaps.from_arrays(arrays | {name: damaged}, 4)
    with pytest.raises(ValueError, match="columns"):
        maps(np.zeros((3, 2)))


def test_the_work_is_bounded_for_a_wide_table(monkeypatch):
    from sfg_dist.model import pair_maps

    fitted, fit = [], pair_maps._fit_map
    monkeypatch.setattr(pair_maps, "_fit_map", lambda *arguments: fitted.append(arguments[2:]) or fit(*arguments))
    rows = np.random.default_rng(0).standard_normal((3, 3000, 60))
    maps = PairMaps.fit(*rows, max_maps=3)
    assert len(fitted) <= (2 * pair_maps.MAX_TRIED_PAIRS + 1) * (len(maps) + 1)
    assert len(PairMaps.fit(*np.zeros((3, 3000, pair_maps.MAX_DIM + 1)))) == 0


def test_a_map_is_monotone_and_moves_its_own_column_only(maps):
    first = PairMaps(
        *(getattr(maps, name)[:1] for name in ("columns", "centers", "means", "spreads", "knots", "shifts"))
    )
    ((i, j),) = first.columns
    rows = np.zeros((2001, 4))
    rows[:, j] = np.linspace(-6, 6, 2001)
    for given in (-5.0, -1.0, 0.0, 0.3, 7.0):
        rows[:, i] = given
        moved = first(rows)
        assert (np.diff(moved[:, j]) > -1e-12).all()
        np.testing.assert_array_equal(np.delete(moved, j, axis=1), np.delete(rows, j, axis=1))


def test_far_rows_keep_their_distance_from_the_ends(maps):
    rows = np.array([[0.0, 1e6, 0.0, -1e6]])
    assert np.abs(maps(rows) - rows).max() < 2


def test_what_is_fitted_to_is_left_as_it_was():
    tables = curve(0, 0.3), curve(1, 0.3), curve(2, 0.05)
    copies = [table.copy() for table in tables]
    PairMaps.fit(*tables, max_maps=1)
    for table, copy in zip(tables, copies, strict=True):
        np.testing.assert_array_equal(table, copy)


@pytest.mark.parametrize(
    ("rows", "reference"),
    [
        pytest.param(np.zeros((5000, 3)), curve(0, 0.1)[:, :3], id="samples that are one point"),
        pytest.param(curve(0, 0.1)[:, :3], np.round(curve(1, 0.1)[:, :3]), id="a reference on a coarse grid"),
        pytest.param(np.round(curve(0, 0.1)[:, :3]), np.ones((NUM_ROWS, 3)), id="a reference that is one point"),
        pytest.param(curve(0, 0.1)[:700, :3], curve(1, 0.1)[:, :3] ** 9, id="heavy tails and few samples"),
    ],
)
def test_degenerate_tables_give_finite_maps(rows, reference):
    maps = PairMaps.fit(rows, rows, reference, max_maps=3)
    assert np.isfinite(maps(rows)).all()
    for array in maps.to_arrays().values():
        assert np.isfinite(array).all()


@pytest.mark.parametrize(("num_rows", "dim"), [(500, 4), (NUM_ROWS, 1)])
def test_few_rows_or_a_single_column_are_left_alone(num_rows, dim):
    maps = PairMaps.fit(curve(0, 0.3)[:, :dim], curve(1, 0.3)[:, :dim], curve(2, 0.05)[:num_rows, :dim])
    assert len(maps) == 0
    rows = curve(3, 0.3)[:5, :dim]
    np.testing.assert_array_equal(maps(rows), rows)


def test_the_windows_are_no_more_than_the_rows_allow(maps):
    assert maps.centers.shape[1] == MAX_WINDOWS
    small = PairMaps.fit(curve(0, 0.3), curve(1, 0.3), curve(2, 0.05)[:4096], max_maps=1)
    assert small.centers.shape[1] == 8


class Blurred(torch.nn.Module):
    """A network whose samples are the blurred curve."""

    def __init__(self):
        super().__init__()
        self.num_inputs, self.weight = 4, torch.nn.Parameter(torch.ones(()))

    def forward(self, latents):
        x = latents.clone()
        x[:, 1] = latents[:, 0].clamp(min=0) + 0.3 * latents[:, 1]
        x[:, 3] = -latents[:, 2] + 0.3 * latents[:, 3]
        return x * self.weight


@pytest.mark.slow
def test_calibration_ends_with_them_and_is_saved_with_them():
    calibration = Calibration.fit(Blurred(), curve(2, 0.05).astype(np.float32), seed=0)
    assert len(calibration.pairs)
    rows = curve(3, 0.3).astype(np.float32)
    mapped = calibration(rows)
    assert np.std(mapped[:, 1] - np.maximum(mapped[:, 0], 0)) < 0.1
    again = Calibration.from_arrays(calibration.to_arrays(), 4)
    np.testing.assert_array_equal(again(rows), mapped)
    older = {name: array for name, array in calibration.to_arrays().items() if not name.startswith("pair_")}
    assert len(Calibration.from_arrays(older, 4).pairs) == 0
