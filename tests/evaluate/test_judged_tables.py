"""Tables of files are brought to common units, or refused with the file and the column."""

import numpy as np
import pandas as pd
import pytest

from sfg_dist.data.preparation import prepare
from sfg_dist.data.table import open_table
from sfg_dist.job.errors import DataError
from sfg_dist.pipeline import judged_tables
from sfg_dist.pipeline.judged_tables import tables_of_files, tables_of_run


def frame(num_rows=60, seed=0, towns="abc"):
    rng = np.random.default_rng(seed)
    number = rng.normal(size=num_rows)
    return pd.DataFrame(
        {
            "x": np.where(rng.random(num_rows) < 0.1, np.nan, number),
            "count": rng.poisson(3, num_rows),
            "town": rng.choice(list(towns), num_rows),
            "day": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, num_rows), "D"),
            "ok": number > 0,
        }
    )


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def put(name, table):
        table.to_parquet(name) if name.endswith(".parquet") else table.to_csv(name, index=False)
        return name

    put("data.csv", frame())
    return put


def test_kinds_units_and_categories_of_all_tables(write):
    write("samples.parquet", frame(seed=1, towns="bad")[["ok", "town", "x", "day", "count"]].assign(more=1))
    tables = tables_of_files("samples.parquet", "data.csv", write("train.csv", frame(80, 2)), "town")
    assert [column.kind for column in tables.columns] == ["number", "integer", "category", "datetime", "boolean"]
    assert tables.columns[2].categories == ("a", "b", "c", "d")
    assert (len(tables.samples), len(tables.held_out), len(tables.train)) == (60, 60, 80)
    asked = pd.read_parquet("samples.parquet")
    towns = np.array(tables.columns[2].categories)[tables.samples[:, 2].astype(int)]
    assert towns.tolist() == asked["town"].tolist()
    assert (pd.to_datetime(tables.samples[:, 3], unit="s") == asked["day"]).all()
    assert np.isnan(tables.samples[:, 0]).sum() == asked["x"].isna().sum() > 0


def test_float64_needs_no_rounding(write, monkeypatch):
    samples, train = (write(f"{name}.parquet", frame(seed=seed)[["x"]]) for seed, name in enumerate(["a", "b"]))
    monkeypatch.delattr(judged_tables.ColumnType, "from_float")
    tables = tables_of_files(samples, train)
    np.testing.assert_array_equal(tables.samples[:, 0], frame(seed=0)["x"])


@pytest.mark.parametrize("name", ["samples.csv", "samples.parquet"])
def test_a_column_without_values_is_missing_throughout(write, name):
    samples = write(name, frame(seed=1).assign(town=None, day=None))
    tables = tables_of_files(samples, "data.csv")
    assert np.isnan(tables.samples[:, [2, 3]]).all()
    assert tables.train is None


def test_a_category_named_as_a_missing_value_stays_one_in_a_csv(write):
    def named(seed):
        return frame(seed=seed).replace({"town": {"a": "NA"}})

    tables = tables_of_files(write("samples.csv", named(1)), write("data.parquet", named(0)))
    assert tables.columns[2].categories == ("NA", "b", "c")
    assert (tables.samples[:, 2] == 0).sum() == (named(1)["town"] == "NA").sum() > 0
    assert np.isnan(tables.samples[:, 0]).any()  # an empty cell is missing


@pytest.mark.parametrize("name", ["samples.csv", "samples.parquet"])
def test_text_with_many_values_is_a_category_where_the_data_has_one(write, name):
    towns = [f"town {place}" for place in range(40)]
    samples = write(name, frame(seed=1).assign(town=towns + towns[:20]))
    assert tables_of_files(samples, "data.csv").columns[2].categories == ("a", "b", "c", *sorted(towns))


def test_the_training_table_says_what_the_columns_are(write):
    write("data.csv", frame(20).assign(town=[f"town {place}" for place in range(20)]))
    train = write("train.csv", frame(200, 2).assign(town=[f"town {place % 50}" for place in range(200)]))
    tables = tables_of_files(write("samples.csv", frame(seed=1, towns="xyz")), "data.csv", train)
    assert (tables.columns[2].kind, len(tables.columns[2].categories)) == ("category", 53)
    assert (len(tables.samples), len(tables.held_out), len(tables.train)) == (60, 20, 200)


@pytest.mark.parametrize("train", [None, "train.csv"])
def test_every_table_is_read_once(write, monkeypatch, train):
    write("train.csv", frame(80, 2))
    samples = write("samples.csv", frame(seed=1).assign(town=7))
    read = []
    monkeypatch.setattr(
        judged_tables, "open_table", lambda source, **keys: read.append(source) or open_table(source, **keys)
    )
    tables_of_files(samples, "data.csv", train)
    assert sorted(read) == sorted(name for name in (samples, "data.csv", train) if name)


def test_numbers_that_are_categories_in_the_data_are_read_as_such(write):
    tables = tables_of_files(write("samples.csv", frame(seed=1).assign(town=7)), "data.csv")
    assert tables.columns[2].categories == ("a", "b", "c", "7")


STAMP_NS = 1_700_000_000_000_000_000
WHOLE = {
    "stamps": (STAMP_NS, STAMP_NS + 37),
    "ids": (2**53 - 30, 2**53 + 1),
    "ids of the data below 2^53": (2**53 - 60, 2**53 - 30),
}


