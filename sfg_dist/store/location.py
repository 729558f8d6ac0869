"""A directory or an object store behind one small interface: the protocol needs no more than this.

Every write is one request: a create is atomic on both, because a finished temporary file is linked into place locally
and a conditional PUT is sent to an object store; a write replaces an object whole or not at all; a replacement happens
only where the object is still the version that was seen (If-Match; locally under a lock on its directory). Nothing is
sent in parts, which have no conditional form.

All that this package reads and writes below an output directory goes through here. Locally no link is followed on the
way (see ``local.py``): directories come from anywhere, and a link in one may lead into the user's home.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfg_dist.job.errors import ConfigError, StoreError, StoreFullError, StoreLinkError, StoreUnavailableError
from sfg_dist.job.object_stores import is_url, open_objects, reason_of, trouble_of, without_secrets
from sfg_dist.job.words import as_line
from sfg_dist.store.local import PARTIAL, Entry, LinkError, LocalFiles

QUARANTINE = "quarantine/"
"""Where `sfg repair` puts what is no part of a store."""

if TYPE_CHECKING:
    from zarr.storage import ObjectStore

NUM_THREADS = 16
"""Requests in flight where many objects are read."""
NUM_WRITERS = 4
"""Requests in flight where many objects are written; each holds its object in memory."""


class Location:
    """Objects under a local path or an s3://, gs:// or az:// URL.

    With ``create`` a local directory is made.

    Raises:
        ConfigError: the URL has a scheme that is not an object store's, or no bucket.
        StoreError: the place cannot be opened.
    """

    def __init__(self, url: str | Path, *, create: bool = False) -> None:
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
            self._files = LocalFiles(self.root)
            with self._errors("create", ""):
                if create:
                    _make_folder(self.root)
                elif not self.root.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))

    def exists(self, key: str) -> bool:
        """Whether an object is there, or a link in its place."""
        try:
            return self.look(key) is not None
        except StoreLinkError:
            return True

    def size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        entry = self.look(key)
        return entry.bytes if entry else None

    def look(self, key: str) -> Entry | None:
        """Size, age and version of an object, None where there is none.

        Raises:
            StoreLinkError: it is a link, or lies behind one.
        """
        import obstore

        with suppress(FileNotFoundError, NotADirectoryError), self._errors("look at", key, may_be_absent=True):
            if self.root is not None:
                return self._files.look(key)
            return _entry(obstore.head(self._store, key))
        return None

    def read(self, key: str, most: int | None = None) -> bytes | None:
        """An object's bytes, None where there is none; of one larger than ``most``, only ``most + 1`` bytes.

        Raises:
            StoreLinkError: it is a link, or lies behind one.
        """
        import obstore

        with suppress(FileNotFoundError, NotADirectoryError), self._errors("read", key, may_be_absent=True):
            if self.root is not None:
                return self._files.read(key, None if most is None else most + 1)
            found = obstore.get(self._store, key)
            if most is not None and found.meta["size"] > most:
                return bytes(obstore.get_range(self._store, key, start=0, length=most + 1))
            return bytes(found.bytes())
        return None

    def beginning(self, key: str, most: int) -> bytes | None:
        """The first bytes of an object, None where there is none; an object store gives all of them."""
        if self.root is None:
            return self.read(key)
        with suppress(FileNotFoundError, NotADirectoryError), self._errors("read", key, may_be_absent=True):
            return self._files.read(key, most)
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
            if self.root is not None:
                self._files.write(key, content)
            else:
                obstore.put(self._store, key, content, use_multipart=False)
        self.flush(key)

    def append(self, key: str, content: bytes, *, is_lines: bool = False) -> None:
        """Add to the end of a local file, made if it is not there: all of it, or nothing. Objects have no such thing.

        With ``is_lines`` a new line is begun where the last one is torn.
        """
        assert self.root is not None
        with self._errors("write", key):
            self._files.append(key, content, is_lines=is_lines)

    def write_many(self, objects: Iterable[tuple[str, bytes]], *, is_settled: Callable[[], bool] | None = None) -> bool:
        """``write`` many objects, (key, content), a few at once; whether all of them are there at the end.

        Only the contents of these few are in memory. ``is_settled`` is asked before an object with other bytes is
        written over, as others may have made them theirs by now; nothing more is written once it says so. None writes
        over anything.
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
                if self.root is not None:
                    return self._files.create(key, content)
                obstore.put(self._store, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def replace(self, seen: Entry, content: bytes) -> bool:
        """Write an object in place of the very version that was seen; False where it is another one by now."""
        import obstore
        from obstore.exceptions import PreconditionError

        try:
            with self._errors("replace", seen.key, may_be_absent=True):
                if self.root is not None:
                    return self._files.replace(seen, content)
                facts = obstore.head(self._store, seen.key)
                if _entry(facts).version != seen.version:
                    return False
                # Google's stores compare the number of the version, the others the entity tag.
                if_match: Any = {name: facts[name] for name in ("e_tag", "version") if facts[name] is not None}
                obstore.put(self._store, seen.key, content, mode=if_match, use_multipart=False)
                return True
        except (PreconditionError, FileNotFoundError, NotADirectoryError):
            return False

    def delete(self, key: str) -> None:
        """Remove an object; none there is fine. A link in its place stays."""
        import obstore

        with suppress(FileNotFoundError, NotADirectoryError), self._errors("delete", key, may_be_absent=True):
            if self.root is not None:
                self._files.delete(key)
            else:
                obstore.delete(self._store, key)

    def clear(self, prefix: str) -> None:
        """Remove all objects under a prefix, and what was left half written there."""
        for entry in list(self.walk(prefix)):
            if entry.oddity in ("", PARTIAL):
                self.delete(entry.key)

    def move(self, key: str, to: str) -> None:
        """Give an object another name; what is there already is replaced. A link is moved as a link."""
        import obstore

        with self._errors("move", key):
            if self.root is not None:
                self._files.move(key, to)
            else:
                obstore.rename(self._store, key, to)
        self.flush(to)

    def walk(self, prefix: str = "") -> Iterator[Entry]:
        """All that lies under a prefix, a whole name between slashes; ``Entry.oddity`` says what is no object."""
        import obstore

        with self._errors("list", prefix):
            if self.root is not None:
                yield from self._files.walk(prefix)
                return
            for batch in obstore.list(self._store, prefix or None):
                for entry in batch:
                    yield _entry(entry)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The objects under a prefix."""
        return (entry for entry in self.walk(prefix) if not entry.oddity)

    def oddities(self, prefix: str = "") -> Iterator[Entry]:
        """Links, pipes and the like, which nothing here touches. Object stores have none."""
        return (entry for entry in self.walk(prefix) if entry.oddity not in ("", PARTIAL))

    def partials(self) -> Iterator[Entry]:
        """Files that a killed writer left half written: their names end in # and a number. Object stores have none."""
        return (entry for entry in self.walk() if entry.oddity == PARTIAL)

    def require_no_links(self, found: Iterable[Entry] | None = None) -> None:
        """Refuse a store with links or pipes in it: nothing lists them, and their places cannot be written.

        ``found`` is what a walk has found in the store; by default it is walked.

        Raises:
            StoreLinkError: there is one; the message names it.
        """
        for entry in self.walk() if found is None else found:
            if entry.oddity not in ("", PARTIAL) and not entry.key.startswith(QUARANTINE):
                place = f"{self.url}/{as_line(entry.key)}"
                raise StoreLinkError(f"{place} {entry.oddity}: `sfg repair` moves it to {QUARANTINE}")

    def remove_partials(self) -> None:
        """Remove what ``partials`` names."""
        for entry in list(self.partials()):
            self.delete(entry.key)

    def now(self) -> float:
        """Seconds since 1970, to compare with ``Entry.modified``."""
        return time.time()

    def flush(self, key: str) -> None:
        """On a local disk, wait until an object and the directories that lead to it have reached it."""
        if self.root is None:
            return
        with self._errors("flush", key):
            self._files.flush(key)

    def zarr_store(self, *, read_only: bool = False) -> ObjectStore:
        """The same place as zarr sees it."""
        import obstore.store
        from zarr.storage import ObjectStore

        if self.root is None:
            return ObjectStore(self._store, read_only=read_only)
        from sfg_dist.store.unlinked import UnlinkedStore

        return UnlinkedStore(obstore.store.LocalStore(prefix=self.root), self._files, read_only=read_only)

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
            kind = StoreLinkError if isinstance(error, LinkError) else kinds[trouble_of(error)]
            place = as_line(f"{self.url}/{key}".rstrip("/"))
            raise kind(f"cannot {verb} {place}: {reason_of(error)}") from error


def places_of(path: str, name: str) -> Iterator[Location]:
    """``path``, and ``name`` in it: of local directories those that are there.

    Raises:
        StoreLinkError: the second is a link, which a directory from elsewhere may hold.
    """
    for place in (path, f"{path}/{name}"):
        if is_url(place) or Path(place).is_dir():
            if place != path and not is_url(path):
                Location(path).look(name)
            yield Location(place)


def _entry(facts: Any) -> Entry:
    return Entry(facts["path"], int(facts["size"]), facts["last_modified"].timestamp(), str(facts["e_tag"] or ""))


def _make_folder(folder: Path) -> None:
    """Make a directory and those above it, and wait until the disk has each of them."""
    if any(level in (Path("/proc"), Path("/sys")) for level in (folder, *folder.parents)):
        # In a file system of the kernel's a write of obstore would not return.
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
