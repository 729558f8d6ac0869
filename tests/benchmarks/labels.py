"""Time a label: this package against the published procedure written plainly, side by side in one process.

    .venv/bin/python tests/benchmarks/labels.py [--rows 200000] [--threads 2]

Published: 1000 references drawn for a batch, broadcast differences, a softmax, 500 uniform Euler steps. Ours: all
references, streamed attention, RK4 with 32 evaluations. The two take turns; ratios are of medians.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from functools import partial

import torch

from sfg_dist.flow import Reference, Schedule, label_batch


def published(latents: torch.Tensor, table: torch.Tensor, steps: int = 500, num_reference: int = 1000) -> torch.Tensor:
    """The paper's formulas as they stand: dz/dt = (z - (1 + t) m) / (2 t), weights by broadcasting."""
    x = table[torch.randperm(len(table))[:num_reference]]
    z, t_min = latents, 1e-3
    times = torch.linspace(1.0, t_min, steps + 1).tolist()
    for t, t_next in itertools.pairwise(times):
        distance = (z[:, None, :] - (1 - t) * x[None]).square().sum(dim=2)
        mean = torch.softmax(-distance / (2 * t), dim=1) @ x
        z = z + (t_next - t) * (z - (1 + t) * mean) / (2 * t)
    return z / (1 - t_min)


def ours(latents: torch.Tensor, reference: Reference) -> torch.Tensor:
    return label_batch(
        latents,
        reference,
        schedule=Schedule("linear", 1e-3),
        direction="decode",
        solver="rk4",
        num_evaluations=32,
        kind="graded",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 20_000, 200_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 6, 21])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("dim  references  ours us/label  published us/label (1000 references)  ratio")
    for dim in arguments.dims:
        for rows in arguments.rows:
            generator = torch.Generator().manual_seed(0)
            table = torch.randn(rows, dim, generator=generator)
            latents = torch.randn(256, dim, generator=generator)
            reference = Reference(table)
            calls = {"ours": partial(ours, latents, reference), "published": partial(published, latents, table)}
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(arguments.repeats):
                for name, call in calls.items():
                    started = time.perf_counter()
                    call()
                    times[name].append((time.perf_counter() - started) / len(latents) * 1e6)
            mine, theirs = (statistics.median(times[name]) for name in ("ours", "published"))
            print(f"{dim:3}  {rows:10,}  {mine:13.0f}  {theirs:35.0f}  {theirs / mine:5.1f}", flush=True)


if __name__ == "__main__":
    main()
