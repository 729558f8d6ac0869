"""The supervised fit of the generator on pairs, one optimiser step a global batch.

The loop knows nothing of where batches come from or of how many ranks there are: each rank passes its part of a global
batch and the number of rows of the whole. The loss is scaled so that the mean of the ranks' gradients, which is what
data-parallel training takes, is the gradient of the mean over the global batch, also when the parts differ in size.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from sfg_dist.job.errors import TrainingError
from sfg_dist.job.plan import Stream, random_generator
from sfg_dist.job.reader import LONG_BYTES, MAYBE_NAN, read_json
from sfg_dist.model.objective import Objective, loss_sum
from sfg_dist.model.optimizers import OptimizerName, make_optimizers
from sfg_dist.model.precision import has_bfloat16
from sfg_dist.model.saved import check_tensors, read_tensors, states_of, under

WARMUP_STEPS = 100
STATE_NAME, PROGRESS_NAME = "state.safetensors", "progress.json"
DECAY_FROM = 0.8
Precision = Literal["auto", "float32", "bfloat16"]
Schedule = Literal["cosine", "stable_decay", "constant"]
Rows = NDArray[np.float32] | Tensor
"""Rows on the host, or on the trainer's device already."""
Affine = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Location and scale of columns, shape (num_columns,) each."""


@dataclass
class Progress:
    """Where a fit stands; with the tensors of the trainer, all that a resume needs.

    Attributes:
        epoch: epochs finished.
        step_in_epoch: global batches of the running epoch that are done.
        step: global batches done in all.
        elapsed_s: training time spent, over all attempts.
        ahead_steps: steps of ``step`` that were done ahead of the first epoch, while labels were still being made.
        history: one entry an epoch.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    elapsed_s: float = 0.0
    ahead_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


HISTORY_FIELDS = [{str: MAYBE_NAN}]
"""Of the history of a fit in a document: the loss of no rows is no number."""
_PROGRESS = {
    **dict.fromkeys(("epoch", "step_in_epoch", "step", "ahead_steps?"), int),
    "elapsed_s": float,
    "history": HISTORY_FIELDS,
}


def read_progress(content: bytes | None) -> Progress:
    """The progress of a checkpoint.

    Raises:
        DocumentError: it is none.
    """
    document = read_json(content, PROGRESS_NAME, _PROGRESS, max_bytes=LONG_BYTES, allow_nan=True)
    return Progress(**{field.name: document[field.name] for field in fields(Progress) if field.name in document})


