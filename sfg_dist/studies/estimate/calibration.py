"""A calibration: the pace of this machine, from the real labeler at work on the real reference for a few seconds.

It lays out a store of its own in a temporary directory, with the plan's identity, reference and settings but shards of
one batch. As many processes as the run will have here, or as there are CPUs, open it as actors do. They label for a
while all at once, so that they slow each other down as actors would, and write shards of the plan's own size. What a
run pays once (imports, opening, clusters, the first batch) is measured apart. Nothing touches the job's own store.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfg_dist.distributed.child import Child, Message
from sfg_dist.distributed.labels.worker_count import DeviceKind, Workers
from sfg_dist.distributed.machine import Machine
from sfg_dist.distributed.nodes import workers_per_gpu
from sfg_dist.job.errors import ConfigError, LabelingError
from sfg_dist.job.paths import free_disk
from sfg_dist.job.plan import REFERENCE_BLOCK_ROWS, Plan
from sfg_dist.job.words import GIB
from sfg_dist.store import Frame, create_store
from sfg_dist.studies.estimate import calibration_process
from sfg_dist.studies.estimate.calibration_process import (
    PROBES,
    Trial,
    TrialTask,
    trial_rows,
    with_batches,
    with_reference,
)

CALIBRATION_S = 4.0
_QUERY_BATCHES = 64  # at least so many of the user's own query points, repeated where there are fewer
_PROBE_BYTES = 32 << 20  # of an array of a shard that is written as a probe
_ROOM = 64 << 20  # in the temporary directory, beside the reference and the probes


@dataclass(frozen=True)
class Pace:
    """How fast one worker of a kind is while the others work too."""

    device: str  # what it ran on
    seconds_per_row: float  # integration, draws included
    evaluations_per_row: float  # of the posterior mean
    pairs_per_row: float  # pairs of a latent and a reference summed one by one
    spread: float  # half the width between the 10th and 90th percentile of single batches, relative to the mean
    write_s: float  # seconds to write, read back and commit a whole shard
    check_s: float  # seconds to check one committed shard
    import_s: float  # from the start of the process until everything is imported
    open_s: float  # until the store is open and the reference prepared
    first_s: float  # what the first batch took beyond a later one: compiled code, and what is built at first use
    host_bytes: int  # peak resident size of the process
    device_bytes: int  # peak memory reserved on its GPU; 0 on a CPU
    commit_bytes: float  # of a commit record
    cpu_share: float  # CPU time over time at work; what is missing to 1 went to other processes, or to waiting
    num_rows: int  # rows integrated, over all workers of the kind
    num_workers: int  # workers of the kind that ran at once


@dataclass(frozen=True)
class Calibration:
    """What a calibration found: the pace of one worker of each kind, and CPUs that other processes kept busy."""

    paces: dict[DeviceKind, Pace]
    other_cpus: float


@dataclass(frozen=True)
class CalibrationSettings:
    """How to calibrate."""

    devices: Sequence[str]  # of each process: "cpu", or "cuda:i"; a GPU may serve several
    num_threads: int = 1  # CPU threads of each
    memory_gib: float | None = None  # memory that each may hold resident; None for what there is
    seconds: float = CALIBRATION_S  # how long to integrate once all are ready
    niceness: int = 0  # scheduling priority of each, as the run's own workers will have


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


def calibrate(
    plan: Plan,
    reference: NDArray[np.float32],
    settings: CalibrationSettings,
    *,
    order: NDArray[np.int64] | None = None,
    queries: NDArray[np.float32] | None = None,
) -> Calibration:
    """Label real batches of a plan in processes of their own, all at once.

    The transformed reference is float32, shape (num_reference, dim), with its order in clusters where labels use some.
    ``queries`` are the user's own query points, or None.

    Raises:
        ConfigError: the temporary directory has no room.
        LabelingError: a process failed.
    """
    devices = settings.devices
    probe_rows = max(1, min(plan.shard_rows, plan.num_pairs, _PROBE_BYTES // (4 * plan.dim)))
    probe_bytes = 8 * probe_rows * plan.dim * PROBES * len(devices)
    _require_room(reference.nbytes + (order.nbytes if order is not None else 0) + probe_bytes + _ROOM)
    if "cpu" in devices:
        _compile_kernels(plan)
    scale = min(plan.shard_rows, plan.num_pairs) / probe_rows
    if queries is not None:
        batches = max(_QUERY_BATCHES, 8 * len(devices))
        queries = np.resize(queries, (max(len(queries), batches * plan.labels["batch_size"]), plan.dim))
        plan = replace(plan, num_pairs=len(queries))
    with tempfile.TemporaryDirectory(prefix="sfg-plan-") as folder:
        trial = with_batches(with_reference(plan, reference), trial_rows(plan))
        block_rows = len(reference) if plan.is_whole else REFERENCE_BLOCK_ROWS
        cuts = range(block_rows, len(reference), block_rows)
        orders = iter([] if order is None else np.split(order, cuts))  # of each block
        create_store(
            Path(folder, "trial"),
            trial,
            Frame(
                reference,
                {},
                {},
                queries=queries,
                block_rows=block_rows,
                make_order=(lambda _: next(orders)) if order is not None else None,
            ),
        )
        document = plan.to_json().decode()
        tasks = [
            TrialTask(
                folder=folder,
                plan=document,
                number=number,
                num_workers=len(devices),
                device=device,
                num_threads=settings.num_threads,
                memory_gib=settings.memory_gib,
                seconds=settings.seconds,
                probe_rows=probe_rows,
                niceness=settings.niceness,
            )
            for number, device in enumerate(devices)
        ]
        results, other_cpus = _run_trials(tasks)
    found: dict[DeviceKind, list[Trial]] = {}
    for device, result in sorted(zip(devices, results, strict=True), key=lambda pair: pair[0]):
        found.setdefault("cpu" if device == "cpu" else "cuda", []).append(result)
    return Calibration({kind: _pace_of(trials, scale, trial_rows(plan)) for kind, trials in found.items()}, other_cpus)


def _require_room(needed: int) -> None:
    free = free_disk(Path(tempfile.gettempdir()))
    if free < needed:
        raise ConfigError(
            f"the calibration needs {needed / GIB:.2f} GiB in the temporary directory {tempfile.gettempdir()}, which "
            f"has {free / GIB:.2f} GiB free: set TMPDIR to a directory with more room"
        )


def _compile_kernels(plan: Plan) -> None:
    """Compile what labels of these columns use on the CPU, and keep it for other processes and the run itself."""
    from sfg_dist.flow import label_latents
    from sfg_dist.flow.posterior.backends import SPARSE_ROWS

    rows = np.random.default_rng(0).standard_normal((2 * SPARSE_ROWS, plan.dim)).astype(np.float32)
    for tolerance in {plan.labels["tolerance"], 0.0}:
        label_latents(rows[:16], rows, t_min=plan.t_min, batch_size=16, tolerance=tolerance)


def _run_trials(tasks: Sequence[TrialTask]) -> tuple[list[Trial], float]:
    """What a process for each task finds, all measuring at once; and CPUs that other processes kept busy meanwhile."""
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(start_trial(task)) for task in tasks]
        for child in children:
            _next_answer(child)  # it is ready
        before, started = _busy_seconds(), time.perf_counter()
        for child in children:
            child.say()
        trials = [Trial.of(_next_answer(child)) for child in children]
        own = sum(trial.cpu_s for trial in trials)
        return trials, max(0.0, _busy_seconds() - before - own) / (time.perf_counter() - started)


def _busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used, and those that its host took away."""
    import psutil

    times = psutil.cpu_times()
    return float(sum(times[:3]) + sum(getattr(times, name, 0.0) for name in ("irq", "softirq", "steal")))


