"""Checks what a table declares of its size, against this machine and against its file, before memory is taken for it.

A table that is larger than all memory is refused with both sizes. One that is far larger than its file, as no packing
makes it, was hardly ever written, and is refused too; small ones are let through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sfg_dist.job.errors import DataError
from sfg_dist.job.memory import usable_bytes
from sfg_dist.job.words import size_of

SMALL_BYTES = 64 << 20
"""Declared sizes up to this are not compared with the file's."""
MOST_GROWTH = 10_000
"""A table may be so many times as large as its file: columns of few values pack well."""
IN_PARTS = (".parquet", ".zarr", ".npy")


def check_held(source: str, what: str, shape: Sequence[int], dtype: Any = None) -> None:
    """Refuse a table that is larger than the memory that this process may use.

    ``shape`` and ``dtype`` are of the stored values, which are held as float64 beside; ``what`` is for the message.
    """
    num_bytes, memory = declared_bytes(shape, dtype), usable_bytes()
    if num_bytes > memory:
        is_in_parts = source.rstrip("/").lower().endswith(IN_PARTS)
        remedy = 'set labels.memory_gib, with data.shuffle = "none", to read it in parts, or ' if is_in_parts else ""
        raise DataError(
            f"{source}: {what} takes {size_of(num_bytes)} in memory, and {size_of(memory)} are all that may be used: "
            f"{remedy}put fewer rows or columns into the file"
        )


def check_stored(source: str, what: str, shape: Sequence[int], dtype: Any, stored: int) -> None:
    """Refuse a table that declares far more than its file, or all objects of its array, can hold: ``stored`` bytes.

    The dtype is None for numbers of 8 bytes; ``what`` is for the message.
    """
    num_bytes = declared_bytes(shape, dtype)
    if num_bytes > max(SMALL_BYTES, MOST_GROWTH * stored):
        raise DataError(
            f"{source}: {what} declares {size_of(num_bytes)}, and {size_of(stored)} are stored: hardly any of it was "
            f"ever written, or the file is damaged; write all of its values"
        )


def declared_bytes(shape: Sequence[int], dtype: Any = None) -> int:
    """Bytes of an array as it is stored, or as float64 where that is more."""
    return math.prod(map(int, shape)) * max(8, getattr(dtype, "itemsize", 8))
