"""What a job will take, before anything is spent: shards, bytes, memory, evaluations, time and cost.

Nothing is written into output.dir, and Ray is not needed. A calibration on this machine (``calibration``) gives the
pace of a worker and what it pays once; from these follows the time of the label stage (``run_time``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfg_dist.data.naming import category_words
from sfg_dist.distributed.executor import why_ray
from sfg_dist.distributed.labels.choice import Choice, choose, num_fitting
from sfg_dist.distributed.labels.events import JsonObject
from sfg_dist.distributed.labels.requirements import (
    RunMemory,
    choose_workers,
    memory_of,
    own_workers,
    require_budget,
    require_disk,
    require_memory,
    require_output,
)
from sfg_dist.distributed.labels.sizes import StoreBytes, bytes_left, store_bytes
from sfg_dist.distributed.labels.worker_count import DeviceKind, Workers
from sfg_dist.distributed.machine import Machine, resident_memory, this_machine
from sfg_dist.flow.posterior.block_file import reference_bytes
from sfg_dist.job.config import Job
from sfg_dist.job.plan import REFERENCE_BLOCK_ROWS, Plan
from sfg_dist.job.words import GIB, duration, size_of
from sfg_dist.pipeline.check import check_job
from sfg_dist.pipeline.plan import frame_of, plan_of
from sfg_dist.pipeline.table import prepare_table
from sfg_dist.store import RowBlocks
from sfg_dist.studies.estimate.calibration import (
    CALIBRATION_S,
    Calibration,
    CalibrationSettings,
    Pace,
    calibrate,
    calibrated_devices,
)
from sfg_dist.studies.estimate.run_time import Cost, Time, cost_of, time_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.data import Prepared
    from sfg_dist.store import Frame, Pairs

RAY_NICENESS = 15  # of its workers: they give way to other processes
OTHER_CPUS = 0.2  # that others may take from the workers before it is said
CALIBRATED_BLOCKS = 2  # of a reference in more: several go by other code than one
FIT_ROWS = 4600  # labels' work that a fitted time grid costs, see flow.fit_time_grid


@dataclass(frozen=True)
class Work:
    """What there is to do."""

    num_shards: int
    shards_left: int
    num_pairs: int
    pairs_left: int
    dim: int  # columns as the flow sees them
    num_reference: int  # rows behind the score
    score_evaluations: int  # rows times evaluations, of what is left
    pairs_summed: int  # pairs of a latent and a reference row, of what is left; from the calibration
    is_counted: bool  # whether the job fixes the evaluations; with step control they are from the calibration


@dataclass(frozen=True)
class Estimate:
    """Everything that ``sfg plan`` says."""

    output: str  # output.dir of the job
    work: Work
    written: StoreBytes  # bytes of the whole store
    left: StoreBytes  # bytes still to be written
    free_bytes: int | None  # room where they go; None for an object store
    memory: RunMemory
    workers: Workers
    time: Time
    cost: Cost | None  # None without executor.price_per_hour
    paces: dict[DeviceKind, Pace]  # the calibration, by kind of device; empty where nothing is left to do
    notes: tuple[str, ...]  # what to know about the figures
    chosen: str  # by whom labels are made, and why, in words
    read_as: str = ""  # how the table was read, in words
    columns: tuple[str, ...] = ()  # of categories, missing values and columns that others determine, in sentences

    def to_dict(self) -> JsonObject:
        """The estimate as a JSON document."""
        document = asdict(self)
        for name, size in (("written", self.written), ("left", self.left)):
            document[name] |= {"arrays": size.arrays, "total": size.total}
        return document


@dataclass(frozen=True)
class _Subject:
    """What is to be labelled: the store's plan and frame, the store itself where it is begun, and its shards left."""

    plan: Plan
    frame: Frame
    pairs: Pairs | None
    pending: Sequence[int]
    num_reference: int
    fits_grid: bool
    read_as: str
    columns: Sequence[str]  # what there is to know of the table's columns, in sentences
    is_in_memory: bool  # the table

    @classmethod
    def of(cls, job: Job, prepared: Prepared) -> _Subject:
        """Lay out the store of a job from its table, and look at the one that it may have begun."""
        from sfg_dist.distributed.labels.ordering import order_with_threads

        is_whole = job.labels.certificate == "measured"
        frame = frame_of(job, prepared, partial(order_with_threads, is_whole=is_whole))
        pairs = _existing_store(job)
        fits_grid = job.labels.time_grid == "fitted" and pairs is None
        # The default grid costs as many evaluations as one that is fitted first.
        planned = job.changed(labels={"time_grid": "graded"}) if fits_grid else job
        plan, frame = plan_of(planned, prepared, frame, existing=None if pairs is None else pairs.plan)
        if pairs is not None:
            pairs.require_plan(plan)
            plan = pairs.plan
        pending = range(plan.num_shards) if pairs is None else pairs.pending()
        told, read_as = category_words(prepared.report), prepared.report["read_as"]
        return cls(plan, frame, pairs, pending, prepared.num_train, fits_grid, read_as, told, prepared.is_whole)

    @property
    def has_clusters(self) -> bool:
        """Whether labels use clusters of the reference."""
        return self.frame.make_order is not None

    @property
    def queries(self) -> NDArray[np.float32] | None:
        """The user's own query points, which are held in memory."""
        assert not isinstance(self.frame.queries, RowBlocks)
        return self.frame.queries

    @property
    def rows_left(self) -> list[int]:
        """Rows of each shard that is left."""
        return [stop - start for start, stop in map(self.plan.shard_range, self.pending)]

    def store_bytes(self) -> tuple[StoreBytes, StoreBytes]:
        """Bytes of the whole store, and those that are still to be written."""
        written = store_bytes(
            self.plan,
            num_reference=self.num_reference,
            has_order=self.has_clusters,
            transform_arrays=self.frame.transform_arrays,
            transform_metadata=self.frame.transform_metadata,
            num_queries=None if self.frame.queries is None else RowBlocks.of(self.frame.queries).num_rows,
        )
        return written, written if self.pairs is None else bytes_left(self.plan, written, self.pending)

    def calibrated_reference(self) -> tuple[NDArray[np.float32], float]:
        """The reference that a calibration looks at, and how many times as large the real one is.

        Where each block has clusters of its own it looks at the first ones, and of a reference that is larger than
        memory too. Rows come in no order, so that all blocks cost the same.
        """
        reference, size = self.frame.score_rows, CALIBRATED_BLOCKS * REFERENCE_BLOCK_ROWS
        is_one = self.plan.is_whole or not self.has_clusters
        if not isinstance(reference, RowBlocks) and (is_one or len(reference) <= size):
            return reference, 1.0
        first = next(RowBlocks.of(reference).cut(size))
        return first, self.num_reference / len(first)

    def order_of(self, reference: NDArray[np.float32]) -> NDArray[np.int64] | None:
        """The clusters' order of what a calibration looks at; None where there is nothing to calibrate for."""
        if not self.has_clusters or not self.pending:
            return None
        is_whole = reference is self.frame.score_rows
        frame = self.frame if is_whole else replace(self.frame, reference=reference, debiased=None)
        return frame.order


