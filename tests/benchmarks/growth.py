"""How the time a label grows with the references: 20,000, 200,000 and 2,000,000 of them.

    .venv/bin/python tests/benchmarks/growth.py [--quick] [--power PATH]

Two laws: rows of the power table jittered by 0.02 standard deviations, and 21 columns of low-dimensional clusters.
Building is told apart; each size goes by the faster of "auto" and every pair where both are affordable.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import common
import tables
import torch
from torch import Tensor

from sfg_dist.flow import label_latents

T_MIN = 1e-4
JITTER = 0.02
NUM_CLUSTERS, CLUSTER_DIM, WIDE_DIM = 50, 3, 21
DENSE_LIMIT = 20_000  # up to here every pair is tried as well
BUDGET_S = 30.0  # of one round; fewer latents if more, and one round only past it
TITLES = {"power": "power, jittered, 6 columns", "clusters": "clusters, 21 columns"}


def jittered(rows: Tensor, size: int) -> Tensor:
    """Rows drawn again from a standardised table, with noise of 0.02 standard deviations."""
    generator = torch.Generator().manual_seed(size)
    index = torch.randint(len(rows), (size,), generator=generator)
    return rows[index] + JITTER * torch.randn(size, rows.shape[1], generator=generator)


def clusters(size: int) -> Tensor:
    """50 pieces of 3-dimensional affine subspaces with noise of 0.02, standardised; one law for every size."""
    law = torch.Generator().manual_seed(0)
    centers = torch.randn(NUM_CLUSTERS, WIDE_DIM, generator=law)
    axes = torch.linalg.qr(torch.randn(NUM_CLUSTERS, WIDE_DIM, CLUSTER_DIM, generator=law)).Q
    generator = torch.Generator().manual_seed(size)
    which = torch.randint(NUM_CLUSTERS, (size,), generator=generator)
    places = torch.randn(size, CLUSTER_DIM, generator=generator)
    rows = 0.02 * torch.randn(size, WIDE_DIM, generator=generator)
    for number in range(NUM_CLUSTERS):
        inside = which == number
        rows[inside] += centers[number] + places[inside] @ axes[number].T
    return (rows - rows.mean(dim=0)) / rows.std(dim=0)


def measure(law: str, table: Tensor, arguments: argparse.Namespace, keywords: dict[str, Any]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(arguments.latents, table.shape[1], generator=generator)
    engines = {"auto": keywords}
    if len(table) <= DENSE_LIMIT and "backend" not in keywords:
        engines["dense"] = {**keywords, "backend": common.dense_backend()}
    calls, builds = {}, {}
    smallest = len(latents)
    for name, settings in engines.items():
        reference, builds[name] = common.timed_reference(table, latents, t_min=T_MIN, **settings)
        call = partial(label_latents, reference=reference, t_min=T_MIN, **settings)
        trial = common.seconds(partial(call, latents[:64], **common.supported(label_latents, batch_size=64))) / 64
        while smallest > 256 and smallest * trial > BUDGET_S:
            smallest //= 2
        calls[name] = call
    batch = common.supported(label_latents, batch_size=smallest if smallest < 1024 else None)
    ready = {name: partial(call, latents[:smallest], **batch) for name, call in calls.items()}
    rounds = 1 if smallest * trial > BUDGET_S else arguments.rounds
    times = common.alternate(ready, rounds, warm=False)
    label_s = {name: common.median(values) / smallest for name, values in times.items()}
    best = min(label_s, key=lambda name: label_s[name])
    return {
        "law": law,
        "dim": table.shape[1],
        "num_reference": len(table),
        "num_latents": smallest,
        "engine": best,
        "label_s": label_s[best],
        "label_s_by_engine": label_s,
        "build_s": builds[best],
    }


def main() -> None:
    options = common.parser(__doc__)
    tables.add_options(options)
    options.add_argument("--sizes", type=int, nargs="+")
    options.add_argument("--latents", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=3)
    common.add_label_options(options)
    arguments = options.parse_args()
    common.start(arguments.threads)
    keywords = common.label_keywords(arguments)
    sizes = arguments.sizes or ([2000, 20_000, 200_000] if arguments.quick else [20_000, 200_000, 2_000_000])
    if arguments.quick:
        arguments.latents, arguments.rounds = min(arguments.latents, 512), 1
    laws: dict[str, Any] = {}
    paths = tables.find(arguments)
    if "power" in paths:
        laws["power"] = partial(jittered, tables.load("power", paths["power"]))
    else:
        common.console.print(tables.missing_note("power"))
    laws["clusters"] = clusters
    rows, ratios, verdicts = [], {}, []
    for law, draw in laws.items():
        curve = []
        for size in sizes:
            curve.append(measure(law, draw(size), arguments, keywords))
            common.console.print(f"{TITLES[law]}: {size:,} references measured")
        rows += curve
        ratios[law] = curve[-1]["label_s"] / curve[0]["label_s"]
        what = f"{TITLES[law]}, time a label, {sizes[-1]:,} over {sizes[0]:,} references"
        verdicts.append(common.Verdict(what, ratios[law], "<=", 10.0))
    common.show(
        "Growth: time a label over that of the smallest reference",
        ["law", "references", "ratio", "ours, ms", "engine", "build, s", "latents"],
        (
            [
                TITLES[row["law"]],
                row["num_reference"],
                row["label_s"] / next(first["label_s"] for first in rows if first["law"] == row["law"]),
                1e3 * row["label_s"],
                row["engine"],
                row["build_s"],
                row["num_latents"],
            ]
            for row in rows
        ),
    )
    common.finish(
        "growth",
        arguments.output,
        rows=rows,
        verdicts=verdicts,
        ratios=ratios,
        quick=arguments.quick,
        overrides=keywords,
    )


if __name__ == "__main__":
    main()
