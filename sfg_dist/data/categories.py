"""Columns of categories: Arrow columns to codes and back, by the texts of their values.

This is a module of its own so that Arrow is loaded when the first column is read, not before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sfg_dist.data.column_type import Array, ColumnType, UnfitValueError

_DICTIONARY = re.compile(r"dictionary<values=(.+), indices=(u?int(?:8|16|32|64)), ordered=([01])>")
_FEW = 6


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is one of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def named_type(name: str) -> pa.DataType:
    """An Arrow type by its name, as in "decimal128(10, 2)" or "dictionary<values=string, indices=int8, ordered=0>".

    Raises:
        ValueError: there is none.
    """
    if found := _DICTIONARY.fullmatch(name):
        if _DICTIONARY.fullmatch(found[1]):
            raise ValueError(f"a dictionary of dictionaries: {name}")
        return pa.dictionary(named_type(found[2]), named_type(found[1]), ordered=found[3] == "1")
    if found := re.fullmatch(r"decimal(32|64|128|256)\((\d{1,2}), (-?\d{1,2})\)", name):
        return getattr(pa, f"decimal{found[1]}")(int(found[2]), int(found[3]))
    if found := re.fullmatch(r"timestamp\[(s|ms|us|ns)(?:, tz=(.+))?\]", name, re.DOTALL):
        return pa.timestamp(found[1], found[2])
    if name in ("date32[day]", "date64[ms]"):
        return pa.date32() if name == "date32[day]" else pa.date64()
    return pa.type_for_alias(name)


def value_type(type_: ColumnType) -> pa.DataType:
    """The Arrow type of a category column's values."""
    found = named_type(type_.dtype)
    return found.value_type if pa.types.is_dictionary(found) else found


def wide_enough(name: str, number: int) -> str:
    """The name of a type that holds so many categories: a dictionary of parts that were joined may need wider indices.

    Examples:
        >>> wide_enough("dictionary<values=string, indices=int8, ordered=0>", 200)
        'dictionary<values=string, indices=int16, ordered=0>'
    """
    found = named_type(name)
    if not pa.types.is_dictionary(found) or has_indices(found, number):
        return name
    return str(pa.dictionary(pa.int16(), found.value_type, found.ordered))  # there are MAX_CATEGORIES at most


def has_indices(kind: pa.DataType, number: int) -> bool:
    """Whether the indices of a dictionary type tell so many values apart."""
    return number - 1 <= int(np.iinfo(kind.index_type.to_pandas_dtype()).max)


def dictionaries_of(column: Any) -> list[pa.Array]:
    """The values of each dictionary of a dictionary column, as text; none for other columns."""
    if not pa.types.is_dictionary(column.type):
        return []
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [as_texts(chunk.dictionary) for chunk in chunks]


def as_texts(values: pa.Array) -> pa.Array:
    """Values as text: a number that is none as null, and zero without a sign."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, pc.add(values, 0.0))
    return values.cast(pa.string())


def joined_dictionaries(column: pa.ChunkedArray, kind: pa.DataType) -> tuple[pa.Array, list[pa.Array]]:
    """The values of all chunks' dictionaries as ``kind``, each once, and the indices of each chunk's rows into them."""
    as_kind = as_texts if is_text(kind) else lambda values: values
    found = [as_kind(chunk.dictionary).cast(kind) for chunk in column.chunks]
    values = pc.unique(pa.chunked_array(found, kind))
    indices = [
        pc.index_in(some, value_set=values).take(chunk.indices)
        for some, chunk in zip(found, column.chunks, strict=True)
    ]
    return values, indices


def encoded(column: Any) -> tuple[pa.Array, NDArray[np.int64]]:
    """The distinct values of a column as text, without null, and the place of each row's among them, -1 for null."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        values, chunks = joined_dictionaries(column, pa.string())
        indices = pa.chunked_array(chunks, pa.int32())
    else:
        values, indices = as_texts(column.dictionary), column.indices
    places = indices.cast(pa.int64())  # from which -1 may be missing else
    numbers = (places.fill_null(-1) if places.null_count else places).to_numpy(zero_copy_only=False)
    if values.null_count:  # a dictionary may hold null itself
        numbers = np.where(values.is_null().to_numpy(zero_copy_only=False)[numbers] & (numbers >= 0), -1, numbers)
    return values, numbers


def codes_of(type_: ColumnType, column: Any) -> Array:
    """``ColumnType.to_float`` of a category column: the code of each value, NaN for null."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    texts, places = encoded(column)
    codes = pc.index_in(texts, value_set=pa.array(type_.categories, pa.string()))
    by_place = np.append(codes.cast(pa.float64()).to_numpy(zero_copy_only=False), np.nan)  # the last one for null
    values: Array = by_place[places]
    unknown = np.isnan(values) & (places >= 0)
    if unknown.any():
        raise UnfitValueError(_none_of(type_, texts[int(places[unknown][0])].as_py()))
    return values


def values_of(type_: ColumnType, codes: Array) -> pa.Array:
    """``ColumnType.from_float`` of codes: values of the file's own type."""
    wanted = named_type(type_.dtype)
    missing = np.isnan(codes)
    whole = np.rint(np.where(missing, 0.0, codes)).clip(0, len(type_.categories) - 1).astype(np.int64)
    places = pa.array(whole, mask=missing if missing.any() else None)
    texts = pa.array(type_.categories, pa.string())
    if pa.types.is_dictionary(wanted):
        values = texts.cast(wanted.value_type)
        return pa.DictionaryArray.from_arrays(places.cast(wanted.index_type), values, ordered=wanted.ordered)
    return texts.take(places).cast(wanted)


def codes_from_user(type_: ColumnType, values: Sequence[Any]) -> Array:
    """``ColumnType.from_user`` of a category column."""
    codes = {text: float(code) for code, text in enumerate(type_.categories)}
    found = np.empty(len(values))
    for row, value in enumerate(values):
        if _is_missing(value):
            found[row] = np.nan
            continue
        text = value if isinstance(value, str) else as_texts(pa.array([value]))[0].as_py()
        if text not in codes:
            raise UnfitValueError(_none_of(type_, text))
        found[row] = codes[text]
    return found


def _is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, NaT or pandas' NA: these are not, or not for certain, equal to themselves."""
    is_same = value == value
    return value is None or not (isinstance(is_same, bool | np.bool_) and bool(is_same))


def _none_of(type_: ColumnType, text: str) -> str:
    few = ", ".join(map(repr, type_.categories[:_FEW]))
    more = f" and {len(type_.categories) - _FEW} more" if len(type_.categories) > _FEW else ""
    return f"holds {text[:40]!r}, which is none of its categories: {few}{more}"
