"""What a job will take, before anything is spent: shards, bytes, memory, evaluations, time and cost.

Nothing is written into output.dir and Ray is not needed: the pace of a worker, and what it pays once, come from a
calibration on this machine (``calibration``), the time of the label stage from them (``run_time``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfg_dist.distributed.labels.requirements import (
    DeviceKind,
    Memory,
    Workers,
    choose_workers,
    memory_of,
    require_budget,
    require_disk,
    require_memory,
    require_output,
)
from sfg_dist.distributed.labels.sizes import EVENT_BYTES, StoreBytes, store_bytes
from sfg_dist.distributed.machine import Machine, this_machine
from sfg_dist.distributed.places import workers_per_gpu
from sfg_dist.job.config import Job
from sfg_dist.job.plan import REFERENCE_BLOCK_ROWS, Plan
from sfg_dist.pipeline.check import check_job
from sfg_dist.pipeline.plan import frame_of, plan_of
from sfg_dist.pipeline.table import prepare_table
from sfg_dist.store import RowBlocks, object_bytes
from sfg_dist.studies.estimate.calibration import CALIBRATION_S, Pace, calibrate
from sfg_dist.studies.estimate.run_time import Cost, Time, cost_of, time_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.store import Frame, Pairs

RAY_NICENESS = 15  # of its workers: they give way to other processes
OTHER_CPUS = 0.2  # that others may take from the workers before it is said
FIT_ROWS = 4600  # labels' work that a fitted time grid costs, see flow.fit_time_grid


@dataclass(frozen=True)
class Work:
    """What there is to do.

    Attributes:
        num_shards: of the whole store; ``shards_left`` of them are still to do.
        num_pairs: likewise, and ``pairs_left``.
        dim: columns as the flow sees them.
        num_reference: rows behind the score.
        score_evaluations: of what is left, rows times evaluations.
        pairs_summed: of a latent and a reference, in what is left; from the calibration.
        is_counted: whether the evaluations are fixed by the job; with step control they are from the calibration.
    """

    num_shards: int
    shards_left: int
    num_pairs: int
    pairs_left: int
    dim: int
    num_reference: int
    score_evaluations: int
    pairs_summed: int
    is_counted: bool


@dataclass(frozen=True)
class Estimate:
    """Everything that ``sfg plan`` says.

    Attributes:
        output: output.dir of the job.
        work: what there is to do.
        written: bytes of the whole store.
        left: bytes still to be written.
        free_bytes: where they go; None for an object store.
        memory: of actors and driver.
        workers: who does it.
        time: how long it takes.
        cost: None without executor.price_per_hour.
        paces: the calibration, by kind of device; empty where nothing is left to do.
        notes: what to know about the figures.
        read_as: how the table was read, in words.
    """

    output: str
    work: Work
    written: StoreBytes
    left: StoreBytes
    free_bytes: int | None
    memory: Memory
    workers: Workers
    time: Time
    cost: Cost | None
    paces: dict[DeviceKind, Pace]
    notes: tuple[str, ...]
    read_as: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The estimate as a JSON document."""
        document = asdict(self)
        for name, size in (("written", self.written), ("left", self.left)):
            document[name] |= {"arrays": size.arrays, "total": size.total}
        return document


