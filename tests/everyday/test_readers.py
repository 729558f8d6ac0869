"""What the tool writes is read by pandas, polars, pyarrow, duckdb, xarray, dask, zarr and by the tool itself."""

import importlib.util
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from sfg_dist.data import Transform, open_rows, open_split, open_table
from sfg_dist.data.surveys import survey_of
from sfg_dist.job.errors import ConfigError, DataError, PlanMismatchError, StoreError
from sfg_dist.job.fingerprint import fingerprint
from sfg_dist.job.plan import Plan
from sfg_dist.job.seal import seal, unseal
from sfg_dist.store import create_store, extend_store, open_pairs
from sfg_dist.store.create import mend_frame
from sfg_dist.store.frame import Frame
from sfg_dist.store.table import write_table
from sfg_dist.store.verify import verify

NUM_ROWS = 300


def everyday_table():
    numbers = np.random.default_rng(0)
    cents = numbers.integers(0, 10**6, NUM_ROWS)
    stamps = np.datetime64("2024-02-28T23:59:59.250", "us") + 1000 * numbers.integers(0, 10**9, NUM_ROWS)
    return pa.table(
        {
            "count": pa.array(numbers.integers(-1000, 1000, NUM_ROWS), pa.int32()),
            "level": pa.array(numbers.integers(0, 256, NUM_ROWS), pa.uint8()),
            "big": pa.array(2**60 + numbers.integers(0, 1000, NUM_ROWS), pa.int64()),
            "flag": pa.array(numbers.random(NUM_ROWS) < 0.5),
            "price": pa.array([Decimal(int(value)).scaleb(-2) for value in cents], pa.decimal128(10, 2)),
            "single": pa.array(numbers.standard_normal(NUM_ROWS).astype(np.float32)),
            "double": pa.array(numbers.standard_normal(NUM_ROWS)),
            "day": pa.array(numbers.integers(19_000, 20_000, NUM_ROWS), pa.int32()).cast(pa.date32()),
            "stamp": pa.array(stamps).cast(pa.timestamp("us", "UTC")),
            "local": pa.array(np.datetime64("2024-06-01T12:00:00", "ms") + numbers.integers(0, 10**6, NUM_ROWS)),
        }
    )


TABLE = everyday_table()


def types_of(table):
    types = []
    for name in table.column_names:
        survey = survey_of("table", name, table.column(name))
        survey.add(table.column(name))
        types.append(survey.result())
    return types


def write(path, table=TABLE, **keys):
    types = types_of(table)
    rows = np.stack([type_.to_float(table.column(index)) for index, type_ in enumerate(types)], axis=1)

    def draw(ranges):
        for start, stop in ranges:
            yield rows[start:stop]

    write_table(str(path), table.column_names, len(rows), draw, source="one", types=types, **keys)
    return str(path)


def as_arrow(reader, path, pattern=None):
    """A table of columns as a reader has it."""
    library = pytest.importorskip({"dask": "dask.dataframe"}.get(reader, reader))
    is_csv = path.endswith(".csv")
    if reader == "pandas":
        return pa.Table.from_pandas(
            library.read_csv(path) if is_csv else library.read_parquet(path), preserve_index=False
        )
    if reader == "polars":
        return (library.read_csv(path, try_parse_dates=True) if is_csv else library.read_parquet(path)).to_arrow()
    if reader == "duckdb":
        found = library.sql(f"select * from '{pattern or path}'").arrow()
        return found if isinstance(found, pa.Table) else found.read_all()
    if reader == "dask":
        frame = library.read_csv(path) if is_csv else library.read_parquet(path)
        return pa.Table.from_pandas(frame.compute(), preserve_index=False)
    return arrow_csv.read_csv(path) if is_csv else parquet.read_table(path)


READERS = ["pandas", "polars", "duckdb", "dask", "pyarrow"]
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")  # dask's, of pandas


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["rows.parquet", "rows.parquet/"])
def test_parquet_has_the_types_of_the_source(tmp_path, name, reader):
    path = write(f"{tmp_path}/{name}")
    found = as_arrow(reader, path, pattern=f"{path}*.parquet" if path.endswith("/") else None)
    assert found.column_names == TABLE.column_names
    for column in TABLE.column_names:
        assert found.column(column).to_pylist() == TABLE.column(column).to_pylist(), column
        assert reader != "pyarrow" or found.column(column).type == TABLE.column(column).type, column


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_csv_is_written_as_the_source_has_it(tmp_path, reader):
    table = TABLE.drop_columns(["single"])
    found = as_arrow(reader, write(tmp_path / "rows.csv", table))
    for column in table.column_names:
        expected, values = table.column(column), found.column(column)
        if pa.types.is_floating(values.type):
            assert values.to_pylist() == [float(value) for value in expected.to_pylist()], column
        else:  # dates may be left as text
            assert values.cast(expected.type).to_pylist() == expected.to_pylist(), column
    kinds = {"count": "int64", "big": "int64", "flag": "bool"}
    assert {name: str(found.column(name).type) for name in kinds} == kinds


