"""A pool of workers on a clock of its own, whose every answer is scripted; the loop runs over it without Ray."""

import heapq
import itertools
from collections import Counter, deque
from dataclasses import dataclass, field

import pytest

from sfg_dist.distributed.failure import WORKER_LOST, Failure
from sfg_dist.distributed.labels.driver import CALLS_PER_WORKER, Driver
from sfg_dist.distributed.labels.pool import Answered, Lost, Ready, Result, WorkerInfo


@dataclass(frozen=True)
class Fate:
    """What becomes of one attempt: done, fail, die (before the commit), die_late (after it), hang."""

    kind: str = "done"
    seconds: float = 1.0
    error: Exception | None = None


class FakeStore:
    """Commits by name only; whoever comes second adopts the first record."""

    def __init__(self, num_shards, done=()):
        self.num_shards = num_shards
        self.records = {shard: {"shard": shard, "host": "before", "pid": 0} for shard in done}
        self.made = Counter()
        self.lookups = 0

    def pending(self):
        return [shard for shard in range(self.num_shards) if shard not in self.records]

    def committed(self):
        return set(self.records)

    def finished(self, shards):
        self.lookups += 1
        return {shard: self.records[shard] for shard in shards if shard in self.records}

    def rows(self, shard):
        return 10

    def commit(self, shard, host, pid):
        if shard not in self.records:
            self.made[shard] += 1
            self.records[shard] = {"shard": shard, "host": host, "pid": pid}
        return self.records[shard]


@dataclass
class FakeWorker:
    role: str
    pid: int
    is_ready: bool = False
    calls: deque = field(default_factory=deque)


class FakePool:
    """Workers that live on a heap of future events; waiting moves the clock.

    Args:
        store: where they commit.
        fate: (shard, attempt, worker) -> Fate.
        starts: seconds that the starts take, in turn, None for one that never ends and an exception for one that fails.
    """

    def __init__(self, store, fate=lambda shard, attempt, worker: Fate(), starts=(), host="here"):
        self.store, self.fate, self.host = store, fate, host
        self.starts = iter(starts)
        self.clock, self.heap, self.sequence = 1000.0, [], itertools.count()
        self.workers, self.events, self.drains = {}, [], {}
        self.log, self.sizes, self.num_started, self.waits = [], [], 0, 0

    def now(self):
        return self.clock

    def unix_time(self):
        return 1.7e9 + self.clock

    def at(self, seconds, action):
        heapq.heappush(self.heap, (self.clock + seconds, next(self.sequence), action))

    def start(self, role):
        self.num_started += 1
        name = f"{role}-{self.num_started}"
        worker = self.workers[name] = FakeWorker(role, self.num_started)
        start = next(self.starts, 1.0)

        def ready():
            if name in self.workers:
                worker.is_ready = True
                self.events.append(Ready(name, WorkerInfo(self.host, worker.pid, role)))

        def refuse():
            self.events.append(Lost(name, Failure.of(start, keep=True), is_refusal=True))

        if isinstance(start, Exception):
            self.at(0.5, refuse)
        elif start is not None:
            self.at(start, ready)
        return name

    def submit(self, name, tasks):
        worker = self.workers[name]
        assert worker.is_ready, "work for a worker that has not answered"
        assert tasks
        assert len(worker.calls) < CALLS_PER_WORKER, "too much in flight"
        worker.calls.append(list(tasks))
        self.sizes.append(len(tasks))
        self.log += [(self.clock, name, shard, attempt) for shard, attempt in tasks]
        if len(worker.calls) == 1:
            self._begin(name, worker)

    def _begin(self, name, worker):
        tasks, results = worker.calls[0], []

        def step():
            if len(results) == len(tasks):
                worker.calls.popleft()
                self.events.append(Answered(name, results))
                if worker.calls:
                    self._begin(name, worker)
                return
            shard, attempt = tasks[len(results)]
            fate = self.fate(shard, attempt, name)
            if fate.kind != "hang":
                self.at(fate.seconds, lambda: end(shard, fate))

        def end(shard, fate):
            if self.workers.get(name) is not worker:
                return
            record, failure = None, None
            if fate.kind in ("done", "die_late"):
                record = self.store.commit(shard, self.host, worker.pid)
            elif fate.kind == "fail":
                failure = Failure.of(fate.error, keep=True)
            if fate.kind in ("die", "die_late"):
                self.lose(name)
            else:
                results.append(Result(shard, fate.seconds, record, failure))
                step()

        step()

    def lose(self, name):
        if self.workers.pop(name, None) is not None:
            self.events.append(Lost(name, Failure(WORKER_LOST, "its process died")))

    def wait(self, timeout_s):
        self.waits += 1
        assert self.waits < 100_000, "the loop does not end"
        until = self.clock + timeout_s
        while not self.events and self.heap and self.heap[0][0] <= until:
            at, _, action = heapq.heappop(self.heap)
            self.clock = max(self.clock, at)
            action()
        if not self.events:
            self.clock = max(self.clock, until)
        events, self.events = self.events, []
        return events

    def kill(self, name):
        self.workers.pop(name, None)

    def draining(self):
        return {name: drain for name, drain in self.drains.items() if name in self.workers}

    def resources(self):
        return "the cluster has 3 CPUs"


class Run:
    """A driver over a fake pool, and what it told."""

    def __init__(self, num_shards=8, roles=None, done=(), policy=None, driver=None, **pool):
        self.store = FakeStore(num_shards, done)
        self.pool = FakePool(self.store, **pool)
        self.events, self.snapshots = [], []
        self.driver = Driver(
            self.store,
            self.pool,
            roles or {"cpu": 2},
            total=num_shards,
            driver=driver,
            policy=policy,
            on_event=self.events.append,
            on_snapshot=self.snapshots.append,
        )

    def go(self):
        self.driver.run()
        return self

    def fails(self, error, match=""):
        with pytest.raises(error, match=match) as caught:
            self.driver.run()
        return str(caught.value)

    def of(self, name):
        return [vars(event) for event in self.events if event.name == name]

    @property
    def progress(self):
        return [(event["done"], event["total"], event["record"]["shard"]) for event in self.of("shard")]


def fates(table):
    """Fates by shard, one an attempt in turn; done after the last."""
    left = {shard: list(row) for shard, row in table.items()}
    return lambda shard, attempt, worker: left[shard].pop(0) if left.get(shard) else Fate()
