"""The order of categories: like ones, that go with the same values of the other columns, are neighbours.

The order is that of the first axis of a multiple correspondence analysis: each column is a set of categories (numbers
in eighths), and the axis is the first one along which rows and their categories are each other's means. A missing value
is one more category.

References:
    Greenacre 2017, Correspondence Analysis in Practice, chapter 18.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy  # its parts are imported when they are first used
from numpy.typing import NDArray

from sfg_dist.data.row_reader import RowReader
from sfg_dist.job.errors import DataError

_Array = NDArray[np.float64]

_MOST_ROWS, _PIECE_ROWS = 1 << 15, 1 << 10
_NUM_BINS = 8
_BLOCK_ROWS = 1 << 16
_DIGITS = 8  # categories whose scores agree so far keep the order of their codes


@dataclass(frozen=True, eq=False)
class Axis:
    """The first axis: a score for each row by its categories."""

    edges: tuple[_Array | None, ...]  # of the bins of each column; None for one of codes
    scores: tuple[_Array, ...]  # of the categories of each column, the last one for a missing value

    @classmethod
    def of(cls, reader: RowReader) -> Axis | None:
        """The axis of training rows, or of 2^15 of them that lie evenly; None where one column alone has any."""
        rows = _spread_rows(reader)
        edges = tuple(
            None if type_.is_coded else _edges(column) for type_, column in zip(reader.types, rows.T, strict=True)
        )
        widths = [
            len(type_.categories) + 1 if some is None else len(some) + 2
            for type_, some in zip(reader.types, edges, strict=True)
        ]
        codes = _codes_of(rows, edges, widths)
        if sum(len(np.unique(column)) > 1 for column in codes.T) < 2:
            return None
        return cls(edges, tuple(np.split(_first_axis(codes, widths), np.cumsum(widths)[:-1])))

    def row_scores(self, rows: _Array) -> _Array:
        """The score of each row: the mean of those of its categories."""
        codes = _codes_of(rows, self.edges, [len(some) for some in self.scores])
        total = np.zeros(len(rows))
        for column, some in zip(codes.T, self.scores, strict=True):
            total += some[column]
        return total / max(len(self.scores), 1)

    def is_above(self, column: int) -> bool:
        """Whether a missing value of a column of numbers, or of an ordinal one, is nearer to its upper end."""
        *values, missing = self.scores[column].tolist()
        present = [value for value in values if value]  # 0 stands for a category that no row has
        return bool(present) and round(abs(missing - present[-1]), _DIGITS) < round(abs(missing - present[0]), _DIGITS)


def mean_scores(axis: Axis, reader: RowReader, columns: Sequence[int], block_rows: int) -> list[tuple[_Array, _Array]]:
    """For columns of codes, the rows of each code and their mean score; the last entry is that of a missing value."""
    counts = [np.zeros(len(axis.scores[column])) for column in columns]
    sums = [np.zeros(len(axis.scores[column])) for column in columns]
    for rows in reader.blocks(block_rows):
        scores = axis.row_scores(rows)
        for place, column in enumerate(columns):
            codes = _coded(rows[:, column], None, len(counts[place]))
            counts[place] += np.bincount(codes, minlength=len(counts[place]))
            sums[place] += np.bincount(codes, weights=scores, minlength=len(counts[place]))
    return [(some, total / np.maximum(some, 1)) for some, total in zip(counts, sums, strict=True)]


def order_of(counts: _Array, scores: _Array) -> NDArray[np.intp]:
    """The codes in the order of their scores; those of no row come first."""
    return np.lexsort([np.arange(len(counts)), np.round(scores, _DIGITS), counts > 0])


@dataclass(frozen=True, eq=False)
class Orders:
    """Where categories and missing values stand among the other values of their columns."""

    codes: Mapping[str, _Array]  # of category columns by name: codes in order, a missing value as NaN among them
    sides: Mapping[str, int]  # of columns of numbers with missing values: 1 beyond the upper end, -1 beyond the lower


def find_orders(train: RowReader, columns: Sequence[str], has_gaps: NDArray[np.bool_]) -> Orders:
    """The orders by training rows.

    Args:
        train: the training rows.
        columns: the flow's columns, by which the axis is found.
        has_gaps: which columns of ``train`` may have missing values.
    """
    types, gaps = train.types_by_name, dict(zip(train.columns, has_gaps.tolist(), strict=True))
    coded = [name for name in columns if types[name].is_coded]
    if not coded and not any(gaps[name] for name in columns):
        return Orders({}, {})
    flow = replace(train, columns=tuple(columns), types=tuple(types[name] for name in columns))
    axis = Axis.of(flow)
    places = {name: place for place, name in enumerate(columns)}
    sides = {
        name: 1 if axis is not None and axis.is_above(places[name]) else -1
        for name in columns
        if gaps[name] and name not in coded
    }
    if axis is None:
        means = [
            (np.ones(len(types[name].categories) + 1), np.zeros(len(types[name].categories) + 1)) for name in coded
        ]
    else:
        means = mean_scores(axis, flow, [places[name] for name in coded], _BLOCK_ROWS)
    codes = {}
    for name, (counts, scores) in zip(coded, means, strict=True):
        num_codes = len(scores) - 1
        if axis is None or types[name].kind == "ordinal":
            is_above = axis is not None and axis.is_above(places[name])
            line = np.arange(num_codes, dtype=np.float64)
            line = np.append(line, np.nan) if is_above else np.append(np.nan, line)
        else:
            found = order_of(counts, scores)
            line = np.where(found < num_codes, found, np.nan)
        codes[name] = line if gaps[name] else line[~np.isnan(line)]
    return Orders(codes, sides)


def _spread_rows(reader: RowReader) -> _Array:
    """At most ``_MOST_ROWS`` rows, in pieces that lie evenly over the table."""
    if reader.num_rows <= _MOST_ROWS:
        return reader.read(0, reader.num_rows)
    starts = np.linspace(0, reader.num_rows - _PIECE_ROWS, _MOST_ROWS // _PIECE_ROWS).astype(int)
    return np.concatenate([reader.read(start, start + _PIECE_ROWS) for start in starts.tolist()])


def _edges(column: _Array) -> _Array:
    """Inner edges of a column's bins, which hold about as many rows each."""
    values = column[~np.isnan(column)]
    return np.unique(np.quantile(values, np.arange(1, _NUM_BINS) / _NUM_BINS)) if len(values) else np.zeros(0)


