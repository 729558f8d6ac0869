"""What listens where while a run works, who gets in, and what it leaves: loopback, a token, a directory of one user."""

import contextlib
import json
import os
import runpy
import socket
import stat
import subprocess
import sys
import time
import types
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from commands import sfg
from patience import patience

from sfg_dist.distributed import cluster
from sfg_dist.distributed.labels.inline import label_with_processes
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.job.errors import ClusterError
from sfg_dist.job.search_path import PACKAGE_ROOT
from sfg_dist.launch import slurm_task
from sfg_dist.launch.slurm_task import MAKE, SlurmTask

SMOKE = Path(PACKAGE_ROOT, "cluster", "smoke.py")
PLANTED = ("json", "sfg_dist", "numpy", "ray", "torch", "zarr", "random", "psutil", "grpc", "pyarrow", "usercustomize")


def listeners(process):
    """(name, address) of each socket that waits for others, of a process and all that it has started."""
    names = {}
    with contextlib.suppress(psutil.Error):  # it has just ended
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                names[each.pid] = each.name()
    return {
        (names[each.pid], each.laddr.ip)
        for each in psutil.net_connections("inet")
        if each.pid in names
        and (each.status == psutil.CONN_LISTEN or (each.type == socket.SOCK_DGRAM and not each.raddr))
    }


def is_loopback(address):
    found = ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def watched(command, here, environment, told, *, every_s):
    """The status of a command, what listened in its process tree, and the most processes in that; both are printed.

    What it says goes to the files answer and log in the folder ``told``.
    """
    seen, most = set(), 0
    with (told / "answer").open("w") as answer, (told / "log").open("w") as log:
        started = psutil.Popen(command, cwd=here, env=environment, stdout=answer, stderr=log)
        try:
            deadline = time.monotonic() + patience(200)
            while started.poll() is None and time.monotonic() < deadline:
                seen |= listeners(started)
                with contextlib.suppress(psutil.Error):
                    most = max(most, 1 + len(started.children(recursive=True)))
                time.sleep(every_s)
        finally:
            for each in [*started.children(recursive=True), started] if started.poll() is None else []:
                with contextlib.suppress(psutil.Error):
                    each.kill()
            status = started.wait()
    print(f"{' '.join(map(str, command[1:]))}: {most} processes at most", *sorted(seen), sep="\n")
    return status, seen, most


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_run_into_a_bucket_listens_on_loopback_alone_and_leaves_nothing(tmp_path, make_job, small_run, s3_url):
    """Labels, a fit beside them and one of two ranks, in one process tree, with files of the user all around.

    Its Ray starts with the bucket's environment, and its directory for sockets has a name that Ray cannot take.
    """
    here, jobs, home = (tmp_path / name for name in ("here", "jobs", "home"))
    odd = tmp_path / "tmp-\N{LATIN SMALL LETTER U WITH DIAERESIS}-that-is-much-longer-than-a-socket-of-ray-may-be"
    for folder in (here, jobs, home, odd):
        folder.mkdir()
    for folder in (here, jobs):
        for name in PLANTED:
            line = f"open({str(tmp_path / 'told')!r}, 'a').write('{name} ')\n"
            (folder / f"{name}.py").write_text(line)
    (here / "sfg_dist.py").unlink()  # "python -m" would take it before any line of ours
    job = make_job(
        output={"dir": f"{s3_url}/ray"}, executor={"kind": "ray", "num_actors": 1},
        train={"num_epochs": 1, "num_workers": 2, "num_threads": 1}, evaluate={"metrics": ["ks_mean"]},
    )  # fmt: skip
    (jobs / "job.toml").write_text(job.to_toml())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_", "NCCL_"))}
    environment |= {"PYTHONPATH": PACKAGE_ROOT, "HOME": str(home), "TMPDIR": str(odd)}
    command = [sys.executable, "-m", "sfg_dist", "run", "../jobs/job.toml", "--overlap", "--json"]
    status, seen, _ = watched(command, here, environment, tmp_path, every_s=1.0)
    assert not (tmp_path / "told").exists(), (tmp_path / "told").read_text()
    assert status == 0, (tmp_path / "log").read_text()
    assert {address for _, address in seen if not is_loopback(address)} == set()
    names = " ".join(name for name, _ in seen)
    assert all(word in names for word in ("gcs_server", "raylet", "ray::ShardActor", "ray::RayTrainWorker")), names
    assert not (home / ".ray").exists()
    metrics = json.loads((tmp_path / "answer").read_text())["metrics"]
    for name in ("floor", "labels"):
        assert metrics[name] == {"ks_mean": small_run.metrics[name]["ks_mean"]}
    state = json.loads(sfg(tmp_path, "status", f"{s3_url}/ray", "--json").stdout)
    assert state["is_complete"]
    assert state["drivers"][0]["state"] == "ended"


