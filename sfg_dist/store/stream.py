"""Pairs as batches in a seeded order, read ahead in bounded memory, each rank its own share.

The order of an epoch is fixed by (seed, epoch) alone. The blocks (shards) of the training rows are permuted and cut
into windows of about ``shuffle_rows`` rows. Within a window the rows of every block are permuted and spread evenly over
the window's whole length, at places with a random part. Global batch k is rows k * B to (k + 1) * B of that sequence.
So every pair is met once an epoch, every batch has rows of every block of its window, the global batches are the same
for any number of ranks, and an epoch can be entered at any batch.

What a rank reads: the rows of a window, in the order of the store, are cut into ``world_size`` ranges, and rank r
trains on those rows of each global batch that lie in range r. Because blocks are spread evenly, its part of a batch
is 1 / world_size of it but for a few rows, and because a range is whole shards but for its ends, all ranks together
read each shard once, but for those that a cut goes through: at most 1 + (world_size - 1) * u / w times the data, with
windows of w rows, and u rows in what is the least that can be read (a shard, or a chunk of 4 MiB of it). For the
defaults, shards of 4096 rows and windows of 262,144, that is 1.11 for 8 ranks at most, and 1 where the number of
ranks divides that of shards in a window.

Memory of a rank: its ranges of two windows, the one in use and the one being read, whatever the size of the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NotRequired, Self, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.plan import Stream, random_generator
from sfg_dist.store.rows import Range, RowSource, read_ranges

if TYPE_CHECKING:
    from sfg_dist.store.pairs import Pairs

NUM_READERS = 8
"""Shards that a rank reads at once: enough to hide the latency of an object store."""

Tables = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch."""

    step: int  # number of the global batch within the epoch
    rows: NDArray[np.int64]  # row numbers in the store, shape (num_rows,)
    tables: Tables  # rows of each source, float32, shapes (num_rows, columns)
    global_rows: int  # rows of the global batch, over all ranks

    @property
    def latents(self) -> NDArray[np.float32]:
        """Rows of the first source."""
        return self.tables[0]

    @property
    def labels(self) -> NDArray[np.float32]:
        """Rows of the second source."""
        return self.tables[1]


class Batching(TypedDict):
    """Which rows come in which batches."""

    num_rows: int  # rows to train on, the first ones of the store; the rest are held out for validation
    batch_size: int  # rows of a global batch, over all ranks
    seed: int  # of the order
    shuffle_rows: int  # rows of a window, rounded up to whole blocks
    rank: NotRequired[int]  # this rank, 0 by default
    world_size: NotRequired[int]  # number of ranks, 1 by default


