"""A directory or an object store behind one small interface: the protocol needs no more than this.

Create-if-absent is atomic on both, because obstore links a finished temporary file into place locally and sends a
conditional PUT to an object store; a plain write replaces an object whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sfg_dist.errors import StoreError

if TYPE_CHECKING:
    from zarr.storage import ObjectStore


class Location:
    """Objects under a path or an s3:// URL.

    Args:
        url: a local directory or an object-store URL.
        create: make the local directory.
    """

    def __init__(self, url: str | Path, *, create: bool = False) -> None:
        import obstore.store

        self.url = str(url)
        self.root: Path | None = None
        if "://" in self.url:
            with self._errors("open", ""):
                self._store = obstore.store.from_url(self.url)
        else:
            self.root = Path(self.url).absolute()
            with self._errors("create", ""):
                if create:
                    self.root.mkdir(parents=True, exist_ok=True)
                self._store = obstore.store.LocalStore(prefix=self.root)

    def exists(self, key: str) -> bool:
        """Whether an object is there."""
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        import obstore

        try:
            with self._errors("look at", key):
                return int(obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            return None

    def read(self, key: str) -> bytes | None:
        """An object's bytes, None where there is none."""
        import obstore

        try:
            with self._errors("read", key):
                return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            return None

    def create(self, key: str, content: bytes) -> bool:
        """Write an object if there is none yet; whether this call made it."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            with self._errors("create", key):
                obstore.put(self._store, key, content, mode="create")
        except AlreadyExistsError:
            return False
        self.flush(key)
        return True

    def write(self, key: str, content: bytes) -> None:
        """Write an object, replacing an older one whole."""
        import obstore

        with self._errors("write", key):
            obstore.put(self._store, key, content)

    def delete(self, key: str) -> None:
        """Remove an object."""
        import obstore

        with self._errors("delete", key):
            obstore.delete(self._store, key)

    def list(self, prefix: str) -> Iterator[str]:
        """Keys under a prefix."""
        import obstore

        with self._errors("list", prefix):
            for batch in obstore.list(self._store, prefix):
                for entry in batch:
                    yield entry["path"]

    def flush(self, key: str) -> None:
        """On a local disk, wait until an object has reached it, so that a commit never outlives its data."""
        if self.root is None:
            return
        for path in (self.root / key, (self.root / key).parent):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def zarr_store(self, *, read_only: bool = False) -> ObjectStore:
        """The same place as zarr sees it."""
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=read_only)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn whatever a failed write raises into one message that says what is safe and what to do."""
        with self._errors(f"write {what} of", ""):
            yield

    @contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        from obstore.exceptions import AlreadyExistsError, BaseError

        place = f"{self.url}/{key}".rstrip("/")
        try:
            yield
        except (AlreadyExistsError, FileNotFoundError, StoreError):
            raise
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot {verb} {place}: {reason_of(error)}") from error


def absolute_url(url: str | Path) -> str:
    """The place as a process in another working directory names it."""
    return str(url) if "://" in str(url) else str(Path(url).absolute())


def reason_of(error: Exception) -> str:
    """Why a write or read failed, in one line; a full disk with what to do."""
    text = str(error)
    if "No space left" in text or "StorageFull" in text:
        return "no space left on the device; what is committed is safe: free some space and run the same command again"
    strerror = getattr(error, "strerror", None)
    return str(strerror or text.split("\n")[0])
