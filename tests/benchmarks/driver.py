"""What the driver adds to the labels: shards a second through its loop, a shard's way to the disk, time lost.

    .venv/bin/python tests/benchmarks/driver.py [--quick] [--only rate write overhead]

``rate``: actors whose labeler computes nothing and writes no arrays, only commit records. ``write``: one shard written,
waited for, read back and committed. ``overhead``: what two actors are there for, from their first readiness to the end,
over the integration time in the commit records; starting up is told apart.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np

from sfg_dist.distributed.cluster import ray_session
from sfg_dist.distributed.labels import pace
from sfg_dist.distributed.labels.actors import label_with_actors
from sfg_dist.distributed.labels.events import LabelEvent, ShardDone, WorkerStarted
from sfg_dist.distributed.labels.labeler import ShardLabeler
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.job.config import ExecutorConfig, resolve_job
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import Pairs, open_pairs

PARTS = ("rate", "write", "overhead")
NUM_ACTORS = 2
ACTORS = ExecutorConfig(num_actors=NUM_ACTORS).model_copy(update={"num_gpus_per_actor": 0})
SHARD_S = 10.0
SHAPES = ((4096, 8), (65_536, 8), (65_536, 64))


class CommitLabeler:
    """Creates commit records and does nothing else."""

    def __init__(self, url: str, *, num_threads: int = 1) -> None:
        self.pairs = open_pairs(url)
        self.origin = {"host": socket.gethostname(), "pid": os.getpid()}

    def label(self, shard: int, attempt: int = 1) -> dict[str, Any]:
        record = {"shard": shard, "rows": list(self.pairs.plan.shard_range(shard)), "attempt": attempt, **self.origin}
        key = f"commits/{shard:08d}.json"
        self.pairs.location.create(key, json.dumps(record).encode())
        self.pairs.location.flush(key)
        return record


def make_store(directory: Path, *, num_shards: int, shard_rows: int, batch_size: int = 64, **labels: Any) -> Pairs:
    job = resolve_job(
        {
            "data": {"source": "moons", "max_rows": 10_000},
            "labels": {
                "num_pairs": num_shards * shard_rows,
                "shard_rows": shard_rows,
                "batch_size": batch_size,
                **labels,
            },
            "output": {"dir": str(directory)},
        }
    )
    return Pipeline(job).open_store()


class Clock:
    """When workers were ready and shards done."""

    def __init__(self) -> None:
        self.ready: list[float] = []
        self.done: list[float] = []
        self.seconds: list[float] = []

    def __call__(self, event: LabelEvent) -> None:
        if isinstance(event, WorkerStarted):
            self.ready.append(time.perf_counter())
        elif isinstance(event, ShardDone):
            self.done.append(time.perf_counter())
            self.seconds.append(event.record.get("seconds", 0.0))


def rate(directory: Path, quick: bool, call_shards: int) -> dict[str, Any]:
    """Shards a second from the time when all actors are there, at most so many shards a call."""
    pairs = make_store(directory / f"rate-{call_shards}", num_shards=2000 if quick else 20_000, shard_rows=64)
    alone = CommitLabeler(str(pairs.location.url))
    last = pairs.plan.num_shards - 1
    commit_s = common.median(common.seconds(partial(alone.label, last - n)) for n in range(100))
    clock = Clock()
    most, pace.MAX_CALL_SHARDS = pace.MAX_CALL_SHARDS, call_shards
    cpu_s = time.process_time()
    label_with_actors(pairs.location.url, ACTORS, LabelSettings(labeler=CommitLabeler, on_event=clock))
    cpu_s = time.process_time() - cpu_s
    pace.MAX_CALL_SHARDS = most
    per_s = len(clock.done) / (clock.done[-1] - clock.ready[-1])
    return {
        "part": "rate",
        "call_shards": call_shards,
        "num_shards": len(clock.done),
        "shards_per_s": per_s,
        "driver_cpu_s": cpu_s / len(clock.done),
        "commit_s": commit_s,
    }


def write(directory: Path, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for number, (shard_rows, dim) in enumerate(SHAPES[:1] if quick else SHAPES):
        source = directory / f"table-{dim}.npy"
        np.save(source, np.random.default_rng(0).standard_normal((600, dim)))
        job = {
            "data": {"source": str(source)},
            "labels": {"num_pairs": 8 * shard_rows, "shard_rows": shard_rows, "batch_size": 64},
            "output": {"dir": str(directory / f"write-{number}")},
        }
        pairs = Pipeline(resolve_job(job)).open_store()
        tables = np.random.default_rng(1).standard_normal((2, shard_rows, dim), dtype=np.float32)
        times = [common.seconds(partial(pairs.write_shard, shard, *tables)) for shard in range(8)]
        size = 2 * tables[0].nbytes / 2**20
        rows.append({"part": "write", "rows": shard_rows, "dim": dim, "mib": size, "write_s": common.median(times)})
    return rows


def overhead(directory: Path, quick: bool) -> dict[str, Any]:
    trial = make_store(directory / "trial", num_shards=2, shard_rows=1024, batch_size=1024)
    labeler = ShardLabeler(str(trial.location.url))
    labeler.label(0)  # compiles
    seconds = labeler.label(1)["seconds"]
    wanted = 1.0 if quick else SHARD_S
    batches = max(1, round(wanted / seconds))
    num_shards = 6 if quick else 20
    pairs = make_store(directory / "overhead", num_shards=num_shards, shard_rows=1024 * batches, batch_size=1024)
    clock = Clock()
    begun = time.perf_counter()
    label_with_actors(pairs.location.url, ACTORS, LabelSettings(on_event=clock))
    end = clock.done[-1]
    there = sum(end - ready for ready in clock.ready)
    return {
        "part": "overhead",
        "num_shards": num_shards,
        "shard_s": common.median(clock.seconds),
        "start_s": clock.ready[-1] - begun,
        "wall_s": there / NUM_ACTORS,
        "integration_s": sum(clock.seconds) / NUM_ACTORS,
        "over": there / sum(clock.seconds) - 1,
    }


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    arguments = options.parse_args()
    common.start(arguments.threads)
    rows: list[dict[str, Any]] = []
    verdicts = []
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        if "write" in arguments.only:
            rows += write(directory, arguments.quick)
            common.show(
                "One shard written, waited for (fsync), read back and committed",
                ["rows", "columns", "MiB", "ms", "MiB/s"],
                ([r["rows"], r["dim"], r["mib"], 1e3 * r["write_s"], r["mib"] / r["write_s"]] for r in rows),
            )
        if {"rate", "overhead"} & set(arguments.only):
            with ray_session():
                if "rate" in arguments.only:
                    found = [rate(directory, arguments.quick, most) for most in (pace.MAX_CALL_SHARDS, 1)]
                    rows += found
                    common.show(
                        "Commit records only, 2 actors",
                        ["most shards a call", "shards", "shards/s", "driver's CPU a shard, ms", "a commit alone, ms"],
                        (
                            [
                                *(row[name] for name in ("call_shards", "num_shards", "shards_per_s")),
                                *(1e3 * row[name] for name in ("driver_cpu_s", "commit_s")),
                            ]
                            for row in found
                        ),
                    )
                    verdicts.append(common.Verdict("shards a second", found[0]["shards_per_s"], ">=", 500.0))
                if "overhead" in arguments.only:
                    row = overhead(directory, arguments.quick)
                    rows.append(row)
                    common.show(
                        "2 actors: time that they were there over the flow's own",
                        ["shards", "s a shard", "start, s", "wall, s", "integration / 2, s", "over, %"],
                        [
                            [
                                *(row[name] for name in ("num_shards", "shard_s", "start_s", "wall_s")),
                                row["integration_s"],
                                100 * row["over"],
                            ]
                        ],
                    )
                    verdicts.append(common.Verdict("wall time over integration, %", 100 * row["over"], "<=", 5.0))
    common.finish("driver", arguments.output, rows=rows, verdicts=verdicts, quick=arguments.quick)


if __name__ == "__main__":
    main()
