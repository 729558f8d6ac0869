"""Whether the errors of a judgement are right: how often the floor lies within two of them of the value.

    python tests/benchmarks/figure_errors.py --draws 40

Training rows, held-out rows and samples are drawn anew each time, all of one law, so 19 times in 20 is right. The law
has numbers, a heavy tail, categories, gaps and a target. A figure that was equal to its floor in every draw is shown
with a dash.
"""

from __future__ import annotations

import argparse

import numpy as np

from sfg_dist.evaluate import FIGURE_KINDS
from sfg_dist.evaluate.judge import judge
from sfg_dist.evaluate.judgement import JudgedColumn, JudgedTables

COLUMNS = (
    JudgedColumn("normal", "number"),
    JudgedColumn("sum", "number"),
    JudgedColumn("heavy", "number"),
    JudgedColumn("count", "integer"),
    JudgedColumn("color", "category", ("red", "green", "blue", "grey", "pink")),
    JudgedColumn("many", "category", tuple(f"town {k}" for k in range(60))),
    JudgedColumn("yes", "boolean", ("no", "yes")),
)


def draw(num_rows: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of the law, shape (num_rows, 7)."""
    normal = generator.standard_normal(num_rows)
    other = 0.7 * normal + generator.standard_normal(num_rows)
    heavy = np.exp(generator.standard_normal(num_rows) + 0.3 * other)
    heavy[generator.random(num_rows) < 0.1] = np.nan
    count = generator.poisson(np.exp(0.5 * normal))
    color = np.clip(np.floor(other + 2.5), 0, 4)
    many = np.minimum(generator.geometric(0.1, num_rows), 60) - 1
    yes = generator.random(num_rows) < 1 / (1 + np.exp(-normal - color + 2))
    return np.stack([normal, other, heavy, count, color, many, yes], axis=1).astype(np.float64)


def main() -> None:
    """Print a line for each figure."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--draws", type=int, default=40)
    options.add_argument("--train", type=int, default=8000, help="training rows, and samples")
    options.add_argument("--held-out", type=int, default=2000)
    options.add_argument("--figures", nargs="*", default=list(FIGURE_KINDS))
    asked = options.parse_args()
    apart: dict[str, list[float]] = {name: [] for name in asked.figures}
    errors: dict[str, list[float]] = {name: [] for name in asked.figures}
    for number in range(asked.draws):
        generator = np.random.default_rng(number)
        train, held_out, samples = (draw(size, generator) for size in (asked.train, asked.held_out, asked.train))
        found = judge(JudgedTables(COLUMNS, samples, held_out, train, "yes"), seed=number, figures=asked.figures)
        for name, figure in found.figures.items():
            if figure.value is not None and figure.floor is not None and figure.error is not None:
                apart[name].append(figure.value - figure.floor)
                errors[name].append(figure.error)
    print(f"{'figure':26} {'within 2 errors':>15} {'mean error':>11} {'spread of value - floor':>24}")
    for name in asked.figures:
        differences, sizes = np.array(apart[name]), np.array(errors[name])
        share = f"{np.mean(np.abs(differences) <= 2 * sizes):.1%}" if differences.any() else "-"
        spread = np.sqrt(np.mean(np.square(differences)))
        print(f"{name:26} {share:>15} {sizes.mean():11.5f} {spread:24.5f}")


if __name__ == "__main__":
    main()
