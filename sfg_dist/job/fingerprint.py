"""The identity of a table by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def fingerprint(rows: NDArray[Any]) -> str:
    """sha256 of a table's shape, dtype and bytes: its identity by content."""
    return fingerprint_of_blocks([rows], rows.shape, rows.dtype)


def fingerprint_of_blocks(blocks: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: DTypeLike) -> str:
    """``fingerprint`` of a table that comes in blocks of rows."""
    digest = TableDigest(shape, dtype)
    for rows in blocks:
        digest.update(rows)
    return digest.hexdigest()


class TableDigest:
    """``fingerprint`` of a table whose rows come one block after the other."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._digest = hashlib.sha256(f"{shape}{self._dtype.str}".encode())

    def update(self, rows: NDArray[Any]) -> None:
        """Take the next block."""
        self._digest.update(np.ascontiguousarray(rows, dtype=self._dtype).data)

    def hexdigest(self) -> str:
        """The fingerprint, once all rows were taken."""
        return self._digest.hexdigest()
