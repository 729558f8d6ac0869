"""A reference sharded over a group: the merged bound is certified, labels agree with those of one process."""

import numpy as np
import pytest
import torch
from machines import on_cpus

from sfg_dist.distributed.labels.actors import label_with_actors
from sfg_dist.distributed.labels.labeler import ShardLabeler, label_error
from sfg_dist.distributed.labels.references import StoredReference
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.distributed.labels.sharded_reference import ReferenceMember, ShardedReference, part_ranges
from sfg_dist.flow import posterior_moments
from sfg_dist.job.errors import LabelingError
from sfg_dist.store import open_pairs, read_rows

TABLE = {"source": "moons", "max_rows": 6000}  # 4800 of them for training: enough for clusters
LABELS = {"num_pairs": 128, "shard_rows": 64, "batch_size": 64, "num_evaluations": 20, "t_min": 1e-3}
BLOCK_ROWS = "sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS"


def members_of(pairs, num_parts):
    return [ReferenceMember(pairs.location.url, part, num_parts) for part in range(num_parts)]


@pytest.mark.parametrize("block_rows", [1000, 10_000])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_the_parts_hold_every_row_once(block_rows, num_parts, monkeypatch):
    monkeypatch.setattr(BLOCK_ROWS, block_rows)
    rows = [np.arange(start, stop) for part in range(num_parts) for start, stop in part_ranges(5003, part, num_parts)]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(5003))
    assert all(len(part) > 0 for part in rows)


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="part 2 of 2"):
        part_ranges(10, 2, 2)
    with pytest.raises(ValueError, match="part 0 of 11"):
        part_ranges(10, 0, 11)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("block_rows", [700, 10_000])
@pytest.mark.parametrize("num_parts", [1, 2, 5])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_the_merged_bound_holds(make_store, monkeypatch, block_rows, num_parts, is_sorted):
    monkeypatch.setattr(BLOCK_ROWS, block_rows)
    if is_sorted:  # parts far from each other
        from sfg_dist.data import Prepared

        whole = Prepared.reference
        monkeypatch.setattr(Prepared, "reference", lambda self: np.ascontiguousarray(np.sort(whole(self), axis=0)))
    pairs = make_store(data=TABLE, labels=LABELS)
    group = ShardedReference(StoredReference(pairs), members_of(pairs, num_parts))
    rows = pairs.reference.astype(np.float64) - group.center.numpy()
    rng = np.random.default_rng(num_parts)
    for t in (0.9, 0.3, 0.03, 1e-3, 1e-5):
        picked = rows[rng.integers(0, len(rows), 40)]
        noise = rng.standard_normal(picked.shape)
        noise[-4:] *= 10
        z = torch.from_numpy(((1 - t) * picked + t**0.5 * noise).astype(np.float32))
        moments = posterior_moments(z, group, alpha=1 - t, beta_sq=t, variance=False, tolerance=1e-3)
        squares = ((z.double().numpy()[:, None] - (1 - t) * rows) ** 2).sum(axis=2) / (2 * t)
        weights = np.exp(squares.min(axis=1, keepdims=True) - squares)
        exact = weights @ rows / weights.sum(axis=1, keepdims=True)
        error = np.linalg.norm(moments.mean.numpy() - exact, axis=1)
        assert (moments.bound.numpy() <= 1e-3).all()
        assert (error <= moments.bound.numpy() + 1e-4).all()
        if t > 1e-3:
            assert moments.bound.max() > 0
            assert (moments.pairs < len(rows)).any()


