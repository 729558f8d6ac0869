"""A Zarr store from somebody else: what Zarr would read of it is checked first.

Metadata are checked against the list of codecs before anything is built from them. A chunk is checked against the size
that they state before it is unpacked. A file behind a link that leads out of the folder is not read, and a pipe is not
waited for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import WrapperStore

from sfg_dist.data.links import check_inside
from sfg_dist.data.unpacking import GROWTH, unpacked_bytes
from sfg_dist.data.zarr_codecs import CODECS, PACKINGS, Chunks, UnfitCodecError, arrays_of
from sfg_dist.job.errors import DataError, SfgError
from sfg_dist.job.memory import usable_bytes
from sfg_dist.job.words import size_of

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_ZSTD_BLOCK = 128 << 10


class CheckedStore(WrapperStore[Any]):
    """A store that hands on only what may be read, with ``codecs`` alone; ``refusal`` is the kind of error it raises.

    ``source`` is its path or URL, for messages, and ``root`` the folder of a local one.
    """

    def __init__(
        self,
        store: Any,
        source: str = "",
        root: Path | None = None,
        codecs: frozenset[str] = CODECS,
        refusal: type[SfgError] = DataError,
    ) -> None:
        super().__init__(store)
        self._source, self._root, self._codecs, self._refusal = source, root, codecs, refusal
        self._arrays: dict[str, Chunks] = {}

    def _with_store(self, store: Any) -> CheckedStore:
        return type(self)(store, self._source, self._root, self._codecs, self._refusal)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object, checked."""
        if self._root is not None:
            check_inside(self._source, self._root, self._root / key, self._refusal)
        content: Buffer | None = await self._store.get(key, prototype, byte_range)
        if content is not None:
            folder, _, name = key.rpartition("/")
            if name in METADATA:
                self._check_metadata(folder, name, content.to_bytes())
            elif (
                (chunks := self._chunks_of(folder)) is not None and chunks.packing and not _is_index(chunks, byte_range)
            ):
                packed = memoryview(content.as_buffer_like()).cast("B")
                for chunk in chunks.within(packed) if chunks.shard and byte_range is None else (packed,):
                    self._check_chunk(key, chunks, chunk)
        return content

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Objects or parts of them, checked."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, byte_range in requests:
            yield key, await self.get(key, prototype, byte_range)

    async def getsize(self, key: str) -> int:
        """Bytes of an object."""
        return int(await self._store.getsize(key))

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all objects below a prefix."""
        return int(await self._store.getsize_prefix(prefix))

    def _check_metadata(self, folder: str, name: str, content: bytes) -> None:
        try:
            found = arrays_of(name, content, self._codecs)
        except UnfitCodecError as error:
            path = "/".join(filter(None, (folder, *getattr(error, "__notes__", ()))))
            raise self._refusal(f"{self._source}: array {path or 'X'!r} {error}") from None
        for path, chunks in found.items():
            if chunks.num_bytes > usable_bytes() // 2:
                where = f"{folder}/{path}".strip("/") or "X"
                raise self._refusal(
                    f"{self._source}: array {where!r} declares chunks of {size_of(chunks.num_bytes)}, and "
                    f"{size_of(usable_bytes())} are all the memory that may be used: write it with smaller chunks"
                )
            self._arrays[f"{folder}/{path}".strip("/")] = chunks

    def _chunks_of(self, folder: str) -> Chunks | None:
        """The chunks of the array that an object lies below."""
        while folder not in self._arrays and folder:
            folder = folder.rpartition("/")[0]
        return self._arrays.get(folder)

    def _check_chunk(self, key: str, chunks: Chunks, content: memoryview) -> None:
        """Refuse a chunk that unpacks to far more than the metadata state."""
        allowed = 8 * chunks.num_bytes + (1 << 20)  # a filter behind the packing may widen numbers
        packing = PACKINGS[chunks.packing]
        if _most_bytes(chunks.packing, content) <= allowed:
            return
        if packing and len(content) * GROWTH[packing] <= max(allowed, usable_bytes() >> 6):
            return  # only large chunks are worth the time of counting
        try:
            is_more = not packing or unpacked_bytes(packing, bytes(content), allowed) > allowed
        except Exception:  # damaged, or packed in an uncommon way: its size cannot be known
            is_more = True
        if is_more:
            raise self._refusal(
                f"{self._source}: {key} unpacks to more than its chunk holds, {size_of(chunks.num_bytes)}: the file is "
                "damaged"
            )


def _is_index(chunks: Chunks, byte_range: ByteRequest | None) -> bool:
    """Whether the part that is asked for is the index of a shard."""
    if not chunks.shard or byte_range is None:
        return False
    if chunks.is_index_first:
        return isinstance(byte_range, RangeByteRequest) and byte_range.start == 0
    return isinstance(byte_range, SuffixByteRequest)


def _most_bytes(packing: str, content: memoryview) -> int:
    """The most that packed bytes may hold, as their frame states it."""
    if packing == "blosc":
        return int.from_bytes(content[4:8], "little")
    if packing == "lz4":
        return min(int.from_bytes(content[:4], "little"), 256 * len(content))
    if packing == "zstd":
        return _most_of_zstd(content)
    return len(content) * GROWTH[packing]


def _most_of_zstd(content: memoryview) -> int:
    """The most that zstd frames may hold, by their blocks: each holds 128 KiB at most."""
    place = blocks = 0
    while content[place : place + 4] == b"\x28\xb5\x2f\xfd":
        head = content[place + 4] if place + 4 < len(content) else 0
        size_bytes = (1 if head & 32 else 0, 2, 4, 8)[head >> 6]
        place += 5 + (0 if head & 32 else 1) + (0, 1, 2, 4)[head & 3] + size_bytes
        is_last = False
        while not is_last and place + 3 <= len(content):
            block = int.from_bytes(content[place : place + 3], "little")
            is_last, blocks = bool(block & 1), blocks + 1
            place += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        place += 4 if head & 4 else 0
    return blocks * _ZSTD_BLOCK if place >= len(content) else len(content) * GROWTH["zstd"]
