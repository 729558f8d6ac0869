"""The checkpoints of a fit, in a directory or an object store: safetensors and JSON, each file written whole.

A checkpoint is whole once its progress.json is there: that file is written last and removed first.

checkpoints/
    fit.json              which fit they belong to: its settings and the run id of its pairs
    step_000001234/       state.safetensors, progress.json, with early stopping best.*; the newest few of them
    hold.json, hold_*.json     which attempt may write here, and which process of it (see hold.py)
    history.jsonl, live.json, failed.txt     what workers tell the driver (see journal.py)
    fitted.safetensors, fitted.json     the averaged network of the last finished fit, its shape, step and history
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from sfg_dist.job.errors import DocumentError, StoreError, TrainingError
from sfg_dist.job.object_stores import absolute_url, is_url
from sfg_dist.job.reader import LONG_BYTES, MAX_BYTES, read_json
from sfg_dist.model.cell_network import Network
from sfg_dist.model.early_stopping import BEST_FILES
from sfg_dist.model.saved import network_of, read_file, read_tensors, saved_bytes, under
from sfg_dist.model.trainer import HISTORY_FIELDS, PROGRESS_NAME, STATE_NAME, Progress, Trainer, read_progress
from sfg_dist.store import Location, reason_of

if TYPE_CHECKING:
    from torch import Tensor

    from sfg_dist.job.config import TrainConfig

FIT_NAME = "fit.json"
FITTED_NAME = "fitted.json"
WEIGHTS_NAME = "fitted.safetensors"
HISTORY_NAME = "history.jsonl"
LIVE_NAME = "live.json"
STEP_NAME = re.compile(r"(step_\d+)/" + re.escape(PROGRESS_NAME))
MIN_CHECKPOINTS = 2  # a power cut can tear the newest one

NETWORK_KEYS = ("width", "depth", "block", "activation", "linear_skip")
RATE_KEYS = ("learning_rate", "learning_rate_schedule", "weight_decay", "ema_decay", "clip_norm")
"""These may differ from the checkpoint's where the user names a checkpoint to go on from."""
FIT_KEYS = ("batch_size", *RATE_KEYS[:4], "validation_fraction", "shuffle_rows", "seed", "clip_norm")

Place = str | Path
"""A directory or a URL of an object store."""


def open_checkpoints(place: Place) -> Location:
    """The location of a fit's checkpoints, made if it is not there.

    Raises:
        TrainingError: it cannot be made.
    """
    try:
        return Location(place, create=True)
    except StoreError as error:
        raise TrainingError(str(error)) from error


def identity_of(settings: TrainConfig) -> dict[str, Any]:
    """The settings that a checkpoint must agree in, as fit.json has them.

    Earlier versions had more objectives and directions; their name for what this version fits is still written.
    """
    network = {name: getattr(settings, name) for name in NETWORK_KEYS}
    if settings.cells != "auto":  # which earlier versions did not have
        network["cells"] = settings.cells
    if settings.experts > 1:  # likewise
        network["experts"] = settings.experts
    keys = {name: getattr(settings, name) for name in FIT_KEYS}
    fixed = {"direction": "decode", "objective": "mse"}
    return {"network": network | {"num_noise": 0}, **keys, **fixed, "optimizer": settings.optimizer}


