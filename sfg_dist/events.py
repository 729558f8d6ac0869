"""The log of a run: JSON lines in events.jsonl, and the time of each stage read back from them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_event(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one event as a line of its own, also after a torn one that a killed attempt left."""
    with path.open("ab+") as file:
        if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            file.write(b"\n")
        file.write(json.dumps(entry, default=str).encode() + b"\n")


def stage_times(events: Path) -> dict[str, float]:
    """Seconds spent in each stage, over all attempts since it was last begun afresh.

    An attempt that was killed counts up to its last event.
    """
    times: dict[str, float] = {}
    stage, last = None, 0.0
    for line in events.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the torn last line of a killed attempt
        if entry["event"] == "stage_started":
            stage = entry["stage"]
            times[stage] = 0.0 if entry["fresh"] else times.get(stage, 0.0)
        elif stage is not None:
            times[stage] = round(times[stage] + max(0.0, entry["time"] - last), 3)
        last = entry["time"]
        if entry["event"] == "stage_finished":
            stage = None
    return times
