"""Cells of columns: the intervals of probability of which a network draws one for each column of a mixed table.

A category is a cell of its own, and so is a missing value, a value that repeats beside a continuum, and each value of a
column that has few. Other values share cells of about equal probability. A cell is an interval of the standard normal's
distribution function of the score, so that its length is the share of training rows in it.

Cells are found from ``Transform.inverse_of`` alone: on a fine grid of probabilities, neighbours that give one value are
a run of it. A value that falls between two points of the grid goes into a cell with its neighbours, and is drawn by its
share there.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy  # its parts are imported when they are first used
from numpy.typing import NDArray

from sfg_dist.data.coding import are_plain
from sfg_dist.data.transform import Transform
from sfg_dist.job.errors import DataError

_Array = NDArray[np.float64]

MAX_CELLS = 128
"""Values that a column may have for each to be a cell; of others, the number of cells of equal probability."""
MAX_VALUES = 1000
"""Categories, and values beside a continuum, that are cells of their own: the commonest."""
_POINTS = 1 << 17
_BISECTIONS = 40


def draws_cells(transform: Transform, choice: bool | Literal["auto"]) -> bool:
    """Whether the network of a table draws cells, under ``train.cells``.

    Under "auto" it does where a column has categories or missing values.

    Raises:
        DataError: cells are asked for, and the table's labels are no normal scores.
    """
    if choice is True and not transform.curves:
        raise DataError(f'train.cells = true needs transform.kind = "quantile", and it is {transform.kind!r}')
    if choice == "auto":
        return bool(transform.curves) and not are_plain(transform.codings)
    return choice


def check_experts(transform: Transform, choice: bool | Literal["auto"], experts: int) -> None:
    """Refuse ``train.experts`` for a table whose network draws cells.

    Raises:
        DataError: with what to take instead.
    """
    if experts > 1 and draws_cells(transform, choice):
        raise DataError(
            f"train.experts = {experts} does not go with a network that draws cells, as that of a table with "
            f"categories or missing values does: take train.experts = 1, or train.cells = false"
        )


def cell_edges(transform: Transform, columns: NDArray[np.intp]) -> list[_Array]:
    """The probabilities between the cells of some flow columns, ascending, within (0, 1), one array a column.

    ``transform`` must be of kind "quantile": the scores of other kinds have no known law.
    """
    return [_edges_of(transform, int(column)) for column in columns]


def _edges_of(transform: Transform, column: int) -> _Array:
    places = (np.arange(_POINTS) + 0.5) / _POINTS
    values = _values(transform, column, places)
    starts = np.concatenate([[0], np.flatnonzero(_differ(values[1:], values[:-1])) + 1])
    counts = np.diff(np.append(starts, len(values)))
    least = len(values) // MAX_CELLS
    is_own = (counts >= least) | (len(starts) <= MAX_CELLS) | np.isnan(values[starts])
    if not transform.steps[column]:  # without a grid, only atoms and the ends of the range are more than one point
        is_own |= (counts > 1) & (np.argsort(np.argsort(-counts, kind="stable")) < MAX_VALUES)
    begins = _begins(counts, is_own, least)
    below = values[starts[begins] - 1]
    return _exact(transform, column, places[starts[begins] - 1], places[starts[begins]], below)


def _begins(counts: NDArray[np.intp], is_own: NDArray[np.bool_], least: int) -> NDArray[np.intp]:
    """The runs, but for the first, at which cells begin: one's own, or of neighbours until they hold ``least``."""
    begins, held = [], int(counts[0])
    for run in range(1, len(counts)):
        if is_own[run] or is_own[run - 1] or held >= least:
            begins.append(run)
            held = 0
        held += int(counts[run])
    return np.array(begins, dtype=np.intp)


def _exact(transform: Transform, column: int, low: _Array, high: _Array, below: _Array) -> _Array:
    """The probabilities at which a column ceases to have the values ``below``, each between ``low`` and ``high``."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_past = _differ(_values(transform, column, middle), below)
        low, high = np.where(is_past, low, middle), np.where(is_past, middle, high)
    return high


def _values(transform: Transform, column: int, places: _Array) -> _Array:
    """Values of one of the flow's columns at probabilities, shape (num_places,) in and out."""
    return transform.inverse_of(column, scipy.special.ndtri(places))


def _differ(first: _Array, second: _Array) -> NDArray[np.bool_]:
    """Whether values differ; missing values are all the same."""
    differ: NDArray[np.bool_] = (first != second) & ~(np.isnan(first) & np.isnan(second))
    return differ
