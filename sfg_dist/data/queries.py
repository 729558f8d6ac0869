"""The user's own query points, for labels that are not made from random latents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import FLOAT, asked_categories
from sfg_dist.data.csv_dialect import TextFormat
from sfg_dist.data.sources import is_text
from sfg_dist.data.table import Table, open_table
from sfg_dist.data.transform import Transform
from sfg_dist.job.errors import DataError


def read_queries(
    source: str | None, transform: Transform, direction: str, text: TextFormat | None = None
) -> NDArray[np.float32] | None:
    """Query points in the flow's coordinates, float32 of shape (num_rows, dim), or None without a source.

    Latents (direction "decode") are taken as they stand, and rows of data ("encode") go through the transform.

    Raises:
        DataError: the table has other columns than it should, or is not finite.
    """
    if source is None:
        return None
    text = text if is_text(source) else None
    decode = direction == "decode"
    table = open_table(source, text=text) if decode else _open_rows(source, transform, text)
    width = transform.dim if decode else len(transform.columns)
    if table.values.shape[1] != width:
        raise DataError(f"labels.latents: {source} has {table.values.shape[1]} columns, expected {width}")
    values = table.retyped((FLOAT,) * width if decode else transform.types)
    finite = (np.isfinite(values) if decode else ~np.isinf(values)).all(axis=1)
    if not finite.all():
        raise DataError(f"labels.latents: {source} is not finite in row {int(np.argmin(finite))} (0-based)")
    rows = values.astype(np.float32) if decode else transform.forward(values, noise=None)
    return np.ascontiguousarray(rows)


def _open_rows(source: str, transform: Transform, text: TextFormat | None) -> Table:
    """Rows of the transform's columns: by name, and without these names by position."""
    asked = asked_categories(transform.columns, transform.types)
    try:
        return open_table(source, columns=list(transform.columns), text=text, asked=asked)
    except DataError as by_name:
        try:
            table = open_table(source, text=text)
        except DataError:
            raise by_name from None
        if set(transform.columns) <= set(table.columns):
            raise
        return table
