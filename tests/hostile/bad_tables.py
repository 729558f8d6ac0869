"""Tables of a stranger: pickles, sizes that nothing stands for, links to other files, bombs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from bad_stores import Payload, format_2
from harness import REFUSED, Case, World

NAMES = "table."
ROWS = np.random.default_rng(0).standard_normal((200, 2))
Make = Callable[[World, Path], None]


def _laid(suffix: str, make: Make, world: World) -> None:
    """The table beside a job that names it; the job's output directory is new."""
    place = world.work / f"table.{suffix}"
    make(world, place)
    job = (world.work / "job.toml").read_text()
    job = job.replace('source = "moons"', f'source = "{place.name}"').replace('dir = "run"', 'dir = "run/new"')
    (world.work / "table.toml").write_text(job)


def _npy(header: dict[str, object], behind: bytes = b"") -> Make:
    def make(_: World, place: Path) -> None:
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]
        place.write_bytes(stream.getvalue() + behind)

    return make


def _pickled(world: World, place: Path) -> None:
    np.save(place, np.array([Payload(world.ran), 1], dtype=object), allow_pickle=True)


def _raw_header(text: bytes) -> Make:
    return lambda _, place: place.write_bytes(b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text)


def _npz(world: World, place: Path) -> None:
    np.savez(place, X=np.array([Payload(world.ran)], dtype=object))