def test_text_of_a_csv(tmp_path):
    lines = Path(write(tmp_path / "rows.csv", TABLE.slice(0, 3))).read_text().splitlines()
    assert lines[0] == ",".join(TABLE.column_names)
    first = dict(zip(TABLE.column_names, lines[1].split(","), strict=True))
    row = {name: TABLE.column(name)[0].as_py() for name in TABLE.column_names}
    assert (first["count"], first["big"], first["price"]) == (str(row["count"]), str(row["big"]), str(row["price"]))
    assert first["flag"] == str(row["flag"]).lower()
    assert first["single"] == str(np.float32(row["single"]))
    assert first["double"] == repr(row["double"])
    assert first["day"] == row["day"].isoformat()
    assert first["stamp"] == row["stamp"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert first["local"] == row["local"].isoformat(timespec="milliseconds")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.zarr", "rows.PARQUET"])
def test_the_tool_reads_what_it_wrote(tmp_path, name):
    path = write(tmp_path / name)
    table = open_table(path)
    assert table.types == tuple(types_of(TABLE))
    for column, type_, values in zip(table.columns, table.types, table.values.T, strict=True):
        assert type_.from_float(values).equals(TABLE.column(column).combine_chunks()), column


def test_the_tool_reads_some_columns_of_what_it_wrote(tmp_path):
    whole = open_table(write(tmp_path / "rows.zarr"))
    some = open_table(tmp_path / "rows.zarr", columns=["stamp", "big"])
    places = [whole.columns.index(name) for name in some.columns]
    assert some.types == tuple(whole.types[place] for place in places)
    np.testing.assert_array_equal(some.values, whole.values[:, places])
    with open_rows(tmp_path / "rows.zarr", columns=["stamp", "big"]) as rows:
        assert rows.types == some.types
        np.testing.assert_array_equal(rows.read(0, NUM_ROWS), some.values)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_split_and_an_array_put_behind_keep_the_types_of_samples(tmp_path):
    path = write(tmp_path / "rows.zarr")
    whole = open_table(path)
    split = open_split(path, arrays={"train": "X", "test": ["X"]})
    assert split.types == whole.types
    np.testing.assert_array_equal(split.parts["test"], whole.values)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    group.create_array("more", data=np.arange(NUM_ROWS))
    group.create_array("wide", data=whole.values)
    zarr.consolidate_metadata(path)
    behind = open_table(path, array="more", append=["X"])
    assert behind.types[1:] == whole.types
    with pytest.raises(DataError, match=r"array 'X' is a table of samples, .* array 'wide' has none"):
        open_split(path, arrays={"train": "X", "test": "wide"})


@pytest.mark.parametrize("name", ["t.csv", "t.npy", "t.zarr", "t.parquet", "t.parquet/"])
def test_a_table_that_cannot_fit_is_refused_before_its_first_row(tmp_path, name):
    with pytest.raises(ConfigError, match=r"t\.\w+/?: 9,000,.* rows take .* at the least, and .* are free"):
        write_table(f"{tmp_path}/{name}", ["a"], 9 * 10**15, lambda _: pytest.fail("a row is drawn"), source="one")
    assert not list(tmp_path.iterdir())


def test_a_table_of_too_many_parts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sfg_dist.store.table.free_disk", lambda _: 1 << 62)
    with pytest.raises(ConfigError, match="parts, and a table has 10,000,000 at most"):
        write_table(tmp_path / "t.zarr", ["a"], 2**53, lambda _: pytest.fail("a row is drawn"), source="one")


def test_the_tool_reads_its_own_csv(tmp_path):
    table = open_table(write(tmp_path / "rows.CSV"))
    wanted = types_of(TABLE)
    for column, type_, values in zip(table.columns, wanted, table.retyped(wanted).T, strict=True):
        assert type_.from_float(values).equals(TABLE.column(column).combine_chunks()), column


@pytest.mark.skipif(not importlib.util.find_spec("sfg_dist.data.folders"), reason="folders are not a source yet")
def test_the_tool_reads_its_own_folder(tmp_path):
    table = open_table(write(f"{tmp_path}/rows.parquet/"))
    assert table.columns == tuple(TABLE.column_names)


NPY = {
    "one type": (["count"], np.int32),
    "integers": (["count", "level"], np.int32),
    "integers beyond 2^53": (["count", "big"], np.int64),
    "floats": (["single", "level"], np.float32),
    "doubles": (["count", "single", "flag"], np.float64),
    "decimals": (["price"], np.float64),
    "stamps": (["local"], "M8[ms]"),
    "days": (["day"], "M8[D]"),
}


@pytest.mark.parametrize("columns", NPY)
def test_npy_has_the_type_that_carries_all_columns(tmp_path, columns):
    names, dtype = NPY[columns]
    path = write(tmp_path / "rows.npy", TABLE.select(names))
    found = np.load(path)
    assert found.dtype == dtype
    for index, name in enumerate(names):
        np.testing.assert_array_equal(found[:, index], TABLE.column(name).to_numpy().astype(dtype))
    table = open_table(path)
    for values, type_, name in zip(table.values.T, table.types, names, strict=True):
        np.testing.assert_array_equal(
            type_.from_float(values).to_numpy(zero_copy_only=False), found[:, names.index(name)]
        )


@pytest.mark.parametrize("names", [["stamp"], ["count", "stamp"]])
def test_npy_that_would_lose_something_is_refused_before_any_work(tmp_path, names):
    with pytest.raises(ConfigError, match=r"rows.npy: column 'stamp' holds .* zone.*write to .parquet, .csv or .zarr"):
        write(tmp_path / "rows.npy", TABLE.select(names))
    assert not list(tmp_path.iterdir())


def test_a_decimal_of_hundreds_is_refused_before_any_work(tmp_path):
    table = pa.table({"price": pa.array([Decimal(1200), Decimal(3400)], pa.decimal128(5, -2))})
    with pytest.raises(ConfigError, match=r"column 'price' holds decimal128\(5, -2\), .*write to \.csv or \.zarr"):
        write(tmp_path / "rows.parquet", table)
    assert not list(tmp_path.iterdir())
    assert open_table(write(tmp_path / "rows.csv", table)).values[:, 0].tolist() == [1200, 3400]


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (pa.array([2**31 - 1, 19_000], pa.int32()).cast(pa.date32()), "2147483647 days since 1970-01-01"),
        (pa.array([570 * 10**9, 10**9]).cast(pa.timestamp("s")), "570000000000 s since 1970-01-01"),
        (pa.array([2**50, 1]).cast(pa.duration("s")), "1125899906842624 s"),
    ],
    ids=["date", "stamp", "duration"],
)
def test_days_beyond_the_year_9999(tmp_path, column, shown):
    """Postgres and DuckDB write infinity as such a day, for which Python has no date, and text no number."""
    table = pa.table({"a": column})
    type_ = types_of(table)[0]
    assert type_.shown(float(type_.to_float(column).max())) == shown
    np.testing.assert_array_equal(
        open_table(write(tmp_path / "rows.parquet", table)).values[:, 0].argsort(), type_.to_float(column).argsort()
    )
    if type_.kind != "duration":
        with pytest.raises(ConfigError, match=r"no day before the year 1 or after 9999.*write to \.parquet or \.zarr"):
            write(tmp_path / "rows.csv", table)
        assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize("consolidated", [None, True, False])
