"""Columns of every type go in and come out as what they were; what float64 cannot carry is refused by name."""

import warnings
from datetime import UTC, date, datetime
from decimal import Decimal

import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch
import zarr
from commands import sfg
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import sfg_dist
from sfg_dist.data import Transform, open_rows, open_split, open_table, prepare, read_queries
from sfg_dist.data.column_type import FLOAT, ColumnType, UnfitValueError
from sfg_dist.data.conditions import read_given
from sfg_dist.data.surveys import Survey, survey_of
from sfg_dist.job.errors import ConfigError, DataError
from sfg_dist.model import MLP, Generator
from sfg_dist.model.export_onnx import export_onnx
from sfg_dist.pipeline.report import _notes
from sfg_dist.store.table import write_table

INTEGERS = [pa.type_for_alias(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
UNITS = ("s", "ms", "us", "ns")


def surveyed(column):
    survey = Survey(ColumnType.of(column.type))
    for part in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        survey.add(part)
    return survey.result()


def within(low, high, spread=2**53):
    """Whole numbers anywhere between two, no further apart than ``spread``."""
    return st.integers(low, high).flatmap(
        lambda first: st.lists(st.none() | st.integers(first, min(high, first + spread)), min_size=1, max_size=20)
    )


def ends(kind):
    info = np.iinfo(kind.to_pandas_dtype())
    return int(info.min), int(info.max)


def ticks_of(type_, low=-(2**63) + 1, high=2**63 - 1, storage=None):
    storage = storage or pa.int64()
    return within(low, high).map(lambda ticks: pa.array(ticks, storage).cast(type_))


COLUMNS = st.one_of(
    *(within(*ends(kind)).map(lambda values, kind=kind: pa.array(values, kind)) for kind in INTEGERS),
    st.lists(st.none() | st.booleans(), min_size=1).map(lambda values: pa.array(values, pa.bool_())),
    *(
        st.lists(st.none() | st.floats(width=width, allow_nan=False), min_size=1).map(
            lambda values, width=width: pa.array(
                np.array([np.nan if v is None else v for v in values], f"f{width // 8}"),
                mask=np.array([v is None for v in values]),
            )
        )
        for width in (16, 32, 64)
    ),
    *(
        within(-most, most, 2**50 - 10**4).map(
            lambda values, digits=digits, places=places: pa.array(
                [None if v is None else Decimal(v).scaleb(-places) for v in values], pa.decimal128(digits, places)
            )
        )
        for digits, places, most in [
            *((3, 1, 999), (10, 2, 10**10 - 1), (15, 15, 10**15 - 1), (18, 4, 10**18 - 1), (28, 0, 10**28 - 1)),
            (28, 27, 2**50),
        ]
    ),
    *(ticks_of(pa.timestamp(unit, zone)) for unit in UNITS for zone in (None, "UTC", "Europe/Berlin")),
    *(ticks_of(pa.duration(unit)) for unit in UNITS),
    ticks_of(pa.date32(), -(2**31), 2**31 - 1, pa.int32()),
    ticks_of(pa.time32("s"), 0, 86399, pa.int32()),
    ticks_of(pa.time64("ns"), 0, 86400 * 10**9 - 1),
    within(-(10**6), 10**6).map(
        lambda days: pa.array([None if d is None else d * 86_400_000 for d in days], pa.int64()).cast(pa.date64())
    ),
)


@given(COLUMNS)
def test_there_and_back_is_the_same_column(column):
    type_ = surveyed(column)
    values = type_.to_float(column)
    assert values.dtype == np.float64
    assert np.array_equal(np.isnan(values), column.is_null().to_numpy(zero_copy_only=False))
    back = type_.from_float(values)
    assert back.type == column.type
    assert back.equals(column)
    assert ColumnType.from_dict(type_.to_dict()) == type_
    assert type_.arrow == column.type


@given(COLUMNS, st.integers(1, 4))
def test_parts_and_dictionaries_are_the_same_column(column, size):
    parts = pa.chunked_array([column[first : first + size] for first in range(0, len(column), size)])
    type_ = surveyed(column)
    assert surveyed(parts) == type_
    np.testing.assert_array_equal(type_.to_float(parts), type_.to_float(column))
    np.testing.assert_array_equal(
        type_.to_float(parts.chunk(parts.num_chunks - 1)), type_.to_float(column)[-len(parts.chunks[-1]) :]
    )


IDS = 2**60 + 2**55 * np.arange(40)  # further apart than 2^53, as hashes are
NEAR = 2**60 + 3 * np.arange(40)
LARGE = 2**64 - 1 - 3 * np.arange(40, dtype=np.uint64)
STEPS = np.arange(40)


def write(path, **columns):
    """A table of a suffix; formats of arrays hold one of integers, whose names are c0, c1, ..."""
    names, values = list(columns), list(columns.values())
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path, row_group_size=7)
    elif path.suffix == ".csv":
        rows = "\n".join(",".join(map(str, row)) for row in zip(*values, strict=True))
        path.write_text(f"{','.join(names)}\n{rows}\n")
    else:
        table = np.stack(values, axis=1)
        if path.suffix == ".npy":
            np.save(path, table)
        elif path.suffix == ".npz":
            np.savez(path, X=table, columns=np.array(names))
        elif path.suffix == ".h5":
            with h5py.File(path, "w") as file:
                file["X"] = table
                file["columns"] = [name.encode() for name in names]
        else:
            group = zarr.create_group(str(path), attributes={"columns": names})
            group.create_array("X", data=table, chunks=(16, table.shape[1]))
    return path


def exactly(table):
    """The columns of a table as they are in its file."""
    columns = zip(table.columns, table.types, table.values.T, strict=True)
    return {name: type_.from_float(values) for name, type_, values in columns}


FILES = ["t.parquet", "t.csv", "t.npy", "t.npz", "t.h5", "t.zarr"]


@pytest.mark.parametrize("name", FILES)
def test_identifiers_are_refused_by_name_or_left_out_and_that_is_said(tmp_path, name):
    path = write(tmp_path / name, a=STEPS, id=IDS)
    column = "c1" if name == "t.npy" else "id"
    refused = rf"t{path.suffix}: column '{column}' holds integers from {IDS[0]} to {IDS[-1]}, as identifiers do"
    with pytest.raises(DataError, match=refused + r".*data.identifiers = .drop."):
        open_table(path)
    with pytest.warns(UserWarning, match=rf"left out as identifiers: column '{column}'"):
        table = open_table(path, identifiers="drop")
    assert table.columns == (("c0",) if name == "t.npy" else ("a",))
    np.testing.assert_array_equal(table.values[:, 0], STEPS)
    assert open_table(path, columns=table.columns).columns == table.columns


@pytest.mark.parametrize("name", ["t.parquet", "t.npy", "t.zarr"])
def test_identifiers_by_ranges(tmp_path, name):
    path = write(tmp_path / name, a=STEPS, id=IDS)
    with pytest.raises(DataError, match="as identifiers do"), open_rows(path):
        pass
    opened = open_rows(path, identifiers="drop")
    with pytest.warns(UserWarning, match="left out"):
        rows = opened.__enter__()
    assert len(rows.columns) == 1
    np.testing.assert_array_equal(rows.read(5, 30)[:, 0], STEPS[5:30])
    opened.__exit__(None, None, None)


def test_a_table_of_identifiers_alone(tmp_path):
    path = write(tmp_path / "t.parquet", id=IDS)
    with pytest.raises(DataError, match="every column is left out as an identifier"):
        open_table(path, identifiers="drop")


@pytest.mark.parametrize("name", [name for name in FILES if name != "t.csv"])
@pytest.mark.parametrize("values", [NEAR, LARGE, -NEAR, STEPS.astype(np.int16), STEPS + 2**53 - 39])
def test_large_integers_of_a_small_spread_are_exact(tmp_path, name, values):
    table = open_table(write(tmp_path / name, n=values))
    (found,) = exactly(table).values()
    assert found.type == pa.array(values).type
    assert found.to_pylist() == values.tolist()
    assert table.types[0].offset == (
        int(values.min()) if max(abs(values.tolist()[0]), abs(values.tolist()[-1])) > 2**53 else 0
    )


def test_large_integers_of_a_csv(tmp_path):
    assert exactly(open_table(write(tmp_path / "t.csv", n=NEAR)))["n"].to_pylist() == NEAR.tolist()


EVERYDAY = {
    "near": NEAR,
    "large": LARGE,
    "few": STEPS.astype(np.uint8),
    "x": np.random.default_rng(0).standard_normal(40),
    "single": np.random.default_rng(0).standard_normal(40).astype(np.float32),
    "stamp": pa.array([None, *(10**18 + 10**10 * STEPS[1:])], pa.int64()).cast(pa.timestamp("ns", "UTC")),
    "day": pa.array(STEPS.astype(np.int32)).cast(pa.date32()),
    "took": pa.array(STEPS).cast(pa.duration("ms")),
    "price": pa.array([Decimal(int(k)).scaleb(-2) for k in STEPS], pa.decimal128(38, 2)),
    "flag": STEPS > 20,
}


@pytest.mark.parametrize("write_statistics", [True, False])
def test_ranges_of_a_parquet_are_the_whole_table(tmp_path, write_statistics):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table(EVERYDAY), path, row_group_size=7, write_statistics=write_statistics)
    whole = open_table(path)
    with open_rows(path) as rows:
        assert (rows.columns, rows.types) == (whole.columns, whole.types)
        np.testing.assert_array_equal(rows.read(5, 33), whole.values[5:33])
        types = dict(zip(rows.columns, rows.types, strict=True))
    with open_rows(path, types={"day": types["day"], "near": types["near"]}) as rows:
        np.testing.assert_array_equal(rows.read(0, 40), open_table(path, columns=["day", "near"]).values)
    assert pa.table(exactly(whole)).equals(pa.table(EVERYDAY))


