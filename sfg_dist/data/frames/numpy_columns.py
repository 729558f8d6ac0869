"""Arrays of numpy as columns, and back in the dtype that they had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sfg_dist.data.naming import check_columns
from sfg_dist.data.surveys import arrow_of, column_of, numpy_survey
from sfg_dist.data.unfit import each_fit
from sfg_dist.job.errors import DataError, DocumentError
from sfg_dist.job.memory import usable_bytes
from sfg_dist.job.words import size_of

Array = NDArray[Any]


def columns_of_array(source: str, array: Array, wanted: Sequence[str] | None) -> pa.Table:
    """The wanted columns of an array, shape (num_rows, num_columns), or of one of records, shape (num_rows,); or all.

    Raises:
        DataError: it has another shape, or a column that holds none of numbers, booleans, texts, dates and times.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise DataError(f"{source} is masked: fill it, as in array.filled(np.nan)")
    array = np.asarray(array)
    if array.ndim != (1 if array.dtype.names else 2):
        advice = "Reshape your data, as in array.reshape(-1, 1)" if array.ndim == 1 else "pass one row for each sample"
        raise DataError(f"{source} has shape {array.shape}: expected 2 dimensions, rows and columns. {advice}")
    names = array.dtype.names or tuple(f"c{index}" for index in range(array.shape[1]))
    columns = each_fit(check_columns(source, names, wanted), lambda name: _column(source, name, array, names))
    return pa.table(list(columns.values()), names=list(columns))


def _column(source: str, name: str, array: Array, names: Sequence[str]) -> pa.Array:
    place = list(names).index(name)
    if array.dtype.kind != "T":
        numpy_survey(source, name, [array], place)  # refuses what is no column
    column = column_of(source, array, place, name)
    if column.dtype.kind in "UT":
        return pa.array(column.tolist(), pa.string())
    if column.dtype.kind == "f" and column.dtype.itemsize > 8:
        shorter = column.astype(np.float64)
        if not np.array_equal(shorter, column, equal_nan=True):
            raise DataError(f"{source}: column {name!r} holds {column.dtype} that float64 cannot hold: round it first")
        column = shorter
    return arrow_of(column)


def words_of_dtype(dtype: np.dtype[Any]) -> str:
    """A dtype as text, from which ``array_of_columns`` makes it again."""
    return "T" if dtype.kind == "T" else dtype.str


def array_of_columns(table: pa.Table, dtypes: Sequence[str], *, records: bool) -> Array:
    """Columns as an array of dtypes by their names, one a column: of records, else with one dtype for all.

    Raises:
        DocumentError: there is no such dtype, or memory does not hold the rows in them.
    """
    try:
        wanted = [np.dtype(dtype) for dtype in dtypes]
    except (TypeError, ValueError, SyntaxError) as error:
        raise DocumentError("the container has a dtype that numpy does not know") from error
    num_bytes = table.num_rows * sum(dtype.itemsize for dtype in wanted)
    if num_bytes > usable_bytes():
        raise DocumentError(
            f"the rows take {size_of(num_bytes)} in the dtypes of the container, and {size_of(usable_bytes())} are all "
            f"the memory that may be used"
        )
    if not records:
        array = np.empty((table.num_rows, table.num_columns), wanted[0] if wanted else np.float64)
        for index, column in enumerate(table.columns):
            array[:, index] = _values(column)
        return array
    rows = np.empty(table.num_rows, list(zip(table.column_names, wanted, strict=True)))
    for name, column in zip(table.column_names, table.columns, strict=True):
        rows[name] = _values(column)
    return rows


def _values(column: Any) -> Array:
    values: Array = column.to_numpy()
    return values
