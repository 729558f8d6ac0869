"""The workers that a job asks for, their memory and disk, and refusals with values that fit."""

from dataclasses import replace
from pathlib import Path

import pytest
from machines import GPUS, MACHINE, expected_bytes, workers

from sfg_dist.distributed.labels import requirements
from sfg_dist.distributed.labels.actors import groups_by_role
from sfg_dist.distributed.labels.requirements import choose_workers, memory_of, require_disk, require_memory
from sfg_dist.distributed.labels.sizes import device_memory
from sfg_dist.distributed.labels.worker_count import asked_workers
from sfg_dist.distributed.machine import this_machine
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.memory import cpu_limits, memory_limits
from sfg_dist.job.paths import free_disk
from sfg_dist.job.words import GIB
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import open_pairs
from sfg_dist.studies.estimate.calibration import calibrated_devices


@pytest.fixture
def plan(make_store):
    return make_store().plan


def test_workers_by_default(make_job):
    ray = {"kind": "ray"}
    assert choose_workers(make_job(), MACHINE).executor == "inline"
    assert choose_workers(make_job(executor=ray), MACHINE).num_actors == {"cpu": 4}
    assert choose_workers(make_job(executor=ray, labels={"num_threads": 2}), MACHINE).num_actors == {"cpu": 2}
    machine = replace(MACHINE, gpus=GPUS)
    assert choose_workers(make_job(executor=ray), machine).num_actors == {"cuda": 2}
    halves = choose_workers(make_job(executor=ray | {"num_gpus_per_actor": 0.5}), machine)
    assert halves.num_actors == {"cuda": 4}
    assert calibrated_devices(halves, machine) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    mixed = choose_workers(make_job(executor=ray | {"num_cpu_actors": 2}), machine)
    assert mixed.num_actors == {"cuda": 2, "cpu": 2}
    assert calibrated_devices(mixed, machine) == ["cuda:0", "cuda:1", "cpu", "cpu"]


@pytest.mark.parametrize(
    ("executor", "labels", "machine", "words"),
    [
        ({"num_actors": 5}, {}, MACHINE, ["need 5 CPUs", "has 4", "executor.num_actors = 4"]),
        ({"num_actors": 3}, {"num_threads": 2}, MACHINE, ["executor.num_actors = 2 or labels.num_threads = 1"]),
        ({"num_actors": 1}, {"num_threads": 8}, MACHINE, ["labels.num_threads = 4"]),
        ({"kind": "inline"}, {"num_threads": 8}, MACHINE, ["labels.num_threads = 4"]),
        (
            {"num_gpus_per_actor": 1},
            {},
            MACHINE,
            ["num_gpus_per_actor = 1", "has 0 GPUs that torch sees", "leave"],
        ),
        ({"num_gpus_per_actor": 3}, {}, replace(MACHINE, gpus=GPUS), ["this machine has 2 GPUs", "take at most 2"]),
        ({"num_actors": 3}, {}, replace(MACHINE, gpus=GPUS), ["need 3 GPUs", "executor.num_actors = 2"]),
        ({"num_actors": 3, "actors_per_group": 2}, {}, MACHINE, ["executor.actors_per_group = 2", "take 2"]),
        ({"num_actors": 8, "actors_per_group": 2}, {}, replace(MACHINE, num_cpus=5), ["executor.num_actors = 4"]),
        ({"num_actors": 4, "num_cpu_actors": 2}, {}, MACHINE, ["need 6 CPUs", "executor.num_actors = 2"]),
        ({"num_actors": 1, "num_cpu_actors": 4}, {}, MACHINE, ["fewer executor.num_cpu_actors than 4"]),
        ({"num_cpu_actors": 4}, {}, MACHINE, ["there is no room for an actor", "executor.num_cpu_actors"]),
        (
            {"num_gpus_per_actor": 1, "address": "head:6379"},
            {},
            MACHINE,
            ["head:6379", "no GPU that torch sees"],
        ),
    ],
)
def test_workers_that_cannot_be_had(make_job, executor, labels, machine, words):
    job = make_job(executor={"kind": "ray"} | executor, labels=labels)
    with pytest.raises(ConfigError) as caught:
        choose_workers(job, machine)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_run_counts_its_groups_by_role(make_job):
    """``sfg plan`` and the run count by one function; the driver's worker is a group."""
    keys = {"num_gpus_per_actor": 0.5, "actors_per_group": 2, "num_cpu_actors": 4}
    executor = make_job(executor={"kind": "ray"} | keys).executor
    workers = asked_workers(executor, 1, num_cpus=9.0, num_gpus=2.0, place="the cluster has")
    assert workers.num_actors == {"cuda": 4, "cpu": 4}
    assert groups_by_role(workers) == {"gpu": 2, "cpu": 2}


