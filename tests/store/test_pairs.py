"""The protocol on disk: plan once, shard written, read back, committed; nothing is inferred from chunks."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import zarr

import sfg_dist
from sfg_dist.job.errors import ConflictError, IncompleteStoreError, PlanMismatchError, StoreError
from sfg_dist.store import Frame, create_store


def rows_of(pairs, shard, seed=0):
    start, stop = pairs.plan.shard_range(shard)
    generator = np.random.default_rng([seed, shard])
    return [generator.standard_normal((stop - start, pairs.plan.dim)).astype(np.float32) for _ in range(2)]


def lose_plan(pairs):
    """As a driver that was killed before it wrote the plan leaves a store."""
    for name in ("plan.json", "plan.copy.json"):
        (pairs.location.root / name).unlink()


@pytest.fixture
def pairs(copy_labels):
    return copy_labels(0)


@pytest.fixture
def full_pairs(pairs):
    for shard in range(pairs.plan.num_shards):
        pairs.write_shard(shard, *rows_of(pairs, shard))
    return pairs


def test_an_empty_store_is_nan_and_incomplete(pairs):
    assert pairs.plan.num_shards == 8
    assert not pairs.is_complete
    assert pairs.pending() == list(range(8))
    assert np.isnan(pairs.labels.compute()).all()
    with pytest.raises(IncompleteStoreError, match=r"8 of 8 shards are missing .*sfg label"):
        pairs.require_complete()


def test_rows_come_back_through_dask_and_plain_zarr(full_pairs):
    reopened = sfg_dist.open_pairs(full_pairs.location.url)
    assert reopened.is_complete
    latents = np.concatenate([rows_of(full_pairs, shard)[0] for shard in range(8)])
    labels = np.concatenate([rows_of(full_pairs, shard)[1] for shard in range(8)])
    assert reopened.labels.shape == (1000, 2)
    assert reopened.labels.numblocks == (8, 1)
    assert np.array_equal(reopened.latents.compute(), latents)
    assert np.array_equal(reopened.labels.compute(), labels)
    group = zarr.open_group(full_pairs.location.url, mode="r")
    assert np.array_equal(group["labels"][...], labels)
    assert group["labels"].shape == (1000, 2)


def test_open_pairs_takes_the_store_or_its_output_directory(full_pairs):
    assert sfg_dist.open_pairs(full_pairs.location.root.parent).plan == full_pairs.plan


def test_layout(full_pairs):
    metadata = json.loads((full_pairs.location.root / "labels" / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    assert metadata["fill_value"] == "NaN"
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "crc32c"]
    assert not list(full_pairs.location.root.glob("**/*.partial"))


def test_large_shards_are_cut_into_chunks(make_store, monkeypatch):
    monkeypatch.setattr("sfg_dist.store.arrays.MAX_CHUNK_BYTES", 256)
    pairs = make_store()
    for shard in range(pairs.plan.num_shards):
        pairs.write_shard(shard, *rows_of(pairs, shard))
    array = pairs.group["labels"]
    assert array.shards == (128, 2)
    assert array.chunks == (32, 2)
    assert np.array_equal(pairs.labels.blocks[7].compute(), rows_of(pairs, 7)[1])
    assert len(list((pairs.location.root / "labels" / "c").glob("*/0"))) == 8


def test_the_commit_record(full_pairs):
    record = full_pairs.commit_record(7)
    assert record["rows"] == [896, 1000]
    assert record["run_id"] == full_pairs.plan.run_id
    for entry in record["objects"].values():
        assert (full_pairs.location.root / entry["key"]).stat().st_size == entry["bytes"]
        assert len(entry["sha256"]) == 64


def test_data_without_a_commit_are_not_done(pairs):
    pairs.write_shard(0, *rows_of(pairs, 0))
    (pairs.location.root / "commits" / "00000000.json").unlink()
    assert 0 in pairs.pending()


@pytest.mark.parametrize("damage", ["truncate", "empty", "delete"])
def test_a_commit_without_its_data_is_not_done(full_pairs, damage):
    shard_file = full_pairs.location.root / "labels" / "c" / "3" / "0"
    if damage == "delete":
        shard_file.unlink()
    else:
        os.truncate(shard_file, 0 if damage == "empty" else 100)
    assert full_pairs.pending() == [3]
    full_pairs.write_shard(3, *rows_of(full_pairs, 3))
    assert full_pairs.pending() == []
    assert np.array_equal(full_pairs.labels.blocks[3].compute(), rows_of(full_pairs, 3)[1])


def test_writing_a_shard_twice_changes_nothing(full_pairs):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in full_pairs.location.root.rglob("*") if p.is_file()}
    record = full_pairs.write_shard(2, *rows_of(full_pairs, 2), {"attempt": 2})
    assert record == full_pairs.commit_record(2)
    assert "attempt" not in record
    assert before == {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in full_pairs.location.root.rglob("*") if p.is_file()
    }


def test_other_bytes_for_a_committed_shard_are_reported_and_not_written(full_pairs):
    committed = full_pairs.labels.blocks[2].compute()
    with pytest.raises(StoreError, match=r"shard 2 .* other bytes"):
        full_pairs.write_shard(2, *rows_of(full_pairs, 2, seed=1))
    assert np.array_equal(full_pairs.labels.blocks[2].compute(), committed)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_rows_are_refused(pairs, bad):
    latents, labels = rows_of(pairs, 0)
    labels[3, 1] = bad
    with pytest.raises(StoreError, match="shard 0: labels must be finite"):
        pairs.write_shard(0, latents, labels)
    assert pairs.pending() == list(range(8))


def test_other_bytes_never_stand_behind_a_commit(full_pairs):
    os.truncate(full_pairs.location.root / "labels" / "c" / "3" / "0", 100)
    with pytest.raises(StoreError, match="other bytes"):
        full_pairs.write_shard(3, *rows_of(full_pairs, 3, seed=1))
    assert full_pairs.pending() == [3]


def test_the_loser_of_a_race_with_other_bytes_changes_nothing(pairs, monkeypatch):
    """Both found no commit and no objects; the winner was done before the loser wrote anything."""
    pairs.write_shard(3, *rows_of(pairs, 3))
    location, look, read = type(pairs.location), type(pairs.location).look, type(pairs.location).read
    first_looks = iter([None])
    monkeypatch.setattr(location, "read", lambda self, key, *most: None if "commits" in key else read(self, key, *most))
    monkeypatch.setattr(location, "look", lambda self, key: next(first_looks, look(self, key)))
    before = {path: path.read_bytes() for path in pairs.location.root.rglob("*") if path.is_file()}
    with pytest.raises(ConflictError, match=r"shard 3 .* holds other rows"):
        pairs.write_shard(3, *rows_of(pairs, 3, seed=1))
    assert before == {path: path.read_bytes() for path in pairs.location.root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"[1]"])
def test_a_torn_commit_is_not_done_and_is_made_again(full_pairs, content):
    (full_pairs.location.root / "commits" / "00000003.json").write_bytes(content)
    (full_pairs.location.root / "commits" / "foreign.json").write_bytes(b"x")
    assert full_pairs.pending() == [3]
    assert not full_pairs.is_complete
    full_pairs.write_shard(3, *rows_of(full_pairs, 3))
    assert full_pairs.pending() == []


@pytest.mark.parametrize("keys", [{"num_pairs": 500}, {"num_pairs": 2000}, {"shard_rows": 256}])
def test_a_frame_that_another_job_left_without_a_plan_is_made_anew(make_store, pairs, keys):
    lose_plan(pairs)
    other = make_store(labels={"num_pairs": 1000, "shard_rows": 128, "batch_size": 64, "num_evaluations": 8} | keys)
    for shard in range(other.plan.num_shards):
        other.write_shard(shard, *rows_of(other, shard))
    assert other.is_complete
    assert other.labels.shape == (other.plan.num_pairs, 2)
    assert np.isfinite(other.labels.compute()).all()


def test_a_flipped_bit_is_an_error_not_a_label(full_pairs):
    shard_file = full_pairs.location.root / "labels" / "c" / "3" / "0"
    content = bytearray(shard_file.read_bytes())
    content[100] ^= 1
    shard_file.write_bytes(content)
    with pytest.raises(Exception, match=r"(?i)crc|checksum"):
        full_pairs.labels.blocks[3].compute()


def test_another_plan_is_refused_with_the_difference(make_store, full_pairs):
    with pytest.raises(PlanMismatchError, match=r"labels\.num_evaluations: 8 -> 12") as caught:
        make_store(labels={**full_pairs.plan.labels, "num_pairs": 1000, "num_evaluations": 12})
    assert "output.dir" in str(caught.value)
    assert full_pairs.is_complete


def test_another_table_is_refused(make_store, pairs):
    with pytest.raises(PlanMismatchError, match=r"reference: '[0-9a-f]{64}' -> "):
        make_store(data={"source": "circles", "max_rows": 600})


def test_a_change_of_units_is_refused_though_the_transform_takes_it_away(make_store, tmp_path):
    rows = np.random.default_rng(0).standard_normal((300, 2))
    keys = {"data": {"source": str(tmp_path / "table.npy"), "max_rows": 300}}
    np.save(tmp_path / "table.npy", rows)
    make_store(**keys)
    np.save(tmp_path / "table.npy", 2 * rows)
    with pytest.raises(PlanMismatchError, match=r"table: '[0-9a-f]{64}' -> "):
        make_store(**keys)


def test_train_keys_never_refuse_a_store(make_store, full_pairs):
    assert make_store(train={"width": 99}, evaluate={"num_samples": 7}).is_complete


def test_a_damaged_reference_is_seen(full_pairs):
    reference = full_pairs.group["reference/rows"]
    reference[0, 0] = reference[0, 0] + 1
    with pytest.raises(StoreError, match="reference/rows is not the table"):
        _ = sfg_dist.open_pairs(full_pairs.location.url).reference


def test_an_edited_plan_is_seen(full_pairs):
    path = full_pairs.location.root / "plan.json"
    path.write_text(path.read_text().replace('"num_pairs": 1000', '"num_pairs": 999'))
    with pytest.raises(StoreError, match="edited"):
        sfg_dist.open_pairs(full_pairs.location.url)


def test_a_change_of_versions_warns(make_store, pairs, monkeypatch):
    monkeypatch.setattr("sfg_dist.pipeline.plan.versions", lambda: {"numpy": "9.9"})
    with pytest.warns(UserWarning, match=r"numpy .* this is 9\.9"):
        make_store()


def test_a_frame_that_was_cut_off_is_finished(make_store, pairs):
    lose_plan(pairs)
    assert make_store().plan == pairs.plan


def test_no_store(tmp_path):
    with pytest.raises(StoreError, match="holds no pairs"):
        sfg_dist.open_pairs(tmp_path)
    with pytest.raises(StoreError, match="holds no pairs"):
        sfg_dist.open_pairs(tmp_path / "absent")


def test_a_place_that_cannot_be_written(pairs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        create_store(tmp_path / "file" / "pairs.zarr", pairs.plan, Frame(pairs.reference, {}, {}))


# They are forked by one process, which has imported what they need, and begin together.
WRITERS = """
import multiprocessing, sys
import numpy, obstore, zarr
import sfg_dist, sfg_dist.store

def write(attempt):
    pairs, rows = sfg_dist.open_pairs(sys.argv[1]), numpy.ones((128, 2), numpy.float32)
    begin.wait()
    answer = pairs.write_shard(0, rows, rows, {"attempt": attempt})["attempt"]
    sys.stdout.write(f"{answer} ")
    sys.stdout.flush()

context = multiprocessing.get_context("fork")
begin = context.Barrier(8)
writers = [context.Process(target=write, args=(attempt,)) for attempt in range(8)]
for writer in writers:
    writer.start()
for writer in writers:
    writer.join()
sys.exit(max(abs(writer.exitcode) for writer in writers))
"""


@pytest.mark.slow
def test_of_many_writers_one_commit_wins(pairs):
    """Eight processes commit the same shard at once: one record, and all of them succeed."""
    done = subprocess.run([sys.executable, "-c", WRITERS, pairs.location.url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split()
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert pairs.commit_record(0)["attempt"] == int(answers[0])