def test_xarray_opens_a_table_with_the_names_of_its_columns(tmp_path, consolidated):
    xarray = pytest.importorskip("xarray")
    path = write(tmp_path / "rows.zarr")
    with xarray.open_zarr(path, consolidated=consolidated) as found:
        assert found["X"].dims == ("row", "column")
        assert found["column"].values.tolist() == TABLE.column_names
        np.testing.assert_array_equal(found["X"].sel(column="count"), TABLE.column("count").to_numpy())
        offset = next(words["offset"] for words in found.attrs["types"] if words["dtype"] == "int64")
        big = found["X"].sel(column="big").values.astype(np.int64) + offset
        np.testing.assert_array_equal(big, TABLE.column("big").to_numpy())
        assert "value - offset" in found.attrs["note"]


def test_dask_and_zarr_open_a_table(tmp_path):
    import dask.array

    path = write(tmp_path / "rows.zarr")
    counts = dask.array.from_zarr(path, component="X")[:, 0].compute(scheduler="synchronous")
    np.testing.assert_array_equal(counts, TABLE.column("count").to_numpy())
    group = zarr.open_group(path, mode="r")
    assert sorted(group.array_keys()) == ["X", "column"]
    assert list(map(str, group["column"][...])) == TABLE.column_names


def frame_of_pairs():
    """Of a table whose middle column is constant."""
    table = np.random.default_rng(0).standard_normal((50, 3))
    table[:, 1] = 5.0
    transform = Transform.fit(table, ("a", "b", "c"), constants={"b": 5.0})
    order = lambda rows: np.arange(len(rows))[::-1]  # noqa: E731
    return Frame(transform.forward(table), transform.to_arrays(), transform.to_metadata(), make_order=order)


