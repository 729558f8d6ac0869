"""Rows of a store read by ranges, through Dask: whole shards, several at once, straight into place.

A Dask graph is made of the ranges that are asked for and nothing else, so its cost does not grow with the number of
shards of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import StoreError, StoreUnavailableError
from sfg_dist.job.object_stores import reason_of, trouble_of

if TYPE_CHECKING:
    import dask.array as da

    from sfg_dist.store.arrays import Layout
    from sfg_dist.store.location import Location

MAX_BLOCKS = 16
"""Tasks of a read, of each source."""

Range = tuple[int, int]
"""First row and the row after the last."""


class RowSource(Protocol):
    """Rows that are read by slices: a Zarr array, ``StoredRows``, or anything alike."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __getitem__(self, rows: slice) -> Any:
        """Rows of a slice, as an array."""


class StoredRows:
    """One array of a store over all of its plan records.

    ``parts`` has for each record the function that opens its Zarr array, the array's row where the record begins, and
    the number of its rows. An array is opened when its rows are first read.
    """

    def __init__(self, parts: Sequence[tuple[Callable[[], Any], int, int]], dim: int, dtype: str = "float32") -> None:
        self._parts = tuple(parts)
        self._arrays: dict[int, Any] = {}
        self._lock = Lock()
        self._starts = np.concatenate([[0], np.cumsum([rows for _, _, rows in parts])])
        self.shape = (int(self._starts[-1]), dim)
        self.dtype = np.dtype(dtype)
        self.ndim = 2

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        found = []
        while start < stop:
            record = int(np.searchsorted(self._starts, start, side="right")) - 1
            end = min(stop, int(self._starts[record + 1]))
            open_array, origin, _ = self._parts[record]
            with self._lock:
                if record not in self._arrays:
                    self._arrays[record] = open_array()
            first = origin + start - int(self._starts[record])
            found.append(np.asarray(self._arrays[record][first : first + end - start]))
            start = end
        return found[0] if len(found) == 1 else np.concatenate([np.empty((0, self.shape[1]), self.dtype), *found])


class ObjectRows:
    """Rows of one Zarr array whose objects are one chunk each, read as they lie there.

    Zarr itself takes a millisecond for a chunk, whatever its size, in which a training step waits for a processor.
    """

    def __init__(self, location: Location, name: str, layout: Layout) -> None:
        self._location, self._name, self._layout = location, name, layout
        self.shape = layout.shape

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        step, found = self._layout.object_rows, []
        while start < stop:
            number = start // step
            end = min(stop, (number + 1) * step)
            key = f"{self._name}/{self._layout.object_key(number)}"
            if (content := self._location.read(key)) is None:  # as Zarr reads what is not there
                found.append(np.full((end - start, *self.shape[1:]), np.nan, self._layout.dtype))
            else:
                try:
                    found.append(self._layout.decode_chunk(content)[start - number * step : end - number * step])
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from None
            start = end
        empty = np.empty((0, *self.shape[1:]), self._layout.dtype)
        return found[0] if len(found) == 1 else np.concatenate([empty, *found])


class _Ranges:
    """Ranges of a source's rows, one behind the other, as Dask sees them: blocks of a few whole ranges.

    A task of Dask's costs as much as to read a shard from the page cache, so there are not more of them than threads
    that read can use.
    """

    ndim = 2

    def __init__(self, source: RowSource, ranges: Sequence[Range]) -> None:
        self._source = source
        size = max(1, -(-len(ranges) // MAX_BLOCKS))
        blocks = [ranges[first : first + size] for first in range(0, len(ranges), size)]
        self.block_rows = [sum(stop - start for start, stop in block) for block in blocks]
        firsts = np.cumsum([0, *self.block_rows]).tolist()
        self._blocks = dict(zip(firsts[:-1], blocks, strict=True))
        self.shape = (firsts[-1], source.shape[1])
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[np.float32]:
        found = [self._read(start, stop) for start, stop in self._blocks[key[0].start or 0]]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _read(self, start: int, stop: int) -> NDArray[np.float32]:
        try:
            return np.asarray(self._source[start:stop], dtype=np.float32)
        except StoreError:
            raise
        except Exception as error:  # zarr and its codecs raise anything here
            what = f"rows {start:,} to {stop:,} of the pairs cannot be read: {reason_of(error)}"
            if trouble_of(error) == "unavailable":
                raise StoreUnavailableError(what) from error
            raise StoreError(f"{what}; `sfg verify` says what is damaged and `sfg repair` makes it again") from error


def read_ranges(
    sources: Sequence[RowSource], ranges: Sequence[Range], *, readers: Executor | None = None
) -> tuple[NDArray[np.float32], ...]:
    """Rows of some ranges, one behind the other, from each source: float32, shape (rows of all ranges, columns).

    The sources are arrays of equal length. A range is one read of each. ``readers`` are the threads that read; as many
    as there are CPUs where not given.

    Raises:
        StoreError: they cannot be read, or a checksum does not fit.
    """
    import dask.array

    num_rows = sum(stop - start for start, stop in ranges)
    tables = tuple(np.empty((num_rows, source.shape[1]), np.float32) for source in sources)
    if not num_rows:
        return tables
    arrays = [dask_array(source, ranges) for source in sources]
    # Threads, never Ray's Dask scheduler: its tasks want CPUs of their own, and a training worker that holds them all
    # would wait for ever.
    options: dict[str, Any] = {} if readers is None else {"pool": readers}
    dask.array.store(arrays, list(tables), lock=False, scheduler="threads", **options)
    return tables


def dask_array(source: RowSource, ranges: Sequence[Range]) -> da.Array:
    """Ranges of a source's rows, one behind the other, as a Dask array whose blocks are whole ranges."""
    import dask.array

    rows = _Ranges(source, ranges)
    return dask.array.from_array(
        rows,
        chunks=(tuple(rows.block_rows), (source.shape[1],)),
        name=False,  # a name of chance: to hash the source would read it
        inline_array=True,
        meta=np.empty((0, 0), np.float32),
    )


def read_rows(array: da.Array, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of a Dask array, for the labels that are evaluated.

    Raises:
        StoreError: they cannot be read, or a checksum does not fit.
    """
    from dask.base import compute

    try:
        (rows,) = compute(array[start:stop], scheduler="threads")
    except Exception as error:
        what = f"one of rows {start} to {stop} of the pairs cannot be read: {reason_of(error)}"
        if trouble_of(error) == "unavailable":
            raise StoreUnavailableError(what) from error
        raise StoreError(f"{what}; `sfg verify` says what is damaged and `sfg repair` makes it again") from error
    return np.asarray(rows, dtype=np.float32)
