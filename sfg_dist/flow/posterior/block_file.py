"""The blocks of a reference with all that was built over them, in one file that processes map.

A block begins at a page, and each of its arrays at a cache line. The file's last bytes say where its table of contents
is. They are written last, so a file without them was cut off. Mappings are copy-on-write, so that the compiled kernels
see ordinary arrays. Nobody writes to them, so processes on one machine share the pages, and a process gives up its
pages with the block.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.posterior.clusters import Clusters, clusters_shapes, levels
from sfg_dist.flow.posterior.reference import block_ranges
from sfg_dist.flow.posterior.reference_block import ReferenceBlock
from sfg_dist.job.file_room import take_room

_MAGIC = b"sfg_dist reference blocks 1\n"
_END = struct.Struct(f"<QQ{len(_MAGIC)}s")  # where the contents begin, their length
_LINE = 64
_PAGE = mmap.ALLOCATIONGRANULARITY
_CLUSTER_ARRAYS = ("blocks", "bounds", "moments", "offsets", "sizes")
_KINDS = dict.fromkeys(("keys", *_CLUSTER_ARRAYS), "<f4") | {"offsets": "<i8", "sizes": "<i8"}


class Entry(TypedDict):
    """A block in the table of contents; an array is its type, its shape and its place after the block's start."""

    start: int
    bytes: int
    largest_square: float
    clusters_largest_square: NotRequired[float]
    arrays: dict[str, tuple[str, list[int], int]]


class _Contents(TypedDict):
    """The table of contents, as JSON."""

    center: list[float]
    blocks: list[Entry]


def block_bytes(num_rows: int, dim: int, *, has_clusters: bool) -> int:
    """Bytes of one block's arrays, in a file or in memory: centred rows, leaves, and the clusters' bounds and moments.

    Without ``has_clusters`` all rows are summed, and there are rows and leaves alone.
    """
    shapes = clusters_shapes(num_rows, dim)
    items = dict.fromkeys(_CLUSTER_ARRAYS, 4) | {"offsets": 8, "sizes": 8} if has_clusters else {"blocks": 4}
    sizes = [num_rows * (dim + 1) * 4, *(int(np.prod(shapes[name])) * item for name, item in items.items())]
    return _up(sum(_up(size, _LINE) for size in sizes), _PAGE)


def reference_bytes(num_reference: int, dim: int, *, has_clusters: bool, is_whole: bool = False) -> int:
    """Bytes of all blocks of a reference, or of the one block of a whole one."""
    ranges = block_ranges(num_reference, is_whole=is_whole)
    whole = block_bytes(ranges[0][1] - ranges[0][0], dim, has_clusters=has_clusters)
    last = block_bytes(ranges[-1][1] - ranges[-1][0], dim, has_clusters=has_clusters)
    return whole * (len(ranges) - 1) + last


def write_blocks(handle: int, blocks: Iterable[ReferenceBlock], center: Tensor, *, has_clusters: bool) -> None:
    """Write the blocks of a reference, float32 on the CPU, to an open, empty file; one block is held at a time.

    ``center`` is the reference's, and ``has_clusters`` says whether to build clusters.

    Raises:
        OSError: no room is left, or the file cannot be written.
    """
    entries: list[Entry] = []
    place = 0
    for block in blocks:
        clusters = block.clusters if has_clusters else None
        arrays: dict[str, NDArray[Any]] = {"keys": block.keys.numpy()}
        entry: Entry = {"start": place, "bytes": 0, "largest_square": block.largest_square, "arrays": {}}
        if clusters is not None:
            arrays |= {name: getattr(clusters, name) for name in _CLUSTER_ARRAYS}
            entry["clusters_largest_square"] = clusters.largest_square
        else:
            arrays["blocks"] = block.leaves
        for name, values in arrays.items():
            entry["arrays"][name] = (values.dtype.str, list(values.shape), place - entry["start"])
            _write(handle, values, place)
            place = _up(place + values.nbytes, _LINE)
        place = _up(place, _PAGE)
        entry["bytes"] = place - entry["start"]
        entries.append(entry)
        del block, clusters, arrays, values  # before the next one is made
    finish_file(handle, center, entries)


