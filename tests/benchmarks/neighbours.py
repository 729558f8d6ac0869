"""What a busy neighbour costs: whole stages on an idle machine, and beside processes that keep a core busy each.

    .venv/bin/python tests/benchmarks/neighbours.py [--quick] [--neighbours 0 1 2] [--rounds N]

Each stage does the same work in a process of its own, with threads that spin while they wait, as OpenMP's do by
default, and with threads that sleep, as the package has them. The two take turns. "Share" is the pace beside a
neighbour over the pace on the idle machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import common

from sfg_dist.job.threads import SETTINGS

# libgomp's own default, said aloud: the package leaves what the user has set.
POLICIES = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"}}
JOB = """
[data]
source = "china_colors"
max_rows = 20_000
[labels]
num_pairs = {pairs}
num_threads = {threads}
t_min = 1e-3
[train]
num_epochs = {epochs}
num_threads = {threads}
[executor]
kind = "inline"
"""
STAGES = {
    "label": ["label"],
    "train": ["train"],
    "evaluate": ["evaluate"],
    "run, with Ray": ["run", "--executor", "ray", "--set", "labels.num_threads=1"],
}
LEAST_SHARE = 0.45  # of the idle machine's pace, beside one neighbour
LARGEST_LOSS = 1.05  # of an idle machine by threads that sleep


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """Within, so many processes keep a core busy each."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def stage_seconds(stage: str, policy: str, prepared: Path) -> float:
    """Wall time of a command on a copy of what it needs."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | POLICIES[policy]
    words = STAGES[stage]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "run")
        if stage in ("train", "evaluate"):
            shutil.copytree(prepared / "run", place)
        if stage == "train":
            for name in ("model", "checkpoints", "samples.zarr"):
                shutil.rmtree(place / name)
        elif stage == "evaluate":
            (place / "metrics.json").unlink()
        command = [sys.executable, "-m", "sfg_dist", words[0], str(prepared / "job.toml"), *words[1:]]
        command += ["--set", f"output.dir={place}"]
        return common.seconds(lambda: subprocess.run(command, env=environment, check=True, capture_output=True))


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    options.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES))
    arguments = options.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    sizes = {"pairs": 16_384, "epochs": 10} if arguments.quick else {"pairs": 65_536, "epochs": 25}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder)
        (prepared / "job.toml").write_text(JOB.format(threads=arguments.threads, **sizes))
        command = [sys.executable, "-m", "sfg_dist", "run", str(prepared / "job.toml")]
        subprocess.run([*command, "--set", f"output.dir={prepared}/run"], check=True, capture_output=True)
        for number in arguments.neighbours:
            for stage in arguments.only:
                with busy(number):
                    times = common.alternate(
                        {
                            policy: lambda policy=policy, stage=stage: stage_seconds(stage, policy, prepared)
                            for policy in POLICIES
                        },
                        rounds,
                        warm=False,
                    )
                seconds = {policy: common.median(values) for policy, values in times.items()}
                rows.append({"stage": stage, "neighbours": number, "seconds": seconds, "all": times})
                common.console.print(f"{stage}, {number} neighbours: {json.dumps(seconds)}")

    def found(stage: str, number: int, policy: str) -> float:
        return next(r["seconds"][policy] for r in rows if (r["stage"], r["neighbours"]) == (stage, number))

    common.show(
        f"Seconds of a stage beside neighbours, {arguments.threads} threads, median of {rounds}",
        ["stage", *(f"{policy}, {n}" for n in arguments.neighbours for policy in POLICIES)],
        (
            [stage, *(found(stage, n, policy) for n in arguments.neighbours for policy in POLICIES)]
            for stage in arguments.only
        ),
    )
    verdicts = []
    for stage in arguments.only:
        if 0 in arguments.neighbours:
            loss = found(stage, 0, "sleeping") / found(stage, 0, "spinning")
            verdicts.append(common.Verdict(f"{stage}: sleeping over spinning, idle", loss, "<=", LARGEST_LOSS))
        if {0, 1} <= set(arguments.neighbours):
            share = found(stage, 0, "sleeping") / found(stage, 1, "sleeping")
            verdicts.append(common.Verdict(f"{stage}: share beside one neighbour", share, ">=", LEAST_SHARE))
    common.finish("neighbours", arguments.output, rows=rows, verdicts=verdicts)


if __name__ == "__main__":
    main()
