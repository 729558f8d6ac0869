"""Jobs on a real scheduler: submitted, preempted, out of time, on a node that goes down, beside each other."""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import commands
import pytest
from patience import patience
from slurm_cluster import SlurmCluster, missing_program
from small_job import JOB, SIZES

import sfg_dist
from sfg_dist.config import load_job
from sfg_dist.launch import slurm, slurm_task
from sfg_dist.pipeline import Pipeline

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(missing_program() is not None, reason=f"{missing_program()} is not installed: slurm-wlm, munge"),
]

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.toml"


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two CPUs; the directory is short, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="sfgslurm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        one = SlurmCluster(Path(folder))
        try:
            try:
                one.up()
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"Slurm's daemons do not run on this machine: {error}")
            yield one
        finally:
            one.down()


@pytest.fixture
def site(cluster, tmp_path, monkeypatch):
    """A user's directory, the environment, and the command."""
    monkeypatch.chdir(tmp_path)
    environment = os.environ | cluster.environment | {
        "XDG_STATE_HOME": str(tmp_path / "state"), "SFG_POLL_S": "0.5",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    environment.pop("RAY_AUTH_MODE", None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Site(tmp_path, environment)


class Site:
    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment

    def sfg(self, *words, check=True, **environment):
        command = [sys.executable, "-m", "sfg_dist.cli", *map(str, words)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment | environment, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def job(self, name="job", **sizes):
        path = self.folder / f"{name}.toml"
        path.write_text(JOB.format(**(SIZES | sizes), directory=self.folder / "runs" / name))
        return path

    def submit(self, job, *words):
        done = self.sfg("submit", job, "--to", "slurm", "--json", *words)
        return json.loads(done.stdout)

    def submissions(self):
        """In this process: it is asked all the time, and the job needs the CPUs."""
        return json.loads(commands.sfg(self.folder, "jobs", "--all", "--json").stdout)["submissions"]

    def state(self, identifier):
        return next(entry for entry in self.submissions() if entry["id"] == identifier)

    def wait(self, identifier, timeout_s=240.0):
        deadline = time.monotonic() + patience(timeout_s)
        while time.monotonic() < deadline:
            state = self.state(identifier)["state"]
            if slurm.is_over(state):
                return state
            time.sleep(1)
        raise AssertionError(f"still {state}: {self.said(identifier)}")

    def said(self, identifier):
        return self.sfg("logs", "--nodes", identifier, check=False).stdout

    def shards(self, name="job"):
        return len(list((self.folder / "runs" / name / "pairs.zarr" / "commits").glob("*.json")))

    def wait_for_shards(self, number, name="job", timeout_s=120.0):
        deadline = time.monotonic() + patience(timeout_s)
        while time.monotonic() < deadline and self.shards(name) < number:
            time.sleep(0.1)
        assert self.shards(name) >= number, "the job does not get on"


@pytest.fixture(scope="module")
def local_store(tmp_path_factory):
    """Stores of local runs, by their sizes, made once."""
    made = {}

    def make(**sizes):
        key = json.dumps(SIZES | sizes, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("local")
            path = folder / "job.toml"
            path.write_text(JOB.format(**(SIZES | sizes), directory=folder / "run"))
            Pipeline(load_job(path, ["executor.kind=inline"])).label()
            made[key] = folder / "run" / "pairs.zarr"
        return made[key]

    return make


def require_equal(site, store_bytes, reference, name="job"):
    ours = site.folder / "runs" / name / "pairs.zarr"
    assert store_bytes(ours) == store_bytes(reference)
    assert site.sfg("verify", ours).returncode == 0


def test_the_quickstart_on_two_nodes_ends_with_the_store_of_a_local_run(site, store_bytes):
    sizes = ["labels.num_pairs=16384", "labels.shard_rows=1024", "train.max_time_s=5", "evaluate.num_samples=2000"]
    words = [word for size in sizes for word in ("--set", size)]
    words += ["--to", "slurm", "--profile-set", "slurm.nodes=2", "--name", "two $(nodes)", "--wait"]
    before = set(Path("/tmp").glob("sfg*"))
    done = site.sfg("submit", QUICKSTART, *words)
    assert "follow:  sfg logs --follow" in done.stdout
    Pipeline(load_job(QUICKSTART, [*sizes, "executor.kind=inline", f"output.dir={site.folder}/local"])).label()
    ours = site.folder / "runs" / "quickstart"
    assert store_bytes(ours / "pairs.zarr") == store_bytes(site.folder / "local" / "pairs.zarr")
    assert site.sfg("verify", ours).returncode == 0
    assert json.loads((ours / "metrics.json").read_text())["samples"]["ks_mean"] < 0.2
    assert (ours / "report.html").exists()
    records = [sfg_dist.open_pairs(ours / "pairs.zarr").commit_record(shard) for shard in range(16)]
    assert len({record["pid"] for record in records}) >= 2  # an actor a node, or one a CPU
    assert not [path for path in Path("/tmp").glob(f"sfg{_job_id(site)}-*") if path not in before]


def _job_id(site):
    return site.submissions()[-1]["scheduler_ids"][0]


def test_a_preempted_job_goes_on(site, cluster, store_bytes, local_store):
    sizes = {"num_evaluations": 400, "shard_rows": 64}
    words = ["--stages", "label", "--profile-set", "slurm.nodes=2"]
    sent = site.submit(site.job(**sizes), *words, "--profile-set", "slurm.partition=spot")
    site.wait_for_shards(2)
    words = ["--partition=debug", "--nodes=2", "--exclusive", "--wrap=sleep 1", f"--output={site.folder}/x"]
    cluster.say("sbatch", *words)
    assert site.wait(sent["id"]) == "completed"
    assert site.state(sent["id"])["attempts"] >= 2
    require_equal(site, store_bytes, local_store(**sizes))


def test_a_node_that_goes_down_is_survived(site, cluster, store_bytes, local_store):
    sizes = {"num_evaluations": 400, "shard_rows": 64}
    sent = site.submit(site.job(**sizes), "--stages", "label", "--profile-set", "slurm.nodes=2")
    site.wait_for_shards(2)
    cluster.say("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    assert site.wait(sent["id"]) == "completed"
    require_equal(site, store_bytes, local_store(**sizes))


def test_a_walltime_that_is_met_three_times(site, cluster, store_bytes, local_store):
    probe = sfg_dist.open_pairs(local_store(num_pairs=256, shard_rows=64, num_evaluations=1000))
    shard_s = statistics.median(probe.commit_record(shard)["seconds"] for shard in range(4))
    # 64 shards of a second, one after the other: an attempt gets through ten of them before its signal.
    sizes = {"num_pairs": 64 * 64, "shard_rows": 64, "num_evaluations": int(1000 * 1.0 / shard_s)}
    sent = site.submit(
        # Slurm's least limit is a minute, and the profile's least notice 40 seconds.
        site.job(**sizes), "--stages", "label", "--profile-set", "slurm.walltime=1",
        "--profile-set", "slurm.signal_before_s=40", "--profile-set", "slurm.cpus_per_node=1",
        "--set", "executor.num_actors=1",
    )  # fmt: skip

    def events():
        files = (Path(sent["folder"]) / "attempts").glob("*")
        return [json.loads(line)["event"] for path in files for line in path.read_text().splitlines()]

    deadline = time.monotonic() + patience(240)
    while events().count("requeued") < 3:
        assert time.monotonic() < deadline, site.said(sent["id"])
        time.sleep(0.5)
    cluster.say("scontrol", "update", f"jobid={sent['scheduler_ids'][0]}", "timelimit=30")  # else it takes ten attempts
    assert site.wait(sent["id"]) == "completed", site.said(sent["id"])
    assert site.state(sent["id"])["attempts"] >= 4
    assert events().count("requeued") == events().count("started") - 1
    site.sfg("label", site.job("local", **sizes))  # two actors, undisturbed
    require_equal(site, store_bytes, site.folder / "runs" / "local" / "pairs.zarr")


def test_two_jobs_at_once_on_the_same_nodes(site, store_bytes, local_store):
    words = ["--stages", "label", "--profile-set", "slurm.nodes=2", "--profile-set", "slurm.cpus_per_node=1"]
    sent = [site.submit(site.job(name), *words) for name in ("one", "two")]
    for entry in sent:
        assert site.wait(entry["id"]) == "completed", site.said(entry["id"])
    for name in ("one", "two"):
        require_equal(site, store_bytes, local_store(), name)


def test_seeds_as_an_array_and_stages_apart(site):
    sent = site.submit(site.job(), "--seeds", "0,5", "--stages", "label")
    assert site.wait(sent["id"]) == "completed"
    for seed in (0, 5):
        pairs = sfg_dist.open_pairs(site.folder / f"runs/job/seed_{seed}/pairs.zarr")
        assert pairs.is_complete
        assert pairs.plan.identity["labels"]["seed"] == seed
    sent = site.submit(site.job("apart"), "--apart")
    assert len(sent["scheduler_ids"]) == 4
    assert site.wait(sent["id"]) == "completed"
    assert (site.folder / "runs/apart/report.html").exists()


def test_a_port_that_is_taken_is_passed_by(site):
    first = site.submit(site.job("first"), "--stages", "label")
    site.sfg("cancel", first["id"])  # it was sent for its number alone
    job_id = int(first["scheduler_ids"][0]) + 1
    with socket.socket() as one:
        port = slurm_task.port_of(str(job_id), 0)
        one.bind(("127.0.0.1", port))
        one.listen()
        sent = site.submit(site.job("second"), "--stages", "label")
        assert sent["scheduler_ids"] == [str(job_id)]
        assert site.wait(sent["id"]) == "completed", site.said(sent["id"])
    assert f"port {port} is taken" in site.said(sent["id"])


def test_a_worker_that_does_not_start_fails_the_job(site):
    broken = site.folder / "python"
    broken.write_text(
        f'#!/bin/sh\ncase "$*" in *start*--address*) echo "no memory on this node" >&2; exit 3;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    broken.chmod(0o755)
    words = ["--profile-set", f"setup.python={broken}", "--profile-set", "slurm.nodes=2", "--wait"]
    done = site.sfg("submit", site.job(), "--to", "slurm", *words, check=False)
    assert done.returncode == 1
    said = site.sfg("logs", _last(site)).stdout
    assert "Ray on n2 ended with status 3 before all nodes had joined" in said
    assert "no memory on this node" in said


def test_a_ray_that_does_not_start_fails_the_job_and_shows_its_log(site):
    broken = site.folder / "python"
    broken.write_text(
        f'#!/bin/sh\ncase "$*" in *ray.scripts*) echo "no Ray on this node: bad install" >&2; exit 3;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    broken.chmod(0o755)
    done = site.sfg(
        "submit", site.job(), "--to", "slurm", "--wait", "--profile-set", f"setup.python={broken}", check=False
    )
    assert done.returncode == 1
    assert "failed" in done.stderr
    said = site.sfg("logs", _last(site)).stdout
    assert "`ray start --head` failed on n1 with status 3" in said
    assert "no Ray on this node: bad install" in said


def _last(site):
    return site.submissions()[-1]["id"]


def test_a_wrong_token_is_refused(site):
    sent = site.submit(site.job(num_evaluations=2000, shard_rows=64, num_pairs=65_536), "--stages", "label")
    site.wait_for_shards(1)
    (log,) = Path(sent["folder"]).glob("logs/*ray-head.log")
    address = re.search(r"\d+\.\d+\.\d+\.\d+:\d+", log.read_text()).group()
    done = site.sfg(
        "label", site.job("other"), "--set", f"executor.address={address}", check=False,
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64,
    )  # fmt: skip
    assert done.returncode == 1
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert site.shards("other") == 0
    site.sfg("cancel", sent["id"])
    assert site.wait(sent["id"]) == "cancelled"


def test_a_stage_that_fails_fails_the_job(site):
    job = site.job()
    job.write_text(job.read_text().replace("num_pairs = 2048", "num_pairs = 2048\nmemory_gib = 1e-9"))
    done = site.sfg("submit", job, "--to", "slurm", "--wait", check=False)
    assert done.returncode == 1
    assert "memory_gib" in site.sfg("logs", _last(site)).stdout


def test_a_cancelled_job_keeps_what_is_committed_and_leaves_nothing_else(site):
    started = time.time()
    sent = site.submit(site.job(num_evaluations=2000, shard_rows=64, num_pairs=65_536), "--stages", "label")
    site.wait_for_shards(2)
    site.sfg("cancel", sent["id"])
    assert site.wait(sent["id"]) == "cancelled"
    assert site.shards() >= 2
    time.sleep(2)  # the batch script may still clean up
    assert not [path for path in Path("/tmp").glob(f"sfg{_job_id(site)}-*") if path.stat().st_mtime > started]
    assert site.sfg("verify", site.folder / "runs/job/pairs.zarr", check=False).returncode in (0, 1)


def test_sbatch_s_own_refusal_is_shown(site):
    done = site.sfg("submit", site.job(), "--to", "slurm", "--profile-set", "slurm.partition=nowhere", check=False)
    assert done.returncode == 1
    assert "could not be queued" in done.stderr
    assert "nowhere" in done.stderr or "partition" in done.stderr


def test_the_token_is_in_no_file(site):
    sent = site.submit(site.job(), "--stages", "label")
    assert site.wait(sent["id"]) == "completed"
    read = [path for path in Path(sent["folder"]).rglob("*") if path.is_file()]
    assert {"task.json", "job.sh", "submission.json", "slurm_task.py"} <= {path.name for path in read}
    for path in read:
        text = path.read_text(errors="replace")
        assert not re.search(r"\b[0-9a-f]{64}\b", text), path
        assert "RAY_AUTH_TOKEN" not in text or path.name == "slurm_task.py", path


def test_the_smoke_check(site, cluster):
    smoke = Path(__file__).parents[2] / "cluster" / "smoke.py"
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, str(smoke), str(site.folder), "--megabytes", "16"],
        env=site.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This site will do" in done.stdout
    assert float(re.search(r"read: ([\d,]+) MB/s", done.stdout).group(1).replace(",", "")) > 1
    for words in ("create-if-absent by open: exactly one node wins", "a renamed file is seen whole", "Ray: 2 nodes in"):
        assert words in done.stdout
