"""The supervised fit of the generator's network, one optimiser step a global batch.

The trainer does not know where batches come from, nor how many ranks there are: each rank passes its part of a global
batch and the number of rows of the whole. The loss is the mean squared error, and of experts the cross-entropy of their
gate too, or the cross-entropy of cells where the network draws them. It is scaled so that the mean of the ranks'
gradients, which data-parallel training takes, is the gradient over the global batch. This also holds where the parts
differ in size.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfg_dist.job.errors import TrainingError
from sfg_dist.job.reader import LONG_BYTES, MAYBE_NAN, read_json
from sfg_dist.model.cell_network import CellNetwork, Network
from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.optimizers import make_optimizers, update_average
from sfg_dist.model.precision import has_bfloat16
from sfg_dist.model.saved import check_tensors, named_states, read_tensors, saved_bytes, states_of, under

if TYPE_CHECKING:
    from sfg_dist.job.config import TrainConfig
    from sfg_dist.model.scaling import Scaling

WARMUP_STEPS = 100
STATE_NAME, PROGRESS_NAME = "state.safetensors", "progress.json"
DECAY_FROM = 0.8
VALIDATION_BATCH_ROWS = 8192
Rows = NDArray[np.float32] | Tensor
"""Rows on the host, or on the trainer's device already."""


@dataclass
class Progress:
    """How far a fit is. With the trainer's tensors it is all that a resumed fit needs."""

    epoch: int = 0  # epochs finished
    step_in_epoch: int = 0  # global batches of the running epoch that are done
    step: int = 0  # global batches done in all
    elapsed_s: float = 0.0  # training time spent, over all attempts
    ahead_steps: int = 0  # steps of ``step`` that were done before the first epoch, while labels were still being made
    history: list[dict[str, float]] = field(default_factory=list)  # one entry an epoch


HISTORY_FIELDS = [{str: MAYBE_NAN}]
"""A fit's history in a document. The loss over no rows is NaN."""
_PROGRESS = {
    **dict.fromkeys(("epoch", "step_in_epoch", "step", "ahead_steps?"), int),
    "elapsed_s": float,
    "history": HISTORY_FIELDS,
}


def read_progress(content: bytes | None) -> Progress:
    """The progress of a checkpoint.

    Raises:
        DocumentError: it is missing or damaged.
    """
    document = read_json(content, PROGRESS_NAME, _PROGRESS, max_bytes=LONG_BYTES, allow_nan=True)
    return Progress(**{field.name: document[field.name] for field in fields(Progress) if field.name in document})


