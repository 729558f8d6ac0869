"""The driver's book of shards: which are to do, which run, which failed and why. Each entry costs constant time."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from sfg_dist.distributed.failure import HANGS, WORKER_LOST, Failure
from sfg_dist.distributed.labels.pool import Policy
from sfg_dist.job.errors import LabelingError, NonFiniteLabelError, StoreError, StoreUnavailableError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
MAX_NAMED = 3  # shards whose reasons an error message shows in full


@dataclass
class _Retry:
    """A shard that failed: when it may be tried again, and which worker or kind of worker is not to have it soon."""

    shard: int
    not_before: float
    avoid: str
    avoid_until: float


class Ledger:
    """Where every shard of a run stands, beginning with the pending ones in order."""

    def __init__(self, pending: Iterable[int], total: int, policy: Policy) -> None:
        self._todo = deque(pending)
        self._open = set(self._todo)  # neither done nor given up
        self._again: list[_Retry] = []
        self._runs: dict[int, int] = {}
        self._backed_up: set[int] = set()
        self._reasons: dict[int, list[tuple[str, Failure]]] = {}  # worker and failure of each attempt
        self._policy = policy
        self._random = random.Random(policy.seed)
        self.total = total
        self.given_up: list[int] = []

    @property
    def done(self) -> int:
        """Shards that are committed."""
        return self.total - len(self._open) - len(self.given_up)

    @property
    def num_open(self) -> int:
        """Shards neither done nor given up."""
        return len(self._open)

    @property
    def num_todo(self) -> int:
        """Fresh shards that nobody works at."""
        return len(self._todo)

    def is_open(self, shard: int) -> bool:
        """Whether a shard is neither done nor given up."""
        return shard in self._open

    def runs(self, shard: int) -> int:
        """How many workers hold a shard."""
        return self._runs.get(shard, 0)

    def attempt(self, shard: int) -> int:
        """The number of the next attempt at a shard, from 1."""
        return len(self._reasons.get(shard, ())) + self.runs(shard) + 1

    def take(self, worker: str, kind: str, now: float, count: int, *, is_alone: bool) -> list[int]:
        """Shards for a worker: one to be tried again, or up to ``count`` fresh ones; empty where there are none.

        A worker that failed at a shard gets it again only after others had their chance.
        """
        for number, retry in enumerate(self._again):
            is_free = is_alone or retry.avoid not in (worker, kind) or now >= retry.avoid_until
            if now >= retry.not_before and is_free:
                del self._again[number]
                return [retry.shard]
        shards: list[int] = []
        while self._todo and len(shards) < count:
            shard = self._todo.popleft()
            if shard in self._open:  # else another driver has done it
                shards.append(shard)
        return shards

    def begin(self, shard: int) -> None:
        """A worker was handed a shard."""
        self._runs[shard] = self.runs(shard) + 1

    def end(self, shard: int) -> None:
        """A worker no longer holds a shard."""
        left = self.runs(shard) - 1
        if left > 0:
            self._runs[shard] = left
        else:
            self._runs.pop(shard, None)

    def back_up(self, shard: int) -> bool:
        """Take a shard that one worker holds for another one too; only once, and False where it may not be."""
        if shard not in self._open or self.runs(shard) != 1 or shard in self._backed_up:
            return False
        self._backed_up.add(shard)
        return True

    def finish(self, shard: int) -> bool:
        """A shard is committed; False where that was known, or came after it was given up."""
        if shard not in self._open:
            if shard not in self.given_up:
                return False
            self.given_up.remove(shard)  # a late answer, or another driver
        self._open.discard(shard)
        self._reasons.pop(shard, None)
        self._again = [retry for retry in self._again if retry.shard != shard] if self._again else self._again
        return True

    def put_back(self, shard: int) -> None:
        """A shard comes back through no fault of its own; where another worker holds it still, it stays there."""
        if shard in self._open and not self.runs(shard):
            self._todo.appendleft(shard)

    def charge(self, shard: int, worker: str, failure: Failure, now: float, *, avoid: str, avoid_s: float) -> str:
        """An attempt has failed: the shard is to be tried again ("retry"), or given up ("give_up").

        ``avoid`` names the worker, or the kind of worker, that should not get it again for ``avoid_s`` seconds.
        """
        reasons = self._reasons.setdefault(shard, [])
        reasons.append((worker, failure))
        if self.runs(shard):  # another attempt goes on; it decides
            return "retry"
        if len(reasons) >= self._policy.max_attempts:
            self._open.discard(shard)
            self.given_up.append(shard)
            return "give_up"
        wait = self._pause(reasons) if failure.is_a(StoreUnavailableError) else 0.0
        self._again.append(_Retry(shard, now + wait, avoid, now + wait + avoid_s))
        return "retry"

    def shuffle(self) -> None:
        """Another order of what is left, so that two drivers do not follow each other step by step."""
        rest = self.todo()
        self._random.shuffle(rest)
        self._todo = deque(rest)

    def todo(self) -> list[int]:
        """Fresh shards that nobody works at."""
        return [shard for shard in self._todo if shard in self._open]

    def error(self) -> LabelingError | StoreError | None:
        """What to raise for the shards given up; None where there are none."""
        if not self.given_up:
            return None
        last = self._reasons[self.given_up[-1]][-1][1]
        kind = NonFiniteLabelError if last.is_a(NonFiniteLabelError) else LabelingError
        lines = []
        for shard in self.given_up[:MAX_NAMED]:
            reasons = self._reasons[shard]
            lines.append(f"shard {shard} was given up after {len(reasons)} attempts:")
            lines += [f"  {number}. on {who}: {why}" for number, (who, why) in enumerate(reasons, start=1)]
        if len(self.given_up) > MAX_NAMED:
            lines.append(f"also given up: shards {', '.join(map(str, self.given_up[MAX_NAMED:]))}")
        lines.append(
            f"{_advice(last)}. {self.done} of {self.total} shards are kept: the same command goes on from there"
        )
        return kind("\n".join(lines))

    def last_exception(self) -> BaseException | None:
        """The exception behind the last shard given up, where it was raised in this process."""
        return self._reasons[self.given_up[-1]][-1][1].exception if self.given_up else None

    def _pause(self, reasons: Iterable[tuple[str, Failure]]) -> float:
        """Pause before the next attempt: doubled with every failure of the store, with jitter of half of it."""
        number = sum(failure.is_a(StoreUnavailableError) for _, failure in reasons)
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (number - 1)) * self._random.uniform(0.5, 1.5)


def _advice(failure: Failure) -> str:
    """What to do about the last reason."""
    if failure.error == WORKER_LOST or "memory" in str(failure).lower():
        return "Most often the machine ran out of memory: take fewer executor.num_actors or a smaller labels.batch_size"
    if failure.error == HANGS:
        return "If such a shard may take that long, raise executor.shard_timeout_s"
    if failure.is_a(NonFiniteLabelError):
        return "Check the table for values far outside the rest, or take a larger labels.t_min"
    if failure.is_a(StoreError):
        return "Check the place that output.dir names"
    return "Run again with --executor inline --set executor.num_actors=1 --debug to see where it comes from"
