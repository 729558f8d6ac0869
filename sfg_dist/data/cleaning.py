"""Rows and columns that cannot be used as they stand: incomplete rows, values too large, constants, duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.naming import listed
from sfg_dist.data.row_reader import RowReader
from sfg_dist.data.transform import MAX_VALUE
from sfg_dist.data.unfit import UnfitColumnsError
from sfg_dist.job.errors import DataError

SCAN_ROWS = 1 << 16
_SIDE_BY_SIDE = 256
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # odd, and half of its bits are set: the golden ratio's

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CompleteRows:
    """Which rows of a table are complete, found block by block of ``SCAN_ROWS`` rows."""

    # complete rows before each block, and of the whole table at the end, shape (num_blocks + 1,)
    counts: NDArray[np.int64]
    block_ends: _Array  # ``column_ends`` of the complete rows of each block, shape (num_blocks, 3, num_columns)

    @property
    def num_rows(self) -> int:
        """Complete rows of the table."""
        return int(self.counts[-1])

    def select(self, reader: RowReader) -> RowReader:
        """The table without its incomplete rows, read by ranges like the table itself."""
        if self.num_rows == reader.num_rows:
            return reader

        def fetch(start: int, stop: int, columns: Sequence[str]) -> _Array:
            values, filled = np.empty((stop - start, len(columns))), 0
            places = [reader.columns.index(name) for name in columns]
            block = int(np.searchsorted(self.counts, start, side="right")) - 1
            while filled < len(values):
                # A missing value in any column leaves the row out, whether that column is asked for or not.
                rows = reader.read(block * SCAN_ROWS, min((block + 1) * SCAN_ROWS, reader.num_rows))
                rows = rows[np.isfinite(rows).all(axis=1)][max(0, start - int(self.counts[block])) :]
                part = rows[: len(values) - filled, places]
                values[filled : filled + len(part)] = part
                filled, block = filled + len(part), block + 1
            return values

        return replace(reader, num_rows=self.num_rows, fetch=fetch)

    def ends(self, reader: RowReader, num_rows: int) -> _Array:
        """``column_ends`` of the first ``num_rows`` complete rows."""
        last = int(np.searchsorted(self.counts, num_rows, side="right")) - 1
        ends = [*self.block_ends[:last]]
        if (start := int(self.counts[last])) < num_rows:
            ends.append(column_ends(reader.read(start, num_rows)))
        return joined_ends(ends)


def column_ends(rows: _Array) -> _Array:
    """Smallest and largest value of each column, infinity where it has none, and its gaps, shape (3, num_columns)."""
    low, high = _over_rows(np.minimum, rows, np.inf), _over_rows(np.maximum, rows, -np.inf)
    num_gaps = np.zeros(rows.shape[1])
    if np.isnan(low).any():
        is_gap = np.isnan(rows)
        num_gaps = is_gap.sum(axis=0).astype(np.float64)
        low = np.where(is_gap, np.inf, rows).min(axis=0, initial=np.inf)
        high = np.where(is_gap, -np.inf, rows).max(axis=0, initial=-np.inf)
    return np.stack([low, high, num_gaps])


def _over_rows(reduction: np.ufunc, rows: _Array, initial: float) -> _Array:
    """A reduction of each column; rows side by side make vectors, over which numpy is 20 times as fast."""
    num_wide = len(rows) - len(rows) % _SIDE_BY_SIDE
    wide = reduction.reduce(rows[:num_wide].reshape(-1, _SIDE_BY_SIDE * rows.shape[1]), axis=0, initial=initial)
    parts = np.concatenate([wide.reshape(-1, rows.shape[1]), rows[num_wide:]])
    reduced: _Array = reduction.reduce(parts, axis=0, initial=initial)
    return reduced


def joined_ends(ends: Sequence[_Array]) -> _Array:
    """``column_ends`` of several tables, one below the other."""
    low, high, num_gaps = np.stack(ends, axis=1)
    return np.stack([low.min(axis=0), high.max(axis=0), num_gaps.sum(axis=0)])


def find_complete(reader: RowReader, missing: str) -> CompleteRows:
    """The complete rows of a table: with ``missing`` "keep" all, with "drop" those without a missing value.

    A table with missing values is refused if ``missing`` is "refuse", and one with infinite values unless it is "drop".
    One with a column without values, or with a value larger than the flow's arithmetic can hold, is always refused.
    """
    if missing not in ("keep", "refuse", "drop"):
        raise DataError(f'data.missing = {missing!r}: expected "keep", "drop" or "refuse"')
    num_columns = len(reader.columns)
    num_complete, ends, num_incomplete = [0], [], 0
    num_gaps = np.zeros(num_columns, dtype=np.intp)
    counts, first_bad = np.zeros(num_columns, dtype=np.intp), np.full(num_columns, -1, dtype=np.intp)
    too_large: UnfitColumnsError | None = None
    for number, rows in enumerate(reader.blocks(SCAN_ROWS)):
        bad = np.isinf(rows) if missing == "keep" else ~np.isfinite(rows)
        complete, is_bad = rows, bool(bad.any())
        if is_bad:
            counts += bad.sum(axis=0)
            for column in np.flatnonzero(bad.any(axis=0) & (first_bad < 0)):
                first_bad[column] = number * SCAN_ROWS + int(np.argmax(bad[:, column]))
            is_kept = ~bad.any(axis=1)
            num_incomplete += int((~is_kept).sum())
            complete = rows[is_kept]
        num_complete.append(num_complete[-1] + len(complete))
        ends.append(column_ends(complete))
        num_gaps += np.isnan(rows).sum(axis=0) if is_bad else ends[-1][2].astype(np.intp)
        if too_large is None and max(ends[-1][1].max(), -ends[-1][0].min()) > MAX_VALUE:
            row, column = np.argwhere((np.abs(rows) > MAX_VALUE) & ~bad.any(axis=1, keepdims=True))[0]
            name, value = reader.columns[column], float(rows[row, column])
            too_large = UnfitColumnsError(
                f"{reader.source}: column {name!r} holds {value} in row {number * SCAN_ROWS + int(row)} (counted from "
                f"0): expected finite numbers up to {MAX_VALUE:g}",
                {name: f"it holds {value}, beyond {MAX_VALUE:g}"},
            )
    empty = (num_gaps == reader.num_rows) if missing == "keep" else (counts == reader.num_rows)
    if empty.any():
        counts = np.where(empty, reader.num_rows, counts)
    if counts.any() and (missing != "drop" or empty.any()):
        first_row = int(first_bad[np.flatnonzero(counts)[0]])
        raise _missing_values(reader, counts, first_row, num_incomplete)
    if too_large is not None:
        raise too_large
    return CompleteRows(np.array(num_complete, dtype=np.int64), np.array(ends).reshape(-1, 3, num_columns))


def _missing_values(reader: RowReader, counts: NDArray[np.intp], first_row: int, num_incomplete: int) -> DataError:
    """The refusal of a table with missing or infinite values, of which each column has so many (``counts``).

    ``first_row`` is the first row in which the first column concerned has one.
    """
    source, names = reader.source, reader.columns
    if empty := [name for name, count in zip(names, counts, strict=True) if count == reader.num_rows]:
        return DataError(
            f"{source}: {'column' if len(empty) == 1 else 'columns'} {listed(empty)} without a finite value: choose "
            "the columns that have values with data.columns"
        )
    affected = np.flatnonzero(counts)
    more = [f"{names[column]!r} has {counts[column]}" for column in affected[1:6]]
    if len(affected) > 6:
        more.append(f"{len(affected) - 6} more columns have some")
    return DataError(
        f"{source}: column {names[affected[0]]!r} has {counts[affected[0]]} missing or infinite values, the first in "
        f"row {first_row} (counted from 0){'; ' if more else ''}{', '.join(more)}; "
        f'set data.missing = "drop" to leave out the {num_incomplete} incomplete rows of {reader.num_rows}, '
        "or leave columns out with data.columns"
    )


def find_constants(
    source: str, ends: _Array, types: Mapping[str, ColumnType], constant: str, *, where: str, known: Sequence[str] = ()
) -> dict[str, float]:
    """The columns that never change, with their value, without those ``known``; refused unless ``constant`` is "keep".

    ``ends`` are the ``column_ends``; ``types`` are by name, in order; ``where`` says for messages which rows these are.
    A column with missing values changes.
    """
    if constant not in ("refuse", "keep"):
        raise DataError(f'data.constant = {constant!r}: expected "refuse" or "keep"')
    is_constant = (ends[0] == ends[1]) & (ends[2] == 0)
    found = {
        name: float(low)
        for name, low, is_found in zip(types, ends[0], is_constant, strict=True)
        if is_found and name not in known
    }
    if found and constant == "refuse":
        first, value = next(iter(found.items()))
        raise DataError(
            f"{source}: {'column' if len(found) == 1 else 'columns'} {listed(list(found))} "
            f"{'is' if len(found) == 1 else 'are'} constant over {where} "
            f"({first!r} is always {types[first].shown(value)}); "
            'set data.constant = "keep" to leave such columns out of the flow and put them back in samples, '
            "or leave them out with data.columns"
        )
    if is_constant.all():
        raise DataError(f"{source}: every column is constant over {where}: there is nothing to learn")
    return found


def num_duplicates(rows: _Array) -> int:
    """How many rows are equal to an earlier one.

    Examples:
        >>> num_duplicates(np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]]))
        1
    """
    alive = _alike(rows)
    groups = np.zeros(len(alive), dtype=np.int64)
    num_groups = 1
    for column in range(rows.shape[1]):
        if not len(alive):
            return 0
        distinct, codes = np.unique(rows[alive, column], return_inverse=True)
        _, groups, counts = np.unique(groups * len(distinct) + codes, return_inverse=True, return_counts=True)
        is_shared = counts > 1
        kept = is_shared[groups]
        groups = (np.cumsum(is_shared) - 1)[groups[kept]]
        alive, num_groups = alive[kept], int(is_shared.sum())
    return len(alive) - num_groups


def _alike(rows: _Array) -> NDArray[np.intp]:
    """The rows that share a number with another one; equal rows have equal numbers, and hardly any others do."""
    numbers = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), SCAN_ROWS):
        part = numbers[start : start + SCAN_ROWS]
        part[:] = 0
        for column in (rows[start : start + SCAN_ROWS] + 0.0).view(np.uint64).T:  # -0 and 0 are equal
            part ^= column
            part *= _MIXER
            part ^= part >> np.uint64(29)
    ordered = np.sort(numbers)
    shared = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(shared):
        return np.zeros(0, np.intp)
    return np.flatnonzero(shared[np.searchsorted(shared, numbers).clip(0, len(shared) - 1)] == numbers)
