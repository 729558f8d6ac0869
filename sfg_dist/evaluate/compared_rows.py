"""The rows that are compared: checked, cut to a stated number, and brought to common units."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfg_dist.job.errors import DataError

Rows = NDArray[np.float64]
_BLOCK_ROWS = 10_000  # whose bytes are held at a time


def checked_rows(name: str, table: ArrayLike, *, dim: int | None = None, min_rows: int = 2) -> Rows:
    """A table as float64 of shape (num_rows, dim); messages call it ``name``, and ``dim`` None accepts any width.

    Raises:
        DataError: not two-dimensional, too few rows, another number of columns, or NaN or infinity in a row.
    """
    rows = np.asarray(table, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise DataError(f"{name}: expected a table of shape (rows, columns), found shape {rows.shape}")
    if dim is not None and rows.shape[1] != dim:
        raise DataError(f"{name}: expected {dim} columns as in the held-out table, found {rows.shape[1]}")
    if len(rows) < min_rows:
        raise DataError(f"{name}: expected at least {min_rows} rows, found {len(rows)}")
    finite = np.isfinite(rows)
    if not finite.all():
        bad_rows = np.flatnonzero(~finite.all(axis=1))
        bad_column = int(np.flatnonzero(~finite[bad_rows[0]])[0])
        raise DataError(
            f"{name}: {len(bad_rows)} of {len(rows)} rows hold NaN or infinity (the first in row "
            f"{bad_rows[0]}, column {bad_column}); leave them out, or find what made them: they cannot be judged"
        )
    return rows


def subset(table: Rows, max_rows: int, generator: np.random.Generator) -> Rows:
    """``max_rows`` rows drawn without replacement, in their own order; the whole table if it is no longer."""
    if len(table) <= max_rows:
        return table
    return table[np.sort(generator.choice(len(table), size=max_rows, replace=False))]


def scale_columns(train: Rows, *tables: Rows) -> tuple[Rows, list[Rows]]:
    """Subtract the training mean and divide by the training standard deviation, column by column.

    Columns that are constant in ``train`` have no scale and are left out of every table.

    Returns:
        The standard deviation of each column that is kept, shape (kept,), and the tables, each of shape (num_rows,
        kept).
    """
    kept = np.ptp(train, axis=0) > 0
    center = train[:, kept].mean(axis=0)
    offset = train[:, kept] - center
    largest = np.abs(offset).max(axis=0)  # divided out before squaring: so values of 1e200 have a deviation too
    deviation = (offset / largest).std(axis=0) * largest
    return deviation, [(table[:, kept] - center) / deviation for table in tables]


def share_in(table: Rows, rows: Rows) -> float:
    """The share of the rows that the table holds, missing values too; the table is read in parts."""
    keys = row_keys(rows)
    asked, known = set(keys), set[bytes]()
    for start in range(0, len(table), _BLOCK_ROWS):
        known |= asked.intersection(row_keys(table[start : start + _BLOCK_ROWS]))
    return float(np.mean([key in known for key in keys]))


def row_keys(rows: Rows) -> list[bytes]:
    """Bytes of each row that are equal where all of its numbers are, missing ones too."""
    canonical = np.ascontiguousarray(np.where(np.isnan(rows), np.nan, rows + 0.0))  # one NaN, and no negative zero
    return [row.tobytes() for row in canonical]
