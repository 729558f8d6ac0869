"""Columns as the text of a .csv and as the numbers of a .npy: each in its own type where the format has it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import MAX_WHOLE, PER_SECOND, Array, ColumnType
from sfg_dist.data.csv_columns import MISSING, looks_like_numbers, typed
from sfg_dist.job.errors import ConfigError

_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896  # since 1970-01-01: those of the years 1 and 9999
_MARKED = re.compile('[,"\r\n]')


def cells_of(type_: ColumnType, values: Array) -> list[Any]:
    """The cells of a .csv of a column of value - offset, shape (num_rows,); what is missing is an empty one.

    Whole numbers have no point, decimals as many places as their source where those are the same in all cells, booleans
    the words of their source. Dates and times are ISO 8601, stamps with a zone in UTC with a Z. Durations are their
    number of ticks, as no text has a type for them.
    """
    _check_days(type_, values)
    array = type_.from_float(values)
    cells: list[Any]
    if type_.is_coded:
        return array.cast("string").to_pylist()
    if type_.kind == "float":
        numbers = array.to_numpy(zero_copy_only=False)
        cells = numbers.tolist()
        if type_.dtype != "float64":
            # the fewest digits that are this float32, not those of the double that it is; whole numbers have all
            wide = np.array(numbers, np.float64)
            is_whole = (wide == np.rint(wide)) & (np.abs(wide) < MAX_WHOLE)
            cells = np.where(is_whole, wide.astype(str), numbers.astype(type_.dtype).astype(str)).tolist()
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


def _check_days(type_: ColumnType, values: Array) -> None:
    """Refuse days that no text of ISO 8601 has.

    Raises:
        ConfigError: a day lies before the year 1 or after 9999.
    """
    if type_.kind not in ("date", "timestamp") or np.isnan(values).all():
        return
    per_day = 1 if type_.unit == "D" else 86_400 * PER_SECOND[str(type_.unit)]
    ends = [(float(end) + type_.offset) / per_day for end in (np.nanmin(values), np.nanmax(values))]
    if ends[0] < _FIRST_DAY or ends[1] >= _LAST_DAY + 1:
        odd = ends[0] if ends[0] < _FIRST_DAY else ends[1]
        raise ConfigError(
            f"a .csv has no day before the year 1 or after 9999, and a column holds {odd:.0f} days since 1970-01-01: "
            "write to .parquet or .zarr"
        )


def csv_lines(types: Sequence[ColumnType], rows: Array) -> str:
    """Rows of value - offset as lines of a .csv, shape (num_rows, num_columns).

    All texts of a column stand in quotes where a reader could take them for something else than text, such as 007.
    """
    import pyarrow as pa

    from sfg_dist.data.categories import is_text, value_type

    columns = []
    for type_, values in zip(types, rows.T, strict=True):
        cells = cells_of(type_, values)
        if type_.is_coded:
            texts = pa.chunked_array([pa.array(type_.categories)])
            is_odd = not pa.types.is_string(typed(texts).type) or looks_like_numbers(texts, ".")
            are_quoted = is_odd and is_text(value_type(type_))
            found = {text: _quoted(text, always=are_quoted) for text in type_.categories}
            columns.append(["" if cell is None else found[cell] for cell in cells])
        else:
            columns.append(["" if cell is None else str(cell) for cell in cells])
    if len(columns) == 1:  # a blank line would be no row
        columns = [[cell or '""' for cell in columns[0]]]
    return "".join(f"{','.join(line)}\r\n" for line in zip(*columns, strict=True))


def _quoted(text: str, *, always: bool) -> str:
    """A cell, in quotes where it holds a separator, a quote or the end of a line, or begins as a comment does."""
    return '"' + text.replace('"', '""') + '"' if always or text.startswith("#") or _MARKED.search(text) else text


def csv_header(columns: Sequence[str]) -> str:
    """The line of a .csv with the names."""
    names = [_quoted(name, always=len(columns) == 1 and not name) for name in columns]
    return ",".join(names) + "\r\n"


def check_csv(path: str, columns: Sequence[str], types: Sequence[ColumnType]) -> None:
    """Say which categories a reader takes for others unless it is told otherwise; refuse those that no .csv holds.

    Raises:
        ConfigError: a column has a category that is empty or holds a zero byte; the message names ``path``.
    """
    for name, type_ in zip(columns, types, strict=True):
        words = [text for text in type_.categories if text.strip() in MISSING]
        if any(not word.strip() for word in words):
            raise ConfigError(
                f"{path}: column {name!r} has an empty text as a category, which a .csv has for a missing value; write "
                "to .parquet or .zarr"
            )
        if any("\0" in text for text in type_.categories):
            raise ConfigError(f"{path}: column {name!r} has a category with a zero byte; write to .parquet or .zarr")
        if odd := [text for text in type_.categories if text != text.strip() or "\r" in text]:
            warnings.warn(
                f"{path}: column {name!r} has the category {odd[0]!r}, of which this tool reads neither the spaces "
                "around it nor the kind of its line ends: write to .parquet or .zarr to keep them",
                stacklevel=4,
            )
        if words:
            warnings.warn(
                f"{path}: column {name!r} has the category {words[0]!r}, which readers take for a missing value: read "
                "it with data.null_values = [], in pandas with keep_default_na=False, na_values=['']",
                stacklevel=4,
            )


def check_parquet(path: str, columns: Sequence[str], types: Sequence[ColumnType]) -> None:
    """Refuse decimals of tens and more, which no .parquet holds.

    Raises:
        ConfigError: with the column; the message names ``path``.
    """
    for name, type_ in zip(columns, types, strict=True):
        if type_.kind == "decimal" and type_.dtype != "float64" and type_.arrow.scale < 0:
            raise ConfigError(
                f"{path}: column {name!r} holds {type_.dtype}, which a .parquet has no type for; write to .csv or .zarr"
            )


def npy_dtype(path: str, columns: Sequence[str], types: Sequence[ColumnType]) -> np.dtype[Any]:
    """The dtype of a .npy that carries all columns exactly: one for all of them, else records with a field for each.

    Raises:
        ConfigError: numpy has no type for a column; the message names ``path``.
    """
    dtypes = []
    for name, type_ in zip(columns, types, strict=True):
        if type_.kind == "time" or type_.zone:
            raise ConfigError(
                f"{path}: column {name!r} holds {type_.words}, which a .npy has no type for; write to .parquet, .csv "
                "or .zarr"
            )
        if any(text.endswith("\0") for text in type_.categories):
            raise ConfigError(f"{path}: column {name!r} has a category with a zero byte; write to .parquet or .zarr")
        dtypes.append(_numpy_dtype(type_))
    if len(set(dtypes)) <= 1:
        return dtypes[0] if dtypes else np.dtype(np.float64)
    is_odd = any(dtype.kind in "mMU" for dtype in dtypes)
    common = None if is_odd else reduce(np.promote_types, dtypes)
    # 64-bit integers within 2^53 are what float64 holds; those with an offset are beyond
    if common is None or (common.kind == "f" and any(type_.offset for type_ in types)):
        if odd := [name for name in columns if not name or not name.isascii()]:
            raise ConfigError(f"{path}: a .npy has no field named {odd[0]!r}; write to .parquet, .csv or .zarr")
        return np.dtype(list(zip(columns, dtypes, strict=True)))
    return common


def _numpy_dtype(type_: ColumnType) -> np.dtype[Any]:
    if type_.is_coded:
        values = type_.from_float(np.arange(float(len(type_.categories))))
        values = values.dictionary_decode() if hasattr(values, "dictionary_decode") else values
        found = values.to_numpy(zero_copy_only=False)
        return np.dtype(f"U{max(1, *map(len, type_.categories))}") if found.dtype.kind == "O" else found.dtype
    if type_.kind == "date":
        return np.dtype("M8[D]")
    if type_.kind in ("timestamp", "duration"):
        return np.dtype(f"{'M' if type_.kind == 'timestamp' else 'm'}8[{type_.arrow.unit}]")
    return np.dtype("float64" if type_.kind == "decimal" else type_.dtype)


def npy_rows(
    path: str, columns: Sequence[str], types: Sequence[ColumnType], rows: NDArray[np.float64], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Rows of value - offset as the rows of a .npy.

    Raises:
        ConfigError: a missing value has no place in its column's type.
    """
    is_table = dtype.names is None
    table = np.empty(rows.shape if is_table else len(rows), dtype)
    for index, (name, type_) in enumerate(zip(columns, types, strict=True)):
        wanted = dtype if is_table else dtype[name]
        if wanted.kind not in "fmM" and np.isnan(rows[:, index]).any():
            raise ConfigError(
                f"{path}: column {name!r} has missing values, which {wanted} of a .npy cannot hold; write to .parquet, "
                ".csv or .zarr"
            )
        found = type_.from_float(rows[:, index])
        found = found.dictionary_decode() if hasattr(found, "dictionary_decode") else found
        if is_table:
            table[:, index] = found.to_numpy(zero_copy_only=False)
        else:
            table[name] = found.to_numpy(zero_copy_only=False)
    return table
