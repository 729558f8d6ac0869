"""`sfg report`: the page of a run again, from what lies there, and nothing else."""

import json
import re

import numpy as np
import pytest
from commands import sfg

from sfg_dist.pipeline.pipeline import Pipeline


@pytest.fixture
def run(small_run, tmp_path):
    return small_run.copy(tmp_path / "run")


def files(directory):
    """Bytes of all files but the page and the log."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("report.html", "events.jsonl")
    }


@pytest.mark.slow
def test_the_page_is_rendered_anew_and_nothing_else_is_written(run, small_run, no_pictures):
    page, before = (run / "report.html").read_text(), files(run)
    (run / "report.html").unlink()
    assert sfg(run.parent, "report", "run").stdout.endswith("report: run/report.html\n")
    assert files(run) == before
    assert (run / "report.html").read_text() == page.replace(str(small_run.directory), "run")


@pytest.mark.slow
def test_the_page_has_the_stored_figures(run, no_pictures):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["samples"]["c2st_auc"] = 0.7654
    (run / "metrics.json").write_text(json.dumps(metrics))
    sfg(run.parent, "report", run)
    assert "0.765" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_run_may_have_moved(run, tmp_path, no_pictures):
    job = (run / "job.toml").read_text()
    run.rename(tmp_path / "elsewhere")
    document = json.loads(sfg(tmp_path, "report", "elsewhere/", "--json").stdout)
    assert document == {"output": "elsewhere", "report": "elsewhere/report.html"}
    assert (tmp_path / "elsewhere" / "job.toml").read_text() == job
    assert not run.exists()


@pytest.mark.slow
def test_device_and_versions_are_those_of_the_evaluation(run, no_pictures):
    log = run / "events.jsonl"
    text = log.read_text()
    log.write_text(re.sub(r'"device": "[^"]*"', '"device": "an old machine"', text))
    sfg(run.parent, "report", run)
    assert "an old machine" in (run / "report.html").read_text()
    log.write_text("")
    sfg(run.parent, "report", run)
    assert "<dt>device</dt>" not in (run / "report.html").read_text()


def broken(run, name, change):
    path = run / name
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "metrics.json").unlink(), "metrics.json does not exist: run `sfg evaluate`"),
        (lambda run: (run / "metrics.json").write_text('{"floor": '), "metrics.json is no JSON document"),
        (lambda run: broken(run, "metrics.json", lambda m: m["samples"].update(c2st_auc="x")), "samples.c2st_auc"),
        (lambda run: broken(run, "metrics.json", lambda m: m["label_error"].pop("median")), "median is missing"),
        (lambda run: broken(run, "model/generator.json", lambda m: m["metrics"].clear()), "is older than the model"),
        (lambda run: (run / "model" / "generator.json").unlink(), "holds no generator"),
        (lambda run: (run / "samples.zarr" / "zarr.json").unlink(), "`sfg sample`"),
        (lambda run: (run / "checkpoints" / "fitted.json").unlink(), "`sfg train`"),
        (lambda run: (run / "report.html").write_text("my own page"), "report.html was not left by a run"),
    ],
)
def test_what_is_missing_or_damaged_is_named(run, change, message, no_pictures):
    change(run)
    before = (run / "report.html").read_bytes()
    assert message in sfg(run.parent, "report", run, check=None).stderr
    assert (run / "report.html").read_bytes() == before


@pytest.mark.slow
def test_a_table_that_is_gone_is_named(make_job, tmp_path, no_pictures):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(200, 2)))
    pipeline = Pipeline(make_job(data={"source": str(tmp_path / "rows.npy"), "max_rows": 200}))
    for stage in (pipeline.label, pipeline.train, pipeline.sample, pipeline.evaluate):
        stage()
    sfg(tmp_path, "report", "run")
    (tmp_path / "rows.npy").unlink()
    said = sfg(tmp_path, "report", "run", check=2).stderr
    assert "the report shows held-out rows of the table" in said
    assert "rows.npy does not exist" in said


def test_a_directory_that_no_run_has_left(tmp_path):
    assert "is not what a run has left" in sfg(tmp_path, "report", "none", check=2).stderr


@pytest.mark.slow
def test_it_is_opened(run, no_pictures, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or len(opened) == 1)
    assert sfg(run.parent, "report", "run", "--open").stderr.count("browser") == 0
    assert opened == [(run / "report.html").as_uri()]
    said = sfg(run.parent, "report", "run", "--open").stderr
    assert f"no browser was found on this machine: open {run / 'report.html'} in one" in said


@pytest.mark.slow
def test_the_judgement_is_measured_stored_and_shown(run, no_pictures):
    """Also a page without it, as earlier versions have left: its verdict is that of the classifier alone."""
    old = (run / "report.html").read_text()
    assert "A classifier that tries to tell samples from held-out rows" in old
    assert "<h3>Privacy</h3>" not in old
    words = ("--set", "evaluate.judge=true", "--set", "evaluate.target=x")
    sfg(run.parent, "evaluate", run / "job.toml", *words)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics.keys() >= {"floor", "labels", "samples", "time_s", "figures", "columns", "pairs", "rules"}
    assert metrics["figures"]["utility"]["value"] is not None
    page = (run / "report.html").read_text()
    for heading in ("<h3>Fidelity</h3>", "<h3>Privacy</h3>", "<h2>The worst columns</h2>", "Labels and samples apart"):
        assert heading in page
    sfg(run.parent, "report", run)
    assert (run / "report.html").read_text() == page


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("figures", {"shape": {"value": "high"}}, "figures.shape"),
        ("columns", [{"column": 3, "score": 0.5, "floor": 1.0}], "columns.0.column"),
        ("rules", {}, "rules must be a list"),
    ],
)
def test_a_damaged_judgement_is_named(run, no_pictures, key, value, message):
    broken(run, "metrics.json", lambda metrics: metrics.update({key: value}))
    assert message in sfg(run.parent, "report", run, check=1).stderr
