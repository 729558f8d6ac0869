"""Compiled kernels are kept beside the package, else in the user's cache, else in a private folder, else nowhere.

Numba knows the first two places. It raises where both are read-only or missing, as in containers. It also lets two
processes that compile one kernel for different types write to the same file, and each would run the other's code: here
they take turns. Processes that need one kernel at once compile it once: the others wait, and load what the first kept.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import config
from numba.core.caching import IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock

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
        compile_signature = dispatcher.compile

        def compile_once(signature: Any) -> Any:
            # numba's lock comes first: else a thread that holds it could wait here for one that waits for it
            with global_compiler_lock, _locked(f"{file._index_path}.compiling"):
                return compile_signature(signature)

        dispatcher.compile = compile_once
    return dispatcher


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """A lock between processes; none where its file cannot be made, as beside kernels that came with an image."""
    with ExitStack() as stack:
        with suppress(OSError):
            lock = stack.enter_context(Path(path).open("wb"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _OneAtATime(IndexDataCacheFile):
    """Numba's index and files of a kernel: one process writes at a time, and a file is there before its entry."""

    def save(self, key: Any, data: Any) -> None:
        """Keep the code of a signature."""
        with _locked(f"{self._index_path}.lock"):
            overloads = self._load_index()
            taken = set(overloads.values())
            name = overloads.get(key) or next(n for n in map(self._data_name, count(1)) if n not in taken)
            self._save_data(name, data)
            self._save_index(overloads | {key: name})