def memory(plan, chosen, machine, **keywords):
    arguments = {"num_reference": 10**7, "has_clusters": True, "driver_bytes": GIB, "memory_gib": None} | keywords
    return memory_of(plan, chosen, machine, **arguments)


def test_too_many_actors_for_the_memory(plan):
    chosen = workers(cpu=4)
    enough = memory(plan, chosen, MACHINE)
    require_memory(enough, chosen, MACHINE)
    small = replace(MACHINE, memory_bytes=enough.total_bytes - 1)
    with pytest.raises(
        ConfigError, match=r"take executor.num_actors = 3, or labels.memory_gib = [\d.]+ \(the"
    ) as caught:
        require_memory(memory(plan, chosen, small), chosen, small)
    budget = float(str(caught.value).split("labels.memory_gib = ")[1].split(" ")[0])
    for fits, fewer in (({"memory_gib": budget}, chosen), ({}, workers(cpu=3))):  # what the message says does fit
        require_memory(memory(plan, fewer, small, **fits), fewer, small)


def test_a_reference_that_no_actor_can_hold(plan):
    chosen = workers("inline", cpu=1)
    machine = replace(MACHINE, memory_bytes=2 * GIB)
    with pytest.raises(ConfigError, match=r"labels\.memory_gib") as caught:
        require_memory(memory(plan, chosen, machine, num_reference=10**8), chosen, machine)
    assert "num_actors" not in str(caught.value)
    tiny = replace(MACHINE, memory_bytes=GIB)
    with pytest.raises(ConfigError, match="a machine with more memory"):
        require_memory(memory(plan, chosen, tiny), chosen, tiny)


def test_actors_elsewhere_are_not_counted_here(plan):
    chosen = workers(cpu=500, elsewhere=True)
    require_memory(memory(plan, chosen, MACHINE), chosen, MACHINE)


def test_a_reference_that_no_gpu_can_hold(plan):
    machine = replace(MACHINE, gpus=GPUS, memory_bytes=10**12)
    one, halves = workers(cuda=2, gpus=1.0), workers(cuda=4, gpus=0.5)
    require_memory(memory(plan, one, machine, num_reference=15 * 10**7), one, machine)
    with pytest.raises(ConfigError, match=r"2 actors on a GPU need .* take executor.num_gpus_per_actor = 1$"):
        require_memory(memory(plan, halves, machine, num_reference=15 * 10**7), halves, machine)
    with pytest.raises(ConfigError, match="1 actors on a GPU"):
        require_memory(memory(plan, one, machine, num_reference=10**9), one, machine)


def test_a_disk_that_is_too_small(make_job, monkeypatch):
    job = make_job()
    Pipeline(job).label()
    plan, written = open_pairs(job.output.dir).plan, expected_bytes(job)
    free = require_disk(job.output.dir, written, plan)
    assert free == pytest.approx(free_disk(Path(job.output.dir)), rel=0.05)  # others write too
    assert free > written.total
    monkeypatch.setattr("sfg_dist.distributed.labels.requirements.free_disk", lambda _: written.total - 1)
    with pytest.raises(ConfigError, match=r"output\.dir") as caught:
        require_disk(job.output.dir, written, plan)
    fits = int(str(caught.value).split("labels.num_pairs = ")[1].split(",")[0])
    assert 0 < fits < 1000
    assert fits % 128 == 0
    assert require_disk("s3://bucket/run", written, plan) is None


