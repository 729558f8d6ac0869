"""What a key of a document takes, by its type and in words, so that a new key needs no words of its own."""

from __future__ import annotations

import difflib
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
class MustBe:
    """Annotates a key's type with words that follow "must be", where those made from the type would say less."""

    text: str


def expected(annotation: Any, metadata: Iterable[Any] = (), *, with_limits: bool = False) -> str:
    """What a type takes, in words that follow "must be".

    Args:
        annotation: the type.
        metadata: its annotations, as pydantic keeps them.
        with_limits: say large limits too.

    Examples:
        >>> expected(int, [Gt(0)])
        'a whole number above 0'
    """
    beside = _flat(metadata)
    for mark in beside:
        if isinstance(mark, MustBe):
            return mark.text
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return expected(inner[0], [*inner[1:], *beside], with_limits=with_limits)
    if origin in (typing.Union, types.UnionType):
        found = [expected(each, with_limits=with_limits) for each in inner if each is not type(None)]
        is_long = any(" or " in words or " and " in words for words in found)
        return (", or " if is_long else " or ").join(dict.fromkeys(found))
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


def type_of_key(root: type[BaseModel], keys: list[str]) -> Any:
    """The type of a key; None where there is none."""
    model: Any = root
    for number, key in enumerate(keys):
        models = [each for each in flat_union(model) if isinstance(each, type) and issubclass(each, BaseModel)]
        if not models or key not in models[0].model_fields:
            values = [typing.get_args(each)[1] for each in flat_union(model) if typing.get_origin(each) is dict]
            return values[0] if values and number == len(keys) - 1 else None
        model = models[0].model_fields[key].annotation
    return model


def flat_union(annotation: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    if typing.get_origin(annotation) is typing.Annotated:
        return flat_union(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [part for each in typing.get_args(annotation) for part in flat_union(each)]
    return [annotation]


def value_kinds(annotation: Any) -> list[Any]:
    """The types of values that a key takes: str for text and for choices of words, list, dict, int and so on."""
    found: list[Any] = []
    for each in flat_union(annotation):
        origin = typing.get_origin(each)
        is_choice = origin is typing.Literal
        found += {type(value) for value in typing.get_args(each)} if is_choice else [origin or each]
    # A key that takes a word or a number, such as t_min, takes no other text.
    return [each for each in found if each is not str] if {int, float, bool} & set(found) else found


def user_key(root: type[BaseModel], location: list[str]) -> tuple[list[str], Any]:
    """The part of pydantic's location that the user wrote, and its field; None for a table."""
    model: Any = root
    kept: list[str] = []
    field = None
    for part in location:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in model.model_fields:
            break
        kept.append(part)
        field = model.model_fields[part]
        model = inner_model(field.annotation)
    return kept or location, field


def inner_model(annotation: Any) -> Any:
    """The model among the members of a type; the type itself where there is none."""
    models = [each for each in flat_union(annotation) if isinstance(each, type) and issubclass(each, BaseModel)]
    return models[0] if models else annotation


def close_name(name: str, names: Any) -> str | None:
    """The known name that was probably meant, such as "memory_per_node" by "memory"; None if none is close."""
    close = difflib.get_close_matches(name[:80], names, n=1, cutoff=0.6)
    if close:
        return str(close[0])
    words = set(name.lower().split("_"))
    return next((each for each in names if len(name) > 2 and words <= set(each.split("_"))), None)
