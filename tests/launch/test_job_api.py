"""A Ray cluster that runs already: jobs through its own job API, and a RayJob's entry point as KubeRay sends it."""

import contextlib
import importlib.util
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from patience import patience
from slurm_cluster import free_ports
from small_job import JOB, SIZES

from sfg_dist.job.config import load_job
from sfg_dist.launch import Order, load_profile, submit
from sfg_dist.launch.kuberay import MOUNT
from sfg_dist.pipeline.pipeline import Pipeline

UNHURRIED = Path(__file__).parent / "unhurried"
PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("prometheus_client", "opencensus", "aiohttp")),
        reason="Ray's job server is not installed: pip install 'sfg_dist[cluster]'",
    ),
]


class Head:
    """The head of a Ray cluster with a job server on loopback, its token, and ``sfg`` on its path."""

    def __init__(self, folder):
        self.folder, self.token = folder, secrets.token_hex(32)
        program = folder / "bin" / "sfg"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sfg_dist "$@"\n')
        program.chmod(0o755)
        self.job_port, *self.ports = free_ports(4)
        self.environment = {name: value for name, value in os.environ.items() if name not in PROXIES} | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(UNHURRIED), *sys.path])),
            "SFG_TEST_UNHURRIED": str(folder / "seconds"),
            "XDG_STATE_HOME": str(folder / "state"), "SFG_POLL_S": "0.5",
        }  # fmt: skip
        self.environment.pop("RAY_ADDRESS", None)
        self.log = folder / "head.log"
        self.process = None

    @property
    def address(self):
        return f"http://127.0.0.1:{self.job_port}"

    def up(self):
        words = [
            "start", "--head", "--node-ip-address=127.0.0.1", f"--port={self.ports[0]}", "--num-cpus=2",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.job_port}",
            f"--dashboard-agent-listen-port={self.ports[1]}", f"--ray-client-server-port={self.ports[2]}",
            "--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={self.folder / 'r'}",
            "--disable-usage-stats", "--block",
        ]  # fmt: skip
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *words],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + patience(120)
        while self.ray("job", "list", f"--address={self.address}").returncode:
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            time.sleep(0.5)

    def down(self):
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience(5))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: all of its Ray
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ray(self, *words):
        command = [sys.executable, "-m", "ray.scripts.scripts", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True)

    def sfg(self, *words, check=True, **environment):
        command = [sys.executable, "-m", "sfg_dist", *map(str, words)]
        done = subprocess.run(command, env=self.environment | environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(self, job, *words, **options):
        site = ["--profile-set", f"ray.address={self.address}", "--profile-set", f"setup.dir={job.parent}/submissions"]
        return self.sfg("submit", job, "--to", "ray", "--json", *site, *words, **options)

    def wait(self, identifier, timeout_s=120.0):
        deadline = time.monotonic() + patience(timeout_s)
        while time.monotonic() < deadline:
            found = json.loads(self.sfg("jobs", "--all", "--json").stdout)["submissions"]
            state = next(entry["state"] for entry in found if entry["id"] == identifier)
            if state in ("succeeded", "failed", "stopped"):
                return state
            time.sleep(1)
        raise AssertionError(f"still {state}")


@pytest.fixture(scope="module")
def head():
    folder = Path(tempfile.mkdtemp(prefix="sfgj", dir="/tmp"))  # short, for the sockets in it
    one = Head(folder)
    try:
        one.up()
        yield one
    finally:
        one.down()


@pytest.fixture
def write_job(tmp_path):
    def write(name="job", **sizes):
        path = tmp_path / f"{name}.toml"
        path.write_text(JOB.format(**(SIZES | sizes), directory=tmp_path / "runs" / name))
        return path

    return write


@pytest.fixture
def require_equal(tmp_path, write_job, store_bytes):
    """The store is that of a run in this process, to the bit."""

    def require(name="job", **sizes):
        Pipeline(load_job(write_job("local", **sizes), ["executor.kind=inline"])).label()
        runs = tmp_path / "runs"
        assert store_bytes(runs / name / "pairs.zarr") == store_bytes(runs / "local" / "pairs.zarr")

    return require


def num_shards(tmp_path, name="job"):
    return len(list((tmp_path / "runs" / name / "pairs.zarr" / "commits").glob("*.json")))


def test_a_job_is_sent_followed_stopped_and_sent_again(head, write_job, tmp_path, require_equal):
    (head.folder / "seconds").write_text("1")  # a shard, at no cost
    sent = json.loads(head.submit(write_job(), "--stages", "label", "--name", "two $(words)").stdout)
    deadline = time.monotonic() + patience(120)
    while num_shards(tmp_path) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    head.sfg("cancel", sent["id"])
    assert head.wait(sent["id"]) == "stopped"
    (head.folder / "seconds").unlink()
    assert 2 <= num_shards(tmp_path) < 16
    again = json.loads(head.submit(write_job(), "--stages", "label", "--wait").stdout)
    assert again["state"] == "succeeded"
    assert "16 of 16 shards" in head.sfg("logs", again["id"]).stdout
    require_equal()
    for path in Path(again["folder"]).rglob("*"):
        assert path.is_dir() or head.token not in path.read_text(errors="replace")


def test_a_stage_that_fails_is_told_of(head, write_job):
    job = write_job()
    job.write_text(job.read_text().replace("num_pairs = 2048", "num_pairs = 2048\nmemory_gib = 1e-9"))
    done = head.submit(job, "--wait", check=False)
    assert done.returncode == 1
    identifier = json.loads(head.sfg("jobs", "--all", "--json").stdout)["submissions"][-1]["id"]
    assert "memory_gib" in head.sfg("logs", identifier).stdout


def test_a_wrong_token_is_refused(head, write_job, tmp_path):
    done = head.submit(write_job(), check=False, RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode == 1
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("stages", [("run",), ("label", "train")])
def test_the_entry_point_of_a_ray_job(stages, head, write_job, tmp_path, require_equal):
    """Sent by the job API with the manifest's own words, as KubeRay's submitter does; the ConfigMap is a directory."""
    volume = f'kuberay.volumes=[{{claim="x", path="{tmp_path}"}}]'
    order = Order([load_job(write_job())], load_profile(None, [volume]), stages=stages)
    _, rendered, _ = submit(order, to="kuberay", name="job")
    config, ray_job = yaml.safe_load_all(rendered.files["0.yaml"])
    mount = tmp_path / "etc sfg"
    mount.mkdir()
    for name, content in config["data"].items():
        (mount / name).write_text(content)
    entrypoint = ray_job["spec"]["entrypoint"]
    assert MOUNT in entrypoint
    words = shlex.split(entrypoint.replace(MOUNT, str(tmp_path / "mounted")))
    (tmp_path / "mounted").symlink_to(mount)
    done = head.ray("job", "submit", f"--address={head.address}", "--", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/job/report.html").exists() is (stages == ("run",))
    assert list((tmp_path / "runs/job").glob("model*"))
    require_equal()
