"""The stages together: nothing stale is measured, and times add up over attempts."""

import json

import numpy as np
import pytest

import sfg_dist
from sfg_dist.job.errors import DataError, PlanMismatchError, StoreError
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import Location
from sfg_dist.store.event_log import EventLog, executor_words, stage_times


def test_run_takes_a_mapping_and_tells_its_listener(small_run):
    metrics = small_run.metrics
    assert metrics["samples"].keys() == metrics["floor"].keys() == metrics["labels"].keys()
    assert "kl" in metrics["samples"]
    kinds = [event["event"] for event in small_run.events]
    assert kinds.count("shard") == 8
    assert kinds.count("epoch") == 2
    assert kinds[-1] == "report"


def test_the_generator_carries_job_and_figures(small_run):
    generator = sfg_dist.Generator.load(small_run.directory)
    assert generator.job == small_run.job.model_dump(exclude_none=True)
    assert generator.metrics == small_run.metrics
    assert generator.columns == ("x", "y")


@pytest.mark.long
@pytest.mark.slow
def test_samples_of_another_model_are_not_measured(make_job, small_run, tmp_path, no_pictures):
    small_run.copy(tmp_path / "run")
    changed = Pipeline(make_job(train={"num_epochs": 4}))
    with pytest.warns(UserWarning, match="other train keys"):
        changed.evaluate()
    changed.train()
    with pytest.raises(StoreError, match=r"samples\.zarr was drawn from another model .*`sfg sample`"):
        changed.evaluate()
    changed.sample()
    changed.evaluate()
    with pytest.raises(StoreError, match="sfg sample"):
        Pipeline(make_job(train={"num_epochs": 4}, evaluate={"num_samples": 100})).evaluate()


def test_stages_after_labelling_refuse_another_plan_too(make_job, small_run, tmp_path):
    small_run.copy(tmp_path / "run")
    with pytest.raises(PlanMismatchError, match=r"labels\.seed: 0 -> 9"):
        Pipeline(make_job(labels={"seed": 9})).train()
    with pytest.raises(PlanMismatchError, match="num_pairs: 1000 -> 500"):
        Pipeline(make_job(labels={"num_pairs": 500})).evaluate()


@pytest.mark.slow
def test_a_table_that_changed_is_not_measured_against(make_job, tmp_path):
    rows = np.random.default_rng(0).standard_normal((300, 2))
    np.save(tmp_path / "table.npy", rows)
    job = make_job(data={"source": str(tmp_path / "table.npy"), "max_rows": 300})
    pipeline = Pipeline(job)
    for stage in (pipeline.label, pipeline.train, pipeline.sample):
        stage()
    np.save(tmp_path / "table.npy", rows + 1e-3)
    with pytest.raises(DataError, match=r"table\.npy is not the table"):
        Pipeline(job).evaluate()


def test_job_toml_is_the_job_of_the_last_stage_that_was_not_refused(make_job, copy_labels, tmp_path):
    copy_labels()
    with pytest.raises(PlanMismatchError):
        Pipeline(make_job(labels={"seed": 9})).label()
    assert "seed = 9" not in (tmp_path / "run" / "job.toml").read_text()
    Pipeline(make_job(train={"seed": 7})).train()
    assert "seed = 7" in (tmp_path / "run" / "job.toml").read_text()


@pytest.mark.slow
def test_samples_of_integer_columns_are_integers_and_constants_come_back(make_job, tmp_path, no_pictures):
    generator = np.random.default_rng(0)
    rows = np.stack([generator.poisson(5, 400), np.full(400, 7.5), generator.standard_normal(400)], axis=1)
    np.savez(tmp_path / "t.npz", X=rows, columns=np.array(["count", "fixed", "real"]))
    job = make_job(data={"source": str(tmp_path / "t.npz"), "constant": "keep", "max_rows": 400})
    sfg_dist.run(job)
    samples = sfg_dist.Generator.load(tmp_path / "run").sample(200)
    assert np.array_equal(samples[:, 0], np.round(samples[:, 0]))
    assert (samples[:, 1] == 7.5).all()
    assert not np.array_equal(samples[:, 2], np.round(samples[:, 2]))


def test_a_run_says_who_labelled_and_who_fitted(small_run):
    chosen = {event["stage"]: event for event in small_run.events if event["event"] == "executor"}
    assert {stage: event["executor"] for stage, event in chosen.items()} == {"label": "inline", "train": "inline"}
    assert chosen["label"]["num_processes"] == 0
    assert chosen["label"]["words"] == chosen["train"]["words"] == "in this process"
    page = (small_run.directory / "report.html").read_text()
    for name, stage in (("by", "label"), ("fit", "train")):
        assert f"<dt>{name}</dt><dd>{chosen[stage]['words']}</dd>" in page


def test_of_a_log_the_last_word_on_who_did_it_counts():
    log = "\n".join(
        json.dumps({"time": 1.0, "event": "executor", "stage": stage, "words": words})
        for stage, words in (("label", "by Ray"), ("label", "in this process"), ("train", 5), (["a"], "by Ray"))
    )
    assert executor_words(log + '\n{"time": 2.0, "event": "exec') == {"label": "in this process"}


def test_stage_times_add_up_over_attempts(tmp_path):
    path = tmp_path / "events.jsonl"
    events = [
        (0.0, "stage_started", {"stage": "label", "fresh": True}),
        (4.0, "shard", {}),  # killed after this
        (100.0, "stage_started", {"stage": "label", "fresh": False}),
        (103.0, "shard", {}),
        (105.0, "stage_finished", {"stage": "label"}),
        (110.0, "stage_started", {"stage": "train", "fresh": True}),
        (120.0, "stage_finished", {"stage": "train"}),
        (200.0, "stage_started", {"stage": "train", "fresh": True}),  # other keys: the old fit does not count
        (201.5, "stage_finished", {"stage": "train"}),
    ]
    lines = [json.dumps({"time": time, "event": event, **fields}) for time, event, fields in events]
    path.write_text("\n".join(lines) + '\n{"time": 300, "ev')
    log = EventLog(Location(tmp_path))
    assert stage_times(log.read()) == {"label": 9.0, "train": 1.5}
    log.append({"time": 400.0, "event": "stage_started", "stage": "sample", "fresh": True})
    log.append({"time": 402.0, "event": "stage_finished", "stage": "sample"})
    assert stage_times(log.read())["sample"] == 2.0
