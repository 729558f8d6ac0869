"""The user's numbers are those of a lookup where they miss their grid by rounding alone."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sfg_dist.data import open_table, prepare
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.dependencies import Lookup
from sfg_dist.job.errors import DataError

PLACE = np.random.default_rng(0).integers(0, 8, 2000)
NOISE = np.random.default_rng(1).normal(size=2000)
KINDS = np.array(list("abcdefgh"))[PLACE]


@pytest.mark.parametrize(
    "columns",
    [
        {"kind": KINDS, "price": (PLACE * 0.1 + 0.1).astype(np.float32)},
        {"kind": KINDS, "price": PLACE * 0.1 * 3},
        {"size": (PLACE * 0.1).astype(np.float32), "price": np.array([5, 1, 4, 2, 3, 3, 2, 7])[PLACE]},
        {"size": PLACE * 0.1 * 3, "price": np.array([5, 1, 4, 2, 3, 3, 2, 7])[PLACE] * 0.7},
    ],
)
def test_the_training_table_is_taken(tmp_path, columns):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({**columns, "x": NOISE, "y": NOISE**2}), path)
    transform, rows = prepare(path).transform, open_table(path).values
    (lookup,) = transform.lookups
    transform.check_lookups(rows)
    for column in (lookup.column, lookup.by):
        wrong = rows[:5].copy()
        wrong[2, column] = (wrong[2, column] + 1) % 8 if transform.types[column].is_coded else wrong[2, column] + 0.04
        with pytest.raises(DataError, match="in row 2"):
            transform.check_lookups(wrong)


def test_whole_numbers_are_never_rounded():
    lookup = Lookup(1, 0, np.array([1e9, 1e9 + 100]), np.array([0.0, 1.0]))
    whole, rows = ColumnType("integer", "int64"), np.array([[1e9, 0.0], [1e9 + 1, 0.0], [np.nan, 0.0]])
    assert lookup.differs(rows, (whole, whole)).tolist() == [False, True, True]
    gap = Lookup(1, 0, np.array([0.5, np.nan]), np.array([np.nan, 2.5]))
    rows = np.array([[0.5, np.nan], [np.nan, 2.5], [0.5, 2.5], [np.nan, np.nan], [np.float32(0.5), np.nan]])
    assert gap.differs(rows, (ColumnType(), ColumnType())).tolist() == [False, False, True, True, False]
