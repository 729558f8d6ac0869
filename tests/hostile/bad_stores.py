"""Stores of pairs whose arrays are not what the package writes, under seals that a careful hand made anew."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from bad_documents import change_commit, change_plan, put, write
from harness import Case, World

from sfg_dist.store.arrays import row_digest
from sfg_dist.store.manifest import sha256

STORE = "pairs.zarr"


class Payload:
    """What runs if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def reseal(world: World, *keys: str, manifest: Callable[[list[dict[str, Any]]], None] = lambda entries: None) -> None:
    """The frame's manifest with the objects as they are now, and the plan that names it."""
    store = world.run / STORE
    entries = json.loads((store / "frame.json").read_bytes())
    entries = [entry for entry in entries if (store / entry["key"]).is_file()]
    entries += [{"key": key} for key in keys if key not in {entry["key"] for entry in entries}]
    for entry in entries:
        content = (store / entry["key"]).read_bytes()
        entry.update(bytes=len(content), sha256=sha256(content))
    manifest(entries)
    content = json.dumps(entries, indent=0).encode()
    write(world, f"{STORE}/frame.json", content)
    change_plan(world, put("frame", value=sha256(content)))


def change_array(world: World, name: str, edit: Callable[[dict[str, Any]], Any], *, group: str = STORE) -> None:
    """Edit an array's metadata."""
    path = world.run / group / name / "zarr.json"
    document = json.loads(path.read_bytes())
    edit(document)
    write(world, f"{group}/{name}/zarr.json", json.dumps(document).encode())


def _array(name: str, edit: Callable[[dict[str, Any]], Any], world: World) -> None:
    change_array(world, name, edit)
    reseal(world)


def codecs(*found: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """An edit that names other codecs."""
    return lambda document: document.update(codecs=list(found))


def chunks(*shape: Any) -> Callable[[dict[str, Any]], None]:
    """An edit of the shape of chunks."""
    return lambda document: document["chunk_grid"]["configuration"].update(chunk_shape=list(shape))


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
BLOSC = {
    "name": "blosc",
    "configuration": {"typesize": 4, "cname": "zstd", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0},
}
EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "10^13 rows": put("shape", value=[10**13, 2]),
    "10^13 rows in one chunk": lambda d: (put("shape", value=[10**13, 2])(d), chunks(10**13, 2)(d)),
    "rows below none": put("shape", value=[-1, 2]),
    "a shape in words": put("shape", value="all"),
    "no dimensions": put("shape", value=[]),
    "forty dimensions": put("shape", value=[1] * 40),
    "other columns": put("shape", value=[1000, 3]),
    "objects": put("data_type", value="object"),
    "text": put("data_type", value="string"),
    "numbers of another size": put("data_type", value="float64"),
    "chunks of nothing": chunks(0, 0),
    "chunks of 2^50": chunks(2**50, 2),
    "pickles": codecs({"name": "numcodecs.pickle", "configuration": {}}),
    "a codec that is none": codecs(BYTES, {"name": "os.system", "configuration": {"a": "true"}}),
    "a packed chunk": codecs(BYTES, {"name": "gzip", "configuration": {"level": 5}}),
    "blosc": codecs(BYTES, BLOSC),
    "no codec": codecs(),
    "storage elsewhere": put("storage_transformers", value=[{"name": "redirect", "configuration": {"to": "/etc"}}]),
    "keys of its own": put("chunk_key_encoding", value={"name": "v2", "configuration": {"separator": "/../../"}}),
    "format 2": put("zarr_format", value=2),
    "format 9": put("zarr_format", value=9),
    "fill value without end": put("fill_value", value="x" * 100_000),
}  # fmt: skip


def _arrays() -> Iterator[Case]:
    for name, edit in EDITS.items():
        yield Case(f"latents with {name}", partial(_array, "latents", edit), ("verify", "refit"), "latents")
    for name in ("10^13 rows", "pickles", "a shape in words", "format 2", "objects", "other columns"):
        edit = EDITS[name]
        yield Case(f"reference with {name}", partial(_array, "reference/rows", edit), ("refit", "extend"), "reference")
        yield Case(f"transform with {name}", partial(_array, "transform/scale", edit), ("refit", "extend"), "transform")
        yield Case(f"samples with {name}", partial(_samples, edit), ("evaluate",), "samples|judged rows")


def _samples(edit: Callable[[dict[str, Any]], Any], world: World) -> None:
    change_array(world, "X", edit, group="samples.zarr")
    group = world.run / "samples.zarr" / "zarr.json"
    document = json.loads(group.read_bytes())
    document.pop("consolidated_metadata", None)
    group.write_text(json.dumps(document))


