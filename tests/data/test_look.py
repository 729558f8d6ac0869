"""A look at a table: every column with its reason, and keys with which the table can be prepared."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sfg_dist.data import TableSettings, is_table, look_at, prepare
from sfg_dist.data.unfit import UnfitColumnsError
from sfg_dist.job.errors import DataError

ROWS = 400


def look(path, held_bytes=np.inf, **keys):
    return look_at(str(path), TableSettings(**keys), held_bytes=held_bytes, memory_gib=1.0)


def by_name(found):
    return {column.name: column for column in found.columns}


@pytest.fixture
def columns():
    """One column of each kind that a first table has."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=ROWS)
    gaps[::40] = np.nan
    sparse = np.where(np.arange(ROWS) % 4, np.nan, gaps)
    return {
        "id": np.arange(7, ROWS + 7),
        "gaps": gaps,
        "sparse": sparse,
        "empty": np.full(ROWS, np.nan),
        "unit": np.full(ROWS, 3),
        "tenths": np.round(rng.uniform(0, 9, ROWS), 1),
        "rain": np.where(rng.random(ROWS) < 0.6, 0.0, rng.gamma(2.0, size=ROWS)),
        "day": np.datetime64("2024-02-28", "D") + np.arange(ROWS) // 3,
        "ticket": rng.permutation(10**6)[:ROWS],
    }


