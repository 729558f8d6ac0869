"""Stores of version 0.1.0 whose table this version reads or transforms otherwise: gone on with, or refused in words."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sfg_dist.data import discreteness, prepare
from sfg_dist.distributed.labels.sizes import store_bytes
from sfg_dist.job.errors import DataError
from sfg_dist.job.seal import seal, unseal
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.pipeline.table import rows_of_generator, table_of_store
from sfg_dist.store import open_pairs


@pytest.fixture
def old_pipeline(tmp_path, make_job, monkeypatch):
    """The pipeline of a store as version 0.1.0 made it of a column with zeros, which it had no atoms for."""
    rng = np.random.default_rng(0)
    rows = np.stack([np.where(rng.random(200) < 0.6, 0, rng.lognormal(size=200)), rng.normal(size=200)], axis=1)
    np.savetxt(tmp_path / "t.csv", rows, delimiter=",", header="a,b", comments="")
    job = make_job(data={"source": str(tmp_path / "t.csv")}, labels={"num_pairs": 64})
    with monkeypatch.context() as patch:
        patch.setattr(discreteness, "find_atoms", lambda *_: np.array([], np.intp))
        location = Pipeline(job).label().location
    for record in ("plan.json", "plan.copy.json"):
        fields = unseal(location.read(record))
        fields.pop("has_names")
        location.delete(record)
        location.create(record, seal(fields))
    return Pipeline(job)


def test_the_table_of_a_store_has_the_transform_of_the_store(old_pipeline):
    pairs, today = open_pairs(old_pipeline.pairs_url), old_pipeline.prepared
    table = table_of_store(today, pairs)
    assert not np.array_equal(today.flow_rows("train"), pairs.reference)
    np.testing.assert_array_equal(table.flow_rows("train"), pairs.reference)
    assert today.report["atoms"]
    assert not table.report["atoms"]
    other = replace(today, train=today.train + 1)
    with pytest.raises(DataError, match=r"is not the table .* \(version 0.1.0, which made the store, read or transf"):
        table_of_store(other, pairs)


def test_what_a_store_looks_up_is_said_of_it(tmp_path):
    """A store of a version that looked no column up, of a table in which this one finds a column to look up."""
    number = np.arange(400) % 4
    lines = [
        f"{a},{2 * a + 1},{float(x)!r}" for a, x in zip(number, np.random.default_rng(0).normal(size=400), strict=True)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,x", *lines]))
    today, then = prepare(tmp_path / "t.csv"), prepare(tmp_path / "t.csv", dependencies="ignore")
    assert today.report["determined"] == {"b": "a"}
    pairs = SimpleNamespace(
        plan=SimpleNamespace(identity={"table": then.table_fingerprint()}),
        transform=(then.transform.to_arrays(), then.transform.to_metadata()),
    )
    assert table_of_store(today, pairs).report["determined"] == {}


def test_a_store_of_this_version_has_the_report_of_its_table(make_job):
    pipeline = Pipeline(make_job())
    table = table_of_store(pipeline.prepared, pipeline.open_store())
    assert table.report is pipeline.prepared.report


def test_to_go_on_says_so_in_a_line(old_pipeline):
    more = old_pipeline.job.labels.model_copy(update={"num_pairs": 96})
    pipeline = Pipeline(old_pipeline.job.model_copy(update={"labels": more}))
    with pytest.warns(UserWarning, match="was begun by version 0.1.0, and keeps its rows and transform"):
        pairs = pipeline.extend()
    assert pairs.is_complete


def test_validation_rows_of_other_columns_are_refused(old_pipeline):
    table = old_pipeline.prepared

    class Other:
        columns, types = ("c0", "a", "b"), ()

    with pytest.raises(DataError, match=r"t\.csv is read as columns 'a', 'b', the generator has 'c0', 'a', 'b'"):
        rows_of_generator(table, Other(), table.validation)


def test_the_bytes_of_an_old_store_are_counted_without_what_it_lacks(old_pipeline):
    pairs, frame = open_pairs(old_pipeline.pairs_url), old_pipeline.frame()
    sizes = {
        has_names: store_bytes(
            replace(pairs.plan, has_names=has_names),
            num_reference=pairs.num_reference,
            has_order=False,
            transform_arrays=frame.transform_arrays,
            transform_metadata=frame.transform_metadata,
        )
        for has_names in (False, True)
    }
    names = ("origins", "bounds", "tails")
    later = [frame.transform_arrays[name].nbytes + 4 for name in names]  # a checksum each
    assert sizes[True].transform - sizes[False].transform == sum(later)
    assert sizes[False].column == 0
