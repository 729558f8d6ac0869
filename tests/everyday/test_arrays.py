"""Everyday array files by kind: what their attributes, coordinates and absent chunks say of their values."""

import base64
import struct
import warnings

import h5py
import numpy as np
import pytest
import zarr

from sfg_dist.data import open_rows, open_split, open_table, prepare
from sfg_dist.job.errors import DataError

NAN = np.nan
RAW = np.array([[100, -32768], [200, 5], [300, 7]], dtype=np.int16)


def h5(path, arrays, attributes=None):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
            for key, value in (attributes or {}).get(name, {}).items():
                file[name].attrs[key] = value
    return path


def zarr_group(path, arrays, attributes=None, **keys):
    group = zarr.create_group(str(path), zarr_format=keys.pop("zarr_format", 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
        for name, values in arrays.items():
            array = group.create_array(name, data=values, **keys)
            array.attrs.update((attributes or {}).get(name, {}))
    return path


@pytest.fixture(params=[".h5", ".nc", ".zarr"])
def write(request, tmp_path):
    def make(arrays, attributes):
        path = tmp_path / f"a{request.param}"
        return zarr_group(path, arrays, attributes) if request.param == ".zarr" else h5(path, arrays, attributes)

    return make


class TestPackedValues:
    """D1."""

    def test_scale_offset_and_fill(self, write):
        path = write({"X": RAW}, {"X": {"scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32768}})
        table = open_table(path)
        np.testing.assert_allclose(table.values, [[281, NAN], [282, 280.05], [283, 280.07]], rtol=1e-15)
        assert "_FillValue, scale_factor, add_offset of 'X' applied" in table.read_as

    @pytest.mark.parametrize(
        ("attributes", "values"),
        [
            ({"missing_value": 200}, [[100, -32768], [NAN, 5], [300, 7]]),
            ({"valid_range": [0, 250]}, [[100, NAN], [200, 5], [NAN, 7]]),
            ({"valid_min": 6}, [[100, NAN], [200, NAN], [300, 7]]),
            ({"valid_max": 6, "scale_factor": 2}, [[NAN, -65536], [NAN, 10], [NAN, NAN]]),
            ({"valid_max": 300.5, "scale_factor": 2.0}, [[200, -65536], [NAN, 10], [NAN, 14]]),
            ({"_Unsigned": "true"}, [[100, 32768], [200, 5], [300, 7]]),
            ({"units": "K", "long_name": "x"}, RAW.tolist()),
        ],
    )
    def test_single_attributes(self, write, attributes, values):
        np.testing.assert_array_equal(open_table(write({"X": RAW}, {"X": attributes})).values, values)

    def test_fill_values_of_floats(self, write):
        values = np.array([[1.5, np.float32(1e20)], [2.5, -999.0]], np.float32)
        path = write({"X": values}, {"X": {"_FillValue": 1e20, "missing_value": -999.0}})
        np.testing.assert_array_equal(open_table(path).values, [[1.5, NAN], [2.5, NAN]])

    def test_an_attribute_that_is_no_number(self, write):
        with pytest.raises(DataError, match=r"array 'X': its attribute scale_factor is 'big': expected a number"):
            open_table(write({"X": RAW}, {"X": {"scale_factor": "big"}}))

    def test_appended_and_split_arrays(self, write):
        attributes = {name: {"scale_factor": 0.5} for name in ("X", "y")}
        path = write({"X": RAW, "y": np.array([2, 4, 6])}, attributes)
        np.testing.assert_array_equal(open_table(path, append=["y"]).values[:, 2], [1, 2, 3])
        split = open_split(path, arrays={"train": "X", "test": "X"})
        np.testing.assert_array_equal(split.parts["train"][:, 0], [50, 100, 150])

    def test_zarr_by_ranges(self, tmp_path):
        attributes = {"scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32768}
        path = zarr_group(tmp_path / "a.zarr", {"X": RAW}, {"X": attributes})
        with open_rows(path) as rows:
            np.testing.assert_array_equal(rows.read(0, 3), open_table(path).values)
            np.testing.assert_array_equal(rows.read(1, 3, ["c1"]), open_table(path).values[1:, 1:])
            assert "scale_factor" in rows.read_as

    def test_fill_values_as_xarray_writes_them(self, tmp_path):
        fill = base64.b64encode(struct.pack("<d", -999.0)).decode()
        path = zarr_group(tmp_path / "a.zarr", {"X": np.array([[1.5, -999.0]])}, {"X": {"_FillValue": fill}})
        np.testing.assert_array_equal(open_table(path).values, [[1.5, NAN]])
        two = zarr_group(
            tmp_path / "b.zarr",
            {"X": RAW},
            {"X": {"_ARRAY_DIMENSIONS": ["row", "column"]}},
            zarr_format=2,
            fill_value=-32768,
        )
        assert np.isnan(open_table(two).values[0, 1])

    def test_what_netcdf_fills_in_by_default(self, tmp_path):
        path = h5(tmp_path / "a.nc", {"X": np.array([[1, 2], [-2147483647, 4]], np.int32)})
        np.testing.assert_array_equal(open_table(path).values, [[1, 2], [NAN, 4]])
        plain = h5(tmp_path / "a.h5", {"X": np.array([[1, 2], [-2147483647, 4]], np.int32)})
        assert open_table(plain).values[1, 0] == -2147483647

    def test_netcdf_classic_is_named(self, tmp_path):
        (tmp_path / "a.nc").write_bytes(b"CDF\x01" + bytes(60))
        with pytest.raises(DataError, match=r"a\.nc is a netCDF file of the classic format.*nccopy"):
            open_table(tmp_path / "a.nc")


ONES = {"temp": np.arange(3.0), "press": np.arange(3.0) + 10}


class TestSigns:
    def test_bytes_with_a_sign_from_a_server_without(self, write):
        path = write(
            {"X": np.array([[100, 200], [255, 7]], np.uint8)}, {"X": {"_Unsigned": "false", "_FillValue": 255}}
        )
        np.testing.assert_array_equal(open_table(path).values, [[100, -56], [NAN, 7]])


class TestNames:
    """D2."""

    @pytest.mark.parametrize("suffix", [".h5", ".npz", ".zarr"])
    def test_arrays_of_one_dimension(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        if suffix == ".npz":
            np.savez(path, **ONES)
        else:
            (zarr_group if suffix == ".zarr" else h5)(path, ONES)
        assert open_table(path, array="temp", append=["press"]).columns == ("temp", "press")
        assert open_table(path, array="temp", append=["press"], columns=["press"]).values.tolist() == [[10], [11], [12]]

    def test_names_for_all_columns_together(self, tmp_path):
        path = h5(tmp_path / "a.h5", {"X": np.ones((3, 2)), "y": np.ones(3), "columns": ["a", "b", "target"]})
        assert open_table(path, append=["y"]).columns == ("a", "b", "target")
        assert "'columns' not used: it has 3 names, 'X' has 2 columns" in open_table(path).read_as

    def test_coordinates(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["X"] = np.ones((3, 2))
            file["feature"] = ["red", "blue"]
            file["feature"].make_scale("feature")
            file["X"].dims[1].attach_scale(file["feature"])
        group = zarr.create_group(str(tmp_path / "a.zarr"))
        group.create_array("X", data=np.ones((3, 2)), dimension_names=["row", "feature"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
            group.create_array("feature", data=np.array(["red", "blue"]), dimension_names=["feature"])
        for name in ("a.h5", "a.zarr"):
            assert open_table(tmp_path / name).columns == ("red", "blue")
        with open_rows(tmp_path / "a.zarr") as rows:
            assert rows.columns == ("red", "blue")

    def test_a_frame_of_pandas(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            group = file.create_group("df")
            group["axis0"] = np.array([b"a", b"b", b"n"])
            group["axis1"] = np.arange(4)
            group["block0_items"], group["block0_values"] = np.array([b"b", b"a"]), np.arange(8.0).reshape(4, 2)
            group["block1_items"], group["block1_values"] = np.array([b"n"]), np.arange(4).reshape(4, 1)
        table = open_table(tmp_path / "a.h5")
        assert table.columns == ("a", "b", "n")
        np.testing.assert_array_equal(table.values, [[1, 0, 0], [3, 2, 1], [5, 4, 2], [7, 6, 3]])


class TestAbsentChunks:
    """D3."""

    def make(self, path, fill, attributes=None, **keys):
        array = zarr.create_array(
            str(path), shape=(100, 2), chunks=(10, 2), dtype="f8", fill_value=fill, attributes=attributes, **keys
        )
        array[:40] = 1.5
        return path

    @pytest.mark.parametrize("keys", [{}, {"zarr_format": 2}, {"shards": (20, 2)}])
    def test_they_are_no_data(self, tmp_path, keys):
        path = self.make(tmp_path / "a.zarr", 0.0, **keys)
        with pytest.raises(DataError, match=r"array 'X' lacks 6 of 10 chunks: they were never written"):
            open_table(path)
        with pytest.raises(DataError, match=r"lacks 6 of 10 chunks"), open_rows(path):
            pass

    @pytest.mark.parametrize(("fill", "attributes"), [(NAN, {}), (-999.0, {"_FillValue": -999.0})])
    def test_missing_where_the_fill_value_is(self, tmp_path, fill, attributes):
        path = self.make(tmp_path / "a.zarr", fill, attributes)
        table = open_table(path)
        assert np.isnan(table.values[40:]).all()
        assert (table.values[:40] == 1.5).all()
        assert "6 of 10 chunks of 'X' were never written: missing values" in table.read_as
        with open_rows(path) as rows:
            np.testing.assert_array_equal(rows.read(0, 100), table.values)

    def test_of_hdf5(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("X", (100, 2), "f8", chunks=(10, 2))[:40] = 1.5
            file.create_dataset("Y", (100, 2), "f8")
        with pytest.raises(DataError, match=r"array 'X' lacks 6 of 10 chunks"):
            open_table(tmp_path / "a.h5")
        with pytest.raises(DataError, match=r"array 'Y' lacks 1 of 1 chunks"):
            open_table(tmp_path / "a.h5", array="Y")


@pytest.mark.parametrize("at", ["start", "end"])
def test_chunks_within_shards(tmp_path, at):
    path = tmp_path / "a.zarr"
    codec = zarr.codecs.ShardingCodec(chunk_shape=(10, 3), index_location=at)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create(store=str(path), shape=(55, 3), chunks=(20, 3), dtype="f8", codecs=[codec], fill_value=0.0)
    array[:30] = array[40:] = 1.5
    with pytest.raises(DataError, match=r"'X' lacks 1 of 6 chunks"):
        open_table(path)
    array[30:] = 2.5
    assert len(open_table(path).values) == 55
    with pytest.raises(DataError, match=r"lacks 3 of 6 chunks"):
        open_table(zarr_half(tmp_path / "b.zarr", codec))


def zarr_half(path, codec):
    array = zarr.create(store=str(path), shape=(55, 3), chunks=(20, 3), dtype="f8", codecs=[codec], fill_value=0.0)
    array[30:] = 2.5
    return path


def test_an_hdf5_file_is_not_told_of_zarr(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("X", shape=(20, 3), chunks=(10, 3), dtype="f4")[:10] = 1
    with pytest.raises(DataError, match=r"lacks 1 of 2 chunks: they were never written; write them. If absent"):
        open_table(tmp_path / "a.h5")


def test_several_arrays_in_one_npy(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.save(file, RAW)
        np.save(file, RAW)
    with pytest.raises(DataError, match=r"a\.npy holds more behind its first array"):
        open_table(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"a\.npy holds more behind its first array"), open_rows(tmp_path / "a.npy"):
        pass


def test_durations_in_hours_are_told_a_duration(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3).astype("m8[h]"))
    with pytest.raises(DataError, match=r"convert it to timedelta64\[s\]"):
        open_table(tmp_path / "a.npy")


class TestShapes:
    """D5."""

    def test_a_transposed_table_is_hinted_at(self, tmp_path):
        path = h5(tmp_path / "a.h5", {"X": np.random.default_rng(0).random((3, 40))})
        with pytest.raises(DataError, match=r"has 3 rows of 40 columns: .*MATLAB.*transpose"):
            prepare(path)

    @pytest.mark.parametrize("suffix", [".npy", ".zarr"])
    def test_one_dimension_by_ranges(self, tmp_path, suffix):
        path, values = tmp_path / f"a{suffix}", np.arange(50.0)
        np.save(path, values) if suffix == ".npy" else zarr.create_array(str(path), data=values)
        whole = open_table(path)
        with open_rows(path) as rows:
            assert rows.columns == whole.columns == ("c0",)
            np.testing.assert_array_equal(rows.read(0, 50), whole.values)


@pytest.mark.parametrize("name", ["a.NPY", "a.H5", "a.Nc", "a.HDF5"])
def test_suffixes_in_any_case(tmp_path, name):
    path = tmp_path / name
    if name.lower().endswith("npy"):
        with path.open("wb") as stream:
            np.save(stream, np.ones((3, 2)))
    else:
        h5(path, {"X": np.ones((3, 2))})
    assert open_table(path).values.shape == (3, 2)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"scale_factor": np.array([0.1, 0.2])}, "its attribute scale_factor is 0.1, 0.2: expected one finite number"),
        ({"scale_factor": 0.0}, "its attribute scale_factor is 0.0: expected one finite number"),
        ({"add_offset": np.nan}, "its attribute add_offset is nan: expected one finite number"),
        ({"valid_range": np.array([90, 10])}, "its valid values run from 90 to 10, so no value is valid"),
    ],
)
def test_attributes_that_cannot_be_meant_are_refused(tmp_path, attributes, words):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["X"] = np.arange(40).reshape(20, 2)
        file["X"].attrs.update(attributes)
    with pytest.raises(DataError, match=f"t.h5: array 'X': {words}"):
        open_table(tmp_path / "t.h5")


def test_an_array_is_found_by_its_path_from_the_root(tmp_path):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["g/a"] = file["g/b"] = np.arange(40).reshape(20, 2)
    assert open_table(tmp_path / "t.h5", array="/g/a").values[0].tolist() == [0, 1]


def test_a_damaged_file_is_told_without_the_words_of_a_library(tmp_path):
    (tmp_path / "t.npz").write_text("x")
    with pytest.raises(DataError, match=r"another format \(it is not a zip archive of arrays\)$"):
        open_table(tmp_path / "t.npz")
    (tmp_path / "t.zarr").mkdir()
    (tmp_path / "t.zarr" / "zarr.json").write_text("{")
    with pytest.raises(DataError, match=r"t\.zarr cannot be read as \.zarr: .* of another format$"):
        open_table(tmp_path / "t.zarr")
