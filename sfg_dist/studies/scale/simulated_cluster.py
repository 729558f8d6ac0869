"""The label stage on a cluster that is not there: the driver's own loop over simulated workers.

The loop is the real one (``driver.Driver``), and so is the time that it takes: what it computes between two waits is
measured and moves the clock. A driver that could not feed a thousand workers shows here. The workers' costs were
measured: a start, a load of the reference, the integration of a shard, its write. Writes and loads share the store.
"""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sfg_dist.distributed.labels.driver import Driver
from sfg_dist.distributed.labels.events import Record, Snapshot
from sfg_dist.distributed.labels.pool import Answered, Drain, Policy, PoolEvent, Ready, Result, Task, WorkerInfo
from sfg_dist.studies.scale.results import Outcome

MAX_TICKS = 5000  # of a simulated run
BUSY_SHARE = 0.7  # of the time: what is busy for longer is what limits the run
LIMIT_WORDS = {"start": "start-up", "load": "loading", "write": "writing", "wait": "the last shards",
               "link": "a worker's link"}  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """What a worker spends."""

    start_s: float  # from the request until its process has imported all it needs
    load_s: float  # to read and prepare the reference, when nobody else reads
    integrate_s: float  # of a shard
    spread: float  # standard deviation of integrate_s over its mean
    write_s: float  # of a shard, when nobody else writes: written, read back, committed
    driver_s: float = 0.0  # of the driver's thread for a shard, beyond its loop: Ray's calls and answers


@dataclass(frozen=True)
class Limits:
    """What the cluster is assumed to be; None stands for no limit."""

    # what the store takes and gives, for all workers together
    store_bytes_per_s: float | None = None
    store_requests_per_s: float | None = None
    worker_bytes_per_s: float | None = None  # of one worker's link to the store
    starts_per_s: float | None = None  # workers that the cluster brings up in a second
    shard_bytes: float = 0.0  # of a shard's latents and labels, written and read back
    load_bytes: float = 0.0  # of the reference, which each worker reads once
    requests_a_shard: float = 8.0  # objects written, looked at and committed
    driver_scale: float = 1.0  # time of the driver's loop there, in units of this machine's
    answer_s: float = 0.002  # from a worker to the driver or back

    def seconds(self, size: float, requests: float) -> float:
        """How long so many bytes and requests keep the store busy."""
        of_bytes = size / self.store_bytes_per_s if self.store_bytes_per_s else 0.0
        return max(of_bytes, requests / self.store_requests_per_s if self.store_requests_per_s else 0.0)

    def least_s(self, num_shards: int, num_workers: int, costs: Costs) -> float:
        """Seconds that a run takes at least: those of the workers, or of the store."""
        return num_shards * max(costs.integrate_s / num_workers, self.seconds(self.shard_bytes, self.requests_a_shard))


def simulate(
    num_shards: int, num_workers: int, costs: Costs, *, limits: Limits | None = None, seed: int = 0
) -> Outcome:
    """One run over shards of one size by workers of one kind; the seed is of the costs' spread.

    Raises:
        ValueError: there are no shards or no workers.
    """
    if num_shards < 1 or num_workers < 1:
        raise ValueError(f"{num_shards} shards and {num_workers} workers: expected 1 or more of both")
    limits = limits or Limits()
    store = _Store(num_shards)
    pool = SimulatedPool(store, costs, limits, seed)
    # A run of days is looked at less often: the loop is the real one, and a look costs what it costs there.
    tick_s = max(Policy.tick_s, limits.least_s(num_shards, num_workers, costs) / MAX_TICKS)
    policy = Policy(start_timeout_s=1e9, tick_s=tick_s)
    driver = Driver(
        store, pool, {"cpu": num_workers}, total=num_shards, policy=policy,
        on_event=lambda event: None, on_snapshot=_put_together,
    )  # fmt: skip
    driver.run()
    wall_s = pool.last_commit
    known = sum(pool.parts_s.values())
    pool.parts_s["wait"] = max(0.0, num_workers * wall_s - known)
    busy = limits.store_bytes_per_s is not None or limits.store_requests_per_s is not None
    store_share = pool.store_busy_s / wall_s if busy else 0.0
    ready_s = pool.ready_s / max(1, pool.num_ready)
    driver_share, store_share = min(1.0, pool.driver_s / wall_s), min(1.0, store_share)
    limit = _limit(pool.parts_s, driver_share, store_share)
    return Outcome(wall_s, ready_s, pool.parts_s, driver_share, store_share, limit)