@pytest.mark.parametrize(
    "values", [NEAR, LARGE, STEPS > 3, np.datetime64("2024-01-01", "s") + STEPS, STEPS.astype(">i4")]
)
@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
@pytest.mark.parametrize("ndim", [1, 2])
def test_ranges_of_an_array_are_the_whole_table(tmp_path, values, suffix, ndim):
    path = tmp_path / f"t{suffix}"
    values = values if ndim == 1 else np.stack([values, values[::-1]], axis=1)
    if suffix == ".npy":
        np.save(path, values)
    else:
        zarr.create_array(str(path), data=values, chunks=(16, *values.shape[1:]))
    whole = open_table(path)
    with open_rows(path) as rows:
        assert (rows.columns, rows.types) == (whole.columns, whole.types)
        np.testing.assert_array_equal(rows.read(5, 33), whole.values[5:33])
    found = np.stack([column.to_numpy(zero_copy_only=False) for column in exactly(whole).values()], axis=1)
    np.testing.assert_array_equal(found, values.reshape(40, -1))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_records_are_columns_with_their_names_and_types(tmp_path, suffix):
    records = np.zeros(40, dtype=[("n", ">i2"), ("x", "f4"), ("id", "i8"), ("who", "S3"), ("xyz", "f8", 3)])
    records["n"], records["x"], records["id"] = STEPS, STEPS / 8, NEAR
    path = tmp_path / f"t{suffix}"
    if suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["X"] = records
    else:
        np.save(path, records) if suffix == ".npy" else np.savez(path, X=records)
    table = open_table(path, columns=["id", "n", "x"])
    assert [str(type_.arrow) for type_ in table.types] == ["int64", "int16", "float"]
    assert exactly(table)["id"].to_pylist() == NEAR.tolist()
    with pytest.raises(DataError, match="column 'xyz' holds several values a row: leave"):
        open_table(path, columns=["n", "xyz"])
    assert open_table(path, columns=["who"], asked={"who": "category"}).types[0].is_coded
    if suffix == ".npy":
        with open_rows(path, columns=["id", "n", "x"]) as rows:
            assert rows.types == table.types
            np.testing.assert_array_equal(rows.read(0, 40), table.values)


