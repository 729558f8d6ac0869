"""Who may write a fit's checkpoints: of attempts that overlap, the one that began last.

A job that is retried may overlap with the attempt before it, and a worker that was cut off may live on beside its
replacement. Both would write into the same directory. So each checks before it writes whether the hold is still its
own, and ends where it is not. The other repeats what it did since its last checkpoint.

The check and the write are two steps: a whole checkpoint of the older attempt may still slip in between them. The
encoder's fit has no hold. It keeps its state in one file, written whole, and each of two such fits goes on alone.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping

from sfg_dist.distributed.fit.checkpoints import Place, open_checkpoints
from sfg_dist.job.errors import DocumentError, StoreError, TrainingError
from sfg_dist.job.reader import MAX_BYTES, read_json

HOLD_NAME = "hold.json"
WRITER_NAME = re.compile(r"hold_[0-9a-f]+\.json")


class Hold:
    """The hold of one process, which writes for an attempt.

    Args:
        place: of the fit's checkpoints.
        attempt: what ``take_hold`` gave. Another process of this attempt loses the hold from now on.

    Raises:
        TrainingError: another attempt has begun since.
    """

    def __init__(self, place: Place, attempt: str) -> None:
        self._location = open_checkpoints(place)
        self._place, self._attempt, self._writer = place, attempt, ""
        self.require()
        self._writer = secrets.token_hex(8)
        # A file of this attempt alone: the name of a newer one is never written over.
        _write(place, _writer_name(attempt), {"writer": self._writer})

    def require(self) -> None:
        """Check that nobody else has taken over.

        Raises:
            TrainingError: somebody has; the message says who.
        """
        found = self._read(HOLD_NAME)
        is_lost = found.get("attempt") != self._attempt
        if not is_lost and self._writer:
            found = self._read(_writer_name(self._attempt))
            # Where the file is gone, another attempt that began at the same moment has removed it, and lost the hold.
            is_lost = found.get("writer", self._writer) != self._writer
        if is_lost:
            who = f"{found.get('host', 'unknown host')}, process {found.get('pid', '?')}, at {found.get('time', '?')}"
            raise TrainingError(
                f"another run of this fit has taken over its checkpoints in {self._place} ({who}): this run ends, "
                "and what it has saved is kept"
            )

    def _read(self, name: str) -> Mapping[str, str | int]:
        try:
            content = self._location.read(name, MAX_BYTES)
            return {} if content is None else read_json(content, "it", {str: (str, int)})
        except (StoreError, DocumentError) as error:
            raise TrainingError(f"{self._place}/{name} cannot be read: {error}") from error


def take_hold(place: Place) -> str:
    """Begin an attempt at a fit, so that earlier attempts may write no more.

    Returns:
        The attempt's name, for ``Hold``.

    Raises:
        TrainingError: the place cannot be written to.
    """
    attempt = secrets.token_hex(8)
    _write(place, HOLD_NAME, {"attempt": attempt})
    try:
        location = open_checkpoints(place)
        for entry in list(location.list()):
            if WRITER_NAME.fullmatch(entry.key):
                location.delete(entry.key)
    except StoreError as error:
        raise TrainingError(f"{place} cannot be tidied: {error}") from error
    return attempt


def _writer_name(attempt: str) -> str:
    return f"hold_{attempt}.json"


def _write(place: Place, name: str, content: dict[str, str]) -> None:
    document = content | {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    try:
        open_checkpoints(place).write(name, json.dumps(document).encode())
    except (StoreError, OSError) as error:
        raise TrainingError(f"cannot write {place}/{name}: {error}") from error
