"""A directory or an object store behind one small interface: the protocol needs no more than this.

Every write is one request: a create is atomic on both, because obstore links a finished temporary file into place
locally and sends a conditional PUT to an object store; a write replaces an object whole or not at all; a replacement
happens only where the object is still the version that was seen (If-Match; locally under a lock on its directory).
Nothing is sent in parts, which have no conditional form.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sfg_dist.errors import ConfigError, StoreError, StoreFullError, StoreUnavailableError
from sfg_dist.objects import is_url, open_objects, reason_of, trouble_of, without_secrets

if TYPE_CHECKING:
    from zarr.storage import ObjectStore

NUM_THREADS = 16
"""Requests in flight where many objects are read."""
NUM_WRITERS = 4
"""Requests in flight where many objects are written; each holds its object in memory."""
STAGING_NAME = re.compile(r".+#\d+")
"""What obstore calls a file until it is whole; its listing leaves such names out."""


class Entry(NamedTuple):
    """An object as a look or a listing sees it.

    Attributes:
        key: its name below the location.
        bytes: its size.
        modified: when it was last written, seconds since 1970 by the store's clock.
        version: changes when the object does (an entity tag).
    """

    key: str
    bytes: int
    modified: float
    version: str


class Location:
    """Objects under a local path or an s3://, gs:// or az:// URL.

    Args:
        url: a local directory or an object-store URL.
        create: make the local directory.

    Raises:
        ConfigError: the URL has a scheme that is not an object store's, or no bucket.
        StoreError: the place cannot be opened.
    """

    def __init__(self, url: str | Path, *, create: bool = False) -> None:
        import obstore.store

        self.url = without_secrets(str(url)).rstrip("/") or "/"
        self.root: Path | None = None
        if is_url(url):
            with self._errors("open", ""):
                try:
                    self._store: Any = open_objects(str(url))
                except ValueError as error:
                    raise ConfigError(str(error)) from error
        else:
            self.root = Path(url).absolute()
            with self._errors("create", ""):
                if create:
                    _make_folder(self.root)
                self._store = obstore.store.LocalStore(prefix=self.root)

    def exists(self, key: str) -> bool:
        """Whether an object is there."""
        return self.look(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        entry = self.look(key)
        return entry.bytes if entry else None

    def look(self, key: str) -> Entry | None:
        """Size, age and version of an object, None where there is none."""
        import obstore

        try:
            with self._errors("look at", key, may_be_absent=True):
                return _entry(obstore.head(self._store, key))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, key: str, most: int | None = None) -> bytes | None:
        """An object's bytes, None where there is none; of one larger than ``most``, only ``most + 1`` bytes."""
        import obstore

        try:
            with self._errors("read", key, may_be_absent=True):
                found = obstore.get(self._store, key)
                if most is not None and found.meta["size"] > most:
                    return bytes(obstore.get_range(self._store, key, start=0, length=most + 1))
                return bytes(found.bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_many(self, keys: Iterable[str], most: int | None = None) -> Iterator[tuple[str, bytes | None]]:
        """(key, bytes) of many objects as ``read`` gives them, by a few threads at once, in the order of the keys."""
        with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="read") as pool:
            waiting: deque[tuple[str, Future[bytes | None]]] = deque()
            for key in keys:
                waiting.append((key, pool.submit(self.read, key, most)))
                if len(waiting) >= 4 * NUM_THREADS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for key, future in waiting:
                yield key, future.result()

    def write(self, key: str, content: bytes) -> None:
        """Write an object, in place of one that is there; it has reached the disk when this returns."""
        import obstore

        with self._errors("write", key):
            obstore.put(self._store, key, content, use_multipart=False)
        self.flush(key)

    def write_many(self, objects: Iterable[tuple[str, bytes]], *, is_settled: Callable[[], bool] | None = None) -> bool:
        """``write`` many objects, a few at once; as many of them are in memory.

        Args:
            objects: keys and contents.
            is_settled: asked before an object with other bytes is written over, as others may have made them theirs
                by now; nothing more is written once it says so. None writes over anything.

        Returns:
            Whether all were written, or were there already.
        """

        def put(key: str, content: bytes) -> bool:
            if is_settled is None:
                self.write(key, content)
                return True
            while not self.create(key, content):
                seen = self.look(key)
                if seen is not None and self.read(key) == content:
                    break
                if is_settled():
                    return False
                if seen is not None and self.replace(seen, content):
                    break
            self.flush(key)
            return True

        with ThreadPoolExecutor(NUM_WRITERS, thread_name_prefix="write") as pool:
            waiting: deque[Future[bool]] = deque()
            for key, content in objects:
                if len(waiting) >= NUM_WRITERS and not waiting.popleft().result():
                    return False
                waiting.append(pool.submit(put, key, content))
            results = [future.result() for future in waiting]  # all of them, so that no error is passed over
            return all(results)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object if there is none yet; whether this call made it. ``flush`` waits until the disk has it.

        On an object store the answer may be False though this call made it, where the request was sent twice because
        its first answer was lost: compare what is there.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            with self._errors("create", key):
                obstore.put(self._store, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def replace(self, seen: Entry, content: bytes) -> bool:
        """Write an object in place of the very version that was seen; False where it is another one by now."""
        import obstore
        from obstore.exceptions import PreconditionError

        try:
            with self._errors("replace", seen.key, may_be_absent=True), self._alone(seen.key):
                facts = obstore.head(self._store, seen.key)
                if _entry(facts).version != seen.version:
                    return False
                # Google's stores compare the number of the version, the others the entity tag.
                if_match = {name: facts[name] for name in ("e_tag", "version") if facts[name] is not None}
                mode: Any = "overwrite" if self.root is not None else if_match
                obstore.put(self._store, seen.key, content, mode=mode, use_multipart=False)
                return True
        except (PreconditionError, FileNotFoundError):
            return False

    def delete(self, key: str) -> None:
        """Remove an object; none there is fine."""
        import obstore

        with suppress(FileNotFoundError), self._errors("delete", key, may_be_absent=True), self._alone(key):
            obstore.delete(self._store, key)
        self._remove_empty_folders(key)

    def move(self, key: str, to: str) -> None:
        """Give an object another name; what is there already is replaced."""
        import obstore

        with self._errors("move", key):
            obstore.rename(self._store, key, to)
        self.flush(to)
        self._remove_empty_folders(key)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The objects under a prefix, a whole name between slashes; staging files are not among them."""
        import obstore

        with self._errors("list", prefix):
            for batch in obstore.list(self._store, prefix or None):
                for entry in batch:
                    yield _entry(entry)

    def partials(self) -> Iterator[Entry]:
        """Files that a killed writer left half written: their names end in # and a number. Object stores have none."""
        if self.root is None:
            return
        for folder, _, names in os.walk(self.root):
            for name in names:
                if STAGING_NAME.fullmatch(name):
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):
                        facts = path.stat()
                        key = path.relative_to(self.root).as_posix()
                        yield Entry(key, facts.st_size, facts.st_mtime, f"{facts.st_ino}-{facts.st_mtime_ns}")

    def remove_partial(self, entry: Entry) -> None:
        """Remove a file of ``partials``."""
        assert self.root is not None
        assert STAGING_NAME.fullmatch(Path(entry.key).name)
        with self._errors("delete", entry.key):
            (self.root / entry.key).unlink(missing_ok=True)

    def now(self) -> float:
        """Seconds since 1970, to compare with ``Entry.modified``."""
        return time.time()

    def flush(self, key: str) -> None:
        """On a local disk, wait until an object and the directories that lead to it have reached it."""
        if self.root is None:
            return
        path = self.root / key
        with self._errors("flush", key):
            _fsync(path)
            # All levels, not only the ones that this writer made: another may have made them a moment ago, unflushed.
            for folder in path.parents:
                _fsync(folder)
                if folder == self.root:
                    break

    def zarr_store(self, *, read_only: bool = False) -> ObjectStore:
        """The same place as zarr sees it."""
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=read_only)

    def _remove_empty_folders(self, key: str) -> None:
        """Locally, remove the directories that held only this object: Zarr takes them for damaged arrays."""
        if self.root is not None:
            with suppress(OSError):  # not empty
                for folder in (self.root / key).parents:
                    if folder == self.root:
                        break
                    folder.rmdir()

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Locally, hold the lock of an object's directory, which ends with the process that holds it."""
        if self.root is None:
            yield
            return
        import fcntl

        folder = os.open((self.root / key).parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks: the version is compared all the same
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    @contextmanager
    def _errors(self, verb: str, key: str, *, may_be_absent: bool = False) -> Iterator[None]:
        """Turn whatever obstore or the system raises into one message that names the key and says what to do."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError, ConfigError):
            raise
        except (BaseError, OSError) as error:
            if may_be_absent and isinstance(error, FileNotFoundError | NotADirectoryError):
                raise
            kinds = {"full": StoreFullError, "unavailable": StoreUnavailableError, "other": StoreError}
            place = f"{self.url}/{key}".rstrip("/")
            raise kinds[trouble_of(error)](f"cannot {verb} {place}: {reason_of(error)}") from error


def _entry(facts: Any) -> Entry:
    return Entry(facts["path"], int(facts["size"]), facts["last_modified"].timestamp(), str(facts["e_tag"] or ""))


def _make_folder(folder: Path) -> None:
    """Make a directory and those above it, and wait until the disk has each of them.

    Raises:
        PermissionError: it lies in a file system of the kernel's, where a write of obstore would not return.
    """
    if any(level in (Path("/proc"), Path("/sys")) for level in (folder, *folder.parents)):
        raise PermissionError(errno.EACCES, "files cannot be made there", str(folder))
    missing = [level for level in (folder, *folder.parents) if not level.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for level in missing:
        _fsync(level.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