def estimate_job(
    job: Job,
    *,
    machine: Machine | None = None,
    seconds: float = CALIBRATION_S,
    on_step: Callable[[str], None] = lambda _: None,
) -> Estimate:
    """What a job will take to label.

    Args:
        job: the checked job.
        machine: what there is; this machine by default.
        seconds: length of the calibration once it is warm.
        on_step: told in words what goes on.

    Raises:
        ConfigError: something cannot fit; the message names the keys and values that would.
        DataError: the table cannot be used.
        PlanMismatchError: output.dir holds pairs of another plan.
    """
    from sfg_dist.distributed.labels.ordering import order_with_threads

    check_job(job)
    require_output(job.output.dir)
    machine = machine or this_machine()
    workers = choose_workers(job, machine)
    require_budget(job)
    on_step("data: reading and preparing the table")
    started = time.monotonic()
    prepared = prepare_table(job)
    frame = frame_of(job, prepared, order_with_threads)
    pairs = _existing_store(job)
    fits_grid = job.labels.time_grid == "fitted" and pairs is None
    planned = _graded(job) if fits_grid else job
    plan = plan_of(planned, prepared, frame, existing=None if pairs is None else pairs.plan)
    if pairs is not None:
        pairs.require_plan(plan)
        plan = pairs.plan
    pending = list(range(plan.num_shards)) if pairs is None else pairs.pending()
    num_reference, has_clusters = prepared.num_train, frame.make_order is not None
    memory = memory_of(
        plan,
        workers,
        machine,
        num_reference=num_reference,
        has_clusters=has_clusters,
        driver_bytes=_resident_bytes(),
        memory_gib=job.labels.memory_gib,
    )
    require_memory(memory, workers, machine)
    written = store_bytes(
        plan,
        num_reference=num_reference,
        has_order=has_clusters,
        transform_arrays=frame.transform_arrays,
        transform_metadata=frame.transform_metadata,
        num_queries=None if frame.queries is None else RowBlocks.of(frame.queries).num_rows,
    )
    left = written if pairs is None else _bytes_left(plan, written, pending)
    free = require_disk(job.output.dir, left, plan)
    reference, blocks = _calibrated_reference(frame)
    order = _order_of(frame, reference) if pending else None
    data_s = time.monotonic() - started
    paces: dict[DeviceKind, Pace] = {}
    other_cpus = 0.0
    if pending:
        on_step(f"calibration: {seconds:g} s of labels once the workers are warm")
        devices = calibrated_devices(workers, machine)
        found = calibrate(
            plan,
            reference,
            order=order,
            queries=None if frame.queries is None else _held(frame.queries),
            devices=devices,
            num_threads=job.labels.num_threads,
            memory_gib=job.labels.memory_gib,
            seconds=seconds,
            niceness=RAY_NICENESS if workers.executor == "ray" else 0,
        )
        paces = {kind: _of_blocks(pace, blocks) for kind, pace in found.paces.items()}  # type: ignore[misc]
        other_cpus = found.other_cpus
    commit = max((pace.commit_bytes for pace in paces.values()), default=0.0)
    written, left = (
        replace(size, commits=round(commit * number)) if commit else size
        for size, number in ((written, plan.num_shards), (left, len(pending)))
    )
    if fits_grid and paces:
        data_s += FIT_ROWS * min(pace.seconds_per_row for pace in paces.values())
    rows = [stop - start for start, stop in map(plan.shard_range, pending)]
    spent = time_of(rows, plan, workers, paces, data_s=data_s, pads=not has_clusters)
    load = _load_notes(workers, machine, paces, other_cpus, spent)
    price = job.executor.price_per_hour
    return Estimate(
        output=job.output.dir,
        work=_work(plan, rows, num_reference, paces, job),
        written=written,
        left=left,
        free_bytes=free,
        memory=memory,
        workers=workers,
        time=spent,
        cost=None if price is None else cost_of(spent, workers, price),
        paces=paces,
        notes=(*_notes(job, workers, machine, memory, fits_grid, num_reference, blocks), *load),
        read_as=prepared.report["read_as"],
    )


