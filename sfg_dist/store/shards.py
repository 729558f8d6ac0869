"""How a shard is written and committed, in small steps that hold against any interleaving of writers and crashes.

An object is created if absent; one that is there is compared. What nobody can want, an object of the wrong size or
with a checksum that does not fit, is replaced, and only as the very version that was seen. What another writer may
want, an object with other rows, stays, and is a conflict; only where it has been without a commit for ORPHAN_S is its
writer taken for dead. A writer never commits an object that old, nor later than LEASE_S after it began: it begins
again. So no commit can come to stand for bytes that another writer has replaced.

``write_steps`` is a generator that stops before each of its steps, so that tests can run writers against each other
and end them anywhere; ``write_shard`` runs it through.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.errors import ConflictError, StoreError, StoreUnavailableError
from sfg_dist.plan import Plan, seal, unseal
from sfg_dist.store.arrays import ARRAYS, object_bytes, object_key, object_rows, row_digest, shard_layout
from sfg_dist.store.location import Location

LEASE_S = 1500.0
"""Seconds from a writer's first look at a shard within which it may commit."""
ADOPT_S = 1500.0
"""Age up to which an object of equal bytes is taken as it stands; an older one is written again first."""
ORPHAN_S = 3600.0
"""Age from which an object without a commit is a dead writer's; more than LEASE_S + ADOPT_S, for clocks that differ."""
MAX_ROUNDS = 20
"""How often a writer begins again before it says that it cannot get through."""

Record = dict[str, Any]


def commit_key(shard: int) -> str:
    """Where the commit record of a shard lies."""
    return f"commits/{shard:08d}.json"


