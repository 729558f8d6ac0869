"""Room of a file that is taken before anything is written, since a write to a mapping without room ends the process."""

from __future__ import annotations

import errno
import os


def take_room(handle: int, num_bytes: int) -> None:
    """Make an open file at least so many bytes long, and its room its own.

    macOS has no call for that. There the file gets its length after a look at the free space, of which another process
    may still take some.

    Raises:
        OSError: the file system has no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, num_bytes)
        return
    status, room = os.fstat(handle), os.fstatvfs(handle)
    if num_bytes - status.st_blocks * 512 > room.f_frsize * room.f_bavail:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(handle, max(status.st_size, num_bytes))
