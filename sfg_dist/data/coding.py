"""Categories and missing values among the numbers of a flow column.

A category stands at a place 0, 1, 2 and so on of its column, in the order that like categories are neighbours
(``association``), and a missing value at one more. In a column of numbers a missing value is a number beyond one end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.end_to_end import cut
from sfg_dist.job.errors import DataError

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Coding:
    """What stands for categories and for a missing value in one flow column."""

    # of a category column, the place of each code, whole numbers from 0, none twice; else None
    places: _Array | None = None
    missing: float = np.nan  # the number that stands for a missing value; NaN where the column has none
    end: float = np.nan  # in a column of numbers, the end of the values that ``missing`` lies beyond

    @property
    def is_plain(self) -> bool:
        """Whether values are their own numbers."""
        return self.places is None and np.isnan(self.missing)

    @cached_property
    def codes_by_place(self) -> _Array:
        """Of a category column, the code at each place, NaN at that of a missing value."""
        assert self.places is not None
        codes = np.full(len(self.places) + (not np.isnan(self.missing)), np.nan)
        codes[self.places.astype(np.intp)] = np.arange(len(self.places))
        return codes

    def encode(self, values: _Array, column: str) -> _Array:
        """The numbers of codes, or of values with gaps, shape (num_rows,).

        Raises:
            DataError: a value is missing, or a code is none of the column's.
        """
        is_gap = np.isnan(values)
        if is_gap.any() and np.isnan(self.missing):
            raise DataError(
                f"column {column!r} has no value in row {int(np.argmax(is_gap))} (counted from 0), and the table that "
                "the transform was fitted to has no missing values there"
            )
        if self.places is None:
            return np.where(is_gap, self.missing, values) if is_gap.any() else values
        codes = np.where(is_gap, 0.0, values)
        is_wrong = (codes != np.floor(codes)) | (codes < 0) | (codes >= len(self.places))
        if is_wrong.any():
            raise DataError(f"column {column!r} holds {codes[is_wrong][0]:g}, which is no code of its categories")
        return np.where(is_gap, self.missing, self.places[codes.astype(np.intp)])

    def decode(self, numbers: _Array) -> _Array:
        """The codes, or values with gaps, that numbers stand for."""
        if self.places is not None:
            places = np.where(np.isnan(numbers), 0, np.rint(numbers)).clip(0, len(self.codes_by_place) - 1)
            return np.where(np.isnan(numbers), np.nan, self.codes_by_place[places.astype(np.intp)])
        if np.isnan(self.missing):
            return numbers
        side = np.sign(self.missing - self.end)
        is_gap = side * (numbers - (self.missing + self.end) / 2) > 0
        return np.where(is_gap, np.nan, np.minimum(side * numbers, side * self.end) * side)


def are_plain(codings: Sequence[Coding]) -> bool:
    """Whether no column has categories or missing values."""
    return all(coding.is_plain for coding in codings)


def codings_to_arrays(codings: Sequence[Coding]) -> dict[str, NDArray[Any]]:
    """Codings end to end, for a file of named arrays; none where all columns are plain."""
    if are_plain(codings):
        return {}
    places = [np.zeros(0) if coding.places is None else coding.places for coding in codings]
    return {
        "missing": np.array([[coding.missing, coding.end] for coding in codings]),
        "code_counts": np.array([len(some) for some in places], dtype=np.int64),
        "code_places": np.concatenate(places),
    }


def codings_from_arrays(arrays: Mapping[str, NDArray[Any]], dim: int) -> tuple[Coding, ...]:
    """The codings that ``codings_to_arrays`` wrote.

    Raises:
        DataError: the arrays do not fit each other, or are no codings.
        KeyError: one is missing.
    """
    if "missing" not in arrays:
        return (Coding(),) * dim
    missing, counts, places = (np.array(arrays[name]) for name in ("missing", "code_counts", "code_places"))
    is_whole = missing.shape == (dim, 2) and counts.shape == (dim,) and counts.dtype.kind == "i" and places.ndim == 1
    if not is_whole or missing.dtype != np.float64 or places.dtype != np.float64:
        raise DataError("the saved transform is damaged: its codings have no common shape")
    if np.isinf(missing).any():
        raise DataError("the saved transform is damaged: a missing value is infinite")
    found = []
    for (gap, end), some in zip(missing.tolist(), cut(places, counts, "places of categories"), strict=True):
        line = some if np.isnan(gap) else np.append(some, gap)
        if len(some) and not np.array_equal(np.sort(line), np.arange(len(line))):
            raise DataError("the saved transform is damaged: two categories at one place")
        if not len(some) and (np.isnan(gap) != np.isnan(end) or gap == end):
            raise DataError("the saved transform is damaged: a missing value among the others")
        found.append(Coding(some if len(some) else None, gap, end))
    return tuple(found)
