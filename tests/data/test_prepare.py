"""From a file to rows for the flow: cleaning, ties, splits, and the same bytes every time."""

import json
import subprocess
import sys

import numpy as np
import pytest
from imports import imported

from sfg_dist.data import Transform, prepare
from sfg_dist.data.cleaning import num_duplicates
from sfg_dist.data.discreteness import find_discreteness
from sfg_dist.job.errors import DataError

NAMES = ("temp", "count", "load")


def table(num_rows=400):
    """A continuous column, an integer column, and one of tenths that a file stored as float32."""
    random = np.random.default_rng(0)
    tenths = np.round(random.integers(-200, 400, num_rows) / 10, 1).astype(np.float32)
    return np.stack([random.standard_normal(num_rows), random.integers(0, 9, num_rows), tenths], axis=1)


@pytest.fixture
def write(tmp_path):
    def save(rows, names=NAMES, **more):
        np.savez(tmp_path / "t.npz", X=rows, columns=np.array(names), **more)
        return tmp_path / "t.npz"

    return save


def sort(rows):
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("shuffle", ["permutation", "legacy", "none"])
@pytest.mark.parametrize("split", [(0.8, 0.1, 0.1), (0.81, 0.09, 0.1), (0.5, 0, 0.5)])
def test_splits_are_disjoint_and_complete(write, shuffle, split):
    rows = np.arange(1203.0).reshape(401, 3) + 0.123456789
    prepared = prepare(write(rows), shuffle=shuffle, split=split, dequantize="none", seed=42)
    num_test, num_validation = int(split[2] * 401), int(split[1] * 401)
    sizes = {"train": 401 - num_test - num_validation, "validation": num_validation, "test": num_test}
    assert prepared.report["split"] == sizes
    whole = np.concatenate([prepared.train, prepared.validation, prepared.test])
    np.testing.assert_array_equal(sort(whole), rows)
    expected = rows.copy()
    if shuffle == "legacy":
        np.random.RandomState(42).shuffle(expected)
    elif shuffle == "permutation":
        expected = rows[np.random.default_rng(42).permutation(401)]
    np.testing.assert_array_equal(whole, expected)


def test_max_rows_follows_the_shuffle(write):
    path = write(np.random.default_rng(1).random((100, 3)))
    whole = prepare(path, dequantize="none", seed=3)
    part = prepare(path, dequantize="none", seed=3, max_rows=50)
    assert sum(part.report["split"].values()) == 50
    assert part.report["num_rows_read"] == 100
    np.testing.assert_array_equal(part.train, whole.train[:40])


