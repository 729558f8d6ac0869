"""Tables and stores that somebody else made: no code of theirs runs, no other file is read, no size is believed."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

import google_crc32c
import h5py
import numcodecs
import numcodecs.pickles
import numpy as np
import pyarrow as pa
import pytest
import zarr
from commands import sfg
from patience import patience
from pyarrow import csv, parquet

from sfg_dist import open_pairs
from sfg_dist.data import open_rows, open_table
from sfg_dist.data.column_type import ColumnType
from sfg_dist.job import memory
from sfg_dist.job.errors import DataError, StoreError
from sfg_dist.store.table import read_table, write_table

SECRET = np.arange(1000.0) + 0.125
ROWS = np.random.default_rng(0).normal(size=(60, 2))


@pytest.fixture
def decoded(monkeypatch):
    """What was handed to pickle, as if the environment allowed it."""
    seen = []
    monkeypatch.setattr(numcodecs.pickles.Pickle, "decode", lambda self, buf, out=None: seen.append(bytes(buf)) or buf)
    return seen


@pytest.fixture
def small_machine(monkeypatch):
    """A machine on which 128 MiB may be used."""
    monkeypatch.setattr(memory, "_group_limits", lambda: [128 << 20])


def refused(source, *words, **keys):
    """The table is refused, by the file's name and these words."""
    with pytest.raises(DataError) as refusal:
        open_table(source, **keys)
    message = str(refusal.value)
    assert str(source) in message
    for word in words:
        assert word in message
    return message


# Codecs.


def format_2(path, *, filters=(), compressor=None, dtype="<f8", name="X", chunk=None):
    """A Zarr array of format 2, its metadata written by hand."""
    (path / name).mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    document = {"zarr_format": 2, "shape": [4, 2], "chunks": [4, 2], "dtype": dtype, "fill_value": None, "order": "C"}
    document |= {"filters": list(filters) or None, "compressor": compressor}
    (path / name / ".zarray").write_text(json.dumps(document))
    (path / name / "0.0").write_bytes(np.arange(8.0).tobytes() if chunk is None else chunk)
    return document


def format_3(path, codecs, name="X", **more):
    """The same of format 3."""
    (path / name / "c/0").mkdir(parents=True)
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    grid = {"name": "regular", "configuration": {"chunk_shape": [4, 2]}}
    keys = {"name": "default", "configuration": {"separator": "/"}}
    document = {"zarr_format": 3, "node_type": "array", "shape": [4, 2], "data_type": "float64", "chunk_grid": grid}
    document |= {"chunk_key_encoding": keys, "fill_value": 0.0, "codecs": codecs, "attributes": {}} | more
    (path / name / "zarr.json").write_text(json.dumps(document))
    (path / name / "c/0/0").write_bytes(np.arange(8.0).tobytes())
    return document


PICKLE, TEXT, LITTLE = (
    {"id": "pickle", "protocol": 4},
    {"id": "vlen-utf8"},
    {"name": "bytes", "configuration": {"endian": "little"}},
)
PICKLE_3 = {"name": "numcodecs.pickle", "configuration": {}}


def shards(codecs, index):
    return [
        {
            "name": "sharding_indexed",
            "configuration": {"chunk_shape": [2, 2], "codecs": codecs, "index_codecs": index, "index_location": "end"},
        }
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {"filters": [TEXT, PICKLE], "dtype": "|O"},
        {"filters": [PICKLE], "dtype": "|O"},
        {"filters": [PICKLE]},
        {"compressor": PICKLE},
        {"filters": [{"id": "json2"}], "dtype": "|O"},
        {"filters": [{"id": "msgpack2"}], "dtype": "|O"},
        {"filters": [{"id": "vlen-array", "dtype": "<f8"}], "dtype": "|O"},
        {"dtype": [["a", "|O"], ["b", "<f8"]]},
    ],
    ids=str,
)
def test_objects_in_zarr_2_are_refused_before_a_codec_is_built(tmp_path, decoded, keys):
    format_2(tmp_path / "t.zarr", **keys)
    refused(tmp_path / "t.zarr", "array 'X' holds Python objects", "save it as plain numbers")
    assert not decoded


