"""The driver's loop over a scripted pool on a clock of its own: no Ray, no waiting, every order of events."""

import heapq
import itertools
import math
import re
from collections import Counter

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import FakePool, Fate, Run, fates

from sfg_dist.distributed.labels.pool import Drain, Policy
from sfg_dist.distributed.labels.workers import DriverId
from sfg_dist.job.errors import (
    ClusterError,
    ConflictError,
    LabelingError,
    NonFiniteLabelError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)

FAILURES = {
    "nan": NonFiniteLabelError("row 3 has no finite end point"),
    "memory": MemoryError(),
    "store": StoreError("reads back other bytes"),
    "slow store": StoreUnavailableError("503"),
    "conflict": ConflictError("other bytes"),
    "any": RuntimeError("what"),
}
fate_strategy = st.one_of(
    st.builds(Fate, st.just("done"), st.floats(0.001, 30.0)),
    st.builds(Fate, st.sampled_from(["die", "die_late", "hang"]), st.floats(0.001, 30.0)),
    st.builds(
        lambda name, seconds: Fate("fail", seconds, FAILURES[name]), st.sampled_from(sorted(FAILURES)), st.floats(0, 9)
    ),
)


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_every_shard_is_committed_once_or_given_up_with_its_reasons(data):
    num_shards = data.draw(st.integers(1, 20))
    table = {
        shard: data.draw(st.lists(fate_strategy, max_size=6))
        for shard in data.draw(st.sets(st.integers(0, num_shards - 1), max_size=6))
    }
    rest = data.draw(st.sampled_from([0.004, 1.0, 20.0]))
    scripted = fates(table)
    starts = data.draw(st.lists(st.one_of(st.floats(0.1, 20), st.just(RuntimeError("no GPU"))), max_size=6))
    policy = Policy(max_attempts=data.draw(st.integers(1, 4)), seed=data.draw(st.integers(0, 9)))
    run = Run(
        num_shards,
        roles={"gpu": data.draw(st.integers(1, 3)), "cpu": data.draw(st.integers(0, 2))},
        done=data.draw(st.sets(st.integers(0, num_shards - 1), max_size=num_shards - 1)),
        policy=policy,
        fate=lambda *task: fate if (fate := scripted(*task)).kind != "done" else Fate(seconds=rest),
        starts=starts,
    )
    before = set(run.store.records)
    for at in data.draw(st.lists(st.floats(0.5, 60.0), max_size=4)):
        run.pool.at(at, lambda: run.pool.workers and run.pool.lose(min(run.pool.workers)))
    error = None
    try:
        run.driver.run()
    except (ClusterError, LabelingError) as raised:
        error = raised
    if error is None:
        assert not run.store.pending()
    elif isinstance(error, ClusterError):
        names = {details["worker"] for details in run.of("worker_started")}
        assert sum(details["worker"] not in names for details in run.of("worker_lost")) >= 3
    else:
        given_up = {entry["shard"] for entry in run.of("attempt_failed") if entry["action"] == "give_up"}
        assert given_up
        named = re.findall(r"^shard (\d+) was given up", str(error), re.M)  # of more than three, the rest in one line
        named += re.findall(r"\d+", "".join(re.findall(r"^also given up: shards (.*)$", str(error), re.M)))
        assert set(map(int, named)) == given_up & set(run.store.pending())
        assert len(given_up) >= policy.max_given_up or set(run.store.pending()) <= given_up
    assert all(count == 1 for count in run.store.made.values())
    assert not before & set(run.store.made)
    seen = [shard for _, _, shard in run.progress]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(run.store.made)
    assert [done for done, _, _ in run.progress] == list(range(len(before) + 1, len(before) + 1 + len(seen)))
    charged = Counter(entry["shard"] for entry in run.of("attempt_failed"))
    assert all(count <= policy.max_attempts + 1 for count in charged.values())  # one more where a backup ran
    assert run.snapshots[-1].is_running is False
    assert run.snapshots[-1].done == len(before) + len(seen)
    assert not run.pool.workers, "a worker was left behind"


