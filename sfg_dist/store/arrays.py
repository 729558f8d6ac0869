"""How an array lies in storage: its chunks, the exact size of each object, and objects encoded in memory.

Zarr itself encodes and decodes, over a store in memory that holds one object; what is written elsewhere is those bytes.
So an object can be made, compared and checked without being anywhere near the store, and any Zarr reader reads it.

An object that is one chunk holds all its rows, whatever the array's length. One that is cut into chunks leaves out the
chunks that hold nothing but the fill value, and ends with an index of 16 bytes a chunk.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.plan import Plan

if TYPE_CHECKING:
    import zarr

MAX_CHUNK_BYTES = 4 << 20
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16
ARRAYS = ("latents", "labels")


@dataclass(frozen=True)
class Layout:
    """An array in storage."""

    shape: tuple[int, ...]  # of the array
    dtype: str  # in numpy's words
    object_rows: int  # rows of one storage object; the array is cut along its first axis only
    max_chunk_bytes: int = MAX_CHUNK_BYTES  # larger objects are cut into chunks
    # a name for each axis, for readers that want them (xarray); none for an array of version 0.1.0
    dims: tuple[str, ...] | None = None

    @property
    def num_objects(self) -> int:
        """Storage objects of the array; a number without an axis is one."""
        return -(-self.shape[0] // self.object_rows) if self.shape else 1

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk: those of the object, halved while they hold more than max_chunk_bytes."""
        rows = self.object_rows
        while rows * self._row_bytes > self.max_chunk_bytes and rows % 2 == 0:
            rows //= 2
        return rows

    @property
    def is_cut(self) -> bool:
        """Whether an object is several chunks."""
        return self.chunk_rows != self.object_rows

    @property
    def _row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    def object_key(self, number: int) -> str:
        """The name of an object below the array's."""
        return "/".join(["c", *map(str, [number] + [0] * (len(self.shape) - 1))]) if self.shape else "c"

    def object_bytes(self, first: int, stop: int) -> int:
        """Exact size of an object that holds its rows ``first`` to ``stop``; the rest of it is fill value."""
        chunk_bytes = self.chunk_rows * self._row_bytes + CRC_BYTES
        if not self.is_cut:
            return chunk_bytes
        num_filled = -(-stop // self.chunk_rows) - first // self.chunk_rows
        index_bytes = self.object_rows // self.chunk_rows * INDEX_ENTRY_BYTES + CRC_BYTES
        return num_filled * chunk_bytes + index_bytes

    @cached_property
    def metadata(self) -> bytes:
        """The array's zarr.json."""
        return _in_memory(self, self.shape)["a/zarr.json"].to_bytes()

    def encode(self, rows: NDArray[Any], first: int = 0) -> bytes | None:
        """The bytes of one object that holds these rows, ``first`` rows after its start; the rest of it is fill value.

        None where all is the fill value: such an object is left out, and reads as what it would have held.
        """
        content, array = self._one_object()
        if self.shape:
            array[first : first + len(rows)] = rows
        else:
            array[...] = rows
        encoded = content.get(f"a/{self.object_key(0)}")
        return None if encoded is None else encoded.to_bytes()

    def decode(self, content: bytes, first: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows ``first`` to ``stop`` of an object, by default all that it has room for.

        Raises:
            ValueError: a checksum does not fit, or it is not an object of this array.
        """
        from zarr.core.buffer import default_buffer_prototype

        stored, array = self._one_object()
        stored[f"a/{self.object_key(0)}"] = default_buffer_prototype().buffer.from_bytes(content)
        try:
            return np.asarray(array[first:stop] if self.shape else array[...])
        except Exception as error:  # numcodecs and zarr raise anything here, from RuntimeError to struct.error
            raise ValueError(str(error).strip().split("\n")[0] or type(error).__name__) from error

    def decode_chunk(self, content: bytes) -> NDArray[Any]:
        """All rows of an object that is one chunk, as ``decode`` gives them but read-only, and without Zarr.

        Raises:
            ValueError: a checksum does not fit, or it is not an object of this array.
        """
        import google_crc32c

        size = self.chunk_rows * self._row_bytes
        if self.is_cut or len(content) != size + CRC_BYTES:
            raise ValueError(f"it has {len(content)} bytes, not {size + CRC_BYTES}")
        rows, checksum = content[:size], content[size:]
        if google_crc32c.value(rows) != int.from_bytes(checksum, "little"):
            raise ValueError("its checksum does not fit")
        return np.frombuffer(rows, np.dtype(self.dtype).newbyteorder("<")).reshape(self.chunk_rows, *self.shape[1:])

    def _one_object(self) -> tuple[dict[str, Any], zarr.Array[Any]]:
        """A store in memory with the metadata of an array of one object, and that array."""
        import zarr
        from zarr.storage import MemoryStore

        content = dict(_in_memory(self, (self.object_rows, *self.shape[1:]) if self.shape else ()))
        array = zarr.open_array(MemoryStore(content), path="a", mode="r+")
        return content, array


@lru_cache(maxsize=64)  # which cost more to make than a small array
def _in_memory(layout: Layout, shape: tuple[int, ...]) -> Mapping[str, Any]:
    """A store in memory that holds the metadata of the array ``a``, laid out so, of this shape."""
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.storage import MemoryStore

    content: dict[str, Any] = {}
    trailing = tuple(max(1, size) for size in layout.shape[1:])
    zarr.create_array(
        MemoryStore(content),
        name="a",
        shape=shape,
        dtype=layout.dtype,
        chunks=(max(1, layout.chunk_rows), *trailing) if layout.shape else (),
        shards=(layout.object_rows, *trailing) if layout.shape and layout.is_cut else None,
        compressors=[Crc32cCodec()],  # noise does not compress, and zarr's default checks no data
        fill_value=np.nan if np.dtype(layout.dtype).kind == "f" else 0,
        dimension_names=layout.dims,
    )
    return content


def group_metadata(attributes: Mapping[str, Any], members: Mapping[str, bytes] | None = None) -> bytes:
    """The zarr.json of a group.

    ``members`` are the zarr.json of the arrays below it by path. They then stand in the group's too, so that readers
    open the group by one request.
    """
    document: dict[str, Any] = {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}
    if members is not None:
        metadata = {path: json.loads(content) for path, content in members.items()}
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": metadata}
    return json.dumps(document, indent=2).encode()


def names_objects(names: Sequence[str]) -> dict[str, bytes]:
    """The objects, by key, of the array ``column`` of their names, which xarray takes for a coordinate."""
    import zarr
    from zarr.storage import MemoryStore

    content: dict[str, Any] = {}
    with warnings.catch_warnings():
        # text has no final specification in Zarr 3 yet; this layout is the one that its libraries share
        warnings.simplefilter("ignore")
        array = zarr.create_array(
            MemoryStore(content),
            name="column",
            shape=(len(names),),
            dtype=str,
            chunks=(max(1, len(names)),),
            compressors=None,
            dimension_names=("column",),
        )
        array[:] = np.array(list(names), dtype=object)
    return {key: value.to_bytes() for key, value in content.items() if key.startswith("column/")}


def record_layout(plan: Plan, record: int) -> Layout:
    """The arrays ``latents`` and ``labels`` of a plan record: on the grid, from the shard of its first row on."""
    start, stop = plan.record_rows(record)
    skipped = start // plan.shard_rows * plan.shard_rows
    dims = ("row", "column") if plan.has_names else None
    return _pairs_layout(stop - skipped, plan.dim, plan.shard_rows, MAX_CHUNK_BYTES, dims)


def shard_layout(plan: Plan) -> Layout:
    """The layout of one shard's object, the same in all records."""
    return _pairs_layout(plan.shard_rows, plan.dim, plan.shard_rows, MAX_CHUNK_BYTES)


@lru_cache(maxsize=16)  # a layout keeps the metadata of its object, which cost more to make than a small object
def _pairs_layout(
    num_rows: int, dim: int, shard_rows: int, max_chunk_bytes: int, dims: tuple[str, ...] | None = None
) -> Layout:
    return Layout((num_rows, dim), "float32", shard_rows, max_chunk_bytes, dims)


def record_prefix(record: int) -> str:
    """Where the arrays of a plan record lie."""
    return f"extensions/{record:04d}/" if record else ""


def object_key(plan: Plan, name: str, shard: int) -> str:
    """Where the object of a shard lies."""
    record = plan.record_of(shard)
    number = shard - plan.record_shards(record).start
    return f"{record_prefix(record)}{name}/c/{number}/0"


def object_rows(plan: Plan, shard: int) -> tuple[int, int]:
    """The rows of a shard, counted from the start of its object."""
    start, stop = plan.shard_range(shard)
    origin = start // plan.shard_rows * plan.shard_rows
    return start - origin, stop - origin


def row_digest(rows: NDArray[np.float32]) -> str:
    """sha256 of a shard's rows: what its commit record says, whatever the codec."""
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<f4").data).hexdigest()


def object_bytes(plan: Plan, shard: int) -> int:
    """Exact size of a shard's object, the same for latents and labels."""
    return shard_layout(plan).object_bytes(*object_rows(plan, shard))
