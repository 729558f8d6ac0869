"""Batches on their way to the device: on a GPU, copies run on a stream of their own while the batch before trains.

On a CPU a batch's arrays are taken as they are, without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_SLOTS = 2
"""Batches on the device at once: one in use, one being copied."""


class Batched(Protocol):
    """What the feed needs of a batch."""

    @property
    def tables(self) -> tuple[NDArray[np.float32], ...]:
        """Arrays of equal length."""


AnyBatch = TypeVar("AnyBatch", bound=Batched)


@dataclass
class _Slot:
    """Buffers of one batch, in page-locked host memory and on the device, and what was last done with them."""

    pinned: list[Tensor] = field(default_factory=list)
    device: list[Tensor] = field(default_factory=list)
    copied: Any = None
    used: Any = None


class DeviceFeed:
    """Moves batches to a device, one ahead of the one in use; ``cuda`` is where streams and events come from.

    A slot's host buffer is filled again only when its last copy has ended (the host waits for the event ``copied``),
    and its device buffer only when the step that read it has ended (the copy stream waits for ``used``). The stream
    that computes waits for ``copied`` before the batch is handed out. So with two slots the copy of batch k + 1 runs
    while batch k is computed, and no buffer is written while anything still reads it.
    """

    def __init__(self, device: torch.device, *, cuda: Any = torch.cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._is_staged = device.type == "cuda"
        if self._is_staged:
            self._stream = cuda.Stream(device)
            self._slots = [_Slot() for _ in range(NUM_SLOTS)]

    def __call__(self, batches: Iterable[AnyBatch]) -> Iterator[tuple[AnyBatch, tuple[Tensor, ...]]]:
        """Each batch with its tables as tensors on the device, valid until the next one is asked for."""
        if not self._is_staged:
            for batch in batches:
                yield batch, tuple(torch.from_numpy(np.ascontiguousarray(table)) for table in batch.tables)
            return
        waiting: tuple[AnyBatch, _Slot, tuple[Tensor, ...]] | None = None
        for number, batch in enumerate(batches):
            slot = self._slots[number % NUM_SLOTS]
            sent = (batch, slot, self._send(slot, batch.tables))
            if waiting is not None:
                yield from self._hand_out(*waiting)
            waiting = sent
        if waiting is not None:
            yield from self._hand_out(*waiting)

    def _send(self, slot: _Slot, tables: Sequence[NDArray[np.float32]]) -> tuple[Tensor, ...]:
        """Start the copies of a batch; its tensors, which may be read once ``slot.copied`` is waited for."""
        if slot.copied is not None:
            slot.copied.synchronize()  # the copy out of this host buffer; it ended long ago, but for a slow bus
        num_rows = len(tables[0])
        if not slot.pinned or len(slot.pinned[0]) < num_rows:
            if slot.used is not None:
                slot.used.synchronize()  # the old buffers go back to the allocator
            capacity = num_rows + num_rows // 8  # a rank's part varies by a few rows
            shapes = [(capacity, *table.shape[1:]) for table in tables]
            slot.pinned = [self._pinned(shape) for shape in shapes]
            slot.device = [self._on_device(shape) for shape in shapes]
            self._stream.wait_stream(self._cuda.current_stream(self._device))  # the allocator's order is that stream's
        for pinned, table in zip(slot.pinned, tables, strict=True):
            pinned[:num_rows].numpy()[...] = table
        with self._cuda.stream(self._stream):
            if slot.used is not None:
                self._stream.wait_event(slot.used)
            for target, pinned in zip(slot.device, slot.pinned, strict=True):
                self._copy(target[:num_rows], pinned[:num_rows])
            slot.copied = self._cuda.Event()
            slot.copied.record(self._stream)
        return tuple(target[:num_rows] for target in slot.device)

    def _pinned(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, pin_memory=True)

    def _on_device(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=self._device)

    def _copy(self, target: Tensor, pinned: Tensor) -> None:
        target.copy_(pinned, non_blocking=True)

    def _hand_out(
        self, batch: AnyBatch, slot: _Slot, tensors: tuple[Tensor, ...]
    ) -> Iterator[tuple[AnyBatch, tuple[Tensor, ...]]]:
        compute = self._cuda.current_stream(self._device)
        compute.wait_event(slot.copied)
        try:
            yield batch, tensors
        finally:
            slot.used = self._cuda.Event()
            slot.used.record(compute)
