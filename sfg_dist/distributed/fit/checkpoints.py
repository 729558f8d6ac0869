"""What a fit leaves and goes on from, in a directory or an object store: safetensors and JSON, each file written whole.

A checkpoint is whole once its progress.json is there: that is written last and removed first.

checkpoints/
    fit.json              which fit they belong to: its settings and the run id of its pairs
    step_000001234/       state.safetensors, progress.json, with early stopping best.*; the newest few of them
    live.json             how far the fit is, written over every few seconds by the first of several workers
    hold.json, hold_*.json     which attempt may write here, and which process of it (see hold.py)
    history.jsonl         one line an epoch, over all attempts
    fitted.safetensors    the averaged network of the last finished fit
    fitted.json           its form, step and history
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from sfg_dist.job.errors import DocumentError, StoreError, TrainingError
from sfg_dist.job.object_stores import absolute_url, is_url
from sfg_dist.job.reader import LONG_BYTES, MAX_BYTES, MAYBE_NAN, read_json
from sfg_dist.model.early_stopping import BEST_FILES
from sfg_dist.model.fit import HISTORY_FIELDS, PROGRESS_NAME, STATE_NAME, Progress, Trainer, read_progress
from sfg_dist.model.mlp import MLP
from sfg_dist.model.saved import network_of, read_file, read_tensors, under
from sfg_dist.store import Location, reason_of

FIT_NAME = "fit.json"
FITTED_NAME = "fitted.json"
WEIGHTS_NAME = "fitted.safetensors"
HISTORY_NAME = "history.jsonl"
FAILURE_NAME = "failed.txt"
LIVE_NAME = "live.json"
_SEEN = {
    "epoch": int,
    "step": int,
    **dict.fromkeys(("train_loss", "learning_rate", "rows_per_s", "elapsed_s"), MAYBE_NAN),
}
_LIVE = _SEEN | {"step_in_epoch": int, "num_batches": range(1, 2**62), "done": float, "num_workers": int}
_ENTRY = _SEEN | {"validation_loss": MAYBE_NAN}
STEP_NAME = re.compile(r"(step_\d+)/" + re.escape(PROGRESS_NAME))

# What may change while a fit goes on, and what may change beside where it is told to go on from a checkpoint: the
# network, the pairs and their order stay.
FREE_KEYS = frozenset(
    {"checkpoint_interval_s", "keep_checkpoints", "num_threads", "max_time_s", "num_epochs", "precision", "patience"}
)
RATE_KEYS = frozenset({"learning_rate", "learning_rate_schedule", "weight_decay", "ema_decay", "clip_norm"})

Place = str | Path
"""A directory or a URL of an object store."""


@dataclass(frozen=True)
class FitSettings:
    """What the fit needs to know, as plain values that travel to the workers.

    Attributes:
        network: arguments of MLP but for dim.
        batch_size: rows of a global batch, over all ranks.
        learning_rate, learning_rate_schedule, weight_decay, ema_decay, precision, clip_norm, objective,
            optimizer: as for Trainer.
        num_epochs: passes over the training pairs.
        max_time_s: stop after this much training time, over all attempts; the learning rate is planned for it.
        validation_fraction: share of the pairs, the last ones, that is held out.
        shuffle_rows: rows that are shuffled together.
        checkpoint_interval_s: time between checkpoints.
        keep_checkpoints: how many are kept, the newest ones; two at least, because a power cut can tear the newest.
        patience: epochs without a lower held-out loss after which the fit ends; the averaged weights of the best epoch
            are then its result. None for all epochs and the last weights.
        num_threads: CPU threads of a worker; None leaves torch's own choice.
        seed: of the network's start and of the order.
        direction: "decode" fits latents -> labels, "encode" labels -> latents.
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
    clip_norm: float | None = None
    keep_checkpoints: int = 2
    patience: int | None = None
    direction: str = "decode"
    objective: str = "mse"
    optimizer: str = "muon"

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in to be gone on with."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_KEYS}


