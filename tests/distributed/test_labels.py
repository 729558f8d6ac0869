"""Labels of shards: the same bits by any executor, and nothing lost when actors and drivers die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from patience import patience

import sfg_dist
from sfg_dist.distributed import ray_pool
from sfg_dist.distributed.actors import label_with_actors
from sfg_dist.distributed.inline import label_inline
from sfg_dist.distributed.labeler import ShardLabeler
from sfg_dist.distributed.node_table import SHARED_MEMORY, SUFFIX, sweep_node, table_directory
from sfg_dist.errors import ClusterError, LabelingError, NonFiniteLabelError, PlanMismatchError
from sfg_dist.flow import Reference, label_latents
from sfg_dist.plan import Stream, normal_rows


@pytest.fixture
def inline_store(make_store, store_bytes):
    """Bytes of an undisturbed store, labelled inline."""
    pairs = make_store("inline")
    label_inline(pairs.location.url)
    assert pairs.is_complete
    return store_bytes(pairs.location.url)


def test_inline_labels_are_the_flows(make_store):
    pairs = make_store()
    label_inline(pairs.location.url)
    settings = pairs.plan.labels
    latents = normal_rows(settings["seed"], Stream.LATENTS, 0, 1000, 2)
    expected = label_latents(
        latents, Reference(pairs.reference), t_min=settings["t_min"], num_evaluations=8, batch_size=64
    )
    assert np.array_equal(pairs.latents.compute(), latents)
    assert np.array_equal(pairs.labels.compute(), expected)


@pytest.mark.parametrize("num_pairs", [1, 63, 128, 129, 1000])
def test_a_row_count_that_nothing_divides_loses_nothing(make_store, num_pairs):
    pairs = make_store(labels={"num_pairs": num_pairs})
    label_inline(pairs.location.url)
    assert pairs.labels.shape == (num_pairs, 2)
    assert np.isfinite(pairs.labels.compute()).all()


def test_a_longer_run_begins_with_the_rows_of_a_shorter_one(make_store):
    short, long = make_store("short", labels={"num_pairs": 300}), make_store("long")
    for pairs in (short, long):
        label_inline(pairs.location.url)
    assert np.array_equal(short.labels.compute(), long.labels.compute()[:300])


def test_encoded_rows_are_blurred_data_and_their_latents_decode_to_them(make_store):
    pairs = make_store(labels={"direction": "encode", "num_evaluations": 64, "t_min": 0.01})
    label_inline(pairs.location.url)
    latents, labels = pairs.latents.compute(), pairs.labels.compute()
    nearest = np.linalg.norm(labels[:, None] - pairs.reference[None], axis=2).min(axis=1)
    # Blur of 0.1 standard deviations about training rows: 0.049 to the nearest; of 0.01 it would be 0.011.
    assert 0.03 < np.median(nearest) < 0.08
    assert np.abs(latents.mean(axis=0)).max() < 0.15
    assert np.abs(latents.std(axis=0) - 1).max() < 0.15
    back = label_latents(latents, pairs.reference, t_min=0.01, num_evaluations=64)
    assert np.median(np.linalg.norm(back - labels, axis=1)) < 1e-3


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


def test_the_minibatch_estimator_draws_anew_for_each_batch(make_store):
    pairs = make_store(labels={"estimator": "minibatch", "num_reference": 50})
    labeler = ShardLabeler(pairs.location.url)
    first, again, other = (labeler._batch_reference(row) for row in (0, 0, 64))
    assert first.num_reference == 50
    assert np.array_equal(first.keys, again.keys)
    assert not np.array_equal(first.keys, other.keys)
    label_inline(pairs.location.url)
    assert np.isfinite(pairs.labels.compute()).all()


def test_a_fitted_grid_stands_in_the_plan_and_a_resume_takes_it_from_there(make_store, monkeypatch):
    labels = {"time_grid": "fitted", "direction": "both", "num_evaluations": 12, "num_pairs": 256}
    pairs = make_store(labels=labels)
    grids = pairs.plan.identity["time_grid"]
    assert set(grids) == {"decode", "encode"}
    assert all(len(grid) == 13 and grid[0] == 0 for grid in grids.values())
    label_inline(pairs.location.url)
    expected = label_latents(
        normal_rows(0, Stream.LATENTS, 0, 128, 2), Reference(pairs.reference), t_min=1e-3, num_evaluations=12,
        time_grid=grids["decode"], batch_size=64,
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
        label_inline(make_store().location.url, num_threads=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.ray
@pytest.mark.parametrize("num_actors", [1, 2, 4])
def test_any_number_of_actors_gives_the_bits_of_the_inline_executor(
    ray_cluster, make_store, store_bytes, inline_store, num_actors
):
    pairs = make_store("ray")
    seen = []
    label_with_actors(
        pairs.location.url,
        num_actors=num_actors,
        num_gpus_per_actor=0,
        on_progress=lambda done, total, record: seen.append((done, total, record["pid"])),
    )
    assert store_bytes(pairs.location.url) == inline_store
    assert [done for done, _, _ in seen] == list(range(1, 9))
    assert len({pid for _, _, pid in seen}) <= num_actors


@pytest.mark.ray
def test_a_killed_actor_is_replaced_and_its_shards_are_done_again(ray_cluster, make_store, store_bytes, inline_store):
    pairs = make_store("ray")
    killed = []

    def kill_one(done, total, record):
        if done == 2:
            os.kill(record["pid"], signal.SIGKILL)
            killed.append(record["pid"])

    label_with_actors(pairs.location.url, num_actors=2, num_gpus_per_actor=0, on_progress=kill_one)
    assert killed
    assert store_bytes(pairs.location.url) == inline_store


class ScriptedLabeler(ShardLabeler):
    """Dies on shard 3 as often as the file beside the store says, counting its calls there."""

    def label(self, shard, attempt=1):
        if shard == 3:
            log = Path(self.pairs.location.root.parent / "calls")
            log.write_text((log.read_text() if log.exists() else "") + f"{attempt} ")
            deaths = int((log.parent / "deaths").read_text())
            if attempt <= deaths:
                os._exit(1)
        return super().label(shard, attempt)


@pytest.mark.ray
@pytest.mark.parametrize("deaths", [2, 99])
def test_a_shard_that_kills_its_actor_is_tried_a_bounded_number_of_times(
    ray_cluster, make_store, store_bytes, inline_store, deaths
):
    pairs = make_store("ray")
    root = pairs.location.root.parent
    (root / "deaths").write_text(str(deaths))
    arguments = {"num_actors": 1, "num_gpus_per_actor": 0, "labeler": ScriptedLabeler}
    if deaths == 2:
        label_with_actors(pairs.location.url, **arguments)
        assert (root / "calls").read_text().split() == ["1", "2", "3"]
        assert store_bytes(pairs.location.url) == inline_store
    else:
        with pytest.raises(LabelingError, match="shard 3 was given up after 4 attempts") as caught:
            label_with_actors(pairs.location.url, **arguments)
        assert (root / "calls").read_text().split() == ["1", "2", "3", "4"]
        assert pairs.pending() == [3]  # the others are done all the same
        assert str(caught.value).count("the worker was lost") == 4
        assert "smaller labels.batch_size" in str(caught.value)


class LeavingLabeler(ShardLabeler):
    """Leaves with its last shard what a killed process does: a file of blocks that nobody holds."""

    def label(self, shard, attempt=1):
        record = super().label(shard, attempt)
        if shard == 7:
            (table_directory(SHARED_MEMORY) / f"{self.pairs.plan.run_id}{SUFFIX}").write_bytes(b"blocks")
        return record


@pytest.mark.ray
@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system has no /dev/shm")
@pytest.mark.parametrize("is_here", [True, False])
def test_a_run_leaves_nothing_in_shared_memory(ray_cluster, make_store, monkeypatch, is_here):
    """Nor on other machines' nodes, which a task sweeps; here the one machine is taken for another."""
    if not is_here:
        monkeypatch.setattr(ray_pool.Process, "is_here", False)
        monkeypatch.setattr(ray_pool, "sweep_node", _sweep_in_a_task())
    pairs = make_store()
    label_with_actors(pairs.location.url, num_actors=1, num_gpus_per_actor=0, labeler=LeavingLabeler)
    assert pairs.is_complete
    assert not list(SHARED_MEMORY.glob(f"*/{pairs.plan.run_id}*"))


