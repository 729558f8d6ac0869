"""An open table of which any range of rows can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.sources import reading
from sfg_dist.job.errors import DataError

_Array = NDArray[np.float64]


def overlaps(sizes: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """The pieces of a table, of so many rows each, that rows ``start`` to ``stop`` lie in.

    Of each come its number, its first row in the table, and the first row wanted of it and the row after the last,
    counted in the table.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    for piece in range(int(np.searchsorted(ends, start, side="right")), len(sizes)):
        first = int(ends[piece]) - sizes[piece]
        if first >= stop:
            break
        if sizes[piece]:
            yield piece, first, max(start, first), min(stop, int(ends[piece]))


@dataclass(frozen=True)
class ColumnChoice:
    """The columns to read of a table."""

    columns: Sequence[str] | None = None  # their names, in order; None is all
    identifiers: str = "refuse"  # "refuse" or "drop" whole numbers that float64 cannot tell apart, and free text
    # what the job says of columns, by name (data.types); see ``category_survey``
    asked: Mapping[str, Any] = field(default_factory=dict)
    # their types by name, where the table was opened before: then nothing is read to find them
    types: Mapping[str, ColumnType] | None = None


@dataclass(frozen=True, eq=False)
class RowReader:
    """An open table of which any range of rows can be read."""

    source: str  # path or URL
    columns: tuple[str, ...]  # one name a column
    num_rows: int  # rows of the table
    types: tuple[ColumnType, ...]  # of the columns; their offsets are those of the table read whole
    # (first row, row after the last, names of the columns) -> float64 (rows, columns)
    fetch: Callable[[int, int, Sequence[str]], _Array]
    read_as: str = ""  # how it is read, in words

    @classmethod
    def over(
        cls, values: _Array, source: str, columns: tuple[str, ...], types: tuple[ColumnType, ...], read_as: str = ""
    ) -> RowReader:
        """A table in memory, shape (num_rows, num_columns); all columns in their order are not copied."""

        def fetch(start: int, stop: int, asked: Sequence[str]) -> _Array:
            rows = values[start:stop]
            return rows if tuple(asked) == columns else rows[:, [columns.index(name) for name in asked]]

        return cls(source, columns, len(values), types, fetch, read_as)

    @property
    def types_by_name(self) -> dict[str, ColumnType]:
        """The types of the columns by name, in order."""
        return dict(zip(self.columns, self.types, strict=True))

    @property
    def num_bytes(self) -> int:
        """What the table takes in memory as float64."""
        return 8 * self.num_rows * len(self.columns)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> _Array:
        """Rows ``start`` to ``stop``: float64 of value - offset, shape (stop - start, number of columns), missing NaN.

        Raises:
            DataError: the range lies outside the table, or cannot be read.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise DataError(f"{self.source} has {self.num_rows} rows: rows {start} to {stop} are not all there")
        with reading(self.source):
            return self.fetch(start, stop, self.columns if columns is None else columns)

    def blocks(self, block_rows: int, columns: Sequence[str] | None = None) -> Iterator[_Array]:
        """All rows in order, ``block_rows`` at a time."""
        for start in range(0, self.num_rows, block_rows):
            yield self.read(start, min(start + block_rows, self.num_rows), columns)
