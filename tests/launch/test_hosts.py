"""Three hosts with addresses of their own label and train in a Ray cluster over virtual links, also over a cut one."""

import contextlib
import json
import subprocess
import sys
import time

import pytest
from hosts import Hosts, why_not
from patience import patience

from sfg_dist.job.config import load_job
from sfg_dist.pipeline.pipeline import Pipeline

pytestmark = [pytest.mark.slow, pytest.mark.hosts, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

# TCP sends again what got no answer after 0.2, 0.4, ... 6.4 seconds, and 12.6 s after the cut; the next time is at 25.
CUT_S = 11.5
JOB = """
[data]
source = "moons"
max_rows = 3000
[labels]
num_pairs = 8192
shard_rows = 256
batch_size = 256
num_evaluations = 20
tolerance = 0
[train]
width = 32
depth = 2
num_epochs = 60
batch_size = 256
num_workers = 2
checkpoint_interval_s = 1
[evaluate]
num_samples = 300
judge = false
metrics = ["ks_mean"]
[output]
dir = "{directory}"
"""


@pytest.fixture
def hosts():
    three = Hosts(3)
    try:
        three.up()
        for index in range(3):  # one after the other: on one file system two that start at once take the same files
            three.start_ray(index)
            three.wait_for_start(index)
        three.wait_for(3)
        yield three
    finally:
        three.down()


def records(commits):
    return [json.loads(path.read_text()) for path in commits.glob("*.json")]


def sfg(hosts, stage, job):
    address = f"executor.address={hosts.address}"
    return hosts.start(0, sys.executable, "-m", "sfg_dist", stage, str(job), "--set", address)


def test_labels_and_training_survive_a_cut_link(hosts, tmp_path, store_bytes):
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(directory=tmp_path / "run"))
    hosts.slow_down(1.0)
    labels = sfg(hosts, "label", job)
    commits = tmp_path / "run" / "pairs.zarr" / "commits"
    deadline = time.monotonic() + patience(120)
    while time.monotonic() < deadline and len({record["pid"] for record in records(commits)}) < 3:
        assert labels.poll() is None, labels.communicate()[0]
        time.sleep(0.1)
    assert len(records(commits)) < 30, "all is done before the link can be cut"
    hosts.cut(2)
    with contextlib.suppress(subprocess.TimeoutExpired):  # the other hosts may do all of it meanwhile
        labels.wait(CUT_S)
    hosts.mend(2)
    hosts.speed_up()
    said, _ = labels.communicate(timeout=patience(300))
    assert labels.returncode == 0, said
    assert len({record["pid"] for record in records(commits)}) >= 3  # three actors, one a host

    reference = tmp_path / "local.toml"
    reference.write_text(JOB.format(directory=tmp_path / "local"))
    Pipeline(load_job(reference, ["executor.kind=inline"])).label()
    assert store_bytes(tmp_path / "run" / "pairs.zarr") == store_bytes(tmp_path / "local" / "pairs.zarr")

    if hosts.processes[2].poll() is not None:
        hosts.start_ray(2)
    hosts.wait_for(3)
    training = sfg(hosts, "train", job)
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + patience(120)
    while time.monotonic() < deadline and len(list(checkpoints.glob("step_*"))) < 2:
        assert training.poll() is None, training.communicate()[0]
        time.sleep(0.1)
    victim = next(index for index in (1, 2) if hosts.runs(index, "RayTrainWorker"))  # the head itself stays
    hosts.cut(victim)
    time.sleep(CUT_S)
    hosts.mend(victim)
    if hosts.processes[victim].poll() is not None:
        hosts.start_ray(victim)
    said, _ = training.communicate(timeout=patience(400))
    assert training.returncode == 0, said
    history = [json.loads(line) for line in (checkpoints / "history.jsonl").read_text().splitlines()]
    assert history[-1]["epoch"] == 60
