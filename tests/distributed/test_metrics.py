"""What a labelling run tells Prometheus: recorded always, served where Ray's agent is installed."""

import importlib.util
import time
import urllib.request
from dataclasses import replace

import pytest
from patience import patience
from scripted import Fate, Run
from told import failed, snapshot, worker

from sfg_dist.distributed.labels.driver import Driver
from sfg_dist.distributed.labels.events import Backup, Draining, ShardDone, WorkerLost
from sfg_dist.distributed.labels.metrics import STATES, LabelMetrics

RECORD = {
    "shard": 3,
    "rows": [384, 512],
    "device": "NVIDIA H100",
    "seconds": 2.5,
    "evaluations": 28.0,
    "tolerance_reached": 3e-4,
}
SNAPSHOT = snapshot(rows_per_s=51.2, workers=(worker(), worker(worker="gpu-2"), worker(worker="gpu-3", state="idle")))
EVENTS = [
    ShardDone(4, 8, RECORD, 3.0),
    ShardDone(5, 8, RECORD | {"tolerance_reached": 1e-4}),
    failed(error="NonFiniteLabelError", reason="nan"),
    WorkerLost("gpu-1", "killed"),
    Backup(6, "gpu-2"),
    Draining("n", None),
]


def tell(metrics):
    for event in EVENTS:
        metrics.event(event)
    metrics.snapshot(SNAPSHOT)


class Recorded:
    """Stands for one of Ray's metrics, and keeps what it is told."""

    kept: dict = {}  # noqa: RUF012  (shared by all, as Ray's are)

    def __init__(self, name, description="", boundaries=None, tag_keys=()):
        assert description
        self.name, self.tag_keys = name, set(tag_keys)

    def inc(self, value, tags):
        assert value > 0
        key = self._key(tags)
        self.kept[key] = self.kept.get(key, 0) + value

    def set(self, value, tags):
        self.kept[self._key(tags)] = value

    def observe(self, value, tags):
        self.kept.setdefault(self._key(tags), []).append(value)

    def _key(self, tags):
        assert set(tags) == self.tag_keys
        return (self.name, *(value for key, value in sorted(tags.items()) if key != "store"))


@pytest.fixture
def recorded(monkeypatch):
    import ray.util.metrics

    for name in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(ray.util.metrics, name, Recorded)
    monkeypatch.setattr(Recorded, "kept", {})
    return Recorded.kept


def test_events_are_counted(recorded):
    tell(LabelMetrics("s3://bucket/pairs.zarr"))
    device = "NVIDIA H100"
    assert recorded["sfg_shards_done",] == 5
    assert recorded["sfg_shards",] == 8
    assert recorded["sfg_shards_labelled", device] == 2
    assert recorded["sfg_rows_labelled", device] == 256
    assert recorded["sfg_evaluations", device] == 256 * 28
    assert recorded["sfg_integration_seconds", device] == 5.0
    assert recorded["sfg_integrate_seconds", device] == [2.5, 2.5]
    assert recorded["sfg_write_seconds", device] == [0.5]
    assert recorded["sfg_tolerance_reached",] == 3e-4
    assert recorded["sfg_attempts_failed", "retry", "NonFiniteLabelError"] == 1
    assert recorded["sfg_workers_lost",] == recorded["sfg_backups",] == 1
    assert [recorded["sfg_workers", state] for state in STATES] == [0, 1, 2, 0]
    assert recorded["sfg_rows_per_second",] == 51.2


def test_the_driver_tells_how_long_a_shard_took_to_be_written(recorded):
    """The seconds of the whole task come from the driver, those of the integration from the record."""
    run = Run(4, fate=lambda *_: Fate(seconds=2.0))
    metrics = LabelMetrics("store")
    run.driver = Driver(
        run.store,
        run.pool,
        {"cpu": 2},
        total=4,
        on_event=lambda event: metrics.event(
            replace(event, record=RECORD | {"seconds": 1.25}) if isinstance(event, ShardDone) else event
        ),
    )
    run.go()
    assert recorded["sfg_write_seconds", "NVIDIA H100"] == [0.75] * 4


def test_a_run_that_has_ended_has_no_workers(recorded):
    metrics = LabelMetrics("store")
    tell(metrics)
    metrics.snapshot(replace(SNAPSHOT, is_running=False))
    assert [recorded["sfg_workers", state] for state in STATES] == [0, 0, 0, 0]


@pytest.mark.ray
def test_ray_takes_them_without_an_agent(ray_cluster):
    """Names, labels and values are such as Ray accepts."""
    tell(LabelMetrics("store"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("prometheus_client", "opencensus", "aiohttp")),
    reason="Ray's metrics agent is not installed: pip install 'sfg_dist[cluster]'",
)
def test_prometheus_finds_them_on_ray_s_port(ray_cluster):
    import ray

    tell(LabelMetrics("scraped"))
    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + patience(120)  # Ray reports every few seconds
    lines = []
    while not any("ray_sfg_rows_labelled" in line for line in lines):
        assert time.monotonic() < deadline
        time.sleep(1)
        with opener.open(address, timeout=patience(30)) as answer:
            lines = [line for line in answer.read().decode().splitlines() if 'store="scraped"' in line]
    (rows,) = (line for line in lines if line.startswith("ray_sfg_rows_labelled"))
    assert 'device="NVIDIA H100"' in rows
    assert float(rows.rsplit(" ", 1)[1]) == 256
