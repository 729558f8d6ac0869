"""Labels under a measured certificate: what plan and records say, what is caught, and the same bits by any way."""

import numpy as np
import pytest

from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.distributed.labels.labeler import ShardLabeler, label_error
from sfg_dist.flow.certificate import NUM_FRESH
from sfg_dist.job.config import Job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.plan import Plan
from sfg_dist.job.seal import MEASURED_FORMAT_VERSION
from sfg_dist.pipeline.check import check_job
from sfg_dist.store import open_pairs, read_rows

TABLE = {"source": "moons", "max_rows": 6000}
BOUND = {"num_pairs": 256, "shard_rows": 64, "batch_size": 64, "num_evaluations": 8, "t_min": 1e-3}
LABELS = BOUND | {"certificate": "measured"}


def labels_of(pairs):
    return read_rows(pairs.labels, 0, pairs.plan.num_pairs)


def test_plan_records_and_error(make_store):
    pairs = make_store(data=TABLE, labels=LABELS)
    assert pairs.plan.format_version == MEASURED_FORMAT_VERSION
    measured = pairs.plan.certificate("decode")
    assert len(measured["thresholds"]) == len(measured["num_over"]) == 7
    assert 7 * measured["num_fresh"] >= NUM_FRESH
    assert max(measured["thresholds"]) > 0
    label_inline(pairs.location.url)
    records = [pairs.commit_record(shard) for shard in range(pairs.plan.num_shards)]
    assert all(record["measured"] == 7 for record in records)
    assert all(record["rows_bounded"] == 0 for record in records)
    assert all("tolerance_reached" not in record for record in records)
    error = label_error(pairs)
    assert error["measured"] == 4 * 7
    assert error["measured_over"] == sum(record["measured_over"] for record in records)


def test_bits_do_not_depend_on_who_labels_in_which_order(make_store):
    first = make_store(data=TABLE, labels=LABELS)
    label_inline(first.location.url)
    second = make_store("second", data=TABLE, labels=LABELS)
    assert second.plan.run_id == first.plan.run_id
    labeler = ShardLabeler(second.location.url)
    for shard in (3, 1):
        labeler.label(shard)
    other = ShardLabeler(second.location.url, num_threads=2)
    for shard in (2, 0):
        other.label(shard)
    assert np.array_equal(labels_of(open_pairs(second.location.url)), labels_of(open_pairs(first.location.url)))


def test_shards_over_the_tolerance_go_by_the_bound(make_store, monkeypatch):
    pairs, bounded = make_store(data=TABLE, labels=LABELS), make_store("bound", data=TABLE, labels=BOUND)
    label_inline(bounded.location.url)
    fitted = pairs.plan.certificate("decode")
    loose = {**fitted, "thresholds": [1e3] * len(fitted["thresholds"])}
    monkeypatch.setattr(Plan, "certificate", lambda *_: loose)
    label_inline(pairs.location.url)
    record = pairs.commit_record(0)
    assert record["measured_over"] > 2  # of 7
    assert record["measured_largest"] > 1e-3
    assert record["rows_bounded"] >= 64
    assert np.array_equal(labels_of(open_pairs(pairs.location.url)), labels_of(open_pairs(bounded.location.url)))


def test_a_store_under_the_bound_has_the_plan_it_had(make_store):
    plan = make_store(data=TABLE, labels=BOUND).plan
    assert "certificate" not in plan.labels
    assert "certificate" not in plan.identity
    assert plan.format_version == 2


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (
            {"data": {"condition": ["x"]}, "labels": {"certificate": "measured"}},
            "labels.certificate = 'measured' does not",
        ),
        ({"executor": {"actors_per_group": 2}, "labels": {"certificate": "measured"}}, "executor.actors_per_group = 2"),
        ({"labels": {"certificate": "measured", "latents": "z.npy"}}, "labels.latents does not go with"),
    ],
)
def test_what_it_does_not_serve_is_refused_before_any_work(job, words):
    with pytest.raises(ConfigError, match=words):
        check_job(Job.model_validate({**job, "data": {"source": "moons"} | job.get("data", {})}))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tolerance": 0.0}, "tolerance = 0.0 does not go with"),
        ({"estimator": "minibatch"}, "estimator = 'minibatch' does not go with"),
        ({"solver_tolerance": 1e-3}, "solver_tolerance = 0.001 does not go with"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, words):
    with pytest.raises(ValueError, match=words):
        Job.model_validate({"data": {"source": "moons"}, "labels": {"certificate": "measured"} | keys})


def test_a_small_table_is_refused_by_name(make_store):
    with pytest.raises(ConfigError, match=r"labels.certificate = .measured. pays from 4096 rows on"):
        make_store(data=TABLE | {"max_rows": 1000}, labels=LABELS)
