"""What a job will take: exact bytes, refusals with values that fit, and figures that hang together."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sfg_dist.distributed.calibration import Calibration, Pace, calibrate
from sfg_dist.distributed.estimate import calibrated_devices, estimate_job
from sfg_dist.distributed.inline import label_inline
from sfg_dist.distributed.machine import Gpu, Machine, _memory_limits, free_disk, this_machine
from sfg_dist.distributed.requirements import Workers, choose_workers, memory_of, require_disk, require_memory
from sfg_dist.distributed.run_time import cost_of, time_of
from sfg_dist.distributed.sizes import GIB, device_memory, store_bytes
from sfg_dist.errors import ConfigError, LabelingError, PlanMismatchError
from sfg_dist.pipeline import Pipeline
from sfg_dist.plan_table import duration, estimate_rows, size
from sfg_dist.store import open_pairs

MACHINE = Machine(num_cpus=4, memory_bytes=64 * GIB, available_bytes=32 * GIB)
GPUS = (Gpu("a", 16 * GIB), Gpu("b", 16 * GIB))
PACE = Pace(
    device="x86_64",
    seconds_per_row=0.01,
    evaluations_per_row=8.0,
    pairs_per_row=100.0,
    spread=0.1,
    write_s=0.5,
    check_s=0.0,
    import_s=2.0,
    open_s=1.0,
    first_s=0.5,
    host_bytes=GIB,
    device_bytes=0,
    commit_bytes=600.0,
    cpu_share=0.5,
    num_rows=1000,
    num_workers=2,
)


@pytest.fixture
def paces(monkeypatch):
    """An estimate without the processes of a calibration."""

    def fake(plan, reference, *, devices, **_):
        return Calibration(dict.fromkeys({device.partition(":")[0] for device in devices}, PACE), 0.0)

    monkeypatch.setattr("sfg_dist.distributed.estimate.calibrate", fake)


def sizes_on_disk(store: Path) -> dict[str, int]:
    """Bytes of the parts of a store, metadata told apart."""
    found: dict[str, int] = {}
    for path in store.rglob("*"):
        if path.is_file():
            parts = path.relative_to(store).parts
            texts = ("zarr.json", "plan.json", "plan.copy.json", "frame.json")
            name = "metadata" if path.name in texts else parts[0]
            name = "order" if parts[:2] == ("reference", "order") and name == "reference" else name
            found[name] = found.get(name, 0) + path.stat().st_size
    return found


def expected_bytes(job):
    """What ``store_bytes`` says of a job."""
    pipeline = Pipeline(job)
    prepared = pipeline.prepared
    pairs = open_pairs(job.output.dir)
    reference = prepared.reference()
    return store_bytes(
        pairs.plan,
        num_reference=len(reference),
        has_order="order" in pairs.group["reference"],
        transform_arrays=prepared.transform.to_arrays(),
        transform_metadata=prepared.transform.to_metadata(),
        num_queries=pairs.plan.num_pairs if pairs.plan.identity["queries"] else None,
    )


def check_bytes(job):
    expected, found = expected_bytes(job), sizes_on_disk(Path(job.output.dir) / "pairs.zarr")
    for name in ("latents", "labels", "reference", "order", "transform", "queries", "metadata"):
        assert getattr(expected, name) == found.get(name, 0), name
    assert expected.commits == pytest.approx(found["commits"], rel=0.15)


@pytest.mark.parametrize(
    "tables",
    [
        {},  # a ragged last shard
        {"labels": {"num_pairs": 50}},  # one shard, larger than the table
        {"labels": {"direction": "both"}, "transform": {"kind": "standardize"}},
        {"transform": {"kind": "none"}, "data": {"source": "8gaussians"}},
        {"data": {"max_rows": 6000}},  # with clusters
    ],
)
def test_bytes_are_exact(make_job, tables):
    job = make_job(**tables)
    Pipeline(job).label()
    check_bytes(job)


def test_bytes_are_exact_where_shards_and_the_reference_are_cut_into_chunks(make_job, monkeypatch):
    monkeypatch.setattr("sfg_dist.store.arrays.MAX_CHUNK_BYTES", 300)
    job = make_job(labels={"num_pairs": 900})  # the last shard holds 4 of 128 rows: its last chunks are left out
    Pipeline(job).label()
    pairs = open_pairs(job.output.dir)
    assert pairs.group["labels"].shards is not None
    assert pairs.group["reference/rows"].nchunks > 1
    check_bytes(job)


def test_bytes_are_exact_with_the_users_own_queries(make_job, tmp_path):
    np.save(tmp_path / "queries.npy", np.random.default_rng(0).standard_normal((333, 2)))
    job = make_job(labels={"latents": str(tmp_path / "queries.npy")})
    Pipeline(job).label()
    check_bytes(job)


def test_an_estimate_writes_nothing_and_its_parts_add_up(make_job, tmp_path):
    """With a calibration for real, by two processes as the run would have two actors."""
    machine = replace(MACHINE, num_cpus=2)
    job = make_job(executor={"kind": "ray", "num_actors": 2, "price_per_hour": 3.0})
    before = sorted(tmp_path.rglob("*"))
    estimate = estimate_job(job, machine=machine, seconds=0.2)
    assert sorted(tmp_path.rglob("*")) == before
    work, time = estimate.work, estimate.time
    assert (work.num_shards, work.num_pairs, work.dim, work.num_reference) == (8, 1000, 2, 480)
    assert work.score_evaluations == 1000 * 8
    # The first of the evaluations, at pure noise, is the mean of the data and sums nothing.
    assert work.pairs_summed == 1000 * 7 * 480
    assert time.waves == 4
    assert time.label_s == pytest.approx(time.start_s + time.integration_s + time.writing_s)
    assert min(time.data_s, time.start_s, time.integration_s, time.writing_s) > 0
    pace = estimate.paces["cpu"]
    assert pace.num_workers == 2
    assert pace.num_rows >= 6 * 64
    assert time.integration_s == pytest.approx(4 * 128 * pace.seconds_per_row)
    assert estimate.cost.total == pytest.approx(3.0 * 2 * time.label_s / 3600)
    assert json.loads(json.dumps(estimate.to_dict()))["written"]["arrays"] == estimate.written.arrays


def test_a_calibration_with_queries_fewer_than_a_batch(make_job, tmp_path):
    np.save(tmp_path / "queries.npy", np.random.default_rng(0).standard_normal((20, 2)))
    job = make_job(labels={"latents": str(tmp_path / "queries.npy"), "solver_tolerance": 1e-2})
    estimate = estimate_job(job, machine=MACHINE, seconds=0.1)
    assert not estimate.work.is_counted
    assert estimate.work.score_evaluations == round(20 * estimate.paces["cpu"].evaluations_per_row)


def test_an_error_in_a_calibration_comes_out_with_its_reason(make_store):
    pairs = make_store()
    damaged = pairs.reference.copy()
    damaged[5, 1] = np.nan
    with pytest.raises(LabelingError, match="not finite: row 5"):
        calibrate(pairs.plan, damaged, devices=["cpu"], seconds=0.1)


def test_no_room_for_a_calibration(make_store, monkeypatch):
    pairs = make_store()
    monkeypatch.setattr("sfg_dist.distributed.calibration.free_disk", lambda _: 1)
    with pytest.raises(ConfigError, match="TMPDIR"):
        calibrate(pairs.plan, pairs.reference, devices=["cpu"])


def test_a_store_that_is_begun_counts_what_is_left(make_job, paces):
    job = make_job()
    pairs = Pipeline(job)._open_store()
    assert estimate_job(job, machine=MACHINE).work.shards_left == 8
    label_inline(pairs.location.url)
    for shard in (2, 7):  # the last one has 104 rows
        pairs.location.delete(f"commits/{shard:08d}.json")
    estimate = estimate_job(job, machine=MACHINE)
    assert (estimate.work.shards_left, estimate.work.pairs_left) == (2, 128 + 104)
    assert estimate.left.arrays == 2 * 2 * (128 * 2 * 4 + 4)
    assert estimate.written.arrays > estimate.left.arrays
    assert ("left to do", "2 shards, 232 pairs") in estimate_rows(estimate)
    label_inline(pairs.location.url)
    done = estimate_job(job, machine=MACHINE)
    assert done.paces == {}
    assert done.time.label_s == 0
    assert ("left to do", "nothing") in estimate_rows(done)


def test_a_store_of_another_plan_is_refused(make_job, paces):
    Pipeline(make_job())._open_store()
    with pytest.raises(PlanMismatchError, match=r"labels\.seed: 0 -> 5"):
        estimate_job(make_job(labels={"seed": 5}), machine=MACHINE)


def test_a_fitted_grid_is_not_fitted_to_plan(make_job, paces, monkeypatch):
    monkeypatch.setattr("sfg_dist.planning.fit_grids", lambda *_: pytest.fail("fitted"))
    plain = estimate_job(make_job(), machine=MACHINE)
    fitted = estimate_job(make_job(labels={"time_grid": "fitted"}), machine=MACHINE)
    assert fitted.time.data_s - plain.time.data_s > 4600 * PACE.seconds_per_row - 5
    assert any("time grid is fitted first" in note for note in fitted.notes)
    assert fitted.work == plain.work


def test_a_busy_machine_is_told_apart(make_job, monkeypatch):
    monkeypatch.setattr("sfg_dist.distributed.estimate.calibrate", lambda *_, **__: Calibration({"cpu": PACE}, 3.5))
    busy, idle = (estimate_job(make_job(), machine=replace(MACHINE, num_cpus=cpus)) for cpus in (4, 8))
    alone = f"about {busy.time.label_s / 2:.0f} s"
    assert any("kept 3.5 CPUs busy" in note and alone in note for note in busy.notes)
    assert not idle.notes


# Time.


@pytest.fixture
def plan(make_store):
    return make_store().plan


def workers(executor="ray", *, group=1, elsewhere=False, gpus=0.0, **kinds) -> Workers:
    return Workers(executor, kinds or {"cpu": 2}, gpus, 1, group, elsewhere)


def test_shards_are_handed_out_whole(plan):
    rows = [128] * 7 + [104]
    four = time_of(rows, plan, workers(), {"cpu": PACE}, data_s=1.0, pads=False)
    assert four.waves == 4
    assert four.integration_s == pytest.approx(4 * 1.28)
    assert four.writing_s == pytest.approx(4 * 0.5)
    three = time_of(rows, plan, workers(cpu=3), {"cpu": PACE}, data_s=1.0, pads=False)
    assert three.waves == 3  # 8 shards by 3 actors: the last wave is not full, and counts whole
    many = time_of(rows, plan, workers(cpu=100), {"cpu": PACE}, data_s=1.0, pads=False)
    assert (many.waves, many.integration_s) == (1, pytest.approx(1.28))
    one = time_of([104], plan, workers(), {"cpu": PACE}, data_s=1.0, pads=True)
    assert one.integration_s == pytest.approx(1.28)  # dense sums of a batch that is filled up


def test_start_up_counts_ray_and_imports_for_actors_alone(plan):
    inline = time_of([128], plan, workers("inline", cpu=1), {"cpu": PACE}, data_s=0.0, pads=False)
    assert inline.start_s == pytest.approx(1.5)
    assert time_of([128], plan, workers(), {"cpu": PACE}, data_s=0.0, pads=False).start_s > 3.5


def test_mixed_workers_share_by_pace(plan):
    fast = replace(PACE, seconds_per_row=0.001, write_s=0.0)
    both = time_of(
        [128] * 11, plan, workers(cuda=1, cpu=1, gpus=1.0), {"cuda": fast, "cpu": PACE}, data_s=0, pads=False
    )
    assert both.waves == 10
    assert both.label_s - both.start_s == pytest.approx(1.78)  # the slow one's only shard


def test_a_group_works_on_one_shard(plan):
    alone = time_of([128] * 8, plan, workers(cpu=4), {"cpu": PACE}, data_s=0.0, pads=False)
    group = time_of([128] * 8, plan, workers(cpu=4, group=2), {"cpu": PACE}, data_s=0.0, pads=False)
    assert (alone.waves, group.waves) == (2, 4)
    assert group.integration_s == pytest.approx(alone.integration_s)


def test_cost(plan):
    spent = time_of([128] * 4, plan, workers(), {"cpu": PACE}, data_s=100.0, pads=False)
    cost = cost_of(spent, workers(), 7.2)
    assert cost.total == pytest.approx(7.2 * 2 * spent.label_s / 3600)


# Workers and refusals.


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
        ({"num_gpus_per_actor": 1}, {}, MACHINE, ["num_gpus_per_actor = 1", "torch sees 0 GPUs", "leave the key out"]),
        ({"num_gpus_per_actor": 3}, {}, replace(MACHINE, gpus=GPUS), ["torch sees 2 GPUs", "take at most 2"]),
        ({"num_actors": 3}, {}, replace(MACHINE, gpus=GPUS), ["need 3 GPUs", "executor.num_actors = 2"]),
        ({"num_actors": 3, "actors_per_group": 2}, {}, MACHINE, ["executor.actors_per_group = 2", "take 2"]),
        (
            {"num_gpus_per_actor": 1, "address": "head:6379"},
            {},
            MACHINE,
            ["head:6379", "no GPU here to calibrate on"],
        ),
    ],
)
def test_workers_that_cannot_be_had(make_job, executor, labels, machine, words):
    job = make_job(executor={"kind": "ray"} | executor, labels=labels)
    with pytest.raises(ConfigError) as caught:
        choose_workers(job, machine)
    assert all(word in str(caught.value) for word in words), caught.value


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
    assert require_disk(job.output.dir, written, plan) == free_disk(Path(job.output.dir)) > written.total
    monkeypatch.setattr("sfg_dist.distributed.requirements.free_disk", lambda _: written.total - 1)
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
    assert list(_memory_limits(tmp_path, {"": "/outer/inner"})) == [(1000, 400)]
    first = tmp_path / "memory"  # version 1, where a container sees its own group as the root
    first.mkdir()
    (first / "memory.limit_in_bytes").write_text("2000\n")
    (first / "memory.usage_in_bytes").write_text("100\n")
    assert list(_memory_limits(tmp_path, {"memory": "/docker/1234"})) == [(2000, 100)]
    assert list(_memory_limits(tmp_path, {})) == []


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


def test_words():
    assert [size(n) for n in (12, 2048, 5 * 2**20, 1500 * 2**40)] == ["12 bytes", "2 KiB", "5 MiB", "1,500 TiB"]
    assert [duration(s) for s in (0.25, 42, 119.7, 1500, 9000, 400_000)] == [
        "0.2 s", "42 s", "1 min 59 s", "25 min", "2.5 h", "4.6 days",
    ]  # fmt: skip
