"""Checks links within a folder from somebody else: none may lead out of it, and none to a pipe."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sfg_dist.job.errors import DataError, SfgError


def check_inside(source: str, root: Path, path: Path, refusal: type[SfgError] = DataError) -> None:
    """Refuse a file below a folder that is behind a link that leads out of it, and what is neither a file nor a folder.

    The folder itself may be a link: its user named it. A file that does not exist is not refused here. ``refusal`` is
    the kind of error that is raised.
    """
    try:
        is_link = stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return  # whoever reads the file reports that
    real = os.path.realpath(path) if is_link else os.path.join(os.path.realpath(path.parent), path.name)
    where = path.relative_to(root)
    if not Path(real).is_relative_to(os.path.realpath(root)):
        raise refusal(
            f"{source}: {where} is a link that leads out of the folder, or lies behind such a link: put the file "
            f"itself there, or name the folder where it is, {real if os.path.isdir(real) else os.path.dirname(real)}"
        )
    if os.path.exists(real) and not (os.path.isfile(real) or os.path.isdir(real)):
        raise refusal(f"{source}: {where} is neither a file nor a folder: take it away")
