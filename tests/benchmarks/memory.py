"""A reference many times the memory budget, labelled within it: peak resident size, rate, and equality of bits.

    .venv/bin/python tests/benchmarks/memory.py [--memory-gib 0.75] [--times 10] [--dim 21] [--tolerance 1e-3]

A store of times * memory_gib GiB of rows is made under --scratch, which needs about six times that room, and one shard
of it is labelled by a process of its own. ``--compare`` labels it again by a process that holds all blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

GIB = 1 << 30
PART_ROWS = 1 << 18

# What a worker does; it prints one line of JSON.
WORKER = """
import json, os, sys, time, psutil, torch
torch.set_num_threads(1)
url, memory_gib = sys.argv[1], float(sys.argv[2]) or None
from sfg_dist.distributed.labels.labeler import ShardLabeler
from sfg_dist.distributed.machine import peak_memory
started = time.perf_counter()
labeler = ShardLabeler(url, memory_gib=memory_gib)
opened = time.perf_counter()
record = labeler.label(0)
ended = time.perf_counter()
labeler.close()
print(json.dumps({
    "peak_gib": peak_memory() / 2**30, "open_s": opened - started, "label_s": ended - opened,
    "streamed": record["blocks_streamed"], "blocks": record["blocks"], "tolerance": record["tolerance_reached"],
    "sha256": record["objects"]["labels"]["sha256"],
}))
"""


def rows_of(path: Path, num_rows: int, dim: int) -> np.memmap[Any, Any]:
    """A table on disk: pieces of planes with noise, written part by part."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((50, dim), dtype=np.float32)
    axes = rng.standard_normal((50, 3, dim), dtype=np.float32) / np.float32(dim**0.5)
    table = np.memmap(path, np.float32, mode="w+", shape=(num_rows, dim))
    for start in range(0, num_rows, PART_ROWS):
        size = min(PART_ROWS, num_rows - start)
        which = rng.integers(0, 50, size)
        flat = np.einsum("ni,nik->nk", rng.standard_normal((size, 3), dtype=np.float32), axes[which])
        noise = rng.standard_normal((size, dim), dtype=np.float32)
        table[start : start + size] = centers[which] + flat + np.float32(0.02) * noise
    return table


def make_store(directory: Path, arguments: argparse.Namespace, num_rows: int) -> str:
    from sfg_dist.distributed.labels.ordering import order_with_threads
    from sfg_dist.job.config import resolve_job
    from sfg_dist.job.fingerprint import fingerprint
    from sfg_dist.job.plan import Plan
    from sfg_dist.job.version import versions
    from sfg_dist.pipeline.plan import identity_of_keys
    from sfg_dist.store import Frame, create_store

    table = rows_of(directory / "rows.f32", num_rows, arguments.dim)
    job = resolve_job(
        {
            "data": {"source": "moons"},
            "labels": {
                "num_pairs": arguments.rows,
                "shard_rows": arguments.rows,
                "batch_size": arguments.rows,
                "t_min": 1e-3,
                "tolerance": arguments.tolerance,
                "num_evaluations": arguments.evaluations,
            },
        }
    )
    columns = tuple(f"x{k}" for k in range(arguments.dim))
    content = fingerprint(table)
    contents = {"table": content, "reference": content, "queries": None, "blur": {"t_min": job.labels.t_min}}
    size = (arguments.rows, arguments.dim, arguments.rows)
    plan = Plan(identity_of_keys(job) | contents, *size, columns, "moons", versions())
    create_store(
        directory / "pairs.zarr",
        plan,
        Frame(table, {}, {}, make_order=order_with_threads if arguments.tolerance > 0 else None),
    )
    (directory / "rows.f32").unlink()
    return str(directory / "pairs.zarr")


def work(url: str, memory_gib: float, scratch: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", WORKER, url, str(memory_gib)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(scratch)})
    result: dict[str, Any] = json.loads(output.stdout)
    return result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--memory-gib", type=float, default=0.75)
    options.add_argument("--times", type=float, default=10.0)
    options.add_argument("--dim", type=int, default=21)
    options.add_argument("--tolerance", type=float, default=1e-3)
    options.add_argument("--rows", type=int, default=64)
    options.add_argument("--evaluations", type=int, default=22)
    options.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    options.add_argument("--compare", action="store_true")
    arguments = options.parse_args()
    num_rows = int(arguments.times * arguments.memory_gib * GIB / (4 * arguments.dim))
    directory = Path(tempfile.mkdtemp(prefix="sfg_memory-", dir=arguments.scratch))
    try:
        started = time.perf_counter()
        url = make_store(directory, arguments, num_rows)
        print(f"store of {num_rows:,} rows of {arguments.dim} columns made in {time.perf_counter() - started:.0f} s")
        found = work(url, arguments.memory_gib, directory)
        size = num_rows * arguments.dim * 4 / GIB
        print(
            f"budget {arguments.memory_gib:g} GiB, reference {size:.2f} GiB in {found['blocks']} blocks, "
            f"peak {found['peak_gib']:.3f} GiB; opened in {found['open_s']:.0f} s, "
            f"{arguments.rows / found['label_s']:.2f} labels a second, bound {found['tolerance']:.2e}"
        )
        if arguments.compare:
            shutil.rmtree(directory / "pairs.zarr" / "commits")
            other = work(url, 0, directory)
            print(f"all in memory: peak {other['peak_gib']:.3f} GiB, {other['streamed']} blocks streamed")
            print(f"bits are equal: {other['sha256'] == found['sha256']}")
        if found["peak_gib"] > arguments.memory_gib:
            sys.exit("the peak is over the budget")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
