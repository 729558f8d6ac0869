"""A small study by Ray, its document and page, how it goes on, and what it says of larger clusters."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sfg_dist.job.config import resolve_job
from sfg_dist.job.errors import ClusterError, ConfigError
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import Location
from sfg_dist.studies.records import from_json, to_json
from sfg_dist.studies.scale import ScaleSettings, compare_studies, predict, scale
from sfg_dist.studies.scale.page import render_page
from sfg_dist.studies.scale.predict import costs_of, slowdown, validate
from sfg_dist.studies.scale.results import ComparedCase, Run, StudyComparison, StudyDocument
from sfg_dist.studies.scale.simulated_cluster import Limits
from sfg_dist.studies.scale.study import Case, Study


@pytest.fixture
def make_study_job(tmp_path):
    def make(directory="run", num_evaluations=8, **tables):
        document = {
            "data": {"source": "moons", "max_rows": 1500},
            "labels": {"num_pairs": 512, "shard_rows": 64, "batch_size": 64, "num_evaluations": num_evaluations},
            "train": {"width": 16, "depth": 1, "num_epochs": 2, "batch_size": 64},
            "output": {"dir": str(tmp_path / directory)},
        }
        return resolve_job({**document, **tables})

    return make


def study(label_s=10.0, shard_s=1.0, **changed):
    """The document of a study of labels, with times by hand."""
    return from_json(StudyDocument, study_json(label_s, shard_s) | changed, "it")


def study_json(label_s=10.0, shard_s=1.0):
    runs = [
        {
            "stage": "label", "mode": "strong", "num_workers": n, "repeat": repeat, "rows": 1000,
            "wall_s": label_s / n + 2.0 + 0.01 * repeat, "num_shards": 10, "shard_bytes": 1000, "driver_s": 0.01,
            "parts_s": {"start": 1.5, "load": 0.5, "integrate": 10 * shard_s / n, "write": 0, "wait": 0, "end": 0},
            "shard_s": [shard_s] * 10, "warm_up_s": 0.0,
        }
        for n in (1, 2) for repeat in range(2)
    ]  # fmt: skip
    return {"runs": runs, "summary": {}, "fit": {}, "facts": {}, "job": '[data]\nsource = "moons"\n'}


def summary():
    """What a study says of its two numbers of workers."""
    return [
        {"num_workers": n, "num_runs": 2, "wall_s": 12.0 / n, "wall_s_low": 11.0 / n, "wall_s_high": 13.0 / n,
         "rows": 1000, "rows_per_s": 80.0 * n, "efficiency": 1.0, "efficiency_low": 0.9, "efficiency_high": 1.1,
         "mode": "strong", "parts_s": {"start": 2.0, "integrate": 10.0 / n}} for n in (1, 2)
    ]  # fmt: skip


def require_whole(job, settings, document):
    """The parts of each run add up, the page is there, and the same call again measures nothing."""
    for run in document.runs:
        assert run.wall_s > 0
        assert sum(run.parts_s.values()) == pytest.approx(run.wall_s, rel=0.35)
    folder = Path(job.output.dir) / "scale"
    assert not (folder / "work").exists()
    page = (folder / "scale.html").read_text()
    assert page.count('src="data:image/png') == 2
    assert "<script" not in page
    told = []
    again = scale(job, settings, listener=told.append)
    assert not [event for event in told if event["event"] == "run_started"]
    assert to_json(again.runs) == to_json(document.runs)


@pytest.mark.alone
@pytest.mark.ray
@pytest.mark.slow
def test_a_study_of_labels(make_study_job, ray_cluster):
    job = make_study_job(num_evaluations=100)  # both actors begin before the labels are done, on a busy machine too
    settings = ScaleSettings([1, 2], ["label"], ["weak"], repeats=1)
    document = scale(job, settings)
    assert [(run.stage, run.mode) for run in document.runs] == [("label", "weak")] * 2
    assert {run.num_workers: run.rows for run in document.runs} == {1: 512, 2: 1024}
    require_whole(job, settings, document)


@pytest.mark.parametrize(("mode", "times"), [("strong", 1), ("weak", 2)])
@pytest.mark.parametrize("stage", ["label", "train"])
def test_two_workers_have_the_pairs_of_one_or_twice_as_many(make_study_job, stage, mode, times):
    study = Study(make_study_job(), ScaleSettings([1, 2], [stage], [mode]))
    one, two = (study._job_of(Case(stage, mode, number, 0), "") for number in (1, 2))
    assert two.labels == one.labels.model_copy(update={"num_pairs": times * 512})
    assert two.train.batch_size == (times if stage == "train" else 1) * one.train.batch_size
    assert (two.executor.num_actors, two.train.num_workers) == ((2, 1) if stage == "label" else (None, 2))


@pytest.mark.alone
@pytest.mark.ray
@pytest.mark.slow
def test_a_study_of_fits(make_study_job, ray_cluster):
    train = {"width": 16, "depth": 1, "num_epochs": 500, "max_time_s": 900, "batch_size": 64}
    job = make_study_job(train=train, executor={"num_actors": 1})
    settings = ScaleSettings([2], ["train"], ["weak"], repeats=1, use_gpu=False, num_epochs=2)
    document = scale(job, settings)
    (run,) = document.runs
    assert (run.stage, run.mode, run.num_workers) == ("train", "weak", 2)
    assert run.rows == pytest.approx(2 * 1024, rel=0.15)
    require_whole(job, settings, document)


@pytest.mark.slow
def test_costs_come_from_the_runs_and_predict_them():
    document = study()
    costs = costs_of(document)
    assert slowdown(document) == pytest.approx(1.0)
    assert (costs.start_s, costs.load_s, costs.integrate_s, costs.spread) == (1.5, 0.5, 1.0, 0.0)
    checked = validate(document)
    assert [entry.num_workers for entry in checked] == [2]  # what the costs come from proves nothing
    for entry in checked:
        assert entry.predicted_s == pytest.approx(entry.measured_s, rel=0.05)
    found = predict(document, [1, 64], shard_seconds=[1.0, 60.0])
    assert [(entry.num_workers, entry.shard_s) for entry in found] == [(1, 1.0), (64, 1.0), (1, 60.0), (64, 60.0)]
    long, short = found[3].efficiency, found[1].efficiency
    assert 0.5 < short < long <= 1.0  # a start counts less against longer shards
    waves = {entry.num_shards / entry.num_workers for entry in found if entry.shard_s == 1.0}
    assert len(waves) == 1


@pytest.mark.slow
def test_a_longer_shard_has_more_bytes():
    """So a store that holds workers up holds them up as much whatever the length of a shard is."""
    limits = Limits(store_bytes_per_s=16_000.0, shard_bytes=1000.0)
    found = predict(study(), [64], shard_seconds=[1.0, 10.0], limits=limits)
    assert [entry.limit for entry in found] == ["store", "store"]
    assert [entry.efficiency_at_work for entry in found] == [pytest.approx(0.25, rel=0.1)] * 2


@pytest.mark.slow
def test_the_page_shows_predictions():
    document = study(summary={"label, strong": summary()})
    case = ComparedCase("label, strong", 2, (6.0, 9.0), (1000, 1000), ratio=1.5, ratio_low=1.4, ratio_high=1.6)
    document = replace(
        document,
        validation=validate(document),
        predictions=predict(document, [64]),
        slowdown=1.25,
        assumptions={"the store's bandwidth": "200 MB/s"},
        comparison=StudyComparison("elsewhere", [case], ["labels.seed: 0 -> 1"]),
    )
    page = render_page(document, title="t", job_toml="")
    assert page.count('src="data:image/png') == 3
    for words in (
        "64",
        "1.25 times as long",
        "bandwidth 200 MB/s",
        "a row takes 1.50 times as long as in the other study",
        "labels.seed: 0 -&gt; 1",
    ):
        assert words in page


def test_two_studies_side_by_side(tmp_path):
    paths = []
    for name, factor in (("a", 1.0), ("b", 1.5)):
        document = study_json()
        times = {"wall_s": 6.0 * factor, "wall_s_low": 5.9 * factor, "wall_s_high": 6.2 * factor}
        rows = 2000 if name == "a" else 1000
        times = {key: seconds * rows / 1000 for key, seconds in times.items()}
        document["summary"] = {"label, strong": [summary()[1] | times | {"rows": rows}]}
        if name == "b":
            document["job"] += "[labels]\nnum_evaluations = 8\n"
        path = tmp_path / name / "scale" / "scale.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(document))
        paths.append(tmp_path / name)
    found = compare_studies(*paths)
    assert found.differences == ["labels.num_evaluations: None -> 8"]
    (entry,) = found.cases
    assert entry.ratio == pytest.approx(1.5)
    assert entry.ratio_low < 1.5 < entry.ratio_high
    with pytest.raises(ConfigError, match=r"holds no scale\.json"):
        compare_studies(paths[0], tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": [0]}, "1 or more"),
        ({"workers": [2, 2]}, "different numbers"),
        ({"workers": [1], "stages": ["lable"]}, "expected some of label, train"),
        ({"workers": [1], "repeats": 0}, "repeats"),
        ({"workers": [1], "num_epochs": 0}, "num_epochs"),
    ],
)
def test_wrong_words(make_study_job, options, message):
    with pytest.raises(ConfigError, match=message):
        scale(make_study_job(), ScaleSettings(**options))


def test_an_inline_job_is_refused(make_study_job):
    with pytest.raises(ConfigError, match="needs workers of Ray"):
        scale(make_study_job(executor={"kind": "inline"}), ScaleSettings([1]))


@pytest.mark.ray
@pytest.mark.slow
def test_more_workers_than_there_is_room_for_are_refused_before_anything_is_measured(make_study_job, ray_cluster):
    told = []
    with pytest.raises(ClusterError, match="the cluster has room for 4"):
        scale(make_study_job(), ScaleSettings([1, 5], ["train"], repeats=1, use_gpu=False), listener=told.append)
    assert not [event for event in told if event["event"] == "run_finished"]


@pytest.mark.slow
def test_a_study_that_is_cut_short_has_a_page_and_goes_on(make_study_job, tmp_path, monkeypatch):
    class Cut(Exception):
        pass

    def measure(self, case):
        assert not work.exists()  # what the killed study left there
        (run,) = (run for run in study().runs if (run.num_workers, run.repeat) == (case.num_workers, case.repeat))
        return run

    def cut(event):
        if event["event"] == "run_started" and event["num_workers"] == 2:
            raise Cut

    settings = ScaleSettings([1, 2], ["label"], repeats=1)
    monkeypatch.setattr(Study, "_measure", measure)
    work = tmp_path / "run" / "scale" / "work"
    left = Pipeline(make_study_job("run/scale/work/warm", executor={"kind": "inline"}))
    left.label()  # as a study leaves it that was killed
    assert work.exists()
    with pytest.raises(Cut):
        scale(make_study_job(), settings, listener=cut)
    assert (tmp_path / "run" / "scale" / "scale.html").exists()
    told = []
    document = scale(make_study_job(), settings, listener=told.append)
    assert [event["num_workers"] for event in told if event["event"] == "run_kept"] == [1]
    assert len(document.runs) == 2


def test_runs_and_documents_of_earlier_versions_are_read(make_study_job, tmp_path):
    """As they were written: the keys and then the run; and a law that could not be fitted."""
    settings = ScaleSettings([1], ["label"], repeats=1)
    whole = Study(make_study_job(), settings)
    whole._cluster = whole._shape()
    (case, _, _, _) = (Case("label", "strong", run.num_workers, run.repeat) for run in study().runs)
    run = study_json()["runs"][0]
    whole.output.write(f"scale/runs/{case.name}.json", json.dumps({"keys": whole._keys(case), **run}).encode())
    assert whole._kept(case) == from_json(Run, run, "a run")
    assert to_json(whole._kept(case)) == run | {"load_average": 0.0}
    number = {"value": 1.0, "low": None, "high": None}
    law = {"time_of_one_s": number, "serial_share": number, "residual": 0.0, "is_tested": False}
    fit = {"label": {"amdahl": law, "universal": {"missing": "needs runs with 3 numbers of workers"}}}
    assert to_json(study(fit=fit).fit) == fit


@pytest.mark.slow
def test_the_command_predicts_and_compares_studies_in_a_bucket(s3_url, monkeypatch, capsys):
    from sfg_dist.cli import main as cli

    document = study_json() | {"summary": {"label, strong": summary()}}
    for name in ("one", "other"):
        Location(f"{s3_url}/{name}", create=True).write("scale/scale.json", json.dumps(document).encode())
    job = {"data": {"source": "moons"}, "output": {"dir": f"{s3_url}/one"}}
    monkeypatch.setattr("sfg_dist.cli.scale.load", lambda *_: resolve_job(job))
    options = [
        "--simulate",
        "64",
        "--shard-seconds",
        "1",
        "--store-mb-per-s",
        "200",
        "--compare-with",
        f"{s3_url}/other",
    ]
    done = CliRunner().invoke(cli.app, ["scale", "job.toml", *options])
    assert done.exit_code == 0, done.output
    assert "64 workers, shards of 1 s" in done.output
    assert "a row takes 1.00 times as long as in the other study" in done.output
    written = json.loads(Location(f"{s3_url}/one").read("scale/scale.json"))
    assert written["assumptions"]["the store's bandwidth"] == "200 MB/s"
    assert written["comparison"]["of"] == f"{s3_url}/other"
    assert written["job"] == document["job"]  # of the study, not of the command that reads it


def test_words_are_checked_before_anything_is_measured(make_study_job, tmp_path):
    from sfg_dist.cli import main as cli

    path = tmp_path / "job.toml"
    path.write_text(make_study_job().to_toml())
    for options, message in (
        (["--simulate", "many"], "expected whole numbers"),
        (["--shard-seconds", "0"], "above 0"),
        (["--compare-with", str(tmp_path / "nowhere")], "holds no scale.json"),
        (["--stages", "train", "--simulate", "64"], "add --stages label"),
    ):
        done = CliRunner().invoke(cli.app, ["scale", str(path), "--workers", "1,2", *options])
        assert done.exit_code != 0
        assert message in str(done.exception) + done.output
    assert not (tmp_path / "run" / "scale").exists()