@pytest.fixture
def path(columns, tmp_path):
    texts = {"city": ["Rome", "Oslo"] * (ROWS // 2), "note": [None, "late"] * (ROWS // 2)}
    parquet.write_table(pa.table(columns | texts), tmp_path / "table.parquet", row_group_size=130)
    return tmp_path / "table.parquet"


def test_each_column_is_told(path):
    found = look(path)
    columns = by_name(found)
    assert found.num_rows == ROWS
    assert columns["id"].left_out == "it numbers the rows"
    assert (columns["city"].kind, columns["city"].noticed) == ("2 categories", ("Oslo, Rome",))
    assert (columns["note"].kind, columns["note"].gaps) == ("1 category", 0.5)
    assert columns["empty"].left_out == "it has no value"
    assert columns["sparse"].gaps == pytest.approx(0.78, abs=0.01)
    assert (columns["gaps"].gaps, columns["gaps"].left_out) == (pytest.approx(0.025), "")
    assert columns["tenths"].step == "0.1"
    assert columns["rain"].noticed[0].startswith("repeats 0 (")
    assert (columns["day"].low, columns["day"].step) == ("2024-02-28", "1 day")
    assert "rises from row to row" in columns["day"].noticed[0]
    assert "identifier" in columns["ticket"].noticed[0]
    assert "never changes" in columns["unit"].noticed[0]
    assert found.keys == {
        "columns": ["gaps", "sparse", "unit", "tenths", "rain", "day", "ticket", "city", "note"], "constant": "keep",
    }  # fmt: skip


def test_where_gaps_are_left_out_columns_with_many_are_too(path):
    found = look(path, missing="drop")
    assert "78 % of its values are missing" in by_name(found)["sparse"].left_out
    assert by_name(found)["note"].gaps == 0.5
    assert found.keys["missing"] == "drop"


def test_the_keys_prepare_the_table(path):
    found = look(path)
    prepared = prepare(str(path), TableSettings(**found.keys))
    assert prepared.reference().tobytes() == found.prepared.reference().tobytes()
    assert prepared.columns == found.prepared.columns


def test_a_sound_table_needs_no_keys(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(100, 2)))
    assert look(tmp_path / "rows.npy").keys == {}
    assert look("moons", max_rows=200).keys == {}


def test_columns_that_are_asked_for_are_taken_or_refused(path):
    assert look(path, columns=["id", "tenths"]).prepared.columns == ("id", "tenths")
    table = parquet.read_table(path).append_column("list", pa.array([[1]] * ROWS))
    parquet.write_table(table, path)
    with pytest.raises(UnfitColumnsError, match="column 'list' has type list"):
        look(path, columns=["list", "tenths"])
    with pytest.raises(DataError, match=r"column 'list' cannot be given .*: it has type list"):
        look(path, condition=["list"])
    assert "sparse" in look(path, condition=["sparse"]).keys["columns"]


def test_a_large_table_is_read_in_parts_and_keeps_its_order(path):
    whole, parts = look(path), look(path, held_bytes=1000)
    assert parts.keys == {**whole.keys, "shuffle": "none"}
    assert parts.columns == whole.columns


@pytest.mark.parametrize("suffix", [".csv", ".csv of a folder"])
def test_text_files(columns, suffix, tmp_path):
    import pandas as pd

    frame = pd.DataFrame(columns)
    frame["code"] = [f"0{number:03d}" for number in range(ROWS)]
    frame["city"] = "Rome"
    path = tmp_path / "table.csv"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        path = tmp_path
        (path / "year=2024" / "month=jan").mkdir(parents=True)
        for part, rows in enumerate((frame[:200], frame[200:])):
            rows.to_csv(path / "year=2024" / "month=jan" / f"{part}.csv", index=False)
    left_out = {name: column.left_out for name, column in by_name(look(path)).items() if column.left_out}
    assert left_out["code"] == "it holds text, 400 different values in 400 rows, as identifiers and free text do"
    assert left_out["id"] == "it numbers the rows"
    if path.is_dir():
        assert by_name(look(path))["month"].kind == "1 category"
        assert by_name(look(path))["year"].noticed


@pytest.mark.parametrize("write", [np.save, lambda path, rows: np.savez(path.with_suffix(".npz"), X=rows)])
def test_records_of_a_file_of_arrays(write, tmp_path):
    rows = np.zeros(ROWS, [("x", float), ("name", "U4"), ("pair", float, 2), ("big", np.uint64)])
    rows["x"] = np.random.default_rng(0).normal(size=ROWS)
    rows["big"][::2] = 2**63
    write(tmp_path / "rows.npy", rows)
    (path,) = tmp_path.iterdir()
    left_out = {name: column.left_out for name, column in by_name(look(path)).items()}
    assert left_out["x"] == ""
    assert left_out["name"] == ""
    assert left_out["pair"] == "it holds several values a row"
    assert left_out["big"].startswith("it holds integers from 0 to 9223372036854775808")


def test_values_that_doubles_do_not_tell_apart_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    table = {
        "x": rng.normal(size=ROWS),
        "far": 1e16 + 2 * rng.integers(0, 9, ROWS) + 0.0,
        "huge": rng.normal(size=ROWS),
    }
    table["huge"][3] = 1e200
    parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    columns = by_name(look(tmp_path / "t.parquet"))
    assert columns["huge"].left_out.startswith("it holds 1e+200, beyond")
    assert columns["x"].left_out == ""


def test_a_table_without_a_column_that_can_be_used_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "1 %,y$\n" * 30 + "2,3\n")
    with pytest.raises(
        DataError, match=r"t\.csv: none of its 2 columns can be used: 'a': it holds text, '1 %' in data"
    ):
        look(tmp_path / "t.csv")


def test_what_is_a_table(tmp_path):
    (tmp_path / "parts").mkdir()
    for place in ("moons", "a.csv", "a.CSV.gz", "s3://bucket/rows", "part-*.parquet", tmp_path / "parts", "a.xlsx"):
        assert is_table(str(place)), place
    for place in ("job.toml", "job.TOML", "job", tmp_path / "none"):
        assert not is_table(str(place)), place


def test_a_column_that_the_job_types_is_taken_or_refused_in_its_own_words(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,day\n" + "".join(f"{k * k % 97},{k % 28 + 1:02d}.06.2024\n" for k in range(200)))
    assert look(path).keys["columns"] == ["a"]
    with pytest.raises(DataError, match=r"'day' cannot be read as data\.types says: it holds text"):
        look(path, types={"day": "datetime"})
    assert "columns" not in look(path, types={"day": "category"}).keys