class Checkpoints:
    """The checkpoints of one fit.

    Args:
        place: a directory or a URL of an object store, made if it is not there.
        settings: the fit's. A fit goes on where they have changed in limits, precision or threads alone.
        run_id: of the fit's pairs.

    Raises:
        TrainingError: the place cannot be made.
    """

    def __init__(self, place: Place, settings: TrainConfig, run_id: str) -> None:
        self.place, self.settings = place, settings
        self._location = open_checkpoints(place)
        self._record: dict[str, Any] = {"settings": identity_of(settings), "pairs": run_id}

    @property
    def is_ours(self) -> bool:
        """Whether there is a checkpoint, and it belongs to this very fit."""
        return bool(_newest_first(self._location)) and self._is_recorded

    @property
    def _is_recorded(self) -> bool:
        try:
            return _read_record(self._location) == self._record
        except DocumentError:
            return False

    @property
    def is_finished(self) -> bool:
        """Whether this very fit has run to its end: by its epochs, its time limit or early stopping."""
        if not self.is_ours:
            return False
        try:
            fitted = _read_fitted(self._location)
            newest = _newest_first(self._location)[0]
            progress = read_progress(self._location.read(f"{newest}/{PROGRESS_NAME}", LONG_BYTES))
        except DocumentError:
            return False
        if fitted.step != progress.step:
            return False  # killed between the last checkpoint and the averaged network
        patience, max_time_s = self.settings.patience, self.settings.max_time_s
        return (
            progress.epoch >= self.settings.num_epochs
            or (max_time_s is not None and progress.elapsed_s >= max_time_s)
            or (patience is not None and progress.epoch - fitted.best_epoch >= patience)
        )

    def save(self, trainer: Trainer, more: Mapping[str, bytes] | None = None) -> None:
        """Write a checkpoint and remove the oldest ones.

        Args:
            trainer: its state is saved.
            more: further files of the checkpoint.

        Raises:
            TrainingError: it cannot be written.
        """
        location = self._location
        try:
            if not self._is_recorded:  # written once: a kill must not make the checkpoints another fit's
                self._write_record()
            name = f"step_{trainer.progress.step:09d}"
            _remove(location, name)
            for file, content in {**(more or {}), **trainer.state_files()}.items():  # progress.json is the last
                location.write(f"{name}/{file}", content)
            for old in _newest_first(location)[max(MIN_CHECKPOINTS, self.settings.keep_checkpoints) :]:
                _remove(location, old)
        except (StoreError, OSError, SafetensorError) as error:
            raise TrainingError(f"cannot write a checkpoint to {self.place}: {reason_of(error)}") from error

    def clear_foreign(self) -> None:
        """Remove the checkpoints of another fit, with a warning. No rank may have started yet."""
        found = _newest_first(self._location)
        if not found or self._is_recorded:
            return
        warnings.warn(
            f"{self.place} holds checkpoints of other train keys or pairs: training starts anew", stacklevel=4
        )
        for old in found:
            _remove(self._location, old)
        for name in (FITTED_NAME, WEIGHTS_NAME, HISTORY_NAME, LIVE_NAME):
            self._location.delete(name)

    def go_back_to(self, checkpoint: str) -> str:
        """Let the fit go on from a chosen checkpoint, which becomes the newest: later ones are removed.

        Args:
            checkpoint: the name of one of them (``step_000001234``, or 1234), or the path or URL of one in another
                output directory, which is copied here. RATE_KEYS may differ from those that it was made with.

        Returns:
            The checkpoint's name.

        Raises:
            TrainingError: there is no such checkpoint, or its network, its pairs or their order differ.
        """
        here = self._location
        there, name = _find_checkpoint(here, checkpoint)
        found = _newest_first(there)
        if name not in found:
            kept = ", ".join(found) or "none"
            raise TrainingError(f"{there.url} holds no whole checkpoint {name}; kept there: {kept}")
        self._require_same_fit(there, name)
        files = {entry.key: there.read(entry.key) or b"" for entry in there.list(name)}
        is_elsewhere = absolute_url(there.url) != absolute_url(here.url)
        if is_elsewhere:
            for old in _newest_first(here):
                _remove(here, old)
        # The fit's record first: a kill must not leave checkpoints that look like another fit's.
        self._write_record()
        if is_elsewhere:
            for key in sorted(files, key=lambda key: key.endswith(PROGRESS_NAME)):
                here.write(key, files[key])
        for later in [other for other in _newest_first(here) if other > name]:
            _remove(here, later)
        for leftover in (FITTED_NAME, WEIGHTS_NAME):
            here.delete(leftover)
        return name

    def _require_same_fit(self, there: Location, name: str) -> None:
        try:
            record = _read_record(there)
        except DocumentError as error:
            raise TrainingError(f"{there.url}/{FIT_NAME} cannot be used: {error}") from error
        wanted, had = (each["settings"] | {"pairs": each["pairs"]} for each in (self._record, record))
        different = sorted(key for key in wanted.keys() | had.keys() if wanted.get(key) != had.get(key))
        if refused := [key for key in different if key not in RATE_KEYS]:
            changes = "; ".join(f"{key}: {had.get(key)!r} -> {wanted.get(key)!r}" for key in refused)
            raise TrainingError(f"checkpoint {name} of {there.url} is of another fit (checkpoint -> job): {changes}")

    def _write_record(self) -> None:
        self._location.write(FIT_NAME, json.dumps(self._record).encode())


def newest_step(place: Place) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    found = _newest_first(open_checkpoints(place))
    return int(found[0].removeprefix("step_")) if found else 0


def steps_ahead(place: Place) -> int:
    """The steps that the fit did before its first epoch, by its newest checkpoint; 0 where there is none."""
    location = open_checkpoints(place)
    for name in _newest_first(location):
        with contextlib.suppress(DocumentError):  # a power cut tore it; ``resume`` takes the one before too
            return read_progress(location.read(f"{name}/{PROGRESS_NAME}", LONG_BYTES)).ahead_steps
    return 0