def test_a_dictionary_of_numbers_is_numbers(tmp_path):
    column = pa.array([7, 2**60, 7]).dictionary_encode()
    parquet.write_table(pa.table({"n": column, "m": pa.array([2**60] * 3)}), tmp_path / "t.parquet")
    assert open_table(tmp_path / "t.parquet", columns=["m"]).types[0].offset == 2**60
    with pytest.raises(DataError, match="column 'n' holds integers from 7 to"):
        open_table(tmp_path / "t.parquet")


def test_records_of_a_zarr_and_attributes_that_are_the_users_own(tmp_path):
    records = np.zeros(40, dtype=[("n", "i2"), ("x", "f4")])
    records["n"] = STEPS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Zarr 3 has no final word on records
        zarr.create_array(str(tmp_path / "r.zarr"), data=records)
    table = open_table(tmp_path / "r.zarr")
    assert table.columns == ("n", "x")
    assert [type_.dtype for type_ in table.types] == ["int16", "float32"]
    group = zarr.create_group(str(tmp_path / "g.zarr"), attributes={"columns": ["a", "b"], "types": ["wind", "rain"]})
    group.create_array("X", data=np.ones((3, 2), np.int8))
    assert [type_.dtype for type_ in open_table(tmp_path / "g.zarr").types] == ["int8", "int8"]


