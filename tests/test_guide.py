"""The code of the guide runs: every command, job and Python line of README.md and docs/, with smaller numbers."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from commands import sfg

import sfg_dist
from sfg_dist.job.config import Job, load_job, resolve_job
from sfg_dist.job.keys import job_keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIRST_PAGES = {"README.md", "start.md"}  # that run every day


def run_pages(holds):
    """The pages with what is run; those that are run before a release alone are marked so."""
    return [
        pytest.param(page, marks=() if page.name in FIRST_PAGES else pytest.mark.long, id=page.name)
        for page in PAGES
        if holds(page)
    ]


SMALL = {
    "labels.num_pairs": "256",
    "labels.shard_rows": "64",
    "labels.batch_size": "64",
    "labels.num_evaluations": "8",
    "train.width": "16",
    "train.depth": "1",
    "train.num_epochs": "1",
    "train.max_time_s": "20",
    "train.encoder_steps": "20",
    "train.encoder_width": "16",
    "train.encoder_depth": "1",
    "evaluate.num_samples": "100",
    "evaluate.judge": "false",
    "executor.kind": "inline",
}
FEWER = {"1_000_000": "320", "-n 1e9": "-n 64", "-n 1e6": "-n 64", "-n 1e5": "-n 64", "--start 1e9": "--start 64"}
FEWER_IN_PYTHON = {
    '"max_rows": 2000': '"max_rows": 500',
    '"num_pairs": 8192': '"num_pairs": 512',
    "max_time_s=60": "max_time_s=4",
}
# Clusters, hours of work, and what is there only after it: these are looked at, not run.
SENT, LOOKED_AT = ("submit",), ("compare", "scale", "logs", "cancel", "jobs")
NEEDS_MORE = ("--resume-from", "train.num_workers", "executor.address", "--overlap")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page):
    """The words of each `sfg` command of a page."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    lines = [re.split(r"\s#", line)[0].strip() for line in lines]
    return [line for line in lines if line.startswith("sfg ") and line != "sfg --help" and "$" not in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, no_pictures_here):
    """A folder with the table and the job that the pages speak of, and what a run of it left."""
    import pandas as pd

    folder = tmp_path_factory.mktemp("guide")
    rows = np.random.default_rng(0).normal(size=(400, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    columns = ["pressure", "flow", "temperature", "load"]
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "measurements.parquet")
    tables = {"measurements": rows, "samples": rows, "held_out": rows[:200], "train": rows[200:]}
    for name, some in tables.items():
        pd.DataFrame(some, columns=columns).to_csv(folder / f"{name}.csv", index=False)
    np.savez(folder / "gas_turbine_emission.npz", X=rows)
    (folder / "wanted.csv").write_text("y\n0.5\n1.5\n")
    (folder / "my_job.toml").write_text('[data]\nsource = "measurements.parquet"\n')
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    shutil.copytree(ROOT / "cluster", folder / "cluster")
    sfg(folder, "run", "my_job.toml", *sets({"train.encoder": "true"}))
    return folder


def sets(more):
    return [word for key, value in (SMALL | more).items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_jobs_are_right(page):
    for block in blocks(page, "toml"):
        resolve_job(tomllib.loads(block))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_right(page, monkeypatch):
    """The options are there, and the job files exist and take the keys that are set."""
    monkeypatch.chdir(ROOT)
    for line in commands(page):
        words = shlex.split(line)[1:]
        shown = sfg(".", words[0], "--help").stdout
        assert all(word in shown for word in words if word.startswith("--") and " " not in word), line
        if len(words) > 1 and words[1].startswith("jobs/"):
            load_job(words[1], [words[at + 1] for at, word in enumerate(words) if word == "--set"])


@pytest.mark.slow
@pytest.mark.parametrize("page", run_pages(commands))
def test_commands_run(page, folder, no_pictures):
    for line in commands(page):
        words = smaller(line)
        if words is not None:
            sfg(folder, *words)


def smaller(line):
    """The words of a command that does the same with less, where it can run here."""
    for said, fewer in FEWER.items():
        line = line.replace(said, fewer)
    words = shlex.split(line.replace("s3://bucket", "bucket"))[1:]
    if words[0] in LOOKED_AT or any(mark in line for mark in NEEDS_MORE):
        return None
    if "onnx" in words and importlib.util.find_spec("onnxruntime") is None:
        return None
    words = [word for word in words if word != "--watch"]
    if words[0] in SENT:
        if "--after" in words:
            return None
        in_a_bucket = (
            ["--set", "output.dir=s3://bucket/run", "--set", "data.source=s3://bucket/table.parquet"]
            if "kuberay" in words
            else []
        )
        return [*words, *in_a_bucket, *([] if "--dry-run" in words else ["--dry-run"])]
    if len(words) > 1 and words[1].endswith((".toml", ".parquet")):
        given = {word.partition("=")[0] for word in words}
        words += [
            word
            for key, value in SMALL.items()
            if key not in given and not (key == "executor.kind" and "--executor" in words)
            and hasattr(getattr(Job.model_construct(), key.split(".")[0], None), key.split(".")[1])
            for word in ("--set", f"{key}={value}")
            if words[0] not in ("sample", "evaluate") or not key.startswith("executor")
        ]  # fmt: skip
    return words


@pytest.mark.slow
@pytest.mark.parametrize("page", run_pages(lambda page: blocks(page, "python")))
def test_python_runs(page, folder, no_pictures):
    rng = np.random.default_rng(0)
    scope = {
        "sfg_dist": sfg_dist,
        "rows": sfg_dist.Generator.load("runs/my_job/model").sample(5),
        "latents": rng.normal(size=(4, 2)),
        "reference": rng.normal(size=(50, 2)),
    }
    for block in blocks(page, "python"):
        for said, fewer in FEWER_IN_PYTHON.items():
            block = block.replace(said, fewer)
        with contextlib.redirect_stdout(None):
            exec(compile(block, page.name, "exec"), scope)


def test_every_key_says_what_it_does():
    assert [f"{key.table}.{key.name}" for key in job_keys() if not key.effect.endswith(".")] == []


def test_keys_in_the_terminal():
    said = sfg(".", "keys", "labels.tolerance").stdout
    assert "labels.tolerance" in said
    assert "0.001" in said
    assert "num_pairs" in sfg(".", "keys").stdout
    assert "labels.t_min" in sfg(".", "keys", "labels.tmin", check=2).stderr