@pytest.fixture
def pairs_url(tmp_path):
    """A labelled store."""
    frame = frame_of_pairs()
    reference = frame.reference
    identity = {"labels": {"direction": "decode", "batch_size": 4, "seed": 0}, "reference": fingerprint(reference)}
    plan = Plan(identity | {"queries": None}, 36, 2, 8, ("a", "b", "c"), "table.npy", {})
    pairs = create_store(f"{tmp_path}/pairs.zarr", plan, frame)
    fill(pairs)
    return pairs.location.url


def fill(pairs):
    for shard in pairs.pending():
        start, stop = pairs.plan.shard_range(shard)
        rows = np.arange(start, stop, dtype=np.float32)[:, None] + np.array([0.25, 0.5], np.float32)
        pairs.write_shard(shard, rows, -rows, {"attempt": 1})


@pytest.mark.parametrize("consolidated", [None, False])
@pytest.mark.filterwarnings("ignore:Object at .* is not recognized")  # the plan and the commits
@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated metadata")  # and opened without
def test_xarray_opens_pairs_with_the_names_of_their_columns(pairs_url, consolidated):
    xarray = pytest.importorskip("xarray")
    with xarray.open_zarr(pairs_url, consolidated=consolidated) as found:
        assert found["labels"].dims == found["latents"].dims == ("row", "column")
        assert found["column"].values.tolist() == ["a", "c"]
        np.testing.assert_array_equal(found["labels"].sel(column="c"), -np.arange(36) - 0.5)
    for group in ("reference", "transform"):
        with xarray.open_zarr(pairs_url, group=group, consolidated=consolidated) as found:
            assert len(found.data_vars) > 1


def test_xarray_and_zarr_open_the_rows_that_an_extension_adds(pairs_url):
    xarray = pytest.importorskip("xarray")
    fill(extend_store(pairs_url, 44))
    expected = -np.arange(36, 44) - 0.25
    with xarray.open_zarr(pairs_url, group="extensions/0001", consolidated=False) as found:
        np.testing.assert_array_equal(found["labels"][4:, 0], expected)
    np.testing.assert_array_equal(zarr.open_group(pairs_url, mode="r")["extensions/0001/labels"][4:, 0], expected)
    assert verify(open_pairs(pairs_url)).is_clean


def test_dask_and_the_tool_open_pairs(pairs_url):
    import dask.array

    labels = dask.array.from_zarr(pairs_url, component="labels").compute(scheduler="synchronous")
    np.testing.assert_array_equal(labels, open_pairs(pairs_url).labels.compute(scheduler="synchronous"))
    np.testing.assert_array_equal(open_table(pairs_url, array="labels").values, labels)


def test_a_store_of_version_0_1_0_opens_verifies_and_is_extended(pairs_url):
    """Its plan says nothing of names, and its objects are what they were: no names of dimensions, no types."""
    pairs = open_pairs(pairs_url)
    location, plan = pairs.location, pairs.plan
    for record in ("plan.json", "plan.copy.json"):
        fields = unseal(location.read(record))
        fields.pop("has_names")
        location.delete(record)
        location.create(record, seal(fields))
    old = open_pairs(pairs_url)
    assert not old.plan.has_names
    assert old.plan.run_id == plan.run_id
    metadata = dict(Frame(*FRAME).objects(old.plan))
    assert b"dimension_names" not in metadata["labels/zarr.json"]
    assert not any(key.startswith("column") for key in metadata)
    assert b"types" not in metadata["transform/zarr.json"]
    words = "version 0.1.0, which made the store, read or transformed some tables otherwise"
    changed = {"identity": plan.identity | {"reference": "0"}}
    with pytest.raises(PlanMismatchError, match=words):
        old.require_plan(replace(plan, **changed))
    with pytest.raises(StoreError, match=f"{words}.*: mend it with that version"):
        mend_frame(old, Frame(*FRAME))
    fill(extend_store(pairs_url, 44))
    assert b"dimension_names" not in location.read("extensions/0001/labels/zarr.json")