def _sweep_in_a_task():
    """Sweeps in a process that Ray has started, and nowhere else."""
    driver = os.getpid()

    def sweep():
        if os.getpid() != driver:
            sweep_node()

    return sweep


class FailingLabeler(ShardLabeler):
    """Fails on shard 1 with an error of the package's own."""

    def label(self, shard, attempt=1):
        if shard == 1:
            raise NonFiniteLabelError("shard 1: row 130 has no finite end point")
        return super().label(shard, attempt)


@pytest.mark.ray
def test_an_error_of_the_labeler_comes_out_as_it_is_and_the_other_shards_are_done(ray_cluster, make_store):
    pairs = make_store()
    with pytest.raises(NonFiniteLabelError, match="row 130") as caught:
        label_with_actors(pairs.location.url, num_actors=1, num_gpus_per_actor=0, labeler=FailingLabeler)
    assert pairs.pending() == [1]
    assert str(caught.value).count("row 130 has no finite end point") == 4


class DeviceLabeler(ShardLabeler):
    """Notes which GPUs its actor was given; the work itself stays on the CPU."""

    def __init__(self, url, *, num_threads=1):
        import torch

        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        super().__init__(url, num_threads=num_threads, device=torch.device("cpu"))

    def label(self, shard, attempt=1):
        # No actor goes on before all have begun, so each gets a share however long the others take to start.
        root = self.pairs.location.root.parent
        (root / f"began_{os.getpid()}").touch()
        deadline = time.monotonic() + patience(120)
        while len(list(root.glob("began_*"))) < int((root / "num_actors").read_text()):
            assert time.monotonic() < deadline, "the other actors never began"
            time.sleep(0.02)
        return super().label(shard, attempt) | {"visible": self.visible}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("gpus", "num_actors", "devices"), [(1, 2, ["0", "1"]), (0.5, 4, ["0", "0", "1", "1"]), (None, None, ["0", "1"])]
)
def test_each_actor_sees_its_own_gpu_and_fractions_pack(ray_cluster, make_store, gpus, num_actors, devices):
    pairs = make_store()
    (pairs.location.root.parent / "num_actors").write_text(str(len(devices)))
    seen = {}
    label_with_actors(
        pairs.location.url,
        num_actors=num_actors,
        num_gpus_per_actor=gpus,
        labeler=DeviceLabeler,
        on_progress=lambda done, total, record: seen.update({record["pid"]: record["visible"]}),
    )
    assert sorted(seen.values()) == devices