def estimate_job(
    job: Job,
    *,
    machine: Machine | None = None,
    prepared: Prepared | None = None,
    seconds: float = CALIBRATION_S,
    on_step: Callable[[str], None] = lambda _: None,
) -> Estimate:
    """What a job will take to label, on this machine by default; ``prepared`` is its table where it is read already.

    The calibration lasts ``seconds`` once it is warm; ``on_step`` is told in words what goes on.

    Raises:
        ConfigError: something cannot fit; the message names the keys and values that would.
        DataError: the table cannot be used.
        PlanMismatchError: output.dir holds pairs of another plan.
    """
    check_job(job)
    require_output(job.output.dir)
    machine = machine or this_machine()
    workers, price = choose_workers(job, machine), job.executor.price_per_hour
    require_budget(job)
    on_step(f"plan: reading {job.data.source}, and preparing it")
    started = time.monotonic()
    subject = _Subject.of(job, prepared or prepare_table(job))
    plan, pending, clusters = subject.plan, subject.pending, subject.has_clusters
    if workers.executor == "inline":
        size, limit = subject.num_reference, job.labels.memory_gib
        fitting = num_fitting(plan, machine, limit, num_reference=size, has_clusters=clusters)
        number = min(workers.total, fitting, max(1, len(pending)))
        workers = own_workers(machine, workers.num_threads, number)
    memory_for = _memory_by_workers(job, machine, subject)
    require_memory(memory_for(workers), workers, machine)
    written, left = subject.store_bytes()
    free = require_disk(job.output.dir, left, plan)
    reference, blocks = subject.calibrated_reference()
    order = subject.order_of(reference)
    data_s = time.monotonic() - started
    found = Calibration({}, 0.0)
    if pending:
        on_step(f"plan: calibrating by {seconds:g} s of labels, once the workers are warm")
        settings = CalibrationSettings(
            calibrated_devices(workers, machine),
            num_threads=job.labels.num_threads,
            memory_gib=job.labels.memory_gib,
            seconds=seconds,
            niceness=RAY_NICENESS if workers.executor == "ray" else 0,
        )
        found = calibrate(plan, reference, settings, order=order, queries=subject.queries)
    paces = {kind: _of_blocks(pace, blocks) for kind, pace in found.paces.items()}
    if paces:
        commit = max(pace.commit_bytes for pace in paces.values())
        written = replace(written, commits=round(commit * plan.num_shards))
        left = replace(left, commits=round(commit * len(pending)))
        data_s += subject.fits_grid * FIT_ROWS * min(pace.seconds_per_row for pace in paces.values())
    chosen = _choice(job, machine, workers, subject, paces)
    if chosen is not None and chosen.executor == "inline":
        workers = own_workers(machine, workers.num_threads, chosen.num_processes)
    memory = memory_for(workers)
    spent = time_of(subject.rows_left, plan, workers, paces, data_s=data_s, pads=not clusters)
    return Estimate(
        output=job.output.dir,
        work=_work(subject, paces, job),
        written=written,
        left=left,
        free_bytes=free,
        memory=memory,
        workers=workers,
        time=spent,
        cost=None if price is None else cost_of(spent, workers, price),
        paces=paces,
        notes=(
            *_notes(job, workers, machine, memory, subject, blocks),
            *_file_notes(subject, paces),
            *_load_notes(workers, machine, paces, found.other_cpus, spent),
        ),
        chosen="" if chosen is None else chosen.words,
        read_as=subject.read_as,
        columns=tuple(subject.columns),
    )


