"""Files below a directory, reached name by name, so that no link below it is ever followed.

Each level is opened from the one above it without following links, and a file is opened, created, renamed or removed
by its name within the open level. A directory that somebody puts a link in the place of meanwhile therefore changes
nothing. What is no file of an ordinary kind, such as a link, a pipe or a device, is never read, written or removed.

What this does not cover: the directory itself may be a link, or lie behind one, since scratch directories often do;
file systems that are mounted below it are entered; and whoever may write into the directory can change what is in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

MAX_LEVELS = 32
"""Levels of directories that are looked into; this package makes no more than six."""
LINK = "is a link, and links are not followed"
SPECIAL = "is a pipe, a socket or a device"
PARTIAL = "was left half written by a writer that was ended"
MAX_ATTEMPTS = 16  # at a write, while others remove the empty directories that it needs
STAGING_NAME = re.compile(r".+#\d+")
"""What a file is called until it is whole, as obstore calls it; listings leave such names out."""
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe is not waited for
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _FLAGS
_T = TypeVar("_T")


class Entry(NamedTuple):
    """An object as a look or a listing sees it."""

    key: str  # its name below the location
    bytes: int  # its size
    modified: float  # when it was last written, seconds since 1970 by the store's clock
    version: str  # changes when the object does (an entity tag)
    oddity: str = ""  # why listings leave it out: ``LINK``, ``PARTIAL`` or another reason. Empty for an ordinary file.


class OddFileError(OSError):
    """A name is no ordinary file."""


class LinkError(OddFileError):
    """A name is a link, or lies behind one."""

    def __init__(self, name: str) -> None:
        why = (
            f"{name} is a link, and links in there are not followed: put what it leads to in its place (cp -rL), or "
            f"remove it"
        )
        super().__init__(errno.ELOOP, why)
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:  # an OSError is made anew from its number and its message
        return type(self), (self._name,), self.__dict__


class LocalFiles:
    """The files below a directory by keys, names with slashes between them.

    Methods raise FileNotFoundError or NotADirectoryError where a level of the key is not there, and LinkError where the
    key is a link or lies behind one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def look(self, key: str) -> Entry | None:
        """Size, age and version of a file; None where there is no ordinary one."""
        folders, name = _names(key)
        with self._levels(folders) as levels:
            facts = os.stat(name, dir_fd=levels[-1], follow_symlinks=False)
        if stat.S_ISLNK(facts.st_mode):
            raise LinkError(name)
        return entry_of(key, facts) if stat.S_ISREG(facts.st_mode) else None

    def read(self, key: str, most: int | None = None) -> bytes | None:
        """The bytes of a file, the first ``most`` of them; None where there is no ordinary one."""
        folders, name = _names(key)
        with self._levels(folders) as levels, _opened(levels[-1], name, os.O_RDONLY) as handle:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                return None
            with os.fdopen(handle, "rb", closefd=False) as file:
                # To ask for more than there is takes the memory of what is asked for.
                return file.read() if most is None or facts.st_size <= most else file.read(most)

    def write(self, key: str, content: bytes) -> None:
        """Put a file, whole or not at all, in place of an ordinary one."""

        def put(level: int, name: str) -> None:
            _is_there(level, name)
            _put(level, name, content)

        self._making(key, put)

    def create(self, key: str, content: bytes) -> bool:
        """Put a file if there is none; whether this call made it."""

        def put(level: int, name: str) -> bool:
            if _is_there(level, name):
                return False
            staged = _stage(level, name, content)
            try:
                os.link(staged, name, src_dir_fd=level, dst_dir_fd=level, follow_symlinks=False)
            except FileExistsError:
                return not _is_there(level, name)
            finally:
                os.unlink(staged, dir_fd=level)
            return True

        return self._making(key, put)

    def replace(self, seen: Entry, content: bytes) -> bool:
        """Put a file in place of the very version that was seen; False where it is another one."""
        folders, name = _names(seen.key)
        with self._levels(folders) as levels, _alone(levels[-1]):
            facts = os.stat(name, dir_fd=levels[-1], follow_symlinks=False)
            if entry_of(seen.key, facts).version != seen.version:
                return False
            _put(levels[-1], name, content)
            return True

    def append(self, key: str, content: bytes, *, is_lines: bool) -> None:
        """Add to the end of a file: all of it, or nothing.

        With ``is_lines`` a new line is begun where the last one is torn, as a killed attempt leaves it.
        """
        self._making(key, lambda level, name: _append(level, name, content, is_lines))

    def delete(self, key: str) -> None:
        """Remove a file of an ordinary kind, and the directories that held nothing else; anything else stays.

        Zarr takes an empty directory for a damaged array.
        """
        folders, name = _names(key)
        with self._levels(folders) as levels:
            with _alone(levels[-1]):
                if stat.S_ISREG(os.stat(name, dir_fd=levels[-1], follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=levels[-1])
            _remove_empty(levels, folders)

    def move(self, key: str, to: str) -> None:
        """Give a name to what has another one, be it a link, which then leads where it led."""
        folders, old = _names(key)

        def rename(level: int, name: str) -> None:
            _is_there(level, name)
            with self._levels(folders) as levels:
                os.rename(old, name, src_dir_fd=levels[-1], dst_dir_fd=level)
                _remove_empty(levels, folders)

        self._making(to, rename)

    def flush(self, key: str) -> None:
        """Wait until a file and the directories that lead to it have reached the disk.

        All levels, not only the ones that this writer made: another may have made them a moment ago, unflushed.
        """
        folders, name = _names(key)
        with self._levels(folders) as levels:
            if stat.S_ISREG(os.stat(name, dir_fd=levels[-1], follow_symlinks=False).st_mode):
                with _opened(levels[-1], name, os.O_RDONLY) as handle:
                    os.fsync(handle)
            for level in reversed(levels):
                os.fsync(level)

    def walk(self, prefix: str = "") -> Iterator[Entry]:
        """All below a prefix, a whole name between slashes; of directories only those too deep to look into."""
        folders = prefix.split("/") if prefix else []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, LinkError), self._levels(folders) as levels:
            yield from _walk(levels[-1], f"{prefix}/" if prefix else "", len(folders) + 1)

    def require_plain(self, key: str) -> None:
        """Refuse links and pipes on the way to a key, before something else reads it by its path.

        Raises:
            LinkError: the key is a link or lies behind one.
            OddFileError: the key is a pipe, a socket or a device.
        """
        place = str(self.root)
        for name in key.split("/"):
            place = f"{place}/{name}"
            try:
                mode = os.lstat(place).st_mode
            except (FileNotFoundError, NotADirectoryError):
                return
            below = place.removeprefix(f"{self.root}/")
            if stat.S_ISLNK(mode):
                raise LinkError(below)
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise OddFileError(errno.EINVAL, f"{below} {SPECIAL}: move it away")

    @contextlib.contextmanager
    def _levels(self, folders: Sequence[str], *, make: bool = False) -> Iterator[list[int]]:
        """The open directories that lead to a key, the root first."""
        levels = [os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        try:
            for depth, folder in enumerate(folders, start=1):
                try:
                    levels.append(_entered(levels[-1], folder, make))
                except OSError as error:
                    if error.errno in (errno.ELOOP, errno.ENOTDIR) and _is_link(levels[-1], folder):
                        raise LinkError("/".join(folders[:depth])) from None
                    raise
            yield levels
        finally:
            for level in levels:
                os.close(level)

    def _making(self, key: str, put: Callable[[int, str], _T]) -> _T:
        """Call with the open directory of a key and its last name; the directories are made."""
        folders, name = _names(key)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                with self._levels(folders, make=True) as levels:
                    return put(levels[-1], name)
            except FileNotFoundError:  # another process removed a directory that was empty
                if attempt == MAX_ATTEMPTS:
                    raise
        raise AssertionError


def entry_of(key: str, facts: os.stat_result, oddity: str = "") -> Entry:
    """A file as a listing sees it."""
    version = f"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{facts.st_size:x}"
    return Entry(key, facts.st_size, facts.st_mtime, version, oddity)


def _names(key: str) -> tuple[list[str], str]:
    """The directories of a key, and its last name."""
    *folders, name = key.split("/")
    if any(part in ("", ".", "..") for part in (*folders, name)):
        raise OSError(errno.EINVAL, "this is no name of an object")
    return folders, name


def _entered(level: int, folder: str, make: bool) -> int:
    try:
        return os.open(folder, _FOLDER, dir_fd=level)
    except FileNotFoundError:
        if not make:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, dir_fd=level)
    return os.open(folder, _FOLDER, dir_fd=level)


