"""What a driver says of itself while it labels: ``drivers/<driver id>.json`` written every few seconds.

Snapshots are for people and dashboards; the protocol reads none. Times are seconds since 1970 by the driver's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sfg_dist.job.errors import DocumentError
from sfg_dist.job.reader import LONG_BYTES, read_json

SILENT_S = 30.0
"""A driver that should run and has not written for so long is gone, or cut off from the store."""
_TOO_LARGE = 2**63  # of seconds
_MAYBE_TEXT, _MAYBE_INT, _MAYBE_NUMBER = (str, None), (int, None), (float, None)
_WORKER = {"worker": str} | {
    **dict.fromkeys(("kind?", "host?", "device?", "state?"), _MAYBE_TEXT),
    **dict.fromkeys(("pid?", "shard?", "attempt?", "done?", "rows?"), _MAYBE_INT),
    **dict.fromkeys(("since?", "seconds?"), _MAYBE_NUMBER),
}
_FIELDS = {
    "driver": str, "host?": _MAYBE_TEXT, "pid?": _MAYBE_INT, "started": float, "updated": float, "is_running": bool,
    "total": int, "done": int, "todo": int, "rows_per_s?": _MAYBE_NUMBER, "workers?": [_WORKER],
    "failures?": [{"shard?": _MAYBE_INT, "attempt?": _MAYBE_INT}], "num_failures?": {str: int},
}  # fmt: skip


@dataclass(frozen=True)
class WorkerStatus:
    """One worker of a driver, as its driver last saw it."""

    worker: str  # its name
    kind: str = ""  # what it shares with workers that give the same bits, as the name of the device or "cpu"
    host: str = ""  # where it runs
    pid: int | None = None
    device: str = ""
    state: str = ""  # what it does in a word
    shard: int | None = None  # the shard at work, None for none
    attempt: int | None = None  # the attempt at it, from 1
    since: float | None = None  # when that began
    done: int = 0  # shards done
    rows: int = 0  # rows of those
    seconds: float = 0.0  # time spent on those

    @property
    def rows_per_s(self) -> float | None:
        """Rows a second while at work; None before the first shard is done."""
        return self.rows / self.seconds if self.rows and self.seconds > 0 else None


@dataclass(frozen=True, kw_only=True)
class DriverStatus:
    """One driver's snapshot."""

    driver: str  # its id
    host: str = ""  # where it runs
    pid: int | None = None
    started: float  # when it began
    updated: float  # when it wrote this
    state: str  # "running", "ended", or "silent" where it should run and has not written for ``SILENT_S``
    total: int  # shards of the store, as it saw them
    done: int
    todo: int  # still to do
    rows_per_s: float | None = None  # rows it commits a second; None where it cannot say yet
    workers: tuple[WorkerStatus, ...]  # its workers
    failures: tuple[Mapping[str, Any], ...]  # its last failed attempts: shard, attempt, worker, reason, action
    num_failures: Mapping[str, int] = field(default_factory=dict)  # failed attempts in all, by what was done about them


def driver_of(content: bytes, now: float) -> DriverStatus | None:
    """The driver of a snapshot; None for what is not one: torn by a power cut, of another version, or edited."""
    try:
        snapshot = read_json(content, "it", _FIELDS, max_bytes=LONG_BYTES)
    except DocumentError:
        return None
    numbers = [snapshot[name] for name in ("started", "updated")] + [snapshot.get("rows_per_s")]
    numbers += [worker.get(name) for worker in snapshot.get("workers", ()) for name in ("since", "seconds")]
    if any(abs(number or 0) >= _TOO_LARGE for number in numbers):
        return None
    is_silent = now - snapshot["updated"] > SILENT_S
    snapshot |= {
        "state": "ended" if not snapshot["is_running"] else "silent" if is_silent else "running",
        "workers": tuple(WorkerStatus(**_known(WorkerStatus, worker)) for worker in snapshot.get("workers", ())),
        "failures": tuple(snapshot.get("failures", ())),
    }
    return DriverStatus(**_known(DriverStatus, snapshot))


def _known(kind: type[DriverStatus] | type[WorkerStatus], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a document says of the fields that this version knows; null stands for what is not known."""
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in document.items() if name in names and value is not None}