@pytest.mark.parametrize(
    ("codecs", "more"),
    [
        ([LITTLE, PICKLE_3], {}),
        (["pickle"], {}),
        (shards([LITTLE, PICKLE_3], [LITTLE]), {}),
        (shards([LITTLE], [LITTLE, PICKLE_3]), {}),
        (shards(shards([LITTLE], [LITTLE]), [LITTLE]), {}),
        ([LITTLE, {"name": "of-a-plugin", "configuration": {}}], {}),
        ([LITTLE, {"name": "gzip"}, {"name": "gzip"}], {}),
        ([{"name": "numcodecs.astype", "configuration": {"encode_dtype": "O", "decode_dtype": "f8"}}, LITTLE], {}),
        ([LITTLE], {"storage_transformers": [{"name": "pickle"}]}),
    ],
    ids=str,
)
def test_codecs_of_zarr_3_that_are_not_on_the_list_are_refused(tmp_path, decoded, codecs, more):
    format_3(tmp_path / "t.zarr", codecs, **more)
    message = refused(tmp_path / "t.zarr", "array 'X'")
    assert "not read" in message or "unpickled" in message or "pack it once" in message
    assert not decoded


@pytest.mark.parametrize("number", [2, 3])
def test_metadata_put_together_in_a_group_are_looked_at_too(tmp_path, decoded, number):
    """They describe the array otherwise than its own document, which is harmless."""
    path = tmp_path / "t.zarr"
    if number == 2:
        harmless = format_2(path)
        members = {".zgroup": {"zarr_format": 2}, "X/.zarray": harmless | {"filters": [PICKLE]}}
        (path / ".zmetadata").write_text(json.dumps({"zarr_consolidated_format": 1, "metadata": members}))
    else:
        harmless = format_3(path, [LITTLE])
        members = {"X": harmless | {"codecs": [LITTLE, PICKLE_3]}}
        group = json.loads((path / "zarr.json").read_text())
        group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": members}
        (path / "zarr.json").write_text(json.dumps(group))
    refused(path, "array 'X' holds Python objects")
    assert not decoded


@pytest.mark.parametrize(
    "keys",
    [
        {"compressor": numcodecs.Blosc()},
        {"compressor": numcodecs.Zlib()},
        {"compressor": numcodecs.GZip()},
        {"compressor": numcodecs.Zstd()},
        {"compressor": numcodecs.LZ4()},
        {"compressor": numcodecs.BZ2()},
        {"compressor": numcodecs.LZMA()},
        {"compressor": numcodecs.Zstd(), "filters": [numcodecs.Delta("f8"), numcodecs.Shuffle(8)]},
        {"filters": [numcodecs.FixedScaleOffset(0, 100, "f8", "i4")], "compressor": numcodecs.Zlib()},
        {"filters": [numcodecs.Quantize(3, "f8")], "compressor": numcodecs.Blosc()},
        {"filters": [numcodecs.AsType("f4", "f8")], "compressor": None},
        {"filters": [numcodecs.CRC32()], "compressor": None},
    ],
    ids=str,
)
def test_tables_of_zarr_2_are_read_with_the_codecs_on_the_list(tmp_path, keys):
    array = zarr.create_array(
        tmp_path / "t.zarr",
        shape=ROWS.shape,
        dtype="f8",
        zarr_format=2,
        **{"compressors" if key == "compressor" else key: value for key, value in keys.items()},
    )
    array[...] = ROWS
    assert np.allclose(open_table(tmp_path / "t.zarr").values, ROWS, atol=0.01)
    with open_rows(tmp_path / "t.zarr") as rows:
        assert np.allclose(rows.read(5, 9), ROWS[5:9], atol=0.01)


@pytest.mark.parametrize("codec", ["GzipCodec", "ZstdCodec", "BloscCodec"])
@pytest.mark.parametrize("sharded", [False, True])
def test_packed_tables_of_zarr_3_are_read(tmp_path, codec, sharded):
    array = zarr.create_array(
        tmp_path / "t.zarr",
        shape=ROWS.shape,
        dtype="f8",
        chunks=(10, 2),
        shards=(30, 2) if sharded else None,
        compressors=getattr(zarr.codecs, codec)(),
    )
    array[...] = ROWS
    assert np.array_equal(open_table(tmp_path / "t.zarr").values, ROWS)


