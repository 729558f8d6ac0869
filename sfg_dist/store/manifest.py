"""The manifest of a frame, ``frame.json``: key, size and sha256 of each object, in the order of writing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from sfg_dist.job.errors import DocumentError, StoreError
from sfg_dist.job.plan import Plan
from sfg_dist.job.reader import LONG_BYTES, read_json
from sfg_dist.job.words import shown
from sfg_dist.store.location import Location

MANIFEST_KEY = "frame.json"
NO_DIGEST = "0" * 64
"""As long as a digest, where only sizes are asked for."""


@dataclass(frozen=True)
class ManifestEntry:
    """One object of a frame."""

    key: str
    bytes: int
    sha256: str = NO_DIGEST


def entry_of(key: str, content: bytes) -> ManifestEntry:
    """The entry of an object that holds these bytes."""
    return ManifestEntry(key, len(content), sha256(content))


def sha256(content: bytes) -> str:
    """The digest of an object's bytes."""
    return hashlib.sha256(content).hexdigest()


def manifest_json(entries: Iterable[ManifestEntry]) -> bytes:
    """The manifest as it is stored."""
    return json.dumps([asdict(entry) for entry in entries], indent=0).encode()


def read_manifest(location: Location, plan: Plan) -> dict[str, ManifestEntry]:
    """What the frame holds, by key.

    Raises:
        StoreError: the manifest is missing, or is not the one that the plan names.
    """
    content = location.read(MANIFEST_KEY, LONG_BYTES)
    if content is None or sha256(content) != plan.frame:
        state = "is missing" if content is None else "was changed: its digest is not the one in the plan"
        raise StoreError(f"{location.url}/{MANIFEST_KEY} {state}; run `sfg verify` and `sfg repair` on the store")
    try:
        found = read_json(content, "it", [{"key": str, "bytes": int, "sha256": str}], max_bytes=LONG_BYTES)
        entries = {entry["key"]: ManifestEntry(entry["key"], entry["bytes"], entry["sha256"]) for entry in found}
        for key in entries:
            parts = PurePosixPath(key).parts
            if not 0 < len(key) <= 255 or "/".join(parts) != key or ".." in parts:
                raise DocumentError(f"{shown(key)} is no name of an object")
        if not entries:
            raise DocumentError("it names no object")
    except DocumentError as error:
        raise StoreError(f"{location.url}/{MANIFEST_KEY} is no manifest of a frame: {error}") from None
    return entries
