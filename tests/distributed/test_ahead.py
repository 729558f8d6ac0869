"""Training ahead of the labels: only committed rows, the epochs as without it, and kills that cost little."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from commands import sfg
from held import held_sfg
from held import wait_for as wait_for_driver
from patience import patience
from test_training import make_settings, weights

from sfg_dist.distributed.failure import Failure
from sfg_dist.distributed.fit import ahead, checkpoints
from sfg_dist.distributed.fit.ahead import held_resources, train_ahead, training_ahead
from sfg_dist.distributed.fit.training import fit_inline
from sfg_dist.distributed.labels.actors import label_with_actors
from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.job.config import ExecutorConfig, TrainConfig
from sfg_dist.model.trainer import Trainer
from sfg_dist.store import open_pairs


@pytest.fixture
def pairs(make_store):
    """A store of 8 shards of 128 rows, the last with 104, of which 0, 2, 5 and 7 are committed."""
    pairs = make_store()
    label_inline(pairs.location.url, LabelSettings(only=[0, 2, 5, 7]))
    return pairs


class Seen:
    """Notes the inputs of every step."""

    def __init__(self, monkeypatch):
        self.inputs = []
        step = Trainer.step

        def noted(trainer, inputs, *more):
            self.inputs.append(inputs.numpy().copy())
            return step(trainer, inputs, *more)

        monkeypatch.setattr(Trainer, "step", noted)

    def rows(self, pairs):
        """Row numbers of each batch."""
        number = {row.tobytes(): index for index, row in enumerate(pairs.latents.compute())}
        return [[number[row.tobytes()] for row in batch] for batch in self.inputs]


def stop_after(calls):
    left = iter([False] * calls)
    return lambda: next(left, True)


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(ahead, "POLL_S", 0.001)


@pytest.mark.slow
def test_a_pass_meets_the_committed_rows_that_are_not_held_out_once_each(pairs, tmp_path, monkeypatch):
    seen = Seen(monkeypatch)
    assert train_ahead(pairs.location.url, tmp_path / "c", make_settings(), should_stop=stop_after(30)) == 7
    rows = [row for batch in seen.rows(pairs) for row in batch]
    # 900 rows are trained on: of shard 7, rows 896 to 999, four.
    assert sorted(rows) == [*range(128), *range(256, 384), *range(640, 768), *range(896, 900)]
    # No second pass over the same shards: the others have not come.
    assert len(seen.inputs) == 7


@pytest.mark.slow
def test_what_is_committed_later_is_met_in_the_next_pass(pairs, tmp_path, monkeypatch):
    seen = Seen(monkeypatch)
    labelled = []

    def should_stop():
        if len(seen.inputs) == 7 and not labelled:
            labelled.append(label_inline(pairs.location.url, LabelSettings(only=[1])))
        return len(seen.inputs) >= 16

    train_ahead(pairs.location.url, tmp_path / "c", make_settings(), should_stop=should_stop)
    rows = seen.rows(pairs)
    assert not {row for batch in rows[:7] for row in batch} & set(range(128, 256))
    assert {row for batch in rows[7:] for row in batch} >= set(range(128, 256))
    assert rows[0] != rows[7]


@pytest.mark.slow
def test_the_epochs_after_it_are_the_same_as_without_it(pairs, tmp_path, monkeypatch):
    url, settings = pairs.location.url, make_settings()
    steps_ahead = train_ahead(url, tmp_path / "with", settings, should_stop=stop_after(30))
    label_inline(url)
    seen = Seen(monkeypatch)
    model, history = fit_inline(url, tmp_path / "with", settings)
    after, seen.inputs = seen.inputs, []
    other, other_history = fit_inline(url, tmp_path / "without", settings)
    assert len(after) == len(seen.inputs) == 45
    assert all(np.array_equal(one, two) for one, two in zip(after, seen.inputs, strict=True))
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert history[-1]["step"] == other_history[-1]["step"] + steps_ahead == 45 + steps_ahead
    assert not torch.equal(weights(model), weights(other))  # they began from what was learnt ahead


@pytest.mark.slow
def test_it_goes_on_from_its_checkpoint_and_leaves_a_fit_that_has_begun_alone(pairs, tmp_path, monkeypatch):
    url, settings = pairs.location.url, make_settings()
    first = train_ahead(url, tmp_path / "c", settings, should_stop=stop_after(30))
    again = train_ahead(url, tmp_path / "c", settings, should_stop=stop_after(30))
    assert again == 2 * first > 0
    label_inline(url)
    model, _ = fit_inline(url, tmp_path / "c", settings)
    before = sorted(path.name for path in (tmp_path / "c").glob("[!h]*"))  # each attempt has a hold of its own
    train_ahead(url, tmp_path / "c", settings, should_stop=stop_after(30))
    assert sorted(path.name for path in (tmp_path / "c").glob("[!h]*")) == before
    assert torch.equal(weights(checkpoints.load_fitted(tmp_path / "c")[0]), weights(model))


@pytest.mark.slow
def test_with_nothing_committed_it_waits_and_leaves_nothing(make_store, tmp_path):
    pairs = make_store()
    assert train_ahead(pairs.location.url, tmp_path / "c", make_settings(), should_stop=stop_after(5)) == 0
    assert checkpoints.newest_step(tmp_path / "c") == 0


@pytest.mark.slow
def test_in_a_bucket(make_store, s3_url):
    pairs = make_store(output={"dir": s3_url})
    label_inline(pairs.location.url, LabelSettings(only=[0, 2]))
    steps = train_ahead(pairs.location.url, f"{s3_url}/checkpoints", make_settings(), should_stop=stop_after(30))
    assert checkpoints.newest_step(f"{s3_url}/checkpoints") == steps == 4


def wait_for(condition):
    deadline = time.monotonic() + patience(60)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.slow
def test_the_process_trains_beside_the_labels_and_leaves_a_checkpoint(pairs, tmp_path):
    url, settings = pairs.location.url, make_settings(checkpoint_interval_s=1e-9)
    place = tmp_path / "c"
    with training_ahead("inline", url, place, settings) as reserved:
        assert set(reserved) == {"CPU"}
        wait_for(lambda: checkpoints.newest_step(place) >= 2)
        label_inline(url)
    step = checkpoints.newest_step(place)
    _, history = fit_inline(url, place, settings)
    assert history[-1]["step"] == 45 + step


class ChildHere:
    """Does what the child process would, in this one."""

    def __init__(self, _, task):
        self.failure, self.task = None, json.loads(json.dumps(asdict(task), default=TrainConfig.model_dump))
        try:
            ahead._work(self)
        except Exception as error:
            self.failure = Failure.of(error)

    def answer(self, **message):
        pass

    when_gone = follow = finish = lambda self, _: None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.slow
def test_what_goes_wrong_with_it_is_a_warning(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "Child", ChildHere)

    def label_beside():
        settings = make_settings(learning_rate=1e6, weight_decay=1e6, num_epochs=100)
        with training_ahead("inline", pairs.location.url, tmp_path / "c", settings):
            label_inline(pairs.location.url)

    with pytest.warns(UserWarning, match=r"ended early \(the loss is not finite.*smaller train\.learning_rate"):
        label_beside()
    assert pairs.is_complete


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_an_actor_trains_ahead_and_labels_leave_it_its_resources(ray_cluster, pairs, events, tmp_path):
    url, settings = pairs.location.url, make_settings(checkpoint_interval_s=1e-9)
    place = tmp_path / "c"
    with training_ahead("ray", url, place, settings) as reserved:
        assert reserved == {"CPU": 1.0, "GPU": 1.0}  # the made-up cluster has four CPUs and two GPUs
        label_with_actors(url, ExecutorConfig(), LabelSettings(on_event=events), reserved=reserved)
        wait_for(lambda: checkpoints.newest_step(place) >= 2)
    assert len(events.of("worker_started")) == 1  # one of two GPUs was left
    assert pairs.is_complete
    step = checkpoints.newest_step(place)
    _, history = fit_inline(url, place, settings)
    assert history[-1]["step"] == 45 + step


@pytest.mark.long
@pytest.mark.slow
def test_a_run_killed_while_it_overlaps_goes_on(make_job, tmp_path):
    keys = {"width": 16, "depth": 1, "num_epochs": 2, "batch_size": 64, "checkpoint_interval_s": 0.01}
    job = make_job(train=keys, evaluate={"num_samples": 100, "metrics": ["ks_mean"]})
    path, place = tmp_path / "job.toml", Path(job.output.dir) / "checkpoints"
    path.write_text(job.to_toml())
    # Its labels wait at the fifth of eight shards, the training ahead of them goes on.
    with held_sfg("run", path, "--overlap", shards=4) as driver:
        wait_for_driver(driver, lambda: len(list(place.glob("step_*/progress.json"))) >= 2)
        (worker,) = [child for child in psutil.Process(driver.pid).children() if "ahead" in " ".join(child.cmdline())]
        driver.kill()
    worker.wait(patience(60))  # it sees the end of its input and ends too
    step = checkpoints.newest_step(place)
    assert step > 0
    assert len(open_pairs(job.output.dir).pending()) == 4
    done = sfg(tmp_path, "run", path, "--overlap", "--json")
    assert json.loads(done.stdout)["metrics"]
    fitted = json.loads((place / "fitted.json").read_text())
    epochs = fitted["history"]
    assert [entry["epoch"] for entry in epochs] == [1, 2]
    per_epoch = epochs[1]["step"] - epochs[0]["step"]
    assert per_epoch == -(-900 // 64)
    assert epochs[0]["step"] - per_epoch >= step  # what was learnt ahead, by both attempts


@pytest.mark.parametrize(
    ("available", "num_threads", "label_actor", "held"),
    [
        ({"CPU": 8.0}, None, {"CPU": 1}, {"CPU": 2.0, "GPU": 0.0}),
        ({"CPU": 8.0}, None, {"CPU": 8}, {"CPU": 0.0, "GPU": 0.0}),
        ({"CPU": 1.0}, None, {"CPU": 1}, {"CPU": 0.0, "GPU": 0.0}),
        ({"CPU": 8.0}, 4, {"CPU": 4}, {"CPU": 4.0, "GPU": 0.0}),
        ({"CPU": 8.0, "GPU": 2.0}, None, {"CPU": 1, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}),
        ({"CPU": 8.0, "GPU": 2.0}, None, {"CPU": 1, "GPU": 2.0}, {"CPU": 2.0, "GPU": 0.0}),
        ({"CPU": 8.0, "GPU": 1.0}, None, {"CPU": 1, "GPU": 1.0}, {"CPU": 2.0, "GPU": 0.0}),
    ],
)
def test_training_ahead_leaves_an_actor_of_the_labels_what_it_needs(available, num_threads, label_actor, held):
    assert held_resources(available, num_threads, label_actor) == held