def _codes_of(rows: _Array, edges: Sequence[_Array | None], widths: Sequence[int]) -> NDArray[np.intp]:
    columns = [_coded(*each) for each in zip(rows.T, edges, widths, strict=True)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0), dtype=np.intp)


def _coded(column: _Array, edges: _Array | None, width: int) -> NDArray[np.intp]:
    """The category of each value, a missing one the last."""
    is_gap = np.isnan(column)
    found = np.where(is_gap, 0, column) if edges is None else np.searchsorted(edges, column, side="right")
    if len(found) and not 0 <= found.min() <= found.max() < width - (edges is None):
        raise DataError(f"a column of {width - 1} categories holds a number that is none of their codes")
    return np.where(is_gap, width - 1, found).astype(np.intp)


def _first_axis(codes: NDArray[np.intp], widths: Sequence[int]) -> _Array:
    """The scores of all categories, of those in no row 0, column after column; the largest one is positive."""
    (num_rows, num_columns), starts = codes.shape, np.cumsum([0, *widths])
    places = (codes + starts[:-1]).ravel()
    counts = np.bincount(places, minlength=int(starts[-1])).astype(np.float64)
    roots = np.sqrt(np.maximum(counts, 1.0))
    shape = (num_rows, int(starts[-1]))
    entries = 1 / (roots[places] * np.sqrt(num_columns))
    table = scipy.sparse.csr_matrix((entries, places, np.arange(0, num_rows * num_columns + 1, num_columns)), shape)
    trivial = np.sqrt(counts / (num_rows * num_columns))

    def times(vector: _Array) -> _Array:
        vector = vector.ravel()
        product: _Array = table.T @ (table @ vector) - trivial * (trivial @ vector)
        return product

    start = np.random.default_rng(0).standard_normal(shape[1])
    operator = scipy.sparse.linalg.LinearOperator((shape[1],) * 2, matvec=times, dtype=np.float64)
    # where few categories leave nothing more to search, ARPACK goes on from a random vector
    _, vectors = scipy.sparse.linalg.eigsh(operator, k=1, v0=start, tol=1e-10, rng=np.random.default_rng(0))
    scores = np.where(counts > 0, vectors[:, 0] / roots, 0.0)
    scores /= np.abs(scores).max()
    largest = np.flatnonzero(np.abs(scores) > 1 - 1e-6)[0]
    return scores * np.sign(scores[largest])
