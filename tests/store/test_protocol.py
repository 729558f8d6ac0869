"""Writers at one shard, interleaved step by step, ended anywhere, with power cuts and damage: what must always hold.

The machine drives the steps of the real protocol over a location in memory. That one models a local disk, where what
was not flushed may be lost, empty or as before after a power cut, and an object store, where a version is a digest.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sfg_dist.job.errors import ConflictError, StoreError, StoreUnavailableError
from sfg_dist.job.plan import Plan
from sfg_dist.store import Entry, Pairs, verify
from sfg_dist.store import shards as protocol
from sfg_dist.store.arrays import ARRAYS, object_key
from sfg_dist.store.commits import ShardContent, commit_key, parse_record, stored_digest

LABELS = {"direction": "decode", "batch_size": 4, "seed": 0}
PLAN = Plan({"labels": LABELS, "reference": "x", "queries": None}, 4, 1, 4, ("x",), "table", {})
KEYS = [object_key(PLAN, name, 0) for name in ARRAYS]
COMMIT = commit_key(0)
WRITERS = range(3)


def content_of(kind):
    """The rows of a kind of machine: the latents are the same on all, the labels are not."""
    return ShardContent.of(PLAN, 0, np.arange(4, dtype=np.float32)[:, None], np.full((4, 1), kind, np.float32))


CONTENTS = {kind: content_of(kind) for kind in (0, 1)}


@dataclass
class Stored:
    content: bytes
    modified: float
    version: str


class ModelLocation:
    """Objects in memory, what of them has reached the disk, and a clock that the test moves."""

    url = "model"

    def __init__(self, is_disk):
        self.is_disk = is_disk
        self.objects: dict[str, Stored] = {}
        self.durable: dict[str, Stored] = {}
        self.clock = 1e9
        self.serial = 0
        self.on_change = lambda key: None

    def now(self):
        return self.clock

    def look(self, key):
        stored = self.objects.get(key)
        return stored and Entry(key, len(stored.content), stored.modified, stored.version)

    def read(self, key, most=None):
        stored = self.objects.get(key)
        return stored and stored.content

    def create(self, key, content):
        if key in self.objects:
            return False
        self.put(key, content)
        return True

    def replace(self, seen, content):
        if seen.key not in self.objects or self.objects[seen.key].version != seen.version:
            return False
        self.put(seen.key, content)
        return True

    def delete(self, key):
        self.put(key, None)

    def put(self, key, content):
        self.on_change(key)
        self.serial += 1
        version = f"{self.serial}" if self.is_disk else hashlib.sha256(content or b"").hexdigest()
        if content is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = Stored(content, self.clock, version)
        if not self.is_disk:
            self.flush(key)

    def flush(self, key):
        if key in self.objects:
            self.durable[key] = self.objects[key]
        else:
            self.durable.pop(key, None)

    def unflushed(self):
        keys = self.objects.keys() | self.durable.keys()
        return sorted(key for key in keys if self.objects.get(key) is not self.durable.get(key))

    def power_cut(self, fates):
        for key in self.unflushed():
            fate = fates.draw(st.sampled_from(["kept", "as before", "empty"]), label=key)
            if fate == "as before":
                self.objects.pop(key, None)
                if key in self.durable:
                    self.objects[key] = self.durable[key]
            elif fate == "empty" and key in self.objects:
                self.serial += 1
                self.objects[key] = Stored(b"", self.clock, f"{self.serial}")
        self.durable = dict(self.objects)

    def walk(self, prefix=""):
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield self.look(key)


class Protocol(RuleBasedStateMachine):
    @initialize(is_disk=st.booleans(), leftover=st.sampled_from(["none", 0, 1, "torn"]))
    def begin(self, is_disk, leftover):
        self.location = ModelLocation(is_disk)
        self.location.on_change = self.before_change
        self.writers = {}
        self.kinds = {}
        self.damaged = set()
        self.disturbed = set()  # writers at work while something was damaged
        self.commit = None  # the document of the commit, once there is one
        if leftover != "none":
            for name, key in zip(ARRAYS, KEYS, strict=True):
                self.location.put(key, b"torn" if leftover == "torn" else CONTENTS[leftover].objects[name])
                self.location.flush(key)
            self.location.clock += 2 * protocol.ORPHAN_S

    # What the machine does.

    @rule(writer=st.sampled_from(WRITERS), kind=st.sampled_from([0, 0, 1]))
    def start(self, writer, kind):
        if writer not in self.writers:
            steps = protocol.write_steps(self.location, PLAN, 0, CONTENTS[kind], {"writer": writer})
            self.writers[writer], self.kinds[writer] = steps, kind
            self.disturbed.discard(writer)

    @rule(writer=st.sampled_from(WRITERS), num_steps=st.integers(1, 12))
    def go_on(self, writer, num_steps):
        for _ in range(num_steps):
            if writer in self.writers:
                self.step(writer)
                self.check()

    @rule(writer=st.sampled_from(WRITERS), step=st.sampled_from(["create", "replace", "commit", "take claim"]))
    def go_on_until(self, writer, step):
        """To the moment before a step that changes something."""
        for _ in range(30):
            if writer not in self.writers or self.step(writer).startswith(step):
                break
            self.check()

    def step(self, writer):
        """Take one step; the name of the next one."""
        try:
            return next(self.writers[writer])
        except StopIteration as end:
            digests = {name: entry["sha256"] for name, entry in end.value["objects"].items()}
            assert digests == CONTENTS[self.kinds[writer]].digests
            del self.writers[writer]
        except (ConflictError, StoreUnavailableError):
            del self.writers[writer]
        except StoreError:  # it read back other bytes than it wrote
            del self.writers[writer]
            if writer not in self.disturbed:
                raise
        return ""

    @rule(writer=st.sampled_from(WRITERS))
    def kill(self, writer):
        if writer in self.writers:
            self.writers.pop(writer).close()

    @rule(seconds=st.sampled_from([60.0, 1000.0, 1600.0, 4000.0]))
    def wait(self, seconds):
        self.location.clock += seconds

    @rule(fates=st.data())
    def power_cut(self, fates):
        for steps in self.writers.values():
            steps.close()
        self.writers = {}
        was_durable = self.location.durable.get(COMMIT) is self.location.objects.get(COMMIT)
        self.location.power_cut(fates)
        if not was_durable:
            self.commit = None  # nobody was promised that it would stay

    @precondition(lambda self: self.commit is not None)
    @rule(key=st.sampled_from(KEYS), how=st.sampled_from(["flip", "truncate", "empty", "delete"]))
    def damage_data(self, key, how):
        content = self.location.read(key)
        if content:
            self.damaged.add(key)
            self.disturbed.update(self.writers)
            changed = {"flip": bytes([content[0] ^ 1]) + content[1:], "truncate": content[:7], "empty": b""}
            self.location.put(key, changed.get(how))
            self.location.flush(key)

    @precondition(lambda self: self.commit is not None)
    @rule(content=st.sampled_from([None, b"", b"{}"]))
    def damage_commit(self, content):
        self.commit = None
        self.disturbed.update(self.writers)
        if not self.writers:  # one that has read them back before they were damaged may still commit them
            self.damaged.clear()  # they are nobody's now
        self.location.put(COMMIT, content)
        self.location.flush(COMMIT)

    # What must hold.

    def record(self):
        return parse_record(PLAN, 0, self.location.read(COMMIT))

    def before_change(self, key):
        if self.commit is not None and key == COMMIT:
            raise AssertionError("a commit was changed")
        if self.commit is not None and key in KEYS and key not in self.damaged:
            raise AssertionError("a committed object was written again")

    @invariant()
    def check(self):
        if not hasattr(self, "location"):
            return
        record = self.record()
        if record is None:
            assert self.commit is None, "a commit vanished"
            return
        document = self.location.read(COMMIT)
        assert self.commit in (None, document), "a commit changed"
        self.commit = document
        for name, key in zip(ARRAYS, KEYS, strict=True):
            is_good = self.is_good(key, record["objects"][name]["sha256"])
            if is_good and self.location.durable.get(key) is self.location.objects[key]:
                self.damaged.discard(key)  # mended, and no power cut takes that back
            assert is_good or key in self.damaged, f"a commit stands for {name} that are not there"

    def is_good(self, key, digest):
        try:
            return stored_digest(PLAN, 0, self.location.read(key) or b"") == digest
        except ValueError:
            return False

    def teardown(self):
        if not hasattr(self, "location"):
            return
        pairs = Pairs(self.location, PLAN)
        found = {finding.key for finding in verify(pairs).findings if finding.shard is not None}
        if self.commit is not None:
            digests = {key: self.record()["objects"][name]["sha256"] for name, key in zip(ARRAYS, KEYS, strict=True)}
            assert found == {key for key in KEYS if not self.is_good(key, digests[key])} <= self.damaged
        # Whatever state this is, a fresh writer finishes the shard, at once or when the others must be dead.
        record = self.record()
        kinds = [kind for kind, content in CONTENTS.items() if record is None or is_of(record, content)]
        self.writers = {}
        self.location.clock += 2 * protocol.ORPHAN_S
        made = protocol.write_shard(self.location, PLAN, 0, CONTENTS[kinds[0]], {})
        self.check()
        assert made == self.record()
        assert not self.damaged
        assert not any(finding.shard == 0 for finding in verify(pairs).findings)


def is_of(record, content):
    return all(record["objects"][name]["sha256"] == content.digests[name] for name in ARRAYS)


SETTINGS = settings(
    max_examples=examples(150), stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestProtocol = Protocol.TestCase
TestProtocol.settings = SETTINGS


@pytest.mark.parametrize("is_disk", [True, False])
def test_of_two_writers_at_a_dead_ones_objects_one_has_the_claim(is_disk):
    """The one would commit them as they are, the other one replace them: only one of them may."""
    location = ModelLocation(is_disk)
    for name, key in zip(ARRAYS, KEYS, strict=True):
        location.put(key, CONTENTS[0].objects[name])
        location.flush(key)
    location.clock += 2 * protocol.ORPHAN_S
    first = protocol.write_steps(location, PLAN, 0, CONTENTS[0], {})
    names = []
    while not names or names[-1] != "commit":
        names.append(next(first))
    assert "take claim" in names
    assert not any(name.startswith(("create", "replace")) for name in names)
    with pytest.raises(StoreUnavailableError, match="being finished by another writer"):
        protocol.write_shard(location, PLAN, 0, CONTENTS[1], {})
    assert [name for name in first if name == "commit"] == []
    assert location.read(KEYS[1]) == CONTENTS[0].objects["labels"]
    assert protocol.claim_key(0) not in location.objects
    with pytest.raises(ConflictError, match="committed"):
        protocol.write_shard(location, PLAN, 0, CONTENTS[1], {})


def test_a_writer_that_is_done_has_left_nothing_that_a_power_cut_takes():
    location = ModelLocation(is_disk=True)
    protocol.write_shard(location, PLAN, 0, CONTENTS[0], {})
    assert COMMIT in location.objects
    assert location.unflushed() == []


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("bug", ["objects are not flushed", "objects are overwritten"])
def test_the_machine_finds_a_planted_bug(monkeypatch, bug):
    if bug == "objects are not flushed":
        flush = ModelLocation.flush
        monkeypatch.setattr(
            ModelLocation, "flush", lambda self, key: flush(self, key) if not self.is_disk or key not in KEYS else None
        )
    else:

        def settle(self, name):
            yield f"replace {name}"
            self.location.put(self.keys[name], self.content.objects[name])
            return True

        monkeypatch.setattr(protocol._Attempt, "_settle", settle)
    quick = settings(SETTINGS, max_examples=3000, phases=[Phase.generate], database=None, report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Protocol, settings=quick)
