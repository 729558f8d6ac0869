"""The driver's own loop over simulated workers, against what can be worked out by hand."""

import dataclasses
import itertools

import pytest

from sfg_dist.studies.scale import simulated_cluster
from sfg_dist.studies.scale.simulated_cluster import Costs, Limits, simulate

COSTS = Costs(start_s=5.0, load_s=1.0, integrate_s=10.0, spread=0.0, write_s=0.5)


@pytest.fixture(autouse=True)
def steady_driver(monkeypatch):
    """A driver whose thread takes ten microseconds from look to look, however busy this machine is."""
    looks = itertools.count()
    monkeypatch.setattr(simulated_cluster, "_thread_time", lambda: 1e-5 * next(looks))


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (8, 1), (8, 2), (9, 4), (64, 64)])
def test_without_limits_the_time_is_start_plus_waves(shards, workers):
    outcome = simulate(shards, workers, COSTS)
    waves = -(-shards // workers)
    assert outcome.wall_s == pytest.approx(6.0 + waves * 10.5, abs=0.5)
    assert sum(outcome.parts_s.values()) == pytest.approx(min(shards, workers) * outcome.wall_s, rel=0.02)
    assert outcome.parts_s["integrate"] == pytest.approx(10.0 * shards)
    assert outcome.parts_s["start"] == pytest.approx(5.0 * min(workers, shards))


@pytest.mark.slow
def test_a_thousand_workers_are_served(monkeypatch):
    """In the time that the driver's loop takes in earnest."""
    monkeypatch.undo()
    outcome = simulate(10_240, 1024, COSTS)
    assert outcome.wall_s == pytest.approx(6.0 + 10 * 10.5, rel=0.1)
    assert 0 < outcome.driver_share < 1


def test_a_store_that_is_full_sets_the_pace():
    limits = Limits(store_bytes_per_s=1e6, shard_bytes=2e6)  # one shard in two seconds, whoever writes
    outcome = simulate(100, 50, COSTS, limits=limits)
    assert outcome.wall_s > 200
    assert outcome.store_share > 0.7
    assert outcome.limit == "store"


def test_requests_are_a_limit_of_their_own():
    limits = Limits(store_requests_per_s=4.0, requests_a_shard=8.0)
    assert simulate(50, 50, COSTS, limits=limits).wall_s > 100


def test_short_shards_meet_the_driver():
    fast = dataclasses.replace(COSTS, start_s=0.1, load_s=0.0, integrate_s=0.02, write_s=0.0, driver_s=0.005)
    outcome = simulate(4000, 200, fast)
    assert outcome.limit == "driver"
    assert outcome.wall_s > 0.9 * 4000 * 0.005  # the driver's work for the last answers is after the last commit


def test_loads_share_the_store():
    limits = Limits(store_bytes_per_s=1e6, load_bytes=1e6)  # a second each, one after the other
    assert simulate(20, 20, COSTS, limits=limits).wall_s > 20 + 10


def test_a_spread_leaves_the_last_ones_waiting_and_is_seeded():
    uneven = dataclasses.replace(COSTS, spread=0.5)
    first, again, other = (simulate(40, 20, uneven, seed=seed) for seed in (1, 1, 2))
    assert first.wall_s == pytest.approx(again.wall_s, rel=1e-9)
    assert first.wall_s != pytest.approx(other.wall_s, rel=1e-4)
    assert first.parts_s["wait"] > 20.0


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_run_of_weeks_takes_seconds_here():
    """A store far below what the shards need: a loop that looked twice a simulated second would look for minutes."""
    limits = Limits(store_bytes_per_s=1e3, shard_bytes=2e6)
    outcome = simulate(500, 20, COSTS, limits=limits)
    assert outcome.wall_s >= 500 * 2000.0  # more: some shards wait so long that they are taken to hang
    assert outcome.limit == "store"


def test_a_call_begins_no_earlier_than_it_is_sent():
    """The driver is busy for a while with each answer; its workers are idle meanwhile, and it is the driver's doing."""
    slow = dataclasses.replace(COSTS, integrate_s=1.0, write_s=0.0, driver_s=0.05)
    outcome = simulate(1000, 100, slow)
    assert outcome.wall_s >= 1000 * 0.05
    assert outcome.parts_s["driver"] > 0.5 * (100 * outcome.wall_s - outcome.parts_s["integrate"] - 600)


def test_a_slow_link_is_not_the_store_s_fault():
    limits = Limits(worker_bytes_per_s=1e6, shard_bytes=20e6)
    outcome = simulate(100, 10, COSTS, limits=limits)
    assert outcome.parts_s["store"] == 0
    assert outcome.limit == "a worker's link"


def test_when_workers_are_ready():
    assert simulate(40, 10, COSTS).ready_s == pytest.approx(6.0, abs=0.1)
    limits = Limits(starts_per_s=1.0)
    assert simulate(40, 10, COSTS, limits=limits).ready_s == pytest.approx(6.0 + 5.5, abs=0.2)