@pytest.mark.slow
def test_labels_of_a_group_agree_with_those_of_one_process(make_store, monkeypatch):
    monkeypatch.setattr(BLOCK_ROWS, 1500)
    alone, group = make_store("alone", data=TABLE, labels=LABELS), make_store("group", data=TABLE, labels=LABELS)
    again = make_store("again", data=TABLE, labels=LABELS)
    for pairs, num_parts in ((alone, 0), (group, 3), (again, 3)):
        labeler = ShardLabeler(pairs.location.url, members=members_of(pairs, num_parts))
        records = [labeler.label(shard) for shard in range(2)]
        assert all(record["group"] == max(1, num_parts) for record in records)
        assert all(0 < record["tolerance_reached"] <= 1e-3 for record in records)
    gap = np.linalg.norm(read_rows(alone.labels, 0, 128) - read_rows(group.labels, 0, 128), axis=1)
    assert gap.max() > 0
    assert np.median(gap) < 1e-3
    assert np.array_equal(read_rows(group.labels, 0, 128), read_rows(again.labels, 0, 128))
    assert label_error(group)["median"] < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys", [{"tolerance": 0.0}, {"direction": "encode"}, {"estimator": "minibatch", "num_reference": 100}]
)
def test_other_kinds_of_labels_by_a_group(make_store, keys):
    alone = make_store("alone", data=TABLE, labels=LABELS | keys)
    group = make_store("group", data=TABLE, labels=LABELS | keys)
    ShardLabeler(alone.location.url).label(0)
    record = ShardLabeler(group.location.url, members=members_of(group, 2)).label(0)
    start, stop = group.plan.shard_range(0)
    for name in ("latents", "labels"):
        one, other = (read_rows(getattr(pairs, name), start, stop) for pairs in (alone, group))
        assert np.median(np.linalg.norm(one - other, axis=1)) < 1e-3
    assert record["tolerance_reached"] <= (keys.get("tolerance", 1e-3))


@pytest.mark.slow
def test_a_part_beyond_the_memory_is_refused_with_what_would_do(make_store):
    pairs = make_store(data=TABLE, labels=LABELS)
    with pytest.raises(LabelingError, match=r"actors_per_group = 2 a process needs .* take more actors a group"):
        ReferenceMember(pairs.location.url, 0, 2, memory_gib=0.1)


@pytest.mark.slow
def test_a_query_out_of_reach_is_nan_and_harms_no_other(make_store):
    pairs = make_store(data=TABLE, labels=LABELS)
    group = ShardedReference(StoredReference(pairs), members_of(pairs, 2))
    z = torch.zeros(5, 2)
    z[3, 0] = 1e30
    moments = posterior_moments(z, group, alpha=0.5, beta_sq=0.1, variance=False, tolerance=1e-3)
    assert moments.mean.isnan().any(dim=1).tolist() == [False, False, False, True, False]
    assert moments.bound[3].isnan()


@pytest.mark.long
@pytest.mark.ray
def test_a_group_works_through_the_pool(make_store, ray_cluster, events):
    alone, here = make_store("alone", data=TABLE, labels=LABELS), make_store("here", data=TABLE, labels=LABELS)
    group = make_store("group", data=TABLE, labels=LABELS)
    executor = on_cpus(num_actors=2, actors_per_group=2)
    label_with_actors(group.location.url, executor, LabelSettings(on_event=events))
    assert [event["device"] for event in events.of("worker_started")] == ["2 x cpu"]
    whole = open_pairs(group.location.url)
    assert whole.committed() == {0, 1}
    records = [whole.commit_record(shard) for shard in range(2)]
    assert all(record["group"] == 2 for record in records)
    assert all(0 < record["tolerance_reached"] <= 1e-3 for record in records)
    for labeler in (ShardLabeler(alone.location.url), ShardLabeler(here.location.url, members=members_of(here, 2))):
        for shard in range(2):
            labeler.label(shard)
    # Members may be objects of this process or actors.
    replicated, in_process, pooled = (read_rows(pairs.labels, 0, 128) for pairs in (alone, here, whole))
    assert np.array_equal(in_process, pooled)
    gap = np.linalg.norm(replicated - pooled, axis=1)
    assert 0 < np.median(gap) < 1e-3