class Trainer:
    """A network, its optimiser, and the running average of its weights.

    Args:
        model: the network on its device; its noise, where it takes any, is drawn here.
        learning_rate: at the top of its schedule.
        schedule: "cosine", after a short warm-up down to zero; "stable_decay", after a warm-up level, and straight down
            to zero from DECAY_FROM of the training on; or "constant".
        weight_decay: decoupled, as in AdamW.
        ema_decay: of the exponential moving average of the weights; shorter in the first steps; 0 for none.
        objective: "mse" or "energy", see ``objective``.
        optimizer: "adamw" or "muon", see ``optimizers``.
        precision: "auto" takes bfloat16 for the network's products where the device has units for them, "float32" and
            "bfloat16" say which.
        clip_norm: a gradient with a larger 2-norm is scaled down to it; None for none.
        parallel: the network as data-parallel training wraps it, when it does; gradients are taken through it.
        world_size: number of ranks whose gradients are averaged.
        rank: this rank.
        seed: of the noise, which follows from (seed, rank, step): the same for one number of ranks only.
        input_units: location and scale of the input's columns, taken off what it is given; None for 0 and 1.
        target_units: the same of the targets' columns.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        weight_decay: float,
        ema_decay: float,
        schedule: Schedule = "cosine",
        objective: Objective = "mse",
        optimizer: OptimizerName = "adamw",
        precision: Precision = "auto",
        clip_norm: float | None = None,
        parallel: nn.Module | None = None,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        input_units: Affine | None = None,
        target_units: Affine | None = None,
    ) -> None:
        self.model = model
        self.objective: Objective = objective
        self.num_noise: int = getattr(model, "num_noise", 0)
        self.seed, self.rank = seed, rank
        self.parallel = model if parallel is None else parallel
        self.world_size = world_size
        self.num_targets: int | None = getattr(model, "dim", None)  # labels' columns that the network gives
        self.device = next(model.parameters()).device
        self._input_units, self._target_units = self._affine(input_units), self._affine(target_units)
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.ema_decay = ema_decay
        self.clip_norm = clip_norm
        self.bfloat16 = precision == "bfloat16" or (precision == "auto" and has_bfloat16(self.device))
        self.optimizers = make_optimizers(model, optimizer, learning_rate=learning_rate, weight_decay=weight_decay)
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.progress = Progress()

    def step(self, latents: Rows, labels: Rows, global_rows: int, done: float) -> Tensor:
        """One optimiser step.

        Args:
            latents: this rank's part of the batch, with the conditions that go with them, shape (num_rows, dim +
                num_conditions); num_rows may be 0.
            labels: the same shape; the conditions in it are passed over.
            global_rows: rows of the batch over all ranks.
            done: share of the training that is over, 0 to 1, for the learning rate.

        Returns:
            This rank's sum of the loss over the rows of the whole batch, a scalar on the device.
        """
        y, x = self._inputs(latents), self._targets(labels)
        rate = self._scheduled_rate(done)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self._loss_sum(self.parallel, y, x, (self.rank << 40) | self.progress.step) / global_rows
        (loss * self.world_size).backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.progress.step += 1
        self.progress.step_in_epoch += 1
        self._update_average()
        return loss.detach()

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def _loss_sum(self, network: nn.Module, y: Tensor, x: Tensor, index: int) -> Tensor:
        generator = None
        if self.num_noise:
            drawn = random_generator(self.seed, Stream.TRAIN_NOISE, index).integers(2**63)
            generator = torch.Generator().manual_seed(int(drawn))
        return loss_sum(self.objective, network, y, x, num_noise=self.num_noise, generator=generator)

    def _scheduled_rate(self, done: float) -> float:
        if self.schedule == "constant":
            return self.learning_rate
        warm = min(1.0, (self.progress.step + 1) / WARMUP_STEPS)
        if self.schedule == "stable_decay":
            return self.learning_rate * warm * min(1.0, max(0.0, 1 - done) / (1 - DECAY_FROM))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def validation_loss(self, latents: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
        """The loss of the averaged weights a row, with noise of its own that is the same at every call."""
        if not len(latents):
            return math.nan
        total = 0.0
        with self.averaged_weights(), torch.inference_mode():
            for first in range(0, len(latents), 8192):
                y, x = self._inputs(latents[first : first + 8192]), self._targets(labels[first : first + 8192])
                total += float(self._loss_sum(self.model, y, x, (1 << 55) | first))
        return total / len(latents)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within, the network has its averaged weights."""
        current = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        try:
            yield
        finally:
            self.model.load_state_dict(current)

    def state_files(self) -> dict[str, bytes]:
        """What a checkpoint holds: the names of its files, and their bytes (safetensors and JSON)."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                prefix = f"optimizer.{number}.{index}."
                tensors |= {prefix + name: torch.as_tensor(value) for name, value in state.items()}
        return {
            STATE_NAME: save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}),
            PROGRESS_NAME: json.dumps(asdict(self.progress)).encode(),
        }

    def load_files(self, files: Mapping[str, bytes], place: str) -> None:
        """Take up a checkpoint.

        Args:
            files: as ``state_files`` gave them.
            place: where they came from, for the message.

        Raises:
            TrainingError: it belongs to another network, or cannot be read.
        """
        try:
            # On the CPU: each load_state_dict moves what belongs on the device, and leaves step counts where they are.
            tensors = read_tensors(files.get(STATE_NAME), STATE_NAME)
            progress = read_progress(files.get(PROGRESS_NAME))
            weights, average = under(tensors, "model."), under(tensors, "average.")
            for name, found in (("model", weights), ("average", average)):
                check_tensors(self.model.state_dict(), found, name)
            states = states_of(self.optimizers, tensors, STATE_NAME)
            self.model.load_state_dict(weights)
            self.average = {name: tensor.to(self.device) for name, tensor in average.items()}
            for optimizer, state in zip(self.optimizers, states, strict=True):
                optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
            self.progress = progress
        except Exception as error:
            raise TrainingError(
                f"checkpoint {place} does not fit this job ({error}); remove its parent directory to train anew"
            ) from error

    def _affine(self, units: Affine | None) -> tuple[Tensor, Tensor] | None:
        if units is None:
            return None
        location, scale = (torch.from_numpy(part).float().to(self.device) for part in units)
        return location, scale

    def _inputs(self, rows: Rows) -> Tensor:
        y = self._to_device(rows)
        return y if self._input_units is None else (y - self._input_units[0]) / self._input_units[1]

    def _targets(self, rows: Rows) -> Tensor:
        x = self._to_device(rows)
        if self._target_units is not None:
            x = (x - self._target_units[0]) / self._target_units[1]
        return x[:, : self.num_targets]

    def _to_device(self, rows: Rows) -> Tensor:
        if isinstance(rows, Tensor):
            return rows
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.device, non_blocking=True)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.bfloat16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _update_average(self) -> None:
        decay = min(self.ema_decay, (1 + self.progress.step) / (10 + self.progress.step)) if self.ema_decay else 0.0
        with torch.no_grad():
            names = list(self.average)
            state = self.model.state_dict()
            torch._foreach_lerp_([self.average[name] for name in names], [state[name] for name in names], 1 - decay)


class Stopwatch:
    """Training time over all attempts: what a checkpoint brought, plus this attempt's."""

    def __init__(self, before_s: float) -> None:
        self._before_s = before_s
        self._start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds."""
        return self._before_s + time.monotonic() - self._start