def start_trial(task: TrialTask) -> Child:
    """A process with the environment that Ray gives an actor."""
    environment = {"OMP_NUM_THREADS": str(task.num_threads)}
    kind, _, index = task.device.partition(":")
    if kind == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if visible != [""] else index
    return Child(calibration_process.__name__, replace(task, started=time.time()), environment)


def _next_answer(child: Child) -> Message:
    answer = next(child.answers, None)
    if answer is None:
        raise LabelingError(f"the calibration failed: {child.failure}")
    return answer


def _pace_of(trials: Sequence[Trial], scale: float, first_rows: int) -> Pace:
    """One pace of all workers of a kind.

    ``scale`` is the rows of a shard over those of a probe, and ``first_rows`` those of the first batch.
    """
    batches = [batch for trial in trials for batch in trial.batches]
    rows, seconds = sum(batch.rows for batch in batches), sum(batch.seconds for batch in batches)
    low, high = np.quantile([batch.seconds / batch.rows for batch in batches], [0.1, 0.9])
    per_row = seconds / rows
    writes = [seconds for trial in trials for seconds in trial.writes]
    return Pace(
        device=trials[0].device,
        seconds_per_row=per_row,
        evaluations_per_row=sum(batch.evaluations for batch in batches) / rows,
        pairs_per_row=sum(batch.pairs for batch in batches) / rows,
        spread=float(high - low) / 2 / per_row,
        # Between two integrations a write takes longer than after another, so those of single batches are a floor.
        write_s=max(scale * statistics.mean(writes), statistics.mean(batch.other_s for batch in batches)),
        check_s=statistics.median(trial.check_s for trial in trials),
        import_s=statistics.median(trial.import_s for trial in trials),
        open_s=statistics.median(trial.open_s for trial in trials),
        first_s=max(0.0, statistics.median(trial.first_s for trial in trials) - per_row * first_rows),
        host_bytes=max(trial.host_bytes for trial in trials),
        device_bytes=max(trial.device_bytes for trial in trials),
        commit_bytes=statistics.median(trial.commit_bytes or 0 for trial in trials),
        cpu_share=min(1.0, sum(trial.label_cpu_s for trial in trials) / seconds),
        num_rows=rows,
        num_workers=len(trials),
    )
