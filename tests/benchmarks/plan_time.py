"""The time that ``sfg plan`` foretells beside the time that ``sfg label`` takes, on jobs of different shape.

    .venv/bin/python tests/benchmarks/plan_time.py [--quick] [--power PATH] [--executor ray|inline]

Plan and label take turns, each by the command line in a process and a directory of its own, so that both meet the same
load. Measured is the label stage as its own event tells it: Ray, actors, integration, writing and the last check.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import tables

JOBS = Path(__file__).parents[2] / "jobs"
WITHIN = 0.3


def jobs(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The words that follow ``sfg plan`` or ``sfg label``, by what is special about the job."""
    shapes = {"quickstart": [str(JOBS / "quickstart.toml")]}
    if power := tables.find(arguments).get("power"):
        few = ["--set", "labels.num_pairs=24_576", "--set", "labels.shard_rows=2048"]
        shapes["large reference, few pairs"] = [str(JOBS / "uci_power.toml"), "--set", f"data.source={power}", *few]
    small = ["--set", "labels.num_pairs=25_600", "--set", "labels.shard_rows=64", "--set", "labels.batch_size=64"]
    shapes["many small shards"] = [str(JOBS / "toy_2d.toml"), *small]
    return shapes


def sfg(*words: str) -> str:
    """What a command prints on stdout."""
    done = subprocess.run([sys.executable, "-m", "sfg_dist", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"sfg {' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def measure(words: list[str], executor: str) -> dict[str, Any]:
    """One plan and one run of its label stage."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*words, "--executor", executor, "--set", f"output.dir={folder}/run"]
        estimate = json.loads(sfg("plan", *words, "--json"))
        sfg("label", *words, "--json")
        store = Path(folder, "run", "pairs.zarr")
        events = [json.loads(line) for line in Path(folder, "run", "events.jsonl").read_text().splitlines()]
        arrays = [path for path in store.rglob("*") if path.is_file() and path.suffix not in (".json", ".jsonl")]
        written = sum(path.stat().st_size for path in arrays)
    (label,) = [event for event in events if event["event"] == "stage_finished" and event["stage"] == "label"]
    shards = [event for event in events if event["event"] == "shard"]
    return {
        "estimate": estimate["time"],
        "label_s": label["seconds"],
        "ratio": estimate["time"]["label_s"] / label["seconds"],
        "shard_s": common.median(shard["seconds"] for shard in shards),
        "bytes_are_exact": written == estimate["written"]["arrays"],
    }


def main() -> None:
    options = common.parser(__doc__)
    tables.add_options(options)
    options.add_argument("--executor", default="ray", choices=["ray", "inline"])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", nargs="+", metavar="JOB", help="jobs whose name holds one of these words")
    arguments = options.parse_args()
    if "power" not in tables.find(arguments):
        common.console.print(tables.missing_note("power"))
    rows = []
    for name, words in jobs(arguments).items():
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        for number in range(1 if arguments.quick else arguments.rounds):
            rows.append({"job": name, "round": number, **measure(words, arguments.executor)})
            last = rows[-1]
            common.console.print(
                f"{name}: {last['estimate']['label_s']:.1f} s planned, {last['label_s']:.1f} s measured"
            )
    common.show(
        f"The label stage by sfg plan and by sfg label, executor {arguments.executor}",
        ["job", "planned, s", "start", "integration", "writing", "waves", "measured, s", "planned / measured"],
        (
            [row["job"]]
            + [row["estimate"][key] for key in ("label_s", "start_s", "integration_s", "writing_s", "waves")]
            + [row["label_s"], row["ratio"]]
            for row in rows
        ),
    )
    verdicts = []
    for name in dict.fromkeys(row["job"] for row in rows):
        off = common.median(abs(row["ratio"] - 1) for row in rows if row["job"] == name)
        verdicts.append(common.Verdict(f"{name}: planned time off by, median", off, "<=", WITHIN))
    exact = sum(row["bytes_are_exact"] for row in rows) / len(rows)
    verdicts.append(common.Verdict("bytes of arrays exact, share of runs", exact, ">=", 1))
    common.finish("plan_time", arguments.output, rows=rows, verdicts=verdicts, quick=arguments.quick)


if __name__ == "__main__":
    main()
