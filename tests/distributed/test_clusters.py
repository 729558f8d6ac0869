"""Labels over clusters: their order in the store, the bound in the records, the measured error, the chosen blur."""

import numpy as np
import pytest

from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.distributed.labels.labeler import label_error
from sfg_dist.distributed.labels.ordering import order_with_tasks, order_with_threads
from sfg_dist.flow import build_order
from sfg_dist.job.errors import StoreError
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import open_pairs, read_rows

TABLE = {"source": "moons", "max_rows": 6000}  # 4800 of them for training: enough for clusters
LABELS = {"num_pairs": 256, "shard_rows": 64, "batch_size": 64, "num_evaluations": 20, "t_min": 1e-3}


@pytest.mark.slow
def test_the_store_holds_the_order_and_every_record_its_bound(make_store):
    pairs = make_store(data=TABLE, labels=LABELS)
    assert np.array_equal(np.sort(pairs.order_rows(0, pairs.num_reference)), np.arange(len(pairs.reference)))
    label_inline(pairs.location.url)
    records = [pairs.commit_record(shard) for shard in range(pairs.plan.num_shards)]
    assert all(0 < record["tolerance_reached"] <= 1e-3 for record in records)
    assert all(0 < record["pairs"] < 64 * 19 * len(pairs.reference) for record in records)
    assert all(record["evaluations"] == 19 for record in records)
    error = label_error(pairs)
    assert error["num_rows"] == 64
    assert 0 < error["median"] < 2e-3
    assert error["median"] <= error["percentile_90"]
    assert error["tolerance_reached"] == max(record["tolerance_reached"] for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"tolerance": 0.0}, {"estimator": "minibatch", "num_reference": 100}])
def test_no_order_where_no_clusters_are_used(make_store, keys):
    pairs = make_store(data=TABLE, labels=LABELS | keys)
    assert not pairs.has_order
    label_inline(pairs.location.url)
    assert pairs.commit_record(0)["tolerance_reached"] == 0


@pytest.mark.slow
def test_a_damaged_order_is_refused(make_store):
    pairs = make_store(data=TABLE, labels=LABELS)
    pairs.group["reference/order"][:2] = [5, 5]
    with pytest.raises(StoreError, match="reference/order is not an ordering of the 4800 reference rows"):
        label_inline(pairs.location.url)


@pytest.mark.slow
def test_step_control_is_recorded_and_meets_its_tolerance(make_store):
    pairs = make_store(data=TABLE, labels=LABELS | {"solver_tolerance": 1e-3})
    label_inline(pairs.location.url)
    record = pairs.commit_record(0)
    assert 8 < record["evaluations"] < 60
    assert record["step_control_exceeded"] == 0
    assert label_error(pairs)["median"] < 2e-3


@pytest.mark.slow
def test_the_blur_is_chosen_once_and_kept(make_job):
    job = make_job(data=TABLE, labels=LABELS | {"t_min": "auto"})
    seen = []
    first = Pipeline(job, seen.append).open_store()
    blur = first.plan.identity["blur"]
    assert 1e-5 < blur["t_min"] < 0.05
    assert blur["is_floor"] is False
    assert [event["t_min"] for event in seen if event["event"] == "blur"] == [blur["t_min"]]
    assert Pipeline(job).open_store().plan.run_id == first.plan.run_id
    label_inline(first.location.url)
    assert np.isfinite(read_rows(open_pairs(first.location.url).labels, 0, 256)).all()


@pytest.mark.long
@pytest.mark.ray
def test_threads_and_tasks_sort_alike(monkeypatch, ray_cluster):
    monkeypatch.setattr("sfg_dist.flow.posterior.clusters.PARALLEL_ROWS", 2048)
    rows = np.random.default_rng(0).standard_normal((9000, 3), dtype=np.float32)
    order = build_order(rows)
    assert np.array_equal(order, order_with_threads(rows))
    assert np.array_equal(order, order_with_tasks(rows))
