"""A table as other packages take it: numbers in the user's units, and whole codes of categories.

The columns are those that the flow sees: constants, and columns that others determine, are put back on the way out. A
missing category is a code of its own. A missing number is filled by the median, and a 0 or 1 in a column of its own
says so, since no package here draws a gap by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import Transform
from sfg_dist.studies.compare.judging import Rows


@dataclass(frozen=True)
class PlainColumns:
    """The way between the user's rows and a plain matrix, shape (num_rows, len(sizes))."""

    transform: Transform

    @cached_property
    def sources(self) -> NDArray[np.intp]:
        """The user's column of each flow column."""
        return np.flatnonzero(np.isnan(self.transform.constants))

    @cached_property
    def category_sizes(self) -> list[int]:
        """The number of categories of each flow column, a missing one included; 0 for numbers."""
        codings = self.transform.codings
        return [0 if coding.places is None else len(coding.codes_by_place) for coding in codings]

    @cached_property
    def gaps(self) -> list[int]:
        """The flow columns of numbers that may be missing."""
        codings = self.transform.codings
        return [i for i, coding in enumerate(codings) if coding.places is None and not np.isnan(coding.missing)]

    @property
    def sizes(self) -> list[int]:
        """The number of codes of each column of the matrix; 0 for numbers."""
        return [*self.category_sizes, *(2 for _ in self.gaps)]

    @property
    def words(self) -> dict[str, str]:
        """What the page says of gaps, where there are some."""
        return {"gaps in numbers": "filled by the median, a flag beside"} if self.gaps else {}

    def places(self, rows: Rows) -> Rows:
        """The place of each category of the flow columns that have some, shape (num_rows, num_such_columns)."""
        found: Rows = self.transform.coded(rows)[:, self.sources[np.flatnonzero(self.category_sizes)]]
        return found

    def put_places(self, rows: Rows, places: Rows) -> Rows:
        """The user's rows with the categories at ``places``; the array given is changed."""
        for column, place in zip(np.flatnonzero(self.category_sizes), places.T, strict=True):
            rows[:, self.sources[column]] = self.transform.codings[column].codes_by_place[place.astype(np.intp)]
        return self.transform.looked_up(rows)

    def encode(self, rows: Rows) -> Rows:
        """The matrix of the user's rows."""
        matrix = rows[:, self.sources]
        matrix[:, np.flatnonzero(self.category_sizes)] = self.places(rows)
        is_gap = np.isnan(matrix[:, self.gaps])
        medians = np.nanmedian(matrix[:, self.gaps], axis=0)
        matrix[:, self.gaps] = np.where(is_gap, medians, matrix[:, self.gaps])
        return np.hstack([matrix, is_gap])

    def decode(self, matrix: Rows) -> Rows:
        """The user's rows of a matrix: numbers on the grid and in the range of their column, gaps as NaN."""
        rows = np.tile(self.transform.constants, (len(matrix), 1))
        dim = self.transform.dim
        numbers = np.array(matrix[:, :dim], dtype=np.float64)
        numbers[:, self.gaps] = np.where(matrix[:, dim:] > 0.5, np.nan, numbers[:, self.gaps])
        rows[:, self.sources] = numbers
        self.put_places(rows, numbers[:, np.flatnonzero(self.category_sizes)])
        return self.transform.inverse(self.transform.forward(rows))
