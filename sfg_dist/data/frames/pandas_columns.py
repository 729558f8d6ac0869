"""Columns of pandas as Arrow columns, and back in the dtype that they had.

A dtype is kept as text. Arrow's own dtypes and categories follow from the Arrow type beside it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sfg_dist.data.frames.plain_columns import dictionary_values, plain_values
from sfg_dist.data.naming import check_columns
from sfg_dist.data.unfit import UnfitColumnsError, each_fit
from sfg_dist.job.errors import DataError, DocumentError
from sfg_dist.job.words import shown

if TYPE_CHECKING:
    import pandas as pd

_ARROW, _CATEGORY = "arrow", "category of "
_STRING = re.compile(r"string\[(python|pyarrow), (nan|NA)\]")


def columns_of_pandas(
    source: str, frame: Any, wanted: Sequence[str] | None
) -> tuple[pa.Table, list[str | int], list[str]]:
    """The wanted columns of a frame in their order, or all; their labels, and their dtypes as text.

    Raises:
        DataError: a label is neither text nor a whole number, or Arrow cannot carry a column.
    """
    labels: list[str | int] = []
    for label in frame.columns.tolist():
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise DataError(
                f"{source}: a column has the label {shown(label)}: give every column a name, as in "
                f"frame.columns = [str(label) for label in frame.columns]"
            )
        labels.append(label)
    _warn_of_index(frame)
    places = {str(label): place for place, label in enumerate(labels)}
    names = check_columns(source, [str(label) for label in labels], wanted)
    found = each_fit(names, lambda name: _column(source, name, frame.iloc[:, places[name]]))
    columns = [column for column, _ in found.values()]
    taken = [labels[places[name]] for name in names]
    return pa.table(columns, names=list(found)), taken, [dtype for _, dtype in found.values()]


def _warn_of_index(frame: pd.DataFrame) -> None:
    """Say that an index is left out, unless it only numbers rows, and so is the name of the columns' index."""
    index = frame.index
    if frame.columns.name is not None:
        warnings.warn(f"the name {frame.columns.name!r} of the frame's columns is left out", stacklevel=6)
    if index.nlevels > 1 or index.name is not None or (len(index) and index.dtype.kind not in "iu"):
        name = f" {index.name!r}" if index.name is not None else ""
        warnings.warn(
            f"the index{name} of the frame is left out, and rows are numbered from 0; frame.reset_index() makes it a "
            f"column",
            stacklevel=6,
        )


def _column(source: str, name: str, series: pd.Series[Any]) -> tuple[Any, str]:
    """A column for Arrow, and its dtype as text."""
    dtype = series.dtype
    try:
        column = pa.array(series, from_pandas=True)
        column = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
        if dtype.kind == "O" and not hasattr(dtype, "__from_arrow__"):
            column = _exact(series, column)
            _check_objects(series, column)
        words = _words_of(dtype)
        is_same = dtype_of(words, column.type, dictionary_values(column)) == dtype
    except (pa.ArrowException, TypeError, ValueError, NotImplementedError, OverflowError) as error:
        raise UnfitColumnsError(
            f"{source}: column {name!r} has dtype {dtype}, which cannot be read ({_reason(error)}): convert it, or "
            f"leave it out with data.columns",
            {name: f"it has dtype {dtype}"},
        ) from error
    if not is_same:
        raise UnfitColumnsError(
            f"{source}: column {name!r} has dtype {dtype}, which cannot be given back: convert it, or leave it out "
            f"with data.columns",
            {name: f"it has dtype {dtype}"},
        )
    return column, words


