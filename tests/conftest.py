"""Fixtures that the rooms share: a device, one Ray for the session, small jobs and stores."""

from __future__ import annotations

import collections
import faulthandler
import fcntl
import functools
import http.client
import importlib.util
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import urllib.request
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import PROFILE, load_profile
from patience import measure_slowness, patience

from sfg_dist.job.threads import wait_passively

wait_passively()  # before anything imports torch
load_profile()

TEST_LIMIT_S = 240
GROUP_LIMIT_S = 600  # of tests that start clusters and kill what runs on them
# The group that a marker puts a test into. A group runs one test at a time, so Slurm and Ray are used by one each.
SHARED = {"slurm": "slurm", "hosts": "hosts", "chaos": "ray", "notebooks": "ray", "alone": "ray", "ray": "ray"}
OWN_RAY = "own ray"  # of those in "ray" that start a Ray of their own instead of using the session's, by file
QUICK_S, SLOW_S, LONG_S = 0.1, 2.0, 15.0  # about what a test takes, for the order of the groups
MANY_CASES = 4  # of a test; of more than these `make check` runs every third
SLOWER_S = {"hosts": 100.0, "slurm": 40.0, "alone": 30.0, "chaos": 20.0, "ray": 10.0}
RARE = {"slurm", "hosts", "chaos", "alone", "notebooks", "cluster"}  # written out in the files that have them
STDERR = pytest.StashKey[int]()
PLACE = pytest.StashKey[tuple[str, str | None]]()  # a test's group, and what of SHARED it is
HERE = Path(__file__).parent
FRESH = "SFG_TEST_FRESH"  # is set where no bytecode of the tests was there when the session began


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="torch device that the flow's tests run on: cpu or cuda")


def pytest_configure(config):
    # A suite started in the background of a script inherits an ignored SIGINT, and would pass it on to the processes
    # that the tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[STDERR] = os.dup(2)  # pytest puts a file of its own in its place while a test runs
    os.fsync = only_checked  # nobody cuts the power, and to wait for the disk takes longer than most tests
    measure_slowness()  # before the workers of pytest-xdist, which inherit it, keep each other busy
    if not Path(importlib.util.cache_from_source(str(HERE / "flow" / "any.py"))).parent.is_dir():
        os.environ.setdefault(FRESH, "1")


def only_checked(file):
    """In place of `os.fsync`: what is no open file is an error still."""
    os.fstat(file if isinstance(file, int) else file.fileno())


def pytest_report_header():
    return f"slowness: {measure_slowness():.2f}; every wait and limit is that many times as long"


