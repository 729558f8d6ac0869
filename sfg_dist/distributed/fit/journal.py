"""What the workers of a fit tell the driver, by files beside the checkpoints.

history.jsonl has one line an epoch, over all attempts. live.json says how far the fit is; the first of several workers
writes it over every few seconds. failed.txt says why a fit cannot go on.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping

from sfg_dist.distributed.fit.checkpoints import HISTORY_NAME, LIVE_NAME, Place, open_checkpoints
from sfg_dist.job.errors import DocumentError, StoreError, TrainingError
from sfg_dist.job.reader import MAX_BYTES, MAYBE_NAN, read_json
from sfg_dist.store import reason_of

FAILURE_NAME = "failed.txt"
_SEEN = {
    "epoch": int,
    "step": int,
    **dict.fromkeys(("train_loss", "learning_rate", "rows_per_s", "elapsed_s"), MAYBE_NAN),
}
_LIVE = _SEEN | {"step_in_epoch": int, "num_batches": range(1, 2**62), "done": float, "num_workers": int}
_ENTRY = _SEEN | {"validation_loss": MAYBE_NAN}

Entry = dict[str, float]
"""Figures of an epoch, or of the last few seconds."""
Report = Callable[[Entry], None]


class Journal:
    """The journal of one fit.

    Args:
        place: of the fit's checkpoints.

    Attributes:
        poll_interval_s: seconds between two looks of the driver.
    """

    def __init__(self, place: Place) -> None:
        self._place, self._location = place, open_checkpoints(place)
        is_remote = self._location.root is None
        self.poll_interval_s = 2.0 if is_remote else 0.5
        self._live_interval_s = 10.0 if is_remote else 0.0  # a step waits for an object store
        self._live_at = -math.inf

    def append_epoch(self, entry: Mapping[str, float]) -> None:
        """Add an epoch to the history.

        Raises:
            TrainingError: it cannot be written.
        """
        line = json.dumps(entry).encode() + b"\n"
        try:
            if self._location.root is not None:
                self._location.append(HISTORY_NAME, line, is_lines=True)
            else:  # an object cannot be appended to; a line an epoch stays small
                self._location.write(HISTORY_NAME, (self._location.read(HISTORY_NAME) or b"") + line)
        except (StoreError, OSError) as error:
            raise TrainingError(f"cannot write {self._place}/{HISTORY_NAME}: {reason_of(error)}") from error

    def follow_epochs(self, offset: int, on_entry: Report) -> int:
        """Pass on the whole lines of the history behind ``offset`` bytes; returns the offset behind them."""
        content = (self._location.read(HISTORY_NAME) or b"")[offset:]
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # caught while being written; the next look has it whole
            offset += len(line)
            with contextlib.suppress(DocumentError):  # not a line of this package
                on_entry(read_json(line, HISTORY_NAME, _ENTRY, allow_nan=True))
        return offset

    @property
    def history_size(self) -> int:
        """Bytes of the history."""
        return self._location.size(HISTORY_NAME) or 0

    def write_live(self, entry: Mapping[str, float]) -> None:
        """Say how far the fit is. An entry that cannot be written, or comes too soon, is left out."""
        if time.monotonic() - self._live_at < self._live_interval_s:
            return
        self._live_at = time.monotonic()
        with contextlib.suppress(StoreError):
            self._location.write(LIVE_NAME, json.dumps(entry).encode())

    def read_live(self) -> Entry | None:
        """How far the fit is, as last said; None where nothing was."""
        try:
            found: Entry = read_json(self._location.read(LIVE_NAME, MAX_BYTES), LIVE_NAME, _LIVE, allow_nan=True)
        except DocumentError:
            return None
        return found

    def note_failure(self, message: str) -> None:
        """Write down why the fit cannot go on."""
        self._location.write(FAILURE_NAME, message.encode())

    def take_failure(self) -> str | None:
        """Why the last fit could not go on; None where it did. The note is removed."""
        content = self._location.read(FAILURE_NAME)
        if content is None:
            return None
        self._location.delete(FAILURE_NAME)
        return content.decode()
