"""Frames come back with the schema that they had, and what cannot come back is refused by its column."""

import contextlib
import json
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from examples import examples
from frames.kinds import GAPS, KINDS, NUM_ROWS, SHORT, STAMPS, WORDS, is_same, is_same_schema, table_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sfg_dist.data import prepare
from sfg_dist.data.column_files import typed_columns
from sfg_dist.data.frames import Container, columns_of_rows, is_frame, open_frame, rows_of_frame, source_of
from sfg_dist.data.table import open_columns
from sfg_dist.job.errors import ConfigError, DataError, DocumentError, StoreError
from sfg_dist.model import MLP, Generator

CASES = [(library, kind) for library, kinds in KINDS.items() for kind in kinds]


def untrained(frame, **keys):
    """A generator of a frame whose network has learnt nothing: its rows go through all that follows the network."""
    container, columns = open_frame(frame)
    table = open_columns("the frame", columns, asked=container.asked)
    prepared = prepare("the frame", held=table, constant="keep", **keys)
    torch.manual_seed(0)
    network = MLP(prepared.transform.dim, width=8, depth=1)
    return Generator(network, prepared.transform, container=container.select(prepared.columns))


def kept(container):
    """The container after it was written to a file and read again."""
    return Container.from_document(json.loads(json.dumps(container.to_document())), container.schema.names)


@pytest.mark.parametrize(("library", "kind"), CASES, ids=map(": ".join, CASES))
def test_a_column_of_each_kind_comes_back(library, kind):
    """The values go through float64 and back, and the schema through a file."""
    frame = table_of(library, {"column": KINDS[library][kind]})
    container, columns = open_frame(frame)
    values, types = typed_columns("the frame", columns, asked=container.asked)
    assert values.dtype == np.float64
    again = kept(container).give(columns_of_rows(tuple(types), tuple(types.values()), [values[:25], values[25:]]))
    assert is_same_schema(again, frame)
    assert is_same(again, frame)
    assert np.array_equal(rows_of_frame(frame, ("column",), tuple(types.values())), values, equal_nan=True)


@pytest.mark.parametrize("library", KINDS)
def test_a_table_of_all_kinds_is_sampled_and_saved(library, tmp_path):
    frame = table_of(library, KINDS[library])
    generator = untrained(frame, dependencies="ignore")
    generator.save(tmp_path)
    loaded = Generator.load(tmp_path)
    rows = loaded.sample(30, seed=3)
    assert len(rows) == 30
    assert is_same_schema(rows, frame)
    assert is_same(rows, generator.sample(30, seed=3))
    assert loaded.sample(5, container="numpy").shape == (5, len(generator.columns))


@pytest.mark.slow
@settings(max_examples=examples(10))
@given(st.data())
def test_random_schemas(data):
    library = data.draw(st.sampled_from(list(KINDS)))
    names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
    if library == "numpy":
        names = st.text("abcdeßµ _.", min_size=1, max_size=8)
    chosen = data.draw(st.dictionaries(names, st.sampled_from(list(KINDS[library])), min_size=1, max_size=6))
    frame = table_of(library, {name: KINDS[library][kind] for name, kind in chosen.items()})
    generator = untrained(frame)
    num_rows = data.draw(st.integers(0, 40))
    rows = generator.sample(num_rows, seed=1)
    assert len(rows) == num_rows
    assert is_same_schema(rows, frame)


def test_categories_and_missing_values_of_a_sample():
    frame = pd.DataFrame({"grade": pd.Categorical(GAPS, categories=["mid", "low", "never", "high"]), "x": SHORT})
    rows = untrained(frame).sample(400)
    assert list(rows.grade.cat.categories) == ["mid", "low", "never", "high"]
    assert set(rows.grade.dropna()) == {"mid", "low", "high"}
    assert 0 < rows.grade.isna().sum() < 400
    assert list(untrained(frame).sample(0).grade.cat.categories) == ["mid", "low", "never", "high"]


