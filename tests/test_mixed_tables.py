"""A table of text, numbers and gaps goes through all stages, and its samples are rows that it could have."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from commands import sfg
from pyarrow import parquet

from sfg_dist.data import RowReader
from sfg_dist.job.config import resolve_job
from sfg_dist.job.errors import DataError, PlanMismatchError
from sfg_dist.model import Generator
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.pipeline.plan import identity_of_keys
from sfg_dist.pipeline.report import _notes
from sfg_dist.store import open_pairs

TOWNS, COUNTRIES = np.array(["Rome", "Oslo", "Bonn"]), np.array(["IT", "NO", "DE"])


def mixed(num_rows=700, seed=0):
    random = np.random.default_rng(seed)
    place = random.choice(3, num_rows, p=[0.5, 0.3, 0.2])
    is_gap = random.random(num_rows) < 0.2
    return pa.table(
        {
            "town": pa.array(TOWNS[place]).dictionary_encode(),
            "country": COUNTRIES[place],
            "job": pa.array(np.array(["clerk", "cook"])[random.integers(0, 2, num_rows)], mask=is_gap),
            "income": pa.array(np.round(random.normal(30 + 8 * place, 2), 1), mask=is_gap),
            "age": random.integers(18, 80, num_rows),
        }
    )


def all_stages(pipeline):
    pipeline.label()
    pipeline.train()
    pipeline.sample()
    return pipeline.evaluate()


@pytest.fixture
def data(tmp_path):
    parquet.write_table(mixed(), tmp_path / "t.parquet", row_group_size=200)
    return {"source": str(tmp_path / "t.parquet"), "max_rows": None}


@pytest.mark.long
@pytest.mark.slow
def test_all_stages(make_job, data, tmp_path):
    job = make_job(data=data, train={"num_epochs": 2, "encoder": True, "encoder_steps": 200})
    pipeline = Pipeline(job)
    metrics = all_stages(pipeline)
    assert metrics["floor"]["c2st_auc"] is not None
    assert metrics["likelihood"]["encoder"]["mean"] is not None
    page = (tmp_path / "run" / "report.html").read_text()
    for words in (
        "Categories: &#39;town&#39; 3, &#39;country&#39; 3, &#39;job&#39; 2.",
        "Missing values are learnt and drawn: &#39;job&#39; 2",
        "&#39;country&#39; from &#39;town&#39;",
        "with a bar for each category",
    ):
        assert words in page, words
    sfg(tmp_path, "sample", "run/model", "-n", "500", "--out", "s.parquet")
    samples, source = parquet.read_table(tmp_path / "s.parquet"), parquet.read_table(tmp_path / "t.parquet")
    assert samples.schema.types == source.schema.types
    pairs = set(zip(samples["town"].to_pylist(), samples["country"].to_pylist(), strict=True))
    assert pairs <= set(zip(TOWNS.tolist(), COUNTRIES.tolist(), strict=True))
    assert min(samples["job"].null_count, samples["income"].null_count) > 0
    assert samples["age"].null_count == 0
    generator = Generator.load(tmp_path / "run" / "model")
    assert generator.types[0].categories == ("Bonn", "Oslo", "Rome")
    rows = pipeline.prepared.test
    assert np.isfinite(generator.log_prob(rows)).all()
    rows = rows.copy()
    rows[0, 1] = (rows[0, 1] + 1) % 3
    with pytest.raises(DataError, match="no row of the table has both"):
        generator.log_prob(rows)
    assert "nothing is wrong" in sfg(tmp_path, "verify", "run").stdout


@pytest.mark.slow
def test_labels_by_ranges_have_the_bits_of_the_table_held_whole(make_job, store_bytes, data, monkeypatch):
    labels, data = {"num_pairs": 128, "num_evaluations": 4}, {**data, "shuffle": "none"}
    whole = Pipeline(make_job("whole", data=data, labels=labels))
    whole.label()
    monkeypatch.setattr(RowReader, "num_bytes", property(lambda _: 1 << 60))
    monkeypatch.setattr("sfg_dist.data.cleaning.SCAN_ROWS", 150)
    passes = Pipeline(make_job("passes", data=data, labels={**labels, "memory_gib": 6.0}))
    assert not passes.prepared.is_whole
    passes.label()
    assert store_bytes(passes.pairs_url) == store_bytes(whole.pairs_url)


@pytest.mark.slow
def test_a_store_knows_its_categories(make_job, data, tmp_path):
    """The same codes with other names are another table; the same table goes on, by any choice that reads it alike."""
    labels = {"num_pairs": 128, "num_evaluations": 4}
    job = make_job(data=data, labels=labels)
    Pipeline(job).label()
    plan = open_pairs(f"{tmp_path}/run/pairs.zarr").plan
    assert plan.identity["types"]["country"]["categories"] == ["DE", "IT", "NO"]
    assert plan.dim == 4
    Pipeline(job).label()
    renamed = mixed()
    countries = pa.array(
        [{"IT": "Italy", "NO": "Norway", "DE": "Germany"}[name] for name in renamed["country"].to_pylist()]
    )
    parquet.write_table(renamed.set_column(1, "country", countries), tmp_path / "t.parquet")
    with pytest.raises(PlanMismatchError, match=r"types\.country\.categories: \['DE', 'IT', 'NO'\] -> \['Germany'"):
        Pipeline(job).label()


@pytest.mark.slow
def test_the_default_blur_suits_the_columns_and_is_that_of_a_store_that_is_there(make_job, data):
    labels = {"num_pairs": 128, "num_evaluations": 4, "t_min": None}

    def plan(name, table, **keys):
        pipeline = Pipeline(make_job(name, data=table, labels=labels | keys))
        pipeline.label()
        pipeline = Pipeline(make_job(name, data=table, labels=labels | keys | {"num_pairs": 192}))
        pipeline.extend()  # which compares the job with the plan alone
        found = open_pairs(pipeline.pairs_url).plan
        assert found.labels["t_min"] == found.t_min
        return found

    assert plan("mixed", data).t_min == 1e-6
    assert plan("numbers", {"source": "moons", "max_rows": 500}).t_min == 1e-3
    assert plan("begun", data, t_min=1e-3).t_min == 1e-3
    pipeline = Pipeline(make_job("begun", data=data, labels=labels | {"num_pairs": 192}))
    pipeline.label()
    assert open_pairs(pipeline.pairs_url).plan.t_min == 1e-3


def test_the_keys_of_older_stores_are_those_of_the_defaults():
    def identity(**keys):
        return identity_of_keys(resolve_job({"data": {"source": "moons", **keys}}))["data"]

    assert identity()["missing"] == "refuse"
    assert identity() == identity(missing="refuse") == identity(dependencies="ignore")
    assert not {"types", "dependencies"} & identity().keys()
    assert identity(missing="drop")["missing"] == "drop"
    assert identity(types={"a": ["low", "high"]})["types"] == {"a": ["low", "high"]}


@pytest.mark.long
@pytest.mark.slow
def test_a_category_may_be_a_condition(make_job, data, tmp_path, no_pictures):
    pipeline = Pipeline(make_job(data={**data, "condition": ["country", "job"]}))
    all_stages(pipeline)
    sfg(tmp_path, "sample", "run/model", "-n", "20", "--given", "country=NO", "--given", "job=cook", "--out", "s.csv")
    lines = [line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()]
    places = [lines[0].index(name) for name in ("town", "country", "job")]
    assert {tuple(line[place] for place in places) for line in lines[1:]} == {("Oslo", "NO", "cook")}
    said = sfg(tmp_path, "sample", "run/model", "--given", "country=XX", "--given", "job=cook", check=2).stderr
    assert "given: 'country': holds 'XX', which is none of its categories: 'DE', 'IT', 'NO'" in said
    (tmp_path / "wanted.csv").write_text("country,job\n" + "NO,cook\nDE,\n" * 20)
    sfg(tmp_path, "sample", "run/model", "--given-table", "wanted.csv", "--out", "s.parquet")
    samples = parquet.read_table(tmp_path / "s.parquet")
    assert samples["town"].to_pylist() == ["Oslo", "Bonn"] * 20
    assert samples["job"].to_pylist() == ["cook", None] * 20


def test_notes_of_a_report_say_what_figures_read():
    report = {"categories": {"town": 3}, "missing": {"rain": 0.05}, "determined": {"zip": "town"}}
    notes = _notes(SimpleNamespace(report=report), None, ())
    assert "Looked up on the way back, and left out of the flow: 'zip' from 'town'." in notes
    assert any("a missing value as a number beyond the others" in note for note in notes)
    assert _notes(SimpleNamespace(report={}), None, ()) == []