def test_a_worker_gets_its_first_shard_when_it_answers_and_holds_two():
    run = Run(7, starts=[1.0, 5.0], fate=lambda *_: Fate(seconds=3.0)).go()
    first = [(at - 1000, name) for at, name, _, _ in run.pool.log]
    assert first[:2] == [(1.0, "cpu-1")] * 2
    assert min(at for at, name in first if name == "cpu-2") == 5.0
    assert [details["seconds"] for details in run.of("worker_started")] == [1.0, 5.0]


def test_nothing_to_do_starts_nobody():
    run = Run(3, done=range(3)).go()
    assert run.pool.num_started == 0


def test_no_more_workers_than_shards():
    assert Run(2, roles={"gpu": 1, "cpu": 5}).go().pool.num_started == 2


@pytest.mark.parametrize("end", ["die", "die_late"])
def test_what_a_lost_worker_had_committed_counts_and_only_the_one_at_work_is_charged(end):
    run = Run(8, roles={"cpu": 1}, fate=fates({3: [Fate(end)]})).go()
    charged = 3 if end == "die" else 4  # after its commit, a worker is at the next one
    assert run.of("attempt_failed") == [
        {
            "shard": charged,
            "attempt": 1,
            "worker": "cpu-1",
            "reason": "the worker was lost: its process died",
            "error": "WorkerLost",
            "action": "retry",
        }
    ]
    attempts = {shard: attempt for _, _, shard, attempt in run.pool.log}
    assert attempts == {shard: 2 if shard == charged else 1 for shard in range(8)}
    handed = [shard for _, _, shard, _ in run.pool.log]
    assert handed.count(3) == (2 if end == "die" else 1)


def test_a_shard_given_up_keeps_the_others_and_every_reason():
    kinds = ["nan", "any", "slow store", "nan"]
    run = Run(6, fate=fates({2: [Fate("fail", 1.0, FAILURES[kind]) for kind in kinds]}))
    text = run.fails(NonFiniteLabelError, "shard 2 was given up after 4 attempts")
    assert run.store.pending() == [2]
    assert ["row 3" in text, "RuntimeError: what" in text, "503" in text] == [True] * 3
    assert "larger labels.t_min" in text
    assert [entry["action"] for entry in run.of("attempt_failed")] == ["retry"] * 3 + ["give_up"]


@pytest.mark.parametrize(("deaths", "is_given_up"), [(2, False), (99, True)])
def test_a_shard_that_takes_its_worker_down_is_tried_a_bounded_number_of_times(deaths, is_given_up):
    run = Run(8, roles={"cpu": 1}, fate=fates({3: [Fate("die")] * deaths}))
    if is_given_up:
        text = run.fails(LabelingError, "shard 3 was given up after 4 attempts")
        assert text.count("the worker was lost") == 4
        assert "smaller labels.batch_size" in text
    else:
        run.go()
    attempts = [attempt for _, _, shard, attempt in run.pool.log if shard == 3]
    assert attempts == ([1, 2, 3, 4] if is_given_up else [1, 2, 3])
    assert run.store.pending() == ([3] if is_given_up else [])  # the others are done all the same


def test_a_shard_goes_to_another_worker_after_it_failed():
    run = Run(6, fate=fates({0: [Fate("fail", 1.0, FAILURES["any"])]})).go()
    assert len({name for _, name, shard, _ in run.pool.log if shard == 0}) == 2


def test_a_conflict_goes_to_another_kind_of_worker():
    run = Run(6, roles={"gpu": 2, "cpu": 1}, fate=fates({0: [Fate("fail", 1.0, FAILURES["conflict"])]})).go()
    roles = [name.split("-")[0] for _, name, shard, _ in run.pool.log if shard == 0]
    assert set(roles) == {"gpu", "cpu"}
    assert run.of("attempt_failed")[0]["reason"] == "other bytes"


