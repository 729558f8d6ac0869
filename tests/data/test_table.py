"""Every format gives the same table; every refusal says where and what to do."""

import json
import pickle
import warnings

import h5py
import numpy as np
import pyarrow as pa
import pytest
import zarr
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from sfg_dist.data import BUILTIN_NAMES, open_split, open_table
from sfg_dist.job.errors import DataError

VALUES = np.array([[1.5, -2.0, 3e10], [0.1, np.nan, 7.0], [4.0, 5.0, -1e-7]])
COLUMNS = ("PM2.5", "b", "c d")
SUFFIXES = (".npz", ".csv", ".parquet", ".h5", ".hdf5", ".zarr")


def write(path, values=VALUES, columns=COLUMNS, **more):
    """Write a table in the format of the path's suffix."""
    path = str(path)
    if path.endswith(".npy"):
        np.save(path, values)
    elif path.endswith(".npz"):
        np.savez(path, X=values, columns=np.array(columns), **more)
    elif path.endswith((".h5", ".hdf5")):
        with h5py.File(path, "w") as file:
            file["X"] = values
            file["columns"] = list(columns)
            for name, array in more.items():
                file[name] = array
    elif path.endswith(".zarr"):
        group = zarr.create_group(path)
        group.create_array("X", data=values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
            group.create_array("columns", data=np.array(columns))
        for name, array in more.items():
            group.create_array(name, data=array)
    else:
        table = pa.table([pa.array(column, from_pandas=True) for column in values.T], names=list(columns))
        (arrow_csv.write_csv if path.endswith(".csv") else parquet.write_table)(table, path)
    return path


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    return write(tmp_path / f"table{request.param}")


class TestFormats:
    def test_round_trip(self, path):
        table = open_table(path)
        np.testing.assert_array_equal(table.values, VALUES)
        assert table.values.dtype == np.float64
        assert table.columns == COLUMNS
        assert table.source == path
        assert table.log_density is None

    def test_columns_select_and_order(self, path):
        table = open_table(path, columns=["c d", "PM2.5"])
        np.testing.assert_array_equal(table.values, VALUES[:, [2, 0]])
        assert table.columns == ("c d", "PM2.5")

    def test_unknown_column_names_the_nearest(self, path):
        with pytest.raises(DataError, match=r"has no column 'PM25' \(data.columns\); did you mean 'PM2.5'"):
            open_table(path, columns=["PM25"])

    def test_max_rows_takes_the_first(self, path):
        np.testing.assert_array_equal(open_table(path, max_rows=2).values, VALUES[:2])

    @pytest.mark.parametrize("suffix", [".npz", ".h5", ".zarr"])
    def test_append(self, tmp_path, suffix):
        path = write(tmp_path / f"t{suffix}", minute=np.arange(3, dtype=np.int16), pair=np.ones((3, 2)))
        table = open_table(path, append=["minute", "pair"])
        assert table.columns == (*COLUMNS, "minute", "pair_0", "pair_1")
        np.testing.assert_array_equal(table.values[:, 3], [0, 1, 2])
        assert open_table(path, append=["minute"], columns=["minute"]).values.shape == (3, 1)

    @pytest.mark.parametrize("suffix", [".npz", ".h5", ".zarr"])
    def test_missing_array_lists_those_present(self, tmp_path, suffix):
        path = write(tmp_path / f"t{suffix}", other=np.ones((3, 2)))
        with pytest.raises(DataError, match=r"has no array 'Y'; set data.array to one of: .*X \(2-D 3 x 3 float64\)"):
            open_table(path, array="Y")
        with pytest.raises(DataError, match="no array 'nope'"):
            open_table(path, append=["nope"])

    @pytest.mark.parametrize("suffix", [".npz", ".h5", ".zarr"])
    def test_split_arrays(self, tmp_path, suffix):
        path = write(tmp_path / f"t{suffix}", val=np.ones((2, 3)), test=np.full((4, 3), 2.0))
        split = open_split(path, arrays={"train": ["X", "val"], "validation": None, "test": "test"})
        assert split.parts["train"].shape == (5, 3)
        assert split.parts["validation"].shape == (0, 3)
        np.testing.assert_array_equal(split.parts["train"][3:], 1)
        assert split.columns == COLUMNS
        one = open_split(path, arrays={"train": "X", "validation": "val", "test": "test"}, columns=["b"])
        assert (one.parts["validation"].shape, one.columns) == ((2, 1), ("b",))

    @pytest.mark.parametrize("suffix", [*SUFFIXES, ".npy"])
    def test_damaged_file(self, tmp_path, suffix):
        path = tmp_path / f"bad{suffix}"
        if suffix == ".zarr":
            path.mkdir()
            (path / "zarr.json").write_text("{not json")
        else:
            path.write_bytes(b"\x80\x04K\xff\xfe" * 20)
        with pytest.raises(DataError, match=rf"bad\{suffix} cannot be read as \{suffix}"):
            open_table(path)

    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".h5"])
    def test_truncated_file(self, tmp_path, suffix):
        path = tmp_path / f"cut{suffix}"
        write(path, values=np.random.default_rng(0).random((500, 3)))
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(DataError, match=rf"cut\{suffix} cannot be read"):
            open_table(path)


