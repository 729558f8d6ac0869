"""What a fit leaves on disk and goes on from: safetensors and JSON, each written whole or not at all.

checkpoints/
    fit.json              which fit they belong to: its settings and the run id of its pairs
    step_000001234/       network, average, optimiser and progress; the newest KEPT_CHECKPOINTS of them
    history.jsonl         one line an epoch, over all attempts
    fitted.safetensors    the averaged network of the last finished fit
    fitted.json           its form, step and history
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sfg_dist.errors import TrainingError
from sfg_dist.model.fit import Progress, Trainer
from sfg_dist.model.mlp import MLP
from sfg_dist.store import reason_of

# Two, because a power cut can tear the newest.
KEPT_CHECKPOINTS = 2
FIT_NAME = "fit.json"
FITTED_NAME = "fitted.json"
WEIGHTS_NAME = "fitted.safetensors"
HISTORY_NAME = "history.jsonl"


@dataclass(frozen=True)
class FitSettings:
    """What the fit needs to know, as plain values that travel to the workers.

    Attributes:
        network: arguments of MLP but for dim.
        batch_size: rows of a global batch, over all ranks.
        learning_rate, learning_rate_schedule, weight_decay, ema_decay, precision: as for Trainer.
        num_epochs: passes over the training pairs.
        max_time_s: stop after this much training time, over all attempts; the learning rate is planned for it.
        validation_fraction: share of the pairs, the last ones, that is held out.
        shuffle_rows: rows that are shuffled together.
        checkpoint_interval_s: time between checkpoints.
        num_threads: CPU threads of a worker; None leaves torch's own choice.
        seed: of the network's start and of the order.
    """

    network: Mapping[str, Any]
    batch_size: int
    learning_rate: float
    learning_rate_schedule: str
    weight_decay: float
    ema_decay: float
    precision: str
    num_epochs: int
    max_time_s: float | None
    validation_fraction: float
    shuffle_rows: int
    checkpoint_interval_s: float
    num_threads: int | None
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in to be gone on with."""
        free = {"checkpoint_interval_s", "num_threads", "max_time_s", "num_epochs", "precision"}
        return {name: value for name, value in asdict(self).items() if name not in free}


def save_checkpoint(trainer: Trainer, checkpoints: Path, settings: FitSettings, run_id: str) -> None:
    """Write a checkpoint of this fit and drop the oldest ones.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        if not _is_ours(checkpoints, settings, run_id):  # written once, and whole: a kill must not make them foreign
            partial = checkpoints / f"{FIT_NAME}.partial"
            partial.write_text(json.dumps({"settings": settings.identity, "pairs": run_id}))
            partial.replace(checkpoints / FIT_NAME)
        for leftover in checkpoints.glob("step_*.partial"):
            shutil.rmtree(leftover)  # of an attempt that was killed
        trainer.save(checkpoints / f"step_{trainer.progress.step:09d}")
        for old in _newest_first(checkpoints)[KEPT_CHECKPOINTS:]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write a checkpoint to {checkpoints}: {reason_of(error)}") from error


def has_checkpoint(checkpoints: Path, settings: FitSettings, run_id: str) -> bool:
    """Whether this very fit can go on from where it was."""
    return bool(_newest_first(checkpoints)) and _is_ours(checkpoints, settings, run_id)


def is_finished(checkpoints: Path, settings: FitSettings, run_id: str) -> bool:
    """Whether this very fit has run to its end: by epochs, or by the clock where it has a limit."""
    if not has_checkpoint(checkpoints, settings, run_id):
        return False
    try:
        fitted = json.loads((checkpoints / FITTED_NAME).read_text())
        progress = json.loads((_newest_first(checkpoints)[0] / "progress.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    if fitted["step"] != progress["step"]:
        return False  # killed between the last checkpoint and the averaged network
    return progress["epoch"] >= settings.num_epochs or (
        settings.max_time_s is not None and progress["elapsed_s"] >= settings.max_time_s
    )


def _newest_first(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("step_*[0-9]"), reverse=True)


def _is_ours(checkpoints: Path, settings: FitSettings, run_id: str) -> bool:
    try:
        made_by = json.loads((checkpoints / FIT_NAME).read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return bool(made_by == json.loads(json.dumps({"settings": settings.identity, "pairs": run_id})))


def clear_foreign(checkpoints: Path, settings: FitSettings, run_id: str) -> None:
    """Remove the checkpoints of another fit, with a warning, before any rank starts."""
    found = _newest_first(checkpoints)
    if not found or _is_ours(checkpoints, settings, run_id):
        return
    warnings.warn(f"{checkpoints} holds checkpoints of other train keys or pairs: training starts anew", stacklevel=4)
    for old in found:
        shutil.rmtree(old)
    for name in (FITTED_NAME, WEIGHTS_NAME, HISTORY_NAME):
        (checkpoints / name).unlink(missing_ok=True)


def resume(trainer: Trainer, checkpoints: Path) -> None:
    """Take up the newest checkpoint, or the one before it where a power cut tore the newest."""
    found = _newest_first(checkpoints)
    for number, checkpoint in enumerate(found, start=1):
        try:
            trainer.load(checkpoint)
            return
        except TrainingError as error:
            if number == len(found):
                raise
            warnings.warn(f"{error}; going on from the one before", stacklevel=2)


def append_history(checkpoints: Path, entry: Mapping[str, float]) -> None:
    """Add an epoch to the log of all attempts, which the driver follows while workers train."""
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        with (checkpoints / HISTORY_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise TrainingError(f"cannot write {checkpoints / HISTORY_NAME}: {reason_of(error)}") from error


def save_fitted(model: MLP, checkpoints: Path, progress: Progress) -> None:
    """The averaged network, then the record that names its step; each replaces an older one whole."""
    document = {"network": {"dim": model.dim, **model.shape}, "step": progress.step, "history": progress.history}
    try:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, checkpoints / f"{WEIGHTS_NAME}.partial")
        (checkpoints / f"{FITTED_NAME}.partial").write_text(json.dumps(document))
        (checkpoints / FITTED_NAME).unlink(missing_ok=True)
        (checkpoints / f"{WEIGHTS_NAME}.partial").replace(checkpoints / WEIGHTS_NAME)
        (checkpoints / f"{FITTED_NAME}.partial").replace(checkpoints / FITTED_NAME)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write the fitted network to {checkpoints}: {reason_of(error)}") from error


def load_fitted(checkpoints: Path) -> tuple[MLP, list[dict[str, float]]]:
    """The averaged network that the last finished fit left, and its history."""
    try:
        document = json.loads((checkpoints / FITTED_NAME).read_text())
        model = MLP(**document["network"])
        model.load_state_dict(load_file(checkpoints / WEIGHTS_NAME))
    except FileNotFoundError:
        raise TrainingError(f"{checkpoints} holds no finished fit: run `sfg train` with this job") from None
    return model.eval(), document["history"]
