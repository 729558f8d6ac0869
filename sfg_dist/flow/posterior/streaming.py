"""A reference whose blocks come one at a time, so that it need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.posterior.reference import PreparedReference
from sfg_dist.flow.posterior.reference_block import ReferenceBlock


class StreamedReference(PreparedReference):
    """A reference whose blocks are loaded when a loop comes to them, and dropped afterwards.

    Its evaluations have the bits of a ``Reference`` of the same rows. Every evaluation of the posterior is a loop over
    all blocks, so one loading serves all rows of a batch.

    Args:
        load: gives the block of a number, on ``device``; called from one thread.
        center: mean of the rows, from ``center_of``, shape (dim,), float64.
        num_reference: number of rows.
        device: where the posterior is computed.
        dtype: precision of the arithmetic.
        num_kept: the first so many blocks stay once they are loaded.
        scale: what the blocks' rows are divided by.
        spreads: standard deviation of each column, if it is known.
        whole: all rows are one block.
        is_over: whether this process holds more memory than it may; the kept blocks then give theirs up after an
            evaluation, where they are mapped from a file.

    Attributes:
        num_streamed: how often a block was loaded and not kept.
    """

    def __init__(
        self,
        load: Callable[[int], ReferenceBlock],
        *,
        center: Tensor,
        num_reference: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        num_kept: int = 0,
        scale: float = 1.0,
        spreads: Tensor | None = None,
        whole: bool = False,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(scale, spreads)
        self.is_whole = whole
        self.center, self.num_reference, self.device, self.dtype = center, num_reference, device, dtype
        self.num_streamed = 0
        self._load, self._num_kept, self._is_over = load, num_kept, is_over
        self._kept: dict[int, ReferenceBlock] = {}

    def blocks(self) -> Iterator[ReferenceBlock]:
        """The blocks in order, each loaded as the loop comes to it."""
        for number in range(self.num_blocks):
            yield self._block(number)

    def relieve(self) -> None:
        """Give up the memory of kept blocks where this process holds too much."""
        if self._is_over():
            for block in self._kept.values():
                block.release()

    def take(self, index: NDArray[np.integer]) -> Tensor:
        """The rows at ``index`` in the reference's own coordinates, float64 on the CPU, shape (len(index), dim)."""
        rows = torch.empty(len(index), self.dim, dtype=torch.float64)
        for number, (start, stop) in enumerate(self.block_ranges):
            places = np.flatnonzero((index >= start) & (index < stop))
            if len(places):
                keys = self._block(number).keys
                picked = keys[torch.as_tensor(index[places] - start, device=keys.device), :-1]
                rows[torch.from_numpy(places)] = self.scale * picked.double().cpu() + self.center
        return rows

    def _block(self, number: int) -> ReferenceBlock:
        if (block := self._kept.get(number)) is not None:
            return block
        block = self._load(number)
        if number < self._num_kept:
            self._kept[number] = block
        else:
            self.num_streamed += 1
        return block