class PairStream:
    """Batches of pairs for one rank; a context manager that ends its reading threads.

    Args:
        sources: arrays of equal length, read by slices of rows: latents, labels, and what else belongs to a pair.
        edges: first row of each block and the end of the last, int64, ascending: the shards of the store.
        blocks: numbers of the blocks to train on, where it is not all; ``num_rows`` cuts them as it cuts all.
        batching: which rows in which batches, see ``Batching``.

    Attributes:
        num_rows: rows of an epoch.
        rows_read: rows that this rank has read so far, from each source.
        max_rows_held: the most rows that were in memory at once.
    """

    def __init__(
        self,
        sources: Sequence[RowSource],
        *,
        edges: NDArray[np.int64],
        blocks: Sequence[int] | None = None,
        **batching: Unpack[Batching],
    ) -> None:
        num_rows, rank, world_size = batching["num_rows"], batching.get("rank", 0), batching.get("world_size", 1)
        lengths = {source.shape[0] for source in sources} | {int(edges[-1])}
        if len(lengths) != 1:
            raise ValueError(f"sources and blocks differ in their rows: {sorted(lengths)}")
        if not 0 < num_rows <= edges[-1]:
            raise ValueError(f"num_rows must lie in 1 to {edges[-1]}, got {num_rows}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        self._sources = tuple(sources)
        num_blocks = int(np.searchsorted(edges, num_rows, side="left"))
        starts = np.asarray(edges[:num_blocks], np.int64)
        stops = np.minimum(edges[1 : num_blocks + 1], num_rows)  # the last block may be cut by the held-out rows
        if blocks is not None:
            chosen = np.unique(np.asarray(blocks, np.int64))
            chosen = chosen[chosen < num_blocks]
            if not len(chosen):
                raise ValueError("none of the blocks holds rows to train on")
            starts, stops = starts[chosen], stops[chosen]
        self._starts, self._stops = starts, stops
        self.num_rows = int((stops - starts).sum())
        self.batch_size = batching["batch_size"]
        self.seed = batching["seed"]
        self.rank, self.world_size = rank, world_size
        block_rows = int(np.diff(edges).max())
        self.window_blocks = min(len(starts), max(1, -(-batching["shuffle_rows"] // block_rows)))
        self._held: dict[tuple[Range, ...], Tables] = {}
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="window")
        self._readers = ThreadPoolExecutor(max_workers=NUM_READERS, thread_name_prefix="read")
        self._pending: dict[tuple[int, int], Future[_Share]] = {}
        self.rows_read = 0
        self.max_rows_held = 0

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        names: Sequence[str] = ("latents", "labels"),
        *,
        blocks: Sequence[int] | None = None,
        **batching: Unpack[Batching],
    ) -> Self:
        """The stream of a store's pairs; ``names`` are its arrays, in the order of a batch's tables."""
        sources = [pairs.rows(name) for name in names]
        return cls(sources, edges=pairs.plan.shard_edges, blocks=blocks, **batching)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is being read ahead, and end the threads."""
        self._pending.clear()
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)

    @property
    def num_batches(self) -> int:
        """Global batches in an epoch; the last may be short."""
        return -(-self.num_rows // self.batch_size)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return -(-len(self._starts) // self.window_blocks)

    def epoch(self, epoch: int, start_step: int = 0, *, more: bool = False) -> Iterator[Batch]:
        """This rank's parts of the batches of one epoch, from global batch ``start_step`` on.

        Windows that lie wholly before ``start_step`` are not read. With ``more`` the next epoch follows: its first
        window is read while this one's last is in use.

        Raises:
            StoreError: rows cannot be read; the epoch can be begun again.
        """
        order = self._block_order(epoch)
        firsts = np.arange(0, len(order), self.window_blocks)
        ends = np.cumsum(np.add.reduceat((self._stops - self._starts)[order], firsts))
        position = start_step * self.batch_size
        first = int(np.searchsorted(ends, position, side="right"))
        carried: list[tuple[NDArray[np.int64], Tables]] = []
        for number in range(first, len(ends)):
            share = self._take(epoch, number)
            if number + 1 < len(ends):
                self._read_ahead(epoch, number + 1, keep=share)
            elif more:
                self._read_ahead(epoch + 1, 0, keep=share)
            begin = int(ends[number]) - share.window_rows
            while position < ends[number]:
                step = position // self.batch_size
                stop = min((step + 1) * self.batch_size, int(ends[number]))
                carried.append(share.part(position - begin, stop - begin))
                position = stop
                if stop == (step + 1) * self.batch_size or stop == self.num_rows:
                    yield Batch(step, *_joined(carried), stop - step * self.batch_size)
                    carried = []

    def _block_order(self, epoch: int) -> NDArray[np.int64]:
        return random_generator(self.seed, Stream.TRAIN_ORDER, epoch << 24).permutation(len(self._starts))

    def _take(self, epoch: int, number: int) -> _Share:
        """A window that was read ahead, or is read now."""
        self._read_ahead(epoch, number, keep=None)
        pending = self._pending.pop((epoch, number))
        try:
            return pending.result()
        finally:
            for other in self._pending.values():  # of an epoch that was not gone through
                other.cancel()
            self._pending.clear()

    def _read_ahead(self, epoch: int, number: int, keep: _Share | None) -> None:
        """Start to read a window; of those held, only it and ``keep`` stay."""
        if (epoch, number) in self._pending:
            return
        first = number * self.window_blocks
        # Ascending, so that a window of the same blocks is the same in every epoch, and need not be read again.
        window = np.sort(self._block_order(epoch)[first : first + self.window_blocks])
        kept = () if keep is None else keep.ranges
        self._pending[epoch, number] = self._loader.submit(self._load, window, epoch, number, kept)

    def _load(self, window: NDArray[np.int64], epoch: int, number: int, kept: tuple[Range, ...]) -> _Share:
        """This rank's rows of a window, and their places in its sequence."""
        sizes = (self._stops - self._starts)[window]
        window_rows = int(sizes.sum())
        low, high = (window_rows * rank // self.world_size for rank in (self.rank, self.rank + 1))
        ranges = _cut(self._starts[window], sizes, low, high)
        for held in [held for held in self._held if held not in (ranges, kept)]:
            del self._held[held]
        if ranges not in self._held:
            held_rows = sum(len(tables[0]) for tables in self._held.values())
            self.max_rows_held = max(self.max_rows_held, held_rows + high - low)
            self._held[ranges] = read_ranges(self._sources, ranges, readers=self._readers)
            self.rows_read += high - low
        generator = random_generator(self.seed, Stream.TRAIN_ORDER, (epoch << 24) | (number + 1))
        order = _spread(generator, sizes)
        places = np.flatnonzero((order >= low) & (order < high))
        order = order[places] - low
        rows = np.concatenate([np.empty(0, np.int64), *(np.arange(start, stop) for start, stop in ranges)])
        return _Share(ranges, window_rows, places, order, rows[order], self._held[ranges])


@dataclass(frozen=True)
class _Share:
    """A rank's rows of a window."""

    ranges: tuple[Range, ...]  # their rows in the store, in the order of the tables
    window_rows: int  # rows of the whole window
    places: NDArray[np.int64]  # places of this rank's rows in the window's sequence, ascending
    order: NDArray[np.int64]  # entries of the tables, in the order of the places
    rows: NDArray[np.int64]  # row numbers in the store, in the order of the places
    tables: Tables  # the rows of each source

    def part(self, start: int, stop: int) -> tuple[NDArray[np.int64], Tables]:
        """Row numbers and rows of this rank at places ``start`` to ``stop`` of the window's sequence."""
        first, last = np.searchsorted(self.places, (start, stop))
        entries = self.order[first:last]
        return self.rows[first:last], tuple(table[entries] for table in self.tables)


def _spread(generator: np.random.Generator, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sequence of a window whose blocks have these sizes: entries of its rows, each block's spread evenly over it.

    Row i of a block of n rows comes at (p_i + u) / n of the window, with a permutation p and u uniform in [0, 1).
    """
    keys = [(generator.permutation(size) + generator.random(size)) / size for size in sizes]
    return np.argsort(np.concatenate(keys), kind="stable")


def _cut(starts: NDArray[np.int64], sizes: NDArray[np.int64], low: int, high: int) -> tuple[Range, ...]:
    """Rows in the store of rows ``low`` to ``high`` of some blocks, one behind the other."""
    ends = np.cumsum(sizes)
    ranges = []
    for start, size, end in zip(starts.tolist(), sizes.tolist(), ends.tolist(), strict=True):
        before = end - size
        if before < high and end > low:
            ranges.append((start + max(0, low - before), start + min(size, high - before)))
    return tuple(ranges)


def _joined(parts: Sequence[tuple[NDArray[np.int64], Tables]]) -> tuple[NDArray[np.int64], Tables]:
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([rows for rows, _ in parts])
    return rows, tuple(np.concatenate(tables) for tables in zip(*(tables for _, tables in parts), strict=True))