FRAME = (np.zeros((5, 2), np.float32), {"constants": np.array([np.nan, 5.0, np.nan])}, {"types": []})


def test_an_old_folder_of_parquet_is_gone_on_with_and_its_marker_goes(tmp_path):
    path = write(f"{tmp_path}/rows.parquet/")
    beside, inside = tmp_path / "rows.parquet.sample.json", tmp_path / "rows.parquet" / "_sample.json"
    beside.rename(inside)
    part = tmp_path / "rows.parquet" / "part-000000.parquet"
    before = part.stat().st_mtime_ns
    write(path)
    assert part.stat().st_mtime_ns == before
    assert (beside.exists(), inside.exists()) == (True, False)
    beside.rename(inside)
    write(path, TABLE.select(["count"]))  # another table: the old one is removed
    assert parquet.read_table(path).column_names == ["count"]
    assert [file.name for file in (tmp_path / "rows.parquet").iterdir()] == [part.name]


def test_files_of_the_user_in_a_folder_of_parts_are_left_alone(tmp_path):
    path = write(f"{tmp_path}/rows.parquet/")
    mine = tmp_path / "rows.parquet" / "mine.csv"
    mine.write_text("a\n1\n")
    with pytest.raises(ConfigError, match="something else than a table of samples"):
        write(path, TABLE.select(["count"]))
    assert mine.exists()


@pytest.mark.parametrize("name", ["rows.CSV", "rows.Parquet", "rows.NPY", "rows.ZARR"])
def test_suffixes_in_any_case_and_the_home_folder(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(f"~/{name}", TABLE.select(["count"]))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(open_table(tmp_path / name).values[:, 0], TABLE.column("count").to_numpy())


@pytest.mark.parametrize(
    ("index", "columns", "words"),
    [
        ({}, ("a",), "1 column, parquet"),
        ({"data": list("ba")}, ("a",), "1 column, parquet, row names of pandas left out"),
        ({"data": [2, 1], "name": "id"}, ("a", "id"), "2 columns, parquet, with the index of pandas ('id')"),
    ],
)
def test_an_index_of_pandas_is_said(tmp_path, index, columns, words):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [0.5, 1.5]}, index=pandas.Index(**index) if index else None)
    frame.to_parquet(tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet")
    assert (table.columns, table.read_as) == (columns, words)
    with open_rows(tmp_path / "t.parquet") as rows:
        assert (rows.columns, rows.read_as) == (columns, words)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_copies_of_rows_of_short_floats_are_seen_in_a_csv(tmp_path, dtype):
    """Where a .csv has 0.1, the training table has 0.10000000149."""
    from sfg_dist.pipeline.judged_tables import tables_of_files

    numbers = np.random.default_rng(0).standard_normal((200, 2)).astype(dtype)
    for name, rows in (("train", numbers[:100]), ("held_out", numbers[100:])):
        parquet.write_table(pa.table({"a": rows[:, 0], "b": rows[:, 1]}), tmp_path / f"{name}.parquet")
    copies = write(tmp_path / "samples.csv", pa.table({"a": numbers[:100, 0], "b": numbers[:100, 1]}))
    tables = tables_of_files(copies, tmp_path / "held_out.parquet", tmp_path / "train.parquet")
    np.testing.assert_array_equal(tables.samples, tables.train)
    assert tables.train.tolist() == numbers[:100].astype(float).tolist()


def test_stamps_of_any_unit_are_one_number_when_they_are_judged():
    from sfg_dist.pipeline.judged_tables import plain_rows

    stamps = 1_704_067_200_000_000 + np.random.default_rng(0).integers(0, 10**12, 1000)
    columns = [pa.array(stamps * 1000).cast(pa.timestamp("ns")), pa.array(stamps).cast(pa.timestamp("us"))]
    of_ns, of_us = ((column, types_of(pa.table({"a": column}))) for column in columns)
    rows = [plain_rows(types[0].to_float(column)[:, None], types) for column, types in (of_ns, of_us)]
    np.testing.assert_array_equal(*rows)
    np.testing.assert_allclose(rows[0][:, 0], stamps / 10**6, rtol=0, atol=3e-7)
    days = pa.array([18_000, 19_000], pa.int32()).cast(pa.date32())
    types = types_of(pa.table({"a": days}))
    assert plain_rows(types[0].to_float(days)[:, None], types)[:, 0].tolist() == [18_000 * 86_400, 19_000 * 86_400]
