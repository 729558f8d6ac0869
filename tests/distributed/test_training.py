"""The fit: one loop, any number of ranks; resumed, it goes on at the next batch."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import sfg
from held import held_sfg, wait_for
from patience import patience
from ranks import Processes, record_batches

from sfg_dist.distributed.fit import checkpoints, fit_loop, training
from sfg_dist.distributed.fit.checkpoints import Checkpoints
from sfg_dist.distributed.fit.hold import take_hold
from sfg_dist.distributed.fit.journal import Journal
from sfg_dist.distributed.fit.training import fit_inline, fit_with_workers
from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.job.config import TrainConfig
from sfg_dist.job.errors import IncompleteStoreError, TrainingError
from sfg_dist.model.trainer import Trainer
from sfg_dist.store import Location, open_pairs

# Beside the session's: on one Ray, what is killed there would take as long as all else that runs apart.
on_a_second_ray = pytest.mark.xdist_group("second ray")


def make_settings(**changed):
    """Settings of a small fit; what is changed may lie beyond what a job may say, as a checkpoint at every step."""
    settings = {
        "width": 16,
        "depth": 1,
        "activation": "silu",
        "batch_size": 64,
        "learning_rate": 5e-3,
        "learning_rate_schedule": "cosine",
        "weight_decay": 0.0,
        "ema_decay": 0.9,
        "precision": "float32",
        "num_epochs": 3,
        "max_time_s": None,
        "validation_fraction": 0.1,
        "shuffle_rows": 256,
        "checkpoint_interval_s": 1000.0,
        "num_threads": 1,
    }
    return TrainConfig().model_copy(update=settings | changed)


DIVERGING = make_settings(learning_rate=1e6, weight_decay=1e6)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(("num_threads", "is_told"), [(2, True), (1, False)])
def test_steps_that_spinning_slows_are_told_of_without_a_listener(url, tmp_path, monkeypatch, num_threads, is_told):
    """A program that calls the fit as a library has no display; one thread has nobody to wait for."""
    seen = []
    monkeypatch.setattr(fit_loop, "LIVE_INTERVAL_S", 0.0)
    monkeypatch.setattr(fit_loop.SpinWatch, "word", lambda self, seconds: seen.append(seconds) or "threads that spin")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_inline(url, tmp_path / "c", make_settings(num_epochs=2, num_threads=num_threads))
    assert ("threads that spin" in {str(warning.message) for warning in caught}) is is_told
    assert all(seconds > 0 for seconds in seen)


@pytest.mark.slow
def test_the_fit_learns_and_its_history_is_whole(url, tmp_path):
    entries = []
    _, history = fit_inline(url, tmp_path / "c", make_settings(num_epochs=24), on_epoch=entries.append)
    assert history == entries
    assert [entry["epoch"] for entry in history] == list(range(1, 25))
    assert history[-1]["step"] == 24 * 15  # 900 training rows in batches of 64
    assert history[-1]["validation_loss"] < 0.5 * history[0]["validation_loss"]
    assert all(np.isfinite(list(entry.values())).all() for entry in history)


@pytest.mark.slow
def test_the_fit_repeats(url, tmp_path):
    first, _ = fit_inline(url, tmp_path / "a", make_settings())
    second, _ = fit_inline(url, tmp_path / "b", make_settings())
    other, _ = fit_inline(url, tmp_path / "c", make_settings(seed=1))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


class Stop(Exception):
    """Stands for a kill in the middle of an epoch."""


def cut_at(monkeypatch, step, url, place, settings):
    """A fit that ends as soon as its checkpoint of a step is written."""
    saved = Checkpoints.save

    def save_and_stop(self, trainer, *more):
        saved(self, trainer, *more)
        if trainer.progress.step == step:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(Stop):
            fit_inline(url, place, settings)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 7, 15, 20])
def test_a_stopped_fit_goes_on_at_the_next_batch(url, tmp_path, monkeypatch, stop_at):
    whole, history = fit_inline(url, tmp_path / "whole", make_settings())
    settings, rows = make_settings(checkpoint_interval_s=0.0), []
    cut_at(monkeypatch, stop_at, url, tmp_path / "cut", settings)
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, y, x, n, done: (rows.append(n), step(self, y, x, n, done))[1])
    resumed, resumed_history = fit_inline(url, tmp_path / "cut", settings)
    assert len(rows) == 45 - stop_at
    assert torch.equal(weights(resumed), weights(whole))
    assert [entry["step"] for entry in resumed_history] == [entry["step"] for entry in history]


@pytest.mark.slow
def test_a_finished_fit_is_not_trained_again_and_more_epochs_go_on(url, tmp_path):
    first, _ = fit_inline(url, tmp_path / "c", make_settings())
    again, history = fit_inline(url, tmp_path / "c", make_settings())
    assert torch.equal(weights(first), weights(again))
    assert len(history) == 3
    _, longer = fit_inline(url, tmp_path / "c", make_settings(num_epochs=5))
    assert [entry["epoch"] for entry in longer] == [1, 2, 3, 4, 5]


def test_checkpoints_of_another_fit_are_not_taken_up(url, tmp_path):
    fit_inline(url, tmp_path / "c", make_settings())
    with pytest.warns(UserWarning, match="other train keys or pairs: training starts anew"):
        _, history = fit_inline(url, tmp_path / "c", make_settings(learning_rate=1e-3))
    assert [entry["epoch"] for entry in history] == [1, 2, 3]


@pytest.mark.slow
def test_only_the_newest_checkpoints_are_kept_and_nothing_is_pickled(url, tmp_path):
    fit_inline(url, tmp_path / "c", make_settings(checkpoint_interval_s=0.0))
    assert len(list((tmp_path / "c").glob("step_*"))) == 2
    assert {file.suffix for file in (tmp_path / "c").rglob("*") if file.is_file()} == {
        ".safetensors",
        ".json",
        ".jsonl",
    }


def test_a_torn_checkpoint_says_what_to_do(url, tmp_path):
    fit_inline(url, tmp_path / "c", make_settings())
    (newest,) = (tmp_path / "c").glob("step_*")
    (newest / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainingError, match="remove its parent directory"):
        fit_inline(url, tmp_path / "c", make_settings())


@pytest.mark.slow
def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(url, tmp_path):
    whole, _ = fit_inline(url, tmp_path / "c", make_settings(checkpoint_interval_s=0.0))
    newest = max((tmp_path / "c").glob("step_*"))
    (newest / "state.safetensors").write_bytes(b"torn")
    (tmp_path / "c" / checkpoints.FITTED_NAME).unlink()
    with pytest.warns(UserWarning, match="going on from the one before"):
        again, history = fit_inline(url, tmp_path / "c", make_settings(checkpoint_interval_s=0.0))
    assert torch.equal(weights(again), weights(whole))
    assert len(history) == 3


@pytest.mark.slow
def test_later_checkpoints_leave_the_record_of_the_fit_alone(url, tmp_path, monkeypatch):
    """Written anew each time, it would be empty after a kill in between, and the checkpoints another fit's."""
    written = []
    write = Location.write

    def note(location, key, content):
        written.append(key)
        return write(location, key, content)

    monkeypatch.setattr(Location, "write", note)
    fit_inline(url, tmp_path / "c", make_settings(checkpoint_interval_s=0.0))
    assert len([key for key in written if key.endswith("progress.json")]) > 1
    assert written.count("fit.json") == 1


