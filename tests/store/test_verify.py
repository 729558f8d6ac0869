"""Every kind of damage is named, repair makes ready what is bad and nothing else, in a directory and in a bucket."""

import json
import os
import time

import google_crc32c
import numpy as np
import pytest
from examples import a_third

from sfg_dist.job.errors import StoreError
from sfg_dist.job.plan import Plan
from sfg_dist.job.seal import seal, unseal
from sfg_dist.store import (
    Frame,
    extend_store,
    mend_frame,
    open_pairs,
    repair_store,
    sweep_partials,
    verify,
)

ROWS = np.random.default_rng(3).standard_normal((50, 2)).astype(np.float32)
TRANSFORM = {"scale": np.arange(1.0, 4.0)}


@pytest.fixture
def pairs(new_store, fill):
    return fill(new_store(reference=ROWS, transform_arrays=TRANSFORM))


def contents(location, *prefixes):
    return {entry.key: location.read(entry.key) for prefix in prefixes or ("",) for entry in location.list(prefix)}


def flipped(content, at=9):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def with_other_rows(content):
    """An object whose checksum fits, as another attempt would have written it."""
    rows = flipped(content[:-4])
    return rows + google_crc32c.value(rows).to_bytes(4, "little")


def rewritten(content, **fields):
    """A sealed document with other fields and a seal that fits, as a careful hand makes it."""
    return seal(unseal(content) | fields)


DAMAGES = {
    # name: (key, what becomes of its bytes, kind of the finding, its shard, words of it)
    "flipped bit": ("labels/c/3/0", flipped, "damaged_data", 3, "checksum does not fit"),
    "flipped last bit": (
        "labels/c/4/0",
        lambda content: flipped(content, -1 % len(content)),
        "damaged_data",
        4,
        "check",
    ),
    "other rows": ("labels/c/2/0", with_other_rows, "damaged_data", 2, "not the committed ones"),
    "truncated": ("latents/c/3/0", lambda content: content[:20], "truncated_data", 3, "has 20 bytes, expected 68"),
    "zero length": ("latents/c/0/0", lambda content: b"", "empty_data", 0, "has no bytes"),
    "deleted object": ("labels/c/1/0", lambda content: None, "missing_data", 1, "is missing"),
    "deleted commit": (
        "commits/00000002.json",
        lambda content: None,
        "missing_commit",
        2,
        "data of the shard are there",
    ),
    "torn commit": ("commits/00000002.json", lambda content: content[:30], "torn_commit", 2, "30 bytes"),
    "empty commit": ("commits/00000002.json", lambda content: b"", "torn_commit", 2, "0 bytes"),
    "edited commit": (
        "commits/00000002.json",
        lambda content: content.replace(b'"attempt": 1', b'"attempt": 9'),
        "edited_commit",
        2,
        "was edited",
    ),
    "edited plan": ("plan.json", lambda content: content.replace(b'"x0"', b'"x9"'), "damaged_plan", None, "edited"),
    "edited source": (
        "plan.json",
        lambda content: content.replace(b"table.npy", b"other.npy"),
        "damaged_plan",
        None,
        "ed",
    ),
    "edited copy": ("plan.copy.json", lambda content: b"{}", "damaged_plan", None, "not a plan"),
    "deleted plan": ("plan.json", lambda content: None, "damaged_plan", None, "missing"),
    "deleted copy": ("plan.copy.json", lambda content: None, "damaged_plan", None, "missing"),
    "damaged reference": ("reference/rows/c/0/0", flipped, "damaged_frame", None, "not those that were written"),
    "deleted reference": ("reference/rows/c/0/0", lambda content: None, "damaged_frame", None, "is missing"),
    "edited metadata": (
        "latents/zarr.json",
        lambda content: content + b" ",
        "damaged_frame",
        None,
        "not those that were",
    ),
    "deleted metadata": ("zarr.json", lambda content: None, "damaged_frame", None, "is missing"),
    "damaged transform": ("transform/scale/c/0", flipped, "damaged_frame", None, "not those that were"),
    "edited manifest": ("frame.json", lambda content: content + b" ", "damaged_frame", None, "was changed"),
    "foreign file": ("notes.txt", lambda content: b"hello", "foreign_file", None, "no part of the store"),
    "foreign object": ("latents/c/7/0", lambda content: b"hello", "foreign_file", None, "no part of the store"),
    "foreign commit": (
        "commits/000000001.json",
        lambda content: b"hello",
        "foreign_file",
        None,
        "no part of the store",
    ),
}


