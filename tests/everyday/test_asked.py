"""What a user asks of columns of every type: ranges of data.bounds, and values that are given."""

import tomllib

import numpy as np
import pyarrow as pa
import pytest
from commands import sfg
from pyarrow import parquet

from sfg_dist.data import open_table, prepare
from sfg_dist.data.column_type import ColumnType, UnfitValueError
from sfg_dist.data.conditions import read_given
from sfg_dist.job.config import resolve_job
from sfg_dist.job.errors import ConfigError, DataError
from sfg_dist.job.paths import expanded
from sfg_dist.model import MLP, Generator

NUM_ROWS = 300
DAYS = np.datetime64("2020-01-01") + np.arange(NUM_ROWS)


def table_with(path, **columns):
    noise = np.random.default_rng(0).standard_normal(NUM_ROWS)
    parquet.write_table(pa.table({**columns, "x": noise}), path / "rows.parquet")
    return path / "rows.parquet"


def bounds_of(words):
    return resolve_job(tomllib.loads(f"[data]\nsource = 'moons'\nbounds = {words}")).data.bounds


@pytest.mark.parametrize("ends", ["['2019-01-01', '2024-01-01']", "[2019-01-01, 2024-01-01]", "[-inf, '2024-01-01']"])
def test_a_range_of_dates_is_written_as_dates(ends, tmp_path):
    source = table_with(tmp_path, day=DAYS)
    transform = prepare(source, bounds=bounds_of(f"{{day = {ends}}}")).transform
    low, high = transform.cell_ranges[0] + transform.offsets[0]
    assert high == (np.datetime64("2024-01-01") - DAYS[0]).astype(int)
    assert low == (-np.inf if "inf" in ends else -365)


def test_a_range_of_stamps_in_a_table_in_parts(tmp_path):
    source = table_with(tmp_path, at=DAYS.astype("datetime64[ms]"))
    bounds = bounds_of("{at = [2019-12-31T00:00:00, 2025-01-01T00:00:00]}")
    transform = prepare(source, bounds=bounds, shuffle="none", memory_gib=1e-6).transform
    assert transform.grid(0).values(np.array(transform.cell_ranges[0]))[0] == -86_400_000


def test_rows_outside_a_range_of_dates_are_told_as_dates(tmp_path):
    source = table_with(tmp_path, day=DAYS)
    words = r"'day' lie outside data.bounds = \[2020-02-01, inf\]; they run from 2020-01-01 to 2020-10-26"
    with pytest.raises(DataError, match=words):
        prepare(source, bounds={"day": ["2020-02-01", np.inf]})


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (["2024-01-01", "2019-01-01"], "low below high"),
        (["01/02/2019", "2024-01-01"], "'day': expected dates, got '01/02/2019': write ISO 8601"),
    ],
)
def test_a_range_that_is_none(ends, words, tmp_path):
    with pytest.raises(DataError, match=words):
        prepare(table_with(tmp_path, day=DAYS), bounds={"day": ends})


@pytest.mark.parametrize(
    ("type_", "given", "words"),
    [
        (
            ColumnType("integer", "int64"),
            "2.5",
            "the column has whole numbers, and cannot hold 2.5; the nearest value is 2",
        ),
        (
            ColumnType("integer", "int8"),
            300,
            "the column has whole numbers, and cannot hold 300; the nearest value is 127",
        ),
        (
            ColumnType("integer", "uint8"),
            "-1",
            "the column has whole numbers, and cannot hold -1; the nearest value is 0",
        ),
        (ColumnType("boolean", "bool"), 0.3, "the column has true or false, and cannot hold 0.3"),
        (ColumnType("decimal", "float64", places=2), "1.255", "the column has decimals, and cannot hold 1.255"),
        (
            ColumnType("decimal", "decimal128(4, 2)", places=2),
            "123.45",
            "the column has decimals, and cannot hold 123.45",
        ),
    ],
)
def test_a_value_given_that_would_come_back_as_another(type_, given, words):
    with pytest.raises(ConfigError, match=f"given: 'c': {words}"):
        read_given({"c": given}, ("c",), 1, [type_])


@pytest.mark.parametrize(
    ("type_", "given"),
    [
        (ColumnType("integer", "int64", offset=2**60), str(2**60 + 3)),
        (ColumnType("integer", "int64"), "2e3"),
        (ColumnType("decimal", "float64", places=2), "1.10"),
        (ColumnType("decimal", "float64", places=2), 0.1 + 0.2),
        (ColumnType("float", "float32"), "0.1"),
        (ColumnType("time", "time32[ms]", unit="ms"), "09:15:00.250"),
    ],
)
def test_a_value_given_that_the_column_holds(type_, given):
    assert read_given({"c": given}, ("c",), 1, [type_]).shape == (1, 1)