def test_a_kill_between_the_checkpoint_and_the_network_is_not_a_finished_fit(url, tmp_path, monkeypatch):
    run_id = open_pairs(url).plan.run_id
    fit_inline(url, tmp_path / "c", make_settings(num_epochs=2))
    settings = make_settings(num_epochs=4)
    with monkeypatch.context() as patch:
        patch.setattr(fit_loop, "save_fitted", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            fit_inline(url, tmp_path / "c", settings)
    assert not Checkpoints(tmp_path / "c", settings, run_id).is_finished
    _, history = fit_inline(url, tmp_path / "c", settings)
    assert len(history) == 4
    assert Checkpoints(tmp_path / "c", settings, run_id).is_finished


class Ticking:
    """A watch on which every look takes a hundredth of a second."""

    def __init__(self, elapsed_s):
        self._elapsed_s = elapsed_s

    @property
    def elapsed_s(self):
        self._elapsed_s += 0.01
        return self._elapsed_s


@pytest.mark.slow
def test_the_clock_stops_the_fit_and_ends_the_schedule(url, tmp_path, monkeypatch):
    started = time.monotonic()
    _, history = fit_inline(url, tmp_path / "real", make_settings(num_epochs=100_000, max_time_s=0.3))
    assert time.monotonic() - started > 0.3
    assert history[-1]["elapsed_s"] >= 0.3
    monkeypatch.setattr(fit_loop, "Stopwatch", Ticking)
    settings = make_settings(num_epochs=100_000, max_time_s=1.5)
    _, history = fit_inline(url, tmp_path / "c", settings)
    assert history[-1]["elapsed_s"] >= 1.5
    assert history[-1]["learning_rate"] < 0.5 * settings.learning_rate


def test_an_epoch_that_the_clock_has_cut_short_is_gone_on_with(url, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fit_loop, "Stopwatch", Ticking)
        _, history = fit_inline(url, tmp_path / "c", make_settings(num_epochs=2, max_time_s=0.2))
    cut = history[-1]["step"]
    assert len(history) == 1
    assert 0 < cut < 15
    _, history = fit_inline(url, tmp_path / "c", make_settings(num_epochs=2))
    assert [(entry["epoch"], entry["step"]) for entry in history] == [(1, cut), (1, 15), (2, 30)]


def test_a_diverging_fit_says_so(url, tmp_path):
    with pytest.raises(TrainingError, match=r"smaller train\.learning_rate"):
        fit_inline(url, tmp_path / "c", DIVERGING)


def test_missing_shards_are_refused(make_store, tmp_path):
    pairs = make_store()
    with pytest.raises(IncompleteStoreError, match="8 of 8 shards are missing"):
        fit_inline(pairs.location.url, tmp_path / "c", make_settings())


def test_too_few_pairs_are_refused(make_store, tmp_path):
    pairs = make_store(labels={"num_pairs": 1})
    label_inline(pairs.location.url)
    with pytest.raises(TrainingError, match=r"too few to train on; raise labels\.num_pairs"):
        fit_inline(pairs.location.url, tmp_path / "c", make_settings())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, pytest.param(True, marks=[pytest.mark.chaos, on_a_second_ray])])
