"""The encoder's fit in one process: it reads the pairs, keeps a checkpoint and goes on from it.

The encoder is small enough for one process, also where the fit of the generator's network needs several. Its checkpoint
is one file, ``encoder.safetensors`` among those of the other fit, written whole. A fit that has run to its end is not
run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from sfg_dist.distributed.fit.checkpoints import Place, open_checkpoints
from sfg_dist.distributed.machine import default_device
from sfg_dist.job.config import TrainConfig
from sfg_dist.job.errors import StoreError, TrainingError
from sfg_dist.job.object_stores import reason_of
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.encoder_trainer import NUM_CHECKS, EncoderTrainer, Identity, Limits, Tables, load_finished
from sfg_dist.model.likelihood import Blend, Mass
from sfg_dist.model.scaling import scaling_of
from sfg_dist.model.trainer import Stopwatch
from sfg_dist.store import Pairs, open_pairs, read_rows

STATE_NAME = "encoder.safetensors"
MAX_NUMBERS = 2**25  # of the reference, and of latents and labels, that are held: 128 MiB each
MIN_VALIDATION_ROWS = 32
HELD_OUT_SHARE = 0.05
MIN_TRAINING_SHARE = 0.5  # of the time limit, where setting up and the mass would take more

OnCheck = Callable[[dict[str, float]], None]
FittedEncoder = tuple[Encoder, Mass, Blend]


def fit_encoder(
    url: str,
    checkpoints: Place,
    settings: TrainConfig,
    validation: NDArray[np.float32],
    *,
    on_check: OnCheck | None = None,
    begun_s: float = 0.0,
) -> FittedEncoder:
    """Fit an encoder to the pairs of a store and to its reference.

    Args:
        url: the store.
        checkpoints: a directory or an s3:// URL.
        settings: the fit. Within max_time_s lie setting up, training over all attempts, and estimating the mass.
        validation: rows of the data that no pair was made from, in the flow's coordinates; with fewer than
            MIN_VALIDATION_ROWS, a share of the reference takes their place.
        on_check: called with every entry of the history.
        begun_s: seconds of settings.max_time_s that were used before this call.

    Returns:
        The encoder with its best weights, the mass of its density, and what that is blended with.

    Raises:
        TrainingError: the fit diverged, or a checkpoint cannot be written.
        StoreError: the pairs cannot be read.
    """
    started = time.monotonic() - begun_s
    pairs = open_pairs(url)
    pairs.require_complete()
    done = finished_encoder(pairs, checkpoints, settings)
    if done is not None:
        return done
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    torch.manual_seed(settings.seed)
    encoder = _new_encoder(pairs, settings)
    identity, limits = _identity(pairs, settings), _limits(settings)
    location = open_checkpoints(checkpoints)
    content = location.read(STATE_NAME)
    bfloat16 = None if settings.precision == "auto" else settings.precision == "bfloat16"
    trainer = EncoderTrainer(encoder, _tables(pairs, validation), seed=settings.seed, bfloat16=bfloat16)
    if content is not None:
        trainer.load_state(content, identity)

    def save() -> None:
        try:
            location.write(STATE_NAME, trainer.state(identity))
        except (StoreError, OSError) as error:
            raise TrainingError(f"cannot write {checkpoints}/{STATE_NAME}: {reason_of(error)}") from error

    if trainer.progress.ended_by != limits:
        trainer.progress.ended_by = trainer.progress.mass = trainer.progress.share = None
        max_time_s = settings.max_time_s
        if max_time_s is not None:
            left_s = max_time_s - (time.monotonic() - started) - trainer.time_of_mass_s()
            max_time_s = max(left_s, MIN_TRAINING_SHARE * max_time_s)
        _run(trainer, settings, max_time_s, save, on_check)
        trainer.progress.ended_by = limits
        save()
    mass, blend = trainer.finish()
    save()
    return encoder, mass, blend


def finished_encoder(pairs: Pairs, checkpoints: Place, settings: TrainConfig) -> FittedEncoder | None:
    """What ``fit_encoder`` returns where the fit has run to its end by these settings; None where it has not."""
    encoder = _new_encoder(pairs, settings)
    content = open_checkpoints(checkpoints).read(STATE_NAME)
    identity, limits = _identity(pairs, settings), _limits(settings)
    found = None if content is None else load_finished(encoder, content, identity, limits)
    return None if found is None else (encoder, *found)


def _new_encoder(pairs: Pairs, settings: TrainConfig) -> Encoder:
    encoder = Encoder(pairs.plan.dim, width=settings.encoder_width, depth=settings.encoder_depth)
    return encoder.to(default_device())


def _limits(settings: TrainConfig) -> Limits:
    return [settings.encoder_steps, settings.max_time_s]


def _identity(pairs: Pairs, settings: TrainConfig) -> Identity:
    """Which fit a checkpoint belongs to."""
    shape = {"width": settings.encoder_width, "depth": settings.encoder_depth}
    return {"pairs": pairs.plan.run_id, "dim": pairs.plan.dim, **shape, "seed": settings.seed}


def _tables(pairs: Pairs, validation: NDArray[np.float32]) -> Tables:
    """What the encoder is fitted to, as much of it as is held, in scaled rows."""
    held = max(1, MAX_NUMBERS // pairs.plan.dim)
    reference = pairs.reference_rows(0, min(held, pairs.num_reference))
    num_pairs = min(held, pairs.plan.num_pairs)
    latents, labels = read_rows(pairs.latents, 0, num_pairs), read_rows(pairs.labels, 0, num_pairs)
    if (scaling := scaling_of(pairs)) is not None:
        reference, labels, validation = scaling(reference), scaling(labels), scaling(validation)
    if len(validation) < MIN_VALIDATION_ROWS:
        cut = len(reference) - max(1, round(HELD_OUT_SHARE * len(reference)))
        reference, validation = reference[:cut], reference[cut:]
    return Tables(reference, latents, labels, validation)


def _run(
    trainer: EncoderTrainer,
    settings: TrainConfig,
    max_time_s: float | None,
    save: Callable[[], None],
    on_check: OnCheck | None,
) -> None:
    """All steps that are left, with a look at the validation rows and a checkpoint now and then."""
    progress = trainer.progress
    watch = Stopwatch(progress.elapsed_s)
    saved_s = progress.elapsed_s

    def share_done() -> float:
        by_clock = watch.elapsed_s / max_time_s if max_time_s is not None else 0.0
        return max(progress.step / settings.encoder_steps, by_clock)

    done = share_done()
    next_check = (int(done * NUM_CHECKS) + 1) / NUM_CHECKS
    while done < 1:
        trainer.step(done)
        done = share_done()
        progress.elapsed_s = watch.elapsed_s
        if done >= next_check:
            next_check = (int(done * NUM_CHECKS) + 1) / NUM_CHECKS
            entry = trainer.check()
            if on_check is not None:
                on_check(entry)
        if watch.elapsed_s - saved_s > settings.checkpoint_interval_s:
            saved_s = progress.elapsed_s
            save()
