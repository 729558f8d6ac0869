"""A table read by ranges of rows gives what reading it whole gives."""

import numpy as np
import pyarrow as pa
import pytest
import zarr
from pyarrow import parquet

from sfg_dist.data import open_table
from sfg_dist.data.rows import open_rows
from sfg_dist.job.errors import DataError

VALUES = np.random.default_rng(0).standard_normal((1000, 3))


def write(path, values=VALUES):
    if path.suffix == ".parquet":
        columns = {"a": values[:, 0], "b": values[:, 1].astype(np.float32), "c": np.arange(len(values))}
        parquet.write_table(pa.table(columns), path, row_group_size=170)
    elif path.suffix == ".zarr":
        zarr.create_group(str(path)).create_array("X", data=values, chunks=(64, 3))
    else:
        np.save(path, values)
    return path


@pytest.fixture(params=[".parquet", ".zarr", ".npy"])
def path(request, tmp_path):
    return write(tmp_path / f"table{request.param}")


def test_ranges_are_those_of_the_whole_table(path):
    whole = open_table(path)
    with open_rows(path) as rows:
        assert (rows.num_rows, rows.columns, rows.num_bytes) == (1000, whole.columns, whole.values.nbytes)
        for start, stop in [(0, 1000), (0, 0), (169, 171), (333, 999), (999, 1000)]:
            np.testing.assert_array_equal(rows.read(start, stop), whole.values[start:stop])
        np.testing.assert_array_equal(np.concatenate(list(rows.blocks(123))), whole.values)
        last = rows.columns[2]
        np.testing.assert_array_equal(rows.read(5, 500, [last]), whole.values[5:500, 2:])


def test_columns_in_the_order_asked_for(path):
    names = open_table(path).columns
    with open_rows(path, columns=[names[2], names[0]]) as rows:
        np.testing.assert_array_equal(rows.read(100, 200), open_table(path).values[100:200, [2, 0]])
    with pytest.raises(DataError, match="has no column 'zz'"), open_rows(path, columns=["zz"]):
        pass


def test_a_range_outside_the_table(path):
    with open_rows(path) as rows, pytest.raises(DataError, match="has 1000 rows: rows 5 to 1001"):
        rows.read(5, 1001)


def test_nulls_are_missing_values(tmp_path):
    parquet.write_table(pa.table({"a": [1.0, None, 3.0]}), tmp_path / "t.parquet", row_group_size=2)
    with open_rows(tmp_path / "t.parquet") as rows:
        np.testing.assert_array_equal(rows.read(0, 3), [[1], [np.nan], [3]])


def test_a_row_group_without_rows_hides_none_of_those_behind_it(tmp_path):
    table = pa.table({"a": np.arange(10.0)})
    with parquet.ParquetWriter(tmp_path / "t.parquet", table.schema) as writer:
        for part in (table[:4], table[:0], table[4:]):
            writer.write_table(part)
    with open_rows(tmp_path / "t.parquet") as rows:
        assert rows.read(2, 9)[:, 0].tolist() == [2, 3, 4, 5, 6, 7, 8]


def test_a_column_is_refused_by_its_name(tmp_path):
    parquet.write_table(pa.table({"a": [1.0, 2.0], "t": [[1], [2]]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 't' has type list"), open_rows(tmp_path / "t.parquet"):
        pass
    with open_rows(tmp_path / "t.parquet", columns=["a"]) as rows:
        np.testing.assert_array_equal(rows.read(0, 2), [[1], [2]])


@pytest.mark.parametrize("name", ["t.csv", "t.npz", "t.h5", "s3://bucket/t.npy"])
def test_formats_that_are_read_whole(tmp_path, name):
    with pytest.raises(DataError, match=r"only \.parquet, \.zarr and local \.npy"), open_rows(name):
        pass


@pytest.mark.parametrize("suffix", [".parquet", ".zarr", ".npy"])
def test_what_is_not_there(tmp_path, suffix):
    with pytest.raises(DataError, match="does not exist"), open_rows(tmp_path / f"none{suffix}"):
        pass


def test_a_group_without_the_array_lists_those_present(tmp_path):
    group = zarr.create_group(str(tmp_path / "g.zarr"))
    for name in ("one", "two"):
        group.create_array(name, data=VALUES)
    message = r"has no array 'Y'; set data.array to one of: one \(2-D 1000 x 3 float64\)"
    with pytest.raises(DataError, match=message), open_rows(tmp_path / "g.zarr", array="Y"):
        pass
    with open_rows(tmp_path / "g.zarr", array="two") as rows:
        assert rows.num_rows == 1000


def test_a_table_of_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "o.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(DataError, match="which would have to be unpickled"), open_rows(tmp_path / "o.npy"):
        pass


def test_a_table_of_another_shape(tmp_path):
    np.save(tmp_path / "v.npy", np.ones((2, 2, 2)))
    with pytest.raises(DataError, match="is 3-D float64: expected one or two"), open_rows(tmp_path / "v.npy"):
        pass


def test_a_parquet_object_in_a_bucket(tmp_path, monkeypatch):
    from obstore.store import LocalStore

    from sfg_dist.data import sources as module

    write(tmp_path / "t.parquet")
    monkeypatch.setattr(module, "open_bucket", lambda url: (LocalStore(tmp_path), url.removeprefix("s3://bucket/")))
    with open_rows("s3://bucket/t.parquet") as rows:
        np.testing.assert_array_equal(rows.read(100, 500), open_table(tmp_path / "t.parquet").values[100:500])
