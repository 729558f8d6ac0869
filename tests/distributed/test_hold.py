"""Attempts at one fit that overlap: the later one writes, the earlier one ends."""

import pytest
import torch
from test_training import make_settings, on_a_second_ray, weights

from sfg_dist.distributed.fit import training
from sfg_dist.distributed.fit.checkpoints import newest_step
from sfg_dist.distributed.fit.hold import HOLD_NAME, Hold, take_hold
from sfg_dist.distributed.fit.journal import Journal
from sfg_dist.distributed.fit.training import fit_inline, fit_with_workers
from sfg_dist.job.errors import TrainingError


def test_the_last_attempt_holds_and_the_last_writer_of_it(tmp_path):
    early = Hold(tmp_path, take_hold(tmp_path))
    early.require()
    attempt = take_hold(tmp_path)
    with pytest.raises(TrainingError, match=r"another run of this fit .* process \d+"):
        early.require()
    first = Hold(tmp_path, attempt)
    second = Hold(tmp_path, attempt)  # a worker that replaces one that was cut off
    second.require()
    with pytest.raises(TrainingError, match="taken over"):
        first.require()


def test_the_same_in_an_object_store(s3_url):
    early = Hold(s3_url, take_hold(s3_url))
    Hold(s3_url, take_hold(s3_url)).require()
    with pytest.raises(TrainingError, match="taken over"):
        early.require()


def test_an_attempt_that_loses_while_it_tidies_takes_nobody_down(tmp_path):
    fresh = Hold(tmp_path, take_hold(tmp_path))
    for path in tmp_path.glob("hold_*.json"):  # as by one that began a moment before it
        path.unlink()
    fresh.require()


def test_a_writer_of_an_old_attempt_leaves_the_new_one_s_name_alone(tmp_path):
    old = take_hold(tmp_path)
    early = Hold(tmp_path, old)
    fresh = Hold(tmp_path, take_hold(tmp_path))
    (tmp_path / f"hold_{old}.json").write_text('{"writer": "late"}')  # as if it had looked before and wrote after
    fresh.require()
    with pytest.raises(TrainingError, match="taken over"):
        early.require()


@pytest.mark.parametrize("content", [b"{", b"[]", b""])
def test_a_damaged_hold_is_nobody_s(tmp_path, content):
    hold = Hold(tmp_path, take_hold(tmp_path))
    (tmp_path / HOLD_NAME).write_bytes(content)
    with pytest.raises(TrainingError, match=HOLD_NAME):
        hold.require()


@pytest.mark.slow
def test_a_fit_that_is_taken_over_writes_no_more_and_the_other_goes_on(url, tmp_path):
    settings, place = make_settings(checkpoint_interval_s=0.0), tmp_path / "c"

    def take_over(entry):
        if entry["epoch"] == 2:
            take_hold(place)

    with pytest.raises(TrainingError, match="another run of this fit"):
        fit_inline(url, place, settings, on_epoch=take_over)
    assert newest_step(place) == 29  # 15 steps an epoch; the last one before was saved ahead of the second's last step
    model, history = fit_inline(url, place, settings)
    whole, _ = fit_inline(url, tmp_path / "whole", make_settings())
    assert torch.equal(weights(model), weights(whole))
    assert history[-1]["epoch"] == 3


@on_a_second_ray
@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
def test_workers_that_are_taken_over_do_not_take_it_back_nor_wait_for_each_other(
    ray_cluster, url, tmp_path, monkeypatch
):
    """Only rank 0 finds out; Ray ends the other, which waits for it in the middle of an epoch."""
    worker, place = training._ray_worker, tmp_path / "c"

    def overtaken_worker(config):
        append = Journal.append_epoch

        def append_and_lose(self, entry):
            append(self, entry)
            take_hold(place)

        Journal.append_epoch = append_and_lose
        worker(config)

    monkeypatch.setattr(training, "_ray_worker", overtaken_worker)
    settings = make_settings(checkpoint_interval_s=1e-9, num_workers=2)
    with pytest.raises(TrainingError, match="another run of this fit"):
        fit_with_workers(url, place, settings, use_gpu=False, max_failures=1)
    assert not list(place.glob("hold_*.json"))  # no worker has begun to write for the attempt that took over
