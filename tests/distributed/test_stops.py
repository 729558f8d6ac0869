"""A run that is stopped again and again ends with the bytes of one that never was."""

import subprocess
import sys

import pytest
from patience import patience

from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.store import verify

STOPPED_RUNS = """
import contextlib, functools, itertools, os, random, signal, sys, threading, time

from sfg_dist.distributed.labels.actors import label_with_actors
from sfg_dist.distributed.cluster import ray_session
from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.distributed.labels.labeler import ShardLabeler
from sfg_dist.distributed.labels.pool import Policy
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.job.config import ExecutorConfig
from sfg_dist.store import open_pairs, sweep_partials

url, executor, num_stops = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(0)
cpus = ExecutorConfig(num_actors=2).model_copy(update={"num_gpus_per_actor": 0})


class Unhurried(ShardLabeler):
    def label(self, shard, attempt=1):
        time.sleep(0.04)  # else all would be done before the last stop
        return super().label(shard, attempt)


def stopped_run(label, grace_s, number):
    shards, delay = chance.randrange(4), chance.uniform(0, 0.05)
    is_sent = []

    def on_event(event):
        seen[event.name] = seen.get(event.name, 0) + 1
        if event.name in ("worker_started", "shard") and seen.get("shard", 0) >= shards and not is_sent:
            is_sent.append(True)
            threading.Timer(delay, os.kill, (os.getpid(), number)).start()

    seen = {}
    try:
        policy = Policy(grace_s=grace_s, notice_s=grace_s)
        label(LabelSettings(labeler=Unhurried, on_event=on_event, policy=policy))
    except KeyboardInterrupt as stop:
        return str(stop)
    return "ended"


signals = (signal.SIGTERM, signal.SIGUSR2)
for number in signals:
    signal.signal(number, lambda *_: None)  # one that comes when the run is over already
# With no grace at all a shard is dropped wherever it is, in the middle of its commit too.
kinds = itertools.islice(zip(itertools.cycle([0.001, 0.03, 5.0]), itertools.cycle(signals)), num_stops)
with ray_session() if executor == "ray" else contextlib.nullcontext():
    label = functools.partial(label_inline, url)
    if executor == "ray":
        label = functools.partial(label_with_actors, url, cpus)
    print(*[stopped_run(label, *kind) for kind in kinds])
    label()
sweep_partials(open_pairs(url))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("executor", "num_stops", "num_shards"),
    [
        pytest.param("inline", 12, 96, marks=pytest.mark.slow),
        pytest.param("ray", 3, 72, marks=(pytest.mark.chaos, pytest.mark.ray, pytest.mark.slow)),
    ],
)
def test_a_run_stopped_again_and_again_ends_as_one_that_never_was(
    make_store, store_bytes, executor, num_stops, num_shards
):
    labels = {"num_pairs": num_shards * 16 - 5, "shard_rows": 16, "batch_size": 16}
    pairs, undisturbed = make_store("stopped", labels=labels), make_store("undisturbed", labels=labels)
    label_inline(undisturbed.location.url)
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_RUNS, pairs.location.url, executor, str(num_stops)],
        capture_output=True,
        text=True,
        timeout=patience(500),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = done.stdout.split()
    assert len(ends) == num_stops
    assert set(ends) <= {"SIGTERM", "SIGUSR2"}, "a run was over before it was stopped"
    assert store_bytes(pairs.location.url) == store_bytes(undisturbed.location.url)
    report = verify(pairs)
    assert report.is_clean, report.findings
    assert not report.pending