def test_dtypes_of_a_frame_do_not_depend_on_what_was_drawn(tmp_path):
    """Neither where pandas is asked for by a model of a file, nor by one of another frame."""
    some = pa.array([None if row % 5 == 0 else row % 2 for row in range(NUM_ROWS)], pa.uint16())
    table = pa.table({"some": some, "all": SHORT, "truth": some.cast(pa.bool_())})
    wanted = {"some": "UInt16", "all": "int64", "truth": "boolean"}
    parquet.write_table(table, tmp_path / "t.parquet")
    prepared = prepare(tmp_path / "t.parquet")
    torch.manual_seed(0)
    network = MLP(prepared.transform.dim, width=8, depth=1)
    for generator in (Generator(network, prepared.transform), untrained(table)):
        rows = generator.sample(200, container="pandas")
        assert rows.isna().sum()[["some", "truth"]].all()
        is_whole = rows.notna().all(axis=1)
        assert is_whole.any()
        for number in (0, int(is_whole.argmax())):
            one = generator.sample(1, start=number, container="pandas")
            assert one.dtypes.astype(str).to_dict() == wanted
            assert one.equals(rows.iloc[number : number + 1].reset_index(drop=True))


def test_the_order_of_the_frame_is_that_of_the_sample():
    """Conditions stand last in the generator's own columns."""
    frame = pd.DataFrame({"b": WORDS, "a": SHORT, "c": np.linspace(0, 1, NUM_ROWS)})
    container, columns = open_frame(frame)
    prepared = prepare("the frame", held=open_columns("the frame", columns), condition=["b"])
    assert prepared.columns == ("a", "c", "b")
    network = MLP(2, num_conditions=1, width=8, depth=1)
    generator = Generator(network, prepared.transform, condition=("b",), container=container)
    rows = generator.sample(4, given={"b": ["low", "high", "mid", "low"]})
    assert list(rows.columns) == ["b", "a", "c"]
    assert rows.b.tolist() == ["low", "high", "mid", "low"]
    assert generator.sample(4, given=pl.DataFrame({"b": ["low", "high", "mid", "low"]})).equals(rows)