def pytest_ignore_collect(collection_path, config):
    """A file without a test of the rare kinds that alone are asked for is not imported, by any worker."""
    asked = config.option.markexpr
    names = set(re.findall(r"\w+", re.sub(r"not \w+", "", asked))) - {"and", "or"}
    if "not (" in asked or not names or not names <= RARE or not collection_path.name.startswith("test_"):
        return None
    text = collection_path.read_text(encoding="utf-8")
    return None if any(f"mark.{name}" in text for name in names) else True


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """In a fresh checkout one worker goes first, and leaves the bytecode of all that is imported to the others."""
    if FRESH not in os.environ or not hasattr(session.config, "workerinput") or sys.dont_write_bytecode:
        return (yield)
    handle = os.open(HERE, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(handle, fcntl.LOCK_SH)  # which the first one's end lets all others have at once
        return (yield)
    finally:
        os.close(handle)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """Tests of one file stay together, for the fixtures that they share, and so do those that share a machine's Ray."""
    for item in items:
        shared = next((name for name in SHARED if item.get_closest_marker(name)), None)
        limit_s = TEST_LIMIT_S if shared in (None, "ray") else GROUP_LIMIT_S
        if marker := item.get_closest_marker("timeout"):
            limit_s = marker.args[0]
        item.add_marker(pytest.mark.timeout(patience(limit_s)), append=False)
        if marker := item.get_closest_marker("xdist_group"):
            group = marker.args[0]
        else:
            group = SHARED.get(shared, item.path.name)
            if group == "ray" and "ray_cluster" not in item.fixturenames:
                group = f"{OWN_RAY}: {item.path.name}"
            item.add_marker(pytest.mark.xdist_group(group))
        item.stash[PLACE] = group, shared
    result = yield  # tests that are not asked for go, and count no more
    if PROFILE == "check":
        keep_some_cases(config, items)
    waiting, seconds = set(), collections.Counter()
    for item in items:
        group, shared = item.stash[PLACE]
        takes = {"long": LONG_S, "slow": SLOWER_S.get(shared, SLOW_S)}
        seconds[group] += next((takes[name] for name in takes if item.get_closest_marker(name)), QUICK_S)
        waiting |= {group} if shared else set()
    # Groups are handed out in this order. The longest come first, so that none is left alone at the end: those that
    # wait for a cluster, then those that take long.
    items.sort(key=lambda item: ((group := item.stash[PLACE][0]) not in waiting, -seconds[group], group))
    return result


def keep_some_cases(config, items):
    """Of a test with many cases, every third."""
    cases = collections.defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    left_out = {item for each in cases.values() if len(each) > MANY_CASES for item in set(each) - set(each[::3])}
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Shows where a test hangs, some time before its limit ends it."""
    limit_s = item.get_closest_marker("timeout").args[0]
    faulthandler.dump_traceback_later(limit_s / 2, file=item.config.stash[STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def device(request):
    import torch

    name = request.config.getoption("--device")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.exit("--device cuda: torch sees no GPU on this machine", returncode=2)
    return torch.device(name)


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray of 4 CPUs and 2 made-up GPUs, started once; Ray only counts what it is told it has."""
    from sfg_dist.distributed.cluster import local_environment

    with local_environment():
        import ray

        with pytest.MonkeyPatch.context() as patch:
            # Actors import the modules of the tests, and those import what stands beside them.
            patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
            # "local": one of its own even where the machine runs another Ray.
            ray.init(
                address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False,
                _node_ip_address="127.0.0.1",
            )  # fmt: skip
        yield
        ray.shutdown()


def small_job(directory: Path, **tables: dict[str, Any]):
    """A small two-moons job; keyword arguments are tables that override its keys."""
    from sfg_dist.job.config import resolve_job

    document: dict[str, Any] = {
        "data": {"source": "moons", "max_rows": 600},
        "labels": {
            "num_pairs": 1000,
            "shard_rows": 128,
            "batch_size": 64,
            "num_evaluations": 8,
            "t_min": 1e-3,
        },
        "train": {"width": 16, "depth": 1, "num_epochs": 2, "batch_size": 64},
        "evaluate": {"num_samples": 200, "judge": False},
        "executor": {"kind": "inline"},
        "output": {"dir": str(directory)},
    }
    for name, keys in tables.items():
        document[name] = document.get(name, {}) | keys
    return resolve_job(document)


@pytest.fixture
def make_job(tmp_path):
    """A small two-moons job in a directory of its own; keyword arguments are tables that override its keys."""

    def make(directory: str = "run", **tables: dict[str, Any]):
        return small_job(tmp_path / directory, **tables)

    return make


@pytest.fixture
def make_store(make_job):
    """The (still empty) store of a small job."""

    def make(directory: str = "run", **tables: dict[str, Any]):
        from sfg_dist.pipeline.pipeline import Pipeline

        return Pipeline(make_job(directory, **tables)).open_store()

    return make


@dataclass(frozen=True)
class SmallRun:
    """What `sfg run` left of the small job, and what it told; tests change copies of it."""

    directory: Path
    job: Any
    metrics: dict[str, Any]
    events: list[dict[str, Any]]

    def copy(self, target: Path) -> Path:
        """The same run, as if it had been made there."""
        return copy_run(self.directory, target)


def copy_run(source: Path, target: Path) -> Path:
    """A copy of an output directory whose job file names the copy."""
    shutil.copytree(source, target)
    job = target / "job.toml"
    job.write_text(job.read_text().replace(str(source), str(target)))
    return target


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The small job after all stages, its page without pictures, made once for the session."""
    import sfg_dist

    events: list[dict[str, Any]] = []
    job = small_job(tmp_path_factory.mktemp("small_run") / "run")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        metrics = sfg_dist.run(job.model_dump(exclude_none=True), listener=events.append)
    return SmallRun(Path(job.output.dir), job, metrics, events)


@pytest.fixture(scope="session")
def small_labels(tmp_path_factory):
    """Stores of the small job by the number of shards of 8 that are done, each of them made once for the session."""
    from sfg_dist.distributed.labels.inline import label_inline
    from sfg_dist.distributed.labels.settings import LabelSettings
    from sfg_dist.pipeline.pipeline import Pipeline

    made: dict[int, Path] = {}

    def make(shards: int) -> Path:
        if shards not in made:
            job = small_job(tmp_path_factory.mktemp(f"labels_{shards}") / "run")
            if shards == 8:
                Pipeline(job).label()
            else:
                label_inline(Pipeline(job).open_store().location.url, LabelSettings(only=range(shards)))
            made[shards] = Path(job.output.dir)
        return made[shards]

    return make


@pytest.fixture
def copy_labels(small_labels, tmp_path):
    """The store of the small job with so many of its 8 shards done, in the output directory ``run``."""

    def copy(shards: int = 8):
        import sfg_dist

        return sfg_dist.open_pairs(copy_run(small_labels(shards), tmp_path / "run"))

    return copy


def leave_out_pictures(patch: pytest.MonkeyPatch) -> None:
    """Pages come with empty pictures: to draw them takes most of the time of a small evaluation."""
    patch.setattr("sfg_dist.evaluate.pictures.to_data_uri", lambda figure: "data:image/png;base64,")


@pytest.fixture
def no_pictures(monkeypatch):
    """In this test pages come with empty pictures."""
    leave_out_pictures(monkeypatch)


@pytest.fixture(scope="module")
def no_pictures_here():
    """The same for the runs that the tests of a file share."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        yield


@pytest.fixture
def store_bytes():
    """Array bytes, plan and digests of a store: what two bit-equal stores share."""

    def read(path: Path) -> dict[str, Any]:
        import sfg_dist

        pairs = sfg_dist.open_pairs(path)
        objects = {
            str(file.relative_to(pairs.location.root)): file.read_bytes()
            for name in ("latents", "labels", "reference")
            for file in sorted((pairs.location.root / name).rglob("*"))
            if file.is_file()
        }
        digests = [pairs.commit_record(shard)["objects"] for shard in range(pairs.plan.num_shards)]
        return {"objects": objects, "digests": digests, "plan": pairs.plan.identity}

    return read


PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server on loopback with one bucket, named "bucket".

    It is moto's S3 alone: its server of all services takes as long again for a request, to find out whose that is.
    """
    from moto.core import serialize
    from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = make_server("127.0.0.1", 0, create_backend_app("s3"), threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = "http://{}:{}".format(*server.server_address[:2])
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.MonkeyPatch.context() as patch:
        parse = getattr(serialize, "parse_to_aware_datetime", None)  # half the time of a list, for equal times
        patch.setattr(serialize, "parse_to_aware_datetime", functools.cache(parse), raising=False)
        with opener.open(urllib.request.Request(f"{address}/bucket", method="PUT")) as answer:
            assert answer.status == 200
        yield address
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def s3_url(s3_server, monkeypatch):
    """An s3:// URL with nothing under it yet, and the environment that leads to it."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    environment = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "the-secret",
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{uuid.uuid4().hex}"


class FaultyProxy(ThreadingHTTPServer):
    """Hands requests on to a server, but for a seeded share of them that go wrong in one of four ways."""

    daemon_threads = True

    def __init__(self, target: str, share: float, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), FaultyHandler)
        self.target = target.removeprefix("http://")
        self.share, self.generator, self.lock = share, np.random.default_rng(seed), threading.Lock()
        self.faults: list[str] = []

    def draw(self) -> str:
        """What happens to the next request."""
        with self.lock:
            if self.generator.random() >= self.share:
                return "none"
            self.faults.append(str(self.generator.choice(["503", "lost answer", "dropped", "slow"])))
            return self.faults[-1]


class FaultyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.draw()
        if fault == "dropped":
            self.close_connection = True
            return
        status, headers, content = 503, [], b"<Error><Code>SlowDown</Code></Error>"
        if fault != "503":
            connection = http.client.HTTPConnection(self.server.target)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            if fault != "lost answer":  # else the server has done it, and the client hears 503
                status, headers, content = answer.status, answer.getheaders(), answer.read()
            connection.close()
        if fault == "slow":
            time.sleep(0.2)
        self.send_response(status)
        length = dict(headers).get("Content-Length", 0) if self.command == "HEAD" else len(content)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_request

    def log_message(self, *arguments):
        pass


@pytest.fixture
def faulty_s3(s3_server, s3_url, monkeypatch):
    """A function of (share, seed) that puts a proxy before the server, which spoils that share of requests."""
    started = []

    def start(share: float, seed: int = 0) -> FaultyProxy:
        proxy = FaultyProxy(s3_server, share, seed)
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        started.append((proxy, thread))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        return proxy

    yield start
    for proxy, thread in started:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


@pytest.fixture(scope="session")
def moons() -> np.ndarray:
    """Two moons, noise 0.05, standardised, 2000 rows: the case of the accuracy figures."""
    from sklearn.datasets import make_moons

    rows, _ = make_moons(2000, noise=0.05, random_state=0)
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)