def parse_record(plan: Plan, shard: int, content: bytes | None) -> Record | None:
    """A commit record, None where there is none, or one that commits nothing: torn, edited, or of another plan."""
    if content is None:
        return None
    try:
        record = unseal(content)
        objects = record["objects"]
        size = object_bytes(plan, shard)
        fits = (
            record["shard"] == shard
            and record["rows"] == list(plan.shard_range(shard))
            and record["run_id"] == plan.record_plan(plan.record_of(shard)).run_id
            and all(objects[name]["key"] == object_key(plan, name, shard) for name in ARRAYS)
            and all(objects[name]["bytes"] == size and len(objects[name]["sha256"]) == 64 for name in ARRAYS)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if fits else None


@dataclass(frozen=True)
class ShardContent:
    """What a shard shall be.

    Attributes:
        objects: array to the bytes of its object.
        digests: array to the sha256 of its rows.
    """

    objects: Mapping[str, bytes]
    digests: Mapping[str, str]

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
    return row_digest(shard_layout(plan).decode(content)[first:stop])


def write_shard(
    location: Location, plan: Plan, shard: int, content: ShardContent, provenance: Mapping[str, Any]
) -> Record:
    """Write and commit a shard; ``write_steps`` without a stop."""
    steps = write_steps(location, plan, shard, content, provenance)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            record: Record = end.value
            return record


def write_steps(
    location: Location, plan: Plan, shard: int, content: ShardContent, provenance: Mapping[str, Any]
) -> Generator[str, None, Record]:
    """Write and commit a shard, yielding the name of each step before it is taken.

    Returns:
        The commit record; the earlier one where there was one with equal digests.

    Raises:
        ConflictError: another attempt has committed other rows, or has written others and may still commit them.
        StoreFullError: no space is left.
        StoreUnavailableError: the store does not answer, or other writers kept this one from getting through.
        StoreError: the store gave back other bytes than were written.
    """
    for _ in range(MAX_ROUNDS):
        began = location.now()
        yield "look at commit"
        committed = parse_record(plan, shard, location.read(commit_key(shard)))
        if committed is not None:
            _require_digests(location, shard, committed, content)
        is_settled = True
        for name in ARRAYS:
            is_settled = is_settled and (yield from _settle(location, plan, shard, name, content, committed))
        if not is_settled:
            continue
        for name in ARRAYS:
            yield f"flush {name}"
            location.flush(object_key(plan, name, shard))
        for name in ARRAYS:
            yield f"read {name} back"
            is_settled = is_settled and _reads_back(location, plan, shard, name, content)
        if not is_settled:
            continue
        if committed is not None:
            return committed
        yield "commit"
        if location.now() - began > LEASE_S:
            continue  # another writer may take these objects for a dead one's
        record = _record(plan, shard, content, provenance)
        document = seal(record)
        if location.create(commit_key(shard), document):
            yield "flush commit"
            location.flush(commit_key(shard))
            return record
        yield "look at the other commit"
        other = location.look(commit_key(shard))
        if other is not None and parse_record(plan, shard, location.read(commit_key(shard))) is None:
            yield "replace torn commit"
            # As a power cut left it: it commits nothing. Where another writer was faster, the next round meets his.
            if location.now() - began <= LEASE_S and location.replace(other, document):
                location.flush(commit_key(shard))
                return record
    raise StoreUnavailableError(
        f"shard {shard} of {location.url}: other writers were in the way {MAX_ROUNDS} times; nothing was lost, try "
        f"again"
    )


def _settle(
    location: Location, plan: Plan, shard: int, name: str, content: ShardContent, committed: Record | None
) -> Generator[str, None, bool]:
    """Bring an object to the bytes that it shall have; False where another writer changed it meanwhile."""
    key, wanted = object_key(plan, name, shard), content.objects[name]
    yield f"look at {name}"
    seen = location.look(key)
    if seen is None:
        yield f"create {name}"
        return location.create(key, wanted)
    stored = location.read(key)
    if stored is None:
        return False  # removed meanwhile
    age = location.now() - seen.modified
    is_whole, is_equal = _compare(plan, shard, name, content, stored)
    if is_equal and (committed is not None or age <= ADOPT_S):
        return True
    if is_whole and not is_equal and committed is None and age <= ORPHAN_S:
        raise ConflictError(
            f"shard {shard} of {location.url}: {key} holds other rows than this attempt's, and no commit yet. Another "
            f"attempt on a machine of another kind may be at work: machines differ in the last bits, give each kind a "
            f"store of its own. If none is, `sfg repair` removes the object, and so does any attempt an hour after it "
            f"was written"
        )
    yield f"replace {name}"
    return location.replace(seen, wanted)


def _compare(plan: Plan, shard: int, name: str, content: ShardContent, stored: bytes) -> tuple[bool, bool]:
    """Whether an object could be some writer's (its size and checksums fit), and whether it holds these rows."""
    if stored == content.objects[name]:
        return True, True
    try:
        return True, stored_digest(plan, shard, stored) == content.digests[name]
    except ValueError:
        return False, False


def _reads_back(location: Location, plan: Plan, shard: int, name: str, content: ShardContent) -> bool:
    """Whether the store gives back the bytes; False where another writer removed them meanwhile."""
    key = object_key(plan, name, shard)
    stored = location.read(key)
    if stored is not None and not _compare(plan, shard, name, content, stored)[1]:
        raise StoreError(
            f"shard {shard}: {location.url}/{key} reads back other bytes than were written; nothing was committed. "
            f"Check the disk, then run the same command again"
        )
    return stored is not None


def _record(plan: Plan, shard: int, content: ShardContent, provenance: Mapping[str, Any]) -> Record:
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
        "run_id": plan.record_plan(plan.record_of(shard)).run_id,
        "objects": objects,
    }
    # As it reads back, so that a caller gets the same whether this attempt or another one made it.
    parsed: Record = json.loads(json.dumps(record))
    return parsed


def _require_digests(location: Location, shard: int, record: Mapping[str, Any], content: ShardContent) -> None:
    for name in ARRAYS:
        if record["objects"][name]["sha256"] != content.digests[name]:
            raise ConflictError(
                f"shard {shard} of {location.url}: {name} came out with other bytes than the committed ones, which "
                f"stay. Machines of different kinds differ in the last bits; give each kind its own store"
            )