def test_columns_are_chosen_by_their_names():
    frame = pd.DataFrame({0: SHORT, 1: [[1]] * NUM_ROWS, 2: np.linspace(0, 1, NUM_ROWS)})
    container, columns = open_frame(frame, ["2", "0"])
    assert columns.column_names == ["2", "0"]
    assert container.labels == (2, 0)
    with pytest.raises(DataError, match=r"the pandas frame has no column 'three' \(data.columns\)"):
        open_frame(frame, ["three"])


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pd.Series([[1]] * NUM_ROWS), r"column 'bad' has type list<item: int64>"),
        (pd.Series([b"x"] * NUM_ROWS), r"column 'bad' has type binary"),
        (pd.Series([1j] * NUM_ROWS), r"column 'bad' has dtype complex128, which cannot be read"),
        (pd.Series([1, "a"] * (NUM_ROWS // 2), dtype=object), r"column 'bad' has dtype object, which cannot be read"),
        (pd.Series(pd.arrays.SparseArray(SHORT)), r"column 'bad' has dtype Sparse.*which cannot be read"),
        (pd.Series(pd.interval_range(0, NUM_ROWS)), r"column 'bad' has type extension<pandas.interval"),
        (pd.cut(pd.Series(SHORT), 3), r"column 'bad' has categories of type .*interval"),
        (pd.Series([f"person {row}" for row in range(NUM_ROWS)]), r"column 'bad' holds text, 60 different values"),
    ],
    ids=["lists", "bytes", "complex", "mixed", "sparse", "intervals", "cut", "names"],
)
def test_a_column_that_cannot_be_carried_is_named(column, said):
    frame = pd.DataFrame({"good": SHORT, "bad": column})
    with pytest.raises(DataError, match=f"the pandas frame: {said}"):
        typed_columns("the pandas frame", open_frame(frame)[1])


def test_columns_of_polars_and_numpy_that_cannot_be_carried_are_named():
    frame = pl.DataFrame({"good": SHORT, "bad": pl.Series(SHORT, dtype=pl.Int128)})
    with pytest.raises(DataError, match="the polars frame: column 'bad' has dtype Int128, which cannot be carried"):
        open_frame(frame)
    with pytest.raises(DataError, match="the polars frame: column 'bad' has dtype Object"):
        open_frame(pl.DataFrame({"bad": pl.Series([object()] * 3, dtype=pl.Object)}))
    with pytest.raises(DataError, match="the array: column 'c0' holds complex numbers"):
        open_frame(np.ones((30, 2)) * 1j)
    with pytest.raises(DataError, match="the array: column 'pair' holds several values a row"):
        open_frame(np.zeros(30, [("x", "f8"), ("pair", "f8", 2)]))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ("table.csv", r"got 'table.csv'; a file is named in a job"),
        ([[1.0, 2.0]], r"pandas.DataFrame and numpy.asarray make such tables"),
        (pd.Series(SHORT), r"got a Series of pandas: take frame.to_frame\(\)"),
        (pl.DataFrame({"a": SHORT}).lazy(), r"got a LazyFrame of polars: take frame.collect\(\)"),
        (pa.array(SHORT), r"expected a frame of pandas or polars, a table of pyarrow or an array of numpy"),
        (np.arange(30.0), r"the array has shape \(30,\): expected 2 dimensions"),
        (np.ma.masked_array(np.ones((30, 2))), r"the array is masked: fill it"),
        (pd.DataFrame({("a", 1): SHORT}), r"a column has the label \['a', 1\]: give every column a name"),
        (pd.DataFrame([[1, 2]] * 30, columns=["a", "a"]), r"2 columns are named 'a'"),
        (pa.table([SHORT, SHORT], names=["a", "a"]), r"the Arrow table: 2 columns are named 'a'"),
    ],
    ids=["path", "list", "series", "lazy", "array of Arrow", "one dimension", "mask", "label", "twice", "Arrow twice"],
)
def test_what_is_no_table_is_refused_in_words(frame, said):
    with pytest.raises(DataError, match=said):
        open_frame(frame)


def test_an_index_is_left_out_and_said():
    frame = pd.DataFrame({"x": SHORT}, index=pd.Index(range(NUM_ROWS), name="key"))
    with pytest.warns(
        UserWarning, match=r"the index 'key' of the frame is left out.*reset_index\(\) makes it a column"
    ):
        open_frame(frame)
    with pytest.warns(UserWarning, match="the index of the frame is left out"):
        open_frame(frame.set_axis(pd.DatetimeIndex(STAMPS)))
    open_frame(frame.reset_index(drop=True)[::2])  # numbers of rows: nothing is lost


def test_anything_with_a_stream_of_arrow_is_a_table():
    class Stream:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table({"x": SHORT}).__arrow_c_stream__(requested_schema)

    assert source_of(Stream()) == "the Arrow table"
    assert open_frame(Stream())[1].column_names == ["x"]
    reader = pa.table({"x": SHORT}).to_reader()
    assert open_frame(reader)[1].num_rows == NUM_ROWS
    assert is_frame(np.zeros(2, "datetime64[s]"))
    assert not is_frame(np.zeros((2, 2)))