@pytest.mark.ray
@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_gpus_per_actor": 3}, "the cluster has 2 GPUs"), ({"num_threads": 64}, "the cluster has 4 CPUs")],
)
def test_what_the_cluster_cannot_hold_is_refused(ray_cluster, make_store, arguments, message):
    with pytest.raises(ClusterError, match=message):
        label_with_actors(make_store().location.url, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_killed_driver_goes_on_where_it_was(make_job, store_bytes, executor, tmp_path):
    """SIGKILL in mid-run, the same command again: the bits of an undisturbed run."""
    from sfg_dist.pipeline import Pipeline

    labels = {"num_pairs": 12_000, "num_evaluations": 64}
    Pipeline(make_job("undisturbed", labels=labels)).label()
    job = make_job("killed", labels=labels, executor={"kind": executor})
    path = tmp_path / "job.toml"
    path.write_text(job.to_toml())
    command = [sys.executable, "-m", "sfg_dist.cli", "label", str(path)]
    commits = tmp_path / "killed" / "pairs.zarr" / "commits"
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + patience(120)
        while len(list(commits.glob("*.json"))) < 3:
            assert time.monotonic() < deadline
            assert driver.poll() is None, "the driver ended before it could be killed"
            time.sleep(0.005)
        driver.kill()
    kept = {file: file.stat().st_mtime_ns for file in commits.glob("*.json")}
    assert 3 <= len(kept) < 94
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert all(file.stat().st_mtime_ns == at for file, at in kept.items())
    assert store_bytes(tmp_path / "killed") == store_bytes(tmp_path / "undisturbed")
    assert sfg_dist.open_pairs(tmp_path / "killed").is_complete
