"""Finished parts of a study in its output directory, and typed records as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sfg_dist.job.errors import DocumentError
from sfg_dist.job.reader import LONG_BYTES, Fields, read_json
from sfg_dist.job.words import as_line, shown

if TYPE_CHECKING:
    from sfg_dist.store import Location

T = TypeVar("T")
Keys = Mapping[str, object]
"""All that decides a part of a study."""


class Records:
    """The finished parts of a study, FOLDER/NAME.json each. A part is made again only when its keys have changed.

    ``folder`` is the study's, such as "compare"; ``fields`` are what a part's document must hold beside its keys.
    """

    def __init__(self, output: Location, folder: str, fields: Fields) -> None:
        self.output, self.folder, self._fields = output, folder, fields

    def load(self, name: str, keys: Keys, read: Callable[[Any], T]) -> T | None:
        """A part, such as "cells/nsf_0", made under these very keys; None if it is missing, unfinished or unreadable.

        ``keys`` are all that decides it. ``read`` makes the part from its document, or raises a DocumentError.
        """
        try:
            content = self.output.read(f"{self.folder}/{name}.json", LONG_BYTES)
            document = read_json(content, name, {"keys": object, **self._fields}, max_bytes=LONG_BYTES, allow_nan=True)
            return read(document) if document.pop("keys") == json.loads(json.dumps(keys)) else None
        except DocumentError:
            return None

    def save(self, name: str, keys: Keys, document: Mapping[str, object]) -> None:
        """Write a part; other files that belong to it are written before."""
        content = json.dumps({"keys": keys, **document}, indent=1)
        self.output.write(f"{self.folder}/{name}.json", content.encode())


def to_json(record: Any) -> Any:
    """A dataclass, and what it holds, as JSON; a field whose default is None is left out while it is None."""
    if is_dataclass(record):
        values = ((each, getattr(record, each.name)) for each in fields(record))
        return {each.name: to_json(value) for each, value in values if value is not None or each.default is not None}
    if isinstance(record, Mapping):
        return {key: to_json(value) for key, value in record.items()}
    return [to_json(value) for value in record] if isinstance(record, list | tuple) else record


def from_json(kind: type[T], value: object, name: str) -> T:
    """The dataclass that ``to_json`` gave a document of; keys that it does not know are passed over.

    Raises:
        DocumentError: a field is missing or has a wrong type; the message begins with ``name``.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(as_line(str(part)[:64]) for part in problem["loc"])
        is_missing = problem["type"] == "missing"
        wrong = "is missing" if is_missing else f"has the wrong type or size: {shown(problem['input'])}"
        raise DocumentError(f"{name}: {place} {wrong}") from None