def test_rows_of_a_frame_in_the_order_of_the_generator():
    frame = pl.DataFrame({"extra": WORDS, "b": SHORT, "a": NUM_ROWS * [1.5]})
    _, columns = open_frame(frame)
    types = open_columns("the frame", columns).types
    rows = rows_of_frame(frame, ("a", "b"), (types[2], types[1]))
    assert np.array_equal(rows, np.stack([NUM_ROWS * [1.5], SHORT], axis=1))
    with pytest.raises(DataError, match="the polars frame has no column 'c'"):
        rows_of_frame(frame, ("c",), types[:1])
    with pytest.raises(DataError, match="the polars frame: column 'extra' holds 'other', which is none of its categ"):
        rows_of_frame(pl.DataFrame({"extra": ["low", "other"]}), ("extra",), types[:1])


def test_a_generator_of_a_file_is_asked_for_containers():
    """It has no frame to go by, so each library makes what it makes of the types of the file."""
    generator = untrained(pd.DataFrame({"x": SHORT, "when": STAMPS, "word": GAPS}))
    plain = Generator(generator.network, generator.transform)
    rows = plain.sample(20)
    assert rows.dtype == np.float64
    table = plain.sample(20, container="arrow")
    assert table.schema.types == [pa.int64(), pa.timestamp("us"), pa.large_string()]
    assert plain.sample(20, container="polars").equals(pl.DataFrame(table))
    assert plain.sample(20, container="pandas").equals(table.to_pandas())
    assert np.array_equal(plain.sample(20, container="numpy"), rows, equal_nan=True)
    with pytest.raises(ConfigError, match="container = 'excel': expected one of arrow, pandas, polars, numpy"):
        plain.sample(1, container="excel")


def test_a_library_that_is_not_there(monkeypatch, tmp_path):
    generator = untrained(pl.DataFrame({"x": SHORT, "word": pl.Series(GAPS, dtype=pl.Categorical)}))
    generator.save(tmp_path)
    monkeypatch.setitem(sys.modules, "polars", None)
    monkeypatch.delitem(sys.modules, "polars")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    loaded = Generator.load(tmp_path)
    with pytest.warns(UserWarning, match="polars is not installed, so the rows are given as a table of pyarrow"):
        rows = loaded.sample(10)
    assert isinstance(rows, pa.Table)
    assert rows.schema == loaded.container.schema
    with pytest.raises(ConfigError, match="container = 'polars': polars is not installed"):
        loaded.sample(10, container="polars")


WORDS_OF_TYPES = sorted({
    words["type"]
    for library, kinds in KINDS.items()
    for column in kinds.values()
    for words in open_frame(table_of(library, {"column": column}))[0].to_document()["columns"]
})  # fmt: skip


def changed(frame, **changes):
    """The document of a container in which the last column says something else, and its columns."""
    container, columns = open_frame(frame)
    document = container.to_document()
    document["columns"][-1] |= changes
    return {name: value for name, value in document.items() if name not in changes}, columns


@pytest.mark.parametrize("dtype", ["U4", "S4", "T", ">f4", "M8[s]", "f16", "i8"])
def test_arrays_of_one_dtype(dtype):
    """Rows and columns, not records."""
    array = np.array([[row % 3, row] for row in range(40)])
    array = (
        array.astype("i8").astype("M8[s]")
        if dtype == "M8[s]"
        else (array % 7).astype(str if dtype in "U4S4T" else dtype)
    )
    array = array.astype(dtype)
    rows = untrained(array).sample(20)
    assert rows.dtype == array.dtype
    assert rows.shape == (20, 2)


def parts_of_a_dictionary(kind, index):
    """A column of three parts, each with 100 values of its own, 150 in all."""
    is_text = kind in (pa.string(), pa.string_view())
    values = pa.array(
        [f"n{n}" for n in range(150)] if is_text else list(range(150)), pa.string() if is_text else pa.int32()
    )
    return pa.chunked_array([
        pa.DictionaryArray.from_arrays(pa.array(list(range(100)) * 3, index), values[first : first + 100].cast(kind))
        for first in (0, 50, 20)
    ])  # fmt: skip


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.date32(), pa.int16()])
def test_parts_with_dictionaries_of_their_own(kind):
    frame = pa.table({"column": parts_of_a_dictionary(kind, pa.int16()), "x": np.arange(900.0)})
    rows = untrained(frame).sample(2000)
    assert rows.schema == frame.schema
    assert len(rows["column"].unique()) > 100
    frame = pa.table({"column": parts_of_a_dictionary(kind, pa.int8())})
    with pytest.raises(
        DataError, match="column 'column' has 150 categories, more than its index of type int8 can tell"
    ):
        open_frame(frame)