# Stores.


@pytest.fixture
def store(make_store):
    """A store that was laid out, to be spoilt."""
    return Path(make_store().location.url)


def test_a_store_of_zarr_2_is_not_opened(store, decoded):
    """With all of its objects of format 2, whatever its seals say."""
    for document in store.rglob("zarr.json"):
        document.unlink()
    shutil.rmtree(store / "transform")
    (store / ".zgroup").write_text('{"zarr_format": 2}')
    format_2(store / "transform", filters=[TEXT, PICKLE], dtype="|O", name="location")
    (store / "transform/.zattrs").write_text('{"metadata": "{}"}')
    with pytest.raises(StoreError):
        _ = open_pairs(store).transform
    assert not decoded


@pytest.mark.parametrize(
    "codec", [PICKLE_3, {"name": "zstd", "configuration": {"level": 0, "checksum": False}}], ids=str
)
@pytest.mark.parametrize("name", ["transform/scale", "transform/location", "reference/rows"])
def test_a_store_has_the_codecs_of_this_package_alone(store, decoded, codec, name):
    path = store / name / "zarr.json"
    document = json.loads(path.read_text())
    document["codecs"] = [LITTLE, codec]
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=name):
        _ = open_pairs(store).reference if name.startswith("reference") else open_pairs(store).transform
    assert not decoded


@pytest.mark.parametrize("name", ["transform/scale", "reference/rows"])
def test_an_array_of_a_store_that_declares_more_than_is_stored(store, name):
    path = store / name / "zarr.json"
    document = json.loads(path.read_text())
    document["shape"][0] = 1 << 40
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"declares .* TiB, and .* are stored"):
        _ = open_pairs(store).reference if name.startswith("reference") else open_pairs(store).transform


def test_samples_that_declare_more_than_is_stored(tmp_path):
    path = tmp_path / "samples.zarr"
    write_table(path, ["a"], 10, lambda ranges: (np.ones((stop - start, 1)) for start, stop in ranges), source="s")
    document = json.loads((path / "X/zarr.json").read_text())
    document["shape"][0] = 1 << 40
    (path / "X/zarr.json").write_text(json.dumps(document))
    group = json.loads((path / "zarr.json").read_text())
    group["consolidated_metadata"]["metadata"]["X"] = document
    (path / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(StoreError, match=r"samples.zarr/X declares 8.0 TiB"):
        read_table(path, source="s")


# HDF5: values that lie elsewhere.


@pytest.fixture
def secret(tmp_path):
    """A file that is none of the table."""
    path = tmp_path / "home/secret.bin"
    path.parent.mkdir()
    SECRET.tofile(path)
    with h5py.File(tmp_path / "home/secret.h5", "w") as file:
        file["X"] = SECRET.reshape(-1, 2)
    return path


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".nc"])
def test_external_storage_is_refused(tmp_path, secret, suffix):
    path = tmp_path / f"t{suffix}"
    with h5py.File(path, "w") as file:
        file.create_dataset("X", (500, 2), "f8", external=[(str(secret), 0, 8000)])
    refused(path, "'X'", "secret.bin", "external storage", "copy them into this one")


def test_names_by_external_storage_are_refused(tmp_path, secret):
    secret.write_bytes(b"abcdefgh")
    for name in ("columns", "axis"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["X"] = ROWS
            names = file.create_dataset(name, (2,), "S4", external=[(str(secret), 0, 8)])
            if name == "axis":
                names.dims[0].label = names.name
                names.make_scale("axis")
                file["X"].dims[1].attach_scale(names)
        refused(tmp_path / f"{name}.h5", name, "external storage")


@pytest.mark.parametrize("suffix", [".h5", ".nc"])
def test_virtual_datasets_are_refused(tmp_path, secret, suffix):
    layout = h5py.VirtualLayout((500, 2), "f8")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "X", (500, 2))
    with h5py.File(tmp_path / f"t{suffix}", "w") as file:
        file.create_virtual_dataset("X", layout)
    refused(tmp_path / f"t{suffix}", "'X'", "virtual dataset", "copy its values")