def test_three_shards_given_up_end_the_run():
    broken = lambda shard, attempt, worker: Fate("fail", 1.0, FAILURES["any"])  # noqa: E731
    run = Run(100, fate=broken, policy=Policy(max_attempts=2))
    text = run.fails(LabelingError, "RuntimeError: what")
    assert text.count("was given up after 2 attempts") == 3
    assert len(run.pool.log) < 14
    assert run.of("stopping") == [{"reason": "3 shards were given up"}]


def test_a_store_in_trouble_is_asked_again_after_growing_pauses():
    trouble = Fate("fail", 0.1, FAILURES["slow store"])
    run = Run(1, roles={"cpu": 1}, fate=fates({0: [trouble] * 3})).go()
    at = [when for when, *_ in run.pool.log]
    gaps = [later - earlier - 0.1 for earlier, later in itertools.pairwise(at)]
    for number, gap in enumerate(gaps):
        assert 0.5 * 2**number <= gap <= 1.5 * 2**number + 0.5


def test_a_full_disk_is_waited_for_and_charges_nobody():
    until = 1030.0
    run = Run(6)
    full = Fate("fail", 1.0, StoreFullError("no space left"))
    run.pool.fate = lambda *_: Fate() if run.pool.clock > until else full
    run.go()
    assert not run.store.pending()
    assert len(run.pool.log) < 30
    assert {entry["action"] for entry in run.of("attempt_failed")} == {"retry"}


def test_a_disk_that_stays_full_ends_the_run_after_a_minute():
    full = Fate("fail", 1.0, StoreFullError("no space left on the device"))
    run = Run(50, fate=lambda shard, *_: Fate() if shard < 3 else full)
    run.fails(StoreFullError, r"no space left on the device \(3 of 50 shards are kept; it waited 60 s")
    assert 60 < run.pool.clock - 1000 < 75


def test_a_shard_that_hangs_is_found_by_the_median_and_its_worker_replaced():
    run = Run(200, fate=fates({9: [Fate("hang")]})).go()
    (failed,) = run.of("attempt_failed")
    assert failed["shard"] == 9
    assert "no answer within 60 s" in failed["reason"]
    assert run.pool.num_started == 3


def test_a_hang_before_any_is_finished_has_an_hour_and_the_users_limit_goes_before():
    for limit, expected in ((None, 3600), (7.0, 7)):
        run = Run(1, roles={"cpu": 1}, fate=fates({0: [Fate("hang")]}), policy=Policy(shard_timeout_s=limit)).go()
        assert expected < run.pool.clock - 1000 < expected + 5


def test_a_straggler_gets_one_backup_and_the_first_commit_wins():
    slow = fates({5: [Fate(seconds=50.0)]})
    run = Run(10, roles={"cpu": 3}, fate=slow).go()
    (backup,) = run.of("backup")
    assert backup["shard"] == 5
    assert run.pool.clock - 1000 < 20
    assert run.store.made[5] == 1
    assert len([1 for _, _, shard, _ in run.pool.log if shard == 5]) == 2


def test_a_backup_stays_within_its_kind():
    run = Run(
        12, roles={"gpu": 1, "cpu": 2}, fate=lambda shard, attempt, worker: Fate(seconds=1 if "gpu" in worker else 9)
    )
    run.go()
    assert run.of("backup") == []
    assert {name[:3] for _, name, _, _ in run.pool.log} == {"gpu", "cpu"}


def test_short_shards_travel_together_and_a_death_charges_only_one():
    run = Run(2000, fate=fates({700: [Fate("die", 0.001)]}))
    scripted = run.pool.fate
    run.pool.fate = lambda *task: fate if (fate := scripted(*task)).kind == "die" else Fate(seconds=0.002)
    run.go()
    assert max(run.pool.sizes) == 64
    assert [entry["shard"] for entry in run.of("attempt_failed")] == [700]
    assert len(run.pool.log) < 2000 + 64 * 2
    assert run.store.lookups == 1


