"""What it takes to draw a table of samples: wall and processor time and the peak resident size of `sfg sample`.

The model is an untrained network of the given size with two columns, a quantile transform and a calibration; what it
has learnt does not change the work.

    python tests/benchmarks/sample.py [--rows 1e7] [--width 256] [--depth 3] [--out rows.zarr]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sfg_dist.data import Transform
from sfg_dist.model import MLP, Calibration, Generator


def make_model(directory: Path, width: int, depth: int) -> None:
    table = np.random.default_rng(0).standard_normal((20_000, 2))
    transform = Transform.fit(table, ("a", "b"))
    torch.manual_seed(0)
    network = MLP(2, width=width, depth=depth).eval()
    torch.nn.init.normal_(network.out.weight, std=0.02)
    Generator(network, transform, Calibration.fit(network, transform.forward(table), seed=0)).save(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=float, default=1e7)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--out", default="rows.zarr")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder, "model"), options.width, options.depth)
        command = [sys.executable, "-m", "sfg_dist", "sample", "model", "-n", str(options.rows)]
        started = time.perf_counter()
        subprocess.run([*command, "--out", options.out], cwd=folder, check=True)
        wall_s = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime
    print(
        f"{options.rows:,.0f} rows to {options.out}: {wall_s:.0f} s, {cpu_s:.0f} s of processor time "
        f"({1e6 * cpu_s / options.rows:.2f} us a row), peak resident size {used.ru_maxrss / 1024:.0f} MiB"
    )


if __name__ == "__main__":
    main()
