"""A table larger than labels.memory_gib goes through all stages without being held whole, to the same bits."""

import numpy as np
import pytest

from sfg_dist.data import RowReader, large
from sfg_dist.data.large import LargePrepared
from sfg_dist.distributed.estimate import estimate_job
from sfg_dist.distributed.labeler import ShardLabeler
from sfg_dist.errors import ConfigError
from sfg_dist.flow import reference
from sfg_dist.pipeline import Pipeline


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
    monkeypatch.setattr(large, "SCAN_ROWS", 1000)
    monkeypatch.setattr(reference, "BLOCK_ROWS", 2000)
    for module in ("store.frame", "table_plan", "distributed.estimate", "distributed.calibration"):
        monkeypatch.setattr(f"sfg_dist.{module}.REFERENCE_BLOCK_ROWS", 2000)


@pytest.mark.slow
def test_all_stages_give_the_bits_of_the_table_held_whole(make_job, store_bytes, table, small):
    labels = {"num_pairs": 300, "memory_gib": 6.0}
    passes = Pipeline(make_job("passes", data=table, labels=labels))
    assert isinstance(passes.prepared, LargePrepared)
    whole = Pipeline(make_job("whole", data=table, labels={"num_pairs": 300}))
    assert not isinstance(whole.prepared, LargePrepared)
    for pipeline in (passes, whole):
        pipeline.label()
    assert ShardLabeler(passes.pairs_url).reference.num_blocks == 4
    assert store_bytes(passes.pairs_url) == store_bytes(whole.pairs_url)
    passes.train()
    passes.sample()
    assert passes.evaluate()["samples"]["c2st_auc"] > 0


@pytest.mark.slow
def test_a_plan_looks_at_the_first_block(make_job, table, small):
    job = make_job(data=table, labels={"num_pairs": 300, "memory_gib": 6.0})
    estimate = estimate_job(job, seconds=0.1)
    assert estimate.work.num_reference == 7200
    assert any("larger than labels.memory_gib" in note for note in estimate.notes)


@pytest.mark.parametrize("keys", [{"t_min": "auto"}, {"time_grid": "fitted"}])
def test_what_is_chosen_for_a_table_needs_it_in_memory(make_job, table, small, keys):
    pipeline = Pipeline(make_job(data=table, labels={"memory_gib": 6.0, **keys}))
    with pytest.raises(ConfigError, match=f"labels.{next(iter(keys))} = .* needs the reference in memory"):
        pipeline.label()
