"""How a shard is written and committed, in small steps that hold against any interleaving of writers and crashes.

An object is created only if it is absent. One that is there is compared with what this writer holds.

- Where its size or a checksum is wrong, no writer can want it. It is replaced, but only as the version that was seen.
- Where it holds other rows, another writer may want it. It stays, and that is a conflict. Only after ORPHAN_S without a
  commit is its writer taken for dead.

No writer replaces an object or commits later than LEASE_S after its first look: it begins again. To commit or replace
objects that are old by then, a writer needs the shard's claim, an object that one writer at a time can have. So a
commit never stands for bytes that another writer has replaced.

The versions of an object store are digests. They tell that an object is another one, not that it was written again.
That is why an old object is claimed and not touched. The bytes of a claim are never used twice.

``write_steps`` is a generator that stops before each of its steps, so that tests can run writers against each other
and end them anywhere; ``write_shard`` runs it through.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Mapping
from typing import Any

from sfg_dist.job.errors import ConflictError, StoreError, StoreUnavailableError
from sfg_dist.job.plan import Plan
from sfg_dist.job.seal import seal
from sfg_dist.store.arrays import ARRAYS, object_key
from sfg_dist.store.commits import CommitRecord, ShardContent, commit_key, find_record, make_record, stored_digest
from sfg_dist.store.location import Location

LEASE_S = 1500.0
"""Seconds from a writer's first look at a shard within which he may replace an object or commit."""
ADOPT_S = 1500.0
"""Age up to which an object of equal rows is taken as it stands; for an older one, the shard's claim is needed."""
ORPHAN_S = 3600.0
"""Age from which an object without a commit is a dead writer's; more than LEASE_S + ADOPT_S, for clocks that differ."""
MAX_ROUNDS = 20
"""How often a writer begins again before it says that it cannot get through."""

Steps = Generator[str, None, bool]


def claim_key(shard: int) -> str:
    """Where the claim to a shard's old objects lies, as long as there is one."""
    return f"claims/{shard:08d}.json"


def write_shard(
    location: Location, plan: Plan, shard: int, content: ShardContent, provenance: Mapping[str, Any]
) -> CommitRecord:
    """Write and commit a shard; ``write_steps`` without a stop."""
    steps = write_steps(location, plan, shard, content, provenance)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            record: CommitRecord = end.value
            return record


def write_steps(
    location: Location, plan: Plan, shard: int, content: ShardContent, provenance: Mapping[str, Any]
) -> Generator[str, None, CommitRecord]:
    """Write and commit a shard, yielding the name of each step before it is taken.

    Returns:
        The commit record; the earlier one where there was one with equal digests.

    Raises:
        ConflictError: another attempt has committed other rows, or has written others and may still commit them.
        StoreFullError: no space is left.
        StoreUnavailableError: the store does not answer, or other writers kept this one from getting through.
        StoreError: the store gave back other bytes than were written.
    """
    attempt = _Attempt(location, plan, shard, content, provenance)
    for _ in range(MAX_ROUNDS):
        if (yield from attempt.round()):
            assert attempt.record is not None
            return attempt.record
    raise StoreUnavailableError(
        f"shard {shard} of {location.url}: other writers were in the way {MAX_ROUNDS} times; nothing was lost, try "
        f"again"
    )


