"""Categories of tables in several parts: their dictionaries, their orders, and where a part's rows count."""

import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from sfg_dist.data import open_rows, open_table
from sfg_dist.data.category_survey import CategorySurvey
from sfg_dist.data.column_type import ColumnType, UnfitValueError
from sfg_dist.data.frames import open_frame
from sfg_dist.data.unfit import UnfitColumnsError
from sfg_dist.job.errors import DataError


def dictionary(names, codes, *, ordered=False):
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(names), ordered=ordered)


def write_parts(folder, columns):
    folder.mkdir()
    for number, column in enumerate(columns):
        x = np.random.default_rng(number).normal(size=len(column))
        parquet.write_table(pa.table({"c": column, "x": x}), folder / f"{number}.parquet")
    return folder


def test_indices_of_joined_dictionaries_are_wide_enough(tmp_path):
    names = [f"k{number:03}" for number in range(200)]
    codes = np.arange(3000) % 100
    folder = write_parts(tmp_path / "t", [dictionary(names[:100], codes), dictionary(names[100:], codes)])
    table = open_table(folder)
    assert table.types[0].dtype == "dictionary<values=string, indices=int16, ordered=0>"
    assert table.types[0].from_float(table.values[:, 0]).to_pylist()[-1] == "k199"
    assert ColumnType.from_dict(table.types[0].to_dict()) == table.types[0]
    with open_rows(folder) as rows:
        assert rows.types == table.types
        np.testing.assert_array_equal(rows.read(0, 6000), table.values)


ORDERS = [["low", "high"], ["low", "mid", "high"]], [["high", "low"], ["low", "mid", "high"]], [["a", "b"], ["a", "c"]]
WORDS = "", "is below '.*' in one and above it in another", "none says which is lower, '[bc]' or '[bc]'"


@pytest.mark.parametrize(("orders", "words"), list(zip(ORDERS, WORDS, strict=True)))
def test_parts_with_different_orders(tmp_path, orders, words):
    """Orders of parts are joined to the one that agrees with all, or refused."""
    columns = [dictionary(names, np.arange(60) % len(names), ordered=True) for names in orders]
    folder = write_parts(tmp_path / "t", columns)
    frame = pa.table({"c": pa.chunked_array(columns), "x": np.arange(120.0)})
    if words:
        with pytest.raises(UnfitColumnsError, match=f"column 'c' has parts.*{words}; give one in data.types"):
            open_table(folder)
        with pytest.raises(UnfitColumnsError, match=words), open_rows(folder):
            pass
        with pytest.raises(DataError, match=f"column 'c' has parts.*{words}; give all chunks one dictionary"):
            open_frame(frame)
        order = sorted(set(orders[0] + orders[1]))
        assert open_table(folder, asked={"c": order}).types[0].categories == tuple(order)
        return
    assert open_table(folder).types[0].categories == ("low", "mid", "high")
    with open_rows(folder) as rows:
        assert rows.types[0].categories == ("low", "mid", "high")
    container, plain = open_frame(frame)
    assert container.dictionaries["c"].to_pylist() == ["low", "mid", "high"]
    assert plain["c"].to_pylist() == frame["c"].to_pylist()


def test_text_without_a_place_in_the_order_of_the_other_part_is_named(tmp_path):
    folder = write_parts(tmp_path / "t", [dictionary(["b", "a"], [0, 1] * 30, ordered=True), pa.array(["b", "z"] * 30)])
    with (
        pytest.raises(
            UnfitColumnsError, match="column 'c' holds 'z', which the dictionaries of its other parts do not have"
        ),
        open_rows(folder),
    ):
        pass


def test_text_of_folders_names_counts_in_each_row(tmp_path):
    for number in range(25):
        folder = tmp_path / "t" / f"town=t{number:02}"
        folder.mkdir(parents=True)
        x = np.random.default_rng(number).normal(size=0 if number == 24 else 40)
        parquet.write_table(pa.table({"x": x}), folder / "a.parquet")
    table = open_table(tmp_path / "t")
    assert len(table.types[1].categories) == 24
    with open_rows(tmp_path / "t") as rows:
        assert rows.types == table.types
        np.testing.assert_array_equal(rows.read(0, 960), table.values)


def test_free_text_is_refused_before_it_is_made_python_s():
    texts = pa.array([f"text {number}" for number in range(20_000)])
    survey = CategorySurvey(ColumnType("category", "string"))
    survey.add(texts.slice(0, 10))
    tracemalloc.start()
    survey.add(texts)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000  # as Python's texts they take more than twice that
    tracemalloc.stop()
    with pytest.raises(UnfitValueError, match="more than 1,000 different values"):
        survey.result()
    again = CategorySurvey(ColumnType("category", "string"), is_asked=True)
    again.add(pa.DictionaryArray.from_arrays(pa.array(range(2000)), pa.array(["a", "b"] * 1000)))
    assert again.result().categories == ("a", "b")


@pytest.mark.parametrize("kind", [pa.time32("s"), pa.time64("us"), pa.duration("s"), pa.float16()])
@pytest.mark.parametrize("asked", ["category", "ordinal", ["1", "2"]])
def test_types_that_no_text_gives_back_are_no_categories(tmp_path, kind, asked):
    column = pa.array([1.0, 2.0] * 20).cast(kind) if kind == pa.float16() else pa.array([1, 2] * 20, kind)
    parquet.write_table(pa.table({"c": column, "x": np.arange(40.0)}), tmp_path / "t.parquet")
    with pytest.raises(UnfitColumnsError, match=r"column 'c' has type .*, which cannot be read as categories"):
        open_table(tmp_path / "t.parquet", asked={"c": asked})


def test_no_number_is_a_gap_and_zero_has_no_sign(tmp_path):
    column = pa.array([0.0, -0.0, float("nan"), 2.5] * 10)
    parquet.write_table(pa.table({"c": column, "x": np.arange(40.0)}), tmp_path / "t.parquet", row_group_size=7)
    table = open_table(tmp_path / "t.parquet", asked={"c": "category"})
    assert table.types[0].categories == ("0", "2.5")
    np.testing.assert_array_equal(table.values[:4, 0], [0, 0, np.nan, 1])
    with open_rows(tmp_path / "t.parquet", asked={"c": "category"}) as rows:
        np.testing.assert_array_equal(rows.read(0, 40), table.values)
    np.testing.assert_array_equal(table.types[0].from_user([-0.0, 2.5, None]), [0, 1, np.nan])


def test_missing_values_of_all_kinds_may_be_given():
    type_ = ColumnType("category", "string", categories=("A", "B"))
    given = [pd.NA, "B", None, float("nan"), pd.NaT, np.datetime64("NaT"), "A"]
    np.testing.assert_array_equal(type_.from_user(given), [np.nan, 1, *[np.nan] * 4, 0])
