"""What a labelling run tells Prometheus, through Ray's metrics.

The driver counts from the events of its loop, so the figures do not depend on which actors live on. Ray's agent on the
driver's node serves them as ``ray_sfg_*`` on the port that ``ray.nodes()`` calls MetricsExportPort. That agent comes
with ``ray[default]``; without it the figures go nowhere. Ray's histograms know the middle of a bucket and not the
value, so sums that are to be exact are counters beside them.
"""

from __future__ import annotations

from typing import Any

from sfg_dist.distributed.labels.events import AttemptFailed, Backup, LabelEvent, ShardDone, Snapshot, WorkerLost

SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
STATES = ("starting", "idle", "at work", "leaving")


class LabelMetrics:
    """Counters, gauges and histograms of one labelling run; needs a running Ray session.

    The store's URL is the label ``store`` of every figure.
    """

    def __init__(self, store: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._store = store

        def counter(name: str, text: str, *keys: str) -> Any:
            return Counter(f"sfg_{name}", description=text, tag_keys=("store", *keys))

        def gauge(name: str, text: str, *keys: str) -> Any:
            return Gauge(f"sfg_{name}", description=text, tag_keys=("store", *keys))

        def histogram(name: str, text: str) -> Any:
            return Histogram(f"sfg_{name}", description=text, boundaries=list(SECONDS), tag_keys=("store", "device"))

        self._shards = gauge("shards", "Shards of the store.")
        self._shards_done = gauge("shards_done", "Shards that are committed.")
        self._labelled = counter("shards_labelled", "Shards that this run has seen committed.", "device")
        self._rows = counter("rows_labelled", "Their pairs.", "device")
        self._evaluations = counter("evaluations", "Evaluations of the posterior mean, over rows.", "device")
        self._integration = counter("integration_seconds", "Seconds of integration, summed over shards.", "device")
        self._integrate_s = histogram("integrate_seconds", "Seconds of integration of a shard.")
        self._write_s = histogram("write_seconds", "Seconds that a shard took to be written, read back and committed.")
        self._tolerance = gauge("tolerance_reached", "Largest certified error of the posterior mean.")
        self._failed = counter("attempts_failed", "Attempts that failed, by the class of the error.", "error", "action")
        self._lost = counter("workers_lost", "Workers that were lost.")
        self._backups = counter("backups", "Backup attempts at shards that took long.")
        self._workers = gauge("workers", "Workers by state.", "state")
        self._rows_per_s = gauge("rows_per_second", "Pairs a second, over the run.")
        self._largest_bound = 0.0

    def event(self, event: LabelEvent) -> None:
        """Count what an event of the driver's loop tells."""
        store = {"store": self._store}
        if isinstance(event, ShardDone):
            self._count_shard(event)
        elif isinstance(event, AttemptFailed):
            self._failed.inc(1, store | {"error": event.error, "action": event.action})
        elif isinstance(event, WorkerLost):
            self._lost.inc(1, store)
        elif isinstance(event, Backup):
            self._backups.inc(1, store)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Take over what a snapshot of the driver tells."""
        states = [worker.state for worker in snapshot.workers] if snapshot.is_running else []
        for state in STATES:
            self._workers.set(states.count(state), {"store": self._store, "state": state})
        self._rows_per_s.set(snapshot.rows_per_s, {"store": self._store})

    def _count_shard(self, event: ShardDone) -> None:
        record, store = event.record, {"store": self._store}
        where = store | {"device": str(record.get("device", "unknown"))}
        num_rows = record["rows"][1] - record["rows"][0]
        self._shards.set(event.total, store)
        self._shards_done.set(event.done, store)
        for counter, amount in (
            (self._labelled, 1),
            (self._rows, num_rows),
            (self._evaluations, num_rows * record.get("evaluations", 0.0)),
            (self._integration, record.get("seconds", 0.0)),
        ):
            if amount > 0:  # Ray refuses to count by nothing
                counter.inc(amount, where)
        self._integrate_s.observe(record.get("seconds", 0.0), where)
        if event.seconds is not None:
            self._write_s.observe(max(0.0, event.seconds - record.get("seconds", 0.0)), where)
        self._largest_bound = max(self._largest_bound, record.get("tolerance_reached", 0.0))
        self._tolerance.set(self._largest_bound, store)