def _is_link(level: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISLNK(os.stat(name, dir_fd=level, follow_symlinks=False).st_mode)
    return False


def _is_there(level: int, name: str) -> bool:
    """Whether there is an ordinary file; anything else is refused, since it is nobody's to write over."""
    try:
        mode = os.stat(name, dir_fd=level, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(mode):
        raise LinkError(name)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EEXIST, f"{name} is no file: move it away")
    return True


@contextlib.contextmanager
def _opened(level: int, name: str, flags: int) -> Iterator[int]:
    try:
        handle = os.open(name, flags | _FLAGS, 0o666, dir_fd=level)
    except OSError as error:
        raise LinkError(name) if error.errno == errno.ELOOP else error from None
    try:
        yield handle
    finally:
        os.close(handle)


def _stage(level: int, name: str, content: bytes) -> str:
    """A new file of these bytes beside the name that it shall have; its own name."""
    for number in itertools.count(1):
        staged = f"{name}#{number}"
        try:
            handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666, dir_fd=level)
        except FileExistsError:
            continue
        try:
            _write_all(handle, content)
        except BaseException:
            os.unlink(staged, dir_fd=level)
            raise
        finally:
            os.close(handle)
        return staged
    raise AssertionError


def _put(level: int, name: str, content: bytes) -> None:
    staged = _stage(level, name, content)
    try:
        os.rename(staged, name, src_dir_fd=level, dst_dir_fd=level)
    except OSError:
        os.unlink(staged, dir_fd=level)
        raise