def _exact(series: pd.Series[Any], column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of objects with the nanoseconds that Arrow drops of stamps of pandas; others as they are."""
    import pandas as pd

    objects = series.dropna().tolist() if pa.types.is_timestamp(column.type) else []
    if not all(isinstance(each, pd.Timestamp) for each in objects) or not any(each.nanosecond for each in objects):
        return column
    return pa.chunked_array([pa.array(series, pa.timestamp("ns", column.type.tz), from_pandas=True)])


def _check_objects(series: pd.Series[Any], column: pa.ChunkedArray) -> None:
    """Refuse objects that Arrow takes for others: it drops times of dates, zones and nanoseconds.

    Raises:
        ValueError: with the first such object, and what would come back.
    """
    if not pa.types.is_temporal(column.type):
        return
    for value, again in zip(series.tolist(), column.to_pylist(), strict=True):
        if again is not None and value != again:
            raise ValueError(f"it holds {value!r}, which would come back as {again!r}")


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _words_of(dtype: Any) -> str:
    """A dtype as text, from which ``dtype_of`` makes it again."""
    import pandas as pd

    if isinstance(dtype, pd.ArrowDtype):
        return _ARROW
    if isinstance(dtype, pd.CategoricalDtype):
        return _CATEGORY + _words_of(dtype.categories.dtype)
    if isinstance(dtype, pd.StringDtype):
        return f"string[{dtype.storage}, {'NA' if dtype.na_value is pd.NA else 'nan'}]"
    return str(dtype)


def dtype_of(words: str, arrow: pa.DataType, dictionary: pa.Array | None) -> Any:
    """The dtype of a column, from its text, its Arrow type and the values of its dictionary."""
    import numpy as np
    import pandas as pd

    if words == _ARROW:
        return pd.ArrowDtype(arrow)
    if words.startswith(_CATEGORY) and dictionary is not None:
        inner = dtype_of(words.removeprefix(_CATEGORY), dictionary.type, None)
        categories = pd.Index(_values(pa.chunked_array([dictionary]), inner), dtype=inner)
        return pd.CategoricalDtype(categories, ordered=arrow.ordered)
    if found := _STRING.fullmatch(words):
        return pd.StringDtype(found[1], na_value=pd.NA) if found[2] == "NA" else pd.StringDtype(found[1], np.nan)
    return pd.api.types.pandas_dtype(words)


def pandas_of_table(table: pa.Table, gaps: Collection[str]) -> pd.DataFrame:
    """An Arrow table as a frame whose dtypes depend on its types and on ``gaps``, not on what is missing in its rows.

    Pandas has no missing value among plain whole numbers and truth values. Where they may be missing, the dtype is a
    nullable one.
    """
    import pandas as pd

    frame = table.to_pandas()
    for name in gaps:
        type_ = table.schema.field(name).type
        if pa.types.is_integer(type_) or pa.types.is_boolean(type_):
            words = "boolean" if pa.types.is_boolean(type_) else str(type_).replace("i", "I").replace("u", "U")
            dtype: Any = pd.api.types.pandas_dtype(words)
            frame[name] = dtype.__from_arrow__(table.column(name))
    return frame


def pandas_of_columns(table: pa.Table, labels: Sequence[str | int], dtypes: Sequence[str]) -> pd.DataFrame:
    """Columns as a frame with these labels and dtypes.

    Raises:
        DocumentError: there is no such dtype, or a column does not fit it.
    """
    import pandas as pd

    columns = {}
    for place, (column, words) in enumerate(zip(table.columns, dtypes, strict=True)):
        try:
            dtype = dtype_of(words, column.type, dictionary_values(column))
            columns[place] = pd.Series(_values(column, dtype), dtype=dtype)
        except (pa.ArrowException, TypeError, ValueError, KeyError, OSError, NotImplementedError) as error:
            raise DocumentError(
                f"column {table.column_names[place]!r} cannot be given back as dtype {shown(words)}: {_reason(error)}"
            ) from error
    frame = pd.DataFrame(columns)
    frame.columns = pd.Index(list(labels))
    return frame


def _values(column: Any, dtype: Any) -> Any:
    """The values of an Arrow column for a column of pandas."""
    import pandas as pd

    if isinstance(dtype, pd.ArrowDtype):
        return pd.arrays.ArrowExtensionArray(column)
    if isinstance(dtype, pd.CategoricalDtype):
        indices = plain_values(column)  # whose chunks have one dictionary, that of the dtype
        codes = [chunk.indices.fill_null(-1) for chunk in indices.chunks]
        whole = pa.chunked_array(codes, indices.type.index_type).to_numpy()
        return pd.Categorical.from_codes(whole, dtype=dtype)
    if hasattr(dtype, "__from_arrow__"):
        return dtype.__from_arrow__(column)
    if dtype.kind == "O":
        is_coarse = getattr(column.type, "unit", None) != "ns"  # Arrow drops the zone of objects of nanoseconds
        found = column.to_pandas(integer_object_nulls=True, timestamp_as_object=is_coarse).astype(object)
        return found.where(found.notna(), None)
    return column.to_pandas().astype(dtype)
