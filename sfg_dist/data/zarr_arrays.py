"""The arrays of a Zarr group, and which of their chunks were written, those within shards included."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.array_file import DEFAULT_ARRAY, ArrayFile, object_message, shape_text
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.declared_sizes import SMALL_BYTES, check_held, check_stored, declared_bytes
from sfg_dist.data.sources import open_zarr, reading
from sfg_dist.job.errors import DataError
from sfg_dist.job.words import size_of

_MANY_CHUNKS = 1_000_000
_ABSENT = 2**64 - 1


def open_zarr_arrays(source: str) -> ArrayFile:
    """The arrays of a Zarr group, or the one array X."""
    import zarr

    with _reading_zarr(source):
        node = open_zarr(source)
        arrays = {DEFAULT_ARRAY: node} if isinstance(node, zarr.Array) else dict(_walk_zarr(node))
        named = node.attrs.get("columns") if "columns" not in arrays else None
        types = node.attrs.get("types") if DEFAULT_ARRAY in arrays and node.attrs.get("source") else None
        of_samples = None if types is None else tuple(ColumnType.from_dict(words) for words in types)

    def read(name: str) -> NDArray[Any]:
        if name == "columns" and named is not None:
            return np.asarray(named, dtype=str)
        with _reading_zarr(source):
            array = array_of(name)
            check_held(source, what(array, name), array.shape, array.dtype)
            values = np.asarray(array[...])
            return np.asarray(values.tolist(), dtype=str) if values.dtype.kind == "T" else values

    def what(array: Any, name: str) -> str:
        return f"array {name!r} ({shape_text(array.shape, array.dtype)})"

    @cache
    def array_of(name: str) -> Any:
        array = arrays[name]
        if array.dtype.kind != "T" and array.dtype.hasobject:
            raise DataError(object_message(source, name))
        if declared_bytes(array.shape, array.dtype) > SMALL_BYTES or array.nchunks > _MANY_CHUNKS:
            stored = array.nbytes_stored()
            check_stored(source, what(array, name), array.shape, array.dtype, stored)
            if array.nchunks > _MANY_CHUNKS + stored:
                raise DataError(
                    f"{source}: {what(array, name)} declares {array.nchunks:,} chunks, and {size_of(stored)} are "
                    "stored: the file is damaged"
                )
        return array

    def describe(name: str) -> str:
        return "names" if name not in arrays else shape_text(arrays[name].shape, arrays[name].dtype)

    def attributes(name: str) -> Mapping[str, Any]:
        array = arrays[name]
        found = dict(array.attrs)
        # xarray writes its _FillValue as the fill value of Zarr 2, and none where nothing is missing.
        if array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in found and array.fill_value is not None:
            found.setdefault("_FillValue", array.fill_value)
        return found

    def labels(name: str) -> tuple[str, ...] | None:
        array = arrays[name]
        dimensions: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
        if array.ndim != 2 or not dimensions or len(dimensions) != 2 or dimensions[1] is None:
            return None
        beside = f"{name.rpartition('/')[0]}/{dimensions[1]}".lstrip("/")
        if beside not in arrays or arrays[beside].shape != array.shape[1:] or arrays[beside].dtype.kind not in "UT":
            return None
        return tuple(map(str, read(beside)))

    def written(name: str) -> tuple[int, int, Any]:
        with _reading_zarr(source):
            array = array_of(name)
            return *_written_chunks(array), array.fill_value

    names = (*arrays, "columns") if named is not None else tuple(arrays)
    return ArrayFile(
        source,
        names,
        read,
        describe,
        lambda name: arrays[name].shape if name in arrays else (len(named or ()),),
        lambda name: array_of(name).dtype if name in arrays else np.dtype(str),
        array_of,
        types=of_samples,
        attributes=attributes,
        labels=labels,
        written=written,
    )


@contextmanager
def _reading_zarr(source: str) -> Iterator[None]:
    import zarr.errors

    with warnings.catch_warnings(), reading(source):
        # Text, such as the names of columns, has no final specification in Zarr 3 yet, but can be read.
        warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
        # A store of pairs has further files beside its arrays.
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        yield


def _walk_zarr(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, array in sorted(group.arrays()):
        yield prefix + name, array
    for name, inner in sorted(group.groups()):
        yield from _walk_zarr(inner, f"{prefix}{name}/")


def _written_chunks(array: Any) -> tuple[int, int]:
    """The number of stored chunks, and of all chunks."""
    codec = array.metadata.codecs[0] if array.shards is not None else None
    kinds = () if codec is None else tuple(type(part).__name__ for part in codec.index_codecs)
    if kinds not in (("BytesCodec",), ("BytesCodec", "Crc32cCodec")):  # Zarr's own count is of whole shards
        return int(array.nchunks_initialized), int(array.nchunks)
    within = [shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    stored = 0
    for place in itertools.product(*(range(-(-count // per)) for count, per in zip(counts, within, strict=True))):
        index = _index_of(array, codec, place, within, 4 if len(kinds) > 1 else 0)
        if index is not None:  # a shard at the edge has places for chunks beyond the array
            real = tuple(slice(count - at * per) for count, at, per in zip(counts, place, within, strict=True))
            stored += int((index[..., 0][real] != _ABSENT).sum())
    return stored, int(np.prod(counts))


def _index_of(array: Any, codec: Any, place: tuple[int, ...], within: list[int], checksum: int) -> Any:
    """Offset and length of each chunk of a shard, shape (*within, 2); None where the shard was not written."""
    from zarr.abc.store import RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    size = 16 * int(np.prod(within))
    at_start = codec.index_location.value == "start"
    wanted = RangeByteRequest(0, size) if at_start else SuffixByteRequest(size + checksum)
    key = array.store_path / array.metadata.encode_chunk_key(place)
    raw = sync(key.get(default_buffer_prototype(), wanted))
    if raw is None:
        return None
    endian = codec.index_codecs[0].endian
    order = ">" if endian is not None and endian.value == "big" else "<"
    return np.frombuffer(raw.to_bytes()[:size], f"{order}u8").reshape(*within, 2)