@pytest.mark.long
@pytest.mark.slow
def test_labels_by_processes_of_this_machine_listen_nowhere(make_store):
    me, pairs, most, seen = psutil.Process(), make_store(), 0, set()
    others = me.children(recursive=True)  # what tests before this one started

    def look(event):
        nonlocal most
        workers = [each for each in me.children(recursive=True) if each not in others]
        most = max(most, len(workers))
        seen.update(*map(listeners, workers))

    label_with_processes(pairs.location.url, 2, LabelSettings(on_event=look))
    assert most >= 3  # a template and the two that it forks
    assert seen == set()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("words", [("plan",), ("label",), ("train",), ("run", "--overlap")], ids=" ".join)
def test_commands_without_ray_listen_nowhere(tmp_path, make_job, words):
    """The children of a calibration, and the fit beside labels, are joined by pipes."""
    job = make_job(
        output={"dir": str(tmp_path / "run")}, executor={"kind": "inline"}, evaluate={"metrics": ["ks_mean"]},
        train={"num_epochs": 1, "num_threads": 1},
    )  # fmt: skip
    (tmp_path / "job.toml").write_text(job.to_toml())
    environment = {**os.environ, "PYTHONPATH": PACKAGE_ROOT}
    command = [sys.executable, "-m", "sfg_dist", words[0], "job.toml", *words[1:]]
    if words[0] == "train":
        sfg(tmp_path, "label", "job.toml")
    status, seen, most = watched(command, tmp_path, environment, tmp_path, every_s=0.2)
    assert status == 0, (tmp_path / "log").read_text()
    assert seen == set()
    assert most >= 2 or words in (("label",), ("train",)), most


EARLY = """
import json, os, ray
from ray._private import services
from ray._raylet import AuthenticationTokenLoader, get_authentication_mode
from sfg_dist.distributed.cluster import local_environment
def look():
    token = AuthenticationTokenLoader.instance()
    return [services.resolve_ip_for_localhost("127.0.0.1"), str(get_authentication_mode()),
            token.has_token(ignore_auth_mode=True)]
before = look()
with local_environment():
    within = look()
print(json.dumps([before, within, look()]))
"""


