"""The command line as a user meets it: one clear message, the right exit status, and what is written stays usable."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import sfg, sfg_process
from patience import patience

from sfg_dist.distributed.labels.pool import Policy

JOB = """
[data]
source = "{source}"
[labels]
num_pairs = 2000
shard_rows = 512
batch_size = 256
num_evaluations = 8
[train]
width = 16
depth = 1
num_epochs = 2
[evaluate]
num_samples = 300
judge = false
[executor]
kind = "inline"
"""


@pytest.fixture
def table():
    return np.random.default_rng(0).standard_normal((400, 3))


@pytest.fixture
def job(tmp_path, table):
    np.save(tmp_path / "table.npy", table)
    (tmp_path / "job.toml").write_text(JOB.format(source="table.npy"))
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, no_pictures_here):
    """The directory of a whole run by the command line."""
    directory = tmp_path_factory.mktemp("finished")
    np.save(directory / "table.npy", np.random.default_rng(0).standard_normal((400, 3)))
    (directory / "job.toml").write_text(JOB.format(source="table.npy"))
    sfg(directory, "run", "job.toml")
    return directory


@pytest.mark.slow
def test_run_ends_by_naming_the_report_and_leaves_what_it_promises(job, finished):
    done = sfg_process(job, "run", "job.toml")
    assert done.stdout.splitlines()[-1] == "report: runs/job/report.html"
    assert done.stderr == ""
    left = {path.name for path in (job / "runs" / "job").iterdir()}
    assert left == {
        "job.toml",
        "pairs.zarr",
        "model",
        "checkpoints",
        "samples.zarr",
        "metrics.json",
        "report.html",
        "events.jsonl",
        "tensorboard",
    }
    metrics = json.loads((job / "runs" / "job" / "metrics.json").read_text())
    assert set(metrics) == {"floor", "labels", "samples", "label_error", "time_s"}
    assert {"c2st_auc", "sliced_wasserstein", "nearest_train_distance"} <= set(metrics["samples"])
    assert {"data", "label", "train", "sample", "evaluate"} <= set(metrics["time_s"])
    assert "kl" not in metrics["samples"]
    assert metrics["samples"] == json.loads((finished / "runs" / "job" / "metrics.json").read_text())["samples"]
    page = (job / "runs" / "job" / "report.html").read_text()
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)


@pytest.mark.slow
def test_running_again_does_nothing_over_and_shows_the_same(finished, no_pictures):
    before = json.loads((finished / "runs" / "job" / "metrics.json").read_text())
    again = sfg(finished, "run", "job.toml", "--json")
    document = json.loads(again.stdout)
    assert document["metrics"]["samples"] == before["samples"]
    assert document["report"] == "runs/job/report.html"
    assert "4 done already" in again.stderr


@pytest.mark.slow
def test_stages_one_by_one_give_what_run_gives(finished, job, no_pictures):
    for stage in ("label", "train", "sample", "evaluate"):
        sfg(job, stage, "job.toml")
    one, other = (json.loads((d / "runs" / "job" / "metrics.json").read_text()) for d in (finished, job))
    assert one["samples"] == other["samples"]


@pytest.mark.slow
def test_a_resolved_job_runs_again(finished, tmp_path):
    (tmp_path / "again.toml").write_text((finished / "runs" / "job" / "job.toml").read_text())
    done = sfg(finished, "status", "runs/job", "--json")
    assert json.loads(done.stdout)["is_complete"]
    sfg(finished, "label", tmp_path / "again.toml")


def test_status_in_words_and_json(finished):
    assert "4 of 4 shards, 2,000 of 2,000 pairs, dim 3; complete" in sfg(finished, "status", "runs/job").stdout
    facts = json.loads(sfg(finished, "status", "runs/job/pairs.zarr", "--json").stdout)
    assert (facts["rows_done"], facts["shards"]) == (2000, 4)


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet", ".zarr"])
def test_sampling_to_a_file_that_opens_again(finished, tmp_path, suffix):
    from sfg_dist import Generator
    from sfg_dist.data import open_table

    path = tmp_path / f"rows{suffix}"
    done = sfg(finished, "sample", "runs/job/model", "-n", "1e3", "--seed", "5", "--out", path)
    assert "1,000 rows" in done.stdout
    table = open_table(str(path))
    expected = Generator.load(finished / "runs" / "job").sample(1000, seed=5)
    np.testing.assert_allclose(table.values, expected)
    assert table.columns == ("c0", "c1", "c2")


def change(directory, table, name):
    table = table.copy()
    if name == "constant.npy":
        table[:, 2] = 4
    elif name == "three.npy":
        table = table[:3]
    elif name == "text.csv":
        lines = ["a,b,name", *(f"{a},{b},bob" for a, b, _ in table)]
        (directory / name).write_text("\n".join(lines))
        return
    elif name.startswith("empty"):
        (directory / name).touch()
        return
    elif name == "absent.npy":
        return
    np.save(directory / name, table)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("constant.npy", ["constant.npy", "'c2'", 'data.constant = "keep"']),
        ("three.npy", ["three.npy", "3 rows", "at least 20"]),
        ("text.csv", ["text.csv", "'name'", "bob", 'data.constant = "keep"', "data.columns"]),
        ("empty.csv", ["empty.csv", "empty"]),
        ("empty.npy", ["empty.npy", "empty"]),
        ("absent.npy", ["absent.npy", "does not exist"]),
    ],
)
def test_bad_tables(job, table, name, words):
    change(job, table, name)
    done = sfg(job, "run", "job.toml", "--set", f"data.source={name}", check=2)
    # which the first command of a process does, and says where it takes long
    assert all(line.startswith("loading the libraries") for line in done.stdout.splitlines())
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("sfg: ")
    assert all(word in done.stderr for word in words), done.stderr
    assert not (job / "runs" / "job" / "pairs.zarr").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["run", "job.toml", "--set", "labels.num_pair=3"],
            ["job.toml", "labels.num_pair", "did you mean labels.num_pairs?"],
        ),
        (["run", "job.toml", "--set", "labels.num_pairs=many"], ["labels.num_pairs", "whole number", "'many'"]),
        (["run", "job.toml", "--set", "nonsense"], ["table.key=value"]),
        (["run", "absent.toml"], ["absent.toml does not exist"]),
        (["run", "job.toml", "--executor", "slurm"], ["executor.kind", "'auto', 'ray' or 'inline'"]),
        (
            ["run", "job.toml", "--set", "labels.solver=rk4", "--set", "labels.num_evaluations=30"],
            ["num_evaluations", "take 28 or 32"],
        ),
        (["run", "job.toml", "--set", "output.dir=ftp://host/x"], ["ftp://host/x", "local path or an s3://"]),
        (["label", "job.toml", "--set", "output.dir=s3://"], ["s3://", "no bucket"]),
        (["plan", "job.toml", "--set", "output.dir=s3://"], ["expected s3://bucket/prefix", "no bucket"]),
        (["status", "s3://"], ["expected s3://bucket/prefix", "no bucket"]),
        (["verify", "s3:///run"], ["expected s3://bucket/prefix", "no bucket"]),
        (["repair", "gs://"], ["expected gs://bucket/prefix", "no bucket"]),
        (["plan", "job.toml", "--set", "output.dir=table.npy/run"], ["output.dir", "table.npy is a file"]),
        (["run"], ["Missing argument"]),
        (["frobnicate"], ["No such command"]),
        (["sample", "job.toml", "-n", "3"], ["evaluate table"]),
        (["sample", "model", "-n", "1.5"], ["--num", "whole number"]),
        (["status", "nowhere"], ["nowhere does not exist"]),
        (["sample", "nowhere"], ["nowhere does not exist"]),
        (["run", "job.toml", "--set", "output.dir=table.npy"], ["output.dir", "is a file"]),
    ],
)
def test_wrong_requests(job, arguments, words):
    done = sfg(job, *arguments, check=2)
    assert done.stdout == ""
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert not (job / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "job.toml"], ["pairs.zarr does not exist", "sfg label"]),
        (["sample", "job.toml"], ["holds no generator"]),
        (["evaluate", "job.toml"], ["sfg label"]),
    ],
)
def test_stages_out_of_order_fail_and_say_what_comes_first(job, arguments, words):
    done = sfg(job, *arguments, check=1)
    assert all(word in done.stderr for word in words), done.stderr


def test_a_store_of_another_plan_is_refused_and_kept(job):
    sfg(job, "label", "job.toml")
    done = sfg(job, "label", "job.toml", "--set", "labels.seed=3", check=2)
    assert "labels.seed: 0 -> 3" in done.stderr
    sfg(job, "train", "job.toml")


def test_errors_as_json(job):
    done = sfg(job, "run", "job.toml", "--json", "--set", "data.source=absent.npy", check=2)
    assert "absent.npy does not exist" in json.loads(done.stdout)["error"]


def test_debug_shows_the_traceback(job):
    assert "Traceback" in sfg(job, "train", "job.toml", "--debug", check=1).stderr


def test_help_and_version(tmp_path):
    assert "label" in sfg(tmp_path, "--help").stdout
    assert re.fullmatch(r"sfg_dist \d+\.\d+\.\d+\n", sfg(tmp_path, "--version").stdout)


@pytest.mark.parametrize(
    ("which", "executor"),
    [
        pytest.param(signal.SIGINT, "inline", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "inline", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "ray", marks=[pytest.mark.ray, pytest.mark.slow, pytest.mark.long]),
        pytest.param(signal.SIGTERM, "ray", marks=[pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]),
    ],
)
def test_an_interrupt_keeps_what_is_committed_and_says_how_to_go_on(job, which, executor):
    command = [sys.executable, "-m", "sfg_dist", "label", "job.toml", "--executor", executor]
    command += ["--set", "labels.num_pairs=400000"]
    with subprocess.Popen(command, cwd=job, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        commits = job / "runs" / "job" / "pairs.zarr" / "commits"
        deadline = time.monotonic() + patience(60)
        while len(list(commits.glob("*.json"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(which)
        _, errors = process.communicate(timeout=patience(60))
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    status = json.loads(sfg(job, "status", "runs/job", "--json").stdout)
    assert 2 <= status["shards_done"] < status["shards"]


@pytest.mark.parametrize(
    "which", [signal.SIGINT, *(pytest.param(name, marks=pytest.mark.slow) for name in (signal.SIGTERM, signal.SIGUSR2))]
)
def test_an_interrupt_while_a_store_does_not_answer(tmp_path, which):
    """The main thread is inside a request that waits for its answer, so no handler of Python's runs."""
    script = "from sfg_dist.cli import main as cli; cli.INTERRUPT_S = 0.5; cli.main()"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        keys = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "NO_PROXY": "*"}
        command = [sys.executable, "-c", script, "status", "s3://bucket/run"]
        with subprocess.Popen(command, env=os.environ | keys, stderr=subprocess.PIPE, text=True) as process:
            server.settimeout(patience(60))
            connection, _ = server.accept()  # and never a word
            with connection:
                connection.recv(1)
                process.send_signal(which)
                _, errors = process.communicate(timeout=patience(60))
    assert process.returncode == 130
    assert errors.startswith(
        "sfg: interrupted. The command did not end within 0.5 s, perhaps because a store does not answer"
    )
    assert len(errors.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("second", [None, "SIGTERM"])
def test_work_that_was_granted_time_after_a_notice_has_it(second):
    """A second signal takes it back."""
    again = "" if second is None else f"threading.Timer(0.2, os.kill, (os.getpid(), signal.{second})).start()"
    script = f"""
import os, signal, threading, time
from sfg_dist.cli import main as cli
from sfg_dist.distributed.stopping import stop_signals
cli.INTERRUPT_S = 0.5
cli._end_where_signals_wait()
try:
    with stop_signals(lambda name: None, notice_s=2.0):
        os.kill(os.getpid(), signal.SIGUSR2)
        {again}
        time.sleep(1.2)
        print("worked on", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == 130
    assert ("worked on" in done.stdout) is (second is None)
    assert ("did not end within 2.5 s" in done.stderr) is (second is None)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupt_of_training_on_ray(job):
    sfg(job, "label", "job.toml")
    command = [sys.executable, "-m", "sfg_dist", "train", "job.toml", "--executor", "ray"]
    command += ["--set", "train.num_epochs=100000"]
    with subprocess.Popen(command, cwd=job, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        history = job / "runs" / "job" / "checkpoints" / "history.jsonl"
        deadline = time.monotonic() + patience(120)
        while not history.exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=patience(60))
    assert process.returncode == 130, errors
    assert "run the same command again" in errors


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def read_only(tmp_path):
    """A directory that this user cannot write into; root can write anywhere but on a read-only file system."""
    place = tmp_path / "read-only"
    place.mkdir(mode=0o500)
    is_root = os.geteuid() == 0
    if is_root:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    yield place
    if is_root:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("directory", ["", "a/run"])
def test_plan_refuses_a_directory_that_cannot_be_written(job, read_only, directory):
    done = sfg(job, "plan", "job.toml", "--set", f"output.dir={read_only / directory}", check=2)
    assert "cannot be written" in done.stderr
    assert f"{read_only} is read-only" in done.stderr
    assert list(read_only.iterdir()) == []


def test_commits_without_a_plan(job):
    sfg(job, "label", "job.toml")
    store = job / "runs" / "job" / "pairs.zarr"
    kept = {path: path.stat().st_mtime_ns for path in (store / "commits").iterdir()}
    (store / "plan.json").unlink()
    (store / "plan.copy.json").unlink()
    for words in (["status", "runs/job"], ["verify", "runs/job/pairs.zarr"]):
        done = sfg(job, *words, check=1)
        assert "holds 4 commits and no plan" in done.stderr
        assert "`sfg label` with the same job writes them again" in done.stderr
    sfg(job, "label", "job.toml")
    assert "4 of 4 shards" in sfg(job, "status", "runs/job").stdout
    assert kept == {path: path.stat().st_mtime_ns for path in (store / "commits").iterdir()}
    assert "holds no pairs" in sfg(job, "status", "runs", check=1).stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_keeps_what_is_committed(job, small_disk, monkeypatch):
    monkeypatch.setattr(Policy, "of", lambda _: Policy(full_wait_s=0.3))
    words = ["label", "job.toml", "--set", f"output.dir={small_disk}/run", "--set", "labels.num_pairs=20000"]
    done = sfg(job, *words, check=1)
    assert "no space left on the device; what is committed is safe" in done.stderr
    # One error; the log of the same disk may lack events, which is said once.
    errors = [line for line in done.stderr.splitlines() if not line.startswith("sfg: warning: the labels go on, but")]
    assert len(errors) == 1
    assert len(done.stderr.splitlines()) <= 2
    first = json.loads(sfg(job, "status", small_disk / "run", "--json").stdout)
    assert 0 < first["shards_done"] < first["shards"]
    kept = {f: f.stat().st_mtime_ns for f in Path(small_disk, "run/pairs.zarr/commits").iterdir()}
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    sfg(job, *words)
    assert all(file.stat().st_mtime_ns == at for file, at in kept.items())
    sfg(job, *words[:4], "--set", "labels.num_pairs=20000")


@pytest.fixture
def short_calibration(monkeypatch):
    from sfg_dist.studies.estimate.estimate import estimate_job

    monkeypatch.setitem(estimate_job.__kwdefaults__, "seconds", 0.2)


@pytest.mark.slow
def test_plan_says_what_a_run_will_take_and_writes_nothing(job, short_calibration):
    words = ["plan", "job.toml", "--set", "executor.price_per_hour=2"]
    shown = sfg(job, *words)
    assert all(line.startswith("plan: ") for line in shown.stderr.splitlines())
    lines = dict(line.split(": ", 1) for line in shown.stdout.splitlines())
    assert lines["pairs"] == "2,000 in 4 shards, 3 columns"
    assert lines["workers"] == "this process, 1 thread"
    assert lines["work"].startswith("16,000 score evaluations")
    assert {"memory", "disk", "label time", "calibration", "cost"} <= lines.keys()
    assert not (job / "runs").exists()
    sfg(job, "label", "job.toml")
    document = json.loads(sfg(job, *words, "--json").stdout)
    assert document["work"]["shards_left"] == document["left"]["arrays"] == 0
    arrays = [path for path in (job / "runs/job/pairs.zarr").rglob("*") if path.is_file() and not path.suffix]
    assert document["written"]["arrays"] == sum(path.stat().st_size for path in arrays)


def test_plan_refuses_what_cannot_fit(job):
    words = ["plan", "job.toml", "--executor", "ray", "--set", "executor.num_actors=10_000"]
    done = sfg(job, *words, "--json", check=2)
    assert "take executor.num_actors = " in json.loads(done.stdout)["error"]
    assert not (job / "runs").exists()
