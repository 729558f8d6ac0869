"""The workers of one driver: how many there are, who replaces whom, and when to stop trying."""

from __future__ import annotations

import random
from collections.abc import Mapping

from sfg_dist.distributed.labels.pool import Lost, Policy, Pool, WorkerInfo
from sfg_dist.distributed.labels.workers import Worker
from sfg_dist.job.errors import ClusterError, StoreUnavailableError

IDLE_LOSSES = 3  # workers lost one after the other before any was ready; as many as are wanted where that is more
LONGEST_PAUSE_S = 30.0


class Crew:
    """Workers of a pool, kept at the number that is asked for of each role."""

    def __init__(self, pool: Pool, roles: Mapping[str, int], policy: Policy) -> None:
        self._pool, self._roles, self._policy = pool, dict(roles), policy
        self._size = sum(self._roles.values())
        self._random = random.Random(policy.seed)
        self._due: list[tuple[float, str]] = []  # replacements that wait for their time
        self._idle_losses = 0
        self._last_ready = pool.now()
        self._processes: set[tuple[object, object]] = set()
        self.workers: dict[str, Worker] = {}
        self.num_ready = 0
        self.is_closed = False

    def start_all(self, num_shards: int) -> None:
        """Start the workers, no more than there are shards."""
        for role, number in self._roles.items():
            for _ in range(min(number, num_shards - len(self.workers))):
                self._start(role)

    def start_due(self, num_shards: int) -> None:
        """Start the replacements whose time has come."""
        now = self._pool.now()
        due = [role for at, role in self._due if at <= now]
        self._due = [(at, role) for at, role in self._due if at > now]
        for role in due:
            self.replace(role, num_shards)

    def next_due(self) -> float | None:
        """When the next replacement is to be started."""
        return min((at for at, _ in self._due), default=None)

    def replace(self, role: str, num_shards: int, delay_s: float = 0.0) -> None:
        """Another worker of a role, now or later, if there is work for it."""
        staying = sum(worker.leave_by is None for worker in self.workers.values())
        if self.is_closed or staying >= min(num_shards, self._size):
            return
        if delay_s:
            self._due.append((self._pool.now() + delay_s, role))
        else:
            self._start(role)

    def ready(self, worker: Worker, info: WorkerInfo) -> None:
        """A worker answers."""
        worker.info, worker.is_ready = info, True
        self.num_ready += 1
        self._idle_losses = 0
        self._processes.add((worker.host, worker.pid))

    def remove(self, worker: Worker) -> None:
        """A worker is no more; it is ended, should it live on somewhere."""
        del self.workers[worker.name]
        self.num_ready -= worker.is_ready
        self._pool.kill(worker.name)

    def is_own(self, host: object, pid: object) -> bool:
        """Whether a process is, or was, one of these workers."""
        return (host, pid) in self._processes

    def pause_after_loss(self, worker: Worker, event: Lost) -> float:
        """Seconds to wait before the replacement is started.

        Raises:
            ClusterError: too many were lost one after the other before any of them was ready.
            SfgError: the first of them said that it cannot work, and that will not change.
        """
        if worker.is_ready or worker.leave_by is not None:
            return 0.0
        failure, known = event.failure, event.failure.known_class
        is_final = event.is_refusal and not self._processes and not failure.is_a(StoreUnavailableError)
        if is_final and known is not None:
            raise known(failure.message) from failure.exception
        self._idle_losses += 1
        if self._idle_losses >= max(IDLE_LOSSES, self._size):
            raise (known or ClusterError)(
                f"{self._idle_losses} workers were lost one after the other before their first shard; the last one, "
                f"because: {failure}"
            ) from failure.exception
        if self._idle_losses == 1:
            return 0.0
        return min(LONGEST_PAUSE_S, 2.0 ** min(self._idle_losses - 2, 9)) * self._random.uniform(0.5, 1.5)

    def overdue(self) -> list[Worker]:
        """Workers that were asked for long ago and still do not answer.

        Raises:
            ClusterError: no worker at all has been ready for too long.
        """
        now = self._pool.now()
        if self.num_ready or self.is_closed:
            self._last_ready = now
        elif now - self._last_ready > self._policy.start_timeout_s:
            raise ClusterError(
                f"no worker was ready for {self._policy.start_timeout_s:g} s, {len(self.workers)} were asked for: "
                f"{self._pool.resources()}"
            )
        limit = self._policy.start_timeout_s
        return [worker for worker in self.workers.values() if not worker.is_ready and now - worker.started > limit]

    def _start(self, role: str) -> None:
        name = self._pool.start(role)
        self.workers[name] = Worker(name, role, started=self._pool.now())
