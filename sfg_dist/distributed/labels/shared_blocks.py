"""One copy of a reference's built blocks for each node: a file that the first process makes and the others map.

The file is in shared memory where all of it is to be resident, and in the directory for temporary files where it is
streamed. Each user holds a shared lock (flock) on it; its maker holds an exclusive one meanwhile. Locks go with their
process. So a process that begins or ends, and gets the exclusive lock at once, knows that nobody uses the file, and
removes it. What a killed process leaves is removed by the next one on the node.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

from sfg_dist.flow.posterior.block_file import BlockFile
from sfg_dist.job.file_room import take_room

SHARED_MEMORY = Path("/dev/shm")
SUFFIX = ".blocks"
_SPARE_ROOM = 1 / 16  # of a file system, left to others


class SharedBlocks:
    """An open file of blocks, which stays there while this object lives."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.blocks = BlockFile(handle)
        self._release = weakref.finalize(self, _release, path, handle)

    def close(self) -> None:
        """Give up this process's share, as its end would; the last one to do so removes the file."""
        self._release()


def open_shared_blocks(directory: Path, name: str, num_bytes: int, make: Callable[[int], None]) -> SharedBlocks | None:
    """The node's file of this name, made by this process if no other has one.

    Args:
        directory: where; see ``blocks_directory``.
        name: of the content: equal names must mean equal bytes.
        num_bytes: about how much room it takes.
        make: writes the content to an open, empty file.

    Returns:
        The open file, or None where there is no room for it.
    """
    path = blocks_path(directory, name)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            is_unused = _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_at(path, handle)
            # What is in an unused one may be cut off.
            if is_unused and not _make(path, handle, num_bytes, make):
                return None
            fcntl.flock(handle, fcntl.LOCK_SH)  # waits while another process makes it
            # Between the two locks, or before either, it may have been removed, or its maker have died.
            if _is_at(path, handle):
                with contextlib.suppress(ValueError):
                    table = SharedBlocks(path, handle)
                    handle = -1
                    return table
        finally:
            if handle >= 0:
                os.close(handle)


def blocks_path(directory: Path, name: str) -> Path:
    """Where a table of this name is."""
    return directory / f"{name}{SUFFIX}"


def blocks_directory(root: Path) -> Path | None:
    """This user's directory below ``root``, for nobody else to read; None where there can be none.

    Files in it that nobody uses are removed.
    """
    directory = root / f"sfg_dist-{os.getuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError:
        return None
    # Another user may have made it to read along.
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or not directory.is_dir() or directory.is_symlink():
        return None
    sweep(directory)
    return directory


def sweep(directory: Path) -> None:
    """Remove the files of blocks in a directory that no process uses."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                _remove_unused(path, handle)
            finally:
                os.close(handle)


def sweep_node() -> None:
    """Remove what killed processes of this user left behind on this node."""
    for root in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        if root.is_dir():
            blocks_directory(root)


def free_bytes(directory: Path) -> int:
    """Room in a file system that a table may take."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return 0
    return max(0, int(status.f_frsize * (status.f_bavail - _SPARE_ROOM * status.f_blocks)))


def _make(path: Path, handle: int, num_bytes: int, make: Callable[[int], None]) -> bool:
    """Fill the file; whether there was room."""
    try:
        os.ftruncate(handle, 0)
        if free_bytes(path.parent) < num_bytes:
            raise OSError("no room")
        # Taken beforehand: in shared memory a page that is not to be had would end the process.
        take_room(handle, num_bytes)
        make(handle)
    except OSError:
        path.unlink(missing_ok=True)
        return False
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _release(path: Path, handle: int) -> None:
    _remove_unused(path, handle)
    os.close(handle)


def _remove_unused(path: Path, handle: int) -> None:
    """Remove the open file if no other process holds a lock on it."""
    if _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_at(path, handle):
        path.unlink(missing_ok=True)


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, handle: int) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
