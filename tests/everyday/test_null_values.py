"""Which words of a .csv are missing values, and which digits are text."""

import io

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from commands import sfg
from pyarrow import parquet

from sfg_dist.data import open_table, prepare
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.csv_dialect import TextFormat
from sfg_dist.data.naming import category_words
from sfg_dist.job.config import resolve_job
from sfg_dist.job.errors import ConfigError, DataError
from sfg_dist.model import MLP, Generator
from sfg_dist.pipeline.table import prepare_table
from sfg_dist.store.table import write_table

TEXT = "town,x,y\nNone,1,0.5\nOslo,?,1.5\n ? ,3,nan\nNone,4,2.5\n"


def read(path, text, null_values="auto", **keys):
    (path / "a.csv").write_text(text)
    return open_table(path / "a.csv", text=TextFormat(null_values=null_values), **keys)


def shown(table, column):
    place = table.columns.index(column)
    return [table.types[place].shown(value) for value in table.values[:, place]]


def test_words_of_the_list_are_missing_and_named(tmp_path):
    table = read(tmp_path, TEXT)
    assert shown(table, "town") == ["missing", "Oslo", "missing", "missing"]
    np.testing.assert_array_equal(table.values[:, 1:], [[1, 0.5], [np.nan, 1.5], [3, np.nan], [4, 2.5]])
    assert "'None', '?', 'nan' read as missing in 'town', 'x', 'y' (data.null_values)" in table.read_as
    assert "missing" not in read(tmp_path, "a,b\n1,2\n,4\n").read_as


def test_a_job_says_which_words_are_missing(tmp_path):
    table = read(tmp_path, TEXT, ["?", "nan"])
    assert shown(table, "town") == ["None", "Oslo", "missing", "None"]
    assert "'?', 'nan' read as missing" in table.read_as
    assert shown(read(tmp_path, "town,x\nNone,1\n,2\nNA,3\n", []), "town") == ["None", "missing", "NA"]
    with pytest.raises(DataError, match=r"column 'x' holds text: '\?' in data row 2"):
        read(tmp_path, TEXT, [])


@pytest.mark.parametrize("word", ["-999", "-999.0"])
def test_a_number_may_stand_for_a_missing_value(tmp_path, word):
    table = read(tmp_path, f"x,y\n0.5,1\n{word},2\n2.5,{word}\n", [word])
    np.testing.assert_array_equal(table.values, [[0.5, 1], [np.nan, 2], [2.5, np.nan]])


def test_a_word_far_down_is_found_and_named(tmp_path):
    """There Arrow reads numbers before the words are looked for."""
    lines = [f"{row}.5,{row}" for row in range(3000)]
    lines[2900] = "NaN,2900"
    assert "'NaN' read as missing in 'x'" in (table := read(tmp_path, "\n".join(["x,y", *lines]))).read_as
    assert np.flatnonzero(np.isnan(table.values[:, 0])).tolist() == [2900]
    lines[2950] = "none given,2950"
    table = read(tmp_path, "\n".join(["x,y", *lines]), ["none given", "NaN"])
    assert np.flatnonzero(np.isnan(table.values[:, 0])).tolist() == [2900, 2950]


def test_the_key_of_a_job_and_its_report(tmp_path):
    cells = [("None", "Oslo", "?")[row % 3] for row in range(90)]
    (tmp_path / "a.csv").write_text("town,x\n" + "".join(f"{cell},{row}\n" for row, cell in enumerate(cells)))
    job = resolve_job({"data": {"source": str(tmp_path / "a.csv"), "null_values": ["?"]}})
    table = prepare_table(job)
    assert "'?' read as missing in 'town' (data.null_values)" in table.report["read_as"]
    assert table.types["town"].categories == ("None", "Oslo")


CODES = {
    "zip": ("02134", "10001"),
    "month": ("01", "12"),
    "whole": ("12", "7"),
    "mixed": ("7", "a"),
    "plain": ("a", 'b"c'),
}


@pytest.fixture
def codes(tmp_path):
    types = [ColumnType("category", "string", categories=texts) for texts in CODES.values()]
    rows = np.array([[0.0] * 5 + [1.5], [1.0] * 5 + [2.5], [np.nan, 0.0, 0.0, 0.0, 0.0, 2.25]])
    names = [*CODES, "x"]
    write_table(tmp_path / "s.csv", names, 3, lambda _: [rows], source="s", types=[*types, ColumnType()])
    return tmp_path / "s.csv"


