"""What a key takes and what it was given, in words: made from its type, so that a new key needs none of its own."""

from __future__ import annotations

import datetime
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

MAX_COUNT = 2**53
"""Counts above are not what was typed, where it was typed as 1e20."""
_LONG = 60  # characters of a value that a message shows
_SAID_LIMIT = 1e9  # larger limits are said only where they are passed


@dataclass(frozen=True)
class Words:
    """Stands in a key's type where words say better what it takes; follows "must be"."""

    text: str


def expected(annotation: Any, metadata: Iterable[Any] = (), *, with_limits: bool = False) -> str:
    """What a type takes, in words that follow "must be".

    Args:
        annotation: the type.
        metadata: what stands beside it, as pydantic keeps it.
        with_limits: say large limits too.

    Example:
        >>> expected(int, [Gt(0)])
        'a whole number above 0'
    """
    beside = _flat(metadata)
    for mark in beside:
        if isinstance(mark, Words):
            return mark.text
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return expected(inner[0], [*inner[1:], *beside], with_limits=with_limits)
    if origin in (typing.Union, types.UnionType):
        found = [expected(each, with_limits=with_limits) for each in inner if each is not type(None)]
        return " or ".join(dict.fromkeys(found))
    if origin is typing.Literal:
        return _choice([repr(each) for each in inner])
    if origin is list:
        least = next((mark.min_length for mark in beside if isinstance(mark, MinLen)), 0)
        return f"a list{' of at least one, ' if least else ', '}each {expected(inner[0], with_limits=with_limits)}"
    if origin is dict:
        return f"a table of names, each with {expected(inner[1], with_limits=with_limits)}"
    if annotation is str:
        return "text that is not empty" if any(isinstance(mark, MinLen) for mark in beside) else "text"
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        noun = "a whole number" if annotation is int else "a number"
        return " ".join([noun, *_bounds(beside, with_limits)])
    return "a table" if isinstance(annotation, type) and issubclass(annotation, BaseModel) else "another kind of value"


def shown(value: Any) -> str:
    """A value as a message shows it: short, printable, and never the inside of an object.

    Example:
        >>> shown(1e30), shown("ten"), shown([1, 2]), shown(object())
        ('1e+30', "'ten'", '[1, 2]', 'an object of type object')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, int):
        is_long = abs(value) >= 10**_LONG
        return f"a number of about {int(math.log10(2) * value.bit_length()) + 1:,} digits" if is_long else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        more = len(value) - _LONG
        return repr(value) if more <= 0 else f"{value[:_LONG]!r} and {more:,} more characters"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | tuple | set):
        parts = [shown(each) for each in list(value)[:_LONG]]
        text = f"[{', '.join(parts)}]"
        return text if len(value) <= _LONG and len(text) <= _LONG else f"a list of {len(value):,}"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, type) or callable(value):
        return f"a {'class' if isinstance(value, type) else 'function'}, {getattr(value, '__name__', 'without a name')}"
    return f"{'an' if type(value).__name__[:1] in 'aeiouAEIOU' else 'a'} object of type {type(value).__name__}"[:200]


def plain(value: Any) -> Any:
    """A value as a TOML document could hold it: what numpy, pathlib and tuples put in its place, taken out.

    Anything else stays as it is, for the checks to name.
    """
    if isinstance(value, str | bytes | bool | int | float) and type(value).__module__ == "builtins":
        return value
    if isinstance(value, Mapping):
        return {plain(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "numpy":
        if getattr(value, "ndim", None) == 0:
            return plain(value.item()) if value.dtype.kind in "biufU" else value
        if getattr(value, "ndim", None) == 1 and value.dtype.kind in "biufUO" and value.size <= 10_000:
            return [plain(each) for each in value.tolist()]
    return value


def printable(text: str) -> str:
    """A text that a terminal shows and does not obey: control characters and what is no text are written out.

    Example:
        >>> printable("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return "".join(
        c if c in "\n\t" or c.isprintable() or (c == "\xa0") else c.encode("unicode_escape").decode() for c in text
    )


def _flat(metadata: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for mark in metadata:
        found += _flat(mark.metadata) if isinstance(mark, FieldInfo) else [mark]
    return found


def _bounds(beside: Iterable[Any], with_limits: bool) -> list[str]:
    said = []
    for mark in beside:
        if isinstance(mark, Gt):
            said.append(f"above {_number(mark.gt)}")
        elif isinstance(mark, Ge):
            said.append(f"of {_number(mark.ge)} or more")
        elif isinstance(mark, Lt) and (with_limits or mark.lt < _SAID_LIMIT):
            said.append(f"below {_number(mark.lt)}")
        elif isinstance(mark, Le) and (with_limits or mark.le < _SAID_LIMIT):
            said.append(f"at most {_number(mark.le)}")
    return [" and ".join(said)] if said else []


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _choice(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