def test_two_workers_fit_what_one_fits(ray_cluster, url, tmp_path, monkeypatch, is_killed):
    """One process begins the fit, two workers go on with it, and one ends it. The two see each pair once an epoch.

    They are workers of Ray where one is killed and replaced, else two processes in their place. Then they begin a fit
    that diverges: both end well, and rank 0 says why.
    """
    import ray.train.torch

    place, diverged, seen, marker = (tmp_path / name for name in ("c", "diverged", "seen", "killed"))
    seen.mkdir()
    settings = make_settings(checkpoint_interval_s=1e-9, keep_checkpoints=50, num_workers=2)
    alone, alone_history = fit_inline(url, tmp_path / "alone", settings)
    cut_at(monkeypatch, 15, url, place, settings)
    worker = training._ray_worker
    other = {"settings": DIVERGING.model_dump(), "checkpoints": str(diverged)}
    other["attempt"] = take_hold(diverged)

    def dying_worker(config):
        whole = Trainer.step
        record_batches(seen)
        step = Trainer.step

        def step_or_die(self, latents, labels, global_rows, done):
            if torch.distributed.get_rank() == 1 and self.progress.step == 35 and not marker.exists():
                marker.write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, latents, labels, global_rows, done)

        Trainer.step = step_or_die
        worker(config)
        Trainer.step = whole
        worker(config | other)

    if is_killed:
        monkeypatch.setattr(training, "_ray_worker", dying_worker)
    else:
        monkeypatch.setattr(ray.train.torch, "TorchTrainer", partial(Processes, seen, other))
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(patience(120)))
    entries = []
    model, history = fit_with_workers(url, place, settings, use_gpu=False, on_epoch=entries.append)
    assert marker.exists() == is_killed
    assert entries == history[1:]  # what an earlier attempt told is not told again
    assert [entry["step"] for entry in history] == [15, 30, 45]
    # The same global batches, so the same fit up to the order in which two ranks add up a gradient.
    torch.testing.assert_close(weights(model), weights(alone), rtol=1e-3, atol=1e-4)
    for two, one in zip(history, alone_history, strict=True):
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-3)
    assert history[1]["train_loss"] == pytest.approx(alone_history[1]["train_loss"], rel=1e-3)
    latents = open_pairs(url).latents[:900].compute()
    for epoch in (1, 2):
        parts = [[np.load(file) for file in sorted(seen.glob(f"rank{rank}_epoch{epoch}_*"))] for rank in range(2)]
        assert all(len(part) == 15 for part in parts)
        rows = np.concatenate([np.concatenate(part) for part in parts])
        order, expected = np.lexsort(rows.T), np.lexsort(latents.T)
        assert np.array_equal(rows[order], latents[expected])
    assert re.search(r"smaller train\.learning_rate", Journal(diverged).take_failure())
    Checkpoints(place, settings, open_pairs(url).plan.run_id).go_back_to("40")
    ended, ended_history = fit_inline(url, place, settings)
    torch.testing.assert_close(weights(ended), weights(alone), rtol=1e-3, atol=1e-4)
    assert [entry["step"] for entry in ended_history] == [15, 30, 45]