def _npz_bomb(_: World, place: Path) -> None:
    """An archive whose array is 2 GiB of zeros, in 2 MB: declared in its header, as an honest one is."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (2**42, 2)})
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", stream.getvalue() + bytes(2**20))


def _npz_outside(_: World, place: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, ROWS)
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("../../victim/X.npy", stream.getvalue())


def _text_bomb(_: World, place: Path) -> None:
    """One line of 640 MiB, in 640 kB."""
    member = gzip.compress(b"1" * 2**24, 1)
    place.write_bytes(member * 40)


def _csv_link(world: World, place: Path) -> None:
    """A folder of parts, one of which is a link."""
    place.mkdir()
    (place / "a.csv").write_text("x,y\n1,2\n3,4\n")
    (place / "b.csv").symlink_to(world.victim / "table.csv")


def _csv_folder_link(world: World, place: Path) -> None:
    place.mkdir()
    (place / "a.csv").write_text("x,y\n1,2\n3,4\n")
    (place / "deeper").symlink_to(world.victim)


def _csv_fifo(world: World, place: Path) -> None:
    place.mkdir()
    (place / "a.csv").write_text("x,y\n1,2\n3,4\n")
    os.mkfifo(place / "b.csv")
    world.fifos.append(place / "b.csv")


def _csv_names(_: World, place: Path) -> None:
    place.write_text('"a\x1b[2J\x07","b\x9b"\n' + "1.5,2.5\n3.5,x\n" * 20)


def _hdf5(make: Callable[[World, object], None]) -> Make:
    def laid(world: World, place: Path) -> None:
        import h5py

        with h5py.File(place, "w") as file:
            make(world, file)

    return laid


def _raw_victim(world: World) -> Path:
    path = world.victim / "raw"
    path.write_bytes(ROWS.tobytes())
    return path


def _victim_file(world: World) -> Path:
    import h5py

    path = world.victim / "data.h5"
    with h5py.File(path, "w") as file:
        file["X"] = ROWS
    return path


def _h5_external(world: World, file) -> None:
    file.create_dataset("X", ROWS.shape, "f8", external=[(str(_raw_victim(world)), 0, ROWS.nbytes)])


def _h5_external_relative(world: World, file) -> None:
    _raw_victim(world)
    file.create_dataset("X", ROWS.shape, "f8", external=[("../victim/raw", 0, ROWS.nbytes)])


def _h5_virtual(world: World, file) -> None:
    import h5py

    layout = h5py.VirtualLayout(shape=ROWS.shape, dtype="f8")
    layout[:] = h5py.VirtualSource(str(_victim_file(world)), "X", shape=ROWS.shape)
    file.create_virtual_dataset("X", layout)


def _h5_external_link(world: World, file) -> None:
    import h5py

    file["X"] = h5py.ExternalLink(str(_victim_file(world)), "X")


def _h5_soft_link(world: World, file) -> None:
    import h5py

    file["Y"] = ROWS
    file["X"] = h5py.SoftLink("/X")


def _h5_coordinates(world: World, file) -> None:
    """Names of columns that lie in another file."""
    file["X"] = ROWS
    file.create_dataset("columns", (2,), "S8", external=[(str(_raw_victim(world)), 0, 16)])


def _h5_large(_: World, file) -> None:
    file.create_dataset("X", (10**12, 2), "f8", chunks=(1024, 2))


def _h5_bomb(_: World, file) -> None:
    file.create_dataset("X", (10**11, 2), "f8", chunks=(1024, 2), compression="gzip", fillvalue=1.0)


def _h5_objects(_: World, file) -> None:
    import h5py

    file.create_dataset("X", data=[pickle.dumps(1)] * 3, dtype=h5py.special_dtype(vlen=np.uint8)) if False else None
    file.create_dataset("X", (3,), dtype=h5py.ref_dtype)


def _h5_attributes(_: World, file) -> None:
    file["X"] = ROWS
    file["X"].attrs["scale_factor"] = "\x1b[2Jx"
    file["X"].attrs["_FillValue"] = np.arange(5)


def _zarr(edit: Callable[[dict], None]) -> Make:
    def make(_: World, place: Path) -> None:
        _plain_zarr(place)
        path = place / "X" / "zarr.json"
        document = json.loads(path.read_bytes())
        edit(document)
        path.write_text(json.dumps(document))

    return make


def _plain_zarr(place: Path) -> None:
    import zarr

    group = zarr.open_group(place, mode="w", zarr_format=3)
    group.create_array("X", data=ROWS, chunks=(100, 2), compressors=None)


def _zarr_2(filters: tuple[str, ...]) -> Make:
    def make(world: World, place: Path) -> None:
        place.mkdir()
        (place / ".zgroup").write_text('{"zarr_format": 2}')
        format_2(place / "X", world.ran, filters=filters)

    return make


def _zarr_moved(key: str) -> Make:
    def make(world: World, place: Path) -> None:
        _plain_zarr(place)
        (place / key).rename(world.victim / "moved")
        (place / key).symlink_to(world.victim / "moved")

    return make


def _zarr_fifo(world: World, place: Path) -> None:
    _plain_zarr(place)
    (place / "X/c/0/0").unlink()
    os.mkfifo(place / "X/c/0/0")
    world.fifos.append(place / "X/c/0/0")


def _zarr_bomb(_: World, place: Path) -> None:
    """A chunk that says it is 1 GiB, and is 1 MB."""
    _plain_zarr(place)
    path = place / "X" / "zarr.json"
    document = json.loads(path.read_bytes())
    document["codecs"].append({"name": "gzip", "configuration": {"level": 1}})
    path.write_text(json.dumps(document))
    (place / "X/c/0/0").write_bytes(gzip.compress(bytes(2**24), 1) * 64)


def _edit(**more: object) -> Callable[[dict], None]:
    return lambda document: document.update(more)


def _zarr_attributes(_: World, place: Path) -> None:
    _plain_zarr(place)
    path = place / "zarr.json"
    document = json.loads(path.read_bytes())
    document["attributes"] = {"columns": ["\x1b[2J", 7], "types": [[]], "source": ["x"]}
    path.write_text(json.dumps(document))


def _parquet(edit: Callable[[bytes], bytes]) -> Make:
    def make(_: World, place: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"x": ROWS[:, 0], "y": ROWS[:, 1]}), place)
        place.write_bytes(edit(place.read_bytes()))

    return make


def _parquet_repeated(_: World, place: Path) -> None:
    """5 * 10^7 rows of one value in a few kB."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = pa.table({"x": np.zeros(10**6), "y": np.ones(10**6)})
    with parquet.ParquetWriter(place, rows.schema) as writer:
        for _ in range(3):
            writer.write_table(rows)


def _parquet_more_values(_: World, place: Path) -> None:
    """A footer that speaks of 3 rows, and columns of 20,000 values; with more, they would fill the memory."""
    import pyarrow as pa
    from pyarrow import parquet

    column = np.full(20_000, 1.5)
    parquet.write_table(pa.table({"x": column, "y": column}), place, write_statistics=False)
    content = place.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    told = _varint(2 * len(column))
    few = bytes([6 | 0x80, *[0x80] * (len(told) - 2), 0])  # 3 rows, in as many bytes
    first, *columns, last = content[start:-8].split(told)  # at the rows of the file, and last of the group
    place.write_bytes(content[:start] + first + few + told.join(columns) + few + last + content[-8:])
    metadata = parquet.ParquetFile(place).metadata
    assert metadata.num_rows == metadata.row_group(0).num_rows == 3


