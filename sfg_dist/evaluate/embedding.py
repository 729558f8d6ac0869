"""Rows of numbers and categories as points between which a distance means something."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from sfg_dist.evaluate.compared_rows import Rows
from sfg_dist.evaluate.judgement import JudgedColumn

MAX_ONE_HOT = 32  # categories of a column that have a coordinate each
_SEED = 0  # of the directions of columns with more categories


class Embedding:
    """Rows of shape (num_rows, num_columns) as points of shape (num_rows, dim).

    A number is standardised by the mean and the standard deviation of the real rows. A category is one coordinate of
    1/sqrt(2), so two rows that differ in one category are 1 apart, as two numbers one deviation apart are. In columns
    of more than ``MAX_ONE_HOT`` categories each is a random direction of that length instead, so two are about 1 apart.
    A missing value is a category of its own; the number beside it is then the mean. Equal rows are equal points.
    """

    def __init__(self, columns: tuple[JudgedColumn, ...], real: Rows, *others: Rows) -> None:
        self._columns = columns
        tables = (real, *others)
        self._gaps = [any(bool(np.isnan(table[:, k]).any()) for table in tables) for k in range(len(columns))]
        self._scales = [(0.0, 1.0) if c.is_discrete else _scale(real[:, k]) for k, c in enumerate(columns)]
        generator = np.random.default_rng(_SEED)
        self._points: list[tuple[Rows, Rows]] = []
        for k, column in enumerate(columns):
            values = np.unique(np.concatenate([table[:, k] for table in tables])) if column.is_discrete else np.empty(0)
            values = np.unique(values)  # NaN is the last, and one
            if len(values) <= MAX_ONE_HOT:
                points = np.eye(len(values))
            else:
                points = generator.standard_normal((len(values), MAX_ONE_HOT))
                points /= np.linalg.norm(points, axis=1, keepdims=True)
            self._points.append((values, points / np.sqrt(2)))

    @property
    def layout(self) -> Hashable:
        """What the coordinates of the real rows depend on beside these: which columns have gaps, and the categories."""
        return tuple(self._gaps), tuple(values.tobytes() for values, _ in self._points)

    def __call__(self, rows: Rows) -> Rows:
        """The points of rows, in the order of their columns."""
        parts = []
        for k, column in enumerate(self._columns):
            if column.is_discrete:
                values, points = self._points[k]
                parts.append(points[np.searchsorted(values, rows[:, k])])
                continue
            center, scale = self._scales[k]
            number = (rows[:, k] - center) / scale
            parts.append(np.nan_to_num(number, nan=0.0)[:, None])
            if self._gaps[k]:
                parts.append(np.isnan(number)[:, None] / np.sqrt(2))
        return np.concatenate(parts, axis=1)


def _scale(column: Rows) -> tuple[float, float]:
    """Mean and standard deviation of what is not missing; the deviation of a constant counts as 1."""
    present = column[~np.isnan(column)]
    if len(present) == 0 or np.ptp(present) == 0:
        return (float(present[0]) if len(present) else 0.0), 1.0
    center = float(present.mean())
    largest = float(np.abs(present - center).max())  # divided out before squaring: values of 1e200 have a deviation too
    return center, float(((present - center) / largest).std()) * largest
