"""Faults with real processes: stopped actors, memory that runs out, signals, a node that leaves, a mixed fleet."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from machines import on_cpus
from patience import patience

from sfg_dist.distributed.labels import ray_pool
from sfg_dist.distributed.labels.actors import label_with_actors
from sfg_dist.distributed.labels.driver import Driver
from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.distributed.labels.labeler import ShardLabeler
from sfg_dist.distributed.labels.pool import Answered, Policy, Result
from sfg_dist.distributed.labels.ray_pool import ActorProcess, RayPool, Role
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.distributed.labels.shards import Shards
from sfg_dist.job.errors import LabelingError, NonFiniteLabelError
from sfg_dist.store import open_pairs


class StoppedLabeler(ShardLabeler):
    """Stops at its first attempt at shard 3; notes its process."""

    def label(self, shard, attempt=1):
        (self.pairs.location.root.parent / f"pid_{os.getpid()}").touch()
        if shard == 3 and attempt == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().label(shard, attempt)


def seen_pids(pairs):
    return {int(file.name[4:]) for file in pairs.location.root.parent.glob("pid_*")}


def test_answers_come_in_the_order_of_the_calls_in_whatever_order_ray_tells_of_them():
    futures = [Future() for _ in range(3)]
    label = iter(futures)
    handle = SimpleNamespace(label=SimpleNamespace(remote=lambda _: SimpleNamespace(future=lambda: next(label))))
    pool = RayPool("nowhere", ShardLabeler, {}, {})
    pool._actors["a"] = ray_pool._Actor(handle, [])
    for shard in range(3):
        pool.submit("a", [(shard, 1)])
    answers = [[Result(shard, 0.1)] for shard in range(3)]
    futures[1].set_result(answers[1])
    assert pool.wait(0.0) == []
    futures[0].set_result(answers[0])
    assert pool.wait(0.0) == [Answered("a", answers[0]), Answered("a", answers[1])]
    futures[2].set_result(answers[2])
    assert pool.wait(0.0) == [Answered("a", answers[2])]


def test_a_process_that_is_still_there_when_its_time_is_over_is_killed():
    """Ray mostly ends a stopped process itself; this is for where it does not."""
    pool = RayPool("nowhere", ShardLabeler, {}, {})
    with subprocess.Popen(["sleep", "600"]) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        created = psutil.Process(stopped.pid).create_time()
        pool._ending.append(
            (time.monotonic() - 0.001, ActorProcess("node", socket.gethostname(), stopped.pid, created))
        )
        assert pool.wait(0) == []
        try:
            assert stopped.wait(patience(10)) == -signal.SIGKILL
        finally:
            stopped.kill()


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_actor_is_found_ended_and_replaced(ray_cluster, make_store, store_bytes, inline_store, events):
    pairs = make_store("ray")
    timeout_s = patience(4.0)
    settings = LabelSettings(labeler=StoppedLabeler, policy=Policy(shard_timeout_s=timeout_s), on_event=events)
    label_with_actors(pairs.location.url, on_cpus(num_actors=1), settings)
    assert store_bytes(pairs.location.url) == inline_store
    # On a machine with much else to do, a worker that only is slow may seem to hang as well.
    failed = next(entry for entry in events.of("attempt_failed") if entry["shard"] == 3)
    assert f"no answer within {timeout_s:.3g} s" in failed["reason"]
    assert len(seen_pids(pairs)) >= 2
    stopped = {details["worker"]: details["pid"] for details in events.of("worker_started")}[failed["worker"]]
    assert not psutil.pid_exists(stopped) or psutil.Process(stopped).status() == psutil.STATUS_ZOMBIE


class GroupLabeler(ShardLabeler):
    """Asks each member of its group which part it holds."""

    def __init__(self, url, *, num_threads=1, members=()):
        super().__init__(url, num_threads=num_threads)
        self.members = members

    def label(self, shard, attempt=1):
        import ray

        parts = ray.get([member.which.remote() for member in self.members])
        return super().label(shard, attempt) | {"parts": parts}


class Member:
    """A part of a reference; one ends or stops itself when it is asked for the third time, and leaves its id."""

    def __init__(self, url, part, num_parts, *, num_threads=1):
        self.directory, self.part, self.num_parts, self.calls = Path(url).parent, part, num_parts, 0

    def which(self):
        self.calls += 1
        file = self.directory / "member"
        if self.calls == 3 and not file.exists():
            file.write_text(str(os.getpid()))
            os.kill(os.getpid(), getattr(signal, (self.directory / "fault").read_text()))
        return [self.part, self.num_parts]


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
def test_a_group_is_lost_and_replaced_as_one(ray_cluster, make_store, store_bytes, inline_store, events, fault):
    pairs = make_store("ray")
    (pairs.location.root.parent / "fault").write_text(fault)
    pool = RayPool(
        pairs.location.url, GroupLabeler, {"cpu": Role(1, 0.0)}, {"num_threads": 1}, actors_per_group=2, member=Member
    )
    policy = Policy(shard_timeout_s=patience(6.0))
    Driver(Shards(pairs), pool, {"cpu": 1}, total=8, on_event=events, policy=policy).run()
    pool.close()
    member = int((pairs.location.root.parent / "member").read_text())
    assert not psutil.pid_exists(member) or psutil.Process(member).status() == psutil.STATUS_ZOMBIE
    assert store_bytes(pairs.location.url) == inline_store
    assert [record["parts"] for record in events.records] == [[[0, 2], [1, 2]]] * 8
    assert {details["kind"] for details in events.of("worker_started")} == {"2 x cpu"}
    assert len(events.of("worker_started")) == 2
    assert len(events.of("attempt_failed")) == 1


@pytest.mark.slow
def test_the_inline_executor_tries_again_and_keeps_every_reason(make_store, store_bytes, inline_store, events):
    class Flaky(ShardLabeler):
        def label(self, shard, attempt=1):
            if shard == 2 and attempt < 3:
                raise RuntimeError(f"attempt {attempt} of {shard}")
            return super().label(shard, attempt)

    pairs = make_store("again")
    label_inline(pairs.location.url, LabelSettings(labeler=Flaky, on_event=events))
    assert store_bytes(pairs.location.url) == inline_store
    assert [entry["reason"] for entry in events.of("attempt_failed")] == [
        "RuntimeError: attempt 1 of 2", "RuntimeError: attempt 2 of 2"
    ]  # fmt: skip
    pairs = make_store("never")
    with pytest.raises(LabelingError, match=r"2\. on inline-1: RuntimeError: attempt 2 of 2") as caught:
        label_inline(pairs.location.url, LabelSettings(labeler=Flaky, policy=Policy(max_attempts=2)))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert pairs.pending() == [2]


def test_not_finite_inline_stays_that_error(make_store):
    class Broken(ShardLabeler):
        def label(self, shard, attempt=1):
            raise NonFiniteLabelError(f"shard {shard}: row 130 has no finite end point")

    pairs = make_store()
    with pytest.raises(NonFiniteLabelError, match="shard 2 was given up after 4 attempts"):
        label_inline(pairs.location.url, LabelSettings(labeler=Broken))
    assert pairs.committed() == set()


@pytest.mark.slow
def test_an_inline_shard_that_ends_soon_is_finished_after_a_signal(make_store, events):
    class Signalled(ShardLabeler):
        def label(self, shard, attempt=1):
            if shard == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().label(shard, attempt)

    pairs = make_store()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        label_inline(pairs.location.url, LabelSettings(labeler=Signalled, on_event=events))
    assert signal.getsignal(signal.SIGTERM) is before
    assert {0, 1, 2, 3, 4} <= pairs.committed()
    assert 7 in pairs.pending()
    assert events.of("stopping") == [{"reason": "SIGTERM"}]
    label_inline(pairs.location.url)
    assert pairs.is_complete


@pytest.mark.slow
def test_an_inline_shard_that_takes_longer_than_the_grace_is_dropped(make_store):
    class Endless(ShardLabeler):
        def label(self, shard, attempt=1):
            if shard == 1:
                os.kill(os.getpid(), signal.SIGUSR2)
                while True:
                    time.sleep(0.01)
            return super().label(shard, attempt)

    pairs = make_store()
    with pytest.raises(KeyboardInterrupt):
        label_inline(pairs.location.url, LabelSettings(labeler=Endless, policy=Policy(notice_s=0.5)))
    assert pairs.committed() == {0}


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
def test_usr2_ends_a_run_on_ray_quietly_and_its_events_are_whole(make_job, tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(make_job(labels={"num_pairs": 400_000}, executor={"kind": "ray", "num_actors": 2}).to_toml())
    command = [sys.executable, "-m", "sfg_dist", "label", str(path)]
    commits = tmp_path / "run" / "pairs.zarr" / "commits"
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
        deadline = time.monotonic() + patience(120)
        while len(list(commits.glob("*.json"))) < 20:
            assert time.monotonic() < deadline
            assert driver.poll() is None, driver.stdout.read()
            time.sleep(0.01)
        driver.send_signal(signal.SIGUSR2)
        told, _ = driver.communicate(timeout=patience(120))
    assert driver.returncode == 130
    assert b"run the same command again" in told
    assert b"raylet" not in told  # as Ray begins when it takes an ended actor for a crashed one
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    told = {line["shard"] for line in lines if line["event"] == "shard"}
    assert told == open_pairs(tmp_path / "run").committed()


NODE_LEAVES = """
import json, sys, time
from sfg_dist.distributed.cluster import local_environment

