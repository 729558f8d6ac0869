"""Who labels and who fits: by keys first, then by the time that the labels take."""

import pytest

from sfg_dist.distributed.executor import fit_choice, fit_takes_ray, why_ray
from sfg_dist.distributed.labels.choice import RAY_START_S, choose, num_fitting, num_processes
from sfg_dist.distributed.machine import Machine
from sfg_dist.job.config import ExecutorConfig
from sfg_dist.job.words import GIB

LONG, SHORT = 100 * RAY_START_S, RAY_START_S / 2
MACHINE = Machine(num_cpus=8, memory_bytes=64 * GIB, available_bytes=32 * GIB)


@pytest.mark.parametrize(
    ("keys", "more", "why"),
    [
        ({}, {}, None),
        ({"kind": "inline", "num_actors": 3}, {}, None),
        ({"kind": "inline"}, {"overlap": True}, None),
        ({"kind": "ray"}, {}, 'executor.kind = "ray"'),
        ({"num_actors": 2}, {}, "executor.num_actors is given"),
        ({"num_gpus_per_actor": 0.5}, {}, "executor.num_gpus_per_actor is given"),
        ({"num_cpu_actors": 1}, {}, "executor.num_cpu_actors is given"),
        ({"actors_per_group": 2}, {}, "executor.actors_per_group is given"),
        ({"address": "head:6379"}, {}, "executor.address is given"),
        ({}, {"num_workers": 2}, "train.num_workers asks for several workers"),
        ({}, {"num_workers": [1, 4]}, "train.num_workers asks for several workers"),
        ({}, {"overlap": True}, "it trains meanwhile (--overlap)"),
    ],
)
def test_keys_that_ask_for_ray(keys, more, why):
    assert why_ray(ExecutorConfig(**keys), **more) == why


@pytest.mark.parametrize(
    ("kind", "alone_s", "num_processes", "num_gpus", "expected"),
    [
        ("auto", SHORT, 8, 0, ("inline", 8)),  # of a machine without GPUs, Ray would add nothing
        ("auto", LONG, 8, 0, ("inline", 8)),
        ("auto", None, 8, 0, ("inline", 8)),
        ("auto", 1.0, 8, 0, ("inline", 0)),  # over before a process has started
        ("auto", LONG, 1, 0, ("inline", 0)),
        ("auto", None, 1, 0, ("inline", 1)),  # so long that it is done where it can be watched
        ("auto", LONG, 8, 1, ("inline", 0)),
        ("auto", SHORT, 8, 4, ("inline", 0)),
        ("auto", LONG, 8, 4, ("ray", 0)),
        ("auto", None, 8, 4, ("ray", 0)),
        ("inline", LONG, 8, 4, ("inline", 0)),
        ("inline", LONG, 8, 0, ("inline", 8)),
    ],
)
def test_who_labels(kind, alone_s, num_processes, num_gpus, expected):
    found = choose(ExecutorConfig(kind=kind), alone_s, num_processes=num_processes, num_gpus=num_gpus)
    assert (found.executor, found.num_processes) == expected
    assert ("--executor" in found.words) is (kind == "auto")


def test_one_worker_without_ray_is_this_process():
    for alone_s in (None, LONG):
        found = choose(ExecutorConfig(kind="inline", num_actors=1), alone_s, num_processes=1)
        assert (found.executor, found.num_processes) == ("inline", 0)


def test_a_key_that_asks_for_ray_is_named_and_decides():
    found = choose(ExecutorConfig(num_actors=2), 0.1, num_processes=8, why="executor.num_actors is given")
    assert (found.executor, found.words) == ("ray", "by Ray, since executor.num_actors is given")


@pytest.mark.parametrize(
    ("alone_s", "words"),
    [
        (8.0, "about 1 s in 8 processes of this machine, done before Ray would have started; --executor ray takes Ray"),
        (800.0, "about 1 min 40 s in 8 processes of this machine, where Ray would be no faster; "),
        (None, "in 8 processes of this machine, where Ray would be no faster; "),
        (0.5, "about 500 ms in this process, done before Ray would have started; "),
        (0.0, "in this process, done before Ray would have started; "),
    ],
)
def test_the_choice_in_words(alone_s, words):
    assert choose(ExecutorConfig(), alone_s, num_processes=8).words.startswith(words)


def test_a_template_that_is_up_already_pays_sooner():
    assert choose(ExecutorConfig(), 1.0, num_processes=2, start_s=0.0).num_processes == 2


def test_processes_have_a_place_by_cpus_keys_and_memory(make_store):
    assert num_processes(ExecutorConfig(), 1, MACHINE) == 8
    assert num_processes(ExecutorConfig(), 3, MACHINE) == 2
    assert num_processes(ExecutorConfig(), 1, MACHINE, reserved_cpus=7.0) == 1
    assert num_processes(ExecutorConfig(kind="inline", num_actors=3), 1, MACHINE) == 3
    assert num_processes(ExecutorConfig(kind="inline", num_actors=99), 1, MACHINE) == 8
    plan = make_store().plan
    small = {"num_reference": 1000, "has_clusters": True}
    assert num_fitting(plan, MACHINE, memory_gib=10.0, **small) == 3
    assert num_fitting(plan, MACHINE, memory_gib=100.0, **small) == 1
    assert num_fitting(plan, MACHINE, memory_gib=None, **small) > 8


def test_each_process_counts_with_the_reference_that_it_does_not_share(make_store, monkeypatch):
    plan, large = make_store().plan, {"num_reference": 10_000_000, "has_clusters": True}
    fitting = {}
    for room in (0, 1 << 40):  # for one copy of the machine, in its shared memory
        monkeypatch.setattr("sfg_dist.distributed.labels.choice.free_bytes", lambda _, room=room: room)
        fitting[room] = num_fitting(plan, MACHINE, None, **large)
    assert 1 <= fitting[0] < fitting[1 << 40]


@pytest.mark.parametrize(
    ("executor", "train", "is_ray", "words"),
    [
        ({"kind": "auto"}, {}, False, "in this process, where Ray would be no faster; --executor ray takes Ray Train"),
        ({"kind": "auto", "num_actors": 4}, {}, False, "in this process, where Ray would be no faster; "),
        ({"kind": "auto"}, {"num_workers": 2}, True, "by Ray Train, since train.num_workers asks for several workers"),
        ({"kind": "auto", "address": "head:1"}, {}, True, "by Ray Train, since executor.address is given"),
        ({"kind": "ray"}, {}, True, 'by Ray Train, since executor.kind = "ray"'),
        ({"kind": "inline"}, {"num_workers": 2}, False, "in this process"),
    ],
)
def test_who_fits(make_job, executor, train, is_ray, words):
    job = make_job(executor=executor, train=train)
    assert fit_takes_ray(job) is is_ray
    said = fit_choice(job)
    assert said["executor"] == ("ray" if is_ray else "inline")
    assert said["words"].startswith(words)