@pytest.mark.parametrize("column", [["02139", "10001"], pa.array(["02139", "10001"]).dictionary_encode()])
def test_text_stays_text(tmp_path, column):
    parquet.write_table(pa.table({"zip": column, "n": [1, 2]}), tmp_path / "t.parquet")
    type_ = open_table(tmp_path / "t.parquet").types[0]
    assert (type_.kind, type_.categories) == ("category", ("02139", "10001"))
    assert open_table(tmp_path / "t.parquet", columns=["n"]).columns == ("n",)


def test_a_csv_has_types_by_its_cells(tmp_path):
    (tmp_path / "t.csv").write_text(
        "n,x,flag,day,stamp\n1,1.5,true,2024-02-29,2024-02-29T12:00:00Z\n2,2,,2024-03-01,\n"
    )
    table = open_table(tmp_path / "t.csv")
    assert [type_.kind for type_ in table.types] == ["integer", "decimal", "boolean", "date", "timestamp"]
    assert exactly(table)["day"].to_pylist() == [date(2024, 2, 29), date(2024, 3, 1)]
    assert exactly(table)["stamp"].to_pylist()[1] is None


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("True/False", ["True", "False", "True"]),
        ("true/false", ["true", "false", "false"]),
        ("TRUE/FALSE", ["TRUE", "TRUE", "TRUE"]),
        ("T", ["2024-02-29T12:00:00", "2024-03-01T00:00:00", "2020-01-01T00:00:01"]),
        ("space", ["2024-02-29 12:00:00", "2024-03-01 00:00:00", "2020-01-01 00:00:01"]),
        ("zone", ["2024-02-29T12:00:00Z", "2024-03-01T00:00:00Z", "1990-01-01T00:00:01Z"]),
        ("milliseconds of years", ["1990-02-28 12:00:00.250", "2024-03-01 00:00:00.000", "2024-03-01 00:00:00.125"]),
        ("date", ["2024-02-29", "2024-03-01", "0800-01-01"]),
        ("whole", ["7", "-3", str(2**53 - 1)]),
        ("integers beyond 2^53", [str(2**53 + 1), str(2**53 + 3), str(2**53 + 2)]),
        ("floats", ["0.1", "1e-05", "123456.789"]),
        ("decimals", ["0.10", "12.50", "-3.00"]),
        ("whole decimals", ["1.0", "57.0", "-3.0"]),
    ],
)
def test_text_of_a_csv_comes_out_as_it_was(tmp_path, name, cells):
    (tmp_path / "t.csv").write_text("\n".join(["c,n", *(f"{cell},{k}" for k, cell in enumerate(cells))]) + "\n")
    table = open_table(tmp_path / "t.csv")
    write_table(tmp_path / "o.csv", table.columns, 3, lambda _: iter([table.values]), source="", types=table.types)
    assert (tmp_path / "o.csv").read_text() == (tmp_path / "t.csv").read_text()


