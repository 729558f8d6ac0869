"""Which chunks of a Zarr array were written, those within shards included."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

_ABSENT = 2**64 - 1


def written_chunks(array: Any) -> tuple[int, int]:
    """Stored chunks, and all of them."""
    codec = array.metadata.codecs[0] if array.shards is not None else None
    kinds = () if codec is None else tuple(type(part).__name__ for part in codec.index_codecs)
    if kinds not in (("BytesCodec",), ("BytesCodec", "Crc32cCodec")):  # zarr counts a shard's chunks as all or none
        return int(array.nchunks_initialized), int(array.nchunks)
    within = [shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    stored = 0
    for place in itertools.product(*(range(-(-count // per)) for count, per in zip(counts, within, strict=True))):
        index = _index_of(array, codec, place, within, 4 if len(kinds) > 1 else 0)
        if index is not None:  # a shard at the edge has places for chunks beyond it
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
