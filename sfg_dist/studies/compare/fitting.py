"""The fit of a peer under the clock: Adam, a rate that falls to zero with the time, averaged weights, the best kept.

The clock runs over all of it, the looks at the validation rows included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sfg_dist.job.errors import TrainingError

EMA_DECAY = 0.999
WARMUP_STEPS = 100
MAX_WARMUP_SHARE = 0.05  # of the time, however few steps that is
MAX_GRADIENT_NORM = 5.0
NUM_LOOKS = 50  # at the validation rows
VALIDATION_ROWS = 2048

Weights = dict[str, Tensor]


class Peer(Protocol):
    """What a peer's module can do; rows are the flow's coordinates, shape (num_rows, dim)."""

    def loss(self, rows: Tensor) -> Tensor:
        """What is minimised, a scalar."""

    def log_density(self, rows: Tensor) -> Tensor:
        """Log density in nats, shape (num_rows,)."""

    def state_dict(self) -> Any:
        """The weights."""


@dataclass
class Fit:
    """What a fit leaves.

    Attributes:
        weights: averaged, of the best look.
        snapshots: (seconds, weights that an end at that time would have left).
        seconds: of the fit.
        num_steps: batches.
        best_at_s: when the best look was.
        history: (seconds, validation loss).
    """

    weights: Weights
    snapshots: list[tuple[float, Weights]] = field(default_factory=list)
    seconds: float = 0.0
    num_steps: int = 0
    best_at_s: float = 0.0
    history: list[tuple[float, float]] = field(default_factory=list)


def fit_peer(
    model: nn.Module,
    rows: Tensor,
    validation: Tensor,
    *,
    max_time_s: float,
    learning_rate: float,
    batch_size: int,
    bfloat16: bool = False,
    marks_s: Sequence[float] = (),
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Fit:
    """Fit until the time is over.

    Args:
        model: a Peer on its device; left with the best weights.
        rows: training rows, shape (num_rows, dim).
        validation: rows to choose the best look by, shape (num_validation, dim).
        max_time_s: wall-clock time of all that happens here.
        learning_rate: at the top of its schedule.
        batch_size: rows of a batch.
        bfloat16: whether the network's products are of bfloat16, as ours are where the device has units for them.
        marks_s: times at which to keep a snapshot, ascending.
        seed: of the order and of the loss's own draws.
        clock: seconds.

    Raises:
        TrainingError: no look at the validation rows gave a finite loss.
    """
    started = clock()
    validation = validation[:VALIDATION_ROWS]
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), foreach=True)
    average = _copy(model)
    fit = Fit(average)
    best, is_last = math.inf, False
    waiting = list(marks_s)
    next_look = max_time_s / NUM_LOOKS
    order, place = torch.randperm(len(rows), device=rows.device), 0
    batch_size = min(batch_size, len(rows))
    while not is_last:
        elapsed = clock() - started
        done = min(1.0, elapsed / max_time_s)
        warm = min(1.0, max((fit.num_steps + 1) / WARMUP_STEPS, done / MAX_WARMUP_SHARE))
        rate = learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if place + batch_size > len(rows):
            order, place = torch.randperm(len(rows), device=rows.device), 0
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=bfloat16):
            loss = model.loss(rows[order[place : place + batch_size]])  # type: ignore[operator]
        place += batch_size
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM, foreach=True)
        if bool(torch.isfinite(norm)):  # a batch that overflows moves nothing
            optimizer.step()
        fit.num_steps += 1
        decay = min(EMA_DECAY, (1 + fit.num_steps) / (10 + fit.num_steps))
        with torch.no_grad():
            names = [name for name, tensor in average.items() if tensor.is_floating_point()]
            state = model.state_dict()
            torch._foreach_lerp_([average[n] for n in names], [state[n] for n in names], 1 - decay)
        elapsed = clock() - started
        is_last = elapsed >= max_time_s
        if is_last or elapsed >= next_look or (waiting and elapsed >= waiting[0]):
            next_look = elapsed + max_time_s / NUM_LOOKS
            value = _validation_loss(model, average, validation, seed)
            fit.history.append((elapsed, value))
            if value < best:
                best, fit.best_at_s = value, elapsed
                fit.weights = {name: tensor.clone() for name, tensor in average.items()}
            while waiting and elapsed >= waiting[0]:
                del waiting[0]
                fit.snapshots.append((elapsed, fit.weights))
    if not math.isfinite(best):
        raise TrainingError(f"no finite validation loss with learning rate {learning_rate:g}")
    model.load_state_dict(fit.weights)
    fit.seconds = clock() - started
    return fit


def _validation_loss(model: nn.Module, average: Weights, validation: Tensor, seed: int) -> float:
    """The loss of the averaged weights, by the same draws at every look."""
    current = _copy(model)
    model.load_state_dict(average)
    devices = [validation.device] if validation.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            value = float(model.loss(validation))  # type: ignore[operator]
    finally:
        model.load_state_dict(current)
    return value if math.isfinite(value) else math.inf


def _copy(model: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
