"""How the time a label grows with the references: 20,000, 200,000 and 2,000,000 of them.

    .venv/bin/python tests/benchmarks/growth.py [--quick] [--power PATH] [--certificate measured]

Three laws: rows of the power table jittered by 0.02 standard deviations, 21 columns of low-dimensional clusters, and
200 normal clusters in 6 columns, up to 8,000,000 of them with a measured certificate. Building, and fitting
certificates, is told apart. Each size goes by the fastest of "auto", every pair where that is affordable, and the
measured certificate where it is asked for; then errors of labels are measured too, against float64 sums over every pair
and 160 evaluations of RK4.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import common
import peers
import tables
import torch
from torch import Tensor

from sfg_dist.flow import label_latents

T_MIN, NORMALS_T_MIN = 1e-4, 1e-3
JITTER = 0.02
NUM_CLUSTERS, CLUSTER_DIM, WIDE_DIM = 50, 3, 21
NUM_NORMALS, NORMALS_DIM, LARGEST = 200, 6, 8_000_000
DENSE_LIMIT = 20_000  # up to here every pair is tried as well
BUDGET_S = 30.0  # of one round; fewer latents if more, and one round only past it
EXACT_PAIRS = 6e7  # latents times references whose labels are made in float64, and as many latents as these allow
TITLES = {
    "power": "power, jittered, 6 columns",
    "clusters": "clusters, 21 columns",
    "normals": "normal clusters, 6 columns",
}


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


def normals(size: int) -> Tensor:
    """200 normal clusters of spreads from 0.05 to 0.55, standardised; one law for every size."""
    law = torch.Generator().manual_seed(0)
    centers = torch.randn(NUM_NORMALS, NORMALS_DIM, generator=law)
    spreads = 0.05 + 0.5 * torch.rand(NUM_NORMALS, 1, generator=law)
    generator = torch.Generator().manual_seed(size)
    which = torch.randint(NUM_NORMALS, (size,), generator=generator)
    rows = centers[which] + spreads[which] * torch.randn(size, NORMALS_DIM, generator=generator)
    return (rows - rows.mean(dim=0)) / rows.std(dim=0)


def contestants(num_reference: int, keywords: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The ways to label that are measured, by name, with their settings."""
    bound = {name: value for name, value in keywords.items() if name != "certificate"}
    engines = {"auto": bound}
    if num_reference <= DENSE_LIMIT and "backend" not in keywords:
        engines["dense"] = {**bound, "backend": common.dense_backend()}
    if keywords.get("certificate") == "measured":
        engines["measured"] = keywords
        if num_reference > 2_000_000:
            del engines["auto"]
    return engines


def measure(law: str, table: Tensor, arguments: argparse.Namespace, keywords: dict[str, Any]) -> dict[str, Any]:
    t_min = NORMALS_T_MIN if law == "normals" else T_MIN
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(arguments.latents, table.shape[1], generator=generator)
    calls, ready, numbers, builds, errors = {}, {}, {}, {}, {}
    rounds = arguments.rounds
    for name, settings in contestants(len(table), keywords).items():
        reference, builds[name] = common.timed_reference(table, latents, t_min=t_min, **settings)
        calls[name] = call = partial(label_latents, reference=reference, t_min=t_min, **settings)
        trial = common.seconds(partial(call, latents[:64], **common.supported(label_latents, batch_size=64))) / 64
        numbers[name] = len(latents)
        while numbers[name] > 256 and numbers[name] * trial > BUDGET_S:
            numbers[name] //= 2
        batch = common.supported(label_latents, batch_size=numbers[name] if numbers[name] < 1024 else None)
        ready[name] = partial(call, latents[: numbers[name]], **batch)
        rounds = 1 if numbers[name] * trial > BUDGET_S else rounds
    if "certificate" in keywords:
        judged = latents[: max(1, min(256, int((arguments.exact_pairs or EXACT_PAIRS) / len(table))))]
        truth = peers.exact_labels(judged, table, t_min=t_min)
        for name, call in calls.items():
            error = (call(judged).double() - truth).norm(dim=1)
            errors[name] = {"median": float(error.median()), "p90": float(error.quantile(0.9)), "num": len(judged)}
    times = common.alternate(ready, rounds, warm=False)
    label_s = {name: common.median(values) / numbers[name] for name, values in times.items()}
    best = min(label_s, key=lambda name: label_s[name])
    return {
        "law": law,
        "dim": table.shape[1],
        "num_reference": len(table),
        "num_latents": numbers[best],
        "engine": best,
        "label_s": label_s[best],
        "label_s_by_engine": label_s,
        "build_s": builds[best],
        "build_s_by_engine": builds,
        "errors_by_engine": errors,
    }


def targets(rows: list[dict[str, Any]]) -> list[common.Verdict]:
    """What the measured certificate is to reach, beside the growth."""
    goals = {("power", 200_000): 0.15, ("normals", LARGEST): 1.5}
    verdicts = []
    for row in rows:
        what = f"{TITLES[row['law']]}, {row['num_reference']:,} references"
        if (goal := goals.get((row["law"], row["num_reference"]))) is not None:
            verdicts.append(common.Verdict(f"{what}, ms a label", 1e3 * row["label_s"], "<=", goal))
        if (error := row["errors_by_engine"].get("measured")) is not None:
            verdicts.append(common.Verdict(f"{what}, median error of a label", error["median"], "<=", 1e-3))
            verdicts.append(common.Verdict(f"{what}, 90th percentile of the error", error["p90"], "<=", 1e-2))
    return verdicts


def main() -> None:
    options = common.parser(__doc__)
    tables.add_options(options)
    options.add_argument("--sizes", type=int, nargs="+")
    options.add_argument("--latents", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--laws", nargs="+", choices=tuple(TITLES), default=tuple(TITLES))
    options.add_argument("--exact-pairs", type=float, help="latents times references that errors are measured on")
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
    laws |= {"clusters": clusters, "normals": normals}
    is_measured = keywords.get("certificate") == "measured"
    rows, ratios, verdicts = [], {}, []
    for law, draw in laws.items():
        if law not in arguments.laws:
            continue
        curve = []
        for size in sizes:
            curve.append(measure(law, draw(size), arguments, keywords))
            common.console.print(f"{TITLES[law]}: {size:,} references measured")
        rows += curve
        ratios[law] = curve[-1]["label_s"] / curve[0]["label_s"]
        what = f"{TITLES[law]}, time a label, {sizes[-1]:,} over {sizes[0]:,} references"
        verdicts.append(common.Verdict(what, ratios[law], "<=", 10.0))
        if law == "normals" and is_measured and not arguments.quick and not arguments.sizes:
            rows.append(measure(law, draw(LARGEST), arguments, keywords))
    verdicts += targets(rows)
    common.show(
        "Growth: time a label over that of the smallest reference",
        ["law", "references", "ratio", "ours, ms", "engine", "build, s", "latents", "by engine, ms"],
        (
            [
                TITLES[row["law"]],
                row["num_reference"],
                row["label_s"] / next(first["label_s"] for first in rows if first["law"] == row["law"]),
                1e3 * row["label_s"],
                row["engine"],
                row["build_s"],
                row["num_latents"],
                ", ".join(f"{name} {1e3 * value:.3g}" for name, value in row["label_s_by_engine"].items()),
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