def test_decimals_of_text_are_doubles_with_places():
    column = pa.array([Decimal("6369.61"), None, Decimal("-0.10")], pa.decimal128(15, 2))
    survey = survey_of("t.csv", "price", column, {b"text": b"1"})
    survey.add(column)
    type_ = survey.result()
    assert (type_.kind, type_.dtype, type_.places, type_.step) == ("decimal", "float64", 2, 0.01)
    values = type_.to_float(column)
    np.testing.assert_array_equal(values, [6369.61, np.nan, -0.1])
    assert type_.from_float(values + 1e-9).to_pylist() == [6369.61, None, -0.1]
    assert str(type_.from_float(np.array([-0.001])).to_pylist()[0]) == "0.0"


def test_decimals_of_many_places_that_are_not_used():
    """As databases write them: decimal(38, 18) of amounts in cents."""
    column = pa.array([Decimal("12.50"), Decimal("-1000000.07"), None], pa.decimal128(38, 18))
    type_ = surveyed(column)
    assert (type_.places, type_.step, type_.offset, type_.dtype) == (2, 0.01, 0, "decimal128(38, 18)")
    np.testing.assert_array_equal(type_.to_float(column), [12.5, -1000000.07, np.nan])
    assert type_.from_float(type_.to_float(column)).equals(column)
    assert surveyed(pa.array([10**30, 10**30 + 7], pa.decimal128(38, 0))).offset == 10**30
    with pytest.raises(UnfitValueError, match=r"decimals from 0.1234567890123456789 to .* more digits than float64"):
        surveyed(pa.array([Decimal("0.1234567890123456789"), Decimal("2.5")], pa.decimal128(38, 19)))


def stamps(ticks, unit="ns"):
    return pa.array(ticks, pa.int64()).cast(pa.timestamp(unit))


def test_stamps_over_years_take_a_coarser_unit_where_that_is_exact():
    type_ = surveyed(stamps([0, 10**18 + 3000]))
    assert (type_.unit, type_.dtype, type_.offset) == ("us", "timestamp[ns]", 0)
    column = stamps([0, None, 10**18 + 3000])
    assert type_.from_float(type_.to_float(column)).equals(column)
    with pytest.raises(UnfitValueError, match=r"spans 1000000000000000001 ns, more than the 2\^53 .* coarser unit"):
        surveyed(stamps([0, 10**18 + 1]))


def test_parts_of_a_split_table_share_their_offset(tmp_path):
    np.savez(tmp_path / "t.npz", train=NEAR + 100, validation=NEAR, test=NEAR + 7)
    split = open_split(tmp_path / "t.npz", arrays={"train": "train", "validation": "validation", "test": "test"})
    assert split.types[0].offset == NEAR[0]
    assert split.types[0].from_float(split.parts["test"][:, 0]).to_pylist() == (NEAR + 7).tolist()


