"""The clusters' ordering of a reference set, its subtrees sorted side by side: by threads here, or by Ray tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.flow import build_order

CLUSTER_ROWS = 2_000_000  # from here on a second of sorting a thread is worth sending rows to other nodes


def order_with_threads(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """``build_order`` with the subtrees on threads of this process."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return build_order(rows, mapper=pool.map)


def order_with_tasks(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """``build_order`` with the subtrees as tasks of the running Ray session."""
    import ray

    def mapper(function: Callable[..., Any], parts: Iterable[Any]) -> list[Any]:
        task = ray.remote(function).options(num_cpus=1)
        return ray.get([task.remote(part) for part in parts])

    return build_order(rows, mapper=mapper)