@pytest.mark.parametrize("error", [RuntimeError("no GPU"), StoreUnavailableError("503")])
def test_workers_that_never_start_end_the_run(error):
    run = Run(8, starts=[error] * 9)
    run.fails(ClusterError if isinstance(error, RuntimeError) else StoreUnavailableError, "3 workers were lost")


def test_a_worker_that_refuses_for_good_ends_the_run_at_once():
    run = Run(8, starts=[StoreError("reference/order is not an ordering")])
    run.fails(StoreError, "^reference/order is not an ordering$")
    assert run.pool.num_started == 2


def test_no_worker_for_a_long_time_tells_what_the_cluster_has():
    run = Run(8, starts=[None, None])
    run.fails(ClusterError, "no worker was ready for 600 s, 2 were asked for: the cluster has 3 CPUs")


def test_a_start_that_never_ends_is_given_up_while_others_work():
    run = Run(400, starts=[1.0, None], fate=lambda *_: Fate(seconds=4.0)).go()
    assert {name for _, name, _, _ in run.pool.log} == {"cpu-1", "cpu-3"}


def test_two_drivers_on_one_store_share_the_work():
    one = Run(300, fate=lambda *_: Fate(seconds=2.0))
    other = FakePool(one.store, host="elsewhere")
    done = []

    def of_the_other():
        """Its next shard in order, as fast as one of ours."""
        pending = one.store.pending()
        if pending:
            one.store.commit(pending[0], other.host, 7)
            done.append(pending[0])
            one.pool.at(1.0, of_the_other)

    scripted = one.pool.fate
    one.pool.fate = lambda shard, *rest: Fate(seconds=0.01) if shard in one.store.records else scripted(shard, *rest)
    one.pool.at(5.0, of_the_other)
    one.go()
    assert not one.store.pending()
    assert len(done) > 60
    worked = sum(one.store.records[shard]["host"] == "here" for shard in range(300))
    assert len(one.pool.log) < worked + 60  # most of what the other did was never handed out
    assert len(one.progress) == 300


def test_a_stop_lets_shards_end_within_the_grace_and_drops_the_others():
    run = Run(40, roles={"cpu": 2}, fate=lambda shard, *_: Fate(seconds=1.0 if shard != 9 else 200.0))
    run.pool.at(8.5, lambda: run.driver.request_stop("SIGTERM"))
    run.fails(KeyboardInterrupt, "SIGTERM")
    assert run.pool.clock - 1008.5 < 6
    assert run.of("stopping") == [{"reason": "SIGTERM"}]
    begun = [at for at, *_ in run.pool.log]
    assert max(begun) < 1009.1
    assert 9 in run.store.pending()
    assert run.snapshots[-1].is_running is False


def test_a_long_shard_is_dropped_at_once_when_a_stop_comes():
    run = Run(40, fate=lambda *_: Fate(seconds=100.0))
    run.pool.at(420.0, lambda: run.driver.request_stop("SIGUSR2"))
    run.fails(KeyboardInterrupt, "SIGUSR2")
    assert run.pool.clock - 1420 < 1.1
    assert len(run.store.made) == 8


def test_a_scheduler_s_notice_is_used_by_shards_that_can_end_within_it():
    fate = lambda shard, *_: Fate(seconds=25.0 if shard != 5 else 300.0)  # noqa: E731
    run = Run(40, roles={"cpu": 2}, fate=fate, policy=Policy(notice_s=60.0))
    run.pool.at(80.0, lambda: run.driver.request_stop("SIGUSR2"))
    run.fails(KeyboardInterrupt, "SIGUSR2")
    at_stop = {shard for at, _, shard, _ in run.pool.log if at < 1080}
    kept = set(run.store.records)
    assert 5 in at_stop
    assert 5 not in kept
    assert max(kept) > max(shard for shard in run.store.made if shard < 5)
    assert 20 < run.pool.clock - 1080 < 61