def _memory_by_workers(job: Job, machine: Machine, subject: _Subject) -> Callable[[Workers], RunMemory]:
    return partial(
        memory_of,
        subject.plan,
        machine=machine,
        num_reference=subject.num_reference,
        has_clusters=subject.has_clusters,
        driver_bytes=resident_memory(),
        memory_gib=job.labels.memory_gib,
    )


def _choice(
    job: Job, machine: Machine, workers: Workers, subject: _Subject, paces: Mapping[DeviceKind, Pace]
) -> Choice | None:
    """By whom a run would have the labels made; None where none are left."""
    if not paces:
        return None
    alone_s = sum(subject.rows_left) * min(pace.seconds_per_row for pace in paces.values())
    why = why_ray(job.executor, num_workers=job.train.num_workers)
    return choose(job.executor, alone_s, num_processes=workers.total, num_gpus=len(machine.gpus), why=why)


def _of_blocks(pace: Pace, blocks: float) -> Pace:
    """The pace with so many times the reference that it was measured with."""
    return replace(
        pace,
        seconds_per_row=pace.seconds_per_row * blocks,
        pairs_per_row=pace.pairs_per_row * blocks,
        open_s=pace.open_s * blocks,
    )


def _existing_store(job: Job) -> Pairs | None:
    from sfg_dist.store import Location, open_pairs

    url = f"{job.output.dir.rstrip('/')}/pairs.zarr"
    if "://" not in url and not Path(url).is_dir():
        return None
    if "://" not in url:
        Location(job.output.dir).look("pairs.zarr")  # refuses a link
    return open_pairs(url) if Location(url).exists("plan.json") else None