def finish_file(handle: int, center: Tensor, entries: Sequence[Entry]) -> None:
    """Write the table of contents behind the blocks of a file, which is whole from then on."""
    contents: _Contents = {"center": center.tolist(), "blocks": list(entries)}
    place = entries[-1]["start"] + entries[-1]["bytes"]
    text = json.dumps(contents).encode()
    _write(handle, np.frombuffer(text + _END.pack(place, len(text), _MAGIC), np.uint8), place)
    os.ftruncate(handle, place + len(text) + _END.size)


class BlockArrays:
    """The arrays of a file's only block, with clusters, to be filled in through a mapping.

    Attributes:
        arrays: the arrays by name, zeros at first, but those of ``clusters.levels``.
        mapping: of the file.
        entry: the block in the table of contents; its largest squares are to be noted.
    """

    def __init__(self, handle: int, num_rows: int, dim: int) -> None:
        shapes = {"keys": (num_rows, dim + 1), **clusters_shapes(num_rows, dim)}
        self.entry: Entry = {"start": 0, "bytes": block_bytes(num_rows, dim, has_clusters=True), "largest_square": 0.0,
                             "arrays": {}, "clusters_largest_square": 0.0}  # fmt: skip
        take_room(handle, self.entry["bytes"])
        self.mapping = mmap.mmap(handle, self.entry["bytes"])
        self.arrays: dict[str, NDArray[Any]] = {}
        place = 0
        for name, shape in shapes.items():
            kind, count = np.dtype(_KINDS[name]), int(np.prod(shape))
            self.entry["arrays"][name] = (kind.str, list(shape), place)
            self.arrays[name] = np.frombuffer(self.mapping, kind, count=count, offset=place).reshape(shape)
            place = _up(place + count * kind.itemsize, _LINE)
        self.arrays["sizes"][:], self.arrays["offsets"][:] = levels(num_rows)

    def note_squares(self, keys: float | None, ordered: float | None) -> None:
        """Note the largest |x|^2 of some rows, as their keys have it and as their clusters have it."""
        if keys is not None:
            self.entry["largest_square"] = max(self.entry["largest_square"], keys)
        if ordered is not None:
            self.entry["clusters_largest_square"] = max(self.entry["clusters_largest_square"], ordered)


class BlockFile:
    """A whole file of blocks, open to be mapped; the file descriptor stays the caller's.

    Attributes:
        center: of the reference, float64, shape (dim,).

    Raises:
        ValueError: the file is not whole.
    """

    def __init__(self, handle: int) -> None:
        size = os.fstat(handle).st_size
        end = os.pread(handle, _END.size, max(0, size - _END.size))
        if len(end) < _END.size or _END.unpack(end)[2] != _MAGIC:
            raise ValueError("not a whole file of reference blocks")
        first, length, _ = _END.unpack(end)
        contents: _Contents = json.loads(os.pread(handle, length, first))
        self.center = torch.tensor(contents["center"], dtype=torch.float64)
        self._blocks = contents["blocks"]
        self._handle = handle

    def block(self, number: int) -> ReferenceBlock:
        """A block, mapped: its pages come as they are read, and go with it."""
        entry = self._blocks[number]
        memory = mmap.mmap(self._handle, entry["bytes"], access=mmap.ACCESS_COPY, offset=entry["start"])
        arrays = {
            name: np.frombuffer(memory, np.dtype(kind), count=int(np.prod(shape)), offset=place).reshape(shape)
            for name, (kind, shape, place) in entry["arrays"].items()
        }
        keys = torch.from_numpy(arrays["keys"])
        clusters = None
        if "bounds" in arrays:
            clusters = Clusters(
                order=np.zeros(0, np.int64),
                largest_square=entry["clusters_largest_square"],
                num_rows=len(keys),
                dim=keys.shape[1] - 1,
                **{name: arrays[name] for name in _CLUSTER_ARRAYS},
            )
        block = ReferenceBlock(keys, clusters=clusters, leaves=arrays["blocks"], release=partial(release, memory))
        block.__dict__["largest_square"] = entry["largest_square"]
        return block


def release(memory: mmap.mmap) -> None:
    """Give up this process's pages of a mapping to which nobody writes but through the file; they come again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED)


def _write(handle: int, values: NDArray[Any], place: int) -> None:
    data = np.ascontiguousarray(values).data.cast("B")
    while len(data):  # one call writes 2 GiB at most
        written = os.pwrite(handle, data, place)
        data, place = data[written:], place + written


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
