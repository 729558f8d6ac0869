"""The fit of a peer under the clock: Adam, a rate that falls to zero with the time, and averaged weights.

The averaged weights with the least validation loss are kept. The clock counts the looks at the validation rows too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sfg_dist.job.errors import TrainingError
from sfg_dist.studies.compare.peers.peer import Peer

EMA_DECAY = 0.999
WARMUP_STEPS = 100
MAX_WARMUP_SHARE = 0.05  # of the time, however few steps that is
MAX_GRADIENT_NORM = 5.0
NUM_LOOKS = 50  # at the validation rows
VALIDATION_ROWS = 2048

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class PeerFitSettings:
    """How a peer is fitted."""

    max_time_s: float  # wall-clock time of the whole fit
    learning_rate: float  # at the top of its schedule
    batch_size: int  # rows of a batch
    # whether the network's products are of bfloat16, as ours are where the device has units for them
    bfloat16: bool = False
    marks_s: tuple[float, ...] = ()  # times at which a snapshot is kept, ascending
    seed: int = 0  # of the order of the rows and of the loss's own draws


@dataclass
class PeerFit:
    """What a fit leaves."""

    weights: Weights  # averaged, with the least validation loss
    # (seconds, weights that an end at that time would have left)
    snapshots: list[tuple[float, Weights]] = field(default_factory=list)
    seconds: float = 0.0  # of the fit
    num_steps: int = 0  # batches
    best_at_s: float = 0.0  # when the weights were looked at


def fit_peer(
    model: Peer,
    rows: Tensor,
    validation: Tensor,
    settings: PeerFitSettings,
    clock: Callable[[], float] = time.perf_counter,
) -> PeerFit:
    """Fit a model on its device until the time is over; it is left with the weights that are best for ``validation``.

    Rows and validation rows have the shape (any, dim).

    Raises:
        TrainingError: no look at the validation rows gave a finite loss.
    """
    started, max_time_s = clock(), settings.max_time_s
    torch.manual_seed(settings.seed)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), foreach=True)
    average = _copy(model)
    fit = PeerFit(average)
    best, is_last, waiting, next_look = math.inf, False, list(settings.marks_s), max_time_s / NUM_LOOKS
    batches = _batches(rows, min(settings.batch_size, len(rows)))
    while not is_last:
        _step(model, optimizer, next(batches), settings, done=min(1.0, (clock() - started) / max_time_s), fit=fit)
        _move_average(average, model, min(EMA_DECAY, (1 + fit.num_steps) / (10 + fit.num_steps)))
        elapsed = clock() - started
        is_last = elapsed >= max_time_s
        if is_last or elapsed >= next_look or (waiting and elapsed >= waiting[0]):
            next_look = elapsed + max_time_s / NUM_LOOKS
            value = _validation_loss(model, average, validation[:VALIDATION_ROWS], settings.seed)
            if value < best:
                best, fit.best_at_s = value, elapsed
                fit.weights = {name: tensor.clone() for name, tensor in average.items()}
            while waiting and elapsed >= waiting[0]:
                del waiting[0]
                fit.snapshots.append((elapsed, fit.weights))
    if not math.isfinite(best):
        raise TrainingError(f"no finite validation loss with learning rate {settings.learning_rate:g}")
    model.load_state_dict(fit.weights)
    fit.seconds = clock() - started
    return fit


def _batches(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Whole batches without end, in a new order for each pass over the rows."""
    while True:
        order = torch.randperm(len(rows), device=rows.device)
        for first in range(0, len(rows) - batch_size + 1, batch_size):
            yield rows[order[first : first + batch_size]]


def _step(
    model: Peer,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    settings: PeerFitSettings,
    *,
    done: float,
    fit: PeerFit,
) -> None:
    """One step of Adam, of which the share ``done`` of the time has passed."""
    warm = min(1.0, max((fit.num_steps + 1) / WARMUP_STEPS, done / MAX_WARMUP_SHARE))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=settings.bfloat16):
        loss = model.loss(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM, foreach=True)
    if bool(torch.isfinite(norm)):  # a batch that overflows moves nothing
        optimizer.step()
    fit.num_steps += 1


@torch.no_grad()
def _move_average(average: Weights, model: Peer, decay: float) -> None:
    state = model.state_dict()
    names = [name for name, tensor in average.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in names], [state[name] for name in names], 1 - decay)


def _validation_loss(model: Peer, average: Weights, validation: Tensor, seed: int) -> float:
    """The loss of the averaged weights, by the same draws at every look."""
    current = _copy(model)
    model.load_state_dict(average)
    devices = [validation.device] if validation.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            value = float(model.loss(validation))
    finally:
        model.load_state_dict(current)
    return value if math.isfinite(value) else math.inf


def _copy(model: Peer) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
