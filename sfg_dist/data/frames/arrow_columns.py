"""Arrow columns in the types of a frame: as plain values for the room data, and back from those.

A frame's schema is kept as text: the types as an Arrow schema, and beside it the values of each dictionary, since a
schema has none.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sfg_dist.job.errors import DocumentError


def plain_values(column: Any) -> Any:
    """A column in types that Arrow's functions take: the storage of an extension, the values of runs, no views.

    A dictionary stays one.

    Examples:
        >>> plain_values(pa.chunked_array([pa.array([1, 0], pa.int8())])).type
        DataType(int8)
    """
    if isinstance(column.type, pa.BaseExtensionType):
        storage = column.type.storage_type
        return plain_values(pa.chunked_array([chunk.storage for chunk in column.chunks], storage))
    if pa.types.is_run_end_encoded(column.type):
        values = column.type.value_type
        return plain_values(pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], values))
    if pa.types.is_string_view(column.type):  # for which Arrow lacks half of its functions
        return column.cast(pa.string())
    if pa.types.is_decimal(column.type) and column.type.bit_width < 128:  # as few functions take the narrow ones
        return column.cast(pa.decimal128(column.type.precision, column.type.scale))
    if pa.types.is_dictionary(column.type) and pa.types.is_string_view(column.type.value_type):
        type_ = pa.dictionary(column.type.index_type, pa.string(), column.type.ordered)
        chunks = [
            pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.string()), ordered=type_.ordered)
            for chunk in column.chunks
        ]
        return pa.chunked_array(chunks, type_)
    return column


def one_dictionary(column: Any) -> Any:
    """A column in one chunk where it is a dictionary, so that it has one list of values; others as they are."""
    if not _has_dictionary(column.type):
        return column
    if len(column.chunks) > 1:
        column = column.unify_dictionaries()
    whole = column.combine_chunks()
    return pa.chunked_array([whole]) if isinstance(whole, pa.Array) else whole


def dictionary_values(column: Any) -> pa.Array | None:
    """The values of a dictionary column, used or not; None for other columns."""
    plain = plain_values(column)
    if not pa.types.is_dictionary(plain.type):
        return None
    return plain.chunk(0).dictionary if plain.num_chunks else pa.nulls(0, plain.type.value_type)


def as_type(column: Any, wanted: pa.DataType, dictionary: pa.Array | None = None) -> Any:
    """Plain values as a column of a type that ``plain_values`` made plain, with the values of its dictionary.

    Raises:
        ValueError: a value is none of the type, or not in the dictionary.
    """
    if column.type == wanted and dictionary is None:
        return column
    if isinstance(wanted, pa.BaseExtensionType):
        inner = as_type(column, wanted.storage_type, dictionary)
        chunks = [pa.ExtensionArray.from_storage(wanted, chunk) for chunk in inner.chunks]
        return pa.chunked_array(chunks, wanted)
    if pa.types.is_run_end_encoded(wanted):
        inner = as_type(column, wanted.value_type, dictionary)
        chunks = [pc.run_end_encode(chunk, wanted.run_end_type) for chunk in inner.chunks]
        return pa.chunked_array(chunks, wanted)
    if pa.types.is_dictionary(column.type):
        column = column.cast(_comparable(column.type.value_type))
    if not pa.types.is_dictionary(wanted):
        return column.cast(_comparable(wanted)).cast(wanted)
    assert dictionary is not None
    values = column.cast(_comparable(wanted.value_type))
    indices = pc.index_in(values, value_set=dictionary.cast(_comparable(wanted.value_type)))
    if indices.null_count > values.null_count:
        raise ValueError("a value is not in the dictionary of its column")
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.cast(wanted.index_type), dictionary, ordered=wanted.ordered)
        for chunk in indices.chunks
    ]
    return pa.chunked_array(chunks, wanted)


def schema_to_text(schema: pa.Schema) -> str:
    """A schema as text, in Arrow's own form."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_of_text(text: str) -> pa.Schema:
    """What ``schema_to_text`` wrote.

    Raises:
        DocumentError: it is no schema.
    """
    try:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
    except (binascii.Error, pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DocumentError("the container's schema is no schema of Arrow") from error


def values_to_list(values: pa.Array) -> list[str | int | None]:
    """The values of a dictionary for JSON: dates and times as ticks, others as text."""
    if _is_temporal(values.type):
        return values.cast(_ticks(values.type)).cast(pa.int64()).to_pylist()
    return values.cast(pa.string()).to_pylist()


def is_kept(values: pa.Array) -> bool:
    """Whether the values of a dictionary come back from JSON."""
    try:
        return bool(values_of_list(values_to_list(values), values.type).equals(values))
    except (pa.ArrowException, DocumentError):
        return False


def values_of_list(words: list[str | int | None], type_: pa.DataType) -> pa.Array:
    """What ``values_to_list`` wrote, as values of a type.

    Raises:
        DocumentError: they are none.
    """
    try:
        if _is_temporal(type_):
            return pa.array(words, pa.int64()).cast(_ticks(type_)).cast(type_)
        return pa.array(words, pa.string()).cast(_comparable(type_)).cast(type_)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise DocumentError(f"the container's dictionary has values that are no {type_}") from error


def dictionaries_of(schema: pa.Schema, words: Mapping[str, list[str | int | None]]) -> dict[str, pa.Array]:
    """The dictionaries of a schema's columns by name.

    Raises:
        DocumentError: one is missing or does not fit.
    """
    found = {}
    for field in schema:
        if (type_ := _dictionary_type(field.type)) is not None:
            if field.name not in words:
                raise DocumentError("the container lacks the values of a dictionary")
            found[field.name] = values_of_list(words[field.name], type_.value_type)
    return found


def _dictionary_type(type_: pa.DataType) -> pa.DataType | None:
    """The dictionary type in a type, as it is or within an extension or runs."""
    if isinstance(type_, pa.BaseExtensionType):
        return _dictionary_type(type_.storage_type)
    if pa.types.is_run_end_encoded(type_):
        return _dictionary_type(type_.value_type)
    return type_ if pa.types.is_dictionary(type_) else None


def _has_dictionary(type_: pa.DataType) -> bool:
    return _dictionary_type(type_) is not None


def _comparable(type_: pa.DataType) -> pa.DataType:
    """The type in which Arrow compares and casts values: text for its view."""
    return pa.string() if pa.types.is_string_view(type_) else type_


def _is_temporal(type_: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(type_))


def _ticks(type_: pa.DataType) -> pa.DataType:
    return pa.int32() if type_.bit_width == 32 else pa.int64()
