"""The job file: defaults, overrides, and messages that name the key, the file and the nearest valid key."""

import tomllib
from pathlib import Path

import pytest

from sfg_dist.job.config import Job, load_job, resolve_job
from sfg_dist.job.errors import ConfigError

JOBS = sorted((Path(__file__).parents[1] / "jobs").rglob("*.toml"))


@pytest.fixture
def job_file(tmp_path):
    def write(text='[data]\nsource = "moons"\n'):
        path = tmp_path / "my_job.toml"
        path.write_text(text)
        return path

    return write


def test_every_key_has_a_default_but_the_source(job_file):
    job = load_job(job_file())
    assert job.output.dir == "runs/my_job"
    assert job.transform.kind == "quantile"
    assert job.labels.estimator == "full"


def test_overrides(job_file):
    job = load_job(
        job_file(),
        [
            "labels.num_pairs=1e4",
            "data.source=/a/path with spaces.npy",
            'labels.solver="heun"',
            "labels.schedule=linear_floor",
            "data.columns=['a', 'b']",
            "data.dequantize.a=0.5",
            "data.bounds.a=[0, inf]",
            "train.max_time_s=3",
        ],
    )
    assert job.labels.num_pairs == 10_000
    assert job.data.source == "/a/path with spaces.npy"
    assert job.labels.solver == "heun"
    assert job.labels.schedule == "linear_floor"
    assert job.data.columns == ["a", "b"]
    assert job.data.dequantize == {"a": 0.5}
    assert job.data.bounds == {"a": [0, float("inf")]}
    assert job.train.max_time_s == 3


def test_the_resolved_job_reads_back(job_file):
    job = load_job(job_file())
    assert Job.model_validate(tomllib.loads(job.to_toml())) == job


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_of_the_project_is_valid(path):
    from sfg_dist.pipeline.check import check_job

    assert path.read_text().startswith("# ")
    check_job(
        load_job(
            path,
            [] if "[data]\nsource" in path.read_text() else ["data.source=table.npy"],
        )
    )


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, ["data is required"]),
        ({"data": {}}, ["data.source is required"]),
        ({"data": {"sorce": "moons"}}, ["unknown key data.sorce; did you mean data.source? `sfg keys data` lists"]),
        ({"data": {"source": "m"}, "label": {}}, ["unknown key label; did you mean labels? `sfg keys labels` lists"]),
        (
            {"data": {"source": "m", "num_pairs": 3}},
            ["unknown key data.num_pairs; did you mean labels.num_pairs? `sfg keys labels` lists"],
        ),
        (
            {"data": {"source": "m"}, "labels": {"zzz": 3}},
            ["unknown key labels.zzz; `sfg keys labels` lists the keys there"],
        ),
        ({"data": {"source": "m"}, "labels": {"num_pairs": "many"}}, ["labels.num_pairs", "above 0", "'many'"]),
        ({"data": {"source": "m"}, "labels": {"num_pairs": 0}}, ["labels.num_pairs", "above 0"]),
        ({"data": {"source": "m"}, "labels": {"num_pairs": 1.5}}, ["labels.num_pairs", "whole number", "1.5"]),
        ({"data": {"source": "m"}, "labels": {"t_min": 1.0}}, ["labels.t_min", "below 1", "'auto'"]),
        ({"data": {"source": "m"}, "labels": {"solver": "rk5"}}, ["labels.solver", "rk4", "'rk5'"]),
        ({"data": {"source": "m"}, "train": {"linear_skip": "yes"}}, ["train.linear_skip", "true or false"]),
        ({"data": {"source": "m"}, "train": {"num_workers": [4, 2]}}, ["train", "[the fewest, the most]"]),
        ({"data": {"source": "m"}, "train": {"num_workers": [1, 2, 3]}}, ["train", "[the fewest, the most]"]),
        ({"data": {"source": "m"}, "train": {"keep_checkpoints": 1}}, ["train.keep_checkpoints", "2"]),
        ({"data": {"source": "m"}, "train": {"patience": 0}}, ["train.patience", "above 0"]),
        ({"data": {"source": "m", "split": [0.5, 0.5]}}, ["split", "three fractions"]),
        ({"data": {"source": "m", "split": [0.9, 0.1, 0.0]}}, ["split", "test"]),
        ({"data": {"source": "m", "columns": ["a", "a"]}}, ["columns names a column twice"]),
        ({"data": {"source": "m", "columns": []}}, ["columns", "at least one"]),
        ({"data": {"source": "m", "dequantize": 3}}, ["data.dequantize", "'auto' or 'none'"]),
        ({"data": {"source": "m", "bounds": "some"}}, ["data.bounds", "'observed' or 'none'"]),
        ({"data": {"source": "m", "bounds": {"a": [1]}}}, ["data.bounds", "each with a list of 2, each a number"]),
        ({"data": {"source": "m", "bounds": {"a": [1, 0]}}}, ["bounds.a", "[1, 0]", "below"]),
        ({"data": {"source": "m", "arrays": {"tran": "a", "test": "b"}}}, ["data.arrays.tran", "data.arrays.train"]),
        ({"data": {"source": "m"}, "labels": {"latents": "a.npy", "direction": "both"}}, ["latents"]),
        ({"data": {"source": "m"}, "labels": {"time_grid": "log"}}, ["labels.time_grid", "fitted", "'log'"]),
        (
            {"data": {"source": "m"}, "labels": {"time_grid": "fitted", "solver_tolerance": 1e-3}},
            ["labels", "time_grid", "solver_tolerance"],
        ),
        (
            {"data": {"source": "m"}, "labels": {"time_grid": "fitted", "estimator": "minibatch"}},
            ["labels", "time_grid", "estimator"],
        ),
        ({"data": {"source": "m"}, "evaluate": {"metrics": ["auc"]}}, ["evaluate.metrics", "c2st_auc"]),
        ({"data": 3}, ["data", "3"]),
    ],
)
def test_messages(document, words):
    with pytest.raises(ConfigError) as caught:
        resolve_job(document, origin="some.toml")
    message = str(caught.value)
    assert message.startswith("some.toml")
    assert all(word in message for word in words), message
    assert "pydantic" not in message


def test_all_problems_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        resolve_job({"data": {"source": "m", "sed": 1}, "labels": {"num_pairs": -1}})
    assert "data.seed" in str(caught.value)
    assert "labels.num_pairs" in str(caught.value)


@pytest.mark.parametrize("assignment", ["labels.num_pairs", "num_pairs=3", "=3", ".a=3"])
def test_bad_overrides(job_file, assignment):
    with pytest.raises(ConfigError, match=r"table\.key=value"):
        load_job(job_file(), [assignment])


def test_files_that_cannot_be_read(tmp_path, job_file):
    with pytest.raises(ConfigError, match="does not exist"):
        load_job(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"my_job\.toml is not valid TOML"):
        load_job(job_file("[data\n"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_job(tmp_path)


def test_keys_that_do_not_fit_together(make_job):
    from sfg_dist.pipeline.check import check_job

    with pytest.raises(ConfigError, match=r"take labels\.shard_rows = 1024"):
        check_job(make_job(labels={"batch_size": 1024, "shard_rows": 1000}))
    with pytest.raises(ConfigError, match="take 28 or 32"):
        check_job(make_job(labels={"solver": "rk4", "num_evaluations": 30}))
    with pytest.raises(ConfigError, match=r'train.cells = true does not go with transform.kind = "standardize"'):
        check_job(make_job(train={"cells": True}, transform={"kind": "standardize"}))
    check_job(make_job(train={"cells": True}))