def test_a_column_that_another_library_does_not_take():
    generator = untrained(table_of("arrow", {"wide": KINDS["arrow"]["decimal256"], "x": KINDS["arrow"]["float64"]}))
    with pytest.raises(ConfigError, match="container = 'polars': polars does not take the columns"):
        generator.sample(3, container="polars")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"type": "int63"}, "'int63' is no type of Arrow"),
        ({"type": "dictionary<values=" * 20 + "string"}, "a type has 366 letters"),
        ({"type": "list<item: int64>"}, "no type of Arrow"),
        ({"type": "dictionary<values=date32[day], indices=int8, ordered=0>"}, "values that are no date32"),
        ({"dtype": "os.system('true')"}, "there is no dtype"),
        ({"metadata": {"key": "\u2248"}}, "metadata of a schema are no bytes"),
        ({"name": "y"}, "it has other columns than the generator"),
    ],
)
def test_a_damaged_container_is_refused(changes, said):
    document, _ = changed(pd.DataFrame({"x": SHORT, "word": pd.Categorical(WORDS)}), **changes)
    with pytest.raises(DocumentError, match=said):
        Container.from_document(document, ("x", "word"))


def test_a_container_has_what_its_library_needs():
    document = open_frame(pd.DataFrame({"x": SHORT}))[0].to_document()
    with pytest.raises(DocumentError, match="a table of polars has no label a column"):
        Container.from_document(document | {"kind": "polars"}, ("x",))
    del document["columns"][0]["dtype"]
    with pytest.raises(DocumentError, match="a table of pandas has a dtype a column"):
        Container.from_document(document, ("x",))


@given(st.data())
def test_any_words_are_an_error_in_words_or_a_table(data):
    """What a stranger's model says of its container ends in no traceback."""
    library = data.draw(st.sampled_from(list(KINDS)))
    frame = table_of(library, {"column": KINDS[library][data.draw(st.sampled_from(list(KINDS[library])))]})
    texts = st.text(st.characters(codec="latin-1"), max_size=12)
    dtypes = st.sampled_from(["category of int64", "Int8", "period[X]", "datetime64[ns, ../x]", "arrow", "enum", "O"])
    changes = {
        "type": st.sampled_from(WORDS_OF_TYPES) | texts,
        "dtype": dtypes | texts,
        "dictionary": st.lists(texts | st.integers(-(2**63), 2**63 - 1) | st.none(), max_size=4),
        "metadata": st.dictionaries(texts | st.just("ARROW:extension:name"), texts, max_size=2),
    }
    name = data.draw(st.sampled_from(list(changes)))
    document, columns = changed(frame, **{name: data.draw(changes[name])})
    with contextlib.suppress(DocumentError, StoreError):
        Container.from_document(document, ("column",)).give(columns)


def test_a_container_that_does_not_fit_its_generator_is_refused():
    frame = pd.DataFrame({"x": SHORT, "word": pd.Categorical(WORDS)})
    generator = untrained(frame)
    for changes, said in (
        ({"dtype": "period[M]"}, "container is damaged: column 'word' cannot be given back"),
        ({"dictionary": ["low", "mid"]}, "column 'word' cannot be given back"),
    ):
        container = Container.from_document(changed(frame, **changes)[0], generator.columns)
        wrong = Generator(generator.network, generator.transform, container=container)
        with pytest.raises(StoreError, match=said):
            wrong.sample(100)
