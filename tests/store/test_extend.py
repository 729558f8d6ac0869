"""A finished store takes more rows: those of a longer run, beside what is committed, which stays as it is."""

import numpy as np
import pytest
import zarr
from examples import a_third

from sfg_dist.job.errors import ConfigError, IncompleteStoreError, PlanMismatchError, StoreError
from sfg_dist.store import PairStream, extend_store, open_pairs, store_bytes, verify
from sfg_dist.store.arrays import object_bytes, object_key


def all_rows(pairs):
    return [array.compute() for array in (pairs.latents, pairs.labels)]


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["decode", "both"])
@pytest.mark.parametrize("ends", a_third([(36, 52), (36, 37, 39, 64), (32, 40), (3, 5, 8, 9, 41)]))
def test_an_extended_store_holds_the_rows_of_a_longer_run(new_store, fill, place, ends, direction):
    pairs = fill(new_store(num_pairs=ends[0], direction=direction))
    for num_pairs in ends[1:]:
        before = {entry.key: (pairs.location.read(entry.key), entry.version) for entry in pairs.location.list()}
        pairs = extend_store(place, num_pairs)
        assert pairs.plan.num_pairs == num_pairs
        assert not pairs.is_complete
        fill(pairs)
        now = {entry.key: (pairs.location.read(entry.key), entry.version) for entry in pairs.location.list()}
        assert now.items() >= before.items()
    longer = fill(new_store(f"{place}-longer", num_pairs=ends[-1], direction=direction))
    reopened = open_pairs(place)
    assert reopened.plan == pairs.plan
    assert reopened.plan.ends == ends
    assert reopened.is_complete
    latents, labels = all_rows(longer)
    for mine, theirs in zip(all_rows(reopened), (latents, labels), strict=True):
        assert mine.shape == (ends[-1], 2)
        assert np.array_equal(mine, theirs)
    # Blocks are shards.
    for shard in range(reopened.plan.num_shards):
        start, stop = reopened.plan.shard_range(shard)
        assert np.array_equal(reopened.labels.blocks[shard].compute(), labels[start:stop])
    assert verify(reopened).is_clean


def test_plain_zarr_reads_the_extension(new_store, fill, place):
    fill(new_store())
    pairs = fill(extend_store(place, 52))
    array = zarr.open_group(pairs.location.zarr_store(read_only=True), mode="r")["extensions/0001/labels"]
    assert np.isnan(array[:4]).all()  # rows 32 to 36 lie in the first array
    assert np.array_equal(array[4:], pairs.labels[36:].compute())


