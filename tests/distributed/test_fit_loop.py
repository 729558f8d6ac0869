"""What a fit does beside its epochs: ends early, says how far it is, goes back to a checkpoint, runs in a bucket."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from patience import patience
from test_training import cut_at, make_settings, weights

from sfg_dist.distributed.fit import fit_loop, training
from sfg_dist.distributed.fit.checkpoints import LIVE_NAME, Checkpoints, newest_step
from sfg_dist.distributed.fit.hold import take_hold
from sfg_dist.distributed.fit.journal import Journal
from sfg_dist.distributed.fit.training import fit_inline
from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.job.errors import TrainingError
from sfg_dist.model.trainer import Trainer
from sfg_dist.store import Location, open_pairs, stream


def changed(settings, **keys):
    return settings.model_copy(update=keys)


class ScriptedLosses:
    """Held-out losses as a test wants them, one an epoch."""

    def __init__(self, monkeypatch, losses):
        self.losses, self.averages = list(losses), []

        def scripted(trainer, *_):
            self.averages.append({name: tensor.clone() for name, tensor in trainer.average.items()})
            return self.losses[len(trainer.progress.history)]

        monkeypatch.setattr(Trainer, "validation_loss", scripted)


LOSSES = [5.0, 3.0, 4.0, 3.5, 3.2, 9.0, 9.0]


@pytest.mark.slow
def test_a_fit_that_gets_no_better_ends_with_the_best_averaged_weights(url, tmp_path, monkeypatch):
    script = ScriptedLosses(monkeypatch, LOSSES)
    settings = make_settings(num_epochs=7, patience=3)
    model, history = fit_inline(url, tmp_path / "c", settings)
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5]
    best = script.averages[1]
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())
    run_id = open_pairs(url).plan.run_id
    assert Checkpoints(tmp_path / "c", settings, run_id).is_finished
    # With more patience the same fit goes on.
    assert not Checkpoints(tmp_path / "c", changed(settings, patience=5), run_id).is_finished


@pytest.mark.slow
def test_without_patience_all_epochs_are_done_and_the_last_weights_count(url, tmp_path, monkeypatch):
    script = ScriptedLosses(monkeypatch, LOSSES)
    model, history = fit_inline(url, tmp_path / "c", make_settings(num_epochs=7))
    assert len(history) == 7
    assert all(torch.equal(tensor, script.averages[6][name]) for name, tensor in model.state_dict().items())


@pytest.mark.long
@pytest.mark.slow
def test_a_stopped_fit_with_patience_ends_as_an_undisturbed_one(url, tmp_path, monkeypatch):
    ScriptedLosses(monkeypatch, LOSSES)
    settings = make_settings(num_epochs=7, patience=3, checkpoint_interval_s=0.0)
    whole, history = fit_inline(url, tmp_path / "whole", settings)
    for stop_at in (31, 50, 75):
        place = tmp_path / f"cut-{stop_at}"
        cut_at(monkeypatch, stop_at, url, place, settings)
        resumed, resumed_history = fit_inline(url, place, settings)
        assert torch.equal(weights(resumed), weights(whole)), stop_at
        assert [entry["epoch"] for entry in resumed_history] == [entry["epoch"] for entry in history]
        assert all(entry["train_loss"] > 0 and entry["rows_per_s"] > 0 for entry in resumed_history)


@pytest.mark.long
@pytest.mark.slow
def test_a_torn_copy_of_the_best_weights_sends_the_fit_one_checkpoint_back(url, tmp_path, monkeypatch):
    ScriptedLosses(monkeypatch, LOSSES)
    settings = make_settings(num_epochs=7, patience=3, checkpoint_interval_s=0.0)
    whole, _ = fit_inline(url, tmp_path / "whole", settings)
    cut_at(monkeypatch, 50, url, tmp_path / "cut", settings)
    torn = tmp_path / "cut" / "step_000000050" / "best.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.warns(UserWarning, match="going on from the one before"):
        resumed, _ = fit_inline(url, tmp_path / "cut", settings)
    assert torch.equal(weights(resumed), weights(whole))


def test_the_file_that_makes_a_checkpoint_whole_is_written_last(url, tmp_path, monkeypatch):
    """A kill between two files must leave none that the fit would go on from."""
    write, written = Location.write, []

    def note(location, key, content):
        written.append(key)
        write(location, key, content)

    monkeypatch.setattr(Location, "write", note)
    fit_inline(url, tmp_path / "c", make_settings(num_epochs=1, patience=3))
    (folder,) = {key.partition("/")[0] for key in written if key.startswith("step_")}
    names = [key.removeprefix(f"{folder}/") for key in written if key.startswith(folder)]
    assert sorted(names) == ["best.json", "best.safetensors", "progress.json", "state.safetensors"]
    assert names[-1] == "progress.json"


def test_a_long_epoch_says_how_far_it_is(url, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_loop, "LIVE_INTERVAL_S", 0.0)
    monkeypatch.setattr(fit_loop, "SYNC_STEPS", 4)
    live, epochs = [], []
    fit_inline(url, tmp_path / "c", make_settings(), on_live=live.append, on_epoch=epochs.append)
    assert [entry["step"] for entry in live] == list(range(4, 46, 4))
    assert [entry["epoch"] for entry in live[:4]] == [1, 1, 1, 2]
    assert all(entry["num_batches"] == 15 and 0 < entry["done"] <= 1 for entry in live)
    assert all(entry["rows_per_s"] > 0 and np.isfinite(entry["train_loss"]) for entry in live)
    # Means over a few batches each: over an epoch they come out at the epoch's own mean, roughly.
    assert np.mean([entry["train_loss"] for entry in live[:3]]) == pytest.approx(epochs[0]["train_loss"], rel=0.5)


@pytest.mark.slow
def test_a_signal_leaves_a_checkpoint_at_the_very_step(url, tmp_path, monkeypatch):
    settings = make_settings(num_epochs=3)
    whole, _ = fit_inline(url, tmp_path / "whole", settings)
    step = Trainer.step

    def step_and_ask(self, *arguments):
        loss = step(self, *arguments)
        if self.progress.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step_and_ask)
        with pytest.raises(KeyboardInterrupt):
            fit_inline(url, tmp_path / "c", settings)
    assert newest_step(tmp_path / "c") == 20
    resumed, _ = fit_inline(url, tmp_path / "c", settings)
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.slow
def test_a_fit_may_go_back_to_any_checkpoint_that_is_kept(url, tmp_path):
    place, run_id = tmp_path / "c", open_pairs(url).plan.run_id
    settings = make_settings(checkpoint_interval_s=0.0, keep_checkpoints=30)
    whole, history = fit_inline(url, place, settings)
    own, kept = Checkpoints(place, settings, run_id), sorted(path.name for path in place.glob("step_*"))
    assert len(kept) == 30
    for name in ("step_000000037", "29"):
        assert own.go_back_to(name).endswith(name)
        assert max(path.name for path in place.glob("step_*")).endswith(name)
        assert not own.is_finished
        again, again_history = fit_inline(url, place, settings)
        assert torch.equal(weights(again), weights(whole))
        assert [entry["step"] for entry in again_history] == [entry["step"] for entry in history]
    with pytest.raises(TrainingError, match=r"no whole checkpoint step_000000007; kept there: step_000000045, "):
        own.go_back_to("7")


@pytest.mark.slow
def test_a_fit_may_go_on_from_another_runs_checkpoint_with_another_rate_but_not_another_order(url, tmp_path):
    run_id = open_pairs(url).plan.run_id
    fit_inline(url, tmp_path / "one", make_settings(num_epochs=2))
    slower = make_settings(num_epochs=3, learning_rate=1e-4, clip_norm=1.0)
    source = str(tmp_path / "one" / "step_000000030")
    assert Checkpoints(tmp_path / "two", slower, run_id).go_back_to(source) == "step_000000030"
    _, history = fit_inline(url, tmp_path / "two", slower)
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert history[-1]["learning_rate"] < 1e-4 < history[0]["learning_rate"]
    for key, value, name in (("batch_size", 32, "batch_size"), ("seed", 1, "seed"), ("width", 8, "network")):
        other = Checkpoints(tmp_path / "three", changed(slower, **{key: value}), run_id)
        with pytest.raises(TrainingError, match=rf"is of another fit \(checkpoint -> job\): {name}"):
            other.go_back_to(source)
    with pytest.raises(TrainingError, match="pairs: "):
        Checkpoints(tmp_path / "three", slower, "another").go_back_to(source)
    with pytest.raises(TrainingError, match="is no directory"):
        Checkpoints(tmp_path / "three", slower, run_id).go_back_to(str(tmp_path / "nowhere" / "step_1"))


def test_a_notice_of_preemption_is_a_checkpoint_at_once(url, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_loop, "PREEMPTION_INTERVAL_S", 0.0)
    asked = []

    def is_preempted():
        asked.append(True)
        return len(asked) >= 2

    saved = []
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, trainer, *a: (saved.append(trainer.progress.step), save(self, trainer, *a))
    )
    training._fit_rank(
        url, tmp_path / "c", make_settings(), take_hold(tmp_path / "c"),
        rank=0, world_size=1, hooks=fit_loop.Hooks(is_preempted=is_preempted),
    )  # fmt: skip
    assert len(asked) >= 3
    assert saved == [16, 45]  # at the notice, once, and at the end


@pytest.mark.long
@pytest.mark.slow
def test_a_fit_in_a_bucket_is_the_one_in_a_directory(make_store, s3_url, tmp_path):
    """Store, checkpoints and their resume on an object store."""
    pairs = make_store(output={"dir": s3_url})
    label_inline(pairs.location.url)
    here = make_store("here")
    label_inline(here.location.url)
    settings = make_settings(checkpoint_interval_s=0.0, learning_rate_schedule="constant")
    _, history = fit_inline(pairs.location.url, f"{s3_url}/checkpoints", changed(settings, num_epochs=2))
    assert len(history) == 2
    there, _ = fit_inline(pairs.location.url, f"{s3_url}/checkpoints", settings)
    local, _ = fit_inline(here.location.url, tmp_path / "c", settings)
    assert torch.equal(weights(there), weights(local))
    name = Checkpoints(f"{s3_url}/checkpoints", settings, pairs.plan.run_id).go_back_to("44")
    again, _ = fit_inline(pairs.location.url, f"{s3_url}/checkpoints", settings)
    assert name == "step_000000044"
    assert torch.equal(weights(again), weights(local))


def test_a_live_word_is_passed_on_once_and_a_missing_one_is_none(tmp_path):
    heard, stop = [], threading.Event()
    journal = Journal(tmp_path)
    assert journal.read_live() is None
    word = dict.fromkeys(
        ("epoch", "step_in_epoch", "train_loss", "learning_rate", "rows_per_s", "elapsed_s", "done"), 1
    )
    word |= {"num_batches": 1, "num_workers": 1}
    journal.write_live({"step": 1, **word})
    with training._following(journal, None, heard.append):
        journal.write_live({"step": 2, **word})
        deadline = time.monotonic() + patience(30)
        while not heard:
            assert time.monotonic() < deadline
            stop.wait(0.05)
    assert heard == [{"step": 2, **word}]  # what an earlier fit said is not said again
    (tmp_path / LIVE_NAME).write_text(json.dumps({"step": 3, **word})[:-3])
    assert journal.read_live() is None


@pytest.mark.long
@pytest.mark.slow
def test_block_shuffle_and_full_shuffle_fit_equally_well(make_store, tmp_path, monkeypatch):
    """Windows of two of 16 shards against a permutation of all rows: losses equal within the spread of seeds."""
    pairs = make_store(labels={"num_pairs": 2048})
    label_inline(pairs.location.url)

    def final_losses(shuffle_rows):
        settings = [make_settings(num_epochs=4, shuffle_rows=shuffle_rows, seed=seed) for seed in range(4)]
        place = tmp_path / str(shuffle_rows)
        fits = [fit_inline(pairs.location.url, place / str(each.seed), each) for each in settings]
        return np.array([history[-1]["validation_loss"] for _, history in fits])

    in_blocks = final_losses(256)
    monkeypatch.setattr(stream, "_spread", lambda generator, sizes: generator.permutation(int(sizes.sum())))
    in_full = final_losses(2048)
    assert not np.array_equal(in_blocks, in_full)
    assert abs(in_blocks.mean() - in_full.mean()) < np.std(in_full, ddof=1)