def damage(location, name):
    key, change, *_ = DAMAGES[name]
    content = change(location.read(key))
    if content is None:
        location.delete(key)
    else:
        assert content != location.read(key)
        location.write(key, content)
    return key


@pytest.mark.parametrize("name", a_third(DAMAGES))
def test_each_damage_is_named_and_only_it_is_mended(pairs, fill, name):
    location = pairs.location
    assert verify(pairs).is_clean
    before = contents(location)
    versions = {entry.key: (entry.version, entry.modified) for entry in location.list()}
    key = damage(location, name)
    damaged = open_pairs(location.url, from_copies=True)
    report = verify(damaged)
    _, _, kind, shard, words = DAMAGES[name]
    (finding,) = report.findings
    assert (finding.kind, finding.key, finding.shard) == (kind, key, shard)
    assert words in finding.problem
    assert report.bad_shards == (() if shard is None else (shard,))
    assert report.pending == ()
    assert json.loads(json.dumps(report.to_dict()))["is_clean"] is False

    assert repair_store(damaged, report) == list(report.bad_shards)
    if kind == "damaged_frame":
        frame = Frame(ROWS, TRANSFORM, {"kind": "standardize"})
        assert mend_frame(damaged, frame) == [key]
    mended = open_pairs(location.url)
    assert mended.pending() == list(report.bad_shards)
    fill(mended)
    assert verify(mended).is_clean
    after = contents(location)
    quarantined = {f"quarantine/{key}": DAMAGES[name][1](b"")} if kind == "foreign_file" else {}
    assert after == before | quarantined
    if location.root is not None:
        touched = {entry.key for entry in location.list() if versions.get(entry.key) != (entry.version, entry.modified)}
        own = (
            {f"commits/{shard:08d}.json", f"latents/c/{shard}/0", f"labels/c/{shard}/0"} if shard is not None else set()
        )
        assert touched <= {key} | own | set(quarantined)


@pytest.mark.slow
def test_all_damages_at_once(pairs, fill):
    before = contents(pairs.location)
    names = ["flipped bit", "zero length", "deleted object", "deleted commit", "edited plan", "foreign file"]
    names += ["damaged transform", "foreign object"]
    for name in names:
        damage(pairs.location, name)
    damaged = open_pairs(pairs.location.url, from_copies=True)
    report = verify(damaged)
    assert sorted(finding.kind for finding in report.findings) == sorted(DAMAGES[name][2] for name in names)
    assert repair_store(damaged) == [0, 1, 2, 3]
    mend_frame(damaged, Frame(ROWS, TRANSFORM, {"kind": "standardize"}))
    mended = fill(open_pairs(pairs.location.url))
    assert verify(mended).is_clean
    after = contents(pairs.location)
    assert {key: content for key, content in after.items() if not key.startswith("quarantine/")} == before


def test_shards_that_are_not_begun_are_pending_not_bad(new_store, rows_of):
    pairs = new_store()
    pairs.write_shard(1, *rows_of(pairs.plan, 1))
    report = verify(pairs)
    assert report.is_clean
    assert report.pending == (0, 2, 3, 4)
    assert repair_store(pairs, report) == []
    assert pairs.pending() == [0, 2, 3, 4]


def test_progress_reaches_the_end(pairs):
    calls = []
    report = verify(pairs, on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]
    assert report.num_objects >= 15
    assert report.num_bytes > 10 * 68


def test_what_repair_removed_is_made_again_with_the_committed_digests_only(pairs, rows_of):
    damage(pairs.location, "flipped bit")
    assert repair_store(pairs) == [3]
    with pytest.raises(StoreError, match="other bytes"):
        pairs.write_shard(3, *rows_of(pairs.plan, 3, seed=1))
    assert pairs.pending() == [3]
    pairs.write_shard(3, *rows_of(pairs.plan, 3))
    assert verify(pairs).is_clean


def test_data_of_another_attempt_without_a_commit_are_removed(pairs, fill, rows_of):
    pairs.location.delete("commits/00000002.json")
    with pytest.raises(StoreError, match="holds other rows"):
        pairs.write_shard(2, *rows_of(pairs.plan, 2, seed=1))
    assert repair_store(pairs) == [2]
    pairs.write_shard(2, *rows_of(pairs.plan, 2, seed=1))
    assert verify(pairs).is_clean


def test_an_edited_or_lost_plan_is_refused_until_it_is_repaired(pairs):
    for name in ("edited plan", "edited source", "deleted plan"):
        good = pairs.location.read("plan.json")
        damage(pairs.location, name)
        with pytest.raises(StoreError, match=r"plan\.json cannot be used: .*sfg repair"):
            open_pairs(pairs.location.url)
        repair_store(open_pairs(pairs.location.url, from_copies=True))
        assert pairs.location.read("plan.json") == good


