"""Where compiled kernels are kept: beside the package, else in the user's cache, else in a private folder, else not.

Numba itself knows the first two places, and raises where it may write to neither: an installation and a home that are
read-only or missing, as batch accounts and containers have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import config

from sfg_dist.folders import private_folder


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
                config.CACHE_DIR = folder  # type: ignore[attr-defined]
                return njit(cache=True, **options)(function)
        return njit(**options)(function)

    return decorate
