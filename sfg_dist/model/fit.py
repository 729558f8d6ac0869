"""The supervised fit of the generator: mean squared error on pairs, one optimiser step a global batch.

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
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from sfg_dist.errors import TrainingError

WARMUP_STEPS = 100
STATE_NAME, PROGRESS_NAME = "state.safetensors", "progress.json"
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass
class Progress:
    """Where a fit stands; with the tensors of the trainer, all that a resume needs.

    Attributes:
        epoch: epochs finished.
        step_in_epoch: global batches of the running epoch that are done.
        step: global batches done in all.
        elapsed_s: training time spent, over all attempts.
        history: one entry an epoch.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    elapsed_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """A network, its optimiser, and the running average of its weights.

    Args:
        model: the network on its device.
        learning_rate: of AdamW at the top of its schedule.
        schedule: "cosine", after a short warm-up down to zero, or "constant".
        weight_decay: of AdamW.
        ema_decay: of the exponential moving average of the weights; shorter in the first steps; 0 for none.
        precision: "auto" takes bfloat16 where the GPU has it, "float32" and "bfloat16" say which.
        parallel: the network as data-parallel training wraps it, when it does; gradients are taken through it.
        world_size: number of ranks whose gradients are averaged.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        weight_decay: float,
        ema_decay: float,
        schedule: Literal["cosine", "constant"] = "cosine",
        precision: Precision = "auto",
        parallel: nn.Module | None = None,
        world_size: int = 1,
    ) -> None:
        self.model = model
        self.parallel = model if parallel is None else parallel
        self.world_size = world_size
        self.num_targets: int | None = getattr(model, "dim", None)  # labels' columns that the network gives
        self.device = next(model.parameters()).device
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.ema_decay = ema_decay
        self.bfloat16 = precision == "bfloat16" or (
            precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99), foreach=True
        )
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.progress = Progress()

    def step(self, latents: NDArray[np.float32], labels: NDArray[np.float32], global_rows: int, done: float) -> Tensor:
        """One optimiser step.

        Args:
            latents: this rank's part of the batch, with the conditions that go with them, shape (num_rows, dim +
                num_conditions); num_rows may be 0.
            labels: the same shape; the conditions in it are passed over.
            global_rows: rows of the batch over all ranks.
            done: share of the training that is over, 0 to 1, for the learning rate.

        Returns:
            This rank's sum of squared errors over the batch's number of elements, a scalar on the device.
        """
        y, x = self._to_device(latents), self._to_device(labels)[:, : self.num_targets]
        for group in self.optimizer.param_groups:
            group["lr"] = self._scheduled_rate(done)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            predicted = self.parallel(y)
        loss = (predicted.float() - x).square().sum() / (global_rows * x.shape[1])
        (loss * self.world_size).backward()
        self.optimizer.step()
        self.progress.step += 1
        self.progress.step_in_epoch += 1
        self._update_average()
        return loss.detach()

    def _scheduled_rate(self, done: float) -> float:
        if self.schedule == "constant":
            return self.learning_rate
        warm = min(1.0, (self.progress.step + 1) / WARMUP_STEPS)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def validation_loss(self, latents: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
        """Mean squared error of the averaged weights, per element, in the flow's units."""
        if not len(latents):
            return math.nan
        total, number = 0.0, 0
        with self.averaged_weights(), torch.inference_mode():
            for first in range(0, len(latents), 8192):
                y = self._to_device(latents[first : first + 8192])
                x = self._to_device(labels[first : first + 8192])[:, : self.num_targets]
                number += x.numel()
                total += float((self.model(y) - x).square().sum(dtype=torch.float64))
        return total / number

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
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
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
            tensors = load(files[STATE_NAME])
            progress = Progress(**json.loads(files[PROGRESS_NAME]))
            self.model.load_state_dict(_under(tensors, "model."))
            self.average = {name: tensor.to(self.device) for name, tensor in _under(tensors, "average.").items()}
            state = self.optimizer.state_dict()
            numbered: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _under(tensors, "optimizer.").items():
                index, key = name.split(".", 1)
                numbered.setdefault(int(index), {})[key] = tensor
            self.optimizer.load_state_dict(state | {"state": numbered})
            self.progress = progress
        except Exception as error:
            raise TrainingError(
                f"checkpoint {place} does not fit this job ({error}); remove its parent directory to train anew"
            ) from error

    def _to_device(self, rows: NDArray[np.float32]) -> Tensor:
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


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Stopwatch:
    """Training time over all attempts: what a checkpoint brought, plus this attempt's."""

    def __init__(self, before_s: float) -> None:
        self._before_s = before_s
        self._start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds."""
        return self._before_s + time.monotonic() - self._start