@pytest.mark.parametrize("kind", ["external", "soft", "external storage"])
def test_a_frame_of_pandas_whose_values_lie_elsewhere(tmp_path, secret, kind):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        frame = file.create_group("frame")
        frame["axis0"], frame["axis1"], frame["block0_items"] = [b"a", b"b"], np.arange(500), [b"a", b"b"]
        if kind == "external storage":
            frame.create_dataset("block0_values", (500, 2), "f8", external=[(str(secret), 0, 8000)])
        elif kind == "soft":
            file["away"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/")
            frame["block0_values"] = h5py.SoftLink("/away/X")
        else:
            frame["block0_values"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "X")
    assert "0.125" not in refused(tmp_path / "t.h5", array="frame")


# Links.


def zarr_table(path, **keys):
    array = zarr.create_group(path).create_array("X", shape=ROWS.shape, dtype="f8", chunks=(20, 2), **keys)
    array[...] = ROWS
    return path


@pytest.mark.parametrize("what", ["X/c/1/0", "X/c/1", "X/c", "X/zarr.json", "X", "zarr.json"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_zarr_table_with_a_link_out_of_it(tmp_path, what, whole):
    path, away = zarr_table(tmp_path / "t.zarr", fill_value=np.nan), tmp_path / "away"
    (path / what).rename(away)
    (path / what).symlink_to(away)
    if whole:
        refused(path, "link", "leads out of the folder", str(tmp_path))
    else:
        with pytest.raises(DataError, match="leads out of the folder"), open_rows(path) as rows:
            rows.read(0, 60)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("glob", [False, True])
@pytest.mark.parametrize("folder", [False, True])
def test_a_folder_of_files_with_a_link_out_of_it(tmp_path, suffix, glob, folder):
    table = pa.table({"a": ROWS[:, 0], "b": ROWS[:, 1]})
    write = {".parquet": parquet.write_table, ".csv": csv.write_csv}[suffix]
    for name in ("t/sub", "away"):
        (tmp_path / name).mkdir(parents=True)
    write(table, tmp_path / f"t/sub/0{suffix}")
    write(table, tmp_path / f"away/1{suffix}")
    (tmp_path / ("t/year=1" if folder else f"t/1{suffix}")).symlink_to(
        tmp_path / ("away" if folder else f"away/1{suffix}")
    )
    source = tmp_path / "t"
    refused(f"{source}/**/*" if glob else source, "link", "leads out of the folder", str(tmp_path / "away"))


def test_links_that_users_make_are_followed(tmp_path):
    """To the table itself, to its folder, and within it."""
    zarr_table(tmp_path / "far/t.zarr")
    os.symlink(tmp_path / "far/t.zarr", tmp_path / "t.zarr")
    shutil.move(tmp_path / "far/t.zarr/X/c/1/0", tmp_path / "far/t.zarr/X/c/other")
    os.symlink("../other", tmp_path / "far/t.zarr/X/c/1/0")
    parts = tmp_path / "far/parts"
    parts.mkdir()
    parquet.write_table(pa.table({"a": ROWS[:, 0]}), parts / "0.parquet")
    os.symlink("0.parquet", parts / "1.parquet")
    os.symlink(parts, tmp_path / "parts")
    os.symlink(parts / "0.parquet", tmp_path / "one.parquet")
    assert np.array_equal(open_table(tmp_path / "t.zarr").values, ROWS)
    assert len(open_table(tmp_path / "parts").values) == 120
    assert len(open_table(f"{tmp_path}/parts/*.parquet").values) == 120
    assert len(open_table(tmp_path / "one.parquet").values) == 60


def test_a_pipe_in_place_of_a_chunk_is_not_waited_for(tmp_path):
    path = zarr_table(tmp_path / "t.zarr", fill_value=np.nan)
    (path / "X/c/1/0").unlink()
    os.mkfifo(path / "X/c/1/0")
    refused(path, "X/c/1/0 is neither a file nor a folder")


# Sizes.


def npy_header(shape, dtype="<f8"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def declare(path, shape=(1 << 20, 100)):
    """A small file that declares a table of 0.8 GiB, or another one."""
    name = path.name
    if name.endswith(".npy"):
        path.write_bytes(npy_header(shape) + bytes(100))
    elif name.endswith(".npz"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("X.npy", npy_header(shape) + bytes(100))
    elif name.endswith("chunked.h5"):
        with h5py.File(path, "w") as file:
            file.create_dataset("X", shape, "f8", chunks=(100, 100))[:5] = 1
    elif name.endswith("nan.nc"):
        with h5py.File(path, "w") as file:
            file.create_dataset("X", shape, "f8", chunks=(100, 100), fillvalue=np.nan)[:5] = 1
    elif name.endswith("frame.h5"):
        with h5py.File(path, "w") as file:
            frame = file.create_group("frame")
            frame.create_dataset("axis1", shape[:1], "i8", chunks=(1000,))
            frame["axis0"], frame["block0_items"] = [b"a"] * 100, [b"a"]
            frame.create_dataset("block0_values", (shape[0], 1), "f8", chunks=(1000, 1))
    elif name.endswith(".h5"):
        with h5py.File(path, "w") as file:
            file.create_dataset("X", shape, "f8")
    elif name.endswith(".zarr"):
        fill = np.nan if name.endswith("nan.zarr") else 0
        number = 2 if name.endswith("2.zarr") else 3
        array = zarr.create_array(path, shape=shape, dtype="f8", chunks=(100, 100), fill_value=fill, zarr_format=number)
        if not name.endswith("none.zarr"):
            array[:5] = 1
    return path


@pytest.mark.parametrize(
    "name", ["a.npy", "a.npz", "a.h5", "chunked.h5", "nan.nc", "frame.h5", "a.zarr", "none.zarr", "nan.zarr", "2.zarr"]
)
def test_a_small_file_that_declares_a_large_table(tmp_path, name):
    """Whatever the machine has: the file cannot hold it."""
    path = declare(tmp_path / name)
    message = refused(path, array="frame" if name == "frame.h5" else "X")
    assert "800.0 MiB" in message or "GiB" in message


@pytest.mark.parametrize("name", ["a.npy", "a.zarr", "nan.zarr"])
def test_the_same_by_ranges(tmp_path, name):
    path = declare(tmp_path / name, (1 << 50, 100))
    with pytest.raises(DataError, match=rf"{name}"), open_rows(path) as rows:
        rows.read(0, 10)


def test_a_table_without_bytes_is_not_read_by_ranges_for_ever(tmp_path):
    """A file with holes: all of the rows are there, and take no room."""
    path = tmp_path / "a.npy"
    path.write_bytes(npy_header((1 << 34, 2)))
    os.truncate(path, path.stat().st_size + (1 << 38))
    if path.stat().st_blocks > 1 << 10:
        pytest.skip("this file system has no holes")
    with pytest.raises(DataError, match=r"a.npy: .* declares 256.0 GiB, and .* stored"), open_rows(path):
        pass
    refused(path, "256.0 GiB", "set labels.memory_gib")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.zarr", "a.parquet", "a.csv"])
def test_a_true_table_that_memory_does_not_hold(tmp_path, small_machine, monkeypatch, name):
    """The refusal names the file, its size and the memory; what can be read by ranges still is."""
    monkeypatch.setattr(memory, "_group_limits", lambda: [4 << 20])
    rows, path = np.random.default_rng(0).normal(size=(1 << 18, 3)), tmp_path / name
    if name == "a.h5":
        with h5py.File(path, "w") as file:
            file["X"] = rows
    elif name == "a.zarr":
        zarr.create_array(path, data=rows, chunks=(1 << 12, 3))
    elif name == "a.parquet":
        parquet.write_table(pa.table(dict(zip("abc", rows.T, strict=True))), path, row_group_size=1 << 14)
    elif name == "a.csv":
        path.write_text("a,b,c\n" + "0.5,0.25,0.125\n" * (1 << 18))
    else:
        np.save(path, rows) if name == "a.npy" else np.savez(path, X=rows)
    refused(path, "3.8 MiB of text" if name == "a.csv" else "6.0 MiB", "4.0 MiB")
    if name in ("a.npy", "a.zarr", "a.parquet"):
        with open_rows(path) as reader:
            assert np.array_equal(reader.read(1000, 1500), rows[1000:1500])


def equal_rows(path, values, times):
    """A .parquet of the same rows again and again: runs of a dictionary take hardly any room."""
    with parquet.ParquetWriter(path, pa.schema([("a", values.type)])) as writer:
        for _ in range(times):
            writer.write_table(pa.table({"a": values}))
    return path


@pytest.mark.parametrize("values", [pa.repeat(1.5, 1 << 20), pa.nulls(1 << 20)], ids=["numbers", "null"])
def test_a_parquet_file_of_many_equal_rows(tmp_path, small_machine, values):
    path = equal_rows(tmp_path / "a.parquet", values, 20)
    assert path.stat().st_size < 128 << 10
    refused(path, "160.0 MiB")
    with open_rows(path) as rows:
        assert len(np.unique(rows.read(5, 10))) == 1


def test_a_parquet_file_of_one_long_text(tmp_path):
    """It would be 200 GB, each row being the same megabyte; it is read as the dictionary that the file holds."""
    values = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), 200_000), ["x" * 1_000_000])
    parquet.write_table(pa.table({"a": values}), tmp_path / "a.parquet", store_schema=False)
    refused(tmp_path / "a.parquet", "column 'a' holds text, with 1,000,000 letters in one value")
    refused(tmp_path / "a.parquet", "column 'a' holds text that is none of numbers", asked={"a": "number"})
    with pytest.raises(DataError, match="column 'a' holds text"), open_rows(tmp_path / "a.parquet"):
        pass


def test_many_files_of_equal_rows(tmp_path, small_machine):
    equal_rows(tmp_path / "0.parquet", pa.repeat(1.5, 1 << 20), 4)
    for number in (1, 2, 3):
        shutil.copy(tmp_path / "0.parquet", tmp_path / f"{number}.parquet")
    refused(tmp_path, "2 files of it", "128.0 MiB are all")


PACK = {
    "gz": lambda raw: gzip.compress(raw, 4),
    "bz2": bz2.compress,
    "zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
}


@pytest.mark.slow
@pytest.mark.parametrize(("packing", "parts"), [("gz", 1), ("gz", 20), ("bz2", 20), ("zst", 1), ("zst", 20)])
def test_a_packed_text_that_grows(tmp_path, monkeypatch, packing, parts):
    """Some packings say the size; it may be wrong, and several may lie one behind the other."""
    monkeypatch.setattr(memory, "_group_limits", lambda: [32 << 20])
    path = tmp_path / f"a.csv.{packing}"
    path.write_bytes(PACK[packing](b"1.5,2.5\n" * ((20 << 17) // parts)) * parts)
    refused(path, "of text", "may use 32.0 MiB")


@pytest.mark.parametrize("packing", PACK)
def test_a_packed_text_within_the_limit_is_read(tmp_path, monkeypatch, packing):
    monkeypatch.setattr(memory, "_group_limits", lambda: [8 << 20])
    path = tmp_path / f"a.csv.{packing}"
    path.write_bytes(PACK[packing](b"1.5,2.5\n" + b"0.5,2.5\n" * 50_000) * 2)
    assert len(open_table(path).values) == 2 * 50_001


def zarr_chunk(path, codec, content, *, sharded=False, number=3):
    """A table whose first chunk is replaced."""
    array = zarr.create_array(
        path,
        shape=(40, 2),
        dtype="f8",
        chunks=(20, 2),
        shards=(40, 2) if sharded else None,
        compressors=codec,
        zarr_format=number,
    )
    array[...] = ROWS[:40]
    name = "c/0/0" if number == 3 else "0.0"
    (path / name).write_bytes(content)
    return path


BOMB = bytes(8 << 20)


@pytest.mark.parametrize(
    ("codec", "number"),
    [
        (numcodecs.Zstd(), 2),
        (numcodecs.Blosc("zstd"), 2),
        (numcodecs.LZ4(), 2),
        (numcodecs.Zlib(1), 2),
        (numcodecs.GZip(1), 2),
        (numcodecs.BZ2(1), 2),
    ],
    ids=str,
)
def test_a_chunk_that_grows(tmp_path, small_machine, codec, number):
    path = zarr_chunk(tmp_path / "t.zarr", codec, bytes(codec.encode(BOMB)), number=number)
    refused(path, "0.0 unpacks to more than its chunk holds, 320 bytes")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_chunk_of_zarr_3_that_grows(tmp_path, small_machine, sharded):
    content = bytes(numcodecs.Zstd().encode(BOMB))
    if sharded:
        index = np.array([[0, len(content)]] * 2, "<u8").tobytes()
        content += index + np.uint32(google_crc32c.value(index)).tobytes()
    refused(zarr_chunk(tmp_path / "t.zarr", zarr.codecs.ZstdCodec(), content, sharded=sharded), "unpacks to more")


@pytest.mark.slow
def test_a_large_index_of_shards_is_no_chunk_that_grows(tmp_path, small_machine):
    rows = np.random.default_rng(0).normal(size=(1 << 14, 1))
    array = zarr.create_array(
        tmp_path / "t.zarr",
        shape=(1 << 15, 1),
        dtype="f8",
        chunks=(16, 1),
        shards=(1 << 14, 1),
        compressors=zarr.codecs.ZstdCodec(),
    )
    array[: 1 << 14], array[1 << 14 :] = rows, rows
    with open_rows(tmp_path / "t.zarr") as reader:
        assert np.array_equal(reader.read(100, 200), rows[100:200])


def test_chunks_larger_than_memory(tmp_path, small_machine):
    zarr.create_array(tmp_path / "t.zarr", shape=(100, 2), dtype="f8", chunks=(1 << 24, 2))
    refused(tmp_path / "t.zarr", "chunks of 256.0 MiB", "128.0 MiB")


def test_a_chunk_of_hdf5_that_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_group_limits", lambda: [32 << 20])
    packed = zlib.compress(BOMB, 1)
    for name, rows in (("small", 64), ("large", 1 << 14)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            data = file.create_dataset("X", (rows, 2), "f8", chunks=(rows, 2), compression="gzip")
            data.id.write_direct_chunk((0, 0), packed)
        refused(tmp_path / f"{name}.h5", "unpacks to more than the")


def test_attributes_of_hdf5_are_single_values(tmp_path):
    with h5py.File(tmp_path / "t.h5", "w", libver="latest") as file:
        file["X"] = ROWS
        space = h5py.h5s.create_simple((1 << 16,))
        h5py.h5a.create(file["X"].id, b"valid_range", h5py.h5t.IEEE_F64LE, space)
    refused(tmp_path / "t.h5", "valid_range", "no single value")


def test_many_names_that_are_one_long_text(tmp_path):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["X"] = ROWS
        file.create_dataset("columns", (100_000,), h5py.string_dtype(), fillvalue="x" * 100_000, chunks=(1000,))[:1] = (
            "y"
        )
    with pytest.raises(DataError, match="more text than names"):
        open_table(tmp_path / "t.h5")


# What a command says, and what it takes.


@pytest.mark.parametrize("name", ["a.h5", "nan.zarr", "a.npz"])
def test_a_command_says_it_in_a_line(tmp_path, name):
    declare(tmp_path / name)
    (tmp_path / "job.toml").write_text(f'[data]\nsource = "{name}"\n')
    done = sfg(tmp_path, "plan", "job.toml", check=2)
    assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_formulas_in_names_are_written_as_they_are_and_said(tmp_path):
    names = ["=1+1", "+a", "-b", "@c", "d"]
    with pytest.warns(UserWarning, match=r"'=1\+1', '\+a', '-b', '@c' would be taken for a formula"):
        write_table(tmp_path / "s.csv", names, 2, lambda ranges: (np.eye(5)[:2] for _ in ranges), source="s")
    assert open_table(tmp_path / "s.csv").columns == tuple(names)


MEASURE = """
import sys
from pathlib import Path
from sfg_dist.job import memory
from sfg_dist.data import open_table
memory._group_limits = lambda: [512 << 20]
import h5py, zarr, numcodecs, pyarrow.parquet, sfg_dist.data.zarr_store
def peak():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1])
begun = peak()
for source in sys.argv[1:]:
    try:
        open_table(source)
    except ValueError as error:
        print(error)
    else:
        sys.exit(source + " was read")
print((peak() - begun) // 1024)
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hostile_tables_take_little_memory(tmp_path):
    """Measured in a process of its own; each would take a gigabyte or more."""
    sources = [declare(tmp_path / name, (1 << 21, 100)) for name in ("a.npy", "a.npz", "a.h5", "nan.nc", "nan.zarr")]
    sources.append(tmp_path / "a.csv.gz")
    sources[-1].write_bytes(gzip.compress(b"1.5,2.5\n" * (1 << 16), 9) * 2500)
    sources.append(tmp_path / "a.parquet")
    equal_rows(sources[-1], pa.repeat(1.5, 1 << 20), 200)
    packer = zlib.compressobj(1)
    packed = b"".join([*(packer.compress(BOMB) for _ in range(128)), packer.flush()])
    sources.append(zarr_chunk(tmp_path / "z.zarr", numcodecs.Zlib(1), packed, number=2))
    sources.append(tmp_path / "bomb.h5")
    with h5py.File(sources[-1], "w") as file:
        data = file.create_dataset("X", (64, 2), "f8", chunks=(64, 2), compression="gzip")
        data.id.write_direct_chunk((0, 0), packed)
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(300))
    assert done.returncode == 0, done.stdout + done.stderr
    *_, taken = done.stdout.split()
    assert int(taken) < 512, done.stdout


def test_a_column_of_lists_is_refused_unread(tmp_path, monkeypatch):
    """A list may hold more numbers than memory in a row of a few bytes."""
    parquet.write_table(pa.table({"a": [[1.0, 2.0]] * 30, "b": np.arange(30.0)}), tmp_path / "t.parquet")
    monkeypatch.setattr(parquet.ParquetFile, "read", lambda *_, **__: pytest.fail("it was read"))
    refused(tmp_path / "t.parquet", "column 'a' has type list<element: double>")


def test_categories_that_are_formulas_are_said(tmp_path):
    """A generator of a stranger gives the categories that he wrote."""
    type_ = ColumnType("category", "string", categories=("=cmd|' /c calc'!A1", "-1", "+2.5", "plain"))
    with pytest.warns(UserWarning, match=re.escape("""csv: "=cmd|' /c calc'!A1" would be taken""")):
        write_table(tmp_path / "t.csv", ["a"], 2, lambda _: [np.zeros((2, 1))], source="s", types=[type_])


@pytest.mark.parametrize("descr", ["<U2", ">U2"])
@pytest.mark.parametrize("letters", [b"\xff" * 8, b"\x00\xd8\x00\x00" * 2], ids=["beyond", "half"])
def test_text_of_numpy_that_is_none(tmp_path, descr, letters):
    header = {"descr": [("a", descr), ("b", "<f8")], "fortran_order": False, "shape": (30,)}
    with (tmp_path / "t.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write((letters + bytes(8)) * 30)
    refused(tmp_path / "t.npy", "column 'a' holds the bytes", "which are no text")


@pytest.mark.parametrize(
    "words",
    [
        {"places": b"many", "text": b"1"},
        {"stored": b"os.system"},
        {"stored": b"\xff", "style": b"\x1b[2J"},
        {"\x1b": b"\xff"},
    ],
    ids=str,
)
def test_what_a_parquet_file_says_of_its_fields_is_not_believed(tmp_path, words):
    """These are words by which the readers of this package tell each other what they saw."""
    fields = [pa.field(name, pa.float64(), metadata=words) for name in "ab"]
    parquet.write_table(pa.table([ROWS[:, 0], ROWS[:, 1]], schema=pa.schema(fields)), tmp_path / "t.parquet")
    assert np.array_equal(open_table(tmp_path / "t.parquet").values, ROWS)
    with open_rows(tmp_path / "t.parquet") as rows:
        assert np.array_equal(rows.read(0, 60), ROWS)
