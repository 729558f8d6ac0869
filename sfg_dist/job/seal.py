"""JSON documents sealed with a digest over all of their fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sfg_dist.job.errors import DocumentError
from sfg_dist.job.reader import LONG_BYTES, read_json
from sfg_dist.job.words import shown

FORMAT_VERSION, LATER_FORMAT_VERSION = 2, 4
"""Of stores, and of those that earlier versions cannot go on with: under a measured certificate, or debiased."""


def digest_of(value: Any) -> str:
    """sha256 of a value's JSON, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal(fields: Mapping[str, Any]) -> bytes:
    """A JSON document of these fields that says the digest of them all."""
    return json.dumps({**fields, "sha256": digest_of(fields)}, indent=1, sort_keys=True).encode()


def unseal(document: bytes, max_bytes: int = LONG_BYTES) -> dict[str, Any]:
    """The fields of a document that ``seal`` made, of so many bytes at most.

    Raises:
        DocumentError: it is none, is of another format version, or was edited: its digest does not fit its content.
    """
    fields: dict[str, Any] = read_json(document, "it", max_bytes=max_bytes, allow_nan=True)
    digest = fields.pop("sha256", None)
    if (version := fields.get("format_version", FORMAT_VERSION)) not in (FORMAT_VERSION, LATER_FORMAT_VERSION):
        raise DocumentError(
            f"format {shown(version)}, this version reads format {FORMAT_VERSION} or {LATER_FORMAT_VERSION}"
        )
    if digest is None:
        raise DocumentError("it has no digest")
    if digest != digest_of(fields):
        raise DocumentError("its digest does not fit its content: it was edited")
    return fields