@pytest.mark.parametrize(("low", "other"), WHOLE.values(), ids=WHOLE)
def test_whole_numbers_beyond_2_53_are_compared_exactly(write, low, other):
    starts = {"data.parquet": low, "samples.parquet": other, "train.parquet": low + 3}
    for name, start in starts.items():
        write(name, pd.DataFrame({"id": start + np.arange(60), "x": np.arange(60.0)}))
    for train in (None, "train.parquet"):
        found = tables_of_files("samples.parquet", "data.parquet", train)
        least = found.held_out[0, 0]
        tables = (found.held_out, found.samples) if train is None else (found.held_out, found.samples, found.train)
        for rows, start in zip(tables, starts.values(), strict=False):
            assert (rows[:, 0] - least).tolist() == [start - low + step for step in range(60)]


def test_arrays_are_matched_by_place(tmp_path):
    for name in ("samples", "data"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(40, 3)))
    tables = tables_of_files(tmp_path / "samples.npy", tmp_path / "data.npy")
    assert len(tables.columns) == 3


BAD = [
    (lambda f: f.drop(columns="count"), r"bad.csv has no column 'count' as data.csv has"),
    (lambda f: f.rename(columns={"x": "y"}), r"bad.csv has no column 'x'"),
    (lambda f: f.assign(count="many"), r"'count' holds 1 category, and data.csv has whole numbers there"),
    (lambda f: f.assign(day=3.5), r"'day' holds decimals, and data.csv has dates there"),
    (
        lambda f: f.assign(day=f["day"].dt.tz_localize("Asia/Tokyo")),
        r"'day' holds timestamps with a time zone.*has dates there: write both in one type",
    ),
    (lambda f: f.assign(ok=2), r"'ok' holds 2, and data.csv has true or false"),
    (lambda f: f.assign(x=[np.inf, *f["x"][1:]]), r"'x' holds infinity in row 1"),
    (
        lambda f: f.assign(x=[f"text {i}" for i in range(len(f))]),
        r"'x' holds text, 60 different values.*; leave the column out of the tables$",
    ),
    (lambda f: f.head(0), r"bad.csv has 0 rows"),
    (lambda f: f.head(5), r"bad.csv has 5 rows: expected at least 20"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=range(len(BAD)))
def test_tables_that_do_not_match_are_refused(write, change, message):
    with pytest.raises(DataError, match=message) as refused:
        tables_of_files(write("bad.csv", change(frame(seed=1))), "data.csv")
    assert "data." not in str(refused.value).replace("data.csv", "")  # no key of a job, since there is none


@pytest.mark.parametrize("copied", [60, 40])
def test_held_out_rows_that_are_training_rows_are_refused(write, copied):
    train = frame(200, 2)
    data = pd.concat([train.iloc[7 : 7 + copied], frame(60 - copied, 3)])
    names = write("samples.csv", frame(seed=1)), write("data.parquet", data), write("train.csv", train)
    message = (
        rf"data.parquet: {100 * copied / 60:.0f} % of the rows equal a row of train.csv: --data must hold rows that"
    )
    with pytest.raises(DataError, match=message):
        tables_of_files(*names)


def test_rows_that_repeat_by_nature_may_be_in_both_tables(write):
    def few(num_rows, seed):
        return frame(num_rows, seed)[["town", "ok"]]

    names = write("samples.csv", few(60, 1)), write("data.csv", few(60, 0)), write("train.csv", few(80, 2))
    assert len(tables_of_files(*names).held_out) == 60


def test_a_few_rows_in_both_tables_are_taken(write):
    train = frame(200, 2)
    data = pd.concat([train.iloc[:20], frame(40, 3)])
    tables_of_files(write("samples.csv", frame(seed=1)), write("data.csv", data), write("train.csv", train))


def test_a_key_of_a_job_is_never_the_advice(write, tmp_path):
    (tmp_path / "bad.csv").write_text("x,count\n1,2\n1,2,3\n" * 30)
    with pytest.raises(DataError, match=r"\(there is no job here that could set data.\w+: change the file\)$"):
        tables_of_files("bad.csv", "data.csv")
    (tmp_path / "bad.csv").write_text("x,count\n" + "1.5,2\n" * 30 + "1.5,2 EUR\n")
    write("few.csv", frame()[["x", "count"]])
    with pytest.raises(DataError, match=r"'count' holds text: '2 EUR'.*; leave the column out of the tables$"):
        tables_of_files("bad.csv", "few.csv")


def test_identifiers_are_left_out_with_advice_that_needs_no_job(write):
    write("data.csv", frame().assign(code=[f"k{row}" for row in range(60)]))
    with pytest.warns(UserWarning, match="left out as identifiers: column 'code'.*write text whose values rep") as told:
        tables = tables_of_files(write("samples.csv", frame(seed=1)), "data.csv")
    assert not any("data.identifiers" in str(each.message) for each in told)
    assert [column.name for column in tables.columns] == list(frame().columns)


def test_a_run_has_the_same_units(write):
    prepared = prepare("data.csv")
    tables = tables_of_run(prepared, prepared.test, prepared.transform.types, "town")
    read = tables_of_files("data.csv", "data.csv")
    assert tables.columns == read.columns
    np.testing.assert_array_equal(tables.samples, tables.held_out)
    assert set(tables.train[:, 3]) <= set(read.held_out[:, 3])  # dates are in the same units
