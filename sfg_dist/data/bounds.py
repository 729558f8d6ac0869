"""The range that a column's samples keep to, and how the map of the column ends there.

observed range    a score beyond those of the outermost training rows gives these rows
wider range       beyond them a law that is fitted to the largest rows, cut off at the end of the range (``tails``)
no curve          what lies beyond an end is reflected to the inside, as kernel estimates do it, by a depth of at
                  most a quarter of the range
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import FLOAT, ColumnType, UnfitValueError
from sfg_dist.data.naming import check_columns
from sfg_dist.data.quantile import Curve
from sfg_dist.job.errors import DataError

_Array = NDArray[np.float64]
Bounds = str | Mapping[str, Sequence[float | str]]
Range = tuple[float, float]

FREE: Range = (-np.inf, np.inf)


def check_bounds(source: str, names: Sequence[str], bounds: Bounds) -> None:
    """Refuse ``data.bounds`` that are another word, name an unknown column, or give a range that is not two numbers."""
    if isinstance(bounds, str):
        if bounds not in ("observed", "none"):
            raise DataError(f'data.bounds = {bounds!r}: expected "observed", "none" or a table of column = [low, high]')
        return
    check_columns(source, names, list(bounds), key="data.bounds")
    for name, ends in bounds.items():
        if len(ends) != 2:
            raise _no_range(name, ends)


def moved_bounds(bounds: Bounds, types: Mapping[str, ColumnType]) -> Bounds:
    """Ranges in the user's units as the flow has them: less the offset of the column's type."""
    if isinstance(bounds, str):
        return bounds
    moved: dict[str, list[float | str]] = {}
    for name, ends in bounds.items():
        low, high = (_moved(name, end, types[name]) for end in ends)
        if not low < high:
            raise _no_range(name, ends)
        moved[name] = [low, high]
    return moved


def _moved(name: str, end: float | str, type_: ColumnType) -> float:
    """One end of a range; ends of dates and times are text in ISO 8601, or ticks."""
    if not isinstance(end, str):
        return end - type_.offset
    try:
        return float(type_.from_user([end])[0])
    except UnfitValueError as error:
        raise DataError(f"data.bounds: {name!r}: {error}") from error


def _no_range(name: str, ends: Sequence[float | str]) -> DataError:
    return DataError(
        f"data.bounds: {name!r} is {list(ends)}: expected [low, high], low below high; -inf or inf leave an end open"
    )


def check_covers(source: str, name: str, values: _Array, bounds: Bounds, type_: ColumnType = FLOAT) -> None:
    """Refuse a range that leaves out some of a column's rows; ``bounds`` are those of ``moved_bounds``."""
    if isinstance(bounds, str) or name not in bounds:
        return
    low, high = map(float, bounds[name])
    num_outside = int(((values < low) | (values > high)).sum())
    if num_outside:
        asked = ", ".join(f"{end:g}" if type_.is_plain or np.isinf(end) else _shown(end, type_) for end in (low, high))
        raise DataError(
            f"{source}: {num_outside} of {len(values)} rows of column {name!r} lie outside data.bounds = [{asked}]; "
            f"they run from {_shown(values.min(), type_)} to {_shown(values.max(), type_)}: widen the range, or take "
            "those rows out of the table"
        )


def _shown(value: float, type_: ColumnType) -> str:
    return f"{float(value)!r}" if type_.is_plain else str(type_.shown(value))


def range_of(name: str, values: _Array, bounds: Bounds) -> Range:
    """The range of a column's samples, from its training values."""
    if bounds == "none":
        return FREE
    if isinstance(bounds, str) or name not in bounds:
        return float(values.min()), float(values.max())
    low, high = bounds[name]
    return float(low), float(high)


def ends_of(curve: Curve, ends: Range) -> Range:
    """The range that values of a curve keep to: an atom at an end is the end, whatever range was asked for."""
    low, high = ends
    if len(curve.atoms):
        low = float(curve.atoms.values[0]) if np.isneginf(curve.atoms.low[0]) else low
        high = float(curve.atoms.values[-1]) if np.isposinf(curve.atoms.high[-1]) else high
    return low, high


def reflect(values: _Array, ends: Range) -> _Array:
    """Values beyond an end, reflected to the inside; those far away (over half the range) come nearer to the end again.

    Examples:
        >>> reflect(np.array([-0.01, 0.5, 1.2, 1e9]), (0.0, 1.0)).round(3)
        array([0.01 , 0.5  , 0.828, 1.   ])
    """
    low, high = ends
    half = (high - low) / 2
    reflected = values.copy()
    for beyond, side, end in ((values > high, 1, high), (values < low, -1, low)):
        depth = side * (values[beyond] - end)
        reflected[beyond] = end - side * depth / (1 + (depth / half) ** 2)
    return reflected.clip(low, high)
