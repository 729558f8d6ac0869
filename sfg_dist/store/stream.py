"""Pairs as batches in a seeded order, through Dask, in bounded memory.

The order of an epoch is fixed by (seed, epoch) alone: the blocks (shards) of the training rows are permuted, cut into
windows of about ``shuffle_rows`` rows, and the rows are permuted within each window. Global batch k is rows k * B to
(k + 1) * B of that sequence; rank r takes rows r, r + world, ... of it. So every pair is met once an epoch, the global
batches are the same for any number of ranks, and an epoch can be entered at any batch.

Memory: the window in use and the one being read ahead, nothing else, however large the store is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sfg_dist.errors import StoreError, StoreUnavailableError
from sfg_dist.objects import reason_of, trouble_of
from sfg_dist.plan import Stream, random_generator

if TYPE_CHECKING:
    import dask.array as da

Window = tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes:
        step: number of the global batch within the epoch.
        rows: row numbers in the store, shape (num_rows,).
        latents: float32, shape (num_rows, dim).
        labels: float32, shape (num_rows, dim).
        global_rows: rows of the global batch, over all ranks.
    """

    step: int
    rows: NDArray[np.int64]
    latents: NDArray[np.float32]
    labels: NDArray[np.float32]
    global_rows: int


class PairStream:
    """Batches of pairs for one rank.

    Args:
        latents: Dask array (num_pairs, dim) in blocks of whole shards.
        labels: Dask array of the same shape and blocks.
        num_rows: rows to train on, the first ones of the store; the rest are held out for validation.
        batch_size: rows of a global batch, over all ranks.
        seed: of the order.
        shuffle_rows: rows of a window, rounded up to whole blocks.
        rank: this rank.
        world_size: number of ranks.

    Attributes:
        max_blocks_held: the most blocks that were in memory at once, at most two windows.
    """

    def __init__(
        self,
        latents: da.Array,
        labels: da.Array,
        *,
        num_rows: int,
        batch_size: int,
        seed: int,
        shuffle_rows: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if latents.chunks != labels.chunks:
            raise ValueError(f"latents and labels differ in their blocks: {latents.chunks} and {labels.chunks}")
        if not 0 < num_rows <= latents.shape[0]:
            raise ValueError(f"num_rows must lie in 1 to {latents.shape[0]}, got {num_rows}")
        if len(latents.chunks[1]) != 1:
            raise ValueError("a block must hold whole rows")
        self._arrays = (latents, labels)
        self._dim = latents.shape[1]
        edges = np.concatenate([[0], np.cumsum(latents.chunks[0])])
        num_blocks = int(np.searchsorted(edges, num_rows, side="left"))
        self._edges = np.minimum(edges[: num_blocks + 1], num_rows)  # the last block may be cut by the held-out rows
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.window_blocks = min(num_blocks, max(1, -(-shuffle_rows // latents.chunks[0][0])))
        self._held: dict[Window, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self.max_blocks_held = 0

    @property
    def num_batches(self) -> int:
        """Global batches in an epoch; the last may be short."""
        return -(-self.num_rows // self.batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from global batch ``start_step`` on.

        Windows that lie wholly before ``start_step`` are not read.
        """
        windows = self._windows(epoch)
        sizes = [sum(self._block_rows(block) for block in window) for window in windows]
        ends = np.cumsum(sizes)
        position = start_step * self.batch_size
        first = int(np.searchsorted(ends, position, side="right"))
        carried: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]] = []
        num_carried = 0
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
            pending = self._ahead(pool, windows, first, keep=())
            for number in range(first, len(windows)):
                window = windows[number]
                assert pending is not None
                latents, labels = pending.result()
                pending = self._ahead(pool, windows, number + 1, keep=window)
                order = random_generator(self.seed, Stream.TRAIN_ORDER, (epoch << 24) | (number + 1)).permutation(
                    sizes[number]
                )
                order = order[max(0, position - (int(ends[number]) - sizes[number])) :]
                row_of = np.concatenate([np.arange(self._edges[b], self._edges[b + 1]) for b in window])
                taken = 0
                while taken < len(order):
                    part = order[taken : taken + self.batch_size - num_carried]
                    taken += len(part)
                    carried.append((row_of[part], latents[part], labels[part]))
                    num_carried += len(part)
                    position += len(part)
                    if num_carried == self.batch_size or position == self.num_rows:
                        yield self._batch((position - 1) // self.batch_size, carried)
                        carried, num_carried = [], 0

    def _batch(
        self, step: int, parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]]
    ) -> Batch:
        rows, latents, labels = (
            parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        )
        mine = slice(self.rank, None, self.world_size)
        return Batch(step, rows[mine], latents[mine], labels[mine], len(rows))

    def _windows(self, epoch: int) -> list[Window]:
        """Windows of an epoch; blocks in ascending order within one, so that equal windows are the same object."""
        num_blocks = len(self._edges) - 1
        order = random_generator(self.seed, Stream.TRAIN_ORDER, epoch << 24).permutation(num_blocks)
        return [
            tuple(sorted(int(block) for block in order[i : i + self.window_blocks]))
            for i in range(0, num_blocks, self.window_blocks)
        ]

    def _block_rows(self, block: int) -> int:
        return int(self._edges[block + 1] - self._edges[block])

    def _ahead(
        self, pool: ThreadPoolExecutor, windows: list[Window], number: int, keep: Window
    ) -> Future[tuple[NDArray[np.float32], NDArray[np.float32]]] | None:
        """Start to read a window; of those held, only it and ``keep`` stay."""
        if number >= len(windows):
            return None
        window = windows[number]
        for held in [held for held in self._held if held not in (window, keep)]:
            del self._held[held]
        return pool.submit(self._load, window)

    def _load(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Rows of a window's blocks, read by Dask straight into place."""
        if window in self._held:
            return self._held[window]
        num_rows = sum(self._block_rows(block) for block in window)
        self.max_blocks_held = max(self.max_blocks_held, sum(map(len, self._held)) + len(window))
        tables = (np.empty((num_rows, self._dim), np.float32), np.empty((num_rows, self._dim), np.float32))
        offset = 0
        for block in window:
            # Threads, never Ray's Dask scheduler: its tasks want CPUs of their own, and a training worker that holds
            # them all would wait for ever.
            parts = _compute([array.blocks[block] for array in self._arrays], f"shard {block}")
            rows = self._block_rows(block)
            for table, part in zip(tables, parts, strict=True):
                table[offset : offset + rows] = part[:rows]
            offset += rows
        self._held[window] = tables
        return tables


def read_rows(array: da.Array, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of a Dask array, for the held-out pairs and the labels that are evaluated.

    Raises:
        StoreError: they cannot be read, or a checksum does not fit.
    """
    (rows,) = _compute([array[start:stop]], f"one of rows {start} to {stop}")
    return np.asarray(rows, dtype=np.float32)


def _compute(arrays: Sequence[da.Array], what: str) -> tuple[NDArray[np.float32], ...]:
    from dask.base import compute

    try:
        return tuple(compute(*arrays, scheduler="threads"))
    except Exception as error:
        if trouble_of(error) == "unavailable":
            raise StoreUnavailableError(f"{what} of the pairs cannot be read: {reason_of(error)}") from error
        raise StoreError(
            f"{what} of the pairs cannot be read: {reason_of(error)}; `sfg verify` says what is damaged and "
            f"`sfg repair` makes it again"
        ) from error
