"""Values of columns on a grid spread over their cells by noise, and the cells of what lies on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.grid import Grid
from sfg_dist.job.errors import DataError

_Array = NDArray[np.float64]

_FINE = 2.0**31  # with more cells, a cell and its noise together are rounded noticeably
_EDGE = 2.0**-20  # the noise keeps off the ends of its cell


def cells_of(grid: Grid, values: _Array) -> _Array:
    """The cell that each value lies in."""
    cells: _Array = np.floor((values - grid.offset) / grid.step)
    return cells


def cells_within(grid: Grid, ends: Sequence[float | str]) -> _Array:
    """First and last cell of a range; one that is open stays so."""
    with np.errstate(invalid="ignore"):  # of an open end
        low, high = grid.coordinates(np.array(ends, dtype=np.float64))
    return np.array([np.ceil(low), np.floor(high)])


def spread_rows(rows: _Array, grids: Sequence[Grid | None], origins: _Array, noise: _Array | None) -> _Array:
    """Flow columns in the user's units, with the noise added to those on a grid."""
    if noise is not None and noise.shape != rows.shape:
        raise DataError(f"noise has shape {noise.shape}: expected (num_rows, dim) = {rows.shape}")
    spread = rows.astype(np.float64)
    for index, grid in enumerate(grids):
        if grid:
            added: Any = 0.5 if noise is None else noise[:, index].clip(_EDGE, 1 - _EDGE)
            inner = Grid(grid.step, grid.offset - float(origins[index]))
            places = grid.coordinates(rows[:, index])
            spread[:, index] = inner.offset + (places + added) * inner.step
            if max(abs(inner.offset) / inner.step, np.abs(places).max(initial=0.0)) > _FINE:
                edges = inner.offset + places * inner.step
                is_next = (places == np.floor(places)) & (cells_of(inner, spread[:, index]) != places)
                spread[is_next, index] = edges[is_next]
    return spread
