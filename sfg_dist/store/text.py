"""Columns as the text of a .csv and as the numbers of a .npy: each in its own type where the format has it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import Array, ColumnType
from sfg_dist.job.errors import ConfigError


def cells_of(type_: ColumnType, values: Array) -> list[Any]:
    """The cells for ``csv.writer`` of a column of value - offset, shape (num_rows,); what is missing is an empty one.

    Whole numbers have no point, decimals as many places as their source where those are the same in all cells, booleans
    the words of their source. Dates and times are ISO 8601, stamps with a zone in UTC with a Z. Durations are their
    number of ticks, as no text has a type for them.
    """
    array = type_.from_float(values)
    cells: list[Any]
    if type_.kind == "float":
        numbers = array.to_numpy(zero_copy_only=False)
        # the fewest digits that are this float32, not those of the double that it is
        cells = numbers.tolist() if type_.dtype == "float64" else numbers.astype(type_.dtype).astype(str).tolist()
    elif type_.kind == "decimal" and type_.dtype == "float64":
        cells = array.to_numpy(zero_copy_only=False).tolist()
        if type_.style == "fixed":
            cells = [f"{value:.{type_.places}f}" for value in cells]
    elif type_.kind == "decimal":
        cells = [None if value is None else format(value, "f") for value in array.to_pylist()]
    elif type_.kind == "boolean":
        true, _, false = (type_.style or "true/false").partition("/")
        cells = np.where(array.fill_null(False).to_numpy(zero_copy_only=False), true, false).tolist()
    elif type_.kind == "timestamp":
        text = np.datetime_as_string(array.to_numpy(zero_copy_only=False))
        if type_.style and " " in type_.style:
            text = np.strings.replace(text, "T", " ")
        cells = (np.strings.add(text, "Z") if type_.zone else text).tolist()
    elif type_.kind in ("date", "time"):
        cells = array.cast("string").to_pylist()
    elif type_.kind == "duration":
        cells = array.cast("int64").to_pylist()
    else:
        cells = array.to_pylist()
    if array.null_count:
        cells = [None if is_null else cell for cell, is_null in zip(cells, array.is_null().to_pylist(), strict=True)]
    return cells


def npy_dtype(path: str, columns: Sequence[str], types: Sequence[ColumnType]) -> np.dtype[Any]:
    """The one dtype of a .npy that carries all columns exactly.

    Raises:
        ConfigError: there is none; the message names ``path``.
    """
    dtypes = []
    for name, type_ in zip(columns, types, strict=True):
        if type_.kind == "time" or type_.zone:
            raise _no_npy(path, f"column {name!r} holds {type_.words}")
        if type_.kind == "date":
            dtypes.append(np.dtype("M8[D]"))
        elif type_.kind in ("timestamp", "duration"):
            dtypes.append(np.dtype(f"{'M' if type_.kind == 'timestamp' else 'm'}8[{type_.arrow.unit}]"))
        else:
            dtypes.append(np.dtype("float64" if type_.kind == "decimal" else type_.dtype))
    if len(set(dtypes)) <= 1:
        return dtypes[0] if dtypes else np.dtype(np.float64)
    stamps = [dtype for dtype in dtypes if dtype.kind in "mM"]
    if stamps:
        other = next(name for name, dtype in zip(columns, dtypes, strict=True) if dtype != stamps[0])
        name = columns[dtypes.index(stamps[0])]
        raise _no_npy(path, f"column {name!r} holds {types[columns.index(name)].words} and {other!r} something else")
    common = reduce(np.promote_types, dtypes)
    # 64-bit integers within 2^53 are what float64 holds; those with an offset are beyond
    beyond = [name for name, type_ in zip(columns, types, strict=True) if type_.offset]
    if common.kind == "f" and beyond:
        raise _no_npy(path, f"float64 cannot hold the integers of column {beyond[0]!r}, and other columns need it")
    return common


def _no_npy(path: str, why: str) -> ConfigError:
    return ConfigError(f"{path}: a .npy has one type for all columns: {why}; write to .parquet, .csv or .zarr")


def npy_rows(types: Sequence[ColumnType], rows: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Rows of value - offset as the rows of a .npy."""
    table = np.empty(rows.shape, dtype)
    for index, type_ in enumerate(types):
        table[:, index] = type_.from_float(rows[:, index]).to_numpy(zero_copy_only=False)
    return table
