"""What each process of a calibration does.

It gets ready: it opens the store and labels a first batch, then larger ones up to the plan's own or to what the time
allows. Told to go, it labels batch after batch for the time given, and writes shards of the plan's size.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfg_dist.distributed.child import Message, Parent, serve
from sfg_dist.distributed.machine import peak_memory
from sfg_dist.job.fingerprint import fingerprint
from sfg_dist.job.plan import Plan
from sfg_dist.store import Frame, Pairs, create_store

TRIAL_ROWS, MEASURED_TRIAL_ROWS = 64, 256  # of the first batches
PROBES = 4  # shards that are written to time it
_LEAST_BATCHES = 3
_MAX_SHARDS = 4096  # that a calibration can get through


def trial_rows(plan: Plan) -> int:
    """Rows of the first batches: more under a measured certificate, which measures some rows of each batch again."""
    return MEASURED_TRIAL_ROWS if plan.is_whole else TRIAL_ROWS


def with_batches(plan: Plan, rows: int) -> Plan:
    """The same plan with shards of one batch of so many rows, enough of them where latents are drawn."""
    labels = {name: value for name, value in plan.labels.items() if name != "gpu_batch_size"}
    labels |= {"batch_size": rows, "shard_rows": rows}
    num_pairs = plan.num_pairs if plan.identity["queries"] else max(plan.num_pairs, _MAX_SHARDS * rows)
    return replace(plan, identity={**plan.identity, "labels": labels}, num_pairs=num_pairs, shard_rows=rows)


def with_reference(plan: Plan, reference: NDArray[np.float32]) -> Plan:
    """The same plan for another reference."""
    return replace(plan, identity={**plan.identity, "reference": fingerprint(reference)})


@dataclass(frozen=True)
class TrialTask:
    """What each process of a calibration is asked to do."""

    folder: str  # where the trial's store is
    plan: str  # the job's plan, as JSON
    number: int  # which process this is
    num_workers: int  # of how many
    device: str  # "cpu", or "cuda:i"
    num_threads: int  # of its labeler
    memory_gib: float | None
    seconds: float  # how long to label
    probe_rows: int  # rows of a shard that is written to time it
    niceness: int  # scheduling priority of the process; 0 leaves it
    started: float = 0.0  # when the process was started, seconds since 1970


@dataclass(frozen=True)
class Batch:
    """A batch of labels: rows, seconds of its integration and beside it, evaluations and pairs over all rows."""

    rows: int
    seconds: float
    other_s: float
    evaluations: float
    pairs: int


@dataclass(frozen=True)
class Trial:
    """What one process of a calibration found; see ``calibration.Pace``, whose figures are over all processes."""

    cpu_s: float  # CPU time of all that was measured, and ``label_cpu_s`` of the batches alone
    label_cpu_s: float
    device: str
    batches: Sequence[Batch]
    import_s: float
    open_s: float
    first_s: float  # of the first batch
    host_bytes: int
    device_bytes: int
    commit_bytes: int | None
    writes: Sequence[float]  # seconds of each probe
    check_s: float

    @classmethod
    def of(cls, answer: Message) -> Trial:
        """From a process's answer."""
        return cls(**{**answer, "batches": [Batch(**batch) for batch in answer["batches"]]})


def _work(parent: Parent) -> None:
    import torch

    from sfg_dist.distributed.labels.labeler import ShardLabeler

    imported = time.time()
    task = TrialTask(**parent.task)
    if task.niceness and hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, 0, task.niceness)
    folder, plan = Path(task.folder), Plan.from_json(task.plan.encode())
    device = torch.device(task.device.partition(":")[0])
    labeler = ShardLabeler(
        str(folder / "trial"), num_threads=task.num_threads, device=device, memory_gib=task.memory_gib
    )
    opened = time.time()
    shards = _own_shards(labeler.plan, task)
    labeler.label(next(shards))
    first_s = time.time() - opened
    record = labeler.label(next(shards))
    # Larger batches, until one takes a good part of the time or is the plan's own.
    rows, wanted = trial_rows(plan), plan.batch_rows(device.type)
    while rows < wanted and record["seconds"] < task.seconds / 8:
        room = task.seconds / 4 / max(record["seconds"], 1e-4)
        rows = min(wanted, max(2, int(room)) * rows)
        # The labeler goes on in another store, with the reference that it has prepared already.
        labeler.pairs = _make_store(folder / f"batches-{task.number}-{rows}", with_batches(plan, rows))
        labeler.plan = labeler.pairs.plan
        shards = _own_shards(labeler.plan, task)
        record = labeler.label(next(shards))
    probes = _make_store(
        folder / f"probes-{task.number}", replace(plan, num_pairs=PROBES * task.probe_rows, shard_rows=task.probe_rows)
    )
    parent.answer()
    parent.wait()

    batches: list[Batch] = []
    started, used = time.perf_counter(), time.process_time()
    for shard in shards:
        begun = time.perf_counter()
        record = labeler.label(shard)
        seconds, rows = record["seconds"], record["rows"][1] - record["rows"][0]
        other_s = time.perf_counter() - begun - seconds
        batches.append(Batch(rows, seconds, other_s, record["evaluations"] * rows, record["pairs"]))
        if time.perf_counter() - started >= task.seconds and len(batches) >= _LEAST_BATCHES:
            break
    label_cpu_s = time.process_time() - used
    writes, check_s = _time_writes(probes)
    trial = Trial(
        cpu_s=time.process_time() - used,
        label_cpu_s=label_cpu_s,
        device=record["device"],
        batches=batches,
        import_s=imported - task.started,
        open_s=opened - imported,
        first_s=first_s,
        host_bytes=peak_memory(),
        device_bytes=torch.cuda.max_memory_reserved() if device.type == "cuda" else 0,
        commit_bytes=labeler.pairs.location.size(f"commits/{record['shard']:08d}.json"),
        writes=writes,
        check_s=check_s,
    )
    parent.answer(**asdict(trial))


def _own_shards(plan: Plan, task: TrialTask) -> Iterator[int]:
    """This worker's shards, all over the plan; neighbours follow each other, so that directions take turns."""
    twos = np.random.default_rng(0).permutation(min(plan.num_shards, _MAX_SHARDS) // 2 + 1)
    for two in twos[task.number :: task.num_workers]:
        yield from (shard for shard in (2 * int(two), 2 * int(two) + 1) if shard < plan.num_shards)


def _make_store(path: Path, plan: Plan) -> Pairs:
    """A store for shards alone: what it holds as its reference is never read."""
    placeholder = np.zeros((1, plan.dim), np.float32)
    plan = with_reference(plan, placeholder)
    return create_store(path, plan, Frame(placeholder, {}, {}))


def _time_writes(pairs: Pairs) -> tuple[list[float], float]:
    """Seconds of each write of a shard but the first, and of a check whether one is done."""
    rows = np.random.default_rng(0).standard_normal((pairs.plan.shard_rows, pairs.plan.dim), dtype=np.float32)
    writes = []
    for shard in range(pairs.plan.num_shards):
        started = time.perf_counter()
        pairs.write_shard(shard, rows, rows)
        writes.append(time.perf_counter() - started)
    started = time.perf_counter()
    for shard in range(pairs.plan.num_shards):
        pairs.is_done(shard)
    return writes[1:], (time.perf_counter() - started) / pairs.plan.num_shards


if __name__ == "__main__":
    serve(_work)
