"""A local directory as Zarr reads it: what is a link, or lies behind one, is refused before it is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from sfg_dist.store.local import LocalFiles


class UnlinkedStore(ObjectStore[Any]):
    """A store of obstore's that looks at each key first; ``files`` is the same directory.

    The look and the read are two steps, so a link that somebody makes in between is followed, once, for reading.
    """

    def __init__(self, store: Any, files: LocalFiles, *, read_only: bool = True) -> None:
        super().__init__(store, read_only=read_only)
        self._files = files

    def with_read_only(self, read_only: bool = False) -> UnlinkedStore:
        """The same store, to be written to or not."""
        return UnlinkedStore(self.store, self._files, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of an object, or of a range of it."""
        self._files.require_plain(key)
        return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Ranges of objects."""
        wanted = list(key_ranges)
        for key in {key for key, _ in wanted}:
            self._files.require_plain(key)
        return await super().get_partial_values(prototype, wanted)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        self._files.require_plain(key)
        await super().set(key, value)