@pytest.mark.slow
@pytest.mark.parametrize("max_chunk_bytes", [4 << 20, 16])
def test_rows_are_those_that_zarr_reads(new_store, fill, place, rows_of, monkeypatch, max_chunk_bytes):
    """Of objects that are one chunk, of those that are cut, and of shards that nobody has written."""
    monkeypatch.setattr("sfg_dist.store.arrays.MAX_CHUNK_BYTES", max_chunk_bytes)
    fill(new_store(num_pairs=37))
    pairs = extend_store(place, 75)
    for shard in pairs.pending()[1::2]:
        pairs.write_shard(shard, *rows_of(pairs.plan, shard), {"attempt": 1})
    for name, array in (("latents", pairs.latents.compute()), ("labels", pairs.labels.compute())):
        assert np.isnan(array).any()
        rows = pairs.rows(name)
        for start, stop in [(0, 75), (0, 8), (3, 5), (7, 30), (36, 41), (40, 75), (74, 75), (9, 9)]:
            assert np.array_equal(rows[start:stop], array[start:stop], equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("max_chunk_bytes", [4 << 20, 16])
def test_the_bytes_of_an_extended_store_are_known(new_store, fill, place, monkeypatch, max_chunk_bytes):
    monkeypatch.setattr("sfg_dist.store.arrays.MAX_CHUNK_BYTES", max_chunk_bytes)
    fill(new_store(num_pairs=37))
    fill(extend_store(place, 39))
    pairs = fill(extend_store(place, 61))
    for shard in range(pairs.plan.num_shards):
        assert pairs.location.size(object_key(pairs.plan, "labels", shard)) == object_bytes(pairs.plan, shard)
    sizes = store_bytes(pairs.plan, num_reference=50, transform_arrays={"scale": np.arange(1.0, 4.0)})
    assert sizes["labels"] == pairs.stored_bytes()[:, 1].sum()
    assert sizes["latents"] == pairs.stored_bytes()[:, 0].sum()


def test_an_interrupted_extension_goes_on(new_store, fill, place, rows_of):
    fill(new_store())
    pairs = extend_store(place, 52)
    pairs.write_shard(6, *rows_of(pairs.plan, 6))
    again = extend_store(place, 52)
    assert again.plan == pairs.plan
    assert again.pending() == [5, 7]
    with pytest.raises(IncompleteStoreError, match="2 of 8 shards are missing"):
        extend_store(place, 60)
    assert fill(again).is_complete


def test_an_extension_that_was_cut_off_before_its_record_is_laid_out_again(new_store, fill, place):
    pairs = fill(new_store())
    extend_store(place, 52)
    for key in ("plan-0001.json", "plan-0001.copy.json"):
        pairs.location.delete(key)
    assert open_pairs(place).plan.num_pairs == 36
    assert fill(extend_store(place, 44)).latents.shape == (44, 2)
    assert verify(open_pairs(place)).is_clean


@pytest.mark.parametrize("num_pairs", [0, 35, 36])
def test_a_number_that_adds_nothing_is_refused(new_store, fill, place, num_pairs):
    fill(new_store())
    with pytest.raises(ConfigError, match=rf"num_pairs = {num_pairs} adds nothing to the 36 pairs"):
        extend_store(place, num_pairs)
    fill(extend_store(place, 52))
    with pytest.raises(ConfigError, match="adds nothing to the 52 pairs"):
        extend_store(place, 52)


def test_a_store_that_is_not_complete_is_refused(new_store, place):
    new_store()
    with pytest.raises(IncompleteStoreError, match="5 of 5 shards are missing"):
        extend_store(place, 52)


def test_a_store_of_the_users_own_points_is_refused(new_store, fill, place):
    fill(new_store(queries=np.ones((36, 2), np.float32)))
    with pytest.raises(ConfigError, match=r"labels\.latents"):
        extend_store(place, 52)


def test_no_store(location):
    with pytest.raises(StoreError, match="holds no pairs"):
        extend_store(location.url, 52)


def test_a_job_with_more_pairs_is_told_to_extend(new_store, fill, place):
    fill(new_store())
    with pytest.raises(PlanMismatchError, match=r"num_pairs: 36 -> 52\n.*`sfg extend` .* add the 16 pairs"):
        new_store(num_pairs=52)
    extend_store(place, 52)
    assert new_store(num_pairs=52).plan.ends == (36, 52)
    with pytest.raises(PlanMismatchError, match=r"num_pairs: 52 -> 36") as caught:
        new_store(num_pairs=36)
    assert "sfg extend" not in str(caught.value)


def test_the_stream_of_batches_meets_every_row_of_an_extended_store_once(new_store, fill, place):
    fill(new_store(num_pairs=37))
    pairs = fill(extend_store(place, 61))
    stream = PairStream.of(pairs, num_rows=58, batch_size=7, seed=0, shuffle_rows=16)
    batches = list(stream.epoch(0))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(58))
    latents = pairs.latents.compute()
    assert all(np.array_equal(batch.latents, latents[batch.rows]) for batch in batches)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [{"direction": "both"}, {"estimator": "minibatch", "num_reference": 100}])
def test_labels_of_an_extended_store_are_those_of_a_longer_run_bit_for_bit(make_store, labels):
    """The real labeler: 1000 pairs, 1010, then 1150, in shards of 128 and batches of 64, against 1150 at once."""
    from sfg_dist.distributed.labels.inline import label_inline

    pairs = make_store("short", labels=labels)
    url = pairs.location.url
    label_inline(url)
    first = all_rows(open_pairs(url))
    for num_pairs in (1010, 1150):
        extend_store(url, num_pairs)
        label_inline(url)
    longer = make_store("long", labels=labels | {"num_pairs": 1150})
    label_inline(longer.location.url)
    extended = open_pairs(url)
    assert extended.plan.ends == (1000, 1010, 1150)
    for mine, theirs, before in zip(all_rows(extended), all_rows(longer), first, strict=True):
        assert mine.tobytes() == theirs.tobytes()
        assert mine[:1000].tobytes() == before.tobytes()
    assert verify(extended).is_clean