def _limit(parts_s: Mapping[str, float], driver_share: float, store_share: float) -> str:
    """What keeps a run from being faster, in a word."""
    if driver_share > BUSY_SHARE:
        return "driver"
    if store_share > BUSY_SHARE:
        return "store"
    name = max((name for name in parts_s if name != "integrate"), key=lambda name: parts_s[name])
    return LIMIT_WORDS.get(name, name)


def _put_together(snapshot: Snapshot) -> None:
    """A run makes JSON of each snapshot, which takes the driver's time."""
    json.dumps(snapshot.to_json())


class _Store:
    """A store that knows which shards are committed, and holds no rows."""

    def __init__(self, num_shards: int) -> None:
        self._todo = dict.fromkeys(range(num_shards))
        self._records: dict[int, Record] = {}

    def pending(self) -> list[int]:
        """Shards still to do."""
        return list(self._todo)

    def committed(self) -> set[int]:
        """Shards with a commit record."""
        return set(self._records)

    def finished(self, shards: Iterable[int]) -> dict[int, Record]:
        """Records of those that are done."""
        return {shard: self._records[shard] for shard in shards if shard in self._records}

    def rows(self, shard: int) -> int:
        """Rows of a shard; no cost here depends on them."""
        return 1

    def commit(self, shard: int, host: str, pid: int) -> Record:
        """The record of whoever came first."""
        self._todo.pop(shard, None)
        record: Record = {"shard": shard, "rows": [0, 1], "run_id": "", "objects": {}, "host": host, "pid": pid}
        return self._records.setdefault(shard, record)


@dataclass
class _Worker:
    pid: int
    calls: deque[list[Task]] = field(default_factory=deque)
    idle_since: float | None = None


def _thread_time() -> float:
    """Processor time of the loop's own thread, whatever else runs on this machine."""
    return time.thread_time()


