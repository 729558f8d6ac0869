"""What a driver leaves in the store while it labels, so that any machine can see how far it is.

    drivers/<driver id>.json            its latest snapshot, replaced whole
    events/<driver id>-0000.jsonl ...   what happened, in parts of bounded size

Both are for people and dashboards. The store's protocol reads neither, and labels go on where they cannot be written.
"""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import replace

from sfg_dist.distributed.labels.events import LabelEvent, Snapshot
from sfg_dist.job.errors import StoreError
from sfg_dist.job.object_stores import trouble_of, without_credentials
from sfg_dist.store import Location
from sfg_dist.store.event_log import event_line

PART_BYTES = 1 << 20
REMOTE_INTERVAL_S = 3.0
CLOSE_TIMEOUT_S = 30.0


class Monitor:
    """Writes one driver's snapshots and events into its store.

    On a local disk each is written as it comes. On an object store a thread of its own writes them every few seconds,
    so that a slow store never holds up the driver. A write that fails warns once and is tried again.

    Examples:
        >>> with Monitor(pairs.location, str(driver)) as monitor:                           # doctest: +SKIP
        ...     label_inline(url, LabelSettings(driver=driver, on_event=monitor.event, on_snapshot=monitor.snapshot))
    """

    def __init__(self, location: Location, driver: str) -> None:
        self.driver = driver
        self._location = location
        self._lock = threading.Lock()
        self._part, self._part_number, self._num_written = bytearray(), 0, 0
        self._snapshot: Snapshot | None = None
        self._snapshot_is_new = False
        self._has_warned = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Monitor:
        if self._location.root is None:
            self._thread = threading.Thread(target=self._write_regularly, name="monitor", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is left; the last snapshot says that this driver has ended."""
        with self._lock:
            if self._snapshot is not None and self._snapshot.is_running:
                self._snapshot = replace(self._snapshot, is_running=False, updated=time.time())
                self._snapshot_is_new = True
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)  # a store that does not answer must not keep the driver from ending
        else:
            self._write()

    def event(self, event: LabelEvent) -> None:
        """Note what happened."""
        line = event_line({"time": round(time.time(), 3), "event": event.name, **event.details()})
        with self._lock:
            self._part += line
        self._written_at_once()

    def snapshot(self, snapshot: Snapshot) -> None:
        """Keep how the run stands."""
        with self._lock:
            self._snapshot, self._snapshot_is_new = snapshot, True
        self._written_at_once()

    def _written_at_once(self) -> None:
        if self._thread is None:
            self._write()

    def _write_regularly(self) -> None:
        while not self._stop.wait(REMOTE_INTERVAL_S):
            self._write()
        self._write()

    def _write(self) -> None:
        try:
            self._write_events()
            self._write_snapshot()
        except (StoreError, OSError) as error:
            # A full disk stops the labels too, and that message says what to do.
            if not self._has_warned and trouble_of(error.__cause__ or error) != "full":
                self._has_warned = True
                reason = without_credentials(str(error))
                warnings.warn(f"`sfg status` may lag behind: {reason}; the labels go on", stacklevel=2)

    def _write_events(self) -> None:
        with self._lock:
            content = bytes(self._part)
        if len(content) == self._num_written:
            return
        key = f"events/{self.driver}-{self._part_number:04d}.jsonl"
        if self._location.root is None:
            self._location.write(key, content)
        else:
            self._location.append(key, content[self._num_written :], is_lines=True)
        self._num_written = len(content)
        if len(content) >= PART_BYTES:
            with self._lock:
                del self._part[: len(content)]
            self._part_number, self._num_written = self._part_number + 1, 0

    def _write_snapshot(self) -> None:
        with self._lock:
            snapshot, is_new, self._snapshot_is_new = self._snapshot, self._snapshot_is_new, False
        if snapshot is None or not is_new:
            return
        try:
            self._location.write(f"drivers/{self.driver}.json", event_line(snapshot.to_json()))
        except StoreError:
            self._snapshot_is_new = True
            raise
