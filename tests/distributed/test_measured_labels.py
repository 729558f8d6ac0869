"""Labels under a measured certificate: what plan and records say, what is caught, and the same bits by any way."""

import tempfile

import numpy as np
import pytest

from sfg_dist.distributed.labels import references, shared_blocks
from sfg_dist.distributed.labels.inline import label_inline, label_with_processes
from sfg_dist.distributed.labels.labeler import ShardLabeler, label_error
from sfg_dist.flow import build_order
from sfg_dist.flow.certificate import NUM_FRESH, Measured
from sfg_dist.job.config import Job
from sfg_dist.job.errors import ConfigError, LabelingError
from sfg_dist.job.plan import Plan
from sfg_dist.job.seal import LATER_FORMAT_VERSION
from sfg_dist.job.words import GIB
from sfg_dist.pipeline.check import check_job
from sfg_dist.store import open_pairs, read_rows, verify

TABLE = {"source": "moons", "max_rows": 6000}
BOUND = {"num_pairs": 256, "shard_rows": 64, "batch_size": 64, "num_evaluations": 8, "t_min": 1e-3}
LABELS = BOUND | {"certificate": "measured"}


def labels_of(pairs):
    return read_rows(pairs.labels, 0, pairs.plan.num_pairs)


@pytest.mark.slow
def test_plan_records_and_error(make_store):
    pairs = make_store(data=TABLE, labels=LABELS)
    assert pairs.plan.format_version == LATER_FORMAT_VERSION
    measured = pairs.plan.certificate("decode")
    assert len(measured["thresholds"]) == len(measured["expected"]) == 7
    assert measured["num_fresh"] == NUM_FRESH
    assert max(measured["thresholds"]) > 0
    label_inline(pairs.location.url)
    records = [pairs.commit_record(shard) for shard in range(pairs.plan.num_shards)]
    assert all(record["measured"] == 7 for record in records)
    assert all(record["rows_bounded"] == 0 for record in records)
    assert all("tolerance_reached" not in record for record in records)
    error = label_error(pairs)
    assert error["measured"] == 4 * 7
    assert error["measured_over"] == sum(record["measured_over"] for record in records)


@pytest.mark.slow
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


@pytest.fixture
def from_file(monkeypatch, tmp_path):
    """A labeler of a store of several blocks' rows, whose file is built in passes and is more than it may hold."""
    monkeypatch.setattr("sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS", 1500)
    monkeypatch.setattr(references, "base_bytes", lambda dim, has_clusters: 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def make(pairs):
        need = references.reference_memory(pairs.num_reference, 2, has_clusters=True, is_whole=True)
        return ShardLabeler(pairs.location.url, memory_gib=(need.streamed + need.resident) / 2 / GIB)

    return make


@pytest.mark.slow
def test_bits_do_not_depend_on_whether_the_reference_is_in_memory_or_in_a_file(make_store, from_file, tmp_path):
    """Nor on whether a run was stopped and went on with the other way."""
    memory, file, mixed = (make_store(name, data=TABLE, labels=LABELS) for name in ("memory", "file", "mixed"))
    whole = ShardLabeler(memory.location.url)
    in_file = from_file(file)
    assert len(list(tmp_path.rglob("*.blocks"))) == 1
    for shard in range(4):
        assert whole.label(shard)["objects"] == in_file.label(shard)["objects"]
    in_file.close()
    assert not list(tmp_path.rglob("*.blocks"))
    ways = (ShardLabeler(mixed.location.url), from_file(mixed))
    for shard in range(4):
        ways[shard % 2].label(shard)
    ways[1].close()
    assert np.array_equal(labels_of(mixed), labels_of(memory))
    error = label_error(file)
    assert error["median"] < 0.1


@pytest.mark.slow
def test_a_disk_without_room_is_said_before_any_label(make_store, from_file, monkeypatch):
    pairs = make_store(data=TABLE, labels=LABELS)
    monkeypatch.setattr(shared_blocks, "free_bytes", lambda directory: 0)
    with pytest.raises(LabelingError, match=r"needs 0\.0 GiB in the directory .*: set TMPDIR"):
        from_file(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, *(pytest.param(number, marks=pytest.mark.long) for number in (1, 4))])
def test_processes_give_the_bits_of_a_file(make_store, store_bytes, from_file, number):
    file, processes = (make_store(name, data=TABLE, labels=LABELS) for name in ("file", "processes"))
    labeler = from_file(file)
    for shard in range(4):
        labeler.label(shard)
    labeler.close()
    label_with_processes(processes.location.url, number)
    assert store_bytes(processes.location.url) == store_bytes(file.location.url)


@pytest.mark.slow
def test_an_order_over_several_blocks_is_of_the_whole_reference(make_store, monkeypatch):
    monkeypatch.setattr("sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS", 1500)
    pairs = make_store(data=TABLE, labels=LABELS)
    assert np.array_equal(pairs.order_rows(0, pairs.num_reference), build_order(pairs.reference))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_store_of_the_earlier_rule_goes_on(make_store, monkeypatch):
    """Its plan says nothing of labels: the posterior mean was to be within the tolerance at each time."""
    fitted = Measured.to_record

    def earlier(measured):
        record = fitted(measured)
        del record["expected"], record["labels_over"]
        thresholds = [value / 256 for value in record["thresholds"]]
        return record | {"num_over": [0] * len(thresholds), "thresholds": thresholds}

    monkeypatch.setattr(Measured, "to_record", earlier)
    pairs = make_store(data=TABLE, labels=LABELS)
    label_inline(pairs.location.url)
    record = pairs.commit_record(0)
    assert record["rows_bounded"] == 0
    assert record["measured_over"] == 0
    assert verify(open_pairs(pairs.location.url)).findings == ()
    assert label_error(pairs)["measured"] == 4 * 7


@pytest.mark.slow
def test_thresholds_that_no_pilots_keep_leave_the_bound(make_store, monkeypatch):
    bounded = make_store("bound", data=TABLE, labels=BOUND)
    monkeypatch.setattr("sfg_dist.flow.certificate._Fit._test", lambda *_: None)
    pairs = make_store("measured", data=TABLE, labels=LABELS)
    for store in (pairs, bounded):
        label_inline(store.location.url)
    assert open_pairs(pairs.location.url).plan.certificate("decode")["thresholds"] == [0.0] * 7
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
