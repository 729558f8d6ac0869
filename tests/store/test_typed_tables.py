"""Tables of samples hold categories and missing values as their source does."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
from pyarrow import parquet

from sfg_dist.data import open_rows, open_table
from sfg_dist.data.column_type import ColumnType
from sfg_dist.job.errors import ConfigError
from sfg_dist.store.table import write_table

TOWN = ColumnType("category", "string", categories=("Bonn", "Oslo", "Rome, IT"))
GRADE = ColumnType("ordinal", "dictionary<values=string, indices=int8, ordered=1>", categories=("low", "mid", "high"))
CODE = ColumnType("category", "int16", categories=("-1", "7"))
DAY = ColumnType("date", "date32[day]", unit="D", offset=19_000)
NUMBER = ColumnType()
COLUMNS, TYPES = ("town", "grade", "code", "day", "x"), (TOWN, GRADE, CODE, DAY, NUMBER)
ROWS = np.array([[0, 2, 1, 3, 0.5], [2, 0, 0, 0, -1.25], [1, 1, 1, 9, 2.0]])
GAPS = np.vstack([ROWS, np.full(5, np.nan)])


def write(path, rows=GAPS, types=TYPES, columns=COLUMNS):
    write_table(
        path, columns, len(rows), lambda ranges: (rows[start:stop] for start, stop in ranges), source="s", types=types
    )
    return path


def test_a_parquet_file_has_the_types_of_the_source(tmp_path):
    table = parquet.read_table(write(tmp_path / "t.parquet"))
    assert table.schema.types == [type_.arrow for type_ in TYPES]
    assert table["town"].to_pylist() == ["Bonn", "Rome, IT", "Oslo", None]
    assert table["grade"].to_pylist() == ["high", "low", "mid", None]
    assert table["code"].to_pylist() == [7, -1, 7, None]
    assert pd.read_parquet(tmp_path / "t.parquet")["grade"].cat.ordered
    assert pl.read_parquet(tmp_path / "t.parquet")["town"].null_count() == 1
    again = open_table(tmp_path / "t.parquet", asked={"code": "category"})
    assert again.types[:3] == TYPES[:3]
    np.testing.assert_array_equal(again.values[:, :3], GAPS[:, :3])


def test_a_csv_file_has_the_words(tmp_path):
    text = write(tmp_path / "t.csv").read_text().splitlines()
    assert text[:2] == ["town,grade,code,day,x", "Bonn,high,7,2022-01-11,0.5"]
    assert text[2].startswith('"Rome, IT",low,-1,')
    assert text[4] == ",,,,"
    again = open_table(tmp_path / "t.csv")
    assert again.types[0].categories == TOWN.categories
    assert np.isnan(again.values[3]).all()


def test_a_zarr_says_what_its_codes_are(tmp_path):
    attributes = json.loads((write(tmp_path / "t.zarr") / "zarr.json").read_text())["attributes"]
    assert attributes["types"][0]["categories"] == list(TOWN.categories)
    again = open_table(tmp_path / "t.zarr")
    assert again.types == TYPES
    np.testing.assert_array_equal(again.values, GAPS)


def test_a_npy_file_has_records_where_types_differ(tmp_path):
    records = np.load(write(tmp_path / "t.npy", ROWS))
    assert records.dtype == [("town", "<U8"), ("grade", "<U4"), ("code", "<i2"), ("day", "<M8[D]"), ("x", "<f8")]
    assert records["town"].tolist() == ["Bonn", "Rome, IT", "Oslo"]
    assert records["code"].tolist() == [7, -1, 7]
    again = open_table(tmp_path / "t.npy")
    assert again.columns == COLUMNS
    assert again.types[0].categories == TOWN.categories
    for column, name in ((0, "town"), (2, "code")):
        rows = ROWS.copy()
        rows[1, column] = np.nan
        with pytest.raises(ConfigError, match=f"column '{name}' has missing values, which .* of a .npy cannot hold"):
            write(tmp_path / "u.npy", rows)
        assert not list(tmp_path.glob("*u*"))
    with pytest.raises(ConfigError, match=r"a \.npy has no field named 'Größe'"):
        write(tmp_path / "u.npy", ROWS, columns=("Größe", *COLUMNS[1:]))


def test_folders_of_parquet(tmp_path):
    write(f"{tmp_path / 't.parquet'}/")
    table = open_table(tmp_path / "t.parquet")
    assert table.types[0] == TOWN
    assert table.types[1] == GRADE
    with open_rows(tmp_path / "t.parquet") as reader:
        assert reader.types == table.types


TEXTS = ("string", "large_string", "string_view", "dictionary<values=string, indices=int8, ordered=0>")


@pytest.mark.parametrize("dtype", TEXTS)
def test_digits_of_a_category_stay_text_in_a_csv(tmp_path, dtype):
    types = (ColumnType("category", dtype, categories=("12", "34")), NUMBER)
    path = write(tmp_path / "t.csv", np.array([[0.0, 1.5], [1.0, 2.5]]), types, ("code", "x"))
    assert path.read_text().splitlines()[1:] == ['"12",1.5', '"34",2.5']
    assert open_table(path).types[0].categories == ("12", "34")


def test_whole_numbers_that_are_categories_stand_without_quotes_in_a_csv(tmp_path):
    types = (ColumnType("category", "dictionary<values=int16, indices=int8, ordered=0>", categories=("12", "34")), CODE)
    text = write(tmp_path / "t.csv", np.array([[0.0, 1.0]]), types, ("code", "more")).read_text()
    assert text.splitlines()[1] == "12,7"


@pytest.mark.parametrize("word", ["", " "])
def test_a_csv_cannot_hold_an_empty_text_as_a_category(tmp_path, word):
    types = (ColumnType("category", "string", categories=("a", word)), NUMBER)
    rows = np.array([[0.0, 1.0], [1.0, 2.0]])
    with pytest.raises(ConfigError, match=r"t.csv: column 'c' has an empty text as a category.*; write to .parquet"):
        write(tmp_path / "t.csv", rows, types, ("c", "x"))
    assert not any(tmp_path.iterdir())
    assert parquet.read_table(write(tmp_path / "t.parquet", rows, types, ("c", "x")))["c"].to_pylist() == ["a", word]
