"""Documents of tables and keys against their models: overrides, and problems in words that name the key."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sfg_dist.errors import ConfigError

Model = type[BaseModel]
_T = TypeVar("_T", bound=BaseModel)


def checked(root: type[_T], document: Mapping[str, Any], origin: str) -> _T:
    """The document as its model.

    Args:
        root: the model of the whole document.
        document: tables of keys, as a TOML document would give them.
        origin: what the error message calls it.

    Raises:
        ConfigError: a key is unknown or a value is wrong; all problems are listed.
    """
    try:
        return root.model_validate(dict(document))
    except ValidationError as error:
        lines = [_describe(root, problem) for problem in error.errors()]
        lines = list(dict.fromkeys(lines))  # a union reports one problem once per member
        raise ConfigError(f"{origin}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])) from None


def apply_override(document: dict[str, Any], assignment: str) -> None:
    """Set a key of a document, in place.

    Raises:
        ConfigError: the assignment is none.
    """
    name, equals, text = assignment.partition("=")
    keys = name.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"--set {assignment}: expected table.key=value, for example labels.num_pairs=10000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word or a path is a string
    table = document
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = table[key] = {}  # data.dequantize.AT=0.1 replaces dequantize="auto"
        table = inner
    table[keys[-1]] = value


def _describe(root: Model, problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        return _describe_unknown(root, location)
    # A union adds the name of the member it tried; the user's key ends before it.
    key = ".".join(_user_key(root, location))
    if problem["type"] == "missing":
        return f"{key} is required and has no default"
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    shown = "" if isinstance(given, dict) and problem["type"] == "value_error" else f", got {given!r}"
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"


def _user_key(root: Model, location: list[str]) -> list[str]:
    model: Any = root
    kept: list[str] = []
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            if part not in model.model_fields:
                break
            kept.append(part)
            model = _inner_model(model.model_fields[part].annotation)
        else:
            break
    return kept or location


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        models = [a for a in typing.get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        return models[0] if models else None
    return annotation


def _describe_unknown(root: Model, location: list[str]) -> str:
    parent = _user_key(root, location[:-1])
    model: Any = root
    for part in parent if location[:-1] else []:
        model = _inner_model(model.model_fields[part].annotation)
    if len(location) == 1 or not (isinstance(model, type) and issubclass(model, BaseModel)):
        model, parent = root, []
    name = location[-1]
    prefix = ".".join([*parent, ""]) if parent else ""
    close = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.6)
    if close:
        hint = f"did you mean {prefix}{close[0]}?"
    else:
        elsewhere = [
            f"{table}.{name}"
            for table, field in root.model_fields.items()
            if name in getattr(field.annotation, "model_fields", {})
        ]
        hint = f"did you mean {elsewhere[0]}?" if elsewhere else f"valid keys: {', '.join(model.model_fields)}"
    return f"unknown key {prefix}{name}; {hint}"
