"""A shard is created, compared, flushed, read back and committed; the same in a directory and in a bucket."""

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import zarr

import sfg_dist
import sfg_dist.job.object_stores
from sfg_dist.job.errors import ConflictError, StoreError, StoreUnavailableError
from sfg_dist.job.seal import seal, unseal
from sfg_dist.store import Location, object_bytes, open_pairs, store_bytes, verify
from sfg_dist.store import shards as protocol
from sfg_dist.store.arrays import ARRAYS, object_key
from sfg_dist.store.commits import ShardContent, commit_key
from sfg_dist.store.shards import claim_key


def contents(location):
    return {entry.key: location.read(entry.key) for entry in location.list()}


def age(monkeypatch, location, seconds):
    """Let all that is there now look as if it had been written that long ago."""
    there = {(entry.key, entry.version, entry.modified) for entry in location.list()}
    look = Location.look

    def look_back(self, key):
        entry = look(self, key)
        is_old = entry is not None and (key, entry.version, entry.modified) in there
        return entry._replace(modified=entry.modified - seconds) if is_old else entry

    monkeypatch.setattr(Location, "look", look_back)


def test_rows_come_back_by_dask_and_plain_zarr(new_store, fill, rows_of):
    pairs = fill(new_store())
    reopened = open_pairs(pairs.location.url)
    assert reopened.is_complete
    for part, name in enumerate(ARRAYS):
        wanted = np.concatenate([rows_of(pairs.plan, shard)[part] for shard in range(5)])
        assert np.array_equal(getattr(reopened, name).compute(), wanted)
        group = zarr.open_group(Location(pairs.location.url).zarr_store(read_only=True), mode="r")
        assert np.array_equal(group[name][...], wanted)


@pytest.mark.parametrize("max_chunk_bytes", [4 << 20, 16])
def test_objects_are_those_that_zarr_writes(new_store, fill, rows_of, tmp_path, monkeypatch, max_chunk_bytes):
    monkeypatch.setattr("sfg_dist.store.arrays.MAX_CHUNK_BYTES", max_chunk_bytes)
    pairs = fill(new_store())
    metadata = json.loads(pairs.location.read("labels/zarr.json"))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "zarr.json").write_text(json.dumps(metadata))
    array = zarr.open_array(tmp_path / "plain", mode="r+")
    assert (array.shards is None) == (max_chunk_bytes > 16)
    for shard in range(5):
        array[slice(*pairs.plan.shard_range(shard))] = rows_of(pairs.plan, shard)[1]
        plain = (tmp_path / "plain" / "c" / str(shard) / "0").read_bytes()
        assert pairs.location.read(object_key(pairs.plan, "labels", shard)) == plain
        assert object_bytes(pairs.plan, shard) == len(plain)


@pytest.mark.slow
@pytest.mark.parametrize("max_chunk_bytes", [4 << 20, 64])
@pytest.mark.parametrize("has_queries", [False, True])
def test_the_bytes_of_a_store_are_known_before_it_is_there(new_store, fill, monkeypatch, max_chunk_bytes, has_queries):
    monkeypatch.setattr("sfg_dist.store.arrays.MAX_CHUNK_BYTES", max_chunk_bytes)
    transform = {"scale": np.arange(1.0, 40.0), "offsets": np.zeros(3), "counts": np.zeros(4, int), "flag": np.array(2)}
    transform |= {"absent": np.full((2, 2), np.nan), "none": np.empty((0, 2))}
    queries = np.ones((36, 2), np.float32) if has_queries else None
    pairs = fill(
        new_store(transform_arrays=transform, queries=queries, make_order=lambda rows: np.arange(len(rows))[::-1])
    )
    predicted = store_bytes(
        pairs.plan,
        num_reference=50,
        transform_arrays=transform,
        num_queries=36 if has_queries else None,
        has_order=True,
    )
    found = dict.fromkeys(predicted, 0)
    for entry in pairs.location.list():
        name = entry.key.split("/c")[0]
        if not entry.key.endswith(".json"):
            found[name] += entry.bytes
    assert found == predicted
    arrays, metadata = pairs.transform
    assert {name: values.tolist() for name, values in arrays.items()}.items() >= {"flag": 2, "none": []}.items()
    assert np.isnan(arrays["absent"]).all()
    assert metadata == {"kind": "standardize"}


