"""What a key takes and what it was given, in words: made from its type, so that a new key needs none of its own."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

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
        most = next((mark.max_length for mark in beside if isinstance(mark, MaxLen)), None)
        number = f" of {least}" if least == most else " of at least one" if least else ""
        return f"a list{number}, each {expected(inner[0], with_limits=with_limits)}"
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
        elif isinstance(mark, Lt) and (with_limits or _limit(mark.lt) < _SAID_LIMIT):
            said.append(f"below {_number(mark.lt)}")
        elif isinstance(mark, Le) and (with_limits or _limit(mark.le) < _SAID_LIMIT):
            said.append(f"at most {_number(mark.le)}")
    return [" and ".join(said)] if said else []


def _limit(value: Any) -> float:
    return float(value)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _choice(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
