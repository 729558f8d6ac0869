"""From the reference in a store to the one that a process labels with: in memory, shared by the node, or streamed."""

from __future__ import annotations

import ctypes
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.distributed.labels import shared_blocks
from sfg_dist.distributed.machine import resident_memory
from sfg_dist.flow import PreparedReference, posterior_moments
from sfg_dist.flow.posterior.backends import SPARSE_DIM, SPARSE_ROWS, Backend
from sfg_dist.flow.posterior.block_file import BlockFile, block_bytes, reference_bytes, write_blocks
from sfg_dist.flow.posterior.clusters import clusters_shapes
from sfg_dist.flow.posterior.mapped import BYTES_A_ROW, give_up, temporary_file, write_whole
from sfg_dist.flow.posterior.normals import numbers_a_node
from sfg_dist.flow.posterior.reference import Reference, block_ranges, center_of, centred_keys
from sfg_dist.flow.posterior.reference_block import ReferenceBlock
from sfg_dist.flow.posterior.streaming import StreamedReference
from sfg_dist.job.errors import LabelingError, StoreError
from sfg_dist.job.fingerprint import TableDigest
from sfg_dist.job.words import GIB
from sfg_dist.store import Pairs, RowBlocks

_M_MMAP_THRESHOLD = -3  # in glibc's malloc.h
SHARED_BYTES = 64 << 20  # from here on a second copy on the node is worth a file
WORK_BYTES = 64 << 20  # of a batch on its way, and what the allocator keeps back
_BUILD_COPIES = 1.25  # of a block's rows beside it, while it is built (measured: 1.0 in 21 columns, 1.15 in 64)


@dataclass(frozen=True)
class ReferenceBytes:
    """Bytes that a reference takes in a process, beside interpreter and libraries (``base_bytes``)."""

    resident: int  # with all of it in memory
    streamed: int  # with one block at a time, which is the least


def reference_memory(num_reference: int, dim: int, *, has_clusters: bool, is_whole: bool = False) -> ReferenceBytes:
    """What a reference of so many rows and columns takes.

    Labels look at clusters with the full estimator, a tolerance, and rows enough.
    """
    if is_whole and has_clusters and is_large(num_reference):
        return _memory_in_passes(num_reference, dim)
    block_rows = max(stop - start for start, stop in block_ranges(num_reference, is_whole=is_whole))
    block = block_bytes(block_rows, dim, has_clusters=has_clusters)
    build = int(_BUILD_COPIES * 4 * (dim + 1) * block_rows)
    if is_whole and has_clusters:  # covariances of the nodes, and their laws at a time: of each process
        build += _normals_bytes(num_reference, dim)
    whole = reference_bytes(num_reference, dim, has_clusters=has_clusters, is_whole=is_whole)
    return ReferenceBytes(whole + build + WORK_BYTES, block + build + WORK_BYTES)


def is_large(num_reference: int) -> bool:
    """Whether a reference of one block is built in passes over files."""
    return len(block_ranges(num_reference)) > 1


def _memory_in_passes(num_reference: int, dim: int) -> ReferenceBytes:
    """``reference_memory`` of one block that is built in passes; its rows stay in the file."""
    part = 3 * 4 * (dim + 1) * max(stop - start for start, stop in block_ranges(num_reference))
    nodes = _normals_bytes(num_reference, dim) + 4 * math.prod(clusters_shapes(num_reference, dim)["bounds"])
    held = max(BYTES_A_ROW * num_reference + part, nodes) + WORK_BYTES
    return ReferenceBytes(held + reference_bytes(num_reference, dim, has_clusters=True, is_whole=True), held)


def _normals_bytes(num_reference: int, dim: int) -> int:
    """Of the nodes as normal laws, and of their numbers at a time."""
    return 4 * clusters_shapes(num_reference, dim)["moments"][0] * numbers_a_node(dim)