def test_a_table_of_values_that_would_come_back_as_others(tmp_path):
    source = table_with(tmp_path, count=np.arange(NUM_ROWS) % 7)
    network = MLP(1, num_conditions=1, width=8, depth=1).eval()
    Generator(network, prepare(source, condition=["count"]).transform, condition=("count",)).save(tmp_path / "model")
    (tmp_path / "given.csv").write_text("count\n2\n2.5\n")
    done = sfg(tmp_path, "sample", "model", "--given-table", "given.csv", "--out", "rows.csv", check=None)
    assert done.returncode == 2
    assert (
        "given.csv: column 'count': the column has whole numbers, and cannot hold 2.5; the nearest value is 2"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("cells", "type_"),
    [
        (["09:15:00", "23:59:59", "00:00:01"], "time32[s]"),
        (["09:15:00.250", "23:59:59", "00:00:01.5"], "time32[ms]"),
        (["09:15:00.123456", "", "00:00:01.000001"], "time64[us]"),
    ],
)
@pytest.mark.parametrize("header", ["at,n\n", ""])
def test_times_of_day_in_a_csv(cells, type_, header, tmp_path):
    text = header + "".join(f"{cell},{number}.5\n" for number, cell in enumerate(cells * 5))
    (tmp_path / "rows.csv").write_text(text)
    table = open_table(tmp_path / "rows.csv")
    assert (table.types[0].kind, table.types[0].dtype) == ("time", type_)
    values = table.retyped(table.types)[:, 0]
    assert len(values) == 15
    written = table.types[0].from_float(values)
    assert str(written[0].as_py()).startswith(cells[0])


def test_what_is_no_time_of_day_stays_text(tmp_path):
    (tmp_path / "rows.csv").write_text("at,n\n" + "25:10:00,1.5\n09:15:00,2.5\n" * 5)
    with pytest.raises(DataError, match="column 'at' holds text: '25:10:00'"):
        open_table(tmp_path / "rows.csv")


def test_no_quotes_are_advised_for_a_number(tmp_path):
    with pytest.raises(ConfigError) as refused:
        resolve_job({"data": {"source": "moons", "dequantize": {"b": 0}}})
    assert "quotes" not in str(refused.value)


def test_quoted_thousands_are_told_as_such(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n" + '"1,037",1.5\n"1,250",2.5\n' * 5)
    with pytest.raises(DataError, match=r"holds text: '1,037' .*separators of thousands are not read: take them out"):
        open_table(tmp_path / "rows.csv")


@pytest.mark.parametrize("place", ["$HOME/runs", "${SCRATCH}/runs", "$SCRATCH", "%TEMP%/runs"])
def test_no_folder_is_named_like_a_variable(place):
    with pytest.raises(ConfigError, match="begins with a variable, which is not replaced"):
        expanded(place)
    assert expanded(f"./{place}") == f"./{place}"


@pytest.mark.parametrize("place", ["a$b/x.csv", "$5 bills.csv", "100%_x%.csv", "s3://bucket/$x"])
def test_other_names_with_such_marks_stand(place):
    assert expanded(place) == place


@pytest.mark.parametrize("text", ["9007199254740993", " -9007199254740993.0"])
def test_whole_numbers_of_text_keep_their_digits_or_are_refused(text, tmp_path):
    parquet.write_table(pa.table({"a": [text, "2"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"column 'a' holds text such as '{text}', of which float64 does not hold all"):
        open_table(tmp_path / "a.parquet", asked={"a": "number"})


@pytest.mark.parametrize("text", ["0.3333333333333333333", "3.14159265358979323846", "1234567890123456.78"])
def test_decimals_of_text_are_the_nearest_doubles_as_in_csv(text, tmp_path):
    parquet.write_table(pa.table({"a": [text, "2", None]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(f"a\n{text}\n2\nNA\n")
    for name in ("a.parquet", "a.csv"):
        values = open_table(tmp_path / name, asked={"a": "number"}).values[:, 0]
        np.testing.assert_array_equal(values, [float(text), 2.0, np.nan])


def test_a_number_given_with_an_underscore_is_none():
    with pytest.raises(UnfitValueError, match="'1_0' is no number"):
        ColumnType().from_user("1_0")


def test_an_order_that_names_a_value_twice_is_refused(tmp_path):
    path = table_with(tmp_path, a=pa.array(["lo", "hi"] * (NUM_ROWS // 2)))
    with pytest.raises(DataError, match=r"column 'a' has an order in data\.types that names 'lo' twice"):
        open_table(path, asked={"a": ["lo", "lo", "hi"]})