def _work(subject: _Subject, paces: Mapping[DeviceKind, Pace], job: Job) -> Work:
    counted = job.labels.solver_tolerance is None
    pace, pairs_left = next(iter(paces.values()), None), sum(subject.rows_left)
    each = job.labels.num_evaluations if counted or pace is None else pace.evaluations_per_row
    return Work(
        num_shards=subject.plan.num_shards,
        shards_left=len(subject.pending),
        num_pairs=subject.plan.num_pairs,
        pairs_left=pairs_left,
        dim=subject.plan.dim,
        num_reference=subject.num_reference,
        score_evaluations=round(each * pairs_left),
        pairs_summed=0 if pace is None else round(pace.pairs_per_row * pairs_left),
        is_counted=counted,
    )


def _notes(
    job: Job, workers: Workers, machine: Machine, memory: RunMemory, subject: _Subject, blocks: float
) -> list[str]:
    notes = []
    if workers.is_elsewhere:
        notes.append(
            f"the actors of the cluster at {job.executor.address} are taken to be like this machine; the memory, "
            "CPUs and GPUs of the cluster were not looked at"
        )
        if job.executor.num_actors is None:
            notes.append(
                f"executor.num_actors is not given: as many as would fit on this machine were assumed, {workers.total}"
            )
    elif memory.total_bytes > machine.available_bytes:
        notes.append(
            f"{memory.total_bytes / GIB:.2f} GiB are needed, and {machine.available_bytes / GIB:.2f} GiB are free now"
        )
    if "://" in job.output.dir:
        notes.append("writing was timed on a local disk, not in the object store")
    if "cuda" in memory.actors and subject.num_reference > REFERENCE_BLOCK_ROWS and job.labels.tolerance > 0:
        notes.append(
            f"on GPUs every row of a reference of more than {REFERENCE_BLOCK_ROWS:,} rows is summed: "
            "labels.tolerance saves nothing there"
        )
    if blocks > 1:
        notes.append(
            f"the first {CALIBRATED_BLOCKS * REFERENCE_BLOCK_ROWS:,} rows of the reference were timed, and their times "
            f"were multiplied by {blocks:.1f} for all rows"
        )
    if subject.fits_grid:
        notes.append(
            f"the time grid is fitted first, for the work of about {FIT_ROWS} labels; it is counted with the data"
        )
    if job.labels.solver_tolerance is not None:
        notes.append(
            "with labels.solver_tolerance each row takes its own steps: the number of evaluations is from "
            "the calibration"
        )
    return notes


def _file_notes(subject: _Subject, paces: Mapping[DeviceKind, Pace]) -> list[str]:
    """What it takes that a reference of one block is larger than memory."""
    if subject.is_in_memory or not subject.plan.is_whole or not paces:
        return []
    rows, dim = subject.num_reference, subject.plan.dim
    size = reference_bytes(rows, dim, has_clusters=True, is_whole=True)
    seconds = max(pace.open_s for pace in paces.values())
    return [
        f"the reference is larger than labels.memory_gib: each node builds it in {duration(seconds)}, in a temporary "
        f"file of {size_of(size)}, beside {size_of(8 * rows * dim)} meanwhile; its rows stay in the file"
    ]


def _load_notes(
    workers: Workers, machine: Machine, paces: Mapping[DeviceKind, Pace], other_cpus: float, spent: Time
) -> list[str]:
    """What to know where other processes took CPU time from the calibration."""
    idle = machine.num_cpus - len(calibrated_devices(workers, machine)) * workers.num_threads
    if other_cpus <= idle + OTHER_CPUS:
        return []
    text = (
        f"other processes kept {other_cpus:.1f} CPUs busy during the calibration, so the times are those of a "
        "machine as busy as that"
    )
    if "cpu" in paces and len(paces) == 1 and workers.num_threads == 1:
        text += f"; without them, the label time would be about {spent.label_s * paces['cpu'].cpu_share:.0f} s"
    return [text]