class StoredReference:
    """The reference of a store's labels, read a block at a time; ``in_blocks`` though the plan has it whole."""

    def __init__(self, pairs: Pairs, *, in_blocks: bool = False) -> None:
        self._pairs = pairs
        self.num_reference, self.dim = pairs.num_reference, pairs.plan.dim
        self.is_whole = pairs.plan.is_whole and not in_blocks
        self.ranges = block_ranges(self.num_reference, is_whole=self.is_whole)
        self.num_blocks = len(self.ranges)
        self.scale = pairs.plan.sigma_data
        self.has_clusters = pairs.has_order

    def center(self) -> Tensor:
        """Mean of the rows; all are read once.

        Raises:
            StoreError: the rows are not those that the plan was made for.
        """
        digest = TableDigest((self.num_reference, self.dim), np.float32)

        def read(start: int, stop: int) -> Tensor:
            rows = self.rows(start, stop)
            digest.update(rows)
            return torch.from_numpy(rows)

        center = center_of(read, self.num_reference)
        if digest.hexdigest() != self._pairs.plan.score_fingerprint:
            raise StoreError(
                f"{self._pairs.location.url}/{self._pairs.score_name} is not the table that the plan was made for: "
                f"it was changed or damaged; run `sfg verify` and `sfg repair` on the store"
            )
        return center

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows from ``start`` to ``stop``, shape (stop - start, dim)."""
        return self._pairs.score_rows(start, stop)

    def order(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """The clusters' ordering of a block's rows, None where labels sum over every row."""
        order = self._pairs.order_rows(start, stop)
        if order is not None and not _is_order(order, stop - start):
            raise StoreError(
                f"{self._pairs.location.url}/reference/order is not an ordering of the {stop - start} reference rows "
                f"from row {start} on: it was changed or damaged; run `sfg verify` and `sfg repair` on the store"
            )
        return order

    def block(
        self, number: int, center: Tensor, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> ReferenceBlock:
        """A block, centred and of spread 1; its clusters are built when they are first asked for."""
        start, stop = self.ranges[number]
        keys = centred_keys(torch.from_numpy(self.rows(start, stop)).to(device), center, dtype, self.scale)
        return ReferenceBlock(keys, order=self.order(start, stop) if dtype == torch.float32 else None)

    def streamed(
        self, device: torch.device, dtype: torch.dtype = torch.float32, *, num_kept: int = 0
    ) -> StreamedReference:
        """The reference, whose blocks are read anew in each loop over them; the first ``num_kept`` stay once read."""
        center = self.center()
        return StreamedReference(
            lambda number: self.block(number, center, device, dtype),
            center=center,
            num_reference=self.num_reference,
            device=device,
            dtype=dtype,
            num_kept=max(num_kept, 1 if self.num_blocks == 1 else 0),
            scale=self.scale,
            whole=self.is_whole,
        )

    def num_fitting(self, memory_gib: float | None, dtype: torch.dtype) -> int:
        """How many blocks of rows, without clusters, fit in memory with what it takes to read one more.

        ``memory_gib`` includes what this process holds already; by default half of what the machine has free is taken.
        """
        room = psutil.virtual_memory().available // 2
        if memory_gib is not None:
            room = int(memory_gib * GIB) - resident_memory()
        block_rows = max(stop - start for start, stop in self.ranges)
        block = block_rows * (self.dim + 1) * dtype.itemsize
        reading = block + int(_BUILD_COPIES * 4 * (self.dim + 1) * block_rows) + WORK_BYTES
        # The last of all is among those that are kept.
        if self.num_blocks * block + reading - block <= room:
            return self.num_blocks
        return max(0, (room - reading) // block)


def prepared_reference(
    pairs: Pairs, *, device: torch.device, memory_gib: float | None = None
) -> tuple[PreparedReference, shared_blocks.SharedBlocks | None]:
    """The reference of a store, ready for labels, and the node's file that it lies in, to be closed after.

    GPUs hold all of it. On the CPU a large reference is built once a node, in a file in shared memory that its
    processes map; where shared memory has no room, each process has its own. A reference that does not fit in
    ``memory_gib`` (by default, in the machine's free memory) is a file on disk, whose blocks are mapped one at a time.
    Where the disk has no room either, blocks are read and built anew for each evaluation.

    Raises:
        LabelingError: the budget is too small for one block, or the disk for a reference that is one block.
        StoreError: the store's reference is damaged.
    """
    stored = StoredReference(pairs)
    if memory_gib is not None:
        give_memory_back()
    if device.type != "cpu":
        return _resident(stored, device), None
    size = {"has_clusters": stored.has_clusters, "is_whole": stored.is_whole}
    need = reference_memory(stored.num_reference, stored.dim, **size)
    room = None if memory_gib is None else int(memory_gib * GIB) - base_bytes(stored.dim, stored.has_clusters)
    if room is not None and room < need.streamed:
        least = (need.streamed + int(memory_gib * GIB) - room) / GIB  # type: ignore[operator]
        raise LabelingError(
            f"labels.memory_gib = {memory_gib:g} cannot hold one block of the reference: a process needs "
            f"{least:.2f} GiB at least, and {(need.resident - need.streamed) / GIB + least:.2f} GiB to hold all of it"
        )
    total = reference_bytes(stored.num_reference, stored.dim, **size)
    shared = shared_blocks.blocks_directory(shared_blocks.SHARED_MEMORY) if total >= SHARED_BYTES else None
    name = pairs.plan.run_id  # a digest made here of all that decides the blocks; what the plan says may be a path
    is_shared = shared is not None and shared_blocks.blocks_path(shared, name).exists()
    free = psutil.virtual_memory().available
    is_resident = need.resident <= room if room is not None else is_shared or need.resident <= free
    directory = shared if is_resident else shared_blocks.blocks_directory(Path(tempfile.gettempdir()))
    table = None
    if directory is not None:
        table = shared_blocks.open_shared_blocks(directory, name, total, partial(_write, stored))
    if table is None and stored.is_whole and not is_resident:
        raise LabelingError(
            f'the reference of labels.certificate = "measured" is larger than memory, and needs {total / GIB:.1f} GiB '
            f"in the directory for temporary files, {tempfile.gettempdir()}: set TMPDIR to one with more room, or "
            f"raise labels.memory_gib"
        )
    if table is None:
        return _resident(stored, device) if is_resident else stored.streamed(device), None
    reference = StreamedReference(
        table.blocks.block,
        center=table.blocks.center,
        num_reference=stored.num_reference,
        device=device,
        # The only block of a whole one stays mapped: an evaluation reads the pages that it needs.
        num_kept=stored.num_blocks if is_resident or stored.is_whole else 0,
        scale=stored.scale,
        whole=stored.is_whole,
        is_over=partial(_holds_over, memory_gib),
    )
    return reference, table


def _is_order(order: NDArray[np.int64], num_rows: int) -> bool:
    """Whether each of so many rows is in an order once."""
    if len(order) != num_rows or order.min() < 0 or order.max() >= num_rows:
        return False
    seen = np.zeros(num_rows, bool)
    seen[order] = True
    return bool(seen.all())


def _resident(stored: StoredReference, device: torch.device) -> StreamedReference:
    """All of a reference in this process's memory; it is read now, so that damage is told before any shard is tried."""
    reference = stored.streamed(device, num_kept=stored.num_blocks)
    for _ in reference.blocks():
        pass
    return reference


def _write(stored: StoredReference, handle: int) -> None:
    center = stored.center()
    if stored.is_whole and stored.has_clusters and is_large(stored.num_reference):
        order = stored.order(0, stored.num_reference)
        assert order is not None
        write_whole(handle, stored.rows, order, center, stored.scale)
        return
    blocks = (stored.block(number, center, torch.device("cpu")) for number in range(stored.num_blocks))
    write_blocks(handle, blocks, center, has_clusters=stored.has_clusters)


def mapped_reference(
    rows: NDArray[np.float32], order: NDArray[np.int64], scale: float, memory_gib: float | None
) -> StreamedReference:
    """A reference of one block in a nameless temporary file, for a process that may hold ``memory_gib``.

    Raises:
        ConfigError: the directory for temporary files has no room.
    """
    if memory_gib is not None:
        give_memory_back()
    size = reference_bytes(len(rows), rows.shape[1], has_clusters=True, is_whole=True)

    def read(start: int, stop: int) -> NDArray[np.float32]:
        give_up(rows)  # what was read before
        return rows[start:stop]

    center = center_of(lambda start, stop: torch.from_numpy(read(start, stop)), len(rows))
    with temporary_file(size) as handle:
        write_whole(handle, read, order, center, scale)
        give_up(rows)
        block = BlockFile(handle).block(0)
    return StreamedReference(
        lambda _: block, center=center, num_reference=len(rows), device=torch.device("cpu"), num_kept=1, scale=scale,
        whole=True, is_over=partial(_holds_over, memory_gib),
    )  # fmt: skip


def blocks_in_file(table: RowBlocks, scale: float) -> StreamedReference:
    """The reference of a table that is larger than memory: its blocks are built once, in a nameless temporary file.

    Raises:
        ConfigError: the directory for temporary files has no room.
    """
    block_rows = block_ranges(table.num_rows)[0][1]
    has_clusters = table.num_rows >= SPARSE_ROWS and table.dim <= SPARSE_DIM
    parts = table.cut(block_rows)
    center = center_of(lambda *_: torch.from_numpy(next(parts)), table.num_rows)

    def blocks() -> Iterator[ReferenceBlock]:
        for rows in table.cut(block_rows):
            yield ReferenceBlock(centred_keys(torch.from_numpy(rows), center, torch.float32, scale))
            give_up(rows)

    with temporary_file(reference_bytes(table.num_rows, table.dim, has_clusters=has_clusters)) as handle:
        write_blocks(handle, blocks(), center, has_clusters=has_clusters)
        built = BlockFile(handle)
        mapped = [built.block(number) for number in range(len(block_ranges(table.num_rows)))]
    return StreamedReference(
        mapped.__getitem__, center=center, num_reference=table.num_rows, device=torch.device("cpu"), scale=scale
    )


def _holds_over(memory_gib: float | None) -> bool:
    return memory_gib is not None and resident_memory() > memory_gib * GIB


def give_memory_back() -> None:
    """Have the C library give freed blocks of 128 KiB and more back to the system at once.

    Otherwise each thread's heap keeps them for later, and the resident size grows from block to block.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 128 << 10)


def base_bytes(dim: int, has_clusters: bool) -> int:
    """What this process holds resident before it opens a reference, once its kernels are compiled."""
    rows = torch.randn(64, dim, generator=torch.Generator().manual_seed(0))
    tiny = Reference(rows, sigma_data=1.0)
    backends: tuple[Backend, ...] = ("sparse", "dense") if has_clusters else ("dense",)
    for backend in backends:
        for beta_sq in (0.5, 1e-8):  # the dense kernels are two, one for small noise
            posterior_moments(rows, tiny, alpha=1.0, beta_sq=beta_sq, variance=False, tolerance=1e-3, backend=backend)
    return resident_memory()