def test_complex_numbers_are_refused(tmp_path):
    np.save(tmp_path / "t.npy", np.ones((3, 2), complex))
    with pytest.raises(DataError, match="array 'X' holds complex numbers"):
        open_table(tmp_path / "t.npy")


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("uint8", [-3.0, 300.0, 7.4999999], [0, 255, 7]),
        ("int64", [-1e300, 1e300, -0.4], [-(2**53), 2**53, 0]),
        ("float32", [1e39, -1e39, 0.1], np.array([3.4028235e38, -3.4028235e38, 0.1], np.float32).tolist()),
        ("bool", [0.2, 0.9, np.nan], [False, True, None]),
    ],
)  # fmt: skip
def test_what_is_generated_stays_within_the_type(dtype, values, expected):
    type_ = ColumnType.of(pa.bool_() if dtype == "bool" else pa.type_for_alias(dtype))
    assert type_.from_float(np.array(values)).to_pylist() == expected


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=9), st.floats(0, 1))
def test_casting_to_float32_does_not_leave_the_range_of_the_column(column, place):
    low, high = min(column), max(column)
    with np.errstate(over="ignore"):
        value = np.clip(low + place * (high - low), low, high)
    assert low <= ColumnType.of(pa.float32()).from_float(np.array([value])).to_pylist()[0] <= high


DAY = ColumnType("date", "date32[day]", unit="D", offset=19_000)
STAMP = ColumnType("timestamp", "timestamp[us]", unit="us", offset=10**15)
ZONED = ColumnType("timestamp", "timestamp[s, tz=Europe/Berlin]", unit="s", zone="Europe/Berlin")
BIG = ColumnType("integer", "int64", offset=2**60)


@pytest.mark.parametrize(
    ("type_", "given_", "value"),
    [
        (DAY, "2022-01-09", 1.0),
        (DAY, date(2022, 1, 9), 1.0),
        (DAY, np.datetime64("2022-01-09"), 1.0),
        (DAY, 19_001, 1.0),
        (STAMP, "2001-09-09T01:46:40.000002", 2.0),
        (STAMP, datetime(2001, 9, 9, 1, 46, 40, 2), 2.0),
        (ZONED, "1970-01-01T02:00:00+02:00", 0.0),
        (ZONED, datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC), 5.0),
        (BIG, 2**60 + 1, 1.0),
        (BIG, str(2**60 + 1), 1.0),
        (ColumnType("boolean", "bool"), "True", 1.0),
        (ColumnType("boolean", "bool"), False, 0.0),
        (FLOAT, "1e-3", 1e-3),
        (FLOAT, Decimal("0.1"), 0.1),
    ],
)
def test_values_given_in_the_type_of_their_column(type_, given_, value):
    np.testing.assert_array_equal(read_given({"c": given_}, ("c",), 1, [type_]), [[value]])
    np.testing.assert_array_equal(read_given({"c": [given_] * 3}, ("c",), 3, [type_]), [[value]] * 3)


@pytest.mark.parametrize(
    ("type_", "given_", "message"),
    [
        (DAY, "yesterday", "expected dates, got 'yesterday': write ISO 8601"),
        (DAY, 19_000.5, "expected dates, got 19000.5"),
        (DAY, datetime(2022, 1, 9, 12), "holds dates with a time of day"),
        (
            STAMP,
            datetime(2001, 9, 9, tzinfo=UTC),
            "holds timestamps with a time zone, in us: expected timestamps with no time zone",
        ),
        (ZONED, "2024-06-01T12:00:00", "expected timestamps with a time zone"),
        (ColumnType("boolean", "bool"), "maybe", "'maybe' is neither true nor false"),
        (FLOAT, "warm", "'warm' is no number"),
        (FLOAT, date(2024, 1, 1), "holds dates: expected numbers"),
    ],
)
def test_values_that_are_none_of_the_type(type_, given_, message):
    with pytest.raises(ConfigError, match=f"given: 'c': .*{message}"):
        read_given({"c": given_}, ("c",), 1, [type_])


def test_another_file_is_brought_to_the_types_of_the_first(tmp_path):
    write(tmp_path / "a.parquet", day=pa.array(STEPS.astype(np.int32)).cast(pa.date32()), n=NEAR)
    write(tmp_path / "b.csv", day=np.datetime64("1970-01-11") + STEPS, n=NEAR + 5)
    first, second = open_table(tmp_path / "a.parquet"), open_table(tmp_path / "b.csv")
    np.testing.assert_array_equal(second.retyped(first.types), np.stack([STEPS + 10, 3 * STEPS + 5], axis=1))
    write(tmp_path / "c.csv", day=STEPS, n=NEAR)
    with pytest.raises(DataError, match=r"c.csv: column 'day' holds whole numbers: expected dates"):
        open_table(tmp_path / "c.csv").retyped(first.types)