def format_2(
    folder: Path, payload: Path, dtype: str = "|O", filters: tuple[str, ...] = ("vlen-utf8", "pickle")
) -> None:
    """A Zarr array of format 2 whose chunk is a pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"zarr_format": 2, "shape": [1, 2], "chunks": [1, 2], "dtype": dtype, "compressor": None, "order": "C",
                "fill_value": None, "filters": [{"id": name} for name in filters]}  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(document))
    (folder / "0.0").write_bytes(pickle.dumps(Payload(payload)))


def _format_2(name: str, filters: tuple[str, ...], world: World) -> None:
    store = world.run / STORE
    for key in (f"{name}/zarr.json", f"{name}/c"):
        world.in_place_of(f"{STORE}/{key}")
    format_2(store / name, world.ran, filters=filters)
    reseal(world, f"{name}/.zarray", f"{name}/0.0")


def _format_2_group(world: World) -> None:
    """A group of format 2 around all arrays of format 2."""
    store = world.run / STORE
    world.in_place_of(f"{STORE}/zarr.json")
    (store / ".zgroup").write_text('{"zarr_format": 2}')
    for name in ("reference/rows", "latents", "labels"):
        world.in_place_of(f"{STORE}/{name}")
        format_2(store / name, world.ran)
    reseal(world, ".zgroup", "reference/rows/.zarray", "reference/rows/0.0")


def _pickles() -> Iterator[Case]:
    commands = ("repair", "label", "refit", "extend")
    for filters in (("vlen-utf8", "pickle"), ("pickle",), ("json2", "pickle")):
        spoil = partial(_format_2, "reference/rows", filters)
        yield Case(f"reference of format 2 with {' and '.join(filters)}", spoil, commands, "reference")
    for name in ("transform/scale", "latents", "labels", "column", "reference/order"):
        spoil = partial(_format_2, name, ("vlen-utf8", "pickle"))
        yield Case(
            f"{name} of format 2 with pickles",
            spoil,
            ("refit", "extend", "verify"),
            f"{name.split('/')[0]}|shards are missing",
        )
    yield Case("a group of format 2", _format_2_group, (*commands, "verify"), STORE)
    yield Case("samples of format 2 with pickles", _samples_2, ("evaluate", "sample"), "samples|judged rows")
    yield Case("samples of format 2 in all", _samples_all_2, ("evaluate", "sample"), "samples")


def _samples_2(world: World) -> None:
    world.in_place_of("samples.zarr/X")
    format_2(world.run / "samples.zarr" / "X", world.ran)


def _samples_all_2(world: World) -> None:
    group = json.loads((world.run / "samples.zarr" / "zarr.json").read_bytes())
    world.in_place_of("samples.zarr/zarr.json")
    (world.run / "samples.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    (world.run / "samples.zarr" / ".zattrs").write_text(json.dumps(group["attributes"]))
    _samples_2(world)


def _manifest(edit: Callable[[list[dict[str, Any]]], None], world: World) -> None:
    reseal(world, manifest=edit)


def _manifests() -> Iterator[Case]:
    entry = {"bytes": 13, "sha256": "0" * 64}
    for name, edit in {
        "a key above the store": lambda entries: entries.append({"key": "../../../victim/secret.txt", **entry}),
        "a key of another root": lambda entries: entries.append({"key": "/etc/hostname", **entry}),
        "a key with a line break": lambda entries: entries.append({"key": "a\nsfg: all is well", **entry}),
        "a key with a terminal's words": lambda entries: entries.append({"key": "\x1b[2Ja", **entry}),
        "a key that is a number": lambda entries: entries.append({"key": 7, **entry}),
        "an empty key": lambda entries: entries.append({"key": "", **entry}),
        "a key of 10,000 letters": lambda entries: entries.append({"key": "x" * 10_000, **entry}),
        "a key twice": lambda entries: entries.append(dict(entries[0])),
        "an entry that is a list": lambda entries: entries.append([]),
        "an entry without a digest": lambda entries: entries.append({"key": "x"}),
        "no entries": lambda entries: entries.clear(),
        "keys of commits": lambda entries: entries.append({"key": "commits/00000003.json", **entry}),
    }.items():
        yield Case(
            f"manifest with {name}",
            partial(_manifest, edit),
            ("verify", "repair", "label"),
            "frame.json|a\\nsfg|x1b[2Ja|commits/00000003.json|the reference and the transform come out",
        )


def _other_labels(value: float, world: World) -> None:
    """Labels of one value, with checksums and commits that fit."""
    rows = np.full((128, 2), value, "<f4")
    content = rows.tobytes()
    for shard in range(8):
        (world.run / STORE / f"labels/c/{shard}/0").write_bytes(
            content + google_crc32c.value(content).to_bytes(4, "little")
        )

    def edit(record: dict[str, Any]) -> None:
        first, stop = record["rows"]
        record["objects"]["labels"]["sha256"] = row_digest(rows[: stop - first])

    change_commit(world, edit)


def _rows(name: str, value: float, world: World) -> None:
    """An array of the frame with one value in all places."""
    path = next((world.run / STORE / name / "c").rglob("0"))
    path = path if path.is_file() else path / "0"
    content = path.read_bytes()[:-4]
    dtype = "<i8" if name.endswith(("counts", "order")) else "<f8" if name.startswith("transform") else "<f4"
    rows = np.full(len(content) // np.dtype(dtype).itemsize, value, dtype).tobytes()
    path.write_bytes(rows + google_crc32c.value(rows).to_bytes(4, "little"))
    reseal(world)


def _values() -> Iterator[Case]:
    for value in (float("nan"), float("inf"), 3e38):
        words = "labels|loss is not finite"
        yield Case(f"labels of {value}", partial(_other_labels, value), ("verify", "refit"), words)
        yield Case(f"a reference of {value}", partial(_rows, "reference/rows", value), ("extend", "refit"), "reference")
    for name, value in (("scale", 0.0), ("scale", float("nan")), ("knot_counts", -1), ("knot_counts", 2**40),
                        ("knot_values", float("nan")), ("steps", -1.0), ("cell_ranges", 1e300)):  # fmt: skip
        spoil = partial(_rows, f"transform/{name}", value)
        yield Case(f"a transform whose {name} is {value}", spoil, ("refit", "extend"), "transform")


def _other_table(name: str, rows: np.ndarray, fingerprint: str, world: World) -> None:
    """A table of the frame that is of other columns or another type, with a fingerprint and seals that fit.

    A damaged shard is labelled again by it.
    """
    store = world.run / STORE
    if not (store / name).exists():  # query points, as a store of drawn latents has none
        shutil.copytree(store / "reference/rows", store / name)
        shutil.copy(store / "reference/zarr.json", (store / name).parent)
    world.in_place_of(f"{STORE}/{name}/c/0/0")
    world.in_place_of(f"{STORE}/{name}/c/0").mkdir()
    content = rows.tobytes()
    key = "c/" + "/".join(["0"] * rows.ndim)
    world.in_place_of(f"{STORE}/{name}/{key}").write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))
    kind = {"f4": "float32", "f8": "float64", "i8": "int64", "i4": "int32"}[rows.dtype.str[1:]]

    def edit(document: dict[str, Any]) -> None:
        document.update(shape=list(rows.shape), data_type=kind, fill_value=0, dimension_names=None)
        document["chunk_grid"]["configuration"]["chunk_shape"] = list(rows.shape)

    change_array(world, name, edit)
    digest = hashlib.sha256(f"{(len(rows), 2)}<f4".encode() + rows.astype("<f4").tobytes()).hexdigest()
    change_plan(world, put("identity", fingerprint, value=digest))
    reseal(world)
    labels = store / "labels/c/2/0"
    labels.write_bytes(labels.read_bytes()[:-9] + b"123456789")
    run_id = json.loads((store / "plan.json").read_bytes())["run_id"]
    change_commit(world, put("run_id", value=run_id))


def _other_tables() -> Iterator[Case]:
    normal = np.random.default_rng(0).standard_normal
    for what, name, rows, fingerprint in (
        ("a reference of one column", "reference/rows", normal((700, 1)).astype("<f4"), "reference"),
        ("a reference of three columns", "reference/rows", normal((700, 3)).astype("<f4"), "reference"),
        ("a reference of no column", "reference/rows", np.zeros((700, 0), "<f4"), "reference"),
        ("a reference of a cube", "reference/rows", normal((700, 2, 2)).astype("<f4"), "reference"),
        ("a reference in float64", "reference/rows", normal((700, 2)), "reference"),
        ("a reference without rows", "reference/rows", np.zeros((0, 2), "<f4"), "reference"),
        ("query points of three columns", "queries/rows", normal((1000, 3)).astype("<f4"), "queries"),
    ):
        yield Case(what, partial(_other_table, name, rows, fingerprint), ("repair",), f"{name}|job.toml", (1, 2))


CASES = [*_arrays(), *_pickles(), *_other_tables(), *_manifests(), *_values()]