def test_a_second_attempt_changes_nothing(new_store, fill, rows_of):
    pairs = fill(new_store())
    before = {entry.key: (entry.version, entry.modified) for entry in pairs.location.list()}
    record = pairs.write_shard(2, *rows_of(pairs.plan, 2), {"attempt": 2})
    assert record["attempt"] == 1
    assert record == pairs.commit_record(2) == dict(pairs.commit_records())[2]
    assert {entry.key: (entry.version, entry.modified) for entry in pairs.location.list()} == before


def test_other_bytes_for_a_committed_shard_are_a_conflict_and_change_nothing(new_store, fill, rows_of):
    pairs = fill(new_store())
    before = contents(pairs.location)
    with pytest.raises(ConflictError, match=r"shard 2 .* other bytes"):
        pairs.write_shard(2, *rows_of(pairs.plan, 2, seed=1))
    assert contents(pairs.location) == before


def test_equal_data_without_a_commit_are_adopted(new_store, fill, rows_of):
    pairs = fill(new_store())
    pairs.location.delete(commit_key(1))
    before = {entry.key: entry.version for entry in pairs.location.list("latents")}
    pairs.write_shard(1, *rows_of(pairs.plan, 1), {"attempt": 2})
    assert pairs.is_complete
    assert {entry.key: entry.version for entry in pairs.location.list("latents")} == before


def test_old_equal_data_need_the_claim(new_store, fill, rows_of, monkeypatch):
    pairs = fill(new_store())
    pairs.location.delete(commit_key(1))
    before = {entry.key: entry.version for entry in pairs.location.list("latents")}
    age(monkeypatch, pairs.location, protocol.ADOPT_S + 60)
    pairs.location.write(claim_key(1), b"another writer")
    with pytest.raises(StoreUnavailableError, match=r"shard 1 .*finished by another writer.*try again"):
        pairs.write_shard(1, *rows_of(pairs.plan, 1))
    assert pairs.pending() == [1]
    age(monkeypatch, pairs.location, protocol.ORPHAN_S + 60)  # that writer is dead
    pairs.write_shard(1, *rows_of(pairs.plan, 1))
    assert pairs.is_complete
    assert not pairs.location.exists(claim_key(1))
    assert {entry.key: entry.version for entry in pairs.location.list("latents")} == before


def test_other_data_without_a_commit_are_a_conflict_for_an_hour(new_store, fill, rows_of, monkeypatch):
    pairs = fill(new_store())
    pairs.location.delete(commit_key(1))
    before = contents(pairs.location)
    with pytest.raises(ConflictError, match=r"shard 1 .*latents/c/1/0 holds other rows .*sfg repair"):
        pairs.write_shard(1, *rows_of(pairs.plan, 1, seed=1))
    assert contents(pairs.location) == before
    age(monkeypatch, pairs.location, protocol.ORPHAN_S + 60)
    pairs.write_shard(1, *rows_of(pairs.plan, 1, seed=1))
    assert pairs.is_complete
    assert np.array_equal(pairs.labels.blocks[1].compute(), rows_of(pairs.plan, 1, seed=1)[1])


@pytest.mark.parametrize("torn", [b"", b"x" * 30, "same size"])
def test_torn_leftovers_are_made_again(new_store, rows_of, torn):
    pairs = new_store()
    torn = bytes(object_bytes(pairs.plan, 0)) if torn == "same size" else torn
    pairs.location.write("latents/c/0/0", torn)
    pairs.write_shard(0, *rows_of(pairs.plan, 0))
    assert 0 not in pairs.pending()
    assert np.array_equal(pairs.latents.blocks[0].compute(), rows_of(pairs.plan, 0)[0])


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncate", "empty", "delete", "flip"])
@pytest.mark.parametrize("seed", [0, 1])
def test_damage_behind_a_commit_is_mended_by_the_committed_rows_only(new_store, fill, rows_of, damage, seed):
    pairs = fill(new_store())
    key = "labels/c/3/0"
    good = pairs.location.read(key)
    if damage == "delete":
        pairs.location.delete(key)
    else:
        bad = {"truncate": good[:20], "empty": b"", "flip": good[:9] + bytes([good[9] ^ 1]) + good[10:]}[damage]
        pairs.location.write(key, bad)
    assert pairs.pending() == ([] if damage == "flip" else [3])
    before = contents(pairs.location)
    if seed:
        with pytest.raises(ConflictError, match="other bytes"):
            pairs.write_shard(3, *rows_of(pairs.plan, 3, seed=1))
        assert contents(pairs.location) == before
    else:
        assert pairs.write_shard(3, *rows_of(pairs.plan, 3), {"attempt": 2})["attempt"] == 1
        assert pairs.location.read(key) == good
        assert pairs.is_complete


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"[1]", "edited", "of another plan"])
def test_a_torn_commit_is_not_done_and_is_made_again(new_store, fill, rows_of, content):
    pairs = fill(new_store())
    whole = pairs.location.read(commit_key(3))
    if content == "edited":
        content = whole.replace(b'"attempt": 1', b'"attempt": 7')
    elif content == "of another plan":
        content = seal(unseal(whole) | {"run_id": "0" * 64})
    assert content != whole
    pairs.location.write(commit_key(3), content)
    pairs.location.write("commits/foreign.json", b"x")
    assert pairs.pending() == [3]
    assert 3 not in dict(pairs.commit_records())
    pairs.write_shard(3, *rows_of(pairs.plan, 3), {"attempt": 2})
    assert pairs.pending() == []
    assert pairs.commit_record(3)["attempt"] == 2


