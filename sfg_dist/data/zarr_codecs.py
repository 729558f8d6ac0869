"""What a Zarr array may be made of. Its metadata are checked before Zarr builds anything from them.

Codecs that make Python objects run code that the file chooses, and any name in the metadata may load a plugin. So only
the codecs on the list below are let through. Text is read only as ``vlen-utf8``.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PACKINGS = {"gzip": "gzip", "zlib": "zlib", "bz2": "bz2", "lzma": "lzma", "zstd": "zstd", "blosc": "", "lz4": ""}
"""Codecs that pack, with their names in ``unpacking``; the name is empty where the first bytes say the size."""
CHECKSUMS = frozenset(("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"))
RESHAPING = frozenset(
    ("transpose", "delta", "shuffle", "fixedscaleoffset", "quantize", "packbits", "astype", "bitround")
)
TEXT = "vlen-utf8"
SHARDS = "sharding_indexed"
BYTES = frozenset(("bytes", "endian"))
CODECS = frozenset((*PACKINGS, *CHECKSUMS, *RESHAPING, *BYTES, TEXT, SHARDS))
OF_STORES = frozenset(("bytes", "crc32c", TEXT, SHARDS))
"""The codecs of the stores that this package writes."""
OBJECTS = frozenset(("pickle", "json", "json2", "msgpack", "msgpack2", "vlen-array", "vlen-bytes", "categorize"))
_DTYPE_KEYS = ("dtype", "astype", "encode_dtype", "decode_dtype")
_WORDS = ", ".join(sorted(CODECS - BYTES - {SHARDS, TEXT}))
_WIDE_ITEM = 1024
"""The most bytes that an item is assumed to have where its type does not say."""


class UnfitCodecError(ValueError):
    """An array is made of something that is not read; the message follows "array 'X' "."""


@dataclass(frozen=True)
class Chunks:
    """What is known of an array's chunks."""

    num_bytes: int  # of a chunk unpacked, within a shard where there are shards
    packing: str  # the codec that packs them, empty where none does
    shard: tuple[int, ...] = ()  # chunks of a shard along each axis, empty where there are no shards
    is_index_first: bool = False  # whether a shard begins with its index
    index_bytes: int = 0  # of a shard's index

    def within(self, shard: memoryview) -> Iterator[memoryview]:
        """The chunks of a shard that are there, as they are stored."""
        size = 16 * math.prod(self.shard)
        start = 0 if self.is_index_first else len(shard) - self.index_bytes
        index = np.frombuffer(shard, "<u8", count=size // 8, offset=max(0, start)).reshape(-1, 2)
        for offset, length in index[index[:, 0] != 2**64 - 1].tolist():
            yield shard[offset : offset + length]


def arrays_of(name: str, content: bytes, allowed: frozenset[str]) -> dict[str, Chunks]:
    """The arrays that a metadata document describes, by their path below it.

    A group has arrays only if its metadata are consolidated. ``name`` is that of the document: zarr.json, .zarray,
    .zgroup, .zattrs or .zmetadata.

    Raises:
        UnfitCodecError: an array has a codec that is not ``allowed``; its note says which array.
        ValueError: it is no such document.
    """
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError(f"{name} is no object of JSON")
    found: dict[str, Chunks] = {}
    for path, described in _described(name, document):
        try:
            is_second = described.get("zarr_format") == 2
            found[path] = _of_format_2(described, allowed) if is_second else _of_format_3(described, allowed)
        except UnfitCodecError as error:
            error.add_note(path)
            raise
        except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
            raise ValueError(f"{name} does not describe an array as Zarr does") from error
    return found


def _described(name: str, document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The arrays of a document: itself, or those of a group that are described with it."""
    if name == ".zarray" or (name == "zarr.json" and document.get("node_type") == "array"):
        yield "", document
    members = document.get("metadata") if name == ".zmetadata" else document.get("consolidated_metadata")
    if name == "zarr.json" and isinstance(members, dict):
        members = members.get("metadata")
    for path, member in members.items() if isinstance(members, dict) else ():
        if isinstance(member, dict) and name == ".zmetadata" and path.endswith(".zarray"):
            yield path[: -len(".zarray")].rstrip("/"), member
        elif isinstance(member, dict) and name == "zarr.json":
            for below, described in _described("zarr.json", member):
                yield f"{path}/{below}".rstrip("/"), described


def _of_format_3(document: Mapping[str, Any], allowed: frozenset[str]) -> Chunks:
    if document.get("storage_transformers"):
        raise UnfitCodecError("has a storage transformer, which is not read")
    shape = tuple(map(int, document["chunk_grid"]["configuration"]["chunk_shape"]))
    codecs = _named(document["codecs"])
    item = _item_bytes(document["data_type"])
    names = [name for name, _ in codecs]
    if SHARDS not in names:
        return Chunks(math.prod(shape) * item, _packing(codecs, allowed))
    if any(name in PACKINGS for name in names):
        raise UnfitCodecError("packs its shards as a whole, which is not read; pack the chunks within them")
    _packing([codec for codec in codecs if codec[0] != SHARDS], allowed)
    shards = next(configuration for name, configuration in codecs if name == SHARDS)
    if SHARDS not in allowed:
        raise _refused(SHARDS)
    inner = tuple(map(int, shards["chunk_shape"]))
    index = _named(shards.get("index_codecs") or ())
    if any(name not in (*BYTES, "crc32c") for name, _ in index):
        raise UnfitCodecError("packs the index of its shards, which is not read")
    within = _named(shards["codecs"])
    if any(name == SHARDS for name, _ in within):
        raise UnfitCodecError("has shards within shards, which are not read")
    counts = tuple(size // chunk for size, chunk in zip(shape, inner, strict=True))
    return Chunks(
        math.prod(inner) * item,
        _packing(within, allowed),
        counts,
        shards.get("index_location") == "start",
        16 * math.prod(counts) + 4 * any(name == "crc32c" for name, _ in index),
    )


def _of_format_2(document: Mapping[str, Any], allowed: frozenset[str]) -> Chunks:
    chain = [*(document.get("filters") or ()), document.get("compressor")]
    codecs = [(str(codec["id"]), codec) for codec in chain if codec]
    kinds = list(_kinds(document["dtype"]))
    if "O" in kinds and (document["dtype"] != "|O" or [name for name, _ in codecs if name not in PACKINGS] != [TEXT]):
        raise _refused("pickle")
    item = _WIDE_ITEM if isinstance(document["dtype"], list) or "O" in kinds else np.dtype(document["dtype"]).itemsize
    return Chunks(math.prod(map(int, document["chunks"])) * item, _packing(codecs, allowed))


def _named(codecs: Sequence[Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and settings of each codec; a name alone is one without settings."""
    whole: list[Mapping[str, Any]] = [{"name": codec} if isinstance(codec, str) else codec for codec in codecs]
    return [(str(one["name"]).removeprefix("numcodecs."), dict(one.get("configuration") or {})) for one in whole]


def _packing(codecs: Sequence[tuple[str, Mapping[str, Any]]], allowed: frozenset[str]) -> str:
    """The codec of a chain that packs; each codec of the chain is checked."""
    for name, settings in codecs:
        if name not in allowed:
            raise _refused(name)
        for key in _DTYPE_KEYS:
            if settings.get(key) is not None and np.dtype(settings[key]).kind not in "fiubmM":
                raise UnfitCodecError(f"has the codec {name!r} of other things than numbers, which is not read")
    names = [name for name, _ in codecs]
    outermost = [name for name in names if name != "crc32c"][-1:]
    packings = [name for name in names if name in PACKINGS]
    if len(packings) > 1 or (packings and packings != outermost):
        raise UnfitCodecError("is packed more than once, or has codecs behind the one that packs: pack it once, last")
    return packings[0] if packings else ""


def _refused(name: str) -> UnfitCodecError:
    if name in OBJECTS:
        return UnfitCodecError(
            "holds Python objects, which would have to be unpickled: save it as plain numbers or text, for example "
            "with .astype(float) or .astype(str)"
        )
    return UnfitCodecError(f"has the codec {name!r}, which is not read: write it with one of {_WORDS}")


def _kinds(dtype: Any) -> Iterator[str]:
    """The numpy kinds in a type of format 2, including those of a record's fields."""
    if isinstance(dtype, str):
        yield np.dtype(dtype).kind
    else:
        yield from itertools.chain.from_iterable(_kinds(field[1]) for field in dtype)


def _item_bytes(data_type: Any) -> int:
    """Bytes of an item of a type of format 3."""
    if isinstance(data_type, str):
        if data_type == "string":
            return _WIDE_ITEM
        try:
            return np.dtype(data_type).itemsize or _WIDE_ITEM
        except TypeError:
            return _WIDE_ITEM
    settings = data_type.get("configuration") or {}
    if "length_bytes" in settings:
        return int(settings["length_bytes"])
    return 8 if str(data_type.get("name", "")).startswith("numpy.") else _WIDE_ITEM
