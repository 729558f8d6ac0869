"""Where compiled kernels are kept: beside the package, else in the user's cache, else in a private folder, else not.

Numba itself knows the first two places, and raises where it may write to neither: an installation and a home that are
read-only or missing, as batch accounts and containers have.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import config


def cached_njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``njit`` whose compiled code is kept on disk, where there is a place for it.

    Args:
        options: of ``njit``, without ``cache``.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no place that can be written
            folder = private_folder("sfg-kernels")
            if folder is not None:
                config.CACHE_DIR = folder
                return njit(cache=True, **options)(function)
        return njit(**options)(function)

    return decorate


def private_folder(name: str) -> str | None:
    """A folder of this user's alone among the temporary files, the same for each process; None where there is none.

    Cached code is run: nobody else may have laid the folder out.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        folder = os.path.join(tempfile.gettempdir(), f"{name}-{user}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        facts = os.lstat(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return None
    is_ours = facts.st_mode & 0o170077 == 0o040000 and (not hasattr(os, "getuid") or facts.st_uid == user)
    return folder if is_ours else None