@pytest.mark.parametrize("suffix", [".npy", *SUFFIXES])
def test_missing_file(tmp_path, suffix):
    with pytest.raises(DataError, match=rf"nowhere\{suffix} does not exist"):
        open_table(tmp_path / f"nowhere{suffix}")


@pytest.mark.parametrize("suffix", [s for s in (".npy", *SUFFIXES) if s != ".zarr"])
def test_empty_file(tmp_path, suffix):
    (tmp_path / f"none{suffix}").touch()
    with pytest.raises(DataError, match=rf"none\{suffix} is empty \(0 bytes\)"):
        open_table(tmp_path / f"none{suffix}")


def test_zarr_folder_without_metadata(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(DataError, match="holds no Zarr group or array"):
        open_table(tmp_path / "a.zarr")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint64, bool, ">f4"])
def test_npy_widens(tmp_path, dtype):
    values = np.array([[0, 1], [1, 1]], dtype=dtype)
    np.save(tmp_path / "a.npy", values)
    table = open_table(tmp_path / "a.npy")
    assert table.values.dtype == np.float64
    assert table.columns == ("c0", "c1")
    np.testing.assert_array_equal(table.values, values.astype(float))


def test_one_dimension_is_one_column(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4.0))
    assert open_table(tmp_path / "a.npy").values.shape == (4, 1)


def test_single_zarr_array(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=VALUES)
    np.testing.assert_array_equal(open_table(tmp_path / "a.zarr").values, VALUES)


def test_nested_groups(tmp_path):
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    group.create_group("inner").create_array("rows", data=VALUES)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["inner/rows"] = VALUES
    for name in ("a.zarr", "a.h5"):
        np.testing.assert_array_equal(open_table(tmp_path / name, array="inner/rows").values, VALUES)


def test_only_matrix_is_found_without_its_name(tmp_path):
    np.savez(tmp_path / "a.npz", samples=VALUES, weights=np.ones(3))
    np.testing.assert_array_equal(open_table(tmp_path / "a.npz").values, VALUES)
    np.savez(tmp_path / "b.npz", samples=VALUES, more=VALUES)
    with pytest.raises(DataError, match=r"no array 'X'; set data.array to one of: samples \(.*, more \("):
        open_table(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((2, 2, 2)), r"array 'X' has shape \(2, 2, 2\): expected one or two dimensions"),
        (np.float64(1), r"array 'X' has shape \(\)"),
        (np.ones((2, 2), complex), "array 'X' holds complex numbers: expected real numbers"),
        (np.array([["a"]]), "array 'X' holds text"),
        (np.ones(2, dtype="f4,(3,)f4"), "column 'f1' holds several values a row"),
        (np.array(["2020-01-01"], dtype="M8[h]"), r"has type datetime64\[h\]: convert it to datetime64\[s\]"),
        (np.empty((0, 3)), "has 0 rows and 3 columns"),
        (np.empty((3, 0)), "has 3 rows and 0 columns"),
    ],
)
def test_arrays_that_are_no_table(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match=rf"a.npy.*{message}"):
        open_table(tmp_path / "a.npy")


