"""Time a label and error of a label on real tables: this package against the published procedure, in turn.

    .venv/bin/python tests/benchmarks/label_time.py [--quick] [--power PATH] [--gas PATH] [--beijing PATH]

Published: 1000 references drawn for every 5000 labels, broadcast, 500 Euler steps. Its broadcasts leave the caches at
that size, so it is timed in smaller batches too, and the fastest of them stands beside it. Ours: all references, the
package's defaults. Errors are 2-norms against float64 sums over every pair and 160 evaluations of RK4, written apart
from the package.
"""

from __future__ import annotations

import argparse
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import peers
import tables
import torch
from scipy.stats import chi
from torch import Tensor

from sfg_dist.flow import label_latents

T_MIN = 1e-4
FORK = 0.1  # two solutions farther apart than this have taken different branches
NUM_EVALUATIONS = 160
NUDGE, NUM_NUDGES = 1e-3, 64
LEGITIMATE = 0.999  # share of the blurred data's own draws that are as close to their reference as an end point must be
BUDGET_S = 40.0  # of one round of ours; fewer latents if more
PUBLISHED_BATCH = 5000  # as its authors label
SMALL_BATCHES = (64, 256)  # whose broadcasts stay in the caches


def exact(latents: Tensor, table: Tensor, folder: Path) -> Tensor:
    """The float64 solution, kept beside the results under a hash of all that it depends on."""
    digest = hashlib.sha256(f"{T_MIN} {NUM_EVALUATIONS} {tuple(table.shape)}".encode())
    digest.update(table.numpy().tobytes())
    digest.update(latents.numpy().tobytes())
    path = folder / f"truth-{digest.hexdigest()[:16]}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            return torch.from_numpy(file["labels"])
    labels = peers.exact_labels(latents, table, t_min=T_MIN, num_evaluations=NUM_EVALUATIONS)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, labels=labels.numpy())
    return labels


def examine_forks(latents: Tensor, ours: Tensor, truth: Tensor, table: Tensor, reference: Any, **keywords: Any) -> dict:
    """Latents whose two solutions parted: do both end where the data is, and does a nudge reach the other end?"""
    parted = ((ours.double() - truth).norm(dim=1) > FORK).nonzero()[:, 0]
    result: dict[str, Any] = {"num_forks": len(parted), "legitimate": 0, "reached_by_nudge": 0}
    if not len(parted):
        return result
    sigma = T_MIN**0.5 / (1 - T_MIN)
    ends = {"ours": ours[parted].double(), "truth": truth[parted]}
    nearest = {
        name: torch.cat([torch.cdist(rows, table.double()).amin(dim=1) for rows in end.split(64)]) / sigma
        for name, end in ends.items()
    }
    density = {name: peers.exact_log_density(end, table, t_min=T_MIN) for name, end in ends.items()}
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(len(parted), NUM_NUDGES, latents.shape[1], generator=generator)
    noise *= NUDGE / noise.norm(dim=2, keepdim=True)
    nudged = (latents[parted][:, None] + noise).reshape(-1, latents.shape[1])
    again = label_latents(nudged, reference, t_min=T_MIN, **keywords).reshape(noise.shape).double()
    away = (again - ends["truth"][:, None]).norm(dim=2).amin(dim=1)
    radius = float(chi(latents.shape[1]).ppf(LEGITIMATE))  # a draw is sigma times d normals away
    near = {name: distance < radius for name, distance in nearest.items()}
    return {
        "num_forks": len(parted),
        "radius_sigmas": radius,
        "legitimate": int((near["ours"] & near["truth"]).sum()),
        "ours_near_data": int(near["ours"].sum()),
        "truth_near_data": int(near["truth"].sum()),
        "reached_by_nudge": int((away < FORK).sum()),
        "nearest_sigmas": {name: [round(v, 3) for v in distance.tolist()] for name, distance in nearest.items()},
        "log_density": {name: [round(v, 3) for v in values.tolist()] for name, values in density.items()},
    }