def test_a_plan_whose_record_and_copy_are_both_damaged_is_beyond_repair(pairs):
    damage(pairs.location, "edited plan")
    damage(pairs.location, "edited copy")
    for from_copies in (False, True):
        with pytest.raises(StoreError, match="its copy cannot be used either"):
            open_pairs(pairs.location.url, from_copies=from_copies)


def test_two_whole_plans_that_differ_are_told_and_left(pairs):
    pairs.location.write("plan.copy.json", rewritten(pairs.location.read("plan.json"), source="other.npy"))
    (finding,) = verify(pairs).findings
    assert finding.kind == "differing_plans"
    before = contents(pairs.location)
    assert repair_store(pairs) == []
    assert contents(pairs.location) == before


def test_a_second_foreign_file_of_one_name_is_kept_beside_the_first(pairs):
    for content in (b"one", b"two"):
        pairs.location.write("notes.txt", content)
        repair_store(pairs)
    assert contents(pairs.location, "quarantine") == {"quarantine/notes.txt": b"one", "quarantine/notes.txt.1": b"two"}
    assert verify(pairs).is_clean


def test_the_frame_is_not_mended_from_another_table(pairs):
    damage(pairs.location, "deleted reference")
    before = contents(pairs.location)
    with pytest.raises(StoreError, match="not the table that the plan was made for"):
        mend_frame(pairs, Frame(ROWS + 1, TRANSFORM, {"kind": "standardize"}))
    with pytest.raises(StoreError, match="come out with other bytes"):
        mend_frame(pairs, Frame(ROWS, {"scale": np.ones(3)}, {"kind": "standardize"}))
    assert contents(pairs.location) == before


@pytest.mark.slow
@pytest.mark.parametrize("key", ["extensions/0001/labels/zarr.json", "extensions/0001/labels/c/1/0", "plan-0001.json"])
@pytest.mark.parametrize("is_deleted", [True, False])
def test_damage_in_an_extension(pairs, fill, key, is_deleted):
    extended = fill(extend_store(pairs.location.url, 52))
    assert verify(extended).is_clean
    before = contents(pairs.location)
    if is_deleted:
        pairs.location.delete(key)
    else:
        pairs.location.write(key, flipped(before[key]))
    damaged = open_pairs(pairs.location.url, from_copies=True)
    (finding,) = verify(damaged).findings
    assert finding.key == key
    assert repair_store(damaged) == ([6] if "/c/" in key else [])
    assert verify(fill(open_pairs(pairs.location.url))).is_clean
    assert contents(pairs.location) == before


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_partial_files_are_named_and_swept(pairs):
    root = pairs.location.root
    pairs.location.delete("commits/00000004.json")
    names = {"labels/c/4/0#1": 0.0, "latents/c/4/0#2": 7200.0, "labels/c/0/0#1": 0.0, "plan.json#1": 7200.0}
    for name, seconds in names.items():
        (root / name).write_bytes(b"half")
        os.utime(root / name, (time.time() - seconds, time.time() - seconds))
    found = {finding.key for finding in verify(pairs).findings if finding.kind == "partial_file"}
    assert found == set(names)
    # Of shard 4 a writer may be at work; of shard 0 none can be, and nobody takes two hours.
    assert set(sweep_partials(pairs)) == {"latents/c/4/0#2", "labels/c/0/0#1", "plan.json#1"}
    assert (root / "labels/c/4/0#1").exists()
    repair_store(pairs)
    assert not (root / "labels/c/4/0#1").exists()


def test_a_store_without_plan_but_with_commits_is_not_laid_out_anew_by_another_job(pairs, small_plan, new_store):
    for key in ("plan.json", "plan.copy.json"):
        pairs.location.delete(key)
    before = contents(pairs.location)
    with pytest.raises(StoreError, match=r"holds commits of another plan, whose records plan\.json"):
        new_store(num_pairs=44, reference=ROWS, transform_arrays=TRANSFORM)
    assert contents(pairs.location) == before
    again = new_store(reference=ROWS, transform_arrays=TRANSFORM)
    assert again.is_complete
    assert verify(again).is_clean


def test_plans_of_the_first_format_are_refused(pairs):
    document = json.loads(pairs.location.read("plan.json")) | {"format_version": 1}
    with pytest.raises(ValueError, match="format 1, this version reads format 2"):
        Plan.from_json(json.dumps(document).encode())