@on_a_second_ray
@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_costs_no_more_than_the_steps_since_the_checkpoint(ray_cluster, url, tmp_path, monkeypatch):
    worker = training._ray_worker
    marker = tmp_path / "killed"

    def dying_worker(config):
        step = Trainer.step

        def step_or_die(self, latents, labels, global_rows, done):
            if self.progress.step == 20 and not marker.exists():
                marker.write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, latents, labels, global_rows, done)

        Trainer.step = step_or_die
        worker(config)

    monkeypatch.setattr(training, "_ray_worker", dying_worker)
    settings, entries = make_settings(checkpoint_interval_s=1e-9), []
    model, history = fit_with_workers(url, tmp_path / "c", settings, use_gpu=False, on_epoch=entries.append)
    assert marker.exists()
    assert entries == history  # what the killed worker told is not told again
    whole, _ = fit_inline(url, tmp_path / "whole", make_settings())
    assert torch.equal(weights(model), weights(whole))
    assert [entry["epoch"] for entry in history] == [1, 2, 3]


@on_a_second_ray
@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
def test_an_error_of_rank_zero_alone_does_not_leave_the_other_waiting(ray_cluster, url, tmp_path, monkeypatch):
    worker = training._ray_worker

    def full_disk_worker(config):
        def full(*_):
            raise TrainingError("cannot write a checkpoint: no space left on the device")

        Checkpoints.save = full
        worker(config)

    monkeypatch.setattr(training, "_ray_worker", full_disk_worker)
    settings = make_settings(checkpoint_interval_s=1e-9, num_workers=2)
    with pytest.raises(TrainingError, match="no space left"):
        fit_with_workers(url, tmp_path / "c", settings, use_gpu=False, max_failures=0)


class InProcess:
    """Stands for Ray Train: one worker, in this process."""

    def __init__(self, loop, *, train_loop_config, **_):
        self.loop, self.config = loop, train_loop_config

    def fit(self):
        self.loop(self.config)

    def get_world_rank(self):
        return 0

    def get_world_size(self):
        return 1


@pytest.mark.ray
def test_a_diverging_fit_on_workers_says_so_once(ray_cluster, url, tmp_path, monkeypatch):
    import ray.train.torch

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", InProcess)
    monkeypatch.setattr(ray.train, "get_context", lambda: InProcess(None, train_loop_config={}))
    with pytest.raises(TrainingError, match=r"smaller train\.learning_rate"):
        fit_with_workers(url, tmp_path / "c", DIVERGING, use_gpu=False)
    assert Journal(tmp_path / "c").take_failure() is None


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_training_driver_goes_on(make_job, tmp_path):
    from sfg_dist.pipeline.pipeline import Pipeline

    keys = {"width": 16, "depth": 1, "num_epochs": 3, "batch_size": 64, "checkpoint_interval_s": 1e-6}
    job = make_job(train=keys)
    pipeline = Pipeline(job)
    pipeline.label()
    path = tmp_path / "job.toml"
    path.write_text(job.to_toml())
    with held_sfg("train", path, steps=20) as driver:  # in the second of three epochs
        newest = Path(pipeline.checkpoints_url, "step_000000020", "progress.json")
        wait_for(driver, newest.exists)
        driver.kill()
    sfg(tmp_path, "train", path)
    events = [json.loads(line) for line in Path(pipeline.url, "events.jsonl").read_text().splitlines()]
    begun = [event["fresh"] for event in events if event["event"] == "stage_started" and event["stage"] == "train"]
    assert begun == [True, False]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3]


@pytest.mark.long
@pytest.mark.slow
def test_memory_stays_flat_as_the_store_grows_tenfold(make_store, tmp_path):
    """Peak memory of two fits in a process of their own, on 1.6 MB and then on 16 MB of pairs."""
    code = """
import json, resource, sys
from pathlib import Path
from sfg_dist.distributed.fit.training import fit_inline
from sfg_dist.job.config import TrainConfig
settings = TrainConfig(**json.loads(sys.argv[1]))
for url in sys.argv[2:]:
    fit_inline(url, Path(url).parent / "c", settings)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    urls = []
    for num_pairs in (100_000, 1_000_000):
        pairs = make_store(
            f"store{num_pairs}", labels={"num_pairs": num_pairs, "shard_rows": 20_480, "batch_size": 20_480}
        )
        for shard in range(pairs.plan.num_shards):
            start, stop = pairs.plan.shard_range(shard)
            rows = np.random.default_rng(shard).standard_normal((stop - start, 2)).astype(np.float32)
            pairs.write_shard(shard, rows, rows)
        urls.append(pairs.location.url)
    settings = make_settings(batch_size=4096, shuffle_rows=40_960, num_epochs=1, validation_fraction=0.01)
    command = [sys.executable, "-c", code, settings.model_dump_json(), *urls]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    small, large = (int(line) / 1024 for line in done.stdout.split())
    # The larger store's pairs are 16 MB, ten times the smaller one's; the fit must not hold them.
    assert large - small < 6