def measure(name: str, table: Tensor, arguments: argparse.Namespace, keywords: dict[str, Any]) -> dict[str, Any]:
    quick, dim = arguments.quick, table.shape[1]
    generator = torch.Generator().manual_seed(0)
    num_latents = arguments.latents or (1024 if quick else 8192)
    latents = torch.randn(num_latents, dim, generator=generator)
    reference, build_s = common.timed_reference(table, latents, t_min=T_MIN, **keywords)
    # Where a label is dear, a batch tells as much as eight.
    trial = common.seconds(lambda: label_latents(latents[:1024], reference, t_min=T_MIN, **keywords)) / 1024
    while num_latents > 1024 and num_latents * trial > BUDGET_S:
        num_latents //= 2
    latents = latents[:num_latents]
    batch = 1000 if quick else PUBLISHED_BATCH
    batches = {f"published {size}": torch.randn(size, dim, generator=generator) for size in (batch, *SMALL_BATCHES)}
    calls = {"ours": partial(label_latents, latents, reference, t_min=T_MIN, **keywords)} | {
        key: partial(peers.published_labels, rows, table, t_min=T_MIN, generator=generator)
        for key, rows in batches.items()
    }
    times = common.alternate(calls, 2 if quick else arguments.rounds, warm=False)
    ours_s = common.median(times["ours"]) / len(latents)
    each_s = {len(rows): common.median(times[key]) / len(rows) for key, rows in batches.items()}
    published_s, fastest_s = each_s[batch], min(each_s.values())
    judged = latents[: arguments.judged or (64 if quick else 256)]
    truth = exact(judged, table, arguments.output)
    labels = label_latents(judged, reference, t_min=T_MIN, **keywords)
    error = (labels.double() - truth).norm(dim=1)
    published_error = (peers.published_labels(judged, table, t_min=T_MIN, generator=generator).double() - truth).norm(
        dim=1
    )
    return {
        "table": name,
        "dim": dim,
        "num_reference": len(table),
        "num_latents": len(latents),
        "num_judged": len(judged),
        "ours_s": ours_s,
        "published_s": published_s,
        "published_s_by_batch": each_s,
        "ratio": published_s / ours_s,
        "ratio_fastest": fastest_s / ours_s,
        "build_s": build_s,
        "build_in_labels": build_s / ours_s,
        "error_median": float(error.median()),
        "error_p90": float(error.quantile(0.9)),
        "published_error_median": float(published_error.median()),
        "forks": examine_forks(judged, labels, truth, table, reference, **keywords),
    }


def targets(rows: list[dict[str, Any]]) -> list[common.Verdict]:
    return [
        verdict
        for row in rows
        if row["table"] == "power"
        for verdict in (
            common.Verdict("power, published / ours, time a label (the goal)", row["ratio"], ">=", 50),
            common.Verdict("power, published / ours, time a label (the floor)", row["ratio"], ">=", 15),
            common.Verdict("power, median error of a label", row["error_median"], "<=", 1e-3),
            common.Verdict("power, 90th percentile of the error", row["error_p90"], "<=", 1e-2),
        )
    ]


def main() -> None:
    options = common.parser(__doc__)
    tables.add_options(options)
    options.add_argument("--latents", type=int, help="latents in a timed call")
    options.add_argument("--judged", type=int, help="latents whose error is measured")
    options.add_argument("--rounds", type=int, default=3)
    common.add_label_options(options)
    arguments = options.parse_args()
    common.start(arguments.threads)
    keywords = common.label_keywords(arguments)
    paths, rows = tables.find(arguments), []
    for name in tables.FILES:
        if name not in paths:
            common.console.print(tables.missing_note(name))
            continue
        rows.append(measure(name, tables.load(name, paths[name]), arguments, keywords))
        common.console.print(f"{tables.TITLES[name]} measured")
    if not rows:
        return
    common.show(
        f"Labels at t_min={T_MIN:g}: published time a label (1000 references, 500 steps, batches of 5000) over ours",
        [
            "table",
            "references",
            "ratio",
            "fastest batch",
            "ours, ms",
            "build, in labels",
            "median error",
            "p90",
            "published median",
        ],
        (
            [
                tables.TITLES[row["table"]],
                row["num_reference"],
                row["ratio"],
                row["ratio_fastest"],
                1e3 * row["ours_s"],
                row["build_in_labels"],
                row["error_median"],
                row["error_p90"],
                row["published_error_median"],
            ]
            for row in rows
        ),
    )
    common.show(
        f"Forks: latents whose two solutions end more than {FORK} apart",
        ["table", "judged", "forks", "both ends at data", "other end reached by a nudge"],
        (
            [tables.TITLES[row["table"]], row["num_judged"]]
            + [row["forks"][key] for key in ("num_forks", "legitimate", "reached_by_nudge")]
            for row in rows
        ),
    )
    common.finish(
        "label_time", arguments.output, rows=rows, verdicts=targets(rows), quick=arguments.quick, overrides=keywords
    )


if __name__ == "__main__":
    main()
