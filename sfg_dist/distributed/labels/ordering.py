"""The clusters' ordering of a reference's blocks; subtrees are sorted at the same time, by threads or by Ray tasks.

Each block has an ordering of its own, by its own row numbers; the orderings follow each other. ``is_whole`` says that
all rows are one block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.flow import block_ranges, build_order
from sfg_dist.flow.posterior.clusters import Mapper
from sfg_dist.flow.posterior.mapped import order_in_passes

CLUSTER_ROWS = 2_000_000  # from here on a second of sorting a thread is worth sending rows to other nodes


def order_with_threads(rows: NDArray[np.float32], *, is_whole: bool = False) -> NDArray[np.int64]:
    """``build_order`` of each block, with the subtrees on threads of this process."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return _order_blocks(rows, pool.map, is_whole)


def order_of_mapped(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """The order of one block whose rows are mapped from a file, and never all held.

    Raises:
        ConfigError: the directory for temporary files has no room.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return order_in_passes(rows, mapper=pool.map)


def order_with_tasks(rows: NDArray[np.float32], *, is_whole: bool = False) -> NDArray[np.int64]:
    """``build_order`` of each block, with the subtrees as tasks of the running Ray session."""
    import ray

    def mapper(function: Callable[..., Any], parts: Iterable[Any]) -> list[Any]:
        task = ray.remote(function).options(num_cpus=1)
        return ray.get([task.remote(part) for part in parts])

    return _order_blocks(rows, mapper, is_whole)


def _order_blocks(rows: NDArray[np.float32], mapper: Mapper, is_whole: bool) -> NDArray[np.int64]:
    ranges = block_ranges(len(rows), is_whole=is_whole)
    return np.concatenate([build_order(rows[start:stop], mapper=mapper) for start, stop in ranges])
