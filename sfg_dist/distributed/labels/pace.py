"""How long shards take each kind of worker. Time limits, the size of a call, and who is slow follow from it."""

from __future__ import annotations

import statistics
from collections import deque

MIN_FINISHED = 3  # shards of a kind before its median counts
WINDOW = 101
DEFAULT_LIMIT_S, LEAST_LIMIT_S, LIMIT_FACTOR = 3600.0, 60.0, 10.0
SLOW_FACTOR, SLOW_EXTRA_S = 2.0, 3.0
PAUSES = (1 / 15, 2 / 15, 4 / 15, 8 / 15)  # of the time that a full disk is waited for
CALL_S, MAX_CALL_SHARDS = 0.5, 64


class ShardTimes:
    """Durations of the last finished shards of each kind of worker.

    ``timeout_s`` is the user's time limit of a shard; without one it follows the median.
    """

    def __init__(self, timeout_s: float | None = None) -> None:
        self._timeout_s = timeout_s
        self._seconds: dict[str, deque[float]] = {}
        self._medians: dict[str, float | None] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Note a shard that was finished."""
        self._seconds.setdefault(kind, deque(maxlen=WINDOW)).append(seconds)
        self._medians.pop(kind, None)

    def median(self, kind: str) -> float | None:
        """Seconds a shard, None before three are finished."""
        if kind not in self._medians:
            seconds = self._seconds.get(kind, ())
            self._medians[kind] = statistics.median(seconds) if len(seconds) >= MIN_FINISHED else None
        return self._medians[kind]

    def expected(self, kind: str, num_shards: int) -> float | None:
        """Seconds that a call of some shards should take, None where nobody knows yet."""
        median = self.median(kind)
        return None if median is None else median * num_shards

    def limit(self, kind: str, num_shards: int = 1) -> float:
        """Seconds after which a call of some shards hangs."""
        median = self.median(kind)
        if self._timeout_s is not None:
            limit = self._timeout_s
        elif median is None:
            limit = DEFAULT_LIMIT_S
        else:
            limit = max(LEAST_LIMIT_S, LIMIT_FACTOR * median)
        return limit + (num_shards - 1) * (median or limit)

    def is_slow(self, kind: str, num_shards: int, elapsed: float) -> bool:
        """Whether a call has run so long that another worker should try it too."""
        expected = self.expected(kind, num_shards)
        return expected is not None and elapsed > max(SLOW_FACTOR * expected, expected + SLOW_EXTRA_S)

    def call_shards(self, kind: str) -> int:
        """How many shards to hand out in one call: one, or as many short ones as make half a second."""
        median = self.median(kind)
        if median is None:
            return 1
        return max(1, min(MAX_CALL_SHARDS, int(CALL_S / max(median, 1e-9))))


class SpaceWait:
    """A full disk is waited for in a few pauses, each twice as long as the one before, ``total_s`` together.

    Nothing is handed out before ``until``.
    """

    def __init__(self, total_s: float) -> None:
        self._total_s = total_s
        self._pauses = 0
        self.until = 0.0

    def wait(self, now: float) -> bool:
        """The disk is full: a pause begins, unless one goes on; False after the last one."""
        if now < self.until:
            return True
        if self._pauses == len(PAUSES):
            return False
        self.until = now + PAUSES[self._pauses] * self._total_s
        self._pauses += 1
        return True

    def written(self, now: float) -> None:
        """A shard was written: after the end of a pause that means that there is space again."""
        if now >= self.until:
            self._pauses = 0