@pytest.mark.slow
def test_where_ray_was_imported_first(tmp_path):
    """It takes the token and the addresses all the same, for the session alone, and writes no file of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": PACKAGE_ROOT, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", EARLY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == 0, done.stderr
    before, within, after = json.loads(done.stdout)
    assert within[0] == "127.0.0.1"
    assert within[1].endswith("1") or "TOKEN" in within[1]
    assert within[2]
    assert before == after
    assert not before[2]
    assert not (tmp_path / ".ray").exists()


def test_a_ray_that_cannot_be_told_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.delitem(sys.modules, "ray._raylet", raising=False)  # which another test may have brought
    before = dict(os.environ)
    with pytest.raises(ClusterError, match="Ray was imported before this session began"), cluster.local_environment():
        pass
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", [cluster.MANY_MACHINES, "GLOO_SOCKET_IFNAME"])
def test_the_user_may_ask_for_more(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with cluster.local_environment():
        assert os.environ[name] == "1"
        assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(("host", "is_alone"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_a_cluster_on_loopback_alone_is_joined_there(monkeypatch, host, is_alone):
    """Ray would look for it at the machine's own address, and wait for minutes."""
    monkeypatch.delenv(cluster.MANY_MACHINES, raising=False)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.2")
    with socket.create_server((host, 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        seen = []
        monkeypatch.setattr("ray.init", lambda **_: seen.append(os.environ.get(cluster.MANY_MACHINES)))
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        monkeypatch.setattr("ray.shutdown", lambda: None)
        with cluster.ray_session(address):
            pass
    assert seen == ["0" if is_alone else None]
    assert cluster.MANY_MACHINES not in os.environ
    with (
        pytest.raises(ClusterError, match=f"{address} cannot be reached .nothing listens at port"),
        cluster.ray_session(address),
    ):
        pass


# The directory of a local Ray.


@pytest.fixture
def base(tmp_path, monkeypatch):
    place = tmp_path / "d"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(cluster, "MAX_BASE", len(str(place)))
    return place


@pytest.mark.parametrize(("mode", "is_taken"), [(0o700, True), (0o1777, True), (0o777, False), (0o770, False)])
def test_a_place_where_others_can_move_sockets_is_not_taken(base, mode, is_taken):
    base.chmod(mode)
    before = os.umask(0)
    try:
        with cluster.session_directory() as folder:
            assert (folder.parent == base) is is_taken
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_place_of_another_user_is_not_taken(base):
    os.chown(base, 12345, -1)
    with cluster.session_directory() as folder:
        assert folder.parent != base


def test_the_directory_goes_after_a_failure_too(base):
    session = cluster.session_directory()
    (session.__enter__() / "r").mkdir(mode=0o777)
    assert list(base.iterdir())
    assert not session.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not list(base.iterdir())


# Several machines.


@pytest.mark.parametrize(("nodes", "said"), [("1", "0"), ("2", "1"), (None, "1")])
def test_nodes_of_slurm_are_reached_and_one_node_is_not(tmp_path, monkeypatch, nodes, said):
    """Whatever the submitting shell had."""
    given = {"SLURM_JOB_ID": "5", slurm_task.MANY_MACHINES: "1" if nodes == "1" else "0"}
    if nodes is not None:
        given["SLURM_JOB_NUM_NODES"] = nodes
    task = SlurmTask(tmp_path, {
        "root": str(tmp_path), "jobs": ["0.toml"], "outputs": ["x"], "stages": [["label", "{job}"]], "needs_ray": True,
        "environment": {}, "container_prefixes": ["APPTAINERENV_"], "sfg": ["sfg"], "ray": ["ray"],
        "python": [sys.executable], "cpus_per_node": 1, "gpus_per_node": 0, "signal_before_s": 180,
    }, given)  # fmt: skip
    found, words = {}, []
    monkeypatch.setattr(task, "_nodes", lambda: ["n1", "n2"][: int(nodes or 2)])
    monkeypatch.setattr(slurm_task, "_address_of", lambda *_: "10.0.0.1")
    monkeypatch.setattr(slurm_task, "_answers", lambda *_: True)
    monkeypatch.setattr(slurm_task, "_read", lambda _: "Ray runtime started")
    monkeypatch.setattr(task, "_on_nodes", lambda *_: {})
    monkeypatch.setattr(task, "_wait_for_nodes", lambda *_: None)
    running = types.SimpleNamespace(poll=lambda: None)

    def step(node, name, arguments, environment):
        words.extend(arguments)
        return running, tmp_path

    monkeypatch.setattr(task, "_step", step)
    monkeypatch.setattr(task, "_run_driver", lambda command, environment: found.update(environment) or 0)
    assert task._run_stages(tmp_path) == 0
    assert found[slurm_task.MANY_MACHINES] == found[f"APPTAINERENV_{slurm_task.MANY_MACHINES}"] == said
    assert f"--node-ip-address={'127.0.0.1' if nodes == '1' else '10.0.0.1'}" in words


def test_a_nodes_directory_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "planted").symlink_to(tmp_path / "other")
    for name, status in (("planted", 1), ("new", 0), ("new", 0)):
        command = ["sh", "-c", MAKE, "sh", "", "", str(tmp_path / name)]
        assert subprocess.run(command, capture_output=True).returncode == status
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_the_names_are_those_of_the_package():
    assert (slurm_task.LOOPBACK, slurm_task.MANY_MACHINES) == (cluster.LOOPBACK, cluster.MANY_MACHINES)
    assert repr(cluster.MANY_MACHINES).strip("'") in SMOKE.read_text()


# The check of a site.


@pytest.fixture
def smoke():
    return runpy.run_path(str(SMOKE))


def test_the_token_of_a_sites_check_is_read_by_nobody_else(smoke, tmp_path):
    before = os.umask(0)
    try:
        folder = tmp_path / "shared" / ".sfg-smoke-1"
        smoke["own_folder"](folder)
        smoke["own_folder"](folder)  # another node
        meeting = smoke["Meeting"](folder, 0, 1)
        meeting.say("ray", {"token": "x"})
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert meeting.hear("ray", 0) == {"token": "x"}


@pytest.mark.parametrize("kind", ["open", "link", "file", "another's"])
def test_a_planted_meeting_place_is_refused(smoke, tmp_path, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.touch(mode=0o700)
    elif kind == "link":
        (tmp_path / "other").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "other")
    else:
        place.mkdir(mode=0o700)
    if kind == "open":
        place.chmod(0o777)
    if kind == "another's":
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        os.chown(place, 12345, -1)
    with pytest.raises(OSError, match="not a directory of this user alone"):
        smoke["own_folder"](place)