def test_codes_come_back_from_the_tools_own_csv(codes):
    table = open_table(codes)
    for name, texts in CODES.items():
        assert shown(table, name) == [*texts, "missing" if name == "zip" else texts[0]]
    np.testing.assert_array_equal(table.values[:, -1], [1.5, 2.5, 2.25])
    assert "whole numbers in quotes: 'zip' is text" in table.read_as


def test_codes_in_other_libraries(codes):
    """As the guide says, they do not go by the quotes, and must be told."""
    content = codes.read_text()
    assert content.splitlines()[1] == '"02134","01","12","7",a,1.5'
    assert pl.read_csv(codes, schema_overrides={"zip": pl.String})["zip"].to_list() == ["02134", "10001", None]
    assert pd.read_csv(codes)["zip"][0] == 2134
    assert pd.read_csv(codes, dtype={"zip": str})["zip"][0] == "02134"
    options = pa.csv.ConvertOptions(
        column_types={"zip": pa.string()}, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    assert pa.csv.read_csv(io.BytesIO(content.encode()), convert_options=options)["zip"].to_pylist() == [
        "02134",
        "10001",
        None,
    ]


def test_leading_zeros_are_said(tmp_path):
    table = read(tmp_path, "code,x\n007,1\n012,2\n")
    assert shown(table, "code") == ["007", "012"]
    assert "leading zeros: 'code' is text" in table.read_as


@pytest.mark.parametrize(
    "cells", [("01", "12"), ("1.50", "2.5"), ("True", "False"), ("+5", "7"), ("2024-01-01T00:00:00", "")]
)
def test_a_column_asked_for_as_a_category_keeps_its_text(tmp_path, cells):
    table = read(
        tmp_path, "a,b\n" + "".join(f"{cell},{row}\n" for row, cell in enumerate(cells)), asked={"a": "category"}
    )
    assert shown(table, "a") == [cell or "missing" for cell in cells]


@pytest.mark.parametrize("text", ['a,b\n"1","2"\n"3","4"\n', 'a;b\n"1,5";2\n"3,5";4\n', 'a,b\n"1.5",2\n"3.5",4\n'])
def test_quotes_alone_make_no_text(tmp_path, text):
    assert {type_.kind for type_ in read(tmp_path, text).types} <= {"integer", "decimal"}


def test_a_true_category_is_written_with_a_warning_and_an_empty_one_refused(tmp_path):
    type_ = ColumnType("category", "string", categories=("NA", "b"))
    rows = np.array([[0.0, 3.5], [1.0, 1.25]])
    with pytest.warns(
        UserWarning, match=r"category 'NA', which readers take for a missing value: read it with data\.null"
    ):
        write_table(tmp_path / "s.csv", ["a", "x"], 2, lambda _: [rows], source="s", types=[type_, ColumnType()])
    assert shown(read(tmp_path, (tmp_path / "s.csv").read_text(), []), "a") == ["NA", "b"]
    type_ = ColumnType("category", "string", categories=("", "b"))
    with pytest.raises(ConfigError, match="column 'a' has an empty text as a category"):
        write_table(tmp_path / "s.csv", ["a"], 2, lambda _: [rows[:, :1]], source="s", types=[type_])


def test_categories_that_are_given_in_a_csv_are_read_as_the_model_has_them(tmp_path):
    codes = ["007", "12", "NA"]
    table = pa.table({"code": codes * 20, "x": np.linspace(0, 1, 60)})
    parquet.write_table(table, tmp_path / "t.parquet")
    transform = prepare(tmp_path / "t.parquet", condition=["code"]).transform
    Generator(MLP(1, num_conditions=1, width=8, depth=1), transform, condition=("code",)).save(tmp_path / "model")
    (tmp_path / "given.csv").write_text("code\n" + "\n".join(codes))
    sfg(tmp_path, "sample", "model", "--given-table", "given.csv", "--out", "rows.parquet")
    assert parquet.read_table(tmp_path / "rows.parquet")["code"].to_pylist() == codes


def test_words_of_a_parquet_are_categories_which_is_said(tmp_path):
    towns = ["Oslo", "?", "None", " NA", None] * 20
    parquet.write_table(pa.table({"town": towns, "x": np.linspace(0, 1, 100)}), tmp_path / "t.parquet")
    report = prepare(tmp_path / "t.parquet").report
    assert report["kept_words"] == {"town": [" NA", "?", "None"]}
    assert report["missing"] == {"town": 0.2}
    assert "Categories, not missing values: ' NA', '?', 'None' in 'town'." in category_words(report)
    with pytest.raises(DataError, match=r"t.parquet: data.null_values is for .csv files: leave it out"):
        open_table(tmp_path / "t.parquet", text=TextFormat(null_values=["?"]))
