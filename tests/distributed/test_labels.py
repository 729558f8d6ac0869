"""Labels of shards: the same bits by any executor, and nothing lost when actors and drivers die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import sfg
from held import held_sfg, wait_for
from machines import on_cpus
from patience import patience

import sfg_dist
from sfg_dist.distributed.labels import ray_pool
from sfg_dist.distributed.labels.actors import actor_roles, groups_by_role, label_with_actors
from sfg_dist.distributed.labels.events import ShardDone
from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.distributed.labels.labeler import ShardLabeler
from sfg_dist.distributed.labels.pool import Policy
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.distributed.labels.shared_blocks import SHARED_MEMORY, SUFFIX, blocks_directory, sweep_node
from sfg_dist.distributed.labels.worker_count import asked_workers
from sfg_dist.flow import Reference, label_latents
from sfg_dist.job.config import ExecutorConfig
from sfg_dist.job.errors import ConfigError, NonFiniteLabelError, PlanMismatchError, StoreError, StoreFullError
from sfg_dist.job.plan import Stream, normal_rows

ONE = on_cpus(num_actors=1)
CLUSTERS = {
    "data": {"source": "moons", "max_rows": 6000},  # 4800 of them for training: enough for clusters
    # Shards for four actors, with one in hand for each.
    "labels": {"num_pairs": 512, "shard_rows": 64, "batch_size": 64, "num_evaluations": 20, "t_min": 1e-3},
}


def test_inline_labels_are_the_flows(make_store):
    pairs = make_store()
    label_inline(pairs.location.url)
    settings = pairs.plan.labels
    latents = normal_rows(settings["seed"], Stream.LATENTS, 0, 1000, 2)
    expected = label_latents(
        latents,
        Reference(pairs.reference, sigma_data=1.0),
        t_min=settings["t_min"],
        num_evaluations=8,
        batch_size=64,
        sigma_data=1.0,
    )
    assert np.array_equal(pairs.latents.compute(), latents)
    assert np.array_equal(pairs.labels.compute(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("num_pairs", [1, 63, 128, 129, 1000])
def test_a_row_count_that_nothing_divides_loses_nothing(make_store, num_pairs):
    pairs = make_store(labels={"num_pairs": num_pairs})
    label_inline(pairs.location.url)
    assert pairs.labels.shape == (num_pairs, 2)
    assert np.isfinite(pairs.labels.compute()).all()


@pytest.mark.slow
def test_a_longer_run_begins_with_the_rows_of_a_shorter_one(make_store):
    short, long = make_store("short", labels={"num_pairs": 300}), make_store("long")
    for pairs in (short, long):
        label_inline(pairs.location.url)
    assert np.array_equal(short.labels.compute(), long.labels.compute()[:300])


@pytest.mark.slow
def test_encoded_rows_are_blurred_data_and_their_latents_decode_to_them(make_store):
    pairs = make_store(labels={"direction": "encode", "num_evaluations": 64, "t_min": 0.01})
    label_inline(pairs.location.url)
    latents, labels = pairs.latents.compute(), pairs.labels.compute()
    nearest = np.linalg.norm(labels[:, None] - pairs.reference[None], axis=2).min(axis=1)
    # Blur of 0.1 standard deviations about training rows: 0.049 to the nearest; of 0.01 it would be 0.011.
    assert 0.03 < np.median(nearest) < 0.08
    assert np.abs(latents.mean(axis=0)).max() < 0.15
    assert np.abs(latents.std(axis=0) - 1).max() < 0.15
    back = label_latents(latents, pairs.reference, t_min=0.01, num_evaluations=64, sigma_data=1.0)
    assert np.median(np.linalg.norm(back - labels, axis=1)) < 1e-3


@pytest.mark.slow
def test_a_batch_of_another_kind_changes_no_bits_of_this_one(make_store, store_bytes, inline_store, device):
    """The batch of GPUs is another plan's, but a CPU's rows come in the batches that they always came in."""
    pairs = make_store("gpu", labels={"gpu_batch_size": 128})
    label_inline(pairs.location.url)
    rows = [tables["objects"] for tables in (store_bytes(pairs.location.url), inline_store)]
    same = [name for name in rows[0] if name.startswith(("latents/c", "labels/c"))]
    if device.type == "cpu":
        assert same
        assert all(rows[0][name] == rows[1][name] for name in same)


def test_both_directions_in_one_store(make_store):
    pairs = make_store(labels={"direction": "both"})
    label_inline(pairs.location.url)
    drawn = normal_rows(0, Stream.LATENTS, 0, 1000, 2)
    latents = pairs.latents.compute()
    assert np.array_equal(latents[:128], drawn[:128])
    assert not np.array_equal(latents[128:256], drawn[128:256])
    assert np.isfinite(latents).all()


@pytest.mark.slow
def test_the_minibatch_estimator_draws_anew_for_each_batch(make_store):
    pairs = make_store(labels={"estimator": "minibatch", "num_reference": 50})
    labeler = ShardLabeler(pairs.location.url)
    first, again, other = (labeler._batch_reference(row) for row in (0, 0, 64))
    assert first.num_reference == 50
    assert np.array_equal(first.keys, again.keys)
    assert not np.array_equal(first.keys, other.keys)
    label_inline(pairs.location.url)
    assert np.isfinite(pairs.labels.compute()).all()


@pytest.mark.slow
def test_a_fitted_grid_stands_in_the_plan_and_a_resume_takes_it_from_there(make_store, monkeypatch):
    labels = {"time_grid": "fitted", "direction": "both", "num_evaluations": 12, "num_pairs": 256}
    pairs = make_store(labels=labels)
    grids = pairs.plan.identity["time_grid"]
    assert set(grids) == {"decode", "encode"}
    assert all(len(grid) == 13 and grid[0] == 0 for grid in grids.values())
    label_inline(pairs.location.url)
    expected = label_latents(
        normal_rows(0, Stream.LATENTS, 0, 128, 2), Reference(pairs.reference, sigma_data=1.0), t_min=1e-3,
        num_evaluations=12, time_grid=grids["decode"], batch_size=64,
    )  # fmt: skip
    assert np.array_equal(pairs.labels.compute()[:128], expected)

    def refuse(*args, **kwargs):
        raise AssertionError("fitted again")

    monkeypatch.setattr("sfg_dist.flow.fit_time_grid", refuse)
    assert make_store(labels=labels).plan == pairs.plan
    with pytest.raises(PlanMismatchError, match="num_evaluations") as caught:
        make_store(labels=labels | {"num_evaluations": 16})
    assert "time_grid" not in str(caught.value)


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_query_points_of_the_user(make_store, tmp_path, direction):
    rows = np.random.default_rng(0).standard_normal((70, 2)) * 0.5
    np.save(tmp_path / "queries.npy", rows)
    pairs = make_store(labels={"latents": str(tmp_path / "queries.npy"), "direction": direction})
    label_inline(pairs.location.url)
    assert pairs.plan.num_pairs == 70
    given = (pairs.latents if direction == "decode" else pairs.labels).compute()
    assert np.array_equal(given, pairs.query_rows(0, 70))
    if direction == "decode":
        assert np.array_equal(given, rows.astype(np.float32))


def test_a_label_that_is_not_finite_names_its_row_and_nothing_is_written(make_store, monkeypatch):
    pairs = make_store()
    labeler = ShardLabeler(pairs.location.url)
    monkeypatch.setattr(labeler, "_integrate", lambda shard, first, rows, effort: np.where(rows > 2.0, np.nan, rows))
    with pytest.raises(NonFiniteLabelError, match=r"shard 1: row \d+ has no finite end point"):
        labeler.label(1)
    assert 1 in pairs.pending()


def test_the_caller_keeps_its_number_of_threads(make_store):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        label_inline(make_store().location.url)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def check_progress(events, num_shards, num_actors):
    """Each shard is told of once, in the order in which they are done, by no more processes than there are actors."""
    seen = [(event["done"], event["total"]) for event in events.of("shard")]
    assert seen == [(done, num_shards) for done in range(1, num_shards + 1)]
    assert len({record["pid"] for record in events.records}) <= num_actors


class KindLabeler(ShardLabeler):
    """Notes what it was started as; no actor goes on before all have begun, so each gets a share of the work."""

    def __init__(self, url, *, num_threads=1, device=None):
        import torch

        super().__init__(url, num_threads=num_threads, device=torch.device("cpu"))  # the GPUs are made up
        self.told = f"{device} {os.environ.get('CUDA_VISIBLE_DEVICES')}"

    def label(self, shard, attempt=1):
        root = self.pairs.location.root.parent
        (root / f"began_{os.getpid()}").write_text(self.told)  # its shard may be another's in the end, by a backup
        deadline = time.monotonic() + patience(120)
        while len(list(root.glob("began_*"))) < int((root / "num_actors").read_text()):
            assert time.monotonic() < deadline, "the other actors never began"
            time.sleep(0.02)
        return super().label(shard, attempt)


@pytest.mark.ray
def test_any_number_of_actors_of_any_kind_gives_the_bits_of_the_inline_executor(
    ray_cluster, make_store, store_bytes, events
):
    """Over clusters, by fractions of GPUs, which pack, and a CPU beside them."""
    actors = ExecutorConfig(num_actors=3, num_gpus_per_actor=0.5, num_cpu_actors=1)
    alone, pairs = make_store("alone", **CLUSTERS), make_store("ray", **CLUSTERS)
    label_inline(alone.location.url)
    (pairs.location.root.parent / "num_actors").write_text("4")
    label_with_actors(pairs.location.url, actors, LabelSettings(labeler=KindLabeler, on_event=events))
    assert store_bytes(pairs.location.url) == store_bytes(alone.location.url)
    check_progress(events, pairs.plan.num_shards, 4)
    kinds = [file.read_text() for file in pairs.location.root.parent.glob("began_*")]
    told = sorted("cpu" if text.startswith("cpu") else text for text in kinds)
    assert told == ["None 0", "None 0", "None 1", "cpu"]


def test_a_gpu_each_is_what_actors_are_given_where_nobody_says():
    for gpus, cpus in ((2, 4.0), (1, 8.0)):
        room = {"num_cpus": cpus, "num_gpus": float(gpus), "place": "the cluster has"}
        said = ExecutorConfig(num_actors=gpus, num_gpus_per_actor=1)
        assert asked_workers(ExecutorConfig(), 1, **room) == asked_workers(said, 1, **room)
    room = {"num_cpus": 4.0, "num_gpus": 2.0, "place": "here are"}
    whole = asked_workers(ExecutorConfig(), 1, **room)
    assert actor_roles(whole, hides_gpus=True)["gpu"].num_gpus == 1
    assert groups_by_role(whole) == {"gpu": 2}
    halves = asked_workers(ExecutorConfig(num_gpus_per_actor=0.5), 1, **room)
    assert actor_roles(halves, hides_gpus=True)["gpu"].num_gpus == 0.5
    assert groups_by_role(halves) == {"gpu": 4}


@pytest.mark.ray
def test_a_killed_actor_is_replaced_and_its_shards_are_done_again(
    ray_cluster, make_store, store_bytes, inline_store, events
):
    pairs = make_store("ray")

    def kill_one(event):
        events(event)
        if event.name == "shard" and event.done == 2:
            os.kill(event.record["pid"], signal.SIGKILL)

    two = on_cpus(num_actors=2)
    label_with_actors(pairs.location.url, two, LabelSettings(on_event=kill_one))
    check_progress(events, 8, 3)
    assert store_bytes(pairs.location.url) == inline_store


def own_stores(make_store, seed):
    """A store labelled inline and an empty one. Blocks are shared by plan, so no test beside this one has theirs."""
    alone, pairs = (make_store(name, labels={"seed": seed}) for name in ("alone", "ray"))
    label_inline(alone.location.url)
    return alone, pairs


def leave_blocks(pairs):
    """What a killed process leaves: a file of blocks that nobody holds."""
    if SHARED_MEMORY.is_dir():
        (blocks_directory(SHARED_MEMORY) / f"{pairs.plan.run_id}{SUFFIX}").write_bytes(b"blocks")


class DyingLabeler(ShardLabeler):
    """Dies on shard 3, counting its calls there, then has no memory for it; leaves something with its last shard."""

    def label(self, shard, attempt=1):
        if shard == 3:
            log = Path(self.pairs.location.root.parent / "calls")
            log.write_text((log.read_text() if log.exists() else "") + f"{attempt} ")
            if attempt == 1:
                os._exit(1)
            if attempt == 2:
                raise MemoryError
        record = super().label(shard, attempt)
        if shard == 7:
            leave_blocks(self.pairs)
        return record


@pytest.mark.long
@pytest.mark.ray
def test_a_shard_that_takes_its_actors_down_gets_another_actor_each_time(ray_cluster, make_store, store_bytes, events):
    """One actor dies of it, the next is short of memory; both are replaced, and nothing of theirs is left."""
    alone, pairs = own_stores(make_store, seed=71)
    label_with_actors(pairs.location.url, ONE, LabelSettings(labeler=DyingLabeler, on_event=events))
    assert (pairs.location.root.parent / "calls").read_text().split() == ["1", "2", "3"]
    assert store_bytes(pairs.location.url) == store_bytes(alone.location.url)
    check_progress(events, 8, 3)
    lost, short = events.of("attempt_failed")
    assert (lost["shard"], lost["error"], lost["action"]) == (3, "WorkerLost", "retry")
    assert lost["reason"].startswith("the worker was lost: ")
    assert (short["shard"], short["reason"], short["action"]) == (3, "MemoryError: MemoryError", "retry")
    assert len(events.of("worker_started")) == 3
    assert not list(SHARED_MEMORY.glob(f"*/{pairs.plan.run_id}*"))


class TroubledLabeler(ShardLabeler):
    """Fails on shard 1 always, finds the disk full once, on shard 3; leaves something with its last shard."""

    def label(self, shard, attempt=1):
        if shard == 1:
            raise NonFiniteLabelError("shard 1: row 130 has no finite end point")
        if shard == 3 and not (told := self.pairs.location.root.parent / "full").exists():
            told.touch()
            raise StoreFullError("no space left on the device")
        record = super().label(shard, attempt)
        if shard == 7:
            leave_blocks(self.pairs)
        return record


@pytest.mark.long
@pytest.mark.ray
def test_errors_come_out_as_they_are_a_full_disk_is_waited_for_and_the_other_shards_are_done(
    ray_cluster, make_store, store_bytes, events, monkeypatch
):
    """By one actor, which is taken for one of another machine: there a task removes what it leaves."""
    monkeypatch.setattr(ray_pool.ActorProcess, "is_here", False)
    monkeypatch.setattr(ray_pool, "sweep_node", _sweep_in_a_task())
    alone, pairs = own_stores(make_store, seed=72)
    settings = LabelSettings(labeler=TroubledLabeler, on_event=events, policy=Policy(full_wait_s=3.0))
    with pytest.raises(NonFiniteLabelError, match="row 130") as caught:
        label_with_actors(pairs.location.url, ONE, settings)
    assert str(caught.value).count("row 130 has no finite end point") == 4
    assert pairs.pending() == [1]
    check_progress(type(events)([*events, ShardDone(8, 8, events.records[0])]), 8, 1)
    failed = events.of("attempt_failed")
    assert [entry["reason"] for entry in failed if entry["shard"] == 3] == ["no space left on the device"]
    assert [entry["action"] for entry in failed if entry["shard"] == 1] == ["retry"] * 3 + ["give_up"]
    assert len(failed) == 5
    assert len(events.of("worker_started")) == 1
    # The run waits 10 s for the task, whose process may take longer to start.
    deadline = time.monotonic() + patience(60)
    while list(SHARED_MEMORY.glob(f"*/{pairs.plan.run_id}*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    label_inline(pairs.location.url)
    assert store_bytes(pairs.location.url) == store_bytes(alone.location.url)


def _sweep_in_a_task():
    """Sweeps in a process that Ray has started, and nowhere else."""
    driver = os.getpid()

    def sweep():
        if os.getpid() != driver:
            sweep_node()

    return sweep


class RefusingLabeler(ShardLabeler):
    """Cannot open its store."""

    def __init__(self, url, *, num_threads=1, device=None):
        raise StoreError("reference/order is not an ordering of the 480 reference rows")


@pytest.mark.ray
def test_what_an_actor_says_when_it_cannot_start_comes_out_as_it_is(ray_cluster, make_store):
    with pytest.raises(StoreError, match=r"^reference/order is not an ordering of the 480 reference rows$"):
        label_with_actors(make_store().location.url, ONE, LabelSettings(labeler=RefusingLabeler))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("keys", "num_threads", "message"),
    [({"num_gpus_per_actor": 3}, 1, "the cluster has 2 GPUs"), ({}, 64, "the cluster has 4 CPUs")],
)
def test_what_the_cluster_cannot_hold_is_refused(ray_cluster, make_store, keys, num_threads, message):
    settings = LabelSettings(num_threads=num_threads)
    with pytest.raises(ConfigError, match=message):
        label_with_actors(make_store().location.url, ExecutorConfig(**keys), settings)


@pytest.mark.parametrize(
    ("executor", "num_pairs"),
    [
        pytest.param("inline", 1000, marks=pytest.mark.slow),
        pytest.param("ray", 12_000, marks=(pytest.mark.chaos, pytest.mark.ray, pytest.mark.slow)),
    ],
)
def test_a_killed_driver_goes_on_where_it_was(make_job, store_bytes, tmp_path, executor, num_pairs):
    """SIGKILL in mid-run, the same command again: the bits of an undisturbed run."""
    from sfg_dist.pipeline.pipeline import Pipeline

    labels = {"num_pairs": num_pairs, "num_evaluations": 64}
    undisturbed = Pipeline(make_job("undisturbed", labels=labels))
    undisturbed.label()
    job = make_job("killed", labels=labels, executor={"kind": executor})
    path = tmp_path / "job.toml"
    path.write_text(job.to_toml())
    commits = tmp_path / "killed" / "pairs.zarr" / "commits"
    # Inline, the driver waits at its fourth shard; with Ray its actors are killed wherever they are.
    with held_sfg("label", path, shards=3) as driver:
        wait_for(driver, lambda: len(list(commits.glob("*.json"))) >= 3)
        driver.kill()
    kept = {file: file.stat().st_mtime_ns for file in commits.glob("*.json")}
    assert 3 <= len(kept) < undisturbed.open_store().plan.num_shards
    if executor == "inline":
        sfg(tmp_path, "label", path)
    else:
        subprocess.run([sys.executable, "-m", "sfg_dist", "label", path], check=True, stdout=subprocess.DEVNULL)
    assert all(file.stat().st_mtime_ns == at for file, at in kept.items())
    assert store_bytes(tmp_path / "killed") == store_bytes(tmp_path / "undisturbed")
    assert sfg_dist.open_pairs(tmp_path / "killed").is_complete
