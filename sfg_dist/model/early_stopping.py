"""Early stopping: the best averaged weights of a fit, by held-out loss, and when the fit should end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from torch import Tensor

from sfg_dist.job.errors import DocumentError, TrainingError
from sfg_dist.job.reader import MAYBE_NAN, read_json
from sfg_dist.model.saved import check_tensors, read_tensors, saved_bytes

BEST_WEIGHTS_NAME, BEST_NAME = "best.safetensors", "best.json"
BEST_FILES = (BEST_WEIGHTS_NAME, BEST_NAME)


class EarlyStopping:
    """Keeps the weights of the epoch with the lowest held-out loss; after ``patience`` epochs without one the fit ends.

    Attributes:
        epoch: the epoch of the lowest loss; 0 before the first.
        loss: the lowest loss.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.epoch = 0
        self.loss = math.inf
        self.weights: dict[str, Tensor] = {}

    def note(self, epoch: int, loss: float, weights: Mapping[str, Tensor]) -> bool:
        """Look at an epoch's held-out loss, and keep its averaged weights if they are the best; ``is_over``."""
        if loss < self.loss:
            self.epoch, self.loss = epoch, loss
            self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        return self.is_over(epoch)

    def is_over(self, epoch: int) -> bool:
        """Whether a fit that has done so many epochs should end."""
        return epoch - self.epoch >= self.patience

    def state_files(self) -> dict[str, bytes]:
        """Its files of a checkpoint, by name; none before the first epoch."""
        if not self.weights:
            return {}
        return {
            BEST_WEIGHTS_NAME: saved_bytes(self.weights),
            BEST_NAME: json.dumps({"epoch": self.epoch, "loss": self.loss}).encode(),
        }

    def load_files(self, files: Mapping[str, bytes], wanted: Mapping[str, Tensor], device: str = "cpu") -> None:
        """Go on from the files of a checkpoint, if they hold what ``state_files`` gave.

        ``wanted`` are the weights of the network that is fitted, and ``device`` is where the best ones go.

        Raises:
            TrainingError: the files are torn, or one of the two is missing.
        """
        if not any(name in files for name in BEST_FILES):
            return
        try:
            fields = {"epoch": int, "loss": MAYBE_NAN}
            best = read_json(files.get(BEST_NAME), BEST_NAME, fields, allow_nan=True)
            weights = read_tensors(files.get(BEST_WEIGHTS_NAME), BEST_WEIGHTS_NAME)
            check_tensors(wanted, weights, BEST_WEIGHTS_NAME)
            self.epoch, self.loss = best["epoch"], float(best["loss"])
        except DocumentError as error:
            raise TrainingError(f"the best weights beside a checkpoint cannot be read ({error})") from error
        self.weights = {name: tensor.to(device) for name, tensor in weights.items()}
