"""Labelers with faults, in a module of their own: other processes import them by name."""

from __future__ import annotations

import os
import time
from pathlib import Path

from patience import patience

from sfg_dist.distributed.labels.labeler import ShardLabeler
from sfg_dist.job.errors import NonFiniteLabelError, StoreFullError


def first_time(labeler: ShardLabeler, what: str) -> bool:
    """Whether nobody has come here before, over all processes."""
    try:
        (labeler.pairs.location.root.parent / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Troubled(ShardLabeler):
    """Fails on shard 1 always, finds the disk full once on shard 3, and dies once on 5."""

    def label(self, shard, attempt=1):
        if shard == 1:
            raise NonFiniteLabelError("shard 1: row 130 has no finite end point")
        if shard == 3 and first_time(self, "full"):
            raise StoreFullError("no space left on the device")
        if shard == 5 and first_time(self, "dies"):
            os._exit(1)
        return super().label(shard, attempt)


class Hanging(ShardLabeler):
    """Never comes to an end."""

    def label(self, shard, attempt=1):
        first_time(self, "hangs")
        time.sleep(600)


class Refusing(ShardLabeler):
    """Cannot be made."""

    def __init__(self, url, **arguments):
        raise NonFiniteLabelError(f"{Path(url).name} is refused")


class Unhurried(ShardLabeler):
    """Takes a while for each shard, and tells who is at work on it."""

    def label(self, shard, attempt=1):
        (self.pairs.location.root.parent / f"pid_{os.getpid()}").touch()
        time.sleep(0.2)
        return super().label(shard, attempt)


class Meeting(ShardLabeler):
    """Waits with its shard until two processes have one."""

    def label(self, shard, attempt=1):
        folder = self.pairs.location.root.parent
        (folder / f"pid_{os.getpid()}").touch()
        deadline = time.monotonic() + patience(60)
        while len(list(folder.glob("pid_*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        return super().label(shard, attempt)
