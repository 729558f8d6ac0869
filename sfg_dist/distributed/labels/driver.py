"""The loop that has all shards of a store labelled, by any pool of workers; it knows neither Ray nor the labels.

A worker holds at most two calls, one at work and one waiting, so that it never waits for the driver. What a worker
committed before it was lost counts, whether or not its answer arrived. Every failed attempt is charged to one shard,
and its reason is kept. So the loop always ends: with all shards done, or with an error that says which are not and why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from sfg_dist.distributed.failure import HANGS, WORKER_LOST, Failure
from sfg_dist.distributed.labels import events
from sfg_dist.distributed.labels.crew import Crew
from sfg_dist.distributed.labels.events import LabelEvent, Record, Snapshot
from sfg_dist.distributed.labels.ledger import Ledger
from sfg_dist.distributed.labels.pace import ShardTimes, SpaceWait
from sfg_dist.distributed.labels.pool import (
    Answered,
    Lost,
    Policy,
    Pool,
    PoolEvent,
    Ready,
    Result,
    ShardStore,
    WorkerInfo,
)
from sfg_dist.distributed.labels.workers import Call, DriverId, Reporter, Worker, slow_calls
from sfg_dist.job.errors import ConflictError, StoreError, StoreFullError

CALLS_PER_WORKER = 2  # one at work, one waiting
DRAIN_LOOK_S = 2.0
LEAST_AVOID_S = 5.0
GAP_S = 10.0  # a loop that stood still for longer was itself suspended


class Driver:
    """One run of the loop.

    Args:
        store: where the shards are.
        pool: its workers.
        roles: how many workers of each role to start, such as "gpu" or "cpu".
        total: shards in all.
        driver: its id; None for a new one.
        policy: how patient it is.
        on_event: told what happens.
        on_snapshot: told how all stands, every two seconds at most and at the end.
    """

    def __init__(
        self,
        store: ShardStore,
        pool: Pool,
        roles: Mapping[str, int],
        *,
        total: int,
        driver: DriverId | None = None,
        policy: Policy | None = None,
        on_event: Callable[[LabelEvent], None] | None = None,
        on_snapshot: Callable[[Snapshot], None] | None = None,
    ) -> None:
        self._store, self._pool = store, pool
        self._policy = policy or Policy()
        self._times = ShardTimes(self._policy.shard_timeout_s)
        self._total = total
        self._id = driver or DriverId.new()
        self._on_event, self._on_snapshot = on_event, on_snapshot
        self._crew = Crew(pool, roles, self._policy)
        self._hungry: dict[str, None] = {}  # in the order in which they became so
        self._draining: set[str] = set()
        self._dropped: set[int] = set()  # at work when their worker was ended
        self._space = SpaceWait(self._policy.full_wait_s)
        self._refresh_at = 0.0
        self._request: str | None = None
        self._closing: str | None = None
        self._next_tick = self._next_drain_look = 0.0

    def request_stop(self, reason: str) -> None:
        """Ask the loop to end soon; may be called from a signal handler."""
        self._request = self._request or reason

    def patience(self) -> tuple[float | None, float]:
        """Seconds until the call at work should end (None: nobody knows), and how long it may; for a pool of one."""
        now = self._pool.now()
        left: float | None = 0.0
        for worker in self._crew.workers.values():
            left = worker.left(self._times, now)
        return left, self._policy.grace_for(self._request)

    def settle(self) -> None:
        """Count what workers committed while they were being ended; to be called when they are gone."""
        for worker in self._crew.workers.values():  # of a run that was cut short
            self._dropped.update(shard for call in worker.calls for shard in call.attempts)
        found = self._look_up([shard for shard in sorted(self._dropped) if self._ledger.is_open(shard)])
        for shard, record in found.items():
            self._note_done(shard, record)
        if found:
            self._reporter.snapshot(self._ledger, {}, is_running=False)

    def run(self) -> None:
        """Label all pending shards.

        Raises:
            LabelingError: shards were given up; NonFiniteLabelError where the last one had such a label.
            StoreFullError: the disk stayed full.
            ClusterError: no worker could be started.
            KeyboardInterrupt: a stop was requested; what is committed is kept.
        """
        pending = self._store.pending()
        self._ledger = Ledger(pending, self._total, self._policy)
        if not pending:
            return
        self._last_loop = self._pool.now()
        self._reporter = Reporter(self._id, self._pool, self._on_event, self._on_snapshot)
        try:
            self._crew.start_all(len(pending))
            while not self._is_over():
                self._crew.start_due(self._ledger.num_open)
                self._feed()
                for event in self._pool.wait(self._pause()):
                    self._handle(event)
                self._look_at_clock()
        except KeyboardInterrupt:
            if self._closing is None:
                self._reporter.emit(events.Stopping(self._request or "interrupted"))
            raise
        finally:
            for name in self._crew.workers:
                self._pool.kill(name)
            self._reporter.snapshot(self._ledger, self._crew.workers, is_running=False)
        if self._request is not None:
            raise KeyboardInterrupt(self._request)
        if (error := self._ledger.error()) is not None:
            raise error from self._ledger.last_exception()

    # Workers come and go.

    def _handle(self, event: PoolEvent) -> None:
        worker = self._crew.workers.get(event.worker)
        if worker is None:  # an answer of one that was given up
            return
        if isinstance(event, Ready):
            self._on_ready(worker, event.info)
        elif isinstance(event, Answered):
            self._on_answer(worker, event.results)
        else:
            self._on_lost(worker, event)

    def _on_ready(self, worker: Worker, info: WorkerInfo) -> None:
        self._crew.ready(worker, info)
        self._hungry[worker.name] = None
        seconds = round(self._pool.now() - worker.started, 3)
        load_s = None if info.load_s is None else round(info.load_s, 3)
        self._reporter.emit(
            events.WorkerStarted(worker.name, worker.kind, seconds, info.host, info.pid, info.device, load_s=load_s)
        )

    def _on_answer(self, worker: Worker, results: Sequence[Result]) -> None:
        now = self._pool.now()
        call = worker.calls.popleft()
        if worker.calls:
            worker.calls[0].begun = now
        worker.busy_s += now - call.begun
        is_spent = False
        for result in results:
            self._ledger.end(result.shard)
            if result.record is not None:
                self._finish(result.shard, result.record, worker, result.seconds)
            else:
                assert result.failure is not None, "a result has a record or a failure"
                is_spent = is_spent or result.failure.is_worker_spent
                self._fail(result.shard, worker, result.failure, call.attempts[result.shard])
        if is_spent or worker.leave_by is not None:
            self._retire(worker, replace=worker.leave_by is None)
        else:
            self._hungry[worker.name] = None

    def _on_lost(self, worker: Worker, event: Lost) -> None:
        self._reporter.emit(events.WorkerLost(worker.name, str(event.failure)))
        delay = self._crew.pause_after_loss(worker, event)
        failure = Failure(WORKER_LOST, f"the worker was lost: {event.failure}")
        self._retire(worker, charge=failure, replace=worker.leave_by is None, delay_s=delay)

    def _retire(
        self, worker: Worker, *, charge: Failure | None = None, replace: bool = True, delay_s: float = 0.0
    ) -> None:
        """End a worker; its shards are looked up, and those not committed go back to the queue.

        Calls of one worker run in order, so only the first shard that is not committed can have brought it down; that
        one is charged. It may be in the second call: the answer to the first goes down with the process.
        """
        self._crew.remove(worker)
        held = [(shard, attempt) for call in worker.calls for shard, attempt in call.attempts.items()]
        for shard, _ in held:
            self._ledger.end(shard)
        for shard, record in self._look_up([shard for shard, _ in held if self._ledger.is_open(shard)]).items():
            self._finish(shard, record, worker)
        left = [(shard, attempt) for shard, attempt in held if self._ledger.is_open(shard)]
        if charge is not None and left:
            shard, attempt = left.pop(0)
            self._fail(shard, worker, charge, attempt)
        self._dropped.update(shard for shard, _ in held)
        for shard, _ in reversed(left):
            self._ledger.put_back(shard)
        self._wake()
        if replace:
            self._crew.replace(worker.role, self._ledger.num_open, delay_s)

    def _look_up(self, shards: list[int]) -> dict[int, Record]:
        try:
            return self._store.finished(shards) if shards else {}
        except StoreError:
            return {}  # they are handed out again, and the next worker finds what is there

    # Shards come back.

    def _finish(self, shard: int, record: Record, worker: Worker, seconds: float | None = None) -> None:
        process = (record.get("host", worker.host), record.get("pid", worker.pid))
        if process != (worker.host, worker.pid):
            seconds = None  # this worker spent them, and another one made the record
        if seconds is not None:
            worker.done += 1
            worker.rows += self._store.rows(shard)
            self._times.add(worker.kind, seconds)
        self._space.written(self._pool.now())
        self._note_done(shard, record, seconds)
        if not self._crew.is_own(*process):
            self._meet_other_driver()

    def _note_done(self, shard: int, record: Record, seconds: float | None = None) -> None:
        if self._ledger.finish(shard):
            self._reporter.emit(events.ShardDone(self._ledger.done, self._total, record, seconds))

    def _meet_other_driver(self) -> None:
        """Another driver works at this store: skip what it has committed, and take the rest in another order."""
        now = self._pool.now()
        if now < self._refresh_at:
            return
        self._refresh_at = now + self._policy.refresh_s  # against coming here again from _finish
        try:
            committed = self._store.committed()
            found = self._store.finished([shard for shard in self._ledger.todo() if shard in committed])
        except StoreError:
            return
        for shard, record in found.items():
            self._note_done(shard, record)
        self._ledger.shuffle()
        later = self._pool.now()
        self._refresh_at = later + max(self._policy.refresh_s, 20 * (later - now))

    def _fail(self, shard: int, worker: Worker, failure: Failure, attempt: int) -> None:
        if not self._ledger.is_open(shard):  # another attempt has done it
            return
        now = self._pool.now()
        if failure.is_a(StoreFullError):
            if not self._space.wait(now):
                raise StoreFullError(
                    f"{failure.message} ({self._ledger.done} of {self._total} shards are kept; it waited "
                    f"{self._policy.full_wait_s:g} s for space)"
                ) from failure.exception
            self._ledger.put_back(shard)
            action = "retry"
        else:
            others = any(other.kind != worker.kind for other in self._crew.workers.values() if other.is_ready)
            avoid = worker.kind if failure.is_a(ConflictError) and others else worker.name
            patience = max(LEAST_AVOID_S, 2 * (self._times.median(worker.kind) or 0.0))
            action = self._ledger.charge(shard, worker.name, failure, now, avoid=avoid, avoid_s=patience)
        self._reporter.emit(events.AttemptFailed(shard, action, attempt, worker.name, str(failure), failure.error))
        if len(self._ledger.given_up) >= self._policy.max_given_up:
            self._close(f"{len(self._ledger.given_up)} shards were given up")
        self._wake()

    # Shards go out.

    def _feed(self) -> None:
        now = self._pool.now()
        if self._closing is not None or now < self._space.until:
            return
        hungry, self._hungry = self._hungry, {}
        for name in hungry:
            worker = self._crew.workers.get(name)
            while worker is not None and worker.can_take(CALLS_PER_WORKER) and self._feed_one(worker, now):
                pass

    def _feed_one(self, worker: Worker, now: float) -> bool:
        """Hand a worker its next call, if there is one for it."""
        # A shard may wait behind another only while there are enough for all workers, those that still start included.
        if worker.calls and self._ledger.num_todo < len(self._crew.workers):
            return False
        share = self._ledger.num_todo // (CALLS_PER_WORKER * max(1, self._crew.num_ready))
        count = max(1, min(self._times.call_shards(worker.kind), share))
        shards = self._ledger.take(worker.name, worker.kind, now, count, is_alone=self._crew.num_ready == 1)
        if shards:
            self._submit(worker, shards, now)
        return bool(shards)

    def _submit(self, worker: Worker, shards: Sequence[int], now: float) -> None:
        tasks = [(shard, self._ledger.attempt(shard)) for shard in shards]
        for shard in shards:
            self._ledger.begin(shard)
        worker.calls.append(Call(dict(tasks), begun=now))
        self._pool.submit(worker.name, tasks)

    def _wake(self) -> None:
        """Look at every worker with room: something came back to the queue, or a pause is over."""
        self._hungry |= {name: None for name, worker in self._crew.workers.items() if worker.can_take(CALLS_PER_WORKER)}

    # Time goes by.

    def _pause(self) -> float:
        now, due = self._pool.now(), self._crew.next_due()
        return max(0.0, min([self._next_tick, *([due] if due is not None else [])]) - now)

    def _look_at_clock(self) -> None:
        now = self._pool.now()
        if self._request is not None and self._closing is None:
            self._close(self._request)
        if now < self._next_tick and self._closing is None:
            return
        self._next_tick = now + self._policy.tick_s
        gap_s = max(GAP_S, 2 * self._policy.tick_s)
        if now - self._last_loop > gap_s:  # this process was suspended: the workers' shards were not slow
            for worker in self._crew.workers.values():
                for call in worker.calls:
                    call.begun = min(now, call.begun + now - self._last_loop)
        self._last_loop = now
        self._look_for_drains(now)
        for worker in list(self._crew.workers.values()):
            self._look_at_worker(worker, now)
        for worker in self._crew.overdue():
            self._retire(worker)  # its process may be stopped, or wait for a place that is never free
        if self._closing is None and now >= self._space.until:
            self._back_up(now)
        self._wake()
        self._reporter.snapshot_if_due(self._ledger, self._crew.workers)

    def _look_at_worker(self, worker: Worker, now: float) -> None:
        if worker.leave_by is not None:
            left = worker.left(self._times, now)
            if not worker.calls or now >= worker.leave_by or (left is not None and now + left > worker.leave_by):
                self._retire(worker, replace=False)
        elif worker.calls:
            call = worker.calls[0]
            limit = self._times.limit(worker.kind, len(call.attempts))
            if now - call.begun > limit:
                reason = f"no answer within {limit:.3g} s (executor.shard_timeout_s)"
                self._reporter.emit(events.WorkerLost(worker.name, reason))
                self._retire(worker, charge=Failure(HANGS, reason))

    def _back_up(self, now: float) -> None:
        """Give idle workers the shards that a slow worker holds: those that wait there, or the one at work."""
        if self._ledger.num_todo:
            return
        idle = deque(worker for worker in self._crew.workers.values() if worker.can_take(1))
        if not idle:
            return
        for is_at_work, call, kind in slow_calls(self._crew.workers.values(), self._times, now):
            helper = next((worker for worker in idle if worker.kind == kind), None)
            if helper is None:
                continue
            wanted = call.attempts if not is_at_work else [s for s in call.attempts if self._ledger.is_open(s)][:1]
            if shards := [shard for shard in wanted if self._ledger.back_up(shard)]:
                idle.remove(helper)
                self._submit(helper, shards, now)
                self._reporter.emit(events.Backup(shards[0], helper.name))

    def _look_for_drains(self, now: float) -> None:
        if now < self._next_drain_look:
            return
        self._next_drain_look = now + DRAIN_LOOK_S
        for name, drain in self._pool.draining().items():
            worker = self._crew.workers.get(name)
            if worker is None or worker.leave_by is not None:
                continue
            if drain.node not in self._draining:
                self._draining.add(drain.node)
                left = drain.deadline - now
                at = None if left == float("inf") else round(self._pool.unix_time() + left, 3)
                self._reporter.emit(events.Draining(drain.node, at))
            worker.leave_by = drain.deadline
            self._crew.replace(worker.role, self._ledger.num_open)

    def _close(self, reason: str) -> None:
        """Hand nothing out any more; what is at work may end within the time that the policy grants."""
        if self._closing is not None:
            return
        self._closing = reason
        self._crew.is_closed = True
        self._reporter.emit(events.Stopping(reason))
        by = self._pool.now() + self._policy.grace_for(self._request)
        for worker in self._crew.workers.values():
            worker.leave_by = by if worker.leave_by is None else min(by, worker.leave_by)
        self._next_tick = 0.0

    def _is_over(self) -> bool:
        return not self._ledger.num_open or (self._closing is not None and not self._crew.workers)
