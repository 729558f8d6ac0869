"""Jobs on a real scheduler: submitted, preempted, out of time, on a node that goes down, beside each other."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import commands
import psutil
import pytest
from patience import measure_slowness, patience
from slurm_cluster import SlurmCluster, missing_program
from small_job import JOB, SIZES

import sfg_dist
from sfg_dist.distributed.cluster import MANY_MACHINES
from sfg_dist.job.config import load_job
from sfg_dist.launch import slurm, slurm_task
from sfg_dist.pipeline.pipeline import Pipeline

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(missing_program() is not None, reason=f"{missing_program()} is not installed: slurm-wlm, munge"),
]

# Three clusters beside each other: jobs mostly wait, for Slurm's looks at them and for each other's processes.
on_a_second_cluster = pytest.mark.xdist_group("second slurm")
on_a_third_cluster = pytest.mark.xdist_group("third slurm")
QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.toml"
UNHURRIED = Path(__file__).parent / "unhurried"


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
        "PYTHONPATH": os.pathsep.join(filter(None, [str(UNHURRIED), *sys.path])),
        "SFG_TEST_UNHURRIED": str(tmp_path / "seconds"), "RAY_START_HOOK": "lean_ray.leave_out",
        "RAY_prestart_worker_first_driver": "0",  # else a worker a CPU for whoever waits for the nodes
    }  # fmt: skip
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Site(tmp_path)


class Site:
    def __init__(self, folder):
        self.folder = folder

    def sfg(self, *words, check=0):
        """In this process: a process for each would need the CPUs that the jobs need."""
        return commands.sfg(self.folder, *words, check=check)

    def slow_down(self, seconds=2):
        """Have every shard take so long, at no cost, until `speed_up`."""
        (self.folder / "seconds").write_text(str(seconds))

    def speed_up(self):
        (self.folder / "seconds").unlink()

    def job(self, name="job", **sizes):
        path = self.folder / f"{name}.toml"
        path.write_text(JOB.format(**(SIZES | sizes), directory=self.folder / "runs" / name))
        return path

    def broken_python(self, name, words, complaint):
        """A Python that ends with status 3 when it has these words in its command line."""
        path = self.folder / f"python-{name}"
        path.write_text(
            f'#!/bin/sh\ncase "$*" in {words}) echo "{complaint}" >&2; exit 3;; esac\nexec {sys.executable} "$@"\n'
        )
        path.chmod(0o755)
        return path

    def submit(self, job, *words):
        done = self.sfg("submit", job, "--to", "slurm", "--json", *words)
        return json.loads(done.stdout)

    def submissions(self):
        return json.loads(self.sfg("jobs", "--all", "--json").stdout)["submissions"]

    def state(self, identifier):
        return next(entry for entry in self.submissions() if entry["id"] == identifier)

    def wait(self, identifier, timeout_s=240.0):
        deadline = time.monotonic() + patience(timeout_s)
        while time.monotonic() < deadline:
            state = self.state(identifier)["state"]
            if slurm.is_over(state):
                return state
            time.sleep(0.5)
        raise AssertionError(f"still {state}: {self.said(identifier)}")

    def wait_for_attempts(self, identifier, number, timeout_s=120.0):
        deadline = time.monotonic() + patience(timeout_s)
        while self.state(identifier)["attempts"] < number:
            assert time.monotonic() < deadline, self.said(identifier)
            time.sleep(0.5)

    def said(self, identifier):
        return self.sfg("logs", "--nodes", identifier, check=None).stdout

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


MANY = {"num_pairs": 4096, "shard_rows": 64}  # shards, for jobs that something happens to


def require_equal(site, store_bytes, reference, name="job"):
    ours = site.folder / "runs" / name / "pairs.zarr"
    assert store_bytes(ours) == store_bytes(reference)
    assert site.sfg("verify", ours).returncode == 0


def test_the_quickstart_on_two_nodes_ends_with_the_store_of_a_local_run(site, store_bytes):
    sizes = ["labels.num_pairs=16384", "labels.shard_rows=1024", "train.max_time_s=5", "evaluate.num_samples=2000"]
    words = [word for size in sizes for word in ("--set", size)]
    words += ["--to", "slurm", "--profile-set", "slurm.nodes=2", "--profile-set", "slurm.cpus_per_node=1"]
    words += ["--name", "two $(nodes)", "--wait"]
    # First, so that kernels are compiled once and not by each actor, of which one would then do all shards.
    Pipeline(load_job(QUICKSTART, [*sizes, "executor.kind=inline", f"output.dir={site.folder}/local"])).label()
    before = set(Path("/tmp").glob("sfg*"))
    site.slow_down(1)
    done = site.sfg("submit", QUICKSTART, *words)
    assert "follow:  sfg logs --follow" in done.stdout
    ours = site.folder / "runs" / "quickstart"
    assert store_bytes(ours / "pairs.zarr") == store_bytes(site.folder / "local" / "pairs.zarr")
    assert site.sfg("verify", ours).returncode == 0
    assert json.loads((ours / "metrics.json").read_text())["samples"]["ks_mean"] < 0.2
    assert (ours / "report.html").exists()
    records = [sfg_dist.open_pairs(ours / "pairs.zarr").commit_record(shard) for shard in range(16)]
    assert len({record["pid"] for record in records}) >= 2  # an actor a node
    assert not [path for path in Path("/tmp").glob(f"sfg{_job_id(site)}-*") if path not in before]


def _job_id(site):
    return site.submissions()[-1]["scheduler_ids"][0]


@on_a_third_cluster
def test_a_preempted_job_goes_on(site, cluster, store_bytes, local_store):
    site.slow_down()
    words = ["--stages", "label", "--profile-set", "slurm.nodes=2"]
    sent = site.submit(site.job(**MANY), *words, "--profile-set", "slurm.partition=spot")
    site.wait_for_shards(2)
    words = ["--partition=debug", "--nodes=2", "--exclusive", "--wrap=sleep 1", f"--output={site.folder}/x"]
    cluster.say("sbatch", *words)
    site.wait_for_attempts(sent["id"], 2)
    site.speed_up()
    assert site.wait(sent["id"]) == "completed"
    require_equal(site, store_bytes, local_store(**MANY))


@on_a_third_cluster
def test_a_node_that_goes_down_is_survived(site, cluster, store_bytes, local_store):
    site.slow_down()
    sent = site.submit(site.job(**MANY), "--stages", "label", "--profile-set", "slurm.nodes=2")
    site.wait_for_shards(2)
    cluster.say("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    site.wait_for_shards(site.shards() + 2)  # on the other node, or when the job has begun again
    site.speed_up()
    assert site.wait(sent["id"]) == "completed"
    require_equal(site, store_bytes, local_store(**MANY))


@on_a_second_cluster
def test_a_walltime_that_is_met_three_times(site, cluster, store_bytes, local_store):
    # Slurm's least limit is a minute, and the profile's least notice 40 seconds. The notice comes up to 30 seconds
    # early, since Slurm looks at limits that often: on a slow machine Ray would not have started by then.
    minutes = max(1, round(measure_slowness() + 0.2))
    site.slow_down((60 * minutes - 40) / 20)  # three attempts get through fewer than the 64 shards
    sent = site.submit(
        site.job(**MANY), "--stages", "label", "--profile-set", f"slurm.walltime={minutes}",
        "--profile-set", "slurm.signal_before_s=40", "--profile-set", "slurm.cpus_per_node=1",
        "--set", "executor.num_actors=1",
    )  # fmt: skip

    def events():
        files = (Path(sent["folder"]) / "attempts").glob("*")
        return [json.loads(line)["event"] for path in files for line in path.read_text().splitlines()]

    deadline = time.monotonic() + patience(240)
    while events().count("requeued") < 3:
        assert "ended" not in events(), site.said(sent["id"])
        assert time.monotonic() < deadline, site.said(sent["id"])
        time.sleep(0.5)
    assert 0 < site.shards() < 64
    cluster.say("scontrol", "update", f"jobid={sent['scheduler_ids'][0]}", "timelimit=30")  # else it takes ten attempts
    site.speed_up()
    assert site.wait(sent["id"]) == "completed", site.said(sent["id"])
    assert site.state(sent["id"])["attempts"] >= 4
    assert events().count("requeued") == events().count("started") - 1
    require_equal(site, store_bytes, local_store(**MANY))


@on_a_third_cluster
def test_two_jobs_at_once_on_the_same_nodes_pass_by_ports_that_are_taken(site, store_bytes, local_store):
    words = ["--stages", "label", "--profile-set", "slurm.nodes=2", "--profile-set", "slurm.cpus_per_node=1"]
    first = site.submit(site.job("one"), *words)
    job_id = int(first["scheduler_ids"][0]) + 1
    with socket.socket() as other:
        port = slurm_task.port_of(str(job_id), 0)
        other.bind(("127.0.0.1", port))
        other.listen()
        second = site.submit(site.job("two"), *words)
        assert second["scheduler_ids"] == [str(job_id)]
        for entry in (first, second):
            assert site.wait(entry["id"]) == "completed", site.said(entry["id"])
    assert f"port {port} is taken" in site.said(second["id"])
    for name in ("one", "two"):
        require_equal(site, store_bytes, local_store(), name)
    require_no_token(first["folder"])


def require_no_token(folder):
    """The token is in no file."""
    read = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert {"task.json", "job.sh", "submission.json", "slurm_task.py"} <= {path.name for path in read}
    for path in read:
        text = path.read_text(errors="replace")
        assert not re.search(r"\b[0-9a-f]{64}\b", text), path
        assert "RAY_AUTH_TOKEN" not in text or path.name == "slurm_task.py", path


def test_seeds_as_an_array_and_stages_apart(site):
    """By Ray, and without it, which takes four processes instead of four clusters."""
    one = ["--profile-set", "slurm.cpus_per_node=1", "--set", "executor.num_actors=1"]
    seeds = site.submit(site.job(), "--seeds", "0,5", "--stages", "label", *one)
    apart = site.submit(site.job("apart"), "--apart", "--executor", "inline")
    assert len(apart["scheduler_ids"]) == 4
    assert site.wait(seeds["id"]) == "completed"
    for seed in (0, 5):
        pairs = sfg_dist.open_pairs(site.folder / f"runs/job/seed_{seed}/pairs.zarr")
        assert pairs.is_complete
        assert pairs.plan.identity["labels"]["seed"] == seed
    assert site.wait(apart["id"]) == "completed"
    assert (site.folder / "runs/apart/report.html").exists()


def test_jobs_that_cannot_start_or_go_on_fail_and_say_why(site):
    """A worker's Ray that does not start, a head's, and a stage that fails; all three at once."""
    one, two = (["--profile-set", f"slurm.nodes={nodes}", "--profile-set", "slurm.cpus_per_node=1"] for nodes in (1, 2))
    worker = site.broken_python("worker", "*start*--address*", "no memory on this node")
    head = site.broken_python("head", "*ray.scripts*", "no Ray on this node: bad install")
    sent = [
        site.submit(site.job("worker"), *two, "--profile-set", f"setup.python={worker}"),
        site.submit(site.job("head"), *one, "--profile-set", f"setup.python={head}"),
    ]
    stage = site.job("stage")
    stage.write_text(stage.read_text().replace("num_pairs = 2048", "num_pairs = 2048\nmemory_gib = 1e-9"))
    done = site.sfg("submit", stage, "--to", "slurm", "--wait", *one, check=1)
    assert "failed" in done.stderr
    assert "memory_gib" in site.said(_last(site))
    assert [site.wait(entry["id"]) for entry in sent] == ["failed", "failed"]
    said = [site.said(entry["id"]) for entry in sent]
    assert "Ray on n2 ended with status 3 before all nodes had joined" in said[0]
    assert "no memory on this node" in said[0]
    assert "`ray start --head` failed on n" in said[1]
    assert "no Ray on this node: bad install" in said[1]


def _last(site):
    return site.submissions()[-1]["id"]


@on_a_third_cluster
def test_a_running_job_refuses_a_wrong_token_and_is_cancelled(site):
    """What is committed is kept, and nothing else stays."""
    started = time.time()
    site.slow_down()
    sent = site.submit(site.job(**MANY), "--stages", "label")
    site.wait_for_shards(2)
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    (address, *_) = re.findall(r"executor\.address=(\S+)", "\n".join(line for line in lines if sent["folder"] in line))
    command = [sys.executable, "-m", "sfg_dist", "label", str(site.job("other"))]
    done = subprocess.run(
        [*command, "--set", f"executor.address={address}"], capture_output=True, text=True,
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, MANY_MACHINES: "0"},  # its one node's
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert site.shards("other") == 0
    site.sfg("cancel", sent["id"])
    assert site.wait(sent["id"]) == "cancelled"
    assert site.shards() >= 2
    time.sleep(2)  # the batch script may still clean up
    assert not [path for path in Path("/tmp").glob(f"sfg{_job_id(site)}-*") if path.stat().st_mtime > started]
    assert site.sfg("verify", site.folder / "runs/job/pairs.zarr", check=None).returncode in (0, 1)


@on_a_second_cluster
def test_sbatch_s_own_refusal_is_shown(site):
    done = site.sfg("submit", site.job(), "--to", "slurm", "--profile-set", "slurm.partition=nowhere", check=None)
    assert done.returncode == 1
    assert "could not be queued" in done.stderr
    assert "nowhere" in done.stderr or "partition" in done.stderr


@on_a_second_cluster
def test_the_smoke_check(site, cluster):
    smoke = Path(__file__).parents[2] / "cluster" / "smoke.py"
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, str(smoke), str(site.folder), "--megabytes", "16"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This site will do" in done.stdout
    assert float(re.search(r"read: ([\d,]+) MB/s", done.stdout).group(1).replace(",", "")) > 1
    for words in ("create-if-absent by open: exactly one node wins", "a renamed file is seen whole", "Ray: 2 nodes in"):
        assert words in done.stdout
