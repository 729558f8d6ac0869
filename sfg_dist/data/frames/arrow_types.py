"""Arrow types as words and back, for the document that keeps a frame's schema; and the values of dictionaries.

The words are those of Arrow, but for extension types, of which those are known whose storage is a plain type.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from sfg_dist.data.categories import named_type
from sfg_dist.job.errors import DocumentError
from sfg_dist.job.words import shown

Words = list[str | int | None]

_MOST_LETTERS = 300  # of a type's words
_RUNS = re.compile(r"run_end_encoded<run_ends: (int16|int32|int64), values: (.+)>")
_JSON = re.compile(r"json of (string|large_string|string_view)")
_PERIOD = re.compile(r"period\[([\w-]{1,20})\]")


def words_of_type(type_: pa.DataType) -> str:
    """The words of a type.

    Raises:
        DocumentError: it has none, so that it cannot be kept.

    Examples:
        >>> words_of_type(pa.dictionary(pa.int8(), pa.string()))        # doctest: +SKIP
        'dictionary<values=string, indices=int8, ordered=0>'
    """
    words = str(type_)
    if isinstance(type_, pa.BaseExtensionType):
        known = {
            "arrow.bool8": "bool8",
            "arrow.json": f"json of {type_.storage_type}",
            "pandas.period": f"period[{getattr(type_, 'freq', '')}]",
        }
        words = known.get(type_.extension_name, words)
    if type_of_words(words) != type_:
        raise DocumentError(f"the type {words} cannot be kept")
    return words


def type_of_words(words: str) -> pa.DataType:
    """The type that ``words_of_type`` wrote.

    Raises:
        DocumentError: there is none.
    """
    if len(words) > _MOST_LETTERS:
        raise DocumentError(f"a type has {len(words):,} letters")
    try:
        if found := _RUNS.fullmatch(words):
            return pa.run_end_encoded(named_type(found[1]), type_of_words(found[2]))
        if words == "bool8":
            return pa.bool8()
        if found := _JSON.fullmatch(words):
            return pa.json_(named_type(found[1]))
        if found := _PERIOD.fullmatch(words):
            return _period(found[1])
        return named_type(words)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        raise DocumentError(f"{shown(words)} is no type of Arrow that is known here") from error


def _period(freq: str) -> pa.DataType:
    """Arrow's type of the periods of pandas; their storage where pandas is not there."""
    try:
        from pandas.core.arrays.arrow.extension_types import ArrowPeriodType
    except ImportError:
        return pa.int64()
    return ArrowPeriodType(freq)


def dictionary_type(type_: pa.DataType) -> pa.DataType | None:
    """The dictionary type in a type, as it is or within an extension or runs; None where there is none."""
    if isinstance(type_, pa.BaseExtensionType):
        return dictionary_type(type_.storage_type)
    if pa.types.is_run_end_encoded(type_):
        return dictionary_type(type_.value_type)
    return type_ if pa.types.is_dictionary(type_) else None


def comparable(type_: pa.DataType) -> pa.DataType:
    """The type in which Arrow compares and casts values: text for its view."""
    return pa.string() if pa.types.is_string_view(type_) else type_


def words_of_values(values: pa.Array) -> Words:
    """The values of a dictionary for JSON: dates and times as ticks, others as text.

    Raises:
        DocumentError: they do not come back from that.
    """
    try:
        if pa.types.is_temporal(values.type):
            words: Words = values.cast(_ticks(values.type)).cast(pa.int64()).to_pylist()
        else:
            words = values.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        raise DocumentError(f"values of type {values.type} cannot be kept") from None
    if not values_of_words(words, values.type).equals(values):
        raise DocumentError(f"values of type {values.type} cannot be kept")
    return words


def values_of_words(words: Words, type_: pa.DataType) -> pa.Array:
    """What ``words_of_values`` wrote, as values of a type.

    Raises:
        DocumentError: they are none.
    """
    try:
        if pa.types.is_temporal(type_):
            return pa.array(words, pa.int64()).cast(_ticks(type_)).cast(type_)
        return pa.array(words, pa.string()).cast(comparable(type_)).cast(type_)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise DocumentError(f"a dictionary has values that are no {type_}") from error


def _ticks(type_: pa.DataType) -> pa.DataType:
    return pa.int32() if type_.bit_width == 32 else pa.int64()


def bytes_to_words(metadata: Any) -> dict[str, str]:
    """The metadata of a schema or a field, which are bytes, for JSON."""
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in (metadata or {}).items()}


def bytes_of_words(words: Any) -> dict[bytes, bytes] | None:
    """What ``bytes_to_words`` wrote.

    Raises:
        DocumentError: it is none of that.
    """
    try:
        return {key.encode("latin-1"): value.encode("latin-1") for key, value in words.items()} or None
    except UnicodeEncodeError:
        raise DocumentError("metadata of a schema are no bytes") from None
