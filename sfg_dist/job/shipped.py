"""Jobs and cluster files that come with the package: in a wheel inside it, in a checkout beside it."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from sfg_dist.job.search_path import PACKAGE_ROOT

FOLDERS = ("jobs", "cluster")


def shipped(folder: str) -> Path | None:
    """The folder ``jobs`` or ``cluster``; None where neither a wheel nor a checkout has it."""
    inside = Path(str(importlib.resources.files("sfg_dist"))) / "shipped" / folder
    if inside.is_dir():
        return inside
    # A folder of this name beside an installed package is somebody else's.
    beside = Path(PACKAGE_ROOT)
    return beside / folder if (beside / "pyproject.toml").is_file() and (beside / folder).is_dir() else None


def example_names() -> list[str]:
    """What ``example`` knows."""
    jobs = shipped("jobs")
    found = [] if jobs is None else sorted(path.stem for path in jobs.glob("*.toml"))
    return found + [name for name in ("study", "cluster") if example(name) is not None]


def example(name: str) -> Path | None:
    """A job file that comes with the package, or the folder ``study`` or ``cluster``; None where there is none."""
    jobs = shipped("jobs")
    if name == "cluster":
        return shipped("cluster")
    if jobs is None or name not in {"study", *(path.stem for path in jobs.glob("*.toml"))}:
        return None
    return jobs / name if name == "study" else jobs / f"{name}.toml"
