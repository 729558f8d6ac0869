"""Columns of array files keep their types beside attributes, in frames of pandas, and where values are missing."""

import h5py
import numpy as np
import pytest
import zarr

from sfg_dist.data import open_rows, open_table
from sfg_dist.job.errors import DataError

SMALL = np.arange(1, 7).reshape(3, 2)
BIG = SMALL + 2**60


def columns_of(table, values):
    return [type_.from_float(values[:, place]).to_pylist() for place, type_ in enumerate(table.types)]


def expected(values, fill):
    return [[None if value == fill else value for value in column] for column in values.T.tolist()]


@pytest.mark.parametrize(
    ("values", "fill"), [(SMALL.astype("i2"), 4), (SMALL.astype(">i4"), -999), (BIG, BIG[1, 0]), (BIG.astype("u8"), -1)]
)
@pytest.mark.parametrize("suffix", [".h5", ".nc", ".zarr"])
def test_integers_beside_a_fill_value_stay_integers(tmp_path, values, fill, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".zarr":
        zarr.create_group(str(path)).create_array("X", data=values, attributes={"_FillValue": int(fill)})
    else:
        with h5py.File(path, "w") as file:
            file["X"] = values
            file["X"].attrs["_FillValue"] = fill
    table = open_table(path)
    assert {(type_.kind, type_.dtype) for type_ in table.types} == {("integer", values.dtype.newbyteorder("=").name)}
    assert columns_of(table, table.values) == expected(values, fill)
    if suffix == ".zarr":
        with open_rows(path) as rows:
            assert rows.types == table.types
            np.testing.assert_array_equal(rows.read(0, 3), table.values)
            np.testing.assert_array_equal(rows.read(1, 2), table.values[1:2])


@pytest.mark.parametrize("dtype", ["i1", "u2", "i4", "i8", "f4"])
def test_netcdf_keeps_types(tmp_path, dtype):
    """Its library writes a fill value of its own where nothing was written, so every variable may have gaps."""
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["X"] = SMALL.astype(dtype)
    table = open_table(tmp_path / "a.nc")
    assert {type_.dtype for type_ in table.types} == {np.dtype(dtype).name}
    assert table.values.tolist() == SMALL.tolist()


def test_scaled_integers_are_numbers(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["X"] = SMALL.astype("i2")
        file["X"].attrs["scale_factor"] = 0.5
    table = open_table(tmp_path / "a.h5")
    assert {type_.kind for type_ in table.types} == {"float"}
    assert table.values.tolist() == (SMALL / 2).tolist()


def frame(path, name, values, **attributes):
    """A frame of two columns as pandas writes it in its fixed format."""
    with h5py.File(path, "w") as file:
        group = file.create_group("df")
        group["axis0"], group["axis1"] = np.array([b"b", name.encode()]), np.arange(3)
        group["block0_items"], group["block0_values"] = np.array([name.encode()]), values.reshape(3, 1)
        group["block0_values"].attrs.update(attributes)
        group["block1_items"], group["block1_values"] = np.array([b"b"]), np.array([[0.5], [1.5], [2.5]])
    return path


STAMPS = np.array(["2023-11-14T22:13:20.123456789", "2023-11-14T22:13:20.123456790", "NaT"], "M8[ns]")


@pytest.mark.parametrize(
    ("values", "attributes", "dtype", "found"),
    [
        (np.arange(3, dtype="i4"), {}, "int32", [0, 1, 2]),
        (np.arange(3) + 2**60 + 1, {}, "int64", [2**60 + 1, 2**60 + 2, 2**60 + 3]),
        (np.array([True, False, True]), {}, "bool", [True, False, True]),
        (STAMPS.view("i8"), {"value_type": "datetime64"}, "timestamp[ns]", STAMPS),
        (STAMPS.view("i8"), {"value_type": "datetime64[us]"}, "timestamp[us]", STAMPS.view("i8").view("M8[us]")),
        (np.arange(3), {"value_type": "timedelta64[s]"}, "duration[s]", np.arange(3).astype("m8[s]")),
    ],
)
def test_frames_of_pandas_keep_types(tmp_path, values, attributes, dtype, found):
    table = open_table(frame(tmp_path / "a.h5", "a", values, **attributes))
    assert table.columns == ("b", "a")
    assert "row names" not in table.read_as
    assert [type_.dtype for type_ in table.types] == ["float64", dtype]
    again = table.types[1].from_float(table.values[:, 1])
    if isinstance(found, np.ndarray):
        np.testing.assert_array_equal(again.to_numpy(zero_copy_only=False), found)
    else:
        assert again.to_pylist() == found


def test_frames_that_are_not_read_are_named(tmp_path):
    path = frame(tmp_path / "a.h5", "a", np.arange(3), value_type="datetime64[ns]", tz="Europe/Berlin")
    with pytest.raises(DataError, match=r"column 'a' of 'df': stamps with a time zone .*write \.parquet"):
        open_table(path)
    with pytest.raises(DataError, match="a column of 'df' is named 'b': give each a name of its own"):
        open_table(frame(tmp_path / "b.h5", "b", np.arange(3)))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["df/table"] = np.zeros(3, [("index", "i8"), ("values_block_0", "f8", 2)])
    with pytest.raises(DataError, match=r"'df/table' is a table of pandas: write it with format='fixed'"):
        open_table(tmp_path / "c.h5")


def test_names_of_frames(tmp_path):
    """PyTables says ASCII of names in UTF-8; rows may have names of several levels, columns must not."""
    path = frame(tmp_path / "a.h5", "größe", np.arange(3))
    with h5py.File(path, "r+") as file:
        file["df"].move("axis1", "axis1_label0")
    table = open_table(path)
    assert table.columns == ("b", "größe")
    assert "row names of pandas left out" in table.read_as
    with h5py.File(path, "r+") as file:
        file["df"].move("axis0", "axis0_label0")
        file["df"].move("block0_items", "block0_items_label0")
    with pytest.raises(DataError, match="the columns of 'df' have names of several levels: join them"):
        open_table(path)


def test_truth_values_of_pytables_are_bits(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((3, 2))
        h5py.h5d.create(file.id, b"X", h5py.h5t.NATIVE_B8, space)
        file["X"].id.write(h5py.h5s.ALL, h5py.h5s.ALL, (SMALL > 3).view("u1"), h5py.h5t.NATIVE_B8)
    table = open_table(tmp_path / "a.h5")
    assert {type_.kind for type_ in table.types} == {"boolean"}
    assert table.values.tolist() == (SMALL > 3).astype(float).tolist()


def test_names_of_numbers_that_are_not_read_are_said(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("X", data=[[0], [1], [1]], dtype=h5py.enum_dtype({"RED": 0, "GREEN": 1}, "i1"))
    assert "'X' read as numbers without their names ('RED', 'GREEN')" in open_table(tmp_path / "a.h5").read_as


def test_a_type_that_is_stored_beside_the_arrays_is_no_damage(tmp_path):
    """As netCDF stores its enumerations and compounds."""
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["color"] = h5py.enum_dtype({"RED": 0, "GREEN": 1}, "i1")
        file.create_dataset("X", data=[0, 1, 1], dtype=file["color"])
    table = open_table(tmp_path / "a.nc")
    assert table.values[:, 0].tolist() == [0, 1, 1]
    assert "without their names ('RED', 'GREEN')" in table.read_as


@pytest.mark.parametrize("open_", [open_table, lambda path: open_rows(path).__enter__()])
def test_an_array_of_objects_is_named_for_what_it_is(tmp_path, open_):
    np.save(tmp_path / "a.npy", np.array([[1, "a"]], object))
    with pytest.raises(DataError, match="holds Python objects, which would have to be unpickled"):
        open_(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([["a"], ["b"]]))
    with pytest.raises(DataError) as caught:
        open_(tmp_path / "b.npy")
    assert "pandas" not in str(caught.value)


@pytest.mark.parametrize("key", ["units", "flag_meanings", "_FillValue"])
def test_an_empty_attribute_is_none(tmp_path, key):
    """netCDF's library writes a text without letters so."""
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["X"] = SMALL
        file["X"].attrs[key] = h5py.Empty("S1")
    table = open_table(tmp_path / "a.nc")
    assert table.values.tolist() == SMALL.tolist()
    assert key not in table.read_as


@pytest.mark.parametrize("value", [3, [3, 4]])
def test_meanings_are_text(tmp_path, value):
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["X"] = SMALL
        file["X"].attrs["flag_meanings"] = value
    assert "meanings" not in open_table(tmp_path / "a.nc").read_as


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_days_and_meanings_that_are_not_read_are_said(tmp_path, suffix):
    attributes = {"units": "days since 2000-01-01", "flag_meanings": "sea land"}
    path = tmp_path / f"a{suffix}"
    if suffix == ".zarr":
        zarr.create_group(str(path)).create_array("X", data=SMALL, attributes=attributes)
    else:
        with h5py.File(path, "w") as file:
            file["X"] = SMALL
            file["X"].attrs.update(attributes)
    table = open_table(path)
    assert table.values.tolist() == SMALL.tolist()
    assert "'X' read as numbers of 'days since 2000-01-01'" in table.read_as
    assert "'X' read as numbers without their meanings (sea land)" in table.read_as
