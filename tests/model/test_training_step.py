"""What a step does beside following the gradient: schedules, clipping, early stopping."""

import numpy as np
import pytest
import torch

from sfg_dist.job.config import TrainConfig
from sfg_dist.model.early_stopping import EarlyStopping
from sfg_dist.model.mlp import MLP
from sfg_dist.model.trainer import DECAY_FROM, WARMUP_STEPS, Trainer


def make_trainer(**changed):
    torch.manual_seed(0)
    model = MLP(2, width=16, depth=1, block="residual", activation="silu", linear_skip=True)
    keys = {"learning_rate": 1e-2, "weight_decay": 0.0, "ema_decay": 0.9, "optimizer": "adamw"}
    return Trainer(model, TrainConfig(**(keys | changed)))


def rates(trainer, shares):
    trainer.progress.step = WARMUP_STEPS
    return [trainer._scheduled_rate(share) for share in shares]


def test_stable_decay_is_level_and_then_falls_straight_to_zero():
    trainer = make_trainer(learning_rate_schedule="stable_decay")
    middle = (DECAY_FROM + 1) / 2
    assert rates(trainer, [0.0, DECAY_FROM, middle, 1.0]) == pytest.approx([1e-2, 1e-2, 0.5e-2, 0.0])
    trainer.progress.step = WARMUP_STEPS // 2 - 1
    assert trainer._scheduled_rate(0.0) == pytest.approx(0.5e-2)


def test_cosine_falls_to_zero_and_constant_stays():
    assert rates(make_trainer(learning_rate_schedule="cosine"), [0.0, 0.5, 1.0]) == pytest.approx([1e-2, 0.5e-2, 0.0])
    assert rates(make_trainer(learning_rate_schedule="constant"), [0.0, 0.5, 1.0]) == [1e-2, 1e-2, 1e-2]


def gradient_norm(trainer):
    return float(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).norm())


def test_clipping_bounds_the_gradient_and_leaves_a_small_one_as_it_is():
    rows = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
    free = make_trainer()
    free.step(rows, 100 * rows, 64, 0.0)
    assert gradient_norm(free) > 10
    clipped = make_trainer(clip_norm=0.5)
    clipped.step(rows, 100 * rows, 64, 0.0)
    assert gradient_norm(clipped) == pytest.approx(0.5, rel=1e-4)
    wide = make_trainer(clip_norm=1e9)
    wide.step(rows, 100 * rows, 64, 0.0)
    assert gradient_norm(wide) == gradient_norm(free)


def test_a_step_takes_tensors_as_it_takes_arrays():
    rows = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
    arrays, tensors = make_trainer(), make_trainer()
    assert torch.equal(
        arrays.step(rows, 2 * rows, 64, 0.0), tensors.step(torch.from_numpy(rows), torch.from_numpy(2 * rows), 64, 0.0)
    )


def test_early_stopping_keeps_the_best_and_says_when_to_end():
    early = EarlyStopping(patience=2)
    losses = [1.0, 0.5, 0.7, float("nan"), 0.1]
    ends = [early.note(n, loss, {"w": torch.full((2,), float(n))}) for n, loss in enumerate(losses, start=1)]
    assert ends == [False, False, False, True, False]
    again = EarlyStopping(patience=2)
    again.load_files(early.state_files(), early.weights)
    assert (again.epoch, again.loss) == (5, 0.1)
    assert torch.equal(again.weights["w"], torch.full((2,), 5.0))
    assert EarlyStopping(patience=2).state_files() == {}