def _append(level: int, name: str, content: bytes, is_lines: bool) -> None:
    _is_there(level, name)
    with _opened(level, name, os.O_RDWR | os.O_APPEND | os.O_CREAT) as handle:
        facts = os.fstat(handle)
        if is_lines and facts.st_size and os.pread(handle, 1, facts.st_size - 1) != b"\n":
            content = b"\n" + content
        if facts.st_nlink > 1:  # what has another name may be anybody's: that keeps its bytes
            _put(level, name, os.pread(handle, facts.st_size, 0) + content)
            return
        try:
            _write_all(handle, content)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, facts.st_size)
            raise


def _write_all(handle: int, content: bytes) -> None:
    left = memoryview(content)
    while left:  # a disk that becomes full takes a part first
        left = left[os.write(handle, left) :]


@contextlib.contextmanager
def _alone(level: int) -> Iterator[None]:
    """Hold the lock of a directory, which ends with the process that holds it."""
    with contextlib.suppress(OSError):  # a file system without locks: versions are compared all the same
        fcntl.flock(level, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(level, fcntl.LOCK_UN)


def _remove_empty(levels: Sequence[int], folders: Sequence[str]) -> None:
    with contextlib.suppress(OSError):  # not empty
        for level, folder in zip(reversed(levels[:-1]), reversed(folders), strict=True):
            os.rmdir(folder, dir_fd=level)


def _walk(level: int, prefix: str, depth: int) -> Iterator[Entry]:
    with os.scandir(level) as found:
        entries = list(found)
    for entry in entries:
        key = prefix + entry.name
        try:
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder and depth < MAX_LEVELS:
                inner = os.open(entry.name, _FOLDER, dir_fd=level)
            else:
                facts = entry.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):  # gone meanwhile
            continue
        if is_folder and depth < MAX_LEVELS:
            try:
                yield from _walk(inner, f"{key}/", depth + 1)
            finally:
                os.close(inner)
        elif is_folder:
            yield entry_of(key, facts, f"lies more than {MAX_LEVELS} directories deep")
        elif stat.S_ISREG(facts.st_mode):
            yield entry_of(key, facts, PARTIAL if STAGING_NAME.fullmatch(entry.name) else "")
        else:
            yield entry_of(key, facts, LINK if stat.S_ISLNK(facts.st_mode) else SPECIAL)
