"""A table that was cleaned, split and mapped, as the stages of a run take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.described import TableReport
from sfg_dist.data.table import PARTS, LogDensity
from sfg_dist.data.transform import Transform
from sfg_dist.job.fingerprint import fingerprint_of_blocks
from sfg_dist.job.plan import DRAW_ROWS, Stream, random_generator, random_rows

_FINGERPRINT_ROWS = 1 << 16

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A table ready for the flow."""

    source: str  # the path, URL or name
    train: _Array  # training rows in the user's units, float64 (num_train, num_columns), without dequantization noise
    validation: _Array  # rows to choose by, same columns; there may be none
    test: _Array  # rows to judge by, same columns
    columns: tuple[str, ...]  # names, constant columns included
    transform: Transform  # fitted on the training rows with their noise
    log_density: LogDensity | None  # exact log density in nats of rows in the user's units, where it is known
    seed: int  # of the dequantization noise
    report: TableReport  # what was read, dropped, found and split
    sizes: Mapping[str, int]  # rows of each part
    # where each row of ``test`` stands in the table, or in the part that it was read from, counted from 0 without
    # incomplete rows
    test_places: NDArray[np.intp]
    # for a table larger than memory, reads all training rows again, in blocks of so many rows. ``train``,
    # ``validation`` and ``test`` then hold the first rows of each part only.
    read_train: Callable[[int], Iterator[_Array]] | None = None

    @property
    def types(self) -> dict[str, ColumnType]:
        """The types of the columns by name, in order."""
        return dict(zip(self.columns, self.transform.types, strict=True))

    def coded(self, rows: _Array) -> _Array:
        """Rows in the user's units as the numbers that figures read: see ``Transform.coded``."""
        return self.transform.coded(rows)

    @property
    def num_train(self) -> int:
        """Number of training rows, the reference's rows."""
        return self.sizes["train"]

    @property
    def is_whole(self) -> bool:
        """Whether all rows are held in memory."""
        return self.read_train is None

    def train_blocks(self, block_rows: int) -> Iterator[_Array]:
        """All training rows in the user's units, ``block_rows`` at a time."""
        if self.read_train is not None:
            return self.read_train(block_rows)
        return (self.train[start : start + block_rows] for start in range(0, self.num_train, block_rows))

    def reference_blocks(self, block_rows: int) -> Iterator[NDArray[np.float32]]:
        """The training rows as the flow sees them, with their noise, ``block_rows`` at a time."""
        start = 0
        for rows in self.train_blocks(block_rows):
            noise = noise_rows(self.seed, start, start + len(rows), self.transform.dim)
            yield self.transform.forward(rows, noise=noise)
            start += len(rows)

    def table_fingerprint(self) -> str:
        """``fingerprint`` of the training rows."""
        shape = (self.num_train, len(self.columns))
        blocks = (np.where(np.isnan(rows), np.nan, rows) for rows in self.train_blocks(_FINGERPRINT_ROWS))
        return fingerprint_of_blocks(blocks, shape, np.float64)  # NaN has many bit patterns

    def reference_fingerprint(self) -> str:
        """``fingerprint`` of the reference."""
        shape = (self.num_train, self.transform.dim)
        return fingerprint_of_blocks(self.reference_blocks(_FINGERPRINT_ROWS), shape, np.float32)

    def reference(self) -> NDArray[np.float32]:
        """The training rows as the flow sees them, with their noise, shape (num_train, dim)."""
        return self.flow_rows("train")

    def flow_rows(self, part: str) -> NDArray[np.float32]:
        """A part ("train", "validation", "test") as the flow sees it, with noise, shape (num_rows, dim)."""
        return self.transform.forward(getattr(self, part), noise=self.noise(part))

    def noise(self, part: str) -> _Array:
        """Dequantization noise of a part, in [0, 1), shape (num_rows, dim).

        Noise belongs to positions: the rows of train, validation and test are counted through.
        """
        start = sum(self.sizes[before] for before in PARTS[: PARTS.index(part)])
        return noise_rows(self.seed, start, start + len(getattr(self, part)), self.transform.dim)


def noise_rows(seed: int, start: int, stop: int, dim: int) -> _Array:
    """Dequantization noise of rows ``start`` to ``stop`` of a table, shape (stop - start, dim)."""
    shape = (DRAW_ROWS, dim)
    return random_rows(start, stop, lambda block: random_generator(seed, Stream.DEQUANTIZE, block).random(shape))