class SimulatedPool:
    """``pool.Pool`` whose workers are a heap of events to come."""

    def __init__(self, store: _Store, costs: Costs, limits: Limits, seed: int) -> None:
        self._store, self._costs, self._limits = store, costs, limits
        self._random = np.random.default_rng(seed)
        self._clock = self._here = 0.0  # the driver's time, and that of what is happening
        self._mark = _thread_time()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order, self._numbers = itertools.count(), itertools.count()
        self._workers: dict[str, _Worker] = {}
        self._events: list[PoolEvent] = []
        self._store_free_at = self._start_free_at = 0.0
        self.driver_s = self.store_busy_s = self.last_commit = self.ready_s = 0.0
        self.num_ready = 0
        self.parts_s = dict.fromkeys(("start", "load", "integrate", "write", "link", "store", "driver"), 0.0)

    def now(self) -> float:
        """The clock, with what the driver has computed since it last waited."""
        return self._clock + (_thread_time() - self._mark) * self._limits.driver_scale

    def unix_time(self) -> float:
        """The same clock."""
        return self.now()

    def start(self, role: str) -> str:
        """A worker that will be ready in its time."""
        number = next(self._numbers)
        name = f"{role}-{number}"
        worker = self._workers[name] = _Worker(number)

        def imported() -> None:
            self._at(self._through_store("load", self._costs.load_s, self._limits.load_bytes, 2.0), ready)

        def ready() -> None:
            worker.idle_since = self._here
            self.ready_s += self._here
            self.num_ready += 1
            self._events.append(Ready(name, WorkerInfo(name, worker.pid, role)))

        self._here = self.now()
        begins = self._here
        if self._limits.starts_per_s:
            begins = self._start_free_at = max(self._here, self._start_free_at) + 1 / self._limits.starts_per_s
        seconds = begins - self._here + self._costs.start_s
        self.parts_s["start"] += seconds
        self._at(seconds, imported)
        return name

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        """Hand over a call."""
        # The driver sends it when it gets to it, and it arrives later. A worker with nothing to do is idle until then.
        self._here = self.now()
        self._at(self._limits.answer_s, lambda: self._arrive(worker, list(tasks)))

    def _arrive(self, name: str, tasks: list[Task]) -> None:
        worker = self._workers.get(name)
        if worker is None:
            return
        worker.calls.append(tasks)
        if len(worker.calls) == 1:
            if worker.idle_since is not None:
                self.parts_s["driver"] += self._here - worker.idle_since
                worker.idle_since = None
            self._work(name, [])

    def _work(self, name: str, results: list[Result]) -> None:
        worker = self._workers.get(name)
        if worker is None or not worker.calls:
            return
        tasks = worker.calls[0]
        if len(results) == len(tasks):
            worker.calls.popleft()
            self._at(self._limits.answer_s, lambda: self._events.append(Answered(name, results)))
            if worker.calls:
                self._work(name, [])
            else:
                worker.idle_since = self._here
            return
        shard = tasks[len(results)][0]
        begun, seconds = self._here, self._draw()

        def integrated() -> None:
            self.parts_s["integrate"] += seconds
            size, requests = self._limits.shard_bytes, self._limits.requests_a_shard
            self._at(self._through_store("write", self._costs.write_s, size, requests), written)

        def written() -> None:
            record = self._store.commit(shard, name, worker.pid)
            self.last_commit = self._here
            self._work(name, [*results, Result(shard, self._here - begun, record)])

        self._at(seconds, integrated)

    def _draw(self) -> float:
        mean, spread = self._costs.integrate_s, self._costs.spread
        if not spread:
            return mean
        width = np.sqrt(np.log1p(spread**2))
        return float(mean * self._random.lognormal(-(width**2) / 2, width))

    def _through_store(self, part: str, alone_s: float, size: float, requests: float) -> float:
        """Seconds until a request is done that takes ``alone_s`` without others; it waits for all earlier ones."""
        limits, needed = self._limits, self._limits.seconds(size, requests)
        self._store_free_at = max(self._here, self._store_free_at) + needed
        self.store_busy_s += needed
        of_link = size / limits.worker_bytes_per_s if limits.worker_bytes_per_s else 0.0
        link_s = max(0.0, of_link - alone_s)
        seconds = max(alone_s + link_s, self._store_free_at - self._here)
        self.parts_s[part] += alone_s
        self.parts_s["link"] += link_s
        self.parts_s["store"] += seconds - alone_s - link_s
        return seconds

    def _at(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self._here + max(0.0, seconds), next(self._order), action))

    def wait(self, timeout_s: float) -> list[PoolEvent]:
        """Move the clock to the next event."""
        spent = (_thread_time() - self._mark) * self._limits.driver_scale
        self.driver_s += spent
        self._clock += spent
        deadline = self._clock + timeout_s
        # What happened while the driver was busy comes at once. Where nothing did, the driver waits for the next event.
        while self._heap and self._heap[0][0] <= (self._clock if self._events else deadline):
            self._here, _, action = heapq.heappop(self._heap)
            action()
            if self._events:
                self._clock = max(self._clock, self._here)
        if not self._events:
            self._clock = max(self._clock, min(deadline, self._heap[0][0] if self._heap else deadline))
        events, self._events = self._events, []
        answered = sum(len(event.results) for event in events if isinstance(event, Answered))
        extra = self._costs.driver_s * self._limits.driver_scale * answered
        self._clock += extra
        self.driver_s += extra
        self._here = self._clock
        self._mark = _thread_time()
        return events

    def kill(self, worker: str) -> None:
        """Take a worker away."""
        self._workers.pop(worker, None)

    def draining(self) -> Mapping[str, Drain]:
        """No node is taken away here."""
        return {}

    def resources(self) -> str:
        """In words."""
        return "as many workers as are asked for"
