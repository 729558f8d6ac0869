"""Frames whose values a library would change on the way in: they come back as they were, or are refused."""

import datetime as dt
import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from sfg_dist.data.column_files import typed_columns
from sfg_dist.data.frames import Container, columns_of_rows, open_frame
from sfg_dist.job.errors import DataError

STAMP, DAY = dt.datetime(2024, 1, 1, 5), dt.date(2024, 1, 1)
EAST = dt.timezone(dt.timedelta(hours=2))
NAN = float("nan")


def round_trip(frame):
    """A frame after its values went through float64, and its schema through a file."""
    container, columns = open_frame(frame)
    values, types = typed_columns("the frame", columns, asked=container.asked)
    container = Container.from_document(json.loads(json.dumps(container.to_document())), container.schema.names)
    return container.give(columns_of_rows(tuple(types), tuple(types.values()), [values]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            [STAMP.replace(tzinfo=EAST), STAMP],
            "datetime.datetime\\(2024, 1, 1, 5, 0\\), which would come",
        ),  # arrow 34412
        ([DAY, STAMP], "would come back as datetime.date\\(2024, 1, 1\\)"),
        ([dt.time(1, tzinfo=EAST), dt.time(2)], "would come back as datetime.time\\(1, 0\\)"),
        ([pd.Timestamp("2024-01-01T00:00:00.123456789"), STAMP], "would come back as .*123456\\)"),
        ([None, DAY, STAMP], "would come back as"),
    ],
)
def test_objects_that_arrow_takes_for_others_are_refused(values, said):
    with pytest.raises(DataError, match=f"column 'a' has dtype object, which cannot be read .*{said}"):
        open_frame(pd.DataFrame({"a": pd.Series(values, dtype=object)}))


def test_objects_of_one_kind_come_back():
    for values in ([STAMP, None], [DAY, None], [STAMP.replace(tzinfo=EAST), None], [dt.time(1), None]):
        frame = pd.DataFrame({"a": pd.Series(values, dtype=object)})
        assert round_trip(frame).a.tolist() == values


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_objects_of_stamps_keep_their_nanoseconds(zone):
    values = [pd.Timestamp("2024-01-01T00:00:00.123456789", tz=zone), None, pd.Timestamp("2024-01-02", tz=zone)]
    again = round_trip(pd.DataFrame({"a": pd.Series(values, dtype=object)}))
    assert again.a.dtype == object
    assert again.a.tolist() == values


@pytest.mark.parametrize("dtype", [pa.float64(), pa.float32(), pa.float16()])
def test_nan_of_arrow_comes_back_as_nan(dtype):
    for values in ([1.5, NAN, 2.5], [1.5, None, 2.5]):
        column = pa.array([None if value is None else np.float16(value) for value in values], pa.float16()).cast(dtype)
        again = round_trip(pa.table({"a": column}))["a"]
        assert again.type == dtype
        assert again.null_count == column.null_count
        np.testing.assert_array_equal(again.to_numpy(), column.to_numpy(zero_copy_only=False))


def test_nan_of_polars_comes_back_as_nan():
    frame = pl.DataFrame({"a": [1.5, NAN, 2.5], "b": [1.5, None, 2.5], "c": [1.5, 3.5, 2.5]})
    again = round_trip(frame)
    assert again.equals(frame)
    assert again.select(pl.col("a").is_nan().sum(), pl.col("b").is_null().sum()).row(0) == (1, 1)
    with pytest.warns(UserWarning, match="column 'a' holds NaN beside null: both are missing values"):
        assert round_trip(pl.DataFrame({"a": [1.5, NAN, None]}))["a"].null_count() == 2


def test_an_empty_name_of_polars():
    frame = pl.DataFrame({"": [1, 2], "b": [0.5, 1.5]})
    assert round_trip(frame).equals(frame)


def test_a_day_with_a_time_is_refused_by_its_column():
    column = pa.array([86_400_000, 1], pa.int64()).cast(pa.date64())
    with pytest.raises(DataError, match="column 'a' holds dates with a time of day: expected whole days"):
        typed_columns("the frame", pa.table({"a": column}))


def test_the_name_of_the_columns_is_said():
    with pytest.warns(UserWarning, match="the name 'variable' of the frame's columns is left out"):
        open_frame(pd.DataFrame({"a": [1, 2]}).rename_axis(columns="variable"))
