"""Columns of every kind that a table can have, by what makes them."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

NUM_ROWS = 60
COUNT = np.arange(NUM_ROWS)
WORDS = [("low", "mid", "high")[row % 3] for row in range(NUM_ROWS)]
GAPS = [None if row % 7 == 0 else word for row, word in enumerate(WORDS)]
STAMPS = [dt.datetime(2024, 1, 1) + dt.timedelta(minutes=37 * row) for row in range(NUM_ROWS)]
DAYS = [stamp.date() + dt.timedelta(days=row % 9) for row, stamp in enumerate(STAMPS)]
TIMES = [stamp.time() for stamp in STAMPS]
SPANS = [dt.timedelta(seconds=61 * row) for row in range(NUM_ROWS)]
DECIMALS = [Decimal(row % 11) / 4 for row in range(NUM_ROWS)]
NUMBERS = (COUNT % 13) * 1.25
SHORT = [int(row) for row in COUNT % 5]
KEYS = pa.array(COUNT % 3, pa.int8())


def gaps(values):
    return [None if row % 7 == 0 else value for row, value in enumerate(values)]


def _dictionary(values, kind, *, ordered=False, index=None):
    indices = pa.array(gaps(SHORT), index or pa.int8())
    return pa.DictionaryArray.from_arrays(indices, pa.array(values, kind), ordered=ordered)


ARROW = {
    **{str(kind): pa.array(SHORT, kind) for kind in map(pa.type_for_alias, (
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"))},
    "far int64": pa.array([2**62 + row for row in range(NUM_ROWS)], pa.int64()),
    "int64 with gaps": pa.array(gaps(SHORT), pa.int64()),
    "float16": pa.array(NUMBERS.astype(np.float16)),
    "float32": pa.array(NUMBERS.astype(np.float32)),
    "float64": pa.array(NUMBERS),
    "float64 with gaps": pa.array(gaps(NUMBERS.tolist()), pa.float64()),
    "bool": pa.array([row % 3 == 0 for row in range(NUM_ROWS)]),
    "bool with gaps": pa.array(gaps([row % 3 == 0 for row in range(NUM_ROWS)])),
    "decimal32": pa.array(DECIMALS, pa.decimal32(7, 2)),
    "decimal64": pa.array(DECIMALS, pa.decimal64(12, 3)),
    "decimal128": pa.array(DECIMALS, pa.decimal128(20, 4)),
    "decimal256": pa.array(DECIMALS, pa.decimal256(60, 10)),
    "date32": pa.array(DAYS, pa.date32()),
    "date64": pa.array(DAYS, pa.date64()),
    **{f"time32 {unit}": pa.array(TIMES, pa.time32(unit)) for unit in ("s", "ms")},
    **{f"time64 {unit}": pa.array(TIMES, pa.time64(unit)) for unit in ("us", "ns")},
    **{f"timestamp {unit}": pa.array(STAMPS, pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")},
    "timestamp with a zone": pa.array(gaps(STAMPS), pa.timestamp("us", "Europe/Berlin")),
    "timestamp with an offset": pa.array(STAMPS, pa.timestamp("ms", "+02:00")),
    **{f"duration {unit}": pa.array(SPANS, pa.duration(unit)) for unit in ("s", "ms", "us", "ns")},
    "string": pa.array(WORDS, pa.string()),
    "string with gaps": pa.array(GAPS, pa.string()),
    "large string": pa.array(WORDS, pa.large_string()),
    "string view": pa.array(WORDS, pa.string_view()),
    "dictionary of text": _dictionary(["low", "mid", "high", "top", "never", "seen"], pa.string()),
    "ordered dictionary": _dictionary(["low", "mid", "high", "top", "never", "seen"], pa.string(), ordered=True),
    "dictionary of large text": _dictionary(["a", "b", "c", "d", "e"], pa.large_string(), index=pa.int32()),
    "dictionary of views": _dictionary(["a", "b", "c", "d", "e"], pa.string_view(), index=pa.uint32()),
    "dictionary of whole numbers": _dictionary([5, 1, 7, 2, 9], pa.int16()),
    "dictionary of dates": _dictionary(DAYS[:5], pa.date32()),
    "run-end encoded": pc.run_end_encode(pa.array(sorted(SHORT), pa.int32())),
    "run-end encoded text": pc.run_end_encode(pa.array(sorted(WORDS))),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array(COUNT % 2, pa.int8())),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}' if row % 2 else "{}" for row in COUNT])),
}  # fmt: skip
"""Arrays of Arrow."""

_ARROW_DTYPES = ("int32", "decimal128", "date32", "time64 us", "timestamp ms", "timestamp with a zone", "duration ms",
                 "string", "large string", "bool with gaps", "dictionary of text", "float64")  # fmt: skip
PANDAS = {
    **{dtype: pd.Series(SHORT, dtype=dtype) for dtype in ("int8", "uint8", "int64", "float16", "float32", "float64")},
    "float64 with gaps": pd.Series(gaps(NUMBERS.tolist()), dtype="float64"),
    "bool": pd.Series(COUNT % 3 == 0),
    **{dtype: pd.Series(gaps(SHORT), dtype=dtype) for dtype in ("Int8", "UInt16", "Int64", "Float32", "Float64")},
    "boolean": pd.Series(gaps((COUNT % 2 == 0).tolist()), dtype="boolean"),
    "str": pd.Series(WORDS),
    "string": pd.Series(GAPS, dtype="string"),
    "string[python]": pd.Series(GAPS, dtype="string[python]"),
    "string[pyarrow]": pd.Series(GAPS, dtype="string[pyarrow]"),
    "objects of text": pd.Series(GAPS, dtype=object),
    "objects of whole numbers": pd.Series(gaps(SHORT), dtype=object),
    "objects of booleans": pd.Series(gaps((COUNT % 2 == 0).tolist()), dtype=object),
    "objects of dates": pd.Series(DAYS, dtype=object),
    "objects of times": pd.Series(TIMES, dtype=object),
    "objects of stamps": pd.Series(STAMPS, dtype=object),
    "objects of decimals": pd.Series(DECIMALS, dtype=object),
    "category": pd.Series(pd.Categorical(GAPS, categories=["mid", "low", "never", "high"])),
    "ordered category": pd.Series(pd.Categorical(GAPS, categories=["mid", "low", "never", "high"], ordered=True)),
    "category of objects": pd.Series(pd.Categorical(pd.Series(GAPS, dtype=object))),
    "category of whole numbers": pd.Series(pd.Categorical(SHORT)),
    "category of numbers": pd.Series(pd.Categorical(NUMBERS)),
    "category of stamps": pd.Series(pd.Categorical(pd.to_datetime(STAMPS[:5] * 12))),
    **{f"datetime64[{unit}]": pd.Series(gaps(STAMPS)).astype(f"datetime64[{unit}]")
       for unit in ("s", "ms", "us", "ns")},
    "stamps with a zone": pd.Series(pd.DatetimeIndex(STAMPS, tz="Europe/Berlin")),
    "stamps with an offset": pd.Series(pd.DatetimeIndex(STAMPS, tz="+02:00")),
    **{f"timedelta64[{unit}]": pd.Series(SPANS).astype(f"timedelta64[{unit}]") for unit in ("s", "ns")},
    "period": pd.Series(pd.period_range("2020-01", periods=NUM_ROWS, freq="M")),
    **{f"{name}[pyarrow]": pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([ARROW[name]])))
       for name in _ARROW_DTYPES},
}  # fmt: skip
"""Columns of pandas."""

POLARS = {
    **{str(dtype): pl.Series(gaps(SHORT), dtype=dtype) for dtype in (
        pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64, pl.Float32, pl.Float64)},
    "Boolean": pl.Series(gaps((COUNT % 2 == 0).tolist())),
    "String": pl.Series(GAPS),
    "Categorical": pl.Series(GAPS, dtype=pl.Categorical),
    "Enum": pl.Series(GAPS, dtype=pl.Enum(["mid", "low", "never", "high"])),
    "Date": pl.Series(DAYS),
    **{f"Datetime {unit}": pl.Series(STAMPS, dtype=pl.Datetime(unit)) for unit in ("ms", "us", "ns")},
    "Datetime with a zone": pl.Series(gaps(STAMPS), dtype=pl.Datetime("us", "Europe/Berlin")),
    **{f"Duration {unit}": pl.Series(SPANS, dtype=pl.Duration(unit)) for unit in ("ms", "us", "ns")},
    "Time": pl.Series(TIMES),
    "Decimal": pl.Series(DECIMALS, dtype=pl.Decimal(12, 2)),
}  # fmt: skip
"""Columns of polars."""

NUMPY = {
    **{dtype: np.array(SHORT, dtype) for dtype in ("i1", "u2", ">i4", "i8", "u8", "f2", "f4", ">f8", "f8", "?")},
    "datetime64[s]": np.array(STAMPS, "datetime64[s]"),
    "datetime64[ns]": np.array(STAMPS, "datetime64[ns]"),
    "datetime64[D]": np.array(DAYS, "datetime64[D]"),
    "timedelta64[ms]": np.array(SPANS, "timedelta64[ms]"),
    "text": np.array(WORDS),
}
"""Columns of numpy."""


def table_of(library, columns):
    """A table of a library, of the named columns of its kinds."""
    if library == "arrow":
        return pa.table(list(columns.values()), names=list(columns))
    if library == "pandas":
        return pd.DataFrame(columns)
    if library == "polars":
        return pl.DataFrame(columns)
    records = np.empty(NUM_ROWS, [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        records[name] = column
    return records


KINDS = {"arrow": ARROW, "pandas": PANDAS, "polars": POLARS, "numpy": NUMPY}


def is_same_schema(one, other):
    """Whether two tables of one library have the same columns, of the same types, in the same order."""
    if isinstance(one, pa.Table):
        return one.schema.equals(other.schema, check_metadata=True)
    if isinstance(one, pd.DataFrame):
        return one.columns.equals(other.columns) and one.dtypes.equals(other.dtypes)
    return (one.schema if isinstance(one, pl.DataFrame) else one.dtype) == (
        other.schema if isinstance(other, pl.DataFrame) else other.dtype
    )


def is_same(one, other):
    """Whether two tables of one library hold the same values too."""
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one.equals(other)
