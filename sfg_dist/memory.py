"""How much memory this process may use."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")


def usable_bytes() -> int:
    """The machine's memory, or less where a control group, as of Slurm or a container, or the shell's limit says so."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits if soft == resource.RLIM_INFINITY else [*limits, soft])


def _group_limits() -> Iterator[int]:
    """The limits of the control groups that this process is in, of both versions; other systems have none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            is_first = "memory" in controllers.split(",")
            if controllers and not is_first:
                continue
            folder, name = ("memory", "memory.limit_in_bytes") if is_first else ("", "memory.max")
            group = PurePosixPath(path.lstrip("/"))
            for level in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # "max" is none
                    yield int((_GROUPS / folder / level / name).read_text())