class Bomb:
    """Fails the test if it is ever unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("something was unpickled",))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_object_arrays_are_never_unpickled(tmp_path, suffix):
    values = np.array([[Bomb()]], dtype=object)
    path = tmp_path / f"a{suffix}"
    np.save(path, values) if suffix == ".npy" else np.savez(path, X=values)
    with pytest.raises(DataError, match=rf"a\{suffix}: array 'X' holds Python objects.*save it as plain numbers"):
        open_table(path)


def test_pickle_with_a_harmless_suffix(tmp_path):
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"does not start as a \.npy file does"):
        open_table(tmp_path / "a.npy")
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
        open_table(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", ["|O", "<f8"])
def test_zarr_pickle_codec_is_refused(tmp_path, dtype):
    path = tmp_path / "a.zarr"
    path.mkdir()
    metadata = {"zarr_format": 2, "shape": [1, 1], "chunks": [1, 1], "dtype": dtype, "order": "C"}
    metadata |= {"compressor": None, "fill_value": 0, "filters": [{"id": "pickle", "protocol": 5}]}
    (path / ".zarray").write_text(json.dumps(metadata))
    (path / "0.0").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"a\.zarr"):
        open_table(path)


def test_append_must_match(tmp_path):
    np.savez(tmp_path / "a.npz", X=VALUES, short=np.ones(2))
    with pytest.raises(DataError, match=r"array 'short' \(data.append\) has 2 rows, 'X' has 3"):
        open_table(tmp_path / "a.npz", append=["short"])
    np.savez(tmp_path / "b.npz", X=VALUES, c0=np.ones(3))
    with pytest.raises(DataError, match="2 columns are named 'c0'"):
        open_table(tmp_path / "b.npz", append=["c0"])


def test_split_widths_must_match(tmp_path):
    np.savez(tmp_path / "a.npz", train=VALUES, test=np.ones((3, 2)))
    with pytest.raises(DataError, match="array 'test' has 2 columns, 'train' has 3"):
        open_split(tmp_path / "a.npz", arrays={"train": "train", "test": "test"})
    with pytest.raises(DataError, match=r"data.arrays.test must name at least one array"):
        open_split(tmp_path / "a.npz", arrays={"train": "train"})
    with pytest.raises(DataError, match="needs a file of several arrays"):
        open_split("moons", arrays={"train": "a", "test": "b"})


@pytest.mark.parametrize(
    ("text", "columns", "values"),
    [
        ("1,2\n3,4\n", ("c0", "c1"), [[1, 2], [3, 4]]),
        ("\n a, b\n1, 2\n", ("a", "b"), [[1, 2]]),
        ("\ufeffa;b\n1;2.5\n", ("a", "b"), [[1, 2.5]]),
        ("a\tb\n1\t\n", ("a", "b"), [[1, np.nan]]),
        ("a,b\ntrue,NA\nfalse,3\n", ("a", "b"), [[1, np.nan], [0, 3]]),
        (",a\n0,1\n", ("a",), [[1]]),
        ("a\ninf\n-1e400\n", ("a",), [[np.inf], [-np.inf]]),
        ('"a,b",c\n1,2\n', ("a,b", "c"), [[1, 2]]),
    ],
)
def test_csv_dialects(tmp_path, text, columns, values):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    table = open_table(tmp_path / "a.csv")
    assert table.columns == columns
    np.testing.assert_array_equal(table.values, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,2\n3,four\n",
            r"column 'b' holds text: 'four' in data row 2 \(counted from 1\).*data.columns",
        ),
        ("a,b\n1,2\n!,3\n", r"column 'a' holds text: '!' in data row 2"),
        ("a,b\n1,2\n3\n", "a.csv: line 3 has 1 cell, expected 2 cells"),
        ("a,a\n1,2\n", "2 columns are named 'a'"),
        ("a,b\n", "has 0 rows and 2 columns"),
        ("\n \n", "blank lines only"),
    ],
)
def test_csv_refusals(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_table(tmp_path / "a.csv")


@pytest.mark.slow
def test_text_far_down_a_csv(tmp_path):
    lines = ["a,b", *(f"{row},{row}" for row in range(200_000)), "1,oops"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="column 'b' holds text: 'oops' in data row 200001"):
        open_table(tmp_path / "a.csv")
    assert open_table(tmp_path / "a.csv", columns=["a"]).values.shape == (200_001, 1)


def test_unwanted_columns_do_not_matter(tmp_path):
    table = pa.table(
        {
            "name": ["x", "y"],
            "day": pa.array([1, 2], pa.date32()),
            "list": [[1], [2]],
            "v": pa.array([1, None], pa.int64()),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "small": pa.array(np.array([1, 2], np.float16)),
            "flag": [True, None],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    opened = open_table(tmp_path / "a.parquet", columns=["flag", "v", "small"])
    np.testing.assert_array_equal(opened.values, [[1, 1, 1], [np.nan, np.nan, 2]])
    for column, message in {
        "list": "column 'list' has type list",
    }.items():
        with pytest.raises(DataError, match=message):
            open_table(tmp_path / "a.parquet", columns=[column])
    assert [type_.categories for type_ in open_table(tmp_path / "a.parquet", columns=["name", "kind"]).types] == [
        ("x", "y"),
        ("a", "b"),
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("moon", r"moon: did you mean 'moons'\?"),
        ("china_pathes_8", r"did you mean 'china_patches_8'\?"),
        ("table.xlsx", r"\.npy, \.npz, \.csv, .* built-in tables moons, .*found the suffix \.xlsx"),
        ("gs://bucket/a.csv", "expected a local path or an s3:// URL, found the scheme gs://"),
        ("s3://bucket", "expected s3://bucket/key"),
    ],
)
def test_sources_that_are_none(source, message):
    with pytest.raises(DataError, match=message):
        open_table(source)


@pytest.mark.parametrize("keys", [{"array": "Y"}, {"append": ["Y"]}])
def test_array_keys_need_arrays(tmp_path, keys):
    path = write(tmp_path / "a.csv")
    for source in (path, "wine"):
        with pytest.raises(DataError, match=f"leave out data.{next(iter(keys))}"):
            open_table(source, **keys)


def test_h5_without_h5py(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(DataError, match=r"pip install 'sfg_dist\[h5\]'"):
        open_table(path)


def test_builtin_wins_over_a_file_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("moons.npy", VALUES)
    assert "moons" in BUILTIN_NAMES
    assert open_table("moons", max_rows=5).values.shape == (5, 2)
    assert open_table("./moons.npy").values.shape == (3, 3)
