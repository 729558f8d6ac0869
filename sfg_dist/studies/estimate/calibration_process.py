"""What each process of a calibration does: it answers in lines of JSON, and waits for a line between two of them.

    python -m sfg_dist.studies.estimate.calibration_process TASK.json

It gets ready: the store opened, a first batch, then larger ones up to the plan's own or to what the time allows. Told
to go, it labels batch after batch for the time given, and writes shards of the plan's size.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.distributed.machine import peak_memory
from sfg_dist.job.plan import Plan, fingerprint
from sfg_dist.store import Frame, Pairs, create_store

TRIAL_ROWS = 64  # of the first batches
PROBES = 4  # shards that are written to time it
_LEAST_BATCHES = 3
_MAX_SHARDS = 4096  # that a calibration can get through


def with_batches(plan: Plan, rows: int) -> Plan:
    """The same plan with shards of one batch of so many rows, enough of them where latents are drawn."""
    labels = {name: value for name, value in plan.labels.items() if name != "gpu_batch_size"}
    labels |= {"batch_size": rows, "shard_rows": rows}
    num_pairs = plan.num_pairs if plan.identity["queries"] else max(plan.num_pairs, _MAX_SHARDS * rows)
    return replace(plan, identity={**plan.identity, "labels": labels}, num_pairs=num_pairs, shard_rows=rows)


def with_reference(plan: Plan, reference: NDArray[np.float32]) -> Plan:
    """The same plan for another reference."""
    return replace(plan, identity={**plan.identity, "reference": fingerprint(reference)})


def _work(task: Mapping[str, Any]) -> None:
    """What a worker does; it answers in lines of JSON and waits for a line between getting ready and measuring."""
    import torch

    from sfg_dist.distributed.labels.labeler import ShardLabeler

    imported = time.time()
    folder, number, seconds = Path(task["folder"]), task["number"], task["seconds"]
    plan = Plan.from_json(task["plan"].encode())
    budget = {} if task["memory_gib"] is None else {"memory_gib": task["memory_gib"]}
    device = torch.device(task["device"].partition(":")[0])
    labeler = ShardLabeler(str(folder / "trial"), num_threads=task["num_threads"], device=device, **budget)
    opened = time.time()
    shards = _own_shards(labeler.plan, task)
    labeler.label(next(shards))
    first = time.time() - opened
    record = labeler.label(next(shards))
    # Larger batches, until one takes a good part of the time or is the plan's own.
    rows, wanted = TRIAL_ROWS, plan.batch_rows(device.type)
    while rows < wanted and record["seconds"] < seconds / 8:
        room = seconds / 4 / max(record["seconds"], 1e-4)
        rows = min(wanted, max(2, int(room)) * rows)
        _enter(labeler, with_batches(plan, rows), folder / f"batches-{number}-{rows}")
        shards = _own_shards(labeler.plan, task)
        record = labeler.label(next(shards))
    probes = _make_store(
        folder / f"probes-{number}",
        replace(plan, num_pairs=PROBES * task["probe_rows"], shard_rows=task["probe_rows"]),
    )
    _answer("ready", {})
    sys.stdin.readline()

    batches: list[tuple[int, float, float, int]] = []
    others: list[float] = []  # seconds beside the integration
    started, used = time.perf_counter(), time.process_time()
    for shard in shards:
        begun = time.perf_counter()
        record = labeler.label(shard)
        others.append(time.perf_counter() - begun - record["seconds"])
        start, stop = record["rows"]
        batches.append((stop - start, record["seconds"], record["evaluations"] * (stop - start), record["pairs"]))
        if time.perf_counter() - started >= seconds and len(batches) >= _LEAST_BATCHES:
            break
    label_cpu_s = time.process_time() - used
    writes = _time_writes(probes)
    _answer(
        "result",
        {
            "cpu_s": time.process_time() - used,
            "label_cpu_s": label_cpu_s,
            "device": record["device"],
            "batches": batches,
            "others": others,
            "import_s": imported - float(os.environ["SFG_CALIBRATION_STARTED"]),
            "open_s": opened - imported,
            "first_s": first,
            "host_bytes": peak_memory(),
            "device_bytes": torch.cuda.max_memory_reserved() if device.type == "cuda" else 0,
            "commit_bytes": labeler.pairs.location.size(f"commits/{record['shard']:08d}.json"),
            **writes,
        },
    )


def _own_shards(plan: Plan, task: Mapping[str, Any]) -> Iterator[int]:
    """This worker's shards, all over the plan; neighbours follow each other, so that directions take turns."""
    twos = np.random.default_rng(0).permutation(min(plan.num_shards, _MAX_SHARDS) // 2 + 1)
    for two in twos[task["number"] :: task["num_workers"]]:
        yield from (shard for shard in (2 * int(two), 2 * int(two) + 1) if shard < plan.num_shards)


def _enter(labeler: Any, plan: Plan, path: Path) -> None:
    """Let a labeler go on in another store, with the reference that it has prepared already."""
    labeler.pairs = _make_store(path, plan)
    labeler.plan = labeler.pairs.plan


def _make_store(path: Path, plan: Plan) -> Pairs:
    """A store for shards alone: what it holds as its reference is never read."""
    placeholder = np.zeros((1, plan.dim), np.float32)
    plan = with_reference(plan, placeholder)
    return create_store(path, plan, Frame(placeholder, {}, {}))


def _time_writes(pairs: Pairs) -> dict[str, Any]:
    """Seconds of each write of a shard, and of a check whether one is done."""
    rows = np.random.default_rng(0).standard_normal((pairs.plan.shard_rows, pairs.plan.dim), dtype=np.float32)
    writes = []
    for shard in range(pairs.plan.num_shards):
        started = time.perf_counter()
        pairs.write_shard(shard, rows, rows)
        writes.append(time.perf_counter() - started)
    started = time.perf_counter()
    for shard in range(pairs.plan.num_shards):
        pairs.is_done(shard)
    return {"writes": writes[1:], "check_s": (time.perf_counter() - started) / pairs.plan.num_shards}


def _answer(key: str, value: Any) -> None:
    print(json.dumps({key: value}), flush=True)


if __name__ == "__main__":
    _work(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