@pytest.fixture
def typed_path(tmp_path):
    table = {name: EVERYDAY[name] for name in ("near", "few", "x", "day", "flag")}
    parquet.write_table(pa.table(table | {"stamp": EVERYDAY["stamp"].fill_null(10**18)}), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def test_a_transform_keeps_the_types(typed_path):
    prepared = prepare(typed_path, condition=["day"])
    transform = prepared.transform
    assert transform.columns == ("near", "few", "x", "flag", "stamp", "day")
    assert transform.types == tuple(open_table(typed_path, columns=list(transform.columns)).types)
    assert Transform.from_arrays(transform.to_arrays(), transform.to_metadata()).types == transform.types
    old = {name: words for name, words in transform.to_metadata().items() if name != "types"}
    assert Transform.from_arrays(transform.to_arrays(), old).types == (FLOAT,) * 6
    with pytest.raises(DataError, match="damaged: 1 types for 6 columns"):
        Transform.from_arrays(transform.to_arrays(), old | {"types": [FLOAT.to_dict()]})


def test_a_table_prepared_in_passes_has_the_same_types_and_bits(typed_path):
    keys = {"shuffle": "none", "constant": "keep"}
    whole, passes = prepare(typed_path, **keys), prepare(typed_path, memory_gib=1e-9, **keys)
    assert not passes.is_whole
    assert passes.transform.to_metadata() == whole.transform.to_metadata()
    np.testing.assert_array_equal(passes.reference(), whole.reference())


def test_a_constant_day_is_told_as_a_day_and_comes_back(tmp_path):
    table = {"x": EVERYDAY["x"], "day": pa.array([19_000] * 40, pa.int32()).cast(pa.date32())}
    parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="'day' is always 2022-01-08"):
        prepare(tmp_path / "t.parquet")
    prepared = prepare(tmp_path / "t.parquet", constant="keep")
    assert prepared.report["constant"] == {"day": "2022-01-08"}
    rows = prepared.transform.inverse(prepared.reference()[:1])
    assert prepared.transform.types[1].from_float(rows[:, 1]).to_pylist() == [date(2022, 1, 8)]


def test_query_points_are_brought_to_the_types_of_the_table(typed_path, tmp_path):
    prepared = prepare(typed_path)
    table = parquet.read_table(typed_path).slice(7, 20)
    parquet.write_table(table, tmp_path / "q.parquet")  # its offsets are others
    rows = read_queries(str(tmp_path / "q.parquet"), prepared.transform, "encode")
    whole = open_table(typed_path).values[7:27]
    np.testing.assert_array_equal(rows, prepared.transform.forward(whole))


@pytest.fixture
def generator(typed_path):
    """An untrained generator of the typed table, given the day."""
    torch.manual_seed(0)
    transform = prepare(typed_path, condition=["day"]).transform
    network = MLP(5, num_conditions=1, width=8, depth=1).eval()
    return Generator(network, transform, condition=("day",))


def test_samples_have_their_offsets_and_files_their_types(generator, tmp_path):
    generator.save(tmp_path / "model")
    loaded = Generator.load(tmp_path / "model")
    assert loaded.types == generator.types
    rows = loaded.sample(50, given={"day": "1970-01-05"})
    assert (rows[:, 5] == 4).all()
    assert 2**60 <= rows[:, 0].min() <= rows[:, 0].max() <= NEAR[-1]
    sfg(tmp_path, "sample", "model", "-n", "50", "--given", "day=1970-01-05", "--out", "rows.parquet")
    found = parquet.read_table(tmp_path / "rows.parquet")
    assert [str(kind) for kind in found.schema.types] == [
        "int64", "uint8", "double", "bool", "timestamp[ns, tz=UTC]", "date32[day]",
    ]  # fmt: skip
    assert set(found.column("day").to_pylist()) == {date(1970, 1, 5)}
    np.testing.assert_array_equal(found.column("near").to_numpy().astype(float), rows[:, 0])


