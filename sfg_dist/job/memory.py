"""How much memory and CPU time this process may use, within the limits of its control group and of the shell."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
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
    names = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for limit, used in _group_texts(root, groups, "memory", *names):
        with contextlib.suppress(ValueError):  # "max": no limit here
            yield int(limit), int(used)


def cpu_limits(root: Path, groups: Mapping[str, str]) -> Iterator[float]:
    """CPUs' worth of time that each group may use, from this process's own up; arguments as ``memory_limits``."""
    names = ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    for texts in _group_texts(root, groups, "cpu", *names):
        quota, period = " ".join(texts).split()
        with contextlib.suppress(ValueError):  # "max": no limit here
            if int(quota) > 0:
                yield int(quota) / int(period)


def _group_texts(
    root: Path, groups: Mapping[str, str], controller: str, names: Sequence[str], older_names: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """The content of files of a controller in each group, by their names in version 2 and in version 1."""
    for key, folder, files in (("", root, names), (controller, root / controller, older_names)):
        if key not in groups:
            continue
        inner = folder / groups[key].lstrip("/")
        for place in (inner, *inner.parents):
            with contextlib.suppress(OSError):  # not mounted in this container
                yield tuple((place / name).read_text(encoding="utf-8").strip() for name in files)
            if place == folder:
                break
