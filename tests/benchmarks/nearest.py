"""Labels by the nearest rows alone, as scores are cut short elsewhere, beside labels by all rows at a known error.

    .venv/bin/python tests/benchmarks/nearest.py [--quick] [--power PATH]

Rows of the power table jittered by 0.02, as in growth.py. Three ways to leave rows out, all by exact neighbours of a
k-d tree (scipy):

- the nearest 128, and the nearest 1024, at every time
- as many nearest rows at each time as pilots need: the fewest of a list with a posterior mean within 1e-3 for 99 of 100
  of them, all rows where none suffice. It is the idea of time-aware subsets (arXiv 2602.16498) with the best subset
  there is, found at no cost

Their labels take RK4 with 32 evaluations in log t, ours the package's defaults and the measured certificate. Errors are
2-norms against float64 sums over every pair and 160 evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import common
import peers
import tables
import torch
from growth import T_MIN, jittered
from scipy.spatial import cKDTree
from torch import Tensor

from sfg_dist.flow import label_latents

NUM_EVALUATIONS = 32
OURS_LATENTS = 4096
FIXED = (128, 1024)
COUNTS = (32, 128, 512, 2048, 8192)
TOLERANCE, SHARE = 1e-3, 0.99
ALIKE = 1.5  # times the median error of ours


def nearest_mean(tree: cKDTree, x: Tensor, count: int, z: Tensor, alpha: float, beta_sq: float) -> Tensor:
    """The posterior mean over the nearest rows to z / alpha."""
    distances, places = tree.query((z / alpha).numpy(), k=count, workers=torch.get_num_threads())
    logits = -torch.from_numpy(distances).square() * (alpha**2 / (2 * beta_sq))
    return torch.einsum("rk,rkd->rd", torch.softmax(logits, dim=1).to(x.dtype), x[torch.from_numpy(places)])


class FittedCounts:
    """The posterior mean over as many nearest rows as pilots need at a time."""

    def __init__(self, tree: cKDTree, x: Tensor, dense: peers.PosteriorMean) -> None:
        self.tree, self.x, self.dense = tree, x, dense
        self.counts: dict[float, int] = {}

    def fit(self, pilots: Tensor) -> None:
        """Look at the times that pilots go through."""

        def mean(z: Tensor, alpha: float, beta_sq: float) -> Tensor:
            exact = self.dense(z, alpha, beta_sq)
            for count in COUNTS:
                error = (nearest_mean(self.tree, self.x, count, z, alpha, beta_sq) - exact).norm(dim=1)
                if error.quantile(SHARE) <= TOLERANCE:
                    self.counts[beta_sq] = max(self.counts.get(beta_sq, 0), count)
                    return exact
            self.counts[beta_sq] = len(self.x)
            return exact

        peers.labels_by(mean, pilots, t_min=T_MIN, num_evaluations=NUM_EVALUATIONS)

    def __call__(self, z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        count = self.counts[beta_sq]
        if count == len(self.x):
            return self.dense(z, alpha, beta_sq)
        return nearest_mean(self.tree, self.x, count, z, alpha, beta_sq)


def measure(table: Tensor, arguments: Any) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(arguments.latents, table.shape[1], generator=generator)
    center = table.mean(dim=0)
    x = table - center
    tree = cKDTree(x.numpy())
    fitted = FittedCounts(tree, x, peers.prepare_blocked(x))
    fitted.fit(torch.randn(arguments.pilots, table.shape[1], generator=generator))
    means: dict[str, peers.PosteriorMean] = {f"nearest {k}": partial(nearest_mean, tree, x, k) for k in FIXED}
    means["as many nearest as needed"] = fitted
    calls: dict[str, Callable[..., Tensor]] = {
        name: partial(peers.labels_by, mean, t_min=T_MIN, num_evaluations=NUM_EVALUATIONS)
        for name, mean in means.items()
    }
    for certificate in ("bound", "measured"):
        keywords = {"certificate": certificate, "t_min": T_MIN}
        reference, _ = common.timed_reference(table, latents, **keywords)
        calls[f"ours, {certificate}"] = partial(label_latents, reference=reference, **keywords)
    # A batch of ours is larger: a measured one sums a few of its rows exactly, however many it has.
    many = torch.randn(OURS_LATENTS, table.shape[1], generator=generator)
    drawn = {name: latents if name in means else many for name in calls}
    times = common.alternate({name: partial(call, drawn[name]) for name, call in calls.items()}, arguments.rounds)
    truth = peers.exact_labels(latents, table, t_min=T_MIN)
    rows = []
    for name, call in calls.items():
        error = (call(latents).double() + (center if name in means else 0) - truth).norm(dim=1)
        rows.append(
            {
                "num_reference": len(table),
                "name": name,
                "label_s": common.median(times[name]) / len(drawn[name]),
                "median": float(error.median()),
                "p90": float(error.quantile(0.9)),
            }
        )
    rows[len(FIXED)]["counts"] = fitted.counts
    return rows


def main() -> None:
    options = common.parser(__doc__)
    tables.add_options(options)
    options.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000])
    options.add_argument("--latents", type=int, default=512)
    options.add_argument("--pilots", type=int, default=128)
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    common.start(arguments.threads)
    if arguments.quick:
        arguments.sizes, arguments.latents, arguments.rounds = [20_000], 128, 1
    if "power" not in (paths := tables.find(arguments)):
        common.console.print(tables.missing_note("power"))
        return
    power = tables.load("power", paths["power"])
    rows, verdicts = [], []
    for size in arguments.sizes:
        found = measure(jittered(power, size), arguments)
        rows += found
        ours = found[-1]
        for row in found[:-2]:
            if row["median"] <= ALIKE * ours["median"]:
                what = f"{size:,} references, {row['name']} / ours measured, time a label"
                verdicts.append(common.Verdict(what, row["label_s"] / ours["label_s"], ">=", 3))
    common.show(
        "Labels by the nearest rows alone, and by all rows",
        ["references", "rows", "ms a label", "over ours, measured", "median error", "p90"],
        (
            [
                f"{row['num_reference']:,}",
                row["name"],
                1e3 * row["label_s"],
                row["label_s"] / next(r["label_s"] for r in rows[::-1] if r["num_reference"] == row["num_reference"]),
                row["median"],
                row["p90"],
            ]
            for row in rows
        ),
    )
    common.finish("nearest", arguments.output, rows=rows, verdicts=verdicts, quick=arguments.quick)


if __name__ == "__main__":
    main()
