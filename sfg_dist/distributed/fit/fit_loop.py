"""The loop of a fit, which every rank runs from the last checkpoint on, epoch after epoch.

All ranks have the same global batches and take the same decisions. Every SYNC_STEPS steps they add up two numbers: rank
0's clock and the loss. Whatever depends on the clock is decided by rank 0's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.distributed.fit.checkpoints import Checkpoints, resume, save_fitted
from sfg_dist.distributed.fit.hold import Hold
from sfg_dist.distributed.fit.journal import Entry, Journal, Report
from sfg_dist.job.errors import TrainingError
from sfg_dist.job.threads import SpinWatch
from sfg_dist.model.device_feed import DeviceFeed
from sfg_dist.model.early_stopping import EarlyStopping
from sfg_dist.model.trainer import Stopwatch, Trainer
from sfg_dist.store import PairStream

SYNC_STEPS = 16  # ranks agree on the clock this often; a collective every step would cost as much as a small step
LIVE_INTERVAL_S = 2.0
PREEMPTION_INTERVAL_S = 5.0


class DivergedError(TrainingError):
    """The loss is not finite. Every rank sees this at the same step, because the loss is summed over ranks first."""


@dataclass(frozen=True)
class Hooks:
    """What a fit calls while it runs; each may be left out."""

    on_epoch: Report | None = None  # called on rank 0 with an epoch's entry in the history
    on_live: Report | None = None  # called on rank 0 every few seconds with how far the epoch is
    report: Report | None = None  # called on every rank with an epoch's entry
    # whether this process was asked to end; the fit then writes a checkpoint and raises KeyboardInterrupt
    should_stop: Callable[[], bool] | None = None
    # whether a node of a rank will be taken away soon; every rank asks at the same steps
    is_preempted: Callable[[], bool] | None = None


class FitLoop:
    """The fit of one rank; all ranks run the same lines.

    Args:
        trainer: the network and its optimiser, as at the start.
        stream: this rank's batches, latents first and labels second.
        held_out: latents and labels for validation, of all ranks together.
        checkpoints: of this fit, which goes on from the newest.
        hooks: what it calls.
        hold: what lets rank 0 write; None where nobody else can be at work on this fit.
    """

    def __init__(
        self,
        trainer: Trainer,
        stream: PairStream,
        held_out: tuple[NDArray[np.float32], ...],
        checkpoints: Checkpoints,
        *,
        hooks: Hooks | None = None,
        hold: Hold | None = None,
    ) -> None:
        self.trainer, self.stream, self.settings = trainer, stream, checkpoints.settings
        self.rank, self.world_size = stream.rank, stream.world_size
        self.held_out = tuple(table[self.rank :: self.world_size] for table in held_out)
        self.hooks = hooks or Hooks()
        patience = self.settings.patience
        self.early = None if patience is None else EarlyStopping(patience)
        self._checkpoints, self._journal, self._hold = checkpoints, Journal(checkpoints.place), hold
        self._feed = DeviceFeed(trainer.device)
        resume(checkpoints.place, self._load_files)
        self._watch = Stopwatch(trainer.progress.elapsed_s)
        self._clock = self._saved_s = self._looked_s = self._asked_s = trainer.progress.elapsed_s
        self._has_saved_for_preemption = False
        self._live_from = (trainer.progress.step, self._clock, 0.0)
        self._spin_watch = SpinWatch()

    def _load_files(self, files: Mapping[str, bytes], place: str) -> None:
        self.trainer.load_files(files, place)
        if self.early is not None:
            self.early.load_files(files, self.trainer.average, str(self.trainer.device))

    def run(self) -> None:
        """All epochs that are left, and the averaged network at the end.

        Raises:
            DivergedError: the loss is no longer finite, on all ranks at once.
            TrainingError: a checkpoint cannot be written, or another attempt has taken over.
            StoreError: the pairs cannot be read.
            KeyboardInterrupt: ``hooks.should_stop`` said so; a checkpoint is written.
        """
        progress = self.trainer.progress
        self._agree(torch.zeros((), device=self.trainer.device))
        while not self._is_over():
            self._run_epoch()
        if self.rank == 0:
            self.save()
            best = self.early if self.early is not None and self.early.weights else None
            self.trainer.model.load_state_dict(self.trainer.average if best is None else best.weights)
            best_epoch = None if best is None else best.epoch
            save_fitted(self.trainer.model, self._checkpoints.place, progress, best_epoch)
        if self.world_size > 1:
            torch.distributed.barrier()

    def save(self) -> None:
        """Write a checkpoint."""
        self._saved_s = self.trainer.progress.elapsed_s = self._watch.elapsed_s
        more = {} if self.early is None else self.early.state_files()
        self._require_hold()
        self._checkpoints.save(self.trainer, more)

    def _require_hold(self) -> None:
        if self._hold is not None:
            self._hold.require()

    @property
    def done(self) -> float:
        """Share of the training that is over, by steps or by the clock."""
        progress, settings = self.trainer.progress, self.settings
        num_batches = self.stream.num_batches
        done = (progress.epoch * num_batches + progress.step_in_epoch) / (settings.num_epochs * num_batches)
        return done if settings.max_time_s is None else max(done, self._clock / settings.max_time_s)

    def _is_over(self) -> bool:
        progress = self.trainer.progress
        is_late = self.early is not None and self.early.epoch > 0 and self.early.is_over(progress.epoch)
        return progress.epoch >= self.settings.num_epochs or self.done >= 1 or is_late

    def _run_epoch(self) -> None:
        trainer, progress = self.trainer, self.trainer.progress
        loss = torch.zeros((), device=trainer.device)
        first, begun_s = progress.step_in_epoch, self._watch.elapsed_s
        batches = self.stream.epoch(progress.epoch, first, more=progress.epoch + 1 < self.settings.num_epochs)
        self._live_from = (progress.step, self._watch.elapsed_s, 0.0)
        for batch, (inputs, targets) in self._feed(batches):
            # Before the step: after an epoch's last step, the checkpoint must have the epoch's entry.
            if self.rank == 0 and self._watch.elapsed_s - self._saved_s > self.settings.checkpoint_interval_s:
                self.save()
            if self.hooks.should_stop is not None and self.hooks.should_stop():
                self.save()
                raise KeyboardInterrupt
            loss += trainer.step(inputs, targets, batch.global_rows, self.done)
            if progress.step % SYNC_STEPS == 0:
                self._agree(loss)
            elif self.world_size == 1:
                self._clock = self._watch.elapsed_s
            if self.done >= 1:
                break
        num_batches = progress.step_in_epoch - first
        epoch = progress.epoch + 1
        if progress.step_in_epoch >= self.stream.num_batches:  # not where the clock has ended it: a fit may go on there
            progress.epoch, progress.step_in_epoch = epoch, 0
        entry = self._entry(epoch, loss, num_batches, self._watch.elapsed_s - begun_s)
        self._require_finite(entry["train_loss"], epoch)
        progress.history.append(entry)
        if self.early is not None:
            self.early.note(epoch, entry["validation_loss"], trainer.average)
        if self.rank == 0:
            self._require_hold()
            self._journal.append_epoch(entry)
            if self.hooks.on_epoch is not None:
                self.hooks.on_epoch(entry)
        if self.hooks.report is not None:
            self.hooks.report(entry)

    def _agree(self, loss: Tensor) -> None:
        """Share the clock of rank 0 and the loss of all ranks so far, and act on both."""
        total = loss
        if self.world_size > 1:
            clock = self._watch.elapsed_s if self.rank == 0 else 0.0
            shared = torch.stack([torch.tensor(clock, dtype=torch.float64, device=loss.device), loss.double()])
            torch.distributed.all_reduce(shared)
            self._clock, total = float(shared[0]), shared[1]
        else:
            self._clock = self._watch.elapsed_s
        if self._clock - self._looked_s >= LIVE_INTERVAL_S:
            self._looked_s = self._clock
            self._look(float(total))
        if self.hooks.is_preempted is not None and self._clock - self._asked_s >= PREEMPTION_INTERVAL_S:
            self._asked_s = self._clock
            is_preempted = self.hooks.is_preempted()
            is_between = self.trainer.progress.step_in_epoch < self.stream.num_batches
            if is_preempted and is_between and not self._has_saved_for_preemption and self.rank == 0:
                self.save()
            self._has_saved_for_preemption = is_preempted

    def _look(self, total: float) -> None:
        """Say how far the epoch is.

        Args:
            total: sum of the losses of the epoch's batches, over all ranks.
        """
        progress = self.trainer.progress
        self._require_finite(total, progress.epoch + 1)
        step, since, before = self._live_from
        steps, seconds = progress.step - step, self._clock - since
        if self.rank != 0 or steps <= 0 or seconds <= 0:
            return
        self._live_from = (progress.step, self._clock, total)
        can_spin = self.trainer.device.type == "cpu" and torch.get_num_threads() > 1
        if can_spin and (word := self._spin_watch.word(seconds / steps)):
            warnings.warn(word, stacklevel=2)
        if self.hooks.on_live is None:
            return
        self.hooks.on_live(
            {
                "epoch": progress.epoch + 1,
                "step": progress.step,
                "step_in_epoch": progress.step_in_epoch,
                "num_batches": self.stream.num_batches,
                "train_loss": (total - before) / steps,
                "learning_rate": self.trainer.rate,
                "rows_per_s": steps * self.settings.batch_size / seconds,
                "done": self.done,
                "num_workers": self.world_size,
                "elapsed_s": round(self._clock, 3),
            }
        )

    def _require_finite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is not finite in epoch {epoch}: take a smaller train.learning_rate, or set train.clip_norm"
            )

    def _entry(self, epoch: int, loss: Tensor, num_batches: int, seconds: float) -> Entry:
        """The history's entry of an epoch, or of its part since the last resume.

        Each rank has its part of every batch's loss, so the sum over ranks is the loss.
        """
        num_rows = len(self.held_out[0])
        held_out = self.trainer.validation_loss(*self.held_out) if num_rows else 0.0
        sums = torch.tensor([float(loss), held_out * num_rows, num_rows], dtype=torch.float64)
        if self.world_size > 1:
            sums = sums.to(self.trainer.device)
            torch.distributed.all_reduce(sums)
        train_loss, held_out_sum, num_held_out = sums.tolist()
        return {
            "epoch": epoch,
            "step": self.trainer.progress.step,
            "train_loss": train_loss / max(1, num_batches),
            "validation_loss": held_out_sum / max(1.0, num_held_out),
            "learning_rate": self.trainer.rate,
            "rows_per_s": round(num_batches * self.settings.batch_size / max(seconds, 1e-9), 1),
            "elapsed_s": round(self._watch.elapsed_s, 3),
        }
