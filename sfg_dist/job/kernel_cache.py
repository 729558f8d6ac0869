"""Compiled kernels are kept beside the package, else in the user's cache, else in a private folder, else nowhere.

Numba knows the first two places. It raises where both are read-only or missing, as in containers. It also lets two
processes that compile one kernel for different types write to the same file, and each would run the other's code: here
they take turns.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import config
from numba.core.caching import IndexDataCacheFile

from sfg_dist.job.paths import private_folder


def cached_njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``njit`` with these options, whose compiled code is kept on disk where there is a place for it."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return _kept(njit(cache=True, **options)(function))
        except RuntimeError:  # no place that can be written
            folder = private_folder("sfg-kernels")
            if folder is not None:
                config.CACHE_DIR = folder
                return _kept(njit(cache=True, **options)(function))
        return njit(**options)(function)

    return decorate


def cache_file(dispatcher: Any) -> Any:
    """Numba's index of a kernel's compiled code; None where none is kept, or where another numba has no such field."""
    return getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)


def _kept(dispatcher: Any) -> Any:
    if isinstance(file := cache_file(dispatcher), IndexDataCacheFile):
        file.__class__ = _OneAtATime
    return dispatcher


class _OneAtATime(IndexDataCacheFile):
    """Numba's index and files of a kernel: one process writes at a time, and a file is there before its entry."""

    def save(self, key: Any, data: Any) -> None:
        """Keep the code of a signature."""
        with Path(f"{self._index_path}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            overloads = self._load_index()
            taken = set(overloads.values())
            name = overloads.get(key) or next(n for n in map(self._data_name, count(1)) if n not in taken)
            self._save_data(name, data)
            self._save_index(overloads | {key: name})
