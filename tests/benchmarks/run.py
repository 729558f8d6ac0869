"""Every measurement, one after the other, then a picture: ``make bench``.

    .venv/bin/python tests/benchmarks/run.py [--quick] [--only NAME ...] [--power PATH --gas PATH --beijing PATH]

Each part is a script of its own and runs in a process of its own; contestants of one part share it. Results go to
runs/bench/NAME.json. Parts whose data or packages are missing say so and are skipped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import common
import tables
import torch

HERE = Path(__file__).parent
PARTS = ("dense", "label_time", "growth", "nearest", "solvers", "plan_time", "driver", "stream", "neighbours", "gpu")
SHARED = (
    "dense",
    "label_time",
    "growth",
    "nearest",
    "solvers",
    "plan_time",
    "driver",
    "stream",
    "neighbours",
)  # take the options of common.parser
WITH_TABLES = {
    "label_time": tuple(tables.FILES),
    "growth": ("power",),
    "nearest": ("power",),
    "solvers": ("power",),
    "plan_time": ("power",),
}


def command(part: str, arguments: argparse.Namespace) -> list[str]:
    words = [sys.executable, str(HERE / f"{part}.py")]
    if part in SHARED:
        words += ["--quick"] if arguments.quick else []
        words += ["--threads", str(arguments.threads), "--output", str(arguments.output)]
    words += ["--certificate", "measured"] if part == "growth" else []
    paths = tables.find(arguments)
    for name in WITH_TABLES.get(part, ()):
        if name in paths:
            words += [f"--{name}", str(paths[name])]
    return words


def main() -> int:
    options = common.parser(__doc__)
    tables.add_options(options)
    there = [part for part in PARTS if (HERE / f"{part}.py").exists()]
    options.add_argument("--only", nargs="+", choices=there, metavar="NAME", help=", ".join(there))
    arguments = options.parse_args()
    failed = []
    for part in arguments.only or there:
        common.console.rule(part)
        if part == "gpu" and not torch.cuda.is_available():
            common.console.print("left out: torch sees no CUDA device here")
            continue
        if subprocess.run(command(part, arguments), check=False).returncode:
            failed.append(part)
    subprocess.run([sys.executable, str(HERE / "picture.py"), "--output", str(arguments.output)], check=False)
    if failed:
        common.console.print(f"[red]stopped with an error: {', '.join(failed)}[/red]")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
