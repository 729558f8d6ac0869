"""A table larger than labels.memory_gib goes through all stages without being held whole, to the same bits."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sfg_dist.data import RowReader
from sfg_dist.distributed.labels.labeler import ShardLabeler
from sfg_dist.flow.posterior import reference
from sfg_dist.job.errors import ConfigError
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import open_pairs
from sfg_dist.studies.estimate.estimate import estimate_job


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(1)
    rows = np.stack([rng.standard_normal(9000), rng.integers(0, 5, 9000), rng.standard_cauchy(9000)], axis=1)
    np.save(tmp_path / "table.npy", rows)
    return {"source": str(tmp_path / "table.npy"), "shuffle": "none", "max_rows": 9000}


@pytest.fixture
def small(monkeypatch):
    """Any table counts as larger than memory, and blocks are of 2000 rows."""
    monkeypatch.setattr(RowReader, "num_bytes", property(lambda _: 1 << 60))
    monkeypatch.setattr("sfg_dist.data.cleaning.SCAN_ROWS", 1000)
    monkeypatch.setattr(reference, "REFERENCE_BLOCK_ROWS", 2000)
    for module in ("store.frame", "pipeline.plan", "studies.estimate.estimate", "studies.estimate.calibration"):
        monkeypatch.setattr(f"sfg_dist.{module}.REFERENCE_BLOCK_ROWS", 2000)


@pytest.mark.slow
def test_all_stages_give_the_bits_of_the_table_held_whole(make_job, store_bytes, table, small):
    """In this process, which alone has the small blocks."""
    labels, here = {"num_pairs": 300, "memory_gib": 6.0}, {"kind": "inline", "num_actors": 1}
    passes = Pipeline(make_job("passes", data=table, labels=labels, executor=here))
    assert not passes.prepared.is_whole
    whole = Pipeline(make_job("whole", data=table, labels={"num_pairs": 300}, executor=here))
    assert whole.prepared.is_whole
    for pipeline in (passes, whole):
        pipeline.label()
    assert ShardLabeler(passes.pairs_url).reference.num_blocks == 4
    assert store_bytes(passes.pairs_url) == store_bytes(whole.pairs_url)
    passes.train()
    passes.sample()
    assert passes.evaluate()["samples"]["c2st_auc"] > 0


@pytest.mark.slow
def test_a_measured_certificate_over_a_file_has_the_bits_of_the_table_held_whole(
    make_job, store_bytes, table, small, monkeypatch, tmp_path
):
    """Its reference is one block, ordered and built in passes over files."""
    monkeypatch.setattr("sfg_dist.flow.posterior.mapped.SORTED_ROWS", 3000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    labels, here = {"num_pairs": 300, "certificate": "measured"}, {"kind": "inline", "num_actors": 1}
    passes = Pipeline(make_job("passes", data=table, labels=labels | {"memory_gib": 6.0}, executor=here))
    assert not passes.prepared.is_whole
    whole = Pipeline(make_job("whole", data=table, labels=labels, executor=here))
    for pipeline in (passes, whole):
        pipeline.label()
    assert max(open_pairs(passes.pairs_url).plan.certificate("decode")["thresholds"]) > 0
    assert store_bytes(passes.pairs_url) == store_bytes(whole.pairs_url)


@pytest.mark.long
@pytest.mark.slow
def test_a_plan_looks_at_the_first_block(make_job, table, small, monkeypatch):
    job = make_job(data=table, labels={"num_pairs": 300, "memory_gib": 6.0})
    # Its processes have blocks of the usual size, and would take two small ones for one.
    monkeypatch.setattr("sfg_dist.studies.estimate.estimate.CALIBRATED_BLOCKS", 1)
    estimate = estimate_job(job, seconds=0.1)
    assert estimate.work.num_reference == 7200
    assert any("the first 2,000 rows of the reference were timed" in note for note in estimate.notes)


@pytest.mark.long
@pytest.mark.slow
def test_a_plan_of_measured_labels_says_what_a_file_takes(make_job, table, small):
    job = make_job(data=table, labels={"num_pairs": 300, "memory_gib": 6.0, "certificate": "measured"})
    (note,) = (note for note in estimate_job(job, seconds=0.1).notes if "temporary file" in note)
    assert "larger than labels.memory_gib: each node builds it in" in note


def test_a_budget_that_cannot_hold_a_measured_reference_is_refused_before_it_is_built(
    make_job, table, small, monkeypatch
):
    monkeypatch.setattr("sfg_dist.distributed.labels.references.BYTES_A_ROW", 1 << 20)
    monkeypatch.setattr("sfg_dist.distributed.labels.ordering.order_in_passes", pytest.fail)
    pipeline = Pipeline(make_job(data=table, labels={"memory_gib": 6.0, "certificate": "measured"}))
    with pytest.raises(ConfigError, match=r"labels\.memory_gib = 6 cannot hold one block of the reference"):
        pipeline.label()


@pytest.mark.slow
@pytest.mark.parametrize("certificate", ["bound", pytest.param("measured", marks=pytest.mark.long)])
def test_a_debiased_reference_has_the_bits_of_the_table_held_whole(
    make_job, store_bytes, table, small, monkeypatch, tmp_path, certificate
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    labels = {"num_pairs": 128, "debias": True, "certificate": certificate}
    stores = []
    for name, keys in (("passes", {"memory_gib": 6.0}), ("whole", {})):
        pipeline = Pipeline(make_job(name, data=table, labels=labels | keys, executor={"num_actors": 1}))
        assert pipeline.prepared.is_whole == (name == "whole")
        stores.append(pipeline.label())
    assert stores[0].plan.is_debiased
    assert store_bytes(stores[0].location.url) == store_bytes(stores[1].location.url)


@pytest.mark.parametrize("keys", [{"t_min": "auto"}, {"debias": "auto"}, {"time_grid": "fitted"}])
def test_what_is_chosen_for_a_table_needs_it_in_memory(make_job, table, small, keys):
    pipeline = Pipeline(make_job(data=table, labels={"memory_gib": 6.0, **keys}))
    with pytest.raises(ConfigError, match=f"labels.{next(iter(keys))} = .* must be in memory"):
        pipeline.label()


TYPED = {
    "count": lambda rng, n: pa.array(rng.integers(0, 50, n), pa.int32()),
    "stamp": lambda rng, n: pa.array(1_700_000_000_000 + rng.integers(0, 10**8, n), pa.timestamp("ms")),
    "identity": lambda rng, n: pa.array(2**53 + 1 + rng.integers(0, 10**6, n)),
    "price": lambda rng, n: pa.array([Decimal(int(cents)) / 100 for cents in rng.integers(0, 10**5, n)]),
    "flag": lambda rng, n: pa.array(rng.random(n) < 0.3),
    "rain": lambda rng, n: pa.array(np.where(rng.random(n) < 0.6, 0, rng.lognormal(size=n)), mask=rng.random(n) < 0.02),
    "share": lambda rng, n: pa.array(rng.random(n), pa.float32()),
}


@pytest.fixture
def typed_source(tmp_path):
    """A folder of .parquet with typed columns, zeros and gaps, and a column whose type differs."""
    rng = np.random.default_rng(0)
    for part, rows in enumerate((700, 500)):
        columns = {name: make(rng, rows) for name, make in TYPED.items()}
        if part:
            columns["count"] = columns["count"].cast(pa.int64())
        (tmp_path / "typed").mkdir(exist_ok=True)
        parquet.write_table(pa.table(columns), tmp_path / "typed" / f"{part}.parquet", row_group_size=300)
    return {
        "source": str(tmp_path / "typed"),
        "shuffle": "none",
        "missing": "drop",
        "max_rows": None,
        "bounds": {"share": [0, 1], "rain": [0, 1000]},
    }


@pytest.mark.long
@pytest.mark.slow
def test_labels_of_typed_columns_read_by_ranges_have_the_bits_of_the_table_held_whole(
    make_job, store_bytes, typed_source, monkeypatch
):
    labels = {"num_pairs": 128, "num_evaluations": 4}
    whole = Pipeline(make_job("whole", data=typed_source, labels=labels))
    whole.label()
    monkeypatch.setattr(RowReader, "num_bytes", property(lambda _: 1 << 60))
    monkeypatch.setattr("sfg_dist.data.cleaning.SCAN_ROWS", 400)
    passes = Pipeline(make_job("passes", data=typed_source, labels={**labels, "memory_gib": 6.0}))
    assert not passes.prepared.is_whole
    passes.label()
    assert store_bytes(passes.pairs_url) == store_bytes(whole.pairs_url)
    transforms = [open_pairs(pipeline.pairs_url).transform for pipeline in (passes, whole)]
    assert transforms[0][1] == transforms[1][1]
    assert passes.prepared.report["atoms"] == whole.prepared.report["atoms"] != {}
