"""Clusters of a large reference in passes over mapped files, with the bits of those that are built in memory.

A reference of one block, as a measured certificate takes it, may be larger than memory. Its columns are gathered one
after the other, so that files are read and written from front to back. What is held is the order of the rows and one
column, 12 bytes a row, and the parts that are sorted.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from sfg_dist.flow.posterior import clusters
from sfg_dist.flow.posterior.block_file import BlockArrays, finish_file, release
from sfg_dist.flow.posterior.clusters import LEAF_ROWS, Mapper, build_order, fill_nodes, largest_square, make_blocks
from sfg_dist.flow.posterior.reference import block_ranges, centred_keys
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.file_room import take_room
from sfg_dist.job.words import size_of

SORTED_ROWS = 1 << 22  # sorted in memory at a time, all columns
BYTES_A_ROW = 12  # held while a reference is built: a place in the order, and one column
_CHUNK_ROWS = 1 << 17  # copied at a time; a multiple of LEAF_ROWS


class _Mapping(mmap.mmap):
    """A mapping whose pages may be given up, since what is written goes to its file."""


class Scratch:
    """Arrays in nameless temporary files, which are gone with the last of them."""

    def __init__(self) -> None:
        self._mappings: list[_Mapping] = []

    def array(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """A new array of zeros.

        Raises:
            ConfigError: the directory for temporary files has no room.
        """
        with temporary_file(math.prod(shape) * np.dtype(dtype).itemsize) as handle:
            self._mappings.append(_Mapping(handle, 0))
        return np.frombuffer(self._mappings[-1], dtype).reshape(shape)

    def release(self) -> None:
        """Give up the memory that the arrays take; they are read again from their files."""
        for mapping in self._mappings:
            release(mapping)


def give_up(rows: NDArray[Any]) -> None:
    """Give up the memory of an array if it is one of a ``Scratch``."""
    base: Any = rows
    while isinstance(base, np.ndarray | memoryview):
        base = base.obj if isinstance(base, memoryview) else base.base
    if isinstance(base, _Mapping):
        release(base)


@contextmanager
def temporary_file(size: int) -> Iterator[int]:
    """The descriptor of a nameless file of zeros; its room is taken, since a write without room ends the process.

    Raises:
        ConfigError: the directory for temporary files has no room.
    """
    with tempfile.TemporaryFile() as file:
        try:
            take_room(file.fileno(), size)
        except OSError as error:
            raise ConfigError(
                f"the directory for temporary files, {tempfile.gettempdir()}, has no room for {size_of(size)} that a "
                f"large reference takes ({error.strerror}): set TMPDIR to one with more"
            ) from error
        yield file.fileno()


def order_in_passes(rows: NDArray[np.float32], *, mapper: Mapper = map) -> NDArray[np.int64]:
    """As ``build_order``, over rows that may be mapped from a file.

    Raises:
        ConfigError: the directory for temporary files has no room for a copy of the rows.
    """
    num_rows, dim = rows.shape
    scratch = Scratch()
    columns = scratch.array((dim, num_rows))
    for start in range(0, num_rows, _CHUNK_ROWS):
        columns[:, start : start + _CHUNK_ROWS] = rows[start : start + _CHUNK_ROWS].T
        scratch.release()
        give_up(rows)
    order = np.arange(num_rows, dtype=np.int64)
    parts, sorted_parts = [(0, num_rows)], []
    while parts:
        low, high = parts.pop()
        if high - low <= SORTED_ROWS:
            sorted_parts.append((low, high))
            continue
        starts = clusters.split_once(columns, order, low, high)
        parts += zip(starts, [*starts[1:], high], strict=True)
        scratch.release()
    _gather(columns, order, scratch.release)
    for low, high in sorted_parts:
        own = np.ascontiguousarray(columns[:, low:high].T)
        order[low:high] = order[low:high][build_order(own, mapper=mapper)]
        scratch.release()
    return order


def write_whole(
    handle: int,
    read: Callable[[int, int], NDArray[np.float32]],
    order: NDArray[np.int64],
    center: Tensor,
    scale: float,
) -> None:
    """As ``block_file.write_blocks`` with clusters, for a reference of one block that is read a part at a time.

    Args:
        handle: of an open, empty file; it is filled through a mapping.
        read: gives the reference's rows from one number to another, float32, in their own units.
        order: the order of all rows, as ``build_order`` or ``order_in_passes`` gives it.
        center: of the reference.
        scale: of the reference.

    Raises:
        OSError: the file has no room.
        ConfigError: the directory for temporary files has no room.
    """
    num_rows, dim = len(order), len(center)
    scratch, block = Scratch(), BlockArrays(handle, num_rows, dim)

    def done() -> None:
        scratch.release()
        release(block.mapping)

    columns = scratch.array((dim, num_rows))
    for start, stop in block_ranges(num_rows):
        keys = centred_keys(torch.from_numpy(read(start, stop)), center, torch.float32, scale).numpy()
        block.arrays["keys"][start:stop] = keys
        columns[:, start:stop] = keys[:, :-1].T
        block.note_squares(float(keys[:, -1].max()), None)
        done()
    _gather(columns, order, done)
    ordered = scratch.array((num_rows, dim))
    for start in range(0, num_rows, _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, num_rows)
        part = ordered[start:stop]
        part[:] = columns[:, start:stop].T
        block.arrays["blocks"][start // LEAF_ROWS : -(-stop // LEAF_ROWS)] = make_blocks(part)
        block.note_squares(None, largest_square(part))
        done()
    fill_nodes(ordered, block.arrays["bounds"], block.arrays["moments"], done=done)
    finish_file(handle, center, [block.entry])


def _gather(columns: NDArray[np.float32], order: NDArray[np.int64], done: Callable[[], None]) -> None:
    """Put every column into this order; one is held at a time, and ``done`` is called after each."""
    for column in columns:
        values = np.array(column)
        for start in range(0, len(order), _CHUNK_ROWS):
            column[start : start + _CHUNK_ROWS] = values[order[start : start + _CHUNK_ROWS]]
        done()