def test_free_room_where_a_directory_would_be_made(tmp_path):
    assert free_disk(tmp_path / "a" / "b") > 0


def test_limits_of_control_groups(tmp_path):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("5\n")
    (tmp_path / "outer" / "memory.max").write_text("1000\n")
    (tmp_path / "outer" / "memory.current").write_text("400\n")
    assert list(memory_limits(tmp_path, {"": "/outer/inner"})) == [(1000, 400)]
    first = tmp_path / "memory"  # version 1, where a container sees its own group as the root
    first.mkdir()
    (first / "memory.limit_in_bytes").write_text("2000\n")
    (first / "memory.usage_in_bytes").write_text("100\n")
    assert list(memory_limits(tmp_path, {"memory": "/docker/1234"})) == [(2000, 100)]
    assert list(memory_limits(tmp_path, {})) == []


def test_cpus_of_control_groups(tmp_path):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "outer" / "cpu.max").write_text("250000 100000\n")
    assert list(cpu_limits(tmp_path, {"": "/outer/inner"})) == [2.5]
    first = tmp_path / "cpu"
    for name, quota in (("own", "150000"), ("", "-1")):
        (first / name).mkdir(exist_ok=True, parents=True)
        (first / name / "cpu.cfs_quota_us").write_text(quota)
        (first / name / "cpu.cfs_period_us").write_text("100000")
    assert list(cpu_limits(tmp_path, {"cpu": "/own"})) == [1.5]


def test_this_machine():
    machine = this_machine()
    assert machine.num_cpus >= 1
    assert 0 < machine.available_bytes <= machine.memory_bytes


def test_memory_of_a_reference_grows_with_it():
    assert device_memory(2 * 10**6, 6) == 2 * device_memory(10**6, 6)


def test_a_budget_below_one_block_is_refused_with_one_that_does(plan):
    chosen = workers(cpu=2)
    with pytest.raises(ConfigError, match=r"labels.memory_gib = 0.3 cannot hold one block") as caught:
        memory(plan, chosen, MACHINE, memory_gib=0.3)
    least = float(str(caught.value).split("take ")[1].split(" ")[0])
    assert memory(plan, chosen, MACHINE, memory_gib=least).actors["cpu"].reference_bytes < least * GIB


def test_a_large_reference_counts_once_on_a_node(plan):
    one, four = (memory(plan, workers(cpu=number), MACHINE) for number in (1, 4))
    shared = one.actors["cpu"].shared_bytes
    assert 0 < shared < one.actors["cpu"].reference_bytes
    assert four.total_bytes - one.total_bytes == 3 * (one.actors["cpu"].host_bytes - shared)
    small = memory(plan, workers(cpu=1), MACHINE, num_reference=1000, has_clusters=False)
    assert small.actors["cpu"].shared_bytes == 0


def test_a_budget_that_nothing_fits_is_refused_before_the_table_is_read(make_job, monkeypatch):
    monkeypatch.setattr(requirements, "this_machine", lambda: MACHINE)
    pipeline = Pipeline(make_job(labels={"memory_gib": 0.001}))
    monkeypatch.setattr(Pipeline, "prepared", property(lambda _: pytest.fail("the table is read")))
    with pytest.raises(ConfigError, match=r"labels.memory_gib = 0.001 cannot hold one block"):
        pipeline.label()


def test_a_budget_that_this_table_does_not_fit_is_refused_before_a_store_is_made(make_job, monkeypatch):
    monkeypatch.setattr(requirements, "this_machine", lambda: MACHINE)
    pipeline = Pipeline(make_job(labels={"memory_gib": 50.0}))
    block = requirements.reference_memory(480, 2, has_clusters=False)
    large = replace(block, streamed=60 * GIB)
    monkeypatch.setattr(requirements, "reference_memory", lambda rows, *_, **__: large if rows > 1 else block)
    with pytest.raises(ConfigError, match=r"labels.memory_gib = 50 cannot hold one block"):
        pipeline.label()
    assert not Path(pipeline.job.output.dir, "pairs.zarr").exists()
