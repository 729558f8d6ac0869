"""Arrays of several columns that are saved end to end, with the number of values of each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import DataError


def cut(values: NDArray[Any], counts: NDArray[Any], what: str) -> list[NDArray[Any]]:
    """The arrays, of which each has so many of the values; ``what`` they are is for the message.

    Raises:
        DataError: the counts are no whole numbers of 0 or more, or are not those of all values.
    """
    sizes = counts.tolist() if counts.ndim == 1 and counts.dtype.kind == "i" else [-1]
    if min(sizes, default=0) < 0 or sum(sizes) != len(values):  # Python's whole numbers do not run over
        raise DataError(f"the saved transform is damaged: {what} are missing")
    return np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