class _Attempt:
    """One writer at one shard. Its steps say True where they got through, False where all must begin again."""

    def __init__(
        self, location: Location, plan: Plan, shard: int, content: ShardContent, provenance: Mapping[str, Any]
    ) -> None:
        self.location, self.plan, self.shard = location, plan, shard
        self.content, self.provenance = content, provenance
        self.keys = {name: object_key(plan, name, shard) for name in ARRAYS}
        self.record: CommitRecord | None = None
        """The commit record, found or made."""
        self._began = 0.0
        self._created: set[str] = set()
        """Arrays whose object this attempt has put there."""
        self._claim = b""

    def round(self) -> Steps:
        """From the first look to the commit."""
        self._began = self.location.now()
        yield "look at commit"
        self.record = find_record(self.location, self.plan, self.shard)
        if self.record is not None:
            yield from self._require_digests(self.record)
        for name in ARRAYS:
            if not (yield from self._settle(name)):
                return False
        for name in ARRAYS:
            yield f"flush {name}"
            self.location.flush(self.keys[name])
        for name in ARRAYS:
            yield f"read {name} back"
            if not self._reads_back(name):
                return False
        return self.record is not None or (yield from self._commit())

    def _settle(self, name: str) -> Steps:
        """Bring an object to the rows that it shall have."""
        key, wanted = self.keys[name], self.content.objects[name]
        yield f"look at {name}"
        seen = self.location.look(key)
        if seen is None:
            yield f"create {name}"
            self._created.add(name)
            return self.location.create(key, wanted)
        yield f"read {name}"
        stored = self.location.read(key)
        if stored is None:
            return False  # removed meanwhile
        age = self.location.now() - seen.modified
        is_whole, is_equal = self._compare(name, stored)
        if is_equal and (self.record is not None or age <= ADOPT_S):
            return True
        if is_whole and self.record is None:
            if age <= (ADOPT_S if is_equal else ORPHAN_S):
                raise self._conflict(f"{key} holds other rows than this attempt's, and no commit yet")
            if not (yield from self._take_claim()):
                return False
            if is_equal:
                return True
        yield f"replace {name}"
        self._created.add(name)
        return not self._is_late and self.location.replace(seen, wanted)

    def _commit(self) -> Steps:
        """Create the record, or put it in place of a torn one."""
        key, record = commit_key(self.shard), make_record(self.plan, self.shard, self.content, self.provenance)
        document = seal(record)
        yield "commit"
        if self._is_late:
            return False
        if not self.location.create(key, document):
            yield "look at the other commit"
            seen = self.location.look(key)
            yield "read the other commit"
            if seen is None or find_record(self.location, self.plan, self.shard) is not None:
                return False
            yield "replace torn commit"  # as a power cut left it: it commits nothing
            if self._is_late or not self.location.replace(seen, document):
                return False
        yield "flush commit"
        self.location.flush(key)
        self.record = record
        if self._claim:
            yield "give up claim"
            self.location.delete(claim_key(self.shard))
        return True

    def _take_claim(self) -> Steps:
        """Have the claim since before this round began; False where it was taken just now, or another was faster.

        Raises:
            StoreUnavailableError: another writer has it, and may be alive.
        """
        key = claim_key(self.shard)
        yield "look at claim"
        seen = self.location.look(key)
        if seen is not None:
            yield "read claim"
            age = self.location.now() - seen.modified
            if self._claim and self.location.read(key) == self._claim:
                if age <= ADOPT_S:
                    return True
            elif age <= ORPHAN_S:
                raise StoreUnavailableError(
                    f"shard {self.shard} of {self.location.url} is being finished by another writer, see {key}: try "
                    f"again"
                )
        yield "take claim"
        self._claim = json.dumps({"writer": uuid.uuid4().hex}).encode()
        if seen is None:
            self.location.create(key, self._claim)
        elif not self._is_late:
            self.location.replace(seen, self._claim)
        return False  # what was seen before the claim may have changed since

    @property
    def _is_late(self) -> bool:
        """Whether other writers may take this one for dead."""
        return self.location.now() - self._began > LEASE_S

    def _compare(self, name: str, stored: bytes) -> tuple[bool, bool]:
        """Whether an object could be some writer's (its size and checksums fit), and whether it holds these rows."""
        if stored == self.content.objects[name]:
            return True, True
        try:
            return True, stored_digest(self.plan, self.shard, stored) == self.content.digests[name]
        except ValueError:
            return False, False

    def _reads_back(self, name: str) -> bool:
        """Whether the store gives back the rows; False where another writer removed them meanwhile, as he may."""
        stored = self.location.read(self.keys[name])
        if stored is None or self._is_late:
            return False
        if not self._compare(name, stored)[1]:
            raise StoreError(
                f"shard {self.shard}: {self.location.url}/{self.keys[name]} reads back other bytes than were "
                "written, and nothing was committed: check the disk, then run the same command again"
            )
        return True

    def _require_digests(self, record: CommitRecord) -> Generator[str, None, None]:
        """Refuse to go on beside a commit of other rows.

        Where its objects had been lost, this attempt may have put its own in their place before it knew of the commit.
        They are emptied, so that the shard is found to be bad.
        """
        others = [name for name in ARRAYS if record["objects"][name]["sha256"] != self.content.digests[name]]
        for name in sorted(self._created.intersection(others)):
            yield f"look at own {name}"
            seen = self.location.look(self.keys[name])
            yield f"read own {name}"
            if seen is not None and self.location.read(self.keys[name]) == self.content.objects[name]:
                yield f"empty own {name}"
                self.location.replace(seen, b"")
        if others:
            raise self._conflict(f"{others[0]} came out with other bytes than the committed ones, which stay")

    def _conflict(self, what: str) -> ConflictError:
        return ConflictError(
            f"shard {self.shard} of {self.location.url}: {what}. Machines of different kinds differ in the last bits: "
            f"give each kind a store of its own. An object without a commit is removed by `sfg repair`, and by any "
            f"attempt an hour after it was written"
        )
