"""The encoder's fit in one process: reads the pairs, keeps a checkpoint, goes on from it.

It is small enough for one process wherever the fit of the generator needs several. Its checkpoint is one file,
``encoder.safetensors`` among those of the generator's fit, written whole; a fit that has run to its end is not run
again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfg_dist.distributed.fit.checkpoints import Place, open_checkpoints
from sfg_dist.distributed.fit.units import units_of
from sfg_dist.distributed.machine import default_device
from sfg_dist.job.errors import StoreError, TrainingError
from sfg_dist.job.object_stores import reason_of
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.fit import Stopwatch
from sfg_dist.model.fit_encoder import NUM_CHECKS, EncoderTrainer, load_finished
from sfg_dist.model.likelihood import Mass
from sfg_dist.store import Pairs, open_pairs, read_rows

STATE_NAME = "encoder.safetensors"
MAX_NUMBERS = 2**25  # of the reference, and of latents and labels, that are held: 128 MiB each
MIN_VALIDATION_ROWS = 32
HELD_OUT_SHARE = 0.05
MIN_TRAINING_SHARE = 0.5  # of the time limit, where setting up and the mass would take more


@dataclass(frozen=True)
class EncoderSettings:
    """What the encoder's fit needs to know.

    Attributes:
        width, depth: of the network.
        num_steps: at most.
        max_time_s: of setting up, training over all attempts and estimating the mass; None leaves it to num_steps.
        checkpoint_interval_s: time between checkpoints.
        num_threads: CPU threads; None leaves torch's own choice.
        seed: of the network's start and of all draws.
        precision: "auto" takes bfloat16 for the Jacobian's products where the device has units for them, "float32" and
            "bfloat16" take what they say.
    """

    width: int
    depth: int
    num_steps: int
    max_time_s: float | None
    checkpoint_interval_s: float
    num_threads: int | None
    seed: int
    precision: str = "auto"


def fit_encoder(
    url: str,
    checkpoints: Place,
    settings: EncoderSettings,
    validation: NDArray[np.float32],
    *,
    on_check: Callable[[dict[str, float]], None] | None = None,
    begun_s: float = 0.0,
) -> tuple[Encoder, Mass]:
    """Fit an encoder to the pairs of a store and to its reference.

    Args:
        url: the store.
        checkpoints: a directory or an s3:// URL.
        settings: the fit.
        validation: rows of the data that no pair was made from, in the flow's coordinates; with fewer than
            MIN_VALIDATION_ROWS, a share of the reference takes their place.
        on_check: called with every entry of the history.
        begun_s: of settings.max_time_s, what went before this call.

    Returns:
        The encoder with its best weights, and the mass of its density.

    Raises:
        TrainingError: the fit diverged, or a checkpoint cannot be written.
        StoreError: the pairs cannot be read.
    """
    started = time.monotonic() - begun_s
    pairs = open_pairs(url)
    pairs.require_complete()
    dim, num_pairs = pairs.plan.dim, pairs.plan.num_pairs
    done = finished_encoder(pairs, checkpoints, settings)
    if done is not None:
        return done
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    torch.manual_seed(settings.seed)
    encoder = Encoder(dim, width=settings.width, depth=settings.depth).to(default_device())
    identity, limits = _identity(pairs, settings), [settings.num_steps, settings.max_time_s]
    location = open_checkpoints(checkpoints)
    content = location.read(STATE_NAME)
    held = max(1, MAX_NUMBERS // dim)
    reference = pairs.reference_rows(0, min(held, pairs.num_reference))
    labels = read_rows(pairs.labels, 0, min(held, num_pairs))
    if (units := units_of(pairs)) is not None:
        reference, labels, validation = units(reference), units(labels), units(validation)
    if len(validation) < MIN_VALIDATION_ROWS:
        cut = len(reference) - max(1, round(HELD_OUT_SHARE * len(reference)))
        reference, validation = reference[:cut], reference[cut:]
    trainer = EncoderTrainer(
        encoder,
        reference=reference,
        latents=read_rows(pairs.latents, 0, min(held, num_pairs)),
        labels=labels,
        validation=validation,
        seed=settings.seed,
        bfloat16=None if settings.precision == "auto" else settings.precision == "bfloat16",
    )
    if content is not None:
        trainer.load_state(content, identity)

    def save() -> None:
        _write(location, trainer.state(identity), checkpoints)

    if trainer.progress.ended_by != limits:
        trainer.progress.ended_by = trainer.progress.mass = None
        if settings.max_time_s is not None:
            left_s = settings.max_time_s - (time.monotonic() - started) - trainer.time_of_mass_s()
            settings = replace(settings, max_time_s=max(left_s, MIN_TRAINING_SHARE * settings.max_time_s))
        _run(trainer, settings, save, on_check)
        trainer.progress.ended_by = limits
        save()
    mass = trainer.finish()
    save()
    return encoder, mass


def finished_encoder(pairs: Pairs, checkpoints: Place, settings: EncoderSettings) -> tuple[Encoder, Mass] | None:
    """What ``fit_encoder`` would give at once, where it has been to its end by these settings."""
    encoder = Encoder(pairs.plan.dim, width=settings.width, depth=settings.depth).to(default_device())
    content = open_checkpoints(checkpoints).read(STATE_NAME)
    limits = [settings.num_steps, settings.max_time_s]
    mass = None if content is None else load_finished(encoder, content, _identity(pairs, settings), limits)
    return None if mass is None else (encoder, mass)


def _identity(pairs: Pairs, settings: EncoderSettings) -> dict[str, Any]:
    """Which fit a checkpoint belongs to."""
    shape = {"width": settings.width, "depth": settings.depth}
    return {"pairs": pairs.plan.run_id, "dim": pairs.plan.dim, **shape, "seed": settings.seed}


def _run(
    trainer: EncoderTrainer,
    settings: EncoderSettings,
    save: Callable[[], None],
    on_check: Callable[[dict[str, float]], None] | None,
) -> None:
    progress = trainer.progress
    watch = Stopwatch(progress.elapsed_s)
    saved_s = progress.elapsed_s

    def share_done() -> float:
        by_clock = watch.elapsed_s / settings.max_time_s if settings.max_time_s is not None else 0.0
        return max(progress.step / settings.num_steps, by_clock)

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


def _write(location: Any, content: bytes, place: Place) -> None:
    try:
        location.write(STATE_NAME, content)
    except (StoreError, OSError) as error:
        raise TrainingError(f"cannot write {place}/{STATE_NAME}: {reason_of(error)}") from error
