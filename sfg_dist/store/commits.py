"""Commit records: what a shard must be to be committed, and what its record says.

A record is sealed with a digest of its own, so an edited one commits nothing, as a torn one does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import DocumentError, StoreError
from sfg_dist.job.plan import Plan
from sfg_dist.job.reader import MAX_BYTES, MAYBE_NAN, check_fields, read_json
from sfg_dist.job.seal import unseal
from sfg_dist.store.arrays import ARRAYS, object_bytes, object_key, object_rows, row_digest, shard_layout
from sfg_dist.store.location import Location


class ObjectRecord(TypedDict):
    """What a commit record says of an object; sha256 is of its rows."""

    key: str
    bytes: int
    sha256: str


class CommitRecord(TypedDict):
    """A commit record. It may hold further keys, which later versions write and this one keeps.

    The keys that may be missing say how the shard was made.
    """

    shard: int
    rows: list[int]
    run_id: str
    objects: dict[str, ObjectRecord]
    device: NotRequired[str | None]
    host: NotRequired[str | None]
    pid: NotRequired[int | None]
    attempt: NotRequired[int]
    seconds: NotRequired[float]
    finished: NotRequired[float]
    evaluations: NotRequired[float]
    pairs: NotRequired[int]
    tolerance_reached: NotRequired[float]
    step_control_exceeded: NotRequired[int]
    measured: NotRequired[int]
    measured_over: NotRequired[int]
    measured_largest: NotRequired[float]
    rows_bounded: NotRequired[int]


_FIELDS = {
    "shard": int, "rows": [int], "run_id": str,
    "objects": {name: {"key": str, "bytes": int, "sha256": str} for name in ARRAYS},
    "device?": (str, None), "host?": (str, None), "pid?": (int, None), "attempt?": int, "seconds?": float,
    "finished?": float, "evaluations?": float, "pairs?": float, "tolerance_reached?": MAYBE_NAN,
    "step_control_exceeded?": int, "measured?": int, "measured_over?": int, "measured_largest?": MAYBE_NAN,
    "rows_bounded?": int,
}  # fmt: skip


def commit_key(shard: int) -> str:
    """Where the commit record of a shard lies."""
    return f"commits/{shard:08d}.json"


def find_record(location: Location, plan: Plan, shard: int) -> CommitRecord | None:
    """The commit record that lies in a store, as ``parse_record`` has it."""
    return parse_record(plan, shard, location.read(commit_key(shard), MAX_BYTES))


def find_records(location: Location, plan: Plan, shards: Sequence[int]) -> Iterator[tuple[int, CommitRecord]]:
    """Those of many shards; what commits nothing is left out."""
    contents = location.read_many(map(commit_key, shards), MAX_BYTES)
    for shard, (_, content) in zip(shards, contents, strict=True):
        if (record := parse_record(plan, shard, content)) is not None:
            yield shard, record


def parse_record(plan: Plan, shard: int, content: bytes | None) -> CommitRecord | None:
    """A commit record, None where there is none, or one that commits nothing: torn, edited, or of another plan."""
    try:
        return None if content is None else read_record(plan, shard, content)
    except DocumentError:
        return None


def read_record(plan: Plan, shard: int, content: bytes) -> CommitRecord:
    """A commit record.

    Raises:
        DocumentError: it commits nothing; the message says why.
    """
    document = unseal(content, MAX_BYTES)
    check_fields(document, _FIELDS, "it")
    record = cast(CommitRecord, document)
    objects, size = record["objects"], object_bytes(plan, shard)
    fits = (
        record["shard"] == shard
        and record["rows"] == list(plan.shard_range(shard))
        and record["run_id"] == plan.record_run_ids[plan.record_of(shard)]
        and all(objects[name]["key"] == object_key(plan, name, shard) for name in ARRAYS)
        and all(objects[name]["bytes"] == size and len(objects[name]["sha256"]) == 64 for name in ARRAYS)
    )
    if not fits:
        raise DocumentError("it is of another shard or another plan")
    return record


@dataclass(frozen=True)
class ShardContent:
    """What a shard shall be."""

    objects: Mapping[str, bytes]  # array to the bytes of its object
    digests: Mapping[str, str]  # array to the sha256 of its rows

    @classmethod
    def of(cls, plan: Plan, shard: int, latents: NDArray[np.float32], labels: NDArray[np.float32]) -> ShardContent:
        """The objects of a shard's rows.

        Raises:
            StoreError: the rows are not finite, or not as many as the shard has.
        """
        start, stop = plan.shard_range(shard)
        layout, first = shard_layout(plan), object_rows(plan, shard)[0]
        objects, digests = {}, {}
        for name, rows in zip(ARRAYS, (latents, labels), strict=True):
            if rows.shape != (stop - start, plan.dim) or not np.isfinite(rows).all():
                raise StoreError(
                    f"shard {shard}: {name} must be finite and have {stop - start} rows of {plan.dim} columns, got "
                    f"shape {rows.shape}"
                )
            content = layout.encode(np.asarray(rows, dtype="<f4"), first)
            assert content is not None
            objects[name], digests[name] = content, row_digest(rows)
        return cls(objects, digests)


def stored_digest(plan: Plan, shard: int, content: bytes) -> str:
    """sha256 of the rows that a shard's object holds.

    Raises:
        ValueError: a checksum does not fit, or it is not an object of this store.
    """
    if len(content) != object_bytes(plan, shard):
        raise ValueError(f"it has {len(content)} bytes, expected {object_bytes(plan, shard)}")
    first, stop = object_rows(plan, shard)
    layout = shard_layout(plan)
    return row_digest(
        layout.decode(content, first, stop) if layout.is_cut else layout.decode_chunk(content)[first:stop]
    )


def make_record(plan: Plan, shard: int, content: ShardContent, provenance: Mapping[str, Any]) -> CommitRecord:
    """The commit record of a shard: what it holds, of which plan, and what its maker says of himself."""
    objects = {
        name: {
            "key": object_key(plan, name, shard),
            "sha256": content.digests[name],
            "bytes": len(content.objects[name]),
        }
        for name in ARRAYS
    }
    record = {
        **provenance,
        "shard": shard,
        "rows": list(plan.shard_range(shard)),
        "run_id": plan.record_run_ids[plan.record_of(shard)],
        "objects": objects,
    }
    # As it reads back, so that a caller gets the same whether this attempt or another one made it.
    parsed: CommitRecord = read_json(json.dumps(record), f"the commit record of shard {shard}", _FIELDS, allow_nan=True)
    return parsed
