"""What is discrete about a column: the grid that its values lie on, and single values that repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.atoms import find_atoms, find_sentinels
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.dependencies import MAX_LEVELS
from sfg_dist.data.described import RepeatedValues, Ties
from sfg_dist.data.grid import Grid, find_grid, find_whole, grid_of_step, grid_of_type, share_of_ties
from sfg_dist.data.naming import check_columns
from sfg_dist.data.unfit import UnfitColumnsError
from sfg_dist.job.errors import DataError

# Above this share of rows with a tied value a column counts as measured in steps. Ties by chance in float32
# columns stay below it up to about 10,000 rows. Above that the test for a grid decides alone: chance does not pass it.
TIED_SHARE = 0.01
# The middle 90 % of a column without grid and repeated values must hold this many steps of float64, and be this wide.
# A narrower column is rounding, and so would its samples be.
_LEAST_SPACINGS, _LEAST_WIDTH, _LEAST_ROWS = 2.0**10, 1e-90, 10

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Discreteness:
    """What is discrete about a column."""

    grid: Grid | None = None  # the grid to dequantize by, None for none
    ties: Ties | None = None  # for the report; None for a column without ties and without a grid
    # rows of each value that repeats beside a continuum, or far from the rest of a grid
    atoms: Mapping[float, int] = field(default_factory=dict)
    # all values of a column on a grid or of atoms alone, ascending; empty where there are very many
    levels: _Array = field(default_factory=lambda: np.zeros(0))

    def report_atoms(self, type_: ColumnType, num_rows: int, kind: str) -> RepeatedValues:
        """The atoms as the report has them; the "quantile" transform and grids give them back exactly."""
        return {
            "held": kind == "quantile" or self.grid is not None,
            "values": [
                {"value": type_.shown(value), "count": count, "share": count / num_rows}
                for value, count in self.atoms.items()
            ],
        }


def check_dequantize(source: str, names: Sequence[str], dequantize: str | Mapping[str, float]) -> None:
    """Refuse a ``data.dequantize`` with another word, an unknown column, or a step that is not positive."""
    if isinstance(dequantize, str):
        if dequantize not in ("auto", "none"):
            raise DataError(f'data.dequantize = {dequantize!r}: expected "auto", "none" or a table of column = step')
        return
    check_columns(source, names, list(dequantize), key="data.dequantize")
    for name, step in dequantize.items():
        if not 0 < step < np.inf:
            raise DataError(f"data.dequantize: the step of column {name!r} is {step}: expected a positive number")


def find_discreteness(
    source: str,
    name: str,
    values: _Array,
    dequantize: str | Mapping[str, float] = "auto",
    type_step: float | None = None,
) -> Discreteness:
    """Look for a grid and for repeated values in a column: finite values, not all equal, shape (num_rows,).

    ``type_step``: the values are multiples of this by their type; None for types that do not say so.
    """
    distinct, counts = np.unique(values, return_counts=True)
    share = share_of_ties(counts)
    found, reason = _grid_found(distinct, share, type_step)
    grid: Grid | None = None
    if dequantize == "auto":
        grid = found
    elif isinstance(dequantize, Mapping) and name in dequantize:
        grid, reason = grid_of_step(values, float(dequantize[name])), "step given by data.dequantize"
    else:
        reason = 'not asked for: data.dequantize is "none" or names other columns'
    ties: Ties = {"share": share, "step": None, "reason": reason}
    if grid:
        places = grid.coordinates(values)
        ties |= {"step": grid.step, "offset": grid.offset, "off_grid_share": float(np.mean(places != np.floor(places)))}
    repeated = np.array([], dtype=np.intp)
    if grid:
        distinct = grid.snap(distinct)
        repeated = find_sentinels(distinct, counts)
    elif not found:
        repeated = find_atoms(distinct, counts) if dequantize != "none" else repeated
        _check_resolved(source, name, np.delete(distinct, repeated))
    is_discrete = (grid is not None or len(repeated) == len(distinct)) and len(distinct) <= MAX_LEVELS
    return Discreteness(
        grid,
        ties if share > TIED_SHARE or grid else None,
        {float(distinct[place]) + 0.0: int(counts[place]) for place in repeated},
        distinct if is_discrete else np.zeros(0),
    )


def _grid_found(distinct: _Array, share: float, type_step: float | None) -> tuple[Grid | None, str]:
    """The grid of a column and why it has it."""
    if type_step is not None and (grid := grid_of_type(distinct, type_step)):
        return grid, "a grid by its type"
    is_tied = share > TIED_SHARE
    if grid := find_whole(distinct):
        return grid, "tied, on a grid" if is_tied else "whole numbers"
    if is_tied and (grid := find_grid(distinct)):
        return grid, "tied, on a grid"
    return None, "tied, but the values lie on no common grid"


def _check_resolved(source: str, name: str, distinct: _Array) -> None:
    """Refuse a column whose values are a few steps of float64 apart, or all but zero."""
    if len(distinct) < _LEAST_ROWS:
        return
    low, high = distinct[round(0.05 * len(distinct))], distinct[-1 - round(0.05 * len(distinct))]
    spacing = float(np.spacing(max(abs(low), abs(high))))
    if high - low < max(_LEAST_SPACINGS * spacing, _LEAST_WIDTH):
        raise UnfitColumnsError(
            f"{source}: most of column {name!r} lies between {float(low)!r} and {float(high)!r}, where double "
            f"precision has steps of {spacing:g}: its values cannot be told apart well enough; take an offset off it "
            "or rescale it before it is written, or leave it out with data.columns",
            {name: f"double precision does not tell its values apart, from {float(low)!r} to {float(high)!r}"},
        )
