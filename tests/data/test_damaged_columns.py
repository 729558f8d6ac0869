"""Numbers and bytes in arrays that are none of what their columns say."""

import numpy as np
import pyarrow as pa
import pytest
import zarr
from pyarrow import parquet

from sfg_dist.data import open_rows, open_table, prepare
from sfg_dist.data.association import find_orders
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.row_reader import RowReader
from sfg_dist.data.unfit import UnfitColumnsError
from sfg_dist.job.errors import DataError
from sfg_dist.store.table import write_table


@pytest.fixture
def samples(tmp_path):
    """A table of samples with a category, and its path."""
    random = np.random.default_rng(0)
    kinds = pa.array(np.array(list("abc"))[random.integers(0, 3, 300)], mask=random.random(300) < 0.1)
    parquet.write_table(pa.table({"x": random.normal(size=300), "c": kinds}), tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet")
    rows = (table.values[first:last] for first, last in [(0, 300)])
    write_table(str(tmp_path / "s.zarr"), table.columns, 300, lambda _: rows, source="t", types=table.types)
    return table, tmp_path / "s.zarr"


def test_samples_are_read_alike_by_ranges_and_whole(samples):
    table, path = samples
    np.testing.assert_array_equal(open_table(path).values, table.values)
    with open_rows(path, columns=["c", "x"]) as rows:
        np.testing.assert_array_equal(rows.read(10, 60, ["c"]), table.values[10:60, [1]])
        assert rows.types == table.types[::-1]


@pytest.mark.parametrize("code", [1e7, 3.0, -1.0, 0.5, np.inf])
def test_numbers_that_are_no_codes_are_refused(samples, code):
    _, path = samples
    array = zarr.open_group(str(path), mode="r+")["X"]
    array[290, 1] = code
    with pytest.raises(UnfitColumnsError, match=r"column 'c' holds .* in row 290 .* no code of its 3 categories"):
        prepare(path)
    with open_rows(path) as rows, pytest.raises(UnfitColumnsError, match=r"column 'c' holds .* in row 290"):
        rows.read(280, 300)


@pytest.mark.parametrize("code", [3.0, -1.0, 1e7])
def test_an_order_is_not_sought_of_numbers_that_are_no_codes(code):
    values = np.random.default_rng(0).integers(0, 3, (50, 2)).astype(float)
    values[7, 0] = code
    type_ = ColumnType("category", "string", categories=("a", "b", "c"))
    reader = RowReader.over(values, "t", ("c", "d"), (type_, type_))
    with pytest.raises(DataError, match="a column of 3 categories holds a number that is none of their codes"):
        find_orders(reader, ("c", "d"), np.array([False, False]))


def test_bytes_that_are_no_text_are_named(tmp_path):
    array = np.zeros(30, dtype=[("x", "f8"), ("c", "S3")])
    array["c"] = [b"ab", b"\xff\xfe"] * 15
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(UnfitColumnsError, match=r"column 'c' holds the bytes b'\\xff\\xfe', which are no text"):
        open_table(tmp_path / "t.npy")
    with pytest.raises(UnfitColumnsError, match="column 'c' holds the bytes"), open_rows(tmp_path / "t.npy"):
        pass
