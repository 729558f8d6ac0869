"""Arrow columns in the types of a frame: as plain values for the room data, and back from those."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sfg_dist.data.categories import joined_dictionaries
from sfg_dist.data.frames.arrow_types import comparable, dictionary_type
from sfg_dist.data.orders import add_order, only_order


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
    """Plain values whose chunks, where they are of dictionaries, have one list of values; others as they are.

    Arrow itself joins dictionaries of text and numbers alone.

    Raises:
        UnfitValueError: the dictionaries are ordered, and have no common order.
    """
    if not pa.types.is_dictionary(column.type) or column.num_chunks < 2:
        return column
    values, indices = joined_dictionaries(column, comparable(column.type.value_type))
    if column.type.ordered:
        below: dict[Any, set[Any]] = {}
        for chunk in column.chunks:
            add_order(below, chunk.dictionary.cast(values.type).to_pylist())
        ordered = pa.array(only_order(below), values.type)
        ranks = pc.index_in(values, value_set=ordered)
        values, indices = ordered, [ranks.take(some) for some in indices]
    chunks = [pa.DictionaryArray.from_arrays(some, values, ordered=column.type.ordered) for some in indices]
    return pa.chunked_array(chunks)


def dictionary_values(column: Any) -> pa.Array | None:
    """The values of a dictionary column of any type, used or not; None for other columns."""
    if dictionary_type(column.type) is None:
        return None
    plain = one_dictionary(plain_values(column))
    return plain.chunk(0).dictionary if plain.num_chunks else pa.nulls(0, plain.type.value_type)


def with_nan(column: Any) -> Any:
    """A column of floats with NaN for null."""
    return pa.chunked_array([pa.array(column.to_numpy())], column.type) if column.null_count else column


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
        column = column.cast(comparable(column.type.value_type))
    if not pa.types.is_dictionary(wanted):
        return column.cast(comparable(wanted)).cast(wanted)
    if dictionary is None:
        raise ValueError("the values of its dictionary are missing")
    kind = comparable(wanted.value_type)
    values = column.cast(kind)
    indices = pc.index_in(values, value_set=dictionary.cast(kind))
    if indices.null_count > values.null_count:
        raise ValueError("a value is not in the dictionary of its column")
    kept = dictionary.cast(kind).cast(wanted.value_type)
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.cast(wanted.index_type), kept, ordered=wanted.ordered)
        for chunk in indices.chunks or [pa.array([], pa.int32())]  # without a chunk the dictionary would be lost
    ]
    return pa.chunked_array(chunks, wanted)
