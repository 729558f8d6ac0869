"""How much memory this process may use, within the limits of its control group and of the shell."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def usable_bytes() -> int:
    """The machine's memory, or less where a control group, as of Slurm or a container, or the shell's limit says so."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits if soft == resource.RLIM_INFINITY else [*limits, soft])


@cache  # it is asked for each chunk of a table, and a group keeps its limits while a process runs
def _group_limits() -> list[int]:
    return [limit for limit, _ in memory_limits(GROUPS, own_groups())]


def own_groups() -> dict[str, str]:
    """The control group of this process by controller, "" for version 2; empty where there are none."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    groups: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path)
    return groups


def memory_limits(root: Path, groups: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of each group from this process's own up to the outermost that can be seen.

    Args:
        root: where the groups are mounted.
        groups: of ``own_groups``.
    """
    for controller, folder, names in (
        ("", root, ("memory.max", "memory.current")),
        ("memory", root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ):
        if controller not in groups:
            continue
        inner = folder / groups[controller].lstrip("/")
        for place in (inner, *inner.parents):
            try:
                limit, used = ((place / name).read_text(encoding="utf-8").strip() for name in names)
                yield int(limit), int(used)
            except (OSError, ValueError):  # not mounted in this container, or "max": no limit here
                pass
            if place == folder:
                break