def test_a_table_of_what_is_given_has_the_types_of_its_columns(generator, tmp_path):
    generator.save(tmp_path / "model")
    (tmp_path / "given.csv").write_text("other,day\nx,1970-01-05\ny,1970-01-09\n")
    sfg(tmp_path, "sample", "model", "--given-table", "given.csv", "--out", "rows.csv")
    lines = [line.split(",") for line in (tmp_path / "rows.csv").read_text().splitlines()]
    assert [line[5] for line in lines] == ["day", "1970-01-05", "1970-01-09"]
    assert all(line[0].isdigit() and line[3] in ("true", "false") and line[4].endswith("Z") for line in lines[1:])
    (tmp_path / "given.csv").write_text("day\n1\n2\n")
    done = sfg(tmp_path, "sample", "model", "--given-table", "given.csv", "--out", "rows.csv", check=None)
    assert "given.csv: column 'day' holds whole numbers: expected dates" in done.stderr


def test_a_day_far_outside_is_told_as_a_day(generator):
    with pytest.warns(UserWarning, match="'day' is 2400-01-01, far outside the training rows"):
        generator.sample(1, given={"day": "2400-01-01"})


def test_a_graph_that_would_round_is_not_exported(generator):
    with pytest.raises(ConfigError, match=r"column 'near' holds whole numbers whose offset.*--network-only"):
        export_onnx(generator)


@pytest.mark.slow
def test_a_run_keeps_the_types_from_the_table_to_its_samples(typed_path, make_job, tmp_path, no_pictures):
    table = pa.concat_tables([parquet.read_table(typed_path)] * 20)
    parquet.write_table(table, typed_path)
    job = make_job(data={"source": str(typed_path), "max_rows": 800}, labels={"num_pairs": 300})
    sfg_dist.run(job)
    found = open_table(f"{job.output.dir}/samples.zarr")
    assert found.types == open_table(typed_path).types
    columns = exactly(found)
    assert set(columns["flag"].to_pylist()) == {True, False}
    assert all(date(1970, 1, 1) <= day <= date(1970, 2, 9) for day in columns["day"].to_pylist())
    assert Generator.load(job.output.dir).types == found.types


@pytest.fixture
def days(tmp_path):
    """400 days of 2020 with a default of 1900 among them, and one that never changes."""
    rng = np.random.default_rng(0)
    day = np.concatenate([np.zeros(20, int), 43_829 + rng.integers(0, 300, 400)]).astype("timedelta64[D]")
    columns = {"day": np.datetime64("1900-01-01") + day, "x": rng.standard_normal(420)}
    columns["start"] = np.full(420, np.datetime64("2020-01-01"))
    parquet.write_table(pa.table(columns), tmp_path / "days.parquet")
    return tmp_path / "days.parquet"


def test_a_report_tells_days_as_days(days):
    notes = " ".join(_notes(prepare(days, constant="keep"), None, ()))
    assert "Column start is constant (2020-01-01)" in notes
    assert "given back exactly: 'day' 1900-01-01 (4.8 %)" in notes


def test_a_range_of_days_is_told_as_it_was_given(days):
    with pytest.raises(
        DataError, match=r"data\.bounds = \[1915-03-31, 2019-04-14\]; they run from 1900-01-01 to 2020-"
    ):
        prepare(days, constant="keep", bounds={"day": [-20_000.0, 18_000.0]})


def test_a_range_of_days_may_be_open(days):
    transform = prepare(days, constant="keep", bounds={"day": [-np.inf, 20_000.0]}).transform
    assert transform.cell_ranges[0].tolist() == [-np.inf, 20_000 + 25_567]
