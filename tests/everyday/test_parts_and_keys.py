"""Folders' names as columns, stamps of 96 bits, and keys of --set for columns of any name."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sfg_dist.data import open_rows, open_table, prepare
from sfg_dist.data.column_type import UnfitValueError
from sfg_dist.job.config import parse_job, resolve_job
from sfg_dist.job.errors import ConfigError, DataError
from sfg_dist.pipeline.table import prepare_table

PART = pa.table({"a": [1, 2]})


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (["007", "010"], ["007", "010"]),
        (["01", "12"], [1, 12]),
        (["-5", "7"], [-5, 7]),
        (["1_000", "2"], ["1_000", "2"]),
        (["1e3", "2.5"], [1000.0, 2.5]),
        (["9007199254740993", "5"], [9007199254740993, 5]),
        (["99999999999999999999", "5"], ["99999999999999999999", "5"]),
        (["Oslo", "S%C3%A3o%20Paulo"], ["Oslo", "São Paulo"]),
        (["__HIVE_DEFAULT_PARTITION__", "007"], [None, "007"]),
    ],
)
def test_names_of_folders_keep_what_they_say(tmp_path, names, values):
    for name in names:
        (tmp_path / f"z%20z={name}").mkdir()
        parquet.write_table(PART, tmp_path / f"z%20z={name}" / "p.parquet")
    table = open_table(tmp_path)
    assert table.columns == ("a", "z z")
    found = table.types[1].from_float(table.values[:, 1]).to_pylist()
    by_file = dict(zip(sorted(names), found[::2], strict=True))
    assert by_file == dict(zip(names, values, strict=True))
    with open_rows(tmp_path) as rows:
        assert rows.read(0, 4).tobytes() == table.values.tobytes()


@pytest.mark.parametrize("years", [(9999, 2023), (1, 2023), (1970, 2023)])
def test_stamps_of_96_bits_do_not_wrap_around(tmp_path, years):
    """Spark writes them, and 9999-12-31 for "no end"; Arrow reads that as a day of 1816."""
    stamps = [*(dt.datetime(year, 12, 31) for year in years), None]
    table = pa.table({"a": pa.array(stamps, pa.timestamp("us")), "b": ["x", "y", "x"]})
    parquet.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    found = open_table(tmp_path / "a.parquet")
    column = found.types[0].from_float(found.values[:, 0]).cast(pa.timestamp("us"))
    assert column.to_pylist() == stamps
    with open_rows(tmp_path / "a.parquet") as rows:
        assert rows.types == found.types
        assert rows.read(0, 3).tobytes() == found.values.tobytes()


def write_96(path, **columns):
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table(columns), path, use_deprecated_int96_timestamps=True)


@pytest.mark.parametrize("years", [(2023, 9999, 2024), (9999, 2023, 2024)])
def test_parts_with_stamps_of_96_bits_have_one_unit(tmp_path, years):
    stamps = [[dt.datetime(year, 12, 31), dt.datetime(2023, 1, 1), None] for year in years]
    for number, values in enumerate(stamps):
        write_96(tmp_path / "t" / f"{number}.parquet", a=pa.array(values, pa.timestamp("us")))
    found = open_table(tmp_path / "t")
    assert found.types[0].from_float(found.values[:, 0]).cast(pa.timestamp("us")).to_pylist() == [
        stamp for part in stamps for stamp in part
    ]
    with open_rows(tmp_path / "t") as rows:
        assert rows.types == found.types
        assert rows.read(0, 9).tobytes() == found.values.tobytes()


@pytest.mark.parametrize("open_", [open_table, lambda path, **keys: open_rows(path, **keys).__enter__()])
def test_nanoseconds_beside_stamps_beyond_their_reach(tmp_path, open_):
    far, fine = pa.array([dt.datetime(9999, 12, 31)], pa.timestamp("us")), pa.array([1], pa.timestamp("ns"))
    write_96(tmp_path / "a.parquet", a=far, b=fine, x=[1.5])
    with pytest.raises(DataError, match="column 'b' holds nanoseconds, beside stamps outside the years"):
        open_(tmp_path / "a.parquet")
    assert open_(tmp_path / "a.parquet", columns=["b", "x"]).types[0].unit == "ns"
    write_96(tmp_path / "t" / "a.parquet", a=far)
    write_96(tmp_path / "t" / "b.parquet", a=fine)
    with pytest.raises(DataError, match=r"column 'a' (is timestamp\[ns\], beside files|does not fit)"):
        open_(tmp_path / "t")


def test_stamps_of_96_bits_are_looked_at_once_before_they_are_read(tmp_path, monkeypatch):
    write_96(tmp_path / "a.parquet", a=pa.array([1, 2], pa.timestamp("ns")), x=[1.5, 2.5])
    groups, read = [], parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile,
        "read_row_group",
        lambda file, *args, **keys: groups.append(keys) or read(file, *args, **keys),
    )
    open_table(tmp_path / "a.parquet", columns=["x"])
    assert not groups
    open_table(tmp_path / "a.parquet")
    assert groups == [{"columns": ["a"]}]


@pytest.mark.parametrize("suffix", [".parquet", ""])
def test_a_stamp_for_no_end_comes_back_exactly(tmp_path, suffix):
    rng = np.random.default_rng(0)
    days = np.datetime64("2015-01-01", "us") + rng.integers(0, 8 * 365 * 86_400 * 10**6, 2000).astype("m8[us]")
    no_end = np.datetime64("9999-12-31", "us")
    is_open = np.arange(2000) % 10 < 3
    is_open[:1000] &= bool(suffix)  # the first file of the folder has none
    days[is_open] = no_end
    table, path = pa.table({"a": days, "x": rng.normal(size=2000)}), tmp_path / f"t{suffix}"
    if suffix:
        parquet.write_table(table, path, row_group_size=500)
    else:
        path.mkdir()
        for part in (0, 1):
            parquet.write_table(table.slice(1000 * part, 1000), path / f"{part}.parquet")
    found = open_table(path)
    type_ = found.types[0]
    np.testing.assert_array_equal(type_.from_float(found.values[:, 0]).cast(pa.timestamp("us")).to_numpy(), days)
    with open_rows(path) as rows:
        assert rows.types == found.types
    prepared = prepare(path, split=(0.8, 0.1, 0.1))
    again = type_.from_float(prepared.transform.inverse(prepared.transform.forward(prepared.train))[:, 0]).to_numpy()
    np.testing.assert_array_equal(again == no_end, type_.from_float(prepared.train[:, 0]).to_numpy() == no_end)
    assert np.isnan(type_.to_float(pa.array([None, no_end]))[0])
    with pytest.raises(
        UnfitValueError, match=r"holds 9999-12-30 23:59:59.999999: float64 cannot tell it from its neighbours"
    ):
        type_.to_float(pa.array([no_end - 1, no_end - 3]))


def test_two_stamps_far_away_are_refused(tmp_path):
    stamps = np.array(["2015-01-01T00:00:00.000001", "9999-12-31", "9999-12-30"], "M8[us]")
    parquet.write_table(pa.table({"a": stamps}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'a' spans \d+ us, more than the 2\^53"):
        open_table(tmp_path / "a.parquet")


def test_parquet_files_are_named_for_what_they_are(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PARE" + bytes(40) + b"PARE")
    (tmp_path / "b.parquet").write_bytes(b"")
    for open_ in (open_table, lambda path: open_rows(path).__enter__()):
        with pytest.raises(DataError, match=r"a\.parquet is encrypted, which is not read"):
            open_(tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"b\.parquet is empty \(0 bytes\)"):
            open_(tmp_path / "b.parquet")


def test_row_names_of_pandas_are_said_without_its_metadata(tmp_path):
    parquet.write_table(pa.table({"__index_level_0__": [5, 7], "a": [1, 2]}), tmp_path / "a.parquet")
    table = open_table(tmp_path / "a.parquet")
    assert table.columns == ("a",)
    assert "row names of pandas left out" in table.read_as


@pytest.mark.parametrize(
    ("assignment", "types"),
    [
        ("data.types.grade=[low, mid, high]", {"grade": ["low", "mid", "high"]}),
        ('data.types."a.b"=category', {"a.b": "category"}),
        ("data.types.'a = b' = category", {"a = b": "category"}),
        ('data.types.5" pipe=category', {'5" pipe': "category"}),
        ("data.types.größe (cm)=number", {"größe (cm)": "number"}),
        ('data.types={a = "category", "b.c" = ["x", "y"]}', {"a": "category", "b.c": ["x", "y"]}),
    ],
)
def test_columns_of_any_name_are_given_types(assignment, types):
    assert parse_job('[data]\nsource = "a.csv"\n', [assignment], origin="job").data.types == types


def test_words_for_missing_values_need_no_quotes():
    assert parse_job('[data]\nsource = "a.csv"\n', ["data.null_values=[-999, NA]"], origin="job").data.null_values == [
        "-999",
        "NA",
    ]


@pytest.mark.parametrize("assignment", ["labels.num_pairs", "=3", "labels=3", 'labels."num_pairs"', "labels..a=3", ""])
def test_what_sets_no_key_is_refused(assignment):
    with pytest.raises(ConfigError, match=r"expected table\.key=value"):
        parse_job('[data]\nsource = "a.csv"\n', [assignment], origin="job")


@pytest.mark.parametrize("kind", ["list", "struct", "map"])
def test_stamps_of_spark_within_nested_columns_do_not_hinder_the_others(tmp_path, kind):
    stamps = [dt.datetime(2020, 1, 1) + dt.timedelta(days=day) for day in range(30)]
    unit = pa.timestamp("ns")
    nested = {
        "list": pa.array([[stamp, stamp] for stamp in stamps], pa.list_(unit)),
        "struct": pa.array([{"t": stamp} for stamp in stamps], pa.struct([("t", unit)])),
        "map": pa.array([[("k", stamp)] for stamp in stamps], pa.map_(pa.string(), unit)),
    }
    table = pa.table({"x": np.arange(30.0), "nested": nested[kind], "at": pa.array(stamps, unit)})
    parquet.write_table(table, tmp_path / "t.parquet", use_deprecated_int96_timestamps=True)
    job = resolve_job({"data": {"source": str(tmp_path / "t.parquet"), "columns": ["x", "at"]}})
    assert prepare_table(job).columns == ("x", "at")
