"""A table prepared in passes is the table prepared whole, bit for bit."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sfg_dist.data import TableSettings, cleaning, open_rows, preparation, prepare
from sfg_dist.job.errors import DataError
from sfg_dist.job.fingerprint import fingerprint


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(cleaning, "SCAN_ROWS", 100)


def table(num_rows=997):
    """Smooth, heavy-tailed, rounded, integer and constant columns; two with values that repeat."""
    rng = np.random.default_rng(3)
    values = np.stack(
        [
            rng.standard_normal(num_rows),
            rng.standard_cauchy(num_rows),
            np.full(num_rows, 4.5),
            np.round(rng.standard_normal(num_rows), 1),
            rng.integers(0, 7, num_rows).astype(float),
            np.where(rng.random(num_rows) < 0.3, 0.0, rng.standard_exponential(num_rows)),
            np.where(rng.random(num_rows) < 0.1, -999.0, rng.integers(0, 99, num_rows)),
            rng.integers(0, 10**7, num_rows).astype(float),
        ],
        axis=1,
    )
    return values


@pytest.fixture
def write(tmp_path):
    def write(values, name="t.npy"):
        path = tmp_path / name
        if path.suffix == ".npy":
            np.save(path, values)
        else:
            parquet.write_table(pa.table(list(values.T), names=list("abcdefgh")), path, row_group_size=130)
        return path

    return write


def pair(path, **keys):
    """The table prepared whole, and in passes of one column."""
    keys = {"shuffle": "none", "constant": "keep", **keys}
    passes = prepare(path, memory_gib=1e-9, **keys)
    assert not passes.is_whole
    return prepare(path, **keys), passes


def assert_equal(whole, passes):
    assert passes.columns == whole.columns
    assert passes.sizes == whole.sizes
    assert passes.transform.to_metadata() == whole.transform.to_metadata()
    expected = whole.transform.to_arrays()
    found = passes.transform.to_arrays()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    np.testing.assert_array_equal(np.concatenate(list(passes.reference_blocks(123))), whole.reference())
    assert passes.table_fingerprint() == whole.table_fingerprint() == fingerprint(whole.train)
    assert passes.reference_fingerprint() == fingerprint(whole.reference())
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(passes, part), getattr(whole, part))
        np.testing.assert_array_equal(passes.flow_rows(part), whole.flow_rows(part))
    for key in ("num_rows_read", "num_rows_dropped", "constant", "ties", "atoms", "split"):
        assert passes.report[key] == whole.report[key], key


@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
@pytest.mark.parametrize("name", ["t.npy", "t.parquet"])
def test_it_is_the_table_prepared_whole(write, kind, name):
    assert_equal(*pair(write(table(), name), kind=kind))


@pytest.mark.parametrize("columns_at_once", [1, 3, 8])
def test_any_number_of_columns_at_a_time(write, columns_at_once):
    path = write(table(), "t.parquet")
    whole = prepare(path, shuffle="none", constant="keep")
    budget = columns_at_once * preparation.COPIES * 8 * 997
    passes = preparation.prepare_in_passes(lambda: open_rows(path), TableSettings(constant="keep"), budget)
    assert_equal(whole, passes)


def test_incomplete_rows_are_left_out(write):
    values = table()
    values[[3, 98, 99, 100, 500, 996], [0, 1, 1, 3, 4, 0]] = [np.nan, np.inf, np.nan, np.nan, -np.inf, np.nan]
    whole, passes = pair(write(values), missing="drop")
    assert passes.report["num_rows_dropped"] == 6
    assert_equal(whole, passes)


def test_incomplete_rows_are_refused_with_the_message_of_the_whole_table(write):
    values = table()
    values[[303, 450, 451], [1, 0, 1]] = np.nan
    path = write(values)
    with pytest.raises(DataError) as whole:
        prepare(path, shuffle="none", constant="keep", missing="refuse")
    with pytest.raises(DataError) as passes:
        prepare(path, memory_gib=1e-9, shuffle="none", constant="keep", missing="refuse")
    assert str(passes.value) == str(whole.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"dequantize": "none"},
        {"bounds": "none"},
        {"bounds": {"c0": [-9.0, 9.0], "c4": [0.0, 9.0]}},
        {"dequantize": {"c3": 0.1}},
        {"columns": ["c3", "c0"]},
        {"max_rows": 400},
        {"split": [0.5, 0.0, 0.5], "seed": 7},
    ],
)
def test_keys(write, keys):
    assert_equal(*pair(write(table()), **keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"constant": "refuse"}, "column 'c2' is constant over all rows"),
        ({"dequantize": {"c9": 1.0}}, "has no column 'c9'"),
        ({"bounds": {"c9": [0, 1]}}, r"has no column 'c9' \(data.bounds\)"),
        ({"bounds": {"c0": [0, 9]}}, r"\d+ of 997 rows of column 'c0' lie outside data.bounds"),
        ({"max_rows": 15}, r"15 rows are left \(data.max_rows = 15\)"),
        ({"split": [0.005, 0.5, 0.495]}, "the split leaves 6 training"),
        ({"missing": "no"}, "data.missing"),
    ],
)
def test_bad_keys(write, keys, message):
    with pytest.raises(DataError, match=message):
        prepare(write(table()), memory_gib=1e-9, **{"shuffle": "none", "constant": "keep", **keys})


def test_a_column_constant_in_the_training_rows_alone(write):
    values = table()
    values[:800, 0] = 1.0
    whole, passes = pair(write(values))
    assert passes.report["constant"] == {"c0": 1.0, "c2": 4.5}
    assert_equal(whole, passes)


def test_a_decimal_of_float32_that_is_constant_in_the_training_rows_is_put_on_its_grid(write):
    values = table().astype(np.float32)
    values[:900, 3] = np.float32(0.1)
    whole, passes = pair(write(values))
    assert passes.report["constant"]["c3"] == 0.1 != float(np.float32(0.1))
    assert_equal(whole, passes)


def test_a_value_beyond_reach_names_its_row(write):
    values = table()
    values[701, 1] = 1e200
    with pytest.raises(DataError, match="column 'c1' holds 1e\\+200 in row 701"):
        prepare(write(values), memory_gib=1e-9, shuffle="none", constant="keep")


@pytest.mark.parametrize("keys", [{}, {"memory_gib": 1.0, "shuffle": "none"}, {"memory_gib": 1e-9}])
def test_tables_that_are_held_whole(write, keys):
    """Without a budget, within it, or with a shuffle, which reads the table at random."""
    assert prepare(write(table()), **{"constant": "keep", **keys}).is_whole


def test_of_the_parts_only_the_first_rows_are_held(write, monkeypatch):
    monkeypatch.setattr(preparation, "EVALUATED_ROWS", 60)
    whole, passes = pair(write(table()))
    assert [len(getattr(passes, part)) for part in ("train", "validation", "test")] == [60, 60, 60]
    assert passes.num_train == len(whole.train)
    np.testing.assert_array_equal(passes.test, whole.test[:60])
    np.testing.assert_array_equal(passes.flow_rows("test"), whole.flow_rows("test")[:60])
    assert passes.reference_fingerprint() == fingerprint(whole.reference())
