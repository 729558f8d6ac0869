"""The one reader of JSON documents, which anybody may have written: plans, commits, snapshots, models, logs.

A document is bounded in size, in depth and in its numbers before anything is made of it, a key stands in a table once,
and what a program goes by is checked by its type. Whatever is wrong is a ``DocumentError`` that names the document and
the field.

What a value must be is said by plain words, ``Fields``:

| word | value |
| --- | --- |
| ``int``, ``range(a, b)`` | a whole number of 0 or more, below 2^63; one of the range |
| ``float``, ``MAYBE_NAN`` | a finite number; any number, NaN and infinities too |
| ``str``, ``bool``, ``None``, ``object`` | a text; true or false; null; anything |
| ``{"a", "b"}`` | one of these texts |
| ``[word]``, ``{str: word}`` | a list of such values; a table of such values |
| ``{"key": word, "key?": word}`` | a table with these keys, the second may be missing; others may be there |
| ``(word, word)`` | one or the other |
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from sfg_dist.job.errors import DocumentError
from sfg_dist.job.words import as_line, printable, shown

MAX_BYTES = 1 << 20
"""Of a document that has no reason to be long."""
LONG_BYTES = 64 << 20
"""Of one that grows with the columns, the objects or the epochs."""
MAYBE_NAN = "number"
"""Among ``Fields``: a number that need not be finite."""

Fields = Any

_MAX_DEPTH = 32
_MAX_DIGITS = 40  # of a whole number; the offset of a decimal column has 38
_MAX_VALUES = 1 << 22  # each takes up to 70 bytes of memory, some of them in 3 bytes of text
_MARKS = (",", ":", "[", "{")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_KEY = 64  # characters of a key that a message shows


def read_json(
    content: bytes | str | None,
    name: str,
    fields: Fields = dict,
    *,
    max_bytes: int = MAX_BYTES,
    allow_nan: bool = False,
) -> Any:
    """What a JSON document says.

    Args:
        content: its text; of a longer one than allowed ``max_bytes + 1`` are enough. None where there is none.
        name: what messages call it.
        fields: what it must be, in the words above; by default a table.
        max_bytes: its size at most.
        allow_nan: whether NaN and infinities may stand where ``fields`` do not say otherwise.

    Raises:
        DocumentError: it is missing, is no such document, or a field is not what it must be.

    Examples:
        >>> read_json('{"rows": [0, 8]}', "a commit", {"rows": [int]})
        {'rows': [0, 8]}
        >>> read_json('{"rows": ["all"]}', "a commit", {"rows": [int]})
        Traceback (most recent call last):
            ...
        sfg_dist.job.errors.DocumentError: a commit: rows.0 must be a whole number of 0 or more, got 'all'
    """
    if content is None:
        raise DocumentError(f"{name} is missing")
    if len(content) > max_bytes:
        raise DocumentError(f"{name} is longer than the {max_bytes:,} bytes that such a document may have")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"{name} is no JSON document: byte {error.start:,} is no text in UTF-8") from None
    num_marks = sum(map(text.count, _MARKS))
    if num_marks > _MAX_VALUES:
        raise DocumentError(f"{name} has more values than the {_MAX_VALUES:,} that a document may have")
    try:
        value = (_LOOSE if allow_nan else _STRICT).decode(text)
    except json.JSONDecodeError as error:
        raise DocumentError(f"{name} is no JSON document: {_reason(error)}") from None
    except RecursionError:
        raise DocumentError(f"{name} has tables or lists within each other, too deep") from None
    except ValueError as error:
        raise DocumentError(f"{name} {error}") from None
    if num_marks > _MAX_DEPTH or _SURROGATE.search(text):
        _look_through(value, name)
    check_fields(value, fields, name)
    return value


def check_fields(value: Any, fields: Fields, name: str) -> None:
    """Refuse a value that is not what it must be.

    Raises:
        DocumentError: the message names the document and the field.
    """
    if not _fits(value, fields):
        raise DocumentError(f"{name}{_problem(value, fields, ())}")


def _fits(value: Any, fields: Fields) -> bool:
    """Whether a value is what it must be."""
    if isinstance(fields, dict) and fields:
        if not isinstance(value, dict):
            return False
        if str in fields:
            return all(_fits(each, fields[str]) for each in value.values())
        for key, inner in fields.items():
            name = key.removesuffix("?")
            if name not in value:
                if name == key:
                    return False
            elif not _fits(value[name], inner):
                return False
        return True
    if isinstance(fields, list) and fields:
        return isinstance(value, list) and all(_fits(each, fields[0]) for each in value)
    if isinstance(fields, tuple):
        return any(_fits(value, each) for each in fields)
    return _is_one(value, fields)


def _is_one(value: Any, fields: Fields) -> bool:
    """Whether a value that holds no others is what it must be."""
    if fields is object:
        return True
    if fields is int:
        return type(value) is int and 0 <= value < 2**63
    if isinstance(fields, range):
        return type(value) is int and value in fields
    if fields is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    if fields == MAYBE_NAN:
        return type(value) in (int, float)
    if isinstance(fields, set | frozenset):
        return isinstance(value, str) and value in fields
    return value is None if fields is None else isinstance(value, fields)


def _problem(value: Any, fields: Fields, path: tuple[str, ...]) -> str:
    """What is wrong with a value that stands at a path and is not what it must be."""
    inner: list[tuple[Any, Fields]] = []
    if isinstance(fields, dict) and isinstance(value, dict):
        if missing := [key for key in fields if key is not str and not key.endswith("?") and key not in value]:
            return f": {'.'.join((*path, missing[0]))} is missing"
        names = {key.removesuffix("?"): each for key, each in fields.items() if key is not str}
        inner = [(key, fields[str] if str in fields else names[key]) for key in value if str in fields or key in names]
    elif isinstance(fields, list) and isinstance(value, list):
        inner = [(number, fields[0]) for number in range(len(value))]
    elif isinstance(fields, tuple) and isinstance(value, type(fields[0])):  # the table or list that is meant
        return _problem(value, fields[0], path)
    for key, each in inner:
        if not _fits(value[key], each):
            return _problem(value[key], each, (*path, as_line(str(key)[:_KEY])))
    where = f": {'.'.join(path)}" if path else ""
    return f"{where} must be {_words(fields)}, got {shown(value)}"


def _words(fields: Fields) -> str:
    if isinstance(fields, tuple):
        return " or ".join(map(_words, fields))
    if isinstance(fields, range):
        return f"a whole number of {fields.start:,} to {fields.stop - 1:,}"
    if isinstance(fields, set | frozenset):
        return f"one of {', '.join(sorted(fields))}"
    kinds = {int: "a whole number of 0 or more", float: "a finite number", str: "a text", bool: "true or false",
             None: "null", MAYBE_NAN: "a number"}  # fmt: skip
    if isinstance(fields, dict) or fields is dict:
        return "a table"
    return "a list" if isinstance(fields, list) or fields is list else kinds[fields]


def _look_through(value: Any, name: str) -> None:
    """Refuse a document that is too deep, or has a text that UTF-8 cannot carry."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each)
                below.extend(each.values())
            elif isinstance(each, list):
                below.extend(each)
            elif isinstance(each, str) and not each.isascii():
                try:
                    each.encode()
                except UnicodeEncodeError:
                    raise DocumentError(f"{name} has half a character in {shown(printable(each))}") from None
        if not below:
            return
        level = below
    raise DocumentError(f"{name} has tables or lists within each other, too deep")


def _reason(error: json.JSONDecodeError) -> str:
    if error.pos >= len(error.doc.rstrip()):
        return f"it ends after {len(error.doc):,} characters" if error.doc.strip() else "it is empty"
    return f"line {error.lineno:,}, character {error.colno:,} does not belong there"


class _NumberError(ValueError):
    """A number, or a table, that no document of this package has."""


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _NumberError(f"has a number of {len(digits):,} digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _NumberError(f"has the number {text[:_KEY]}, which is too large")
    return number


def _no_constant(text: str) -> float:
    raise _NumberError(f"has the number {text}, which JSON does not know")


def _table(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _NumberError(f"has the key {shown(printable(key))} twice in a table")
            seen.add(key)
    return table


_STRICT = json.JSONDecoder(object_pairs_hook=_table, parse_int=_whole, parse_float=_finite, parse_constant=_no_constant)
_LOOSE = json.JSONDecoder(object_pairs_hook=_table, parse_int=_whole, parse_float=_finite)