def calibrated_devices(workers: Workers, machine: Machine) -> list[str]:
    """The device of each process of a calibration: as many as the run has here, as far as CPUs and GPUs go."""
    devices: list[str] = []
    if number := workers.num_actors.get("cuda", 0):
        each = workers.num_gpus_per_actor
        share = workers_per_gpu(each)
        whole = max(1, round(each))
        places = [f"cuda:{gpu}" for gpu in range(0, len(machine.gpus) - whole + 1, whole) for _ in range(share)]
        devices += places[:number]
    room = max(1, machine.num_cpus // workers.num_threads - len(devices))
    devices += ["cpu"] * min(workers.num_actors.get("cpu", 0), room)
    return devices


def _calibrated_reference(frame: Frame) -> tuple[NDArray[np.float32], float]:
    """The reference that a calibration looks at, and how many times as large the real one is.

    One that is larger than memory is looked at by its first block: each block has clusters of its own, and rows come
    in no order, so that all blocks cost the same.
    """
    if not isinstance(frame.reference, RowBlocks):
        return frame.reference, 1.0
    first = next(frame.reference.cut(REFERENCE_BLOCK_ROWS))
    return first, frame.reference.num_rows / len(first)


def _order_of(frame: Frame, reference: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """The clusters' order of what a calibration looks at."""
    if frame.make_order is None:
        return None
    return np.concatenate(list(replace(frame, reference=reference).orders()))


def _of_blocks(pace: Pace, blocks: float) -> Pace:
    """The pace with so many times the reference that it was measured with."""
    return replace(
        pace,
        seconds_per_row=pace.seconds_per_row * blocks,
        pairs_per_row=pace.pairs_per_row * blocks,
        open_s=pace.open_s * blocks,
    )


def _held(queries: NDArray[np.float32] | RowBlocks) -> NDArray[np.float32]:
    assert isinstance(queries, np.ndarray)
    return queries


def _graded(job: Job) -> Job:
    """The job on the default grid, which costs as many evaluations as one that is fitted first."""
    return job.changed(labels={"time_grid": "graded"})


def _existing_store(job: Job) -> Pairs | None:
    from sfg_dist.store import Location, open_pairs

    url = f"{job.output.dir.rstrip('/')}/pairs.zarr"
    if "://" not in url and not Path(url).is_dir():
        return None
    if "://" not in url:
        Location(job.output.dir).look("pairs.zarr")  # refuses a link
    return open_pairs(url) if Location(url).exists("plan.json") else None


def _bytes_left(plan: Plan, written: StoreBytes, pending: Sequence[int]) -> StoreBytes:
    """The frame is there already; shards that are left are written whole."""
    shards = sum(object_bytes(plan, shard) for shard in pending)
    return StoreBytes(
        latents=shards,
        labels=shards,
        reference=0,
        order=0,
        transform=0,
        queries=0,
        metadata=0,
        commits=round(written.commits * len(pending) / plan.num_shards),
        logs=len(pending) * EVENT_BYTES + 4096,
    )


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _work(plan: Plan, rows: Sequence[int], num_reference: int, paces: Mapping[DeviceKind, Pace], job: Job) -> Work:
    counted = job.labels.solver_tolerance is None
    pace = next(iter(paces.values()), None)
    each = job.labels.num_evaluations if counted or pace is None else pace.evaluations_per_row
    return Work(
        num_shards=plan.num_shards,
        shards_left=len(rows),
        num_pairs=plan.num_pairs,
        pairs_left=sum(rows),
        dim=plan.dim,
        num_reference=num_reference,
        score_evaluations=round(each * sum(rows)),
        pairs_summed=0 if pace is None else round(pace.pairs_per_row * sum(rows)),
        is_counted=counted,
    )


def _notes(
    job: Job, workers: Workers, machine: Machine, memory: Memory, fits_grid: bool, num_reference: int, blocks: float
) -> list[str]:
    notes = []
    if workers.is_elsewhere:
        notes.append(
            f"actors run on the cluster at {job.executor.address} and are taken to be like this machine; its memory, "
            f"CPUs and GPUs were not looked at"
        )
        if job.executor.num_actors is None:
            notes.append(f"executor.num_actors is not given: {workers.total} were assumed, as this machine would hold")
    elif memory.total_bytes > machine.available_bytes:
        notes.append(
            f"{memory.total_bytes / 2**30:.2f} GiB are needed, and {machine.available_bytes / 2**30:.2f} GiB of memory "
            f"are free now"
        )
    if "://" in job.output.dir:
        notes.append("writing was timed on a local disk, not in the object store")
    if "cuda" in memory.actors and num_reference > REFERENCE_BLOCK_ROWS and job.labels.tolerance > 0:
        notes.append(
            f"on GPUs a reference of more than {REFERENCE_BLOCK_ROWS:,} rows is summed row by row: labels.tolerance "
            f"saves nothing there yet"
        )
    if blocks > 1:
        notes.append(
            f"the reference is larger than labels.memory_gib: its first {REFERENCE_BLOCK_ROWS:,} rows were looked at, "
            f"and the pace is theirs over {blocks:.1f}"
        )
    if fits_grid:
        notes.append(f"the time grid is fitted first: about {FIT_ROWS} labels' work, counted with the data")
    if job.labels.solver_tolerance is not None:
        notes.append("with labels.solver_tolerance each row takes its own steps: evaluations are from the calibration")
    return notes


def _load_notes(
    workers: Workers, machine: Machine, paces: Mapping[DeviceKind, Pace], other_cpus: float, spent: Time
) -> list[str]:
    """What to know where other processes took CPUs from the calibration."""
    idle = machine.num_cpus - len(calibrated_devices(workers, machine)) * workers.num_threads
    if other_cpus <= idle + OTHER_CPUS:
        return []
    text = (
        f"other processes kept {other_cpus:.1f} CPUs busy during the calibration, and the times are those of a machine "
        f"as busy as that"
    )
    if "cpu" in paces and len(paces) == 1 and workers.num_threads == 1:
        text += f"; alone on it, the label time is about {spent.label_s * paces['cpu'].cpu_share:.0f} s"
    return [text]