def open_checkpoints(place: Place) -> Location:
    """The location of a fit's checkpoints, made if it is not there.

    Raises:
        TrainingError: it cannot be made.
    """
    try:
        return Location(place, create=True)
    except StoreError as error:
        raise TrainingError(str(error)) from error


def save_checkpoint(
    trainer: Trainer, place: Place, settings: FitSettings, run_id: str, more: Mapping[str, bytes] | None = None
) -> None:
    """Write a checkpoint of this fit and drop the oldest ones.

    Args:
        trainer: its state.
        place: of the fit's checkpoints.
        settings: the fit's.
        run_id: of its pairs.
        more: further files of the checkpoint.

    Raises:
        TrainingError: it cannot be written.
    """
    location = open_checkpoints(place)
    try:
        if not _is_ours(location, settings, run_id):  # written once: a kill must not make them foreign
            location.write(FIT_NAME, json.dumps({"settings": settings.identity, "pairs": run_id}).encode())
        name = f"step_{trainer.progress.step:09d}"
        _remove(location, name)
        for file, content in {**(more or {}), **trainer.state_files()}.items():  # progress.json is the last
            location.write(f"{name}/{file}", content)
        for old in _newest_first(location)[max(2, settings.keep_checkpoints) :]:
            _remove(location, old)
    except (StoreError, OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write a checkpoint to {place}: {reason_of(error)}") from error


def has_checkpoint(place: Place, settings: FitSettings, run_id: str) -> bool:
    """Whether this very fit can go on from where it was."""
    location = open_checkpoints(place)
    return bool(_newest_first(location)) and _is_ours(location, settings, run_id)


def newest_step(place: Place) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    found = _newest_first(open_checkpoints(place))
    return int(found[0].removeprefix("step_")) if found else 0


def is_finished(place: Place, settings: FitSettings, run_id: str) -> bool:
    """Whether this very fit has run to its end: by epochs, or by the clock where it has a limit."""
    if not has_checkpoint(place, settings, run_id):
        return False
    location = open_checkpoints(place)
    try:
        fitted = _read_fitted(location)
        progress = read_progress(location.read(f"{_newest_first(location)[0]}/{PROGRESS_NAME}", LONG_BYTES))
    except DocumentError:
        return False
    if fitted["step"] != progress.step:
        return False  # killed between the last checkpoint and the averaged network
    if settings.patience is not None and progress.epoch - fitted.get("best_epoch", math.inf) >= settings.patience:
        return True
    return progress.epoch >= settings.num_epochs or (
        settings.max_time_s is not None and progress.elapsed_s >= settings.max_time_s
    )


def _newest_first(location: Location) -> list[str]:
    """Names of the whole checkpoints."""
    found = (STEP_NAME.fullmatch(entry.key) for entry in location.list())
    return sorted((match[1] for match in found if match), reverse=True)


def _is_ours(location: Location, settings: FitSettings, run_id: str) -> bool:
    try:
        made_by = _read_fit(location)
    except DocumentError:
        return False
    return bool(made_by == json.loads(json.dumps({"settings": settings.identity, "pairs": run_id})))


def _remove(location: Location, name: str) -> None:
    """Remove a checkpoint, or what a kill left of one."""
    keys = sorted((entry.key for entry in location.list(name)), key=lambda key: not key.endswith(PROGRESS_NAME))
    for key in keys:
        location.delete(key)
    location.clear(name)  # what a kill left half written, too


def clear_foreign(place: Place, settings: FitSettings, run_id: str) -> None:
    """Remove the checkpoints of another fit, with a warning, before any rank starts."""
    location = open_checkpoints(place)
    found = _newest_first(location)
    if not found or _is_ours(location, settings, run_id):
        return
    warnings.warn(f"{place} holds checkpoints of other train keys or pairs: training starts anew", stacklevel=4)
    for old in found:
        _remove(location, old)
    for name in (FITTED_NAME, WEIGHTS_NAME, HISTORY_NAME, LIVE_NAME):
        location.delete(name)


def resume(place: Place, take: Callable[[Mapping[str, bytes], str], None]) -> None:
    """Take up the newest checkpoint, or the one before it where a power cut tore the newest.

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


def go_back_to(place: Place, checkpoint: str, settings: FitSettings, run_id: str) -> str:
    """Let the fit go on from a checkpoint of one's choice: it becomes the newest, later ones are removed.

    Args:
        place: of this fit's checkpoints.
        checkpoint: the name of one of them (``step_000001234``, or 1234), or the path or URL of one of another output
            directory, which is copied here.
        settings: of the fit that goes on. Rates, schedule, decays and clipping may differ from those that the
            checkpoint was made with, and so may what does not touch the result; the rest may not.
        run_id: of the pairs.

    Returns:
        The checkpoint's name.

    Raises:
        TrainingError: there is no such checkpoint, or it is of another network, other pairs or another order of them.
    """
    there, name = _find_checkpoint(place, checkpoint)
    location = open_checkpoints(place)
    found = _newest_first(there)
    if name not in found:
        kept = ", ".join(found) or "none"
        raise TrainingError(f"{there.url} holds no whole checkpoint {name}; kept there: {kept}")
    try:
        made_by = _read_fit(there)
    except DocumentError as error:
        raise TrainingError(f"{there.url}/{FIT_NAME} cannot be used: {error}") from error
    wanted = json.loads(json.dumps({"pairs": run_id, **settings.identity}))
    had = {"pairs": made_by["pairs"], **made_by["settings"]}
    different = sorted(key for key in wanted.keys() | had.keys() if wanted.get(key) != had.get(key))
    if refused := [key for key in different if key not in RATE_KEYS]:
        shown = "; ".join(f"{key}: {had.get(key)!r} -> {wanted.get(key)!r}" for key in refused)
        raise TrainingError(f"checkpoint {name} of {there.url} is of another fit (checkpoint -> job): {shown}")
    files = {entry.key: there.read(entry.key) or b"" for entry in there.list(name)}
    is_elsewhere = absolute_url(there.url) != absolute_url(location.url)
    if is_elsewhere:
        for old in _newest_first(location):
            _remove(location, old)
    # The fit's record first: a kill must not leave checkpoints that look like another fit's.
    location.write(FIT_NAME, json.dumps({"settings": settings.identity, "pairs": run_id}).encode())
    if is_elsewhere:
        for key in sorted(files, key=lambda key: key.endswith(PROGRESS_NAME)):
            location.write(key, files[key])
    for later in [other for other in _newest_first(location) if other > name]:
        _remove(location, later)
    for leftover in (FITTED_NAME, WEIGHTS_NAME):
        location.delete(leftover)
    return name


def _find_checkpoint(place: Place, checkpoint: str) -> tuple[Location, str]:
    """Where a checkpoint is, and its name there."""
    text = checkpoint.rstrip("/")
    parent, _, name = text.rpartition("/")
    if text.isdigit():
        name = f"step_{int(text):09d}"
    if not parent:
        return open_checkpoints(place), name
    if not is_url(parent) and not Path(parent).is_dir():
        raise TrainingError(f"{checkpoint}: {parent} is no directory")
    return Location(absolute_url(parent)), name


def append_history(place: Place, entry: Mapping[str, float]) -> None:
    """Add an epoch to the log of all attempts, which the driver follows while workers train."""
    location = open_checkpoints(place)
    line = json.dumps(entry).encode() + b"\n"
    try:
        if location.root is not None:
            location.append(HISTORY_NAME, line, is_lines=True)
        else:  # an object cannot be appended to; a line an epoch stays small
            location.write(HISTORY_NAME, (location.read(HISTORY_NAME) or b"") + line)
    except (StoreError, OSError) as error:
        raise TrainingError(f"cannot write {place}/{HISTORY_NAME}: {reason_of(error)}") from error


def write_live(place: Place, entry: Mapping[str, Any]) -> None:
    """Say how far the fit is; a word that cannot be written is dropped, the next one comes in a moment."""
    with contextlib.suppress(StoreError, TrainingError):
        open_checkpoints(place).write(LIVE_NAME, json.dumps(entry).encode())


def read_live(place: Place) -> dict[str, Any] | None:
    """How far the fit is, as last said; None where nothing was."""
    try:
        content = open_checkpoints(place).read(LIVE_NAME, MAX_BYTES)
        return read_json(content, LIVE_NAME, _LIVE, allow_nan=True) or None
    except DocumentError:
        return None


def history_size(place: Place) -> int:
    """Bytes of the log of all attempts."""
    return open_checkpoints(place).size(HISTORY_NAME) or 0


def follow_history(place: Place, offset: int, on_entry: Callable[[dict[str, float]], None]) -> int:
    """Pass on the whole lines of the log behind ``offset`` bytes; the offset behind them."""
    content = (open_checkpoints(place).read(HISTORY_NAME) or b"")[offset:]
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # caught while being written; the next look has it whole
        offset += len(line)
        with contextlib.suppress(DocumentError):  # not a line of this package
            on_entry(read_json(line, HISTORY_NAME, _ENTRY, allow_nan=True))
    return offset


def note_failure(place: Place, message: str) -> None:
    """Write down why the fit cannot go on, for the driver."""
    open_checkpoints(place).write(FAILURE_NAME, message.encode())


def take_failure(place: Place) -> str | None:
    """Why the last fit could not go on; None where it did. The note is removed."""
    location = open_checkpoints(place)
    content = location.read(FAILURE_NAME)
    if content is None:
        return None
    location.delete(FAILURE_NAME)
    return content.decode()


def save_fitted(model: MLP, place: Place, progress: Progress, best_epoch: int | None = None) -> None:
    """The averaged network, then the record that names its step; each replaces an older one whole.

    Args:
        model: the network, with the weights that count.
        place: of the fit's checkpoints.
        progress: where the fit ended.
        best_epoch: whose weights they are, where early stopping chose them.
    """
    location = open_checkpoints(place)
    document = {"network": {"dim": model.dim, **model.shape}, "step": progress.step, "history": progress.history}
    if best_epoch is not None:
        document["best_epoch"] = best_epoch
    try:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        content = save(weights)
        location.delete(FITTED_NAME)
        location.write(WEIGHTS_NAME, content)
        location.write(FITTED_NAME, json.dumps(document).encode())
    except (StoreError, OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write the fitted network to {place}: {reason_of(error)}") from error


def load_fitted(place: Place) -> tuple[MLP, list[dict[str, float]]]:
    """The averaged network that the last finished fit left, and its history."""
    location = open_checkpoints(place)
    if not (location.exists(FITTED_NAME) and location.exists(WEIGHTS_NAME)):
        raise TrainingError(f"{place} holds no finished fit: run `sfg train` with this job")
    try:
        document = _read_fitted(location)
        tensors = read_tensors(read_file(location, WEIGHTS_NAME), WEIGHTS_NAME)
        return network_of(document["network"], tensors, FITTED_NAME), document["history"]
    except DocumentError as error:
        raise TrainingError(f"the finished fit in {place} cannot be used: {error}; remove it to train anew") from error


def load_average(place: Place) -> tuple[float, dict[str, Tensor]] | None:
    """The averaged weights of the newest checkpoint and the training time that it was made after; None without one."""
    location = open_checkpoints(place)
    for name in _newest_first(location)[:1]:
        tensors = read_tensors(read_file(location, f"{name}/{STATE_NAME}"), STATE_NAME)
        progress = read_progress(location.read(f"{name}/{PROGRESS_NAME}", LONG_BYTES))
        return progress.elapsed_s, under(tensors, "average.")
    return None


def _read_fit(location: Location) -> dict[str, Any]:
    """Which fit the checkpoints belong to."""
    content = location.read(FIT_NAME, MAX_BYTES)
    document: dict[str, Any] = read_json(content, FIT_NAME, {"settings": dict, "pairs": str}, allow_nan=True)
    return document


def _read_fitted(location: Location) -> dict[str, Any]:
    """The form, step and history of a finished fit."""
    fields = {"network": dict, "step": int, "history": HISTORY_FIELDS, "best_epoch?": int}
    content = location.read(FITTED_NAME, LONG_BYTES)
    document: dict[str, Any] = read_json(content, FITTED_NAME, fields, max_bytes=LONG_BYTES, allow_nan=True)
    return document