with local_environment():
    import ray
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2
    from ray._raylet import GcsClient
    from sfg_dist.distributed.labels.actors import label_with_actors
    from sfg_dist.distributed.labels.settings import LabelSettings
    from sfg_dist.job.config import ExecutorConfig

    head = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    events, drained = [], []

    class Slow:
        def __init__(self, url, *, num_threads=1):
            import ray
            from sfg_dist.distributed.labels.labeler import ShardLabeler
            self.labeler, self.node = ShardLabeler(url), ray.get_runtime_context().get_node_id()

        def label(self, shard, attempt=1):
            time.sleep(2.5)
            return self.labeler.label(shard, attempt) | {"node": self.node}

    def on_event(event):
        events.append([event.name, dict(event.details())])
        if event.name == "shard" and event.record["node"] == node.node_id and not drained:
            reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            until = int((time.time() + 60) * 1000)
            drained.append(GcsClient(address=cluster.address).drain_node(node.node_id, reason, "spot", until))

    label_with_actors(sys.argv[1], ExecutorConfig(num_actors=2), LabelSettings(labeler=Slow, on_event=on_event))
    print(json.dumps({"node": node.node_id, "drained": drained, "events": events}))
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_is_preempted_finishes_its_shard_and_gets_no_more(make_store, store_bytes, inline_store):
    pairs = make_store("drained")
    done = subprocess.run(
        [sys.executable, "-c", NODE_LEAVES, pairs.location.url], capture_output=True, text=True, timeout=patience(300)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    names = [event for event, _ in told["events"]]
    assert told["drained"][0][0] is True
    (notice,) = [details for event, details in told["events"] if event == "draining"]
    assert notice["node"] == told["node"]
    assert notice["deadline"] - time.time() + 60 > 20
    assert "attempt_failed" not in names
    assert store_bytes(pairs.location.url) == inline_store