def resume(place: Place, take: Callable[[Mapping[str, bytes], str], None]) -> None:
    """Go on from the newest checkpoint, if any, or from the one before it where a power cut tore the newest.

    Args:
        place: of the fit's checkpoints.
        take: called with a checkpoint's files and its name for messages.
    """
    location = open_checkpoints(place)
    found = _newest_first(location)
    for number, checkpoint in enumerate(found, start=1):
        names = (STATE_NAME, PROGRESS_NAME, *BEST_FILES)
        try:
            contents = {name: read_file(location, f"{checkpoint}/{name}") for name in names}
            take({name: content for name, content in contents.items() if content is not None}, f"{place}/{checkpoint}")
            return
        except (TrainingError, DocumentError) as error:
            if number == len(found):
                raise TrainingError(str(error)) from error
            warnings.warn(f"{error}; going on from the one before", stacklevel=2)


def load_average(place: Place) -> tuple[float, dict[str, Tensor]] | None:
    """The averaged weights of the newest checkpoint, behind the training time before it; None without one."""
    location = open_checkpoints(place)
    for name in _newest_first(location)[:1]:
        tensors = read_tensors(read_file(location, f"{name}/{STATE_NAME}"), STATE_NAME)
        progress = read_progress(location.read(f"{name}/{PROGRESS_NAME}", LONG_BYTES))
        return progress.elapsed_s, under(tensors, "average.")
    return None


def save_fitted(model: Network, place: Place, progress: Progress, best_epoch: int | None = None) -> None:
    """Write the averaged network, then the record that names its step; each replaces an older one whole.

    Args:
        model: the network, with the averaged weights.
        place: of the fit's checkpoints.
        progress: where the fit ended.
        best_epoch: the epoch of the weights, where early stopping chose them.
    """
    location = open_checkpoints(place)
    document = {"network": {"dim": model.dim, **model.shape}, "step": progress.step, "history": progress.history}
    if best_epoch is not None:
        document["best_epoch"] = best_epoch
    try:
        content = saved_bytes(model.state_dict())
        location.delete(FITTED_NAME)
        location.write(WEIGHTS_NAME, content)
        location.write(FITTED_NAME, json.dumps(document).encode())
    except (StoreError, OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write the fitted network to {place}: {reason_of(error)}") from error


def load_fitted(place: Place) -> tuple[Network, list[dict[str, float]]]:
    """The averaged network that the last finished fit left, and its history."""
    location = open_checkpoints(place)
    if not (location.exists(FITTED_NAME) and location.exists(WEIGHTS_NAME)):
        raise TrainingError(f"{place} holds no finished fit: run `sfg train` with this job")
    try:
        fitted = _read_fitted(location)
        tensors = read_tensors(read_file(location, WEIGHTS_NAME), WEIGHTS_NAME)
        return network_of(fitted.network, tensors, FITTED_NAME), fitted.history
    except DocumentError as error:
        raise TrainingError(f"the finished fit in {place} cannot be used: {error}; remove it to train anew") from error


@dataclass(frozen=True)
class _Fitted:
    """What fitted.json says."""

    network: Mapping[str, object]
    step: int
    history: list[dict[str, float]]
    best_epoch: float


def _read_fitted(location: Location) -> _Fitted:
    fields = {"network": dict, "step": int, "history": HISTORY_FIELDS, "best_epoch?": int}
    content = location.read(FITTED_NAME, LONG_BYTES)
    document = read_json(content, FITTED_NAME, fields, max_bytes=LONG_BYTES, allow_nan=True)
    best_epoch = document.get("best_epoch", math.inf)
    return _Fitted(document["network"], document["step"], document["history"], best_epoch)


def _read_record(location: Location) -> Any:
    """What fit.json says."""
    content = location.read(FIT_NAME, MAX_BYTES)
    return read_json(content, FIT_NAME, {"settings": dict, "pairs": str}, allow_nan=True)


def _newest_first(location: Location) -> list[str]:
    """Names of the whole checkpoints."""
    found = (STEP_NAME.fullmatch(entry.key) for entry in location.list())
    return sorted((match[1] for match in found if match), reverse=True)


def _remove(location: Location, name: str) -> None:
    """Remove a checkpoint, or what a kill left of one."""
    keys = sorted((entry.key for entry in location.list(name)), key=lambda key: not key.endswith(PROGRESS_NAME))
    for key in keys:
        location.delete(key)
    location.clear(name)  # files that a kill left half written, too


def _find_checkpoint(here: Location, checkpoint: str) -> tuple[Location, str]:
    """Where a checkpoint is, and its name there."""
    text = checkpoint.rstrip("/")
    parent, _, name = text.rpartition("/")
    if text.isdigit():
        name = f"step_{int(text):09d}"
    if not parent:
        return here, name
    if not is_url(parent) and not Path(parent).is_dir():
        raise TrainingError(f"{checkpoint}: {parent} is no directory")
    return Location(absolute_url(parent)), name
