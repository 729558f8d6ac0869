"""The log of a run: JSON lines in events.jsonl, and the time of each stage read back from them.

No secret gets into a log: values of the environment that look like keys, tokens or passwords are blotted out of every
line, wherever an error message of some library may have put them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sfg_dist.job.errors import DocumentError
from sfg_dist.job.object_stores import without_credentials
from sfg_dist.job.reader import check_fields, read_json
from sfg_dist.store import Location

EVENTS_KEY = "events.jsonl"
FLUSH_INTERVAL_S = 10.0
FLUSH_BYTES_PER_S = 200_000  # a log is put anew as a whole, so a long one is put less often
MAX_LOG_BYTES = 1 << 28  # that are read


_EVENT = {"event": str, "time": float}
_MORE = {"stage_started": {"stage": str, "fresh": bool}, "executor": {"stage": str, "words": str}}


def event_line(entry: Mapping[str, Any]) -> bytes:
    """An event as a line of JSON without secrets, its end included."""
    document = without_credentials(entry)
    return json.dumps(document, default=lambda value: without_credentials(str(value))).encode() + b"\n"


class EventLog:
    """One file of JSON lines in a directory or an object store; goes on where an earlier attempt stopped.

    A local file is appended to at once. An object cannot be appended to: it is put anew as a whole, at most every few
    seconds, and when ``flush`` is called.
    """

    def __init__(self, location: Location, key: str = EVENTS_KEY, *, clock: Callable[[], float] = time.monotonic):
        self._location, self._key, self._clock = location, key, clock
        self._content: bytearray | None = None
        self._is_written = True
        self._written_at = clock()

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one event as a line of its own.

        Raises:
            StoreError: the file or object cannot be written.
        """
        line = event_line(entry)
        if self._location.root is not None:
            self._location.append(self._key, line, is_lines=True)
            return
        content = self._buffer()
        if content and not content.endswith(b"\n"):
            content += b"\n"
        content += line
        self._is_written = False
        if self._clock() - self._written_at >= max(FLUSH_INTERVAL_S, len(content) / FLUSH_BYTES_PER_S):
            self.flush()

    def flush(self) -> None:
        """Put what is not there yet.

        Raises:
            StoreError: the object cannot be written.
        """
        if not self._is_written:
            self._written_at = self._clock()  # a store in trouble is not asked again with every event
            self._location.write(self._key, bytes(self._buffer()))
            self._is_written, self._written_at = True, self._clock()

    def read(self) -> str:
        """The lines, those of earlier attempts too, as far as they can be held; empty where there is no log yet."""
        is_local = self._location.root is not None
        content = self._location.read(self._key, MAX_LOG_BYTES) if is_local else bytes(self._buffer())
        return (content or b"").decode("utf-8", errors="replace")

    def _buffer(self) -> bytearray:
        if self._content is None:
            self._content = bytearray(self._location.read(self._key, MAX_LOG_BYTES) or b"")
        return self._content


def stage_times(log: str) -> dict[str, float]:
    """Seconds spent in each stage, over all attempts since it was last begun afresh.

    An attempt that was killed counts up to its last event. Lines of ``log`` that are no events are passed over.
    """
    times: dict[str, float] = {}
    stage, last = None, 0.0
    for entry in _events(log):
        if entry["event"] == "stage_started":
            stage = entry["stage"]
            times[stage] = 0.0 if entry["fresh"] else times.get(stage, 0.0)
        elif stage is not None:
            times[stage] = round(times[stage] + max(0.0, entry["time"] - last), 3)
        last = entry["time"]
        if entry["event"] == "stage_finished":
            stage = None
    return times


def executor_words(log: str) -> dict[str, str]:
    """By stage, who did it last and why, in words."""
    return {entry["stage"]: entry["words"] for entry in _events(log) if entry["event"] == "executor"}


def _events(log: str) -> Iterator[Mapping[str, Any]]:
    for line in log.splitlines():
        with contextlib.suppress(DocumentError):  # the torn last line of a killed attempt, or none of this package's
            entry = read_json(line, EVENTS_KEY, _EVENT, allow_nan=True)
            if (more := _MORE.get(entry["event"])) is not None:
                check_fields(entry, more, EVENTS_KEY)
            yield entry
