"""Mean and spread of a conditional generator beside the truth: the job conditional_toy, whose law is known.

For each of eleven values of the condition, 200,000 samples: the difference of their mean from the truth, over the true
spread, and the ratio of their spread to the true one, less 1. Both should be below 2 %.

    python tests/benchmarks/conditional.py [--dir runs/conditional_toy] [--set table.key=value ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import sfg_dist
from sfg_dist.data.toy import wave_law
from sfg_dist.job.config import load_job

JOB = Path(__file__).parents[2] / "jobs" / "conditional_toy.toml"
PLACES = (0.15, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1, 2.4, 2.7, 2.85)
NUM_SAMPLES = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", default="runs/conditional_toy")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    metrics = sfg_dist.run(load_job(JOB, [f"output.dir={options.dir}", *options.set]))
    print({name: round(seconds, 1) for name, seconds in metrics["time_s"].items()}, "seconds")
    generator = sfg_dist.Generator.load(options.dir)
    print("y      mean, %   spread, %")
    worst = np.zeros(2)
    for place in PLACES:
        drawn = generator.sample(NUM_SAMPLES, seed=1, given={"y": place})[:, 0]
        mean, spread = wave_law(np.array(place))
        errors = 100 * np.array([(drawn.mean() - mean) / spread, drawn.std() / spread - 1])
        worst = np.maximum(worst, np.abs(errors))
        print(f"{place:<6} {errors[0]:+.2f}     {errors[1]:+.2f}")
    print(f"largest {worst[0]:.2f}     {worst[1]:.2f}")


if __name__ == "__main__":
    main()
