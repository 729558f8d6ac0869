"""Labels by processes of this machine, without Ray: the same bits, and no fault of one process ends a run."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from labelers import Hanging, Meeting, Refusing, Troubled, Unhurried
from patience import patience

from sfg_dist.distributed.labels import choice, process_pool
from sfg_dist.distributed.labels.inline import label_inline, label_with_processes
from sfg_dist.distributed.labels.label import Means, label_pending
from sfg_dist.distributed.labels.pool import Policy
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.distributed.labels.shards import Maker
from sfg_dist.job.config import ExecutorConfig
from sfg_dist.job.errors import ClusterError, NonFiniteLabelError

CLUSTERS = {
    "data": {"source": "moons", "max_rows": 6000},
    "labels": {"num_pairs": 256, "shard_rows": 64, "batch_size": 64, "num_evaluations": 20, "t_min": 1e-3},
}


@pytest.mark.slow
@pytest.mark.parametrize("forks", [True, False])
def test_processes_give_the_bits_of_one_process(make_store, store_bytes, inline_store, events, monkeypatch, forks):
    """Forked from a template, or each started by itself where a fork is not safe."""
    monkeypatch.setattr(process_pool, "FORKS", forks)
    pairs = make_store("processes")
    label_with_processes(pairs.location.url, 2, LabelSettings(labeler=Meeting, on_event=events))
    assert store_bytes(pairs.location.url) == inline_store
    assert len({started["pid"] for started in events.of("worker_started")} - {os.getpid()}) == 2


@pytest.mark.long
@pytest.mark.slow
def test_processes_give_the_bits_of_one_process_over_clusters(make_store, store_bytes):
    alone, pairs = make_store("alone", **CLUSTERS), make_store("processes", **CLUSTERS)
    label_inline(alone.location.url)
    label_with_processes(pairs.location.url, 2)
    assert store_bytes(pairs.location.url) == store_bytes(alone.location.url)


@pytest.mark.slow
def test_a_process_that_fails_or_dies_costs_its_shard_an_attempt(make_store, store_bytes, inline_store, events):
    pairs = make_store("troubled")
    settings = LabelSettings(labeler=Troubled, on_event=events, policy=Policy(full_wait_s=1.0))
    with pytest.raises(NonFiniteLabelError, match="shard 1 was given up after 4 attempts"):
        label_with_processes(pairs.location.url, 2, settings)
    assert pairs.pending() == [1]
    reasons = {entry["shard"]: entry["reason"] for entry in events.of("attempt_failed")}
    assert reasons[3] == "no space left on the device"
    assert reasons[5] == "the worker was lost: its process died: killed, out of memory, or crashed"
    assert len(events.of("worker_lost")) == 1
    label_with_processes(pairs.location.url, 1)
    assert store_bytes(pairs.location.url) == inline_store
    assert not [child for child in psutil.Process().children() if "worker_process" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_process_that_hangs_can_be_killed(make_store):
    url = make_store("hanging").location.url
    pool, deadline = process_pool.ProcessPool(Maker(Hanging, url, {})), time.monotonic() + patience(60)
    worker = pool.start("process")
    while not (ready := pool.wait(1.0)):
        assert time.monotonic() < deadline
    pool.submit(worker, [(0, 1)])
    while not (Path(url).parent / "hangs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pool.kill(worker)
    pool.close()
    assert not psutil.pid_exists(ready[0].info.pid)


@pytest.mark.long
@pytest.mark.slow
def test_a_stop_ends_the_processes_and_the_same_call_goes_on(make_store, store_bytes, inline_store, events):
    pairs = make_store("stopped")

    def stop(event):
        events(event)
        if event.name == "shard" and event.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    settings = LabelSettings(labeler=Unhurried, on_event=stop, policy=Policy(grace_s=patience(5)))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        label_with_processes(pairs.location.url, 2, settings)
    assert signal.getsignal(signal.SIGTERM) is before
    assert 2 <= len(pairs.committed()) < 8
    label_with_processes(pairs.location.url, 2)
    assert store_bytes(pairs.location.url) == inline_store


KILLED = """
import sys
from labelers import Unhurried
from sfg_dist.distributed.labels.inline import label_with_processes
from sfg_dist.distributed.labels.settings import LabelSettings
label_with_processes(sys.argv[1], 2, LabelSettings(labeler=Unhurried))
"""


@pytest.mark.long
@pytest.mark.slow
def test_processes_end_with_a_driver_that_is_killed(make_store):
    pairs = make_store("killed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    folder, deadline = pairs.location.root.parent, time.monotonic() + patience(60)
    with subprocess.Popen([sys.executable, "-c", KILLED, pairs.location.url], env=environment) as driver:
        while len(list(folder.glob("pid_*"))) < 2:
            assert time.monotonic() < deadline
            assert driver.poll() is None
            time.sleep(0.02)
        driver.kill()
    pids = [int(file.name.removeprefix("pid_")) for file in folder.glob("pid_*")]
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_labeler_that_cannot_be_made_is_the_error_of_the_run(make_store):
    pairs = make_store("refused")
    with pytest.raises(NonFiniteLabelError, match=r"pairs\.zarr is refused"):
        label_with_processes(pairs.location.url, 2, LabelSettings(labeler=Refusing))


def test_processes_that_do_not_start_are_told_of_with_their_last_words(make_store, monkeypatch):
    monkeypatch.setattr(
        process_pool, "python_command", lambda *_: [sys.executable, "-c", "raise SystemExit('a library is missing')"]
    )
    pairs = make_store("none")
    with pytest.raises(ClusterError, match=r"3 workers were lost .* because: a library is missing"):
        label_with_processes(pairs.location.url, 2)
    assert pairs.committed() == set()


def test_a_machine_that_starts_no_process_is_told_of(make_store, make_job, monkeypatch):
    def fail(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(process_pool.subprocess, "Popen", fail)
    monkeypatch.setattr(process_pool, "EARLY_EVALUATIONS", 0)
    with process_pool.early_template(make_job(executor={"kind": "auto"}), overlap=False, is_needed=True) as template:
        assert template is None
    with pytest.raises(ClusterError, match=r"no process can be started on this machine: .*temporarily unavailable"):
        label_with_processes(make_store("none").location.url, 2)


@pytest.mark.slow
def test_a_template_that_was_killed_is_replaced(make_store, store_bytes, inline_store, events):
    pairs, template = make_store("replaced"), process_pool.Template()
    template._process.kill()
    template._process.wait()
    label_with_processes(pairs.location.url, 1, LabelSettings(on_event=events), template=template)
    assert store_bytes(pairs.location.url) == inline_store
    assert events.of("worker_lost") == []


@pytest.mark.slow
@pytest.mark.parametrize(("start_s", "who"), [(1e6, 0), (-1.0, 2)])
def test_the_choice_is_made_by_the_rate_and_told(
    make_store, store_bytes, inline_store, events, monkeypatch, start_s, who
):
    monkeypatch.setattr(choice, "PROCESS_START_S", start_s)
    monkeypatch.setattr(choice, "FEW_NUMBERS", 0)
    pairs = make_store("chosen")
    label_pending(pairs, ExecutorConfig(), LabelSettings(on_event=events), Means())
    assert store_bytes(pairs.location.url) == inline_store
    (chosen,) = events.of("executor")
    assert (chosen["stage"], chosen["executor"], chosen["num_processes"]) == ("label", "inline", who)
    assert chosen["words"].startswith("about ")
    assert chosen["words"].endswith("done before Ray would have started; --executor ray takes Ray")
    assert ({record["pid"] for record in events.records} == {os.getpid()}) is (who == 0)


@pytest.mark.slow
def test_threads_of_the_process_are_none_when_it_forks():
    """A fork of a process with threads can find a lock held for ever; warnings of Python would say so too."""
    template = process_pool.Template()
    try:
        connection = template.start()
        pid = connection.recv()
        assert psutil.Process(pid).parent().num_threads() == 1
        assert template.last_words() == ""
    finally:
        template.close()
    assert threading.active_count() >= 1