def test_a_store_that_gives_back_other_bytes_gets_no_commit(new_store, rows_of, monkeypatch):
    pairs = new_store()
    read = Location.read
    monkeypatch.setattr(
        Location,
        "read",
        lambda self, key, *most: (read(self, key) or b"")[::-1] if "labels/c" in key else read(self, key, *most),
    )
    with pytest.raises(StoreError, match="reads back other bytes"):
        pairs.write_shard(0, *rows_of(pairs.plan, 0))
    assert pairs.committed() == set()


def test_a_writer_that_stood_still_for_too_long_begins_again(new_store, rows_of, monkeypatch):
    pairs = new_store()
    content = ShardContent.of(pairs.plan, 0, *rows_of(pairs.plan, 0))
    steps = protocol.write_steps(pairs.location, pairs.plan, 0, content, {})
    while next(steps) != "commit":
        pass
    now = time.time() + protocol.LEASE_S + 60
    monkeypatch.setattr(Location, "now", lambda self: now)
    assert next(steps) == "look at commit"
    assert not pairs.committed()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_or_not_the_shards_are_refused(new_store, rows_of, bad):
    pairs = new_store()
    latents, labels = rows_of(pairs.plan, 0)
    with pytest.raises(StoreError, match="shard 0: labels must be finite and have 8 rows"):
        pairs.write_shard(0, latents, labels[:-1])
    labels[3, 1] = bad
    with pytest.raises(StoreError, match="shard 0: labels must be finite"):
        pairs.write_shard(0, latents, labels)
    assert pairs.pending() == list(range(5))


def test_a_shard_that_the_plan_does_not_have(new_store, rows_of):
    pairs = new_store()
    with pytest.raises(IndexError, match="shard 5: the plan has shards 0 to 4"):
        pairs.write_shard(5, *rows_of(pairs.plan, 4))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["s3"], indirect=True)
@pytest.mark.parametrize("seed", range(3))
def test_the_protocol_holds_over_a_store_that_fails_and_delays(
    new_store, rows_of, s3_url, faulty_s3, monkeypatch, seed
):
    """Requests are refused, done without an answer, dropped, delayed; attempts that give up are made again."""
    monkeypatch.setattr(sfg_dist.job.object_stores, "MAX_RETRIES", 2)
    url = f"{s3_url}/faulty.zarr"
    plan = new_store(url).plan
    proxy = faulty_s3(0.25, seed)
    location = Location(url)
    for shard in range(plan.num_shards):
        content = ShardContent.of(plan, shard, *rows_of(plan, shard))
        for attempt in range(50):
            try:
                protocol.write_shard(location, plan, shard, content, {"attempt": attempt})
                break
            except StoreUnavailableError:
                continue
    assert len(proxy.faults) > 5
    proxy.share = 0.0
    pairs = open_pairs(url)
    report = verify(pairs)
    assert report.is_clean
    assert not report.pending
    for shard in range(plan.num_shards):
        assert np.array_equal(pairs.labels.blocks[shard].compute(), rows_of(plan, shard)[1])


@pytest.mark.slow
@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_frames_and_plans_are_laid_out_over_a_store_that_fails(new_store, s3_url, faulty_s3):
    faulty_s3(0.15, seed=4)
    pairs = new_store(f"{s3_url}/x.zarr")
    assert open_pairs(pairs.location.url).plan == pairs.plan
    assert verify(pairs).is_clean
    assert np.array_equal(pairs.reference, pairs.reference_rows(0, 50))


def test_run_ids_of_plans_that_differ_in_their_pairs_differ(small_plan):
    plan = small_plan()
    assert plan.run_id != replace(plan, num_pairs=44).run_id != plan.extended(44).run_id
    assert os.path.basename(commit_key(7)) == "00000007.json"
