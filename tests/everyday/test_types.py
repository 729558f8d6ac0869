"""Columns of every type go in and come out as what they were."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.surveys import Survey

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
        within(-(10**digits) + 1, 10**digits - 1, 2**50).map(
            lambda values, digits=digits, places=places: pa.array(
                [None if v is None else Decimal(v).scaleb(-places) for v in values], pa.decimal128(digits, places)
            )
        )
        for digits, places in [(3, 1), (10, 2), (15, 15), (18, 4), (28, 0), (28, 27)]
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
