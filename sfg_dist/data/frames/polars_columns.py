"""Columns of polars as Arrow columns, and back in the dtype that they had.

Arrow's type says the dtype, but for Categorical and Enum, which are both dictionaries there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sfg_dist.data.frames.plain_columns import dictionary_values, plain_values
from sfg_dist.data.naming import check_columns
from sfg_dist.data.unfit import UnfitColumnsError, each_fit
from sfg_dist.job.errors import DocumentError

if TYPE_CHECKING:
    import polars as pl

_CATEGORICAL, _ENUM, _OTHER = "categorical", "enum", "as Arrow has it"


def columns_of_polars(source: str, frame: pl.DataFrame, wanted: Sequence[str] | None) -> tuple[pa.Table, list[str]]:
    """The wanted columns of a frame in their order, or all, and their dtypes in words.

    Raises:
        DataError: Arrow cannot carry a column.
    """
    names = check_columns(source, frame.columns, wanted)
    found = each_fit(names, lambda name: _column(source, name, frame))
    columns = [column for column, _ in found.values()]
    return pa.table(columns, names=list(names)), [dtype for _, dtype in found.values()]


def _column(source: str, name: str, frame: pl.DataFrame) -> tuple[Any, str]:
    import polars as pl

    dtype = frame.schema[name]
    words = {pl.Categorical: _CATEGORICAL, pl.Enum: _ENUM}.get(dtype.base_type(), _OTHER)
    try:
        if dtype.is_object():
            raise TypeError("it holds Python objects")
        column = pa.table(frame.select(name)).column(0)
        again = polars_of_columns(
            pa.table([column[:0]], names=[name]), {name: dictionary_values(column)}, [words]
        ).schema[name]
    except (pa.ArrowException, TypeError, ValueError, NotImplementedError, DocumentError):
        again = None
    if again != dtype:
        raise UnfitColumnsError(
            f"{source}: column {name!r} has dtype {dtype}, which cannot be carried: cast it, or leave it out with "
            f"data.columns",
            {name: f"it has dtype {dtype}"},
        )
    return column, words


def polars_of_columns(
    table: pa.Table, dictionaries: Mapping[str, pa.Array | None] | None = None, dtypes: Sequence[str] = ()
) -> pl.DataFrame:
    """Columns as a frame with these dtypes; without them as polars takes them.

    Raises:
        DocumentError: a column does not fit its dtype, or polars takes none such.
    """
    import polars as pl

    columns: dict[str, Any] = dict(zip(table.column_names, table.columns, strict=True))
    casts = {}
    for name, words in zip(table.column_names, dtypes, strict=bool(dtypes)):
        values = (dictionaries or {}).get(name)
        if words in (_CATEGORICAL, _ENUM) and values is not None:
            columns[name] = plain_values(columns[name]).cast(pa.string())
            casts[name] = pl.Enum(values.cast(pa.string()).to_pylist()) if words == _ENUM else pl.Categorical()
    try:
        frame = pl.DataFrame(pa.table(columns))
        frame.columns = list(columns)  # polars names a column itself whose name is empty
        return frame.cast(casts)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DocumentError(f"polars does not take the columns: {str(error)[:100]}") from error
