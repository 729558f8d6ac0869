"""How far a store of pairs is and who works at it, read from the store alone, on any machine.

Commit records say what is done and how it was made. Snapshots say who works at it (see ``snapshot.py``). Times are
seconds since 1970 by the clock that wrote them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sfg_dist.job.plan import Plan
from sfg_dist.job.reader import LONG_BYTES
from sfg_dist.store.arrays import ARRAYS
from sfg_dist.store.commits import CommitRecord, find_records
from sfg_dist.store.pairs import Pairs
from sfg_dist.store.snapshot import DriverStatus, driver_of

DRIVERS_PREFIX = "drivers"


@dataclass(frozen=True)
class Provenance:
    """How what is done was made, over all commit records."""

    devices: Mapping[str, int]  # shards made on each
    hosts: Mapping[str, int]  # shards made on each
    num_workers: int  # processes that made them
    versions: Mapping[str, str]  # of the package, numpy and torch, when the store was created
    seconds: float  # spent on integration, summed over shards
    started: float | None  # when the first shard was begun, by its length; None for none
    finished: float | None  # when the last one was committed
    bytes: int  # of the committed objects
    evaluations: float  # of the posterior mean, a row
    pairs_summed: float  # (row, reference) pairs
    # the largest certified bound of an error of the posterior mean; 0 where errors are measured
    tolerance_reached: float
    measured: int  # evaluations whose error was measured
    measured_over: int  # those of them with larger errors than the plan expects
    rows_bounded: int  # rows that went by the bound because too many of their batch were above it
    step_control_exceeded: int  # rows whose estimated error stayed above labels.solver_tolerance
    num_retried: int  # shards that took more than one attempt


@dataclass(frozen=True)
class StoreStatus:
    """The state of a store at one moment."""

    store: str  # its URL
    time: float  # when it was read
    shards: int  # in all
    shards_done: int
    rows: int
    rows_done: int
    shards_running: tuple[int, ...]  # shards that some worker of a running driver has at work
    shards_failed: Mapping[int, str]  # shards that a driver gave up and nobody has done since, with the reason of each
    is_complete: bool  # whether nothing is left to do
    rows_per_s: float | None  # of the running drivers together; None where nothing runs or none can say yet
    seconds_left: float | None  # at that rate; 0 where complete
    columns: tuple[str, ...]  # of the plan, as the next three
    dim: int
    labels: Mapping[str, Any]
    source: str
    extended_at: tuple[int, ...]  # numbers of pairs at which the store was complete before it was extended
    drivers: tuple[DriverStatus, ...]  # those that left a snapshot, running ones first, newest first
    provenance: Provenance  # how what is done was made

    @property
    def running(self) -> tuple[DriverStatus, ...]:
        """Drivers at work."""
        return tuple(driver for driver in self.drivers if driver.state == "running")

    def to_json(self) -> Mapping[str, Any]:
        """All of it as a JSON document, each worker with its rate."""
        document = asdict(self)
        for driver, shown in zip(self.drivers, document["drivers"], strict=True):
            for worker, entry in zip(driver.workers, shown["workers"], strict=True):
                entry["rows_per_s"] = worker.rows_per_s
        return document


@dataclass
class StatusReader:
    """Reads the state of a store, again and again at little cost: a commit record is read once.

    Examples:
        >>> StatusReader(open_pairs("runs/quickstart")).read(time.time()).rows_done       # doctest: +SKIP
        20000
    """

    pairs: Pairs
    _records: dict[int, CommitRecord] = field(default_factory=dict)

    def read(self, now: float) -> StoreStatus:
        """The state at ``now``, seconds since 1970 by the reader's clock, which drivers' silence is measured by.

        Raises:
            StoreError: the store cannot be read.
        """
        plan = self.pairs.plan
        self._records = self._read_records(self.pairs.committed())
        sizes = self.pairs.stored_bytes()
        recorded = {
            shard: [record["objects"][name]["bytes"] for name in ARRAYS] for shard, record in self._records.items()
        }
        done = {shard for shard, bytes_ in recorded.items() if sizes[shard].tolist() == bytes_}
        drivers = self._read_drivers(now)
        running = [driver for driver in drivers if driver.state == "running"]
        rates = [driver.rows_per_s for driver in running if driver.rows_per_s]
        rows_per_s = sum(rates) if rates else None
        rows_done = sum(stop - start for start, stop in map(plan.shard_range, done))
        rows_left = plan.num_pairs - rows_done
        at_work = {worker.shard for driver in running for worker in driver.workers if worker.shard is not None}
        return StoreStatus(
            store=self.pairs.location.url,
            time=now,
            shards=plan.num_shards,
            shards_done=len(done),
            rows=plan.num_pairs,
            rows_done=rows_done,
            shards_running=tuple(sorted(at_work - done)),
            shards_failed=_given_up(drivers, done),
            is_complete=len(done) == plan.num_shards,
            rows_per_s=rows_per_s,
            seconds_left=0.0 if not rows_left else rows_left / rows_per_s if rows_per_s else None,
            columns=plan.columns,
            dim=plan.dim,
            labels=dict(plan.labels),
            source=plan.source,
            extended_at=plan.earlier_ends,
            drivers=drivers,
            provenance=summarise(plan, [self._records[shard] for shard in done]),
        )

    def _read_records(self, committed: set[int]) -> dict[int, CommitRecord]:
        """Records of the shards that have one; only new ones are read."""
        kept: dict[int, CommitRecord] = {shard: self._records[shard] for shard in committed & self._records.keys()}
        new = sorted(committed - kept.keys())
        # what is left out is torn, or was repaired away since the listing
        return kept | dict(find_records(self.pairs.location, self.pairs.plan, new))

    def _read_drivers(self, now: float) -> tuple[DriverStatus, ...]:
        location = self.pairs.location
        keys = [entry.key for entry in location.list(DRIVERS_PREFIX) if entry.key.endswith(".json")]
        found = (driver_of(content, now) for _, content in location.read_many(keys, LONG_BYTES) if content)
        drivers = [driver for driver in found if driver is not None]
        return tuple(sorted(drivers, key=lambda driver: (driver.state != "running", -driver.updated)))


def _given_up(drivers: Iterable[DriverStatus], done: set[int]) -> dict[int, str]:
    """Shards that the newest word of any driver gave up."""
    given_up: dict[int, str] = {}
    for driver in sorted(drivers, key=lambda driver: driver.updated):
        for failure in driver.failures:
            if failure.get("action") == "give_up" and failure.get("shard") not in {None, *done}:
                given_up[int(failure["shard"])] = str(failure.get("reason", ""))
    return dict(sorted(given_up.items()))


def summarise(plan: Plan, records: Iterable[CommitRecord]) -> Provenance:
    """How shards were made, over their commit records; keys that a record lacks count as nothing."""
    records = list(records)
    rows = [record["rows"][1] - record["rows"][0] for record in records]
    weighted = sum(number * float(record.get("evaluations", 0.0)) for number, record in zip(rows, records, strict=True))
    finished = [record["finished"] for record in records if "finished" in record]
    started = [record["finished"] - record.get("seconds", 0.0) for record in records if "finished" in record]
    return Provenance(
        devices=dict(Counter(str(record.get("device", "unknown")) for record in records)),
        hosts=dict(Counter(str(record.get("host", "unknown")) for record in records)),
        num_workers=len({(record.get("host"), record.get("pid")) for record in records}),
        versions=dict(plan.versions),
        seconds=round(sum(float(record.get("seconds", 0.0)) for record in records), 3),
        started=min(started, default=None),
        finished=max(finished, default=None),
        bytes=sum(entry["bytes"] for record in records for entry in record["objects"].values()),
        evaluations=round(weighted / max(1, sum(rows)), 2),
        pairs_summed=float(sum(record.get("pairs", 0) for record in records)),
        tolerance_reached=max((float(record.get("tolerance_reached", 0.0)) for record in records), default=0.0),
        measured=sum(int(record.get("measured", 0)) for record in records),
        measured_over=sum(int(record.get("measured_over", 0)) for record in records),
        rows_bounded=sum(int(record.get("rows_bounded", 0)) for record in records),
        step_control_exceeded=sum(int(record.get("step_control_exceeded", 0)) for record in records),
        num_retried=sum(int(record.get("attempt", 1)) > 1 for record in records),
    )
