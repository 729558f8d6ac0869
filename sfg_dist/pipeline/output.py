"""The output directory of a run, local or in an object store: where its files are, and the log of its events."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfg_dist.job.errors import ConfigError, StoreError
from sfg_dist.job.object_stores import is_url, without_credentials
from sfg_dist.job.paths import nearest_there
from sfg_dist.store.event_log import EventLog

if TYPE_CHECKING:
    from sfg_dist.store import Location

Listener = Callable[[Mapping[str, Any]], None]
"""Called with every event: a mapping with "event" and "time"."""


class OutputDirectory:
    """Where a run leaves all that it makes: ``output.dir``, a path or an s3:// URL.

    Raises:
        ConfigError: it is a file.
    """

    def __init__(self, url: str, listener: Listener | None = None) -> None:
        self.url = url if url.endswith("://") else url.rstrip("/") or "/"
        for place in () if is_url(self.url) else (Path(self.url), Path(self.url) / "pairs.zarr"):
            there = nearest_there(place)
            if not there.is_dir():
                which = "" if there == Path(self.url).absolute() else f": {there}"
                raise ConfigError(f"output.dir = {url!r}{which} is a file: name a directory")
        self.pairs_url, self.samples_url = f"{self.url}/pairs.zarr", f"{self.url}/samples.zarr"
        self.model_url, self.checkpoints_url = f"{self.url}/model", f"{self.url}/checkpoints"
        self.report_url = f"{self.url}/report.html"
        self._listener = listener
        self._may_drop_events = self._has_warned = self._is_own = False

    @cached_property
    def output(self) -> Location:
        """The output directory, made when it is first needed."""
        from sfg_dist.store import Location

        return Location(self.url, create=True)

    @cached_property
    def events(self) -> EventLog:
        """events.jsonl, one JSON line an event."""
        return EventLog(self.output)

    def require_own(self) -> None:
        """Refuse a directory in which a run would follow a link or write over a foreign file (see ``ownership``)."""
        from sfg_dist.pipeline.ownership import require_own

        if not self._is_own and (is_url(self.url) or Path(self.url).is_dir()):
            require_own(self.output)
        self._is_own = True

    def emit(self, event: str, **details: Any) -> None:
        """Log an event and tell the listener."""
        entry = without_credentials({"time": round(time.time(), 3), "event": event, **details})
        try:
            with self.writing("events.jsonl"):
                self.events.append(entry)
                if event in ("stage_finished", "report"):
                    self.events.flush()
        except StoreError as error:
            if not self._may_drop_events:
                raise
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(f"the labels go on, but some events are missing in the log: {error}", stacklevel=2)
        if self._listener is not None:
            self._listener(entry)

    def tell(self, event: str, **details: Any) -> None:
        """Tell the listener alone, for news that are of no use later."""
        if self._listener is not None:
            self._listener(without_credentials({"time": round(time.time(), 3), "event": event, **details}))

    def step(self, text: str) -> None:
        """Tell the listener what goes on from now until the next event, where that may take long."""
        self.tell("step", text=text)

    @contextlib.contextmanager
    def dropping_events(self) -> Iterator[None]:
        """Within, an event that cannot be logged is dropped, with one warning."""
        before, self._may_drop_events = self._may_drop_events, True
        try:
            yield
        finally:
            self._may_drop_events = before

    @contextlib.contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Within, a failed write of ``what`` becomes a StoreError that names it."""
        from sfg_dist.store import reason_of

        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot write {what} in output.dir {self.url}: {reason_of(error)}") from error

    @contextlib.contextmanager
    def stage(self, name: str, *, fresh: bool = True, **details: Any) -> Iterator[None]:
        """Within, a stage is at work; the time of a ``fresh`` one starts from zero."""
        started = time.monotonic()
        self.emit("stage_started", stage=name, fresh=fresh, **details)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, StoreError):  # the error at hand says more
                self.events.flush()
            raise
        self.emit("stage_finished", stage=name, seconds=round(time.monotonic() - started, 3))