class Trainer:
    """A network, its optimisers, and the running average of its weights.

    Args:
        model: the network on its device.
        settings: rates, decays, optimiser, precision and clipping are taken from them. The learning rate rises in the
            first WARMUP_STEPS steps. Then it falls to zero by a cosine ("cosine"), or stays and falls straight to zero
            from DECAY_FROM of the training on ("stable_decay"). Under "constant" it neither rises nor falls.
        parallel: the network as data-parallel training wraps it; gradients are taken through it.
        world_size: number of ranks whose gradients are averaged.
        input_scaling, target_scaling: applied to each batch; None leaves it as it is.
    """

    def __init__(
        self,
        model: Network,
        settings: TrainConfig,
        *,
        parallel: nn.Module | None = None,
        world_size: int = 1,
        input_scaling: Scaling | None = None,
        target_scaling: Scaling | None = None,
    ) -> None:
        self.model, self.settings = model, settings
        self.parallel: nn.Module = model if parallel is None else parallel
        self.world_size = world_size
        self.device = next(model.parameters()).device
        self._input_scaling, self._target_scaling = self._on_device(input_scaling), self._on_device(target_scaling)
        precision = settings.precision
        self.bfloat16 = precision == "bfloat16" or (precision == "auto" and has_bfloat16(self.device))
        self.optimizers = make_optimizers(
            model, settings.optimizer, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.progress = Progress()

    def step(self, latents: Rows, labels: Rows, global_rows: int, done: float) -> Tensor:
        """One optimiser step; this rank's sum of the loss over the rows of the whole batch, a scalar on the device.

        ``latents`` are this rank's part of the batch, with its conditions, shape (num_rows, dim + num_conditions),
        num_rows 0 or more. ``labels`` have the same shape; the conditions in it are not used. ``global_rows`` counts
        the batch over all ranks. ``done`` is the share of the training that is over, 0 to 1, for the learning rate.
        """
        y, x = self._inputs(latents), self._targets(labels)
        rate = self._scheduled_rate(done)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = self._loss(self.parallel, y, x) / global_rows
        (loss * self.world_size).backward()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.progress.step += 1
        self.progress.step_in_epoch += 1
        state, names = self.model.state_dict(), list(self.average)
        update_average(
            [self.average[name] for name in names],
            [state[name] for name in names],
            step=self.progress.step,
            decay=self.settings.ema_decay,
        )
        return loss.detach()

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def _scheduled_rate(self, done: float) -> float:
        rate, schedule = self.settings.learning_rate, self.settings.learning_rate_schedule
        if schedule == "constant":
            return rate
        warm = min(1.0, (self.progress.step + 1) / WARMUP_STEPS)
        if schedule == "stable_decay":
            return rate * warm * min(1.0, max(0.0, 1 - done) / (1 - DECAY_FROM))
        return rate * warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def validation_loss(self, latents: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
        """The averaged weights' mean loss a row; NaN without rows."""
        if not len(latents):
            return math.nan
        total = 0.0
        with self.averaged_weights(), torch.inference_mode():
            for first in range(0, len(latents), VALIDATION_BATCH_ROWS):
                rows = slice(first, first + VALIDATION_BATCH_ROWS)
                total += float(self._loss(self.model, self._inputs(latents[rows]), self._targets(labels[rows])))
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
        """A checkpoint's files by name: the tensors, and the progress as JSON."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        tensors |= named_states(self.optimizers)
        return {STATE_NAME: saved_bytes(tensors), PROGRESS_NAME: json.dumps(asdict(self.progress)).encode()}

    def load_files(self, files: Mapping[str, bytes], place: str) -> None:
        """Go on from a checkpoint's files, as ``state_files`` gave them; ``place`` is where they came from.

        Raises:
            TrainingError: they belong to another network, or cannot be read.
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

    def _loss(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        if isinstance(self.model, CellNetwork | ExpertNetwork):
            losses: Tensor = network(inputs, targets)
            return losses.sum()
        return _squared_error(network, inputs, targets)

    def _on_device(self, scaling: Scaling | None) -> tuple[Tensor, Tensor] | None:
        if scaling is None:
            return None
        location, scale = (torch.from_numpy(part).float().to(self.device) for part in (scaling.location, scaling.scale))
        return location, scale

    def _inputs(self, rows: Rows) -> Tensor:
        return _scaled(self._to_device(rows), self._input_scaling)

    def _targets(self, rows: Rows) -> Tensor:
        return _scaled(self._to_device(rows), self._target_scaling)[:, : self.model.dim]

    def _to_device(self, rows: Rows) -> Tensor:
        if isinstance(rows, Tensor):
            return rows
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.device, non_blocking=True)


def _scaled(rows: Tensor, scaling: tuple[Tensor, Tensor] | None) -> Tensor:
    return rows if scaling is None else (rows - scaling[0]) / scaling[1]


def _squared_error(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over columns of the squared error, added up over rows."""
    predicted: Tensor = network(inputs)
    return (predicted.float() - targets).square().sum() / targets.shape[1]


class Stopwatch:
    """Training time over all attempts: what a checkpoint brought, plus this attempt's."""

    def __init__(self, before_s: float) -> None:
        self._before_s = before_s
        self._start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds."""
        return self._before_s + time.monotonic() - self._start