def _varint(number: int) -> bytes:
    found = []
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _tables() -> Iterator[Case]:
    plain = {"descr": "<f8", "fortran_order": False}
    laid: list[tuple[str, str, Make]] = [
        ("npy", "pickled objects", _pickled),
        ("npy", "10^13 rows that are not there", _npy({**plain, "shape": (10**13, 2)})),
        ("npy", "2^62 rows", _npy({**plain, "shape": (2**62, 4)})),
        ("npy", "rows below none", _npy({**plain, "shape": (-4, 2)}, bytes(64))),
        ("npy", "2^27 rows that are not there", _npy({**plain, "shape": (2**27, 2)}, bytes(64))),
        ("npy", "rows of zero bytes without end", _npy({"descr": "|V0", "fortran_order": False, "shape": (10**12,)})),
        ("npy", "a header of 2^31", lambda _, place: place.write_bytes(b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\x7f{")),
        ("npy", "a header that is code", _raw_header(b"__import__('os').system('true')\n")),
        ("npy", "a header without end", _raw_header(b"(" * 9000)),
        ("npz", "pickled objects", _npz),
        ("npz", "an array of 64 TiB", _npz_bomb),
        ("npz", "a name above", _npz_outside),
        ("csv.gz", "one line of 640 MiB", _text_bomb),
        ("csv", "names with a terminal's words", _csv_names),
        ("csv", "zeros", lambda _, place: place.write_bytes(bytes(100_000))),
        ("h5", "external storage", _hdf5(_h5_external)),
        ("h5", "external storage by a relative name", _hdf5(_h5_external_relative)),
        ("h5", "a virtual dataset", _hdf5(_h5_virtual)),
        ("h5", "an external link", _hdf5(_h5_external_link)),
        ("h5", "a link to itself", _hdf5(_h5_soft_link)),
        ("h5", "names of columns in another file", _hdf5(_h5_coordinates)),
        ("h5", "10^12 rows that are not there", _hdf5(_h5_large)),
        ("h5", "10^11 rows of the fill value", _hdf5(_h5_bomb)),
        ("h5", "references", _hdf5(_h5_objects)),
        ("h5", "attributes that are none", _hdf5(_h5_attributes)),
        ("parts", "a link to a file", _csv_link),
        ("parts", "a link to a folder", _csv_folder_link),
        ("parts", "a FIFO", _csv_fifo),
        ("zarr", "pickles", _zarr_2(("pickle",))),
        ("zarr", "pickles behind text", _zarr_2(("vlen-utf8", "pickle"))),
        ("zarr", "pickles by its third format", _zarr(_edit(codecs=[{"name": "numcodecs.pickle"}]))),
        ("zarr", "10^13 rows", _zarr(_edit(shape=[10**13, 2]))),
        ("zarr", "rows below none", _zarr(_edit(shape=[-1, 2]))),
        ("zarr", "a codec that is none", _zarr(_edit(codecs=[{"name": "x\x1b[2J", "configuration": {}}]))),
        ("zarr", "a grid that is none", _zarr(_edit(chunk_grid=[]))),
        ("zarr", "storage elsewhere", _zarr(_edit(storage_transformers=[{"name": "x"}]))),
        ("zarr", "a linked array", _zarr_moved("X")),
        ("zarr", "linked chunks", _zarr_moved("X/c")),
        ("zarr", "a linked chunk", _zarr_moved("X/c/0/0")),
        ("zarr", "linked metadata", _zarr_moved("zarr.json")),
        ("zarr", "a FIFO for a chunk", _zarr_fifo),
        ("zarr", "a chunk of 1 GiB in 1 MB", _zarr_bomb),
        ("zarr", "attributes that are none", _zarr_attributes),
        ("parquet", "a footer without end", _parquet(lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1")),
        ("parquet", "bytes of others in its footer", _parquet(lambda found: found[:-60] + bytes(52) + found[-8:])),
        ("parquet", "more values than rows", _parquet_more_values),
        ("parquet", "bytes of others in its pages", _parquet(lambda content: content[:4] + bytes(64) + content[68:])),
    ]  # fmt: skip
    harmless = {
        "an external link", "a link to itself", "names with a terminal's words", "bytes of others in its pages",
        "attributes that are none", "references", "names of columns in another file", "a name above",
    }  # fmt: skip
    for suffix, name, make in laid:
        statuses = (0, 1, 2) if name in harmless else REFUSED
        yield Case(f"table.{suffix} with {name}", partial(_laid, suffix, make), ("plan",), NAMES, statuses)
    for suffix, name, make in laid:
        if name in ("external storage", "a virtual dataset", "a linked chunk", "pickles behind text"):
            yield Case(f"table.{suffix} with {name}", partial(_laid, suffix, make), ("label_table",), NAMES, REFUSED)


CASES = [*_tables()]