@pytest.mark.slow
def test_same_bytes_in_another_process(write):
    path = write(table())
    code = (
        "import sys, hashlib; from sfg_dist.data import prepare; p = prepare(sys.argv[1], seed=7); "
        "print(hashlib.sha256(p.reference().tobytes() + p.test.tobytes()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert not np.array_equal(prepare(path, seed=7).reference(), prepare(path, seed=8).reference())


@pytest.mark.slow
def test_import_is_cheap():
    assert imported("sfg_dist.data").libraries == set()


class TestTies:
    def test_auto(self, write):
        prepared = prepare(write(table()))
        ties = prepared.report["ties"]
        assert set(ties) == {"count", "load"}
        assert (ties["count"]["step"], ties["load"]["step"]) == (1.0, 0.1)
        assert ties["count"]["share"] > 0.9
        np.testing.assert_array_equal(prepared.transform.steps, [0, 1, 0.1])

    @pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
    @pytest.mark.parametrize("part", ["train", "validation", "test"])
    def test_rows_on_a_grid_come_back_exactly(self, write, kind, part):
        prepared = prepare(write(table()), kind=kind)
        rows = getattr(prepared, part)
        back = prepared.transform.inverse(prepared.flow_rows(part))
        np.testing.assert_array_equal(back[:, 1:], rows[:, 1:])
        np.testing.assert_array_equal(rows[:, 2], np.round(rows[:, 2], 1))
        np.testing.assert_allclose(back[:, 0], rows[:, 0], atol=1e-5)

    def test_noise_belongs_to_positions(self, write):
        prepared = prepare(write(np.random.default_rng(0).random((3000, 3))), seed=5)
        noise = np.concatenate([prepared.noise(part) for part in ("train", "validation", "test")])
        assert noise.shape == (3000, 3)
        assert len(np.unique(noise)) == 9000
        assert 0 <= noise.min() < noise.max() < 1

    @pytest.mark.parametrize(("kind", "exact"), [("quantile", True), ("standardize", True), ("none", False)])
    def test_what_a_type_says_is_a_grid_without_ties(self, kind, exact):
        """Amounts in cents, of which no two are equal, and stamps of which all are whole minutes."""
        random = np.random.default_rng(0)
        rows = np.stack([random.permutation(10**6)[:500] / 100, 1.7e9 + 60.0 * random.permutation(10**5)[:500]], axis=1)
        amounts, stamps = rows.T
        amount = find_discreteness("t", "amount", amounts, type_step=0.01)
        stamp = find_discreteness("t", "stamp", stamps, type_step=1.0)
        assert (amount.grid.step, stamp.grid.step) == (0.01, 60.0)
        assert amount.ties["reason"] == stamp.ties["reason"] == "a grid by its type"
        assert find_discreteness("t", "amount", amounts).grid is None
        assert find_discreteness("t", "stamp", stamps).grid == stamp.grid  # whole numbers anyway
        noise, grids = random.random(rows.shape), {"amount": amount.grid, "stamp": stamp.grid}
        transform = Transform.fit(rows, ("amount", "stamp"), kind=kind, steps=grids, noise=noise)
        back = transform.inverse(transform.forward(rows, noise=noise))
        np.testing.assert_array_equal(back[:, 1], rows[:, 1])
        np.testing.assert_allclose(back[:, 0], rows[:, 0], rtol=0, atol=0 if exact else 0.01)
        assert np.array_equal(np.round(back[:, 0], 2), back[:, 0])

    def test_whole_numbers_need_no_ties(self, write):
        rows = table()
        rows[:, 0] = np.random.default_rng(0).permutation(10**7)[:400]
        prepared = prepare(write(rows))
        assert prepared.report["ties"]["temp"]["reason"] == "whole numbers"
        samples = prepared.transform.inverse(np.random.default_rng(0).standard_normal((1000, 3)))
        np.testing.assert_array_equal(samples[:, 0] % 1, 0)

    def test_given_steps_alone(self, write):
        prepared = prepare(write(table()), dequantize={"count": 1})
        np.testing.assert_array_equal(prepared.transform.steps, [0, 1, 0])
        assert "data.dequantize" in prepared.report["ties"]["load"]["reason"]

    def test_none(self, write):
        prepared = prepare(write(table()), dequantize="none")
        assert not prepared.transform.steps.any()
        assert prepared.report["ties"]["count"]["step"] is None

    def test_ties_on_no_grid_are_values_that_repeat(self, write):
        rows = table()
        rows[:, 1] = np.random.default_rng(0).random(9)[rows[:, 1].astype(int)]
        prepared = prepare(write(rows))
        assert prepared.report["ties"]["count"]["step"] is None
        assert "no common grid" in prepared.report["ties"]["count"]["reason"]
        found = prepared.report["atoms"]["count"]
        assert found["held"]
        assert sum(entry["count"] for entry in found["values"]) == 400
        back = prepared.transform.inverse(prepared.reference())
        np.testing.assert_array_equal(back[:, 1], prepared.train[:, 1])

    def test_values_off_a_given_grid_are_counted(self, write):
        rows = table()
        rows[:4, 1] += 0.2856
        prepared = prepare(write(rows), dequantize={"count": 1})
        assert prepared.report["ties"]["count"]["off_grid_share"] == pytest.approx(0.01)
        assert prepared.report["ties"]["count"]["offset"] == 0

    def test_unknown_column(self, write):
        with pytest.raises(DataError, match=r"no column 'cuont' \(data.dequantize\); did you mean 'count'"):
            prepare(write(table()), dequantize={"cuont": 1})

    @pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf])
    def test_bad_step(self, write, step):
        with pytest.raises(DataError, match="step of column 'count' is"):
            prepare(write(table()), dequantize={"count": step})

    def test_photo_has_step_one(self):
        prepared = prepare("flower_colors", max_rows=500)
        np.testing.assert_array_equal(prepared.transform.steps, 1)
        assert prepared.report["num_rows_read"] == 273_280


class TestMissing:
    @pytest.fixture
    def path(self, write):
        rows = table()
        rows[[7, 9, 9], [1, 1, 2]] = [np.nan, np.inf, np.nan]
        return write(rows)

    def test_refuse(self, path):
        message = (
            r"t\.npz: column 'count' has 2 missing or infinite values, the first in row 7 "
            r"\(counted from 0\); 'load' has 1; set data\.missing = .drop. "
            r"to leave out the 2 incomplete rows of 400"
        )
        with pytest.raises(DataError, match=message):
            prepare(path, missing="refuse")

    def test_drop(self, path):
        prepared = prepare(path, missing="drop")
        assert prepared.report["num_rows_read"] == 400
        assert prepared.report["num_rows_dropped"] == 2
        assert sum(prepared.report["split"].values()) == 398

    def test_only_wanted_columns_matter(self, path):
        assert prepare(path, columns=["temp"], missing="refuse").report["num_rows_dropped"] == 0
        assert prepare(path, columns=["temp", "load"], missing="drop").report["num_rows_dropped"] == 1

    def test_in_a_part(self, write):
        rows = table()
        test = rows[:30].copy()
        test[3, 0] = np.nan
        path = write(rows, test=test)
        with pytest.raises(DataError, match=r"the test part: column 'temp' has 1 missing .* in row 3"):
            prepare(path, arrays={"train": "X", "test": "test"}, missing="refuse")


