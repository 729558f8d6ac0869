"""The curves of a fit as files that TensorBoard reads, in ``tensorboard/`` of the output directory.

Records are written one by one, without a thread. The file grows in a temporary directory, and its new bytes are added
to the one in the output directory. An object store takes whole objects only, so there the file is put anew every few
seconds and at the end. Files of this package have names that end in MARK; others are left alone.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sfg_dist.job.errors import StoreError
from sfg_dist.job.object_stores import reason_of

if TYPE_CHECKING:
    from sfg_dist.store import Location

BOARD_KEY = "tensorboard"
MARK = ".sfg_dist"
"""At the end of the names of this package's files."""
PUT_INTERVAL_S = 10.0
EPOCH_CURVES = {
    "loss/training": "train_loss",
    "loss/held_out": "validation_loss",
    "learning_rate": "learning_rate",
    "rows_per_s": "rows_per_s",
}
LIVE_CURVES = {"live/loss": "train_loss", "live/learning_rate": "learning_rate", "live/rows_per_s": "rows_per_s"}


class Board:
    """Writes one event file; a context manager. Where it cannot be written, the fit goes on with a warning.

    Args:
        output: the output directory.
        from_step: the step that the fit goes on from. TensorBoard hides what earlier files say of later steps. With 0
            the earlier files of this package are removed.
    """

    def __init__(self, output: Location, from_step: int = 0) -> None:
        self._output, self._from_step = output, from_step
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._writer: Any = None
        self._has_failed = False
        self._put_at = time.monotonic()
        self._num_put = 0

    def __enter__(self) -> Self:
        with self._trying():
            if self._from_step == 0:
                for entry in list(self._output.list(BOARD_KEY)):
                    if entry.key.endswith(MARK):
                        self._output.delete(entry.key)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with self._trying():
                self._writer.close()
                self._put(is_last=True)
        if self._scratch is not None:
            self._scratch.cleanup()

    def epoch(self, entry: Mapping[str, float]) -> None:
        """Add the points of an epoch's entry."""
        self._add(entry, EPOCH_CURVES)

    def live(self, entry: Mapping[str, float]) -> None:
        """Add points within an epoch."""
        self._add(entry, LIVE_CURVES)

    def _add(self, entry: Mapping[str, float], curves: Mapping[str, str]) -> None:
        if self._has_failed:
            return
        with self._trying():
            from tensorboardX.proto import event_pb2
            from tensorboardX.summary import scalar

            if self._writer is None:
                self._open()
            for name, key in curves.items():
                if key in entry:
                    summary = scalar(name, float(entry[key]))
                    event = event_pb2.Event(wall_time=time.time(), step=int(entry["step"]), summary=summary)
                    self._writer.write_event(event)
            self._writer.flush()
            self._put()

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._output.look(BOARD_KEY)  # refuses a link
        self._scratch = tempfile.TemporaryDirectory(prefix="sfg-board-")
        writer = EventsWriter(f"{self._scratch.name}/events", MARK)
        (self._file,) = Path(self._scratch.name).iterdir()
        self._key = self._free_name(self._file.name.removesuffix(MARK))
        self._writer = writer
        if self._from_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            event = event_pb2.Event(wall_time=time.time(), step=self._from_step + 1, session_log=start)
            self._writer.write_event(event)

    def _free_name(self, name: str) -> str:
        """A key that no file has: names tell seconds, and two fits may begin in the same one."""
        number = 0
        while self._output.look(key := f"{BOARD_KEY}/{name}{f'.{number}' if number else ''}{MARK}"):
            number += 1
        return key

    def _put(self, *, is_last: bool = False) -> None:
        """Add the new bytes to the file in the output directory."""
        if self._output.root is None:
            if is_last or time.monotonic() - self._put_at >= PUT_INTERVAL_S:
                self._output.write(self._key, self._file.read_bytes())
                self._put_at = time.monotonic()
            return
        with self._file.open("rb") as file:
            file.seek(self._num_put)
            new = file.read()
        self._output.append(self._key, new)
        self._num_put += len(new)

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        """Within, a failed write ends the curves and nothing else. That is said once."""
        try:
            yield
        except (OSError, StoreError) as error:
            if not self._has_failed:
                self._has_failed = True
                lacking = f"{self._output.url}/{BOARD_KEY} lacks some of its curves: {reason_of(error)}"
                warnings.warn(f"the fit goes on, but {lacking}", stacklevel=4)