@pytest.mark.parametrize("end", ["in its grace", "at once"])
def test_what_a_worker_commits_while_it_is_ended_is_told_of(end):
    """Ray ends an actor some time after it was asked to; what that one commits meanwhile is there for good."""
    run = Run(4, roles={"cpu": 1}, fate=lambda *_: Fate(seconds=100.0), policy=Policy(grace_s=1.0))

    def stop():
        if end == "at once":
            raise KeyboardInterrupt
        run.driver.request_stop("SIGTERM")

    run.pool.at(50.0, stop)
    run.fails(KeyboardInterrupt, None)
    assert run.of("shard") == []
    run.store.commit(0, "here", 1)
    run.driver.settle()
    assert [details["record"]["shard"] for details in run.of("shard")] == [0]
    assert (run.snapshots[-1].done, run.snapshots[-1].is_running) == (1, False)
    run.driver.settle()
    assert len(run.of("shard")) == 1


@pytest.mark.parametrize(("left", "ends"), [(60.0, True), (3.0, False), (math.inf, True)])
def test_a_node_that_drains_gets_nothing_new_and_its_worker_is_replaced(left, ends):
    run = Run(12, fate=lambda *_: Fate(seconds=10.0))
    run.pool.at(43.0, lambda: run.pool.drains.update({"cpu-1": Drain("node-a", run.pool.clock + left)}))
    run.go()
    handed = [at for at, name, _, _ in run.pool.log if name == "cpu-1"]
    assert max(handed) < 1046
    (notice,) = run.of("draining")
    assert notice["node"] == "node-a"
    assert (notice["deadline"] is None) == math.isinf(left)
    done_by_it = sum(record["pid"] == 1 for record in run.store.records.values())
    assert done_by_it == (5 if ends else 4)
    assert run.of("attempt_failed") == []
    assert run.pool.num_started == 3


def test_a_driver_that_was_suspended_takes_nobody_for_hanging():
    run = Run(12, policy=Policy(shard_timeout_s=5.0), fate=lambda *_: Fate(seconds=2.0))

    def suspend():
        run.pool.clock += 500.0
        run.pool.heap = [(at + 500.0, *rest) for at, *rest in run.pool.heap]
        heapq.heapify(run.pool.heap)

    run.pool.at(6.5, suspend)
    run.go()
    assert run.of("worker_lost") == []


def test_memory_that_ran_out_costs_the_worker_its_process():
    run = Run(8, fate=fates({2: [Fate("fail", 1.0, RuntimeError("CUDA out of memory. Tried"))]})).go()
    assert run.pool.num_started == 3
    assert len(run.of("attempt_failed")) == 1


def test_the_seconds_of_a_shard_reach_who_listens():
    run = Run(6, fate=lambda shard, *_: Fate(seconds=1.0 + shard)).go()
    assert {details["record"]["shard"]: details["seconds"] for details in run.of("shard")} == {
        shard: 1.0 + shard for shard in range(6)
    }


def test_a_driver_has_one_id_with_its_host_and_process_in_it():
    driver = DriverId("a-host-with-dashes", 4711, "0123")
    run = Run(3, driver=driver).go()
    assert run.snapshots
    for snapshot in run.snapshots:
        assert (snapshot.driver, snapshot.host, snapshot.pid) == (str(driver), "a-host-with-dashes", 4711)


def test_snapshots_tell_of_every_worker():
    run = Run(30, fate=lambda *_: Fate(seconds=1.5)).go()
    middle = run.snapshots[len(run.snapshots) // 2]
    assert middle.total == 30
    assert middle.done + middle.todo == 30
    assert [worker.state for worker in middle.workers] == ["at work"] * 2
    assert {
        "worker",
        "kind",
        "host",
        "pid",
        "device",
        "state",
        "shard",
        "attempt",
        "since",
        "done",
        "rows",
        "seconds",
    } == set(middle.to_json()["workers"][0])
    assert all(later.updated - earlier.updated >= 2 for earlier, later in itertools.pairwise(run.snapshots[:-1]))
    assert run.snapshots[-1].rows_per_s > 10