class TestConstant:
    @pytest.fixture
    def path(self, write):
        rows = table()
        rows[:, 1] = 4.5
        return write(rows)

    def test_refuse(self, path):
        with pytest.raises(DataError, match=r"column 'count' is constant.*always 4\.5.*data\.constant = .keep."):
            prepare(path)

    def test_keep(self, path):
        prepared = prepare(path, constant="keep")
        assert prepared.report["constant"] == {"count": 4.5}
        assert prepared.train.shape[1] == 3
        assert prepared.reference().shape[1] == prepared.transform.dim == 2
        assert np.all(prepared.transform.inverse(prepared.reference())[:, 1] == 4.5)

    def test_in_the_training_rows_alone(self, write):
        rows = table()
        rows[:, 1] = 0
        rows[-1, 1] = 1
        path = write(rows)
        with pytest.raises(DataError, match="column 'count' is constant over the training rows"):
            prepare(path, shuffle="none")
        prepared = prepare(path, shuffle="none", constant="keep")
        assert prepared.report["constant"] == {"count": 0.0}
        assert prepared.test[-1, 1] == 1

    def test_all(self, write):
        with pytest.raises(DataError, match="every column is constant over all rows"):
            prepare(write(np.ones((50, 3))), constant="keep")


class TestSplitTable:
    def test_parts_keep_their_rows(self, write):
        rows = np.random.default_rng(0).random((100, 3))
        path = write(rows, val=rows[:5] + 1, test=rows[:7] + 2)
        arrays = {"train": ["X", "val"], "validation": None, "test": "test"}
        prepared = prepare(path, arrays=arrays)
        np.testing.assert_array_equal(sort(prepared.train), sort(np.concatenate([rows, rows[:5] + 1])))
        np.testing.assert_array_equal(prepared.test, rows[:7] + 2)
        assert prepared.validation.shape == (0, 3)
        assert prepared.flow_rows("validation").shape == (0, 3)
        assert len(prepare(path, arrays=arrays, max_rows=40).train) == 40


@pytest.mark.parametrize(
    ("num_rows", "keys", "message"),
    [
        (19, {}, r"19 rows are left \(19 read, 0 dropped as incomplete\): expected at least 20"),
        (40, {"max_rows": 12}, r"12 rows are left \(data.max_rows = 12\)"),
        (40, {"split": (0.2, 0.3, 0.5)}, "leaves 8 training, 12 validation and 20 test rows"),
        (40, {"split": (0.99, 0, 0.01)}, "leaves 40 training, 0 validation and 0 test rows"),
        (40, {"shuffle": "legacy", "seed": 2**32}, "data.seed from 0 to 4294967295"),
        (40, {"shuffle": "other"}, "data.shuffle = 'other'"),
        (40, {"missing": "other"}, "data.missing = 'other'"),
        (40, {"constant": "other"}, "data.constant = 'other'"),
        (40, {"dequantize": "other"}, "data.dequantize = 'other'"),
    ],
)
def test_refusals(write, num_rows, keys, message):
    with pytest.raises(DataError, match=message):
        prepare(write(table(num_rows)), **keys)


def test_toy_set():
    prepared = prepare("moons", seed=2)
    assert prepared.report["split"] == {"train": 16_000, "validation": 2000, "test": 2000}
    assert len(prepare("moons", max_rows=100).train) == 80
    assert prepared.report["ties"] == {}
    assert prepared.log_density is not None
    assert prepared.log_density(prepared.test).mean() == pytest.approx(-0.3, abs=0.05)


def test_constant_pixels_of_digits():
    with pytest.raises(DataError, match=r"columns 'pixel_0_0', .* are constant"):
        prepare("digits")
    prepared = prepare("digits", constant="keep")
    assert prepared.transform.dim == 61
    back = prepared.transform.inverse(prepared.flow_rows("test"))
    np.testing.assert_array_equal(back, prepared.test)


def test_report_is_json(write):
    report = prepare(write(np.concatenate([table(100), table(100)[:10]])), shuffle="none").report
    assert json.loads(json.dumps(report)) == report


def test_duplicates():
    rows = np.random.default_rng(0).integers(0, 3, (200, 3)).astype(float)
    assert num_duplicates(rows) == 200 - len(np.unique(rows, axis=0))
    assert num_duplicates(rows[:0]) == 0
    assert num_duplicates(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, -0.0], [1.0, 0.0], [1.0, 2.0]])) == 2
    assert num_duplicates(np.random.default_rng(0).random((50, 2))) == 0
