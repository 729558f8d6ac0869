"""Dense posterior means: pairs a second of this package against every peer, and the error of each.

    .venv/bin/python tests/benchmarks/dense.py [--quick] [--dims 2 8 21 43 63]

4096 queries, 16,384 references, float32, contestants in turn. Ratios are ours over the peer's: above 1 we are faster.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import peers
import torch
from torch import Tensor

from sfg_dist.flow import Reference, posterior_moments

NUM_QUERIES, NUM_REFERENCE, T = 4096, 16_384, 0.5
NUM_CHECKED = 64
SLOW_QUERIES = 1024  # of peers whose rate no longer depends on the number, and which would take minutes
LABELS = {
    "published": "published",
    "blocked": "torch, blocked",
    "keops": "KeOps",
    "jax": "jax.jit",
    "sdpa": "torch attention",
}
BY_PRODUCTS = ("log_sum_exp", "variance", "second_moment")  # switches, where posterior_moments has them


def contestants(x: Tensor, z: Tensor, alpha: float, beta_sq: float) -> tuple[dict[str, tuple[Callable, int]], dict]:
    """Name -> (call, its number of queries), and reasons for those that are missing."""
    reference = Reference(x)
    center = reference.center.to(z)
    centred = z - alpha * center

    def ours(by_products: bool) -> Tensor:
        switches = common.supported(posterior_moments, **dict.fromkeys(BY_PRODUCTS, by_products))
        moments = posterior_moments(centred, reference, alpha=alpha, beta_sq=beta_sq, backend="auto", **switches)
        return moments.mean + center

    found: dict[str, tuple[Callable, int]] = {
        "ours": (partial(ours, False), len(z)),
        "ours_all": (partial(ours, True), len(z)),
    }
    missing: dict[str, str] = {}
    # Forms and block sizes of one peer: the fastest here is the one that competes.
    candidates: dict[str, list[tuple[Callable, int]]] = {
        "published": [(peers.prepare_published, 32), (peers.prepare_published, 256)],
        "blocked": [
            (partial(peers.prepare_blocked, tile_queries=q), min(len(z), SLOW_QUERIES)) for q in (128, 256, 1024)
        ],
        "keops": [(peers.prepare_keops, min(len(z), SLOW_QUERIES))],
        "jax": [(partial(peers.prepare_jax, tile_queries=q), len(z)) for q in (0, 128, 256, 512, 1024)],
        "sdpa": [(partial(peers.prepare_sdpa, value_column=column), len(z)) for column in (False, True)],
    }
    for name, forms in candidates.items():
        trials = []
        for prepare, queries in forms:
            try:
                call = partial(prepare(x), z[:queries], alpha, beta_sq)
                call()  # compiles
            except peers.Missing as reason:
                missing[name] = str(reason)
                break
            except Exception as error:  # a peer that breaks must not stop the others
                missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            time.sleep(common.PAUSE_S)
            trials.append((min(common.seconds(call) for _ in range(2)) / queries, call, queries))
        if trials:
            _, call, queries = min(trials, key=lambda trial: trial[0])
            found[name] = (call, queries)
            missing.pop(name, None)
    return found, missing


def measure(dim: int, num_queries: int, num_reference: int, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(dim)
    x = torch.randn(num_reference, dim, generator=generator)
    alpha, beta_sq = 1 - T, T
    rows = torch.randint(num_reference, (num_queries,), generator=generator)
    z = alpha * x[rows] + beta_sq**0.5 * torch.randn(num_queries, dim, generator=generator)
    found, missing = contestants(x, z, alpha, beta_sq)
    times = common.alternate({name: call for name, (call, _) in found.items()}, rounds)
    exact = peers.prepare_blocked(x.double())(z[:NUM_CHECKED].double(), alpha, beta_sq)
    rates, errors, spread = {}, {}, {}
    for name, (call, queries) in found.items():
        pairs = queries * num_reference
        rates[name] = pairs / common.median(times[name])
        spread[name] = [pairs / max(times[name]), pairs / min(times[name])]
        checked = min(NUM_CHECKED, queries)
        errors[name] = float((call()[:checked].double() - exact[:checked]).norm(dim=1).max())
    return {
        "dim": dim,
        "num_queries": num_queries,
        "num_reference": num_reference,
        "t": T,
        "queries": {name: queries for name, (_, queries) in found.items()},
        "pairs_per_s": rates,
        "pairs_per_s_range": spread,
        "max_error": errors,
        "by_products_cost": rates["ours"] / rates["ours_all"] - 1,
        "missing": missing,
    }


def targets(rows: list[dict[str, Any]]) -> list[common.Verdict]:
    verdicts = []
    for row in rows:
        dim, rates = row["dim"], row["pairs_per_s"]
        bounds = {"keops": 4.0, "sdpa": 1.5 if dim <= 8 else 0.95, "jax": 0.95}
        if dim in (2, 21):
            bounds["published"] = 15.0 if dim == 2 else 60.0
        for peer, bound in bounds.items():
            if peer in rates:
                verdicts.append(
                    common.Verdict(f"dense d={dim}, ours / {LABELS[peer]}", rates["ours"] / rates[peer], ">=", bound)
                )
        verdicts.append(common.Verdict(f"dense d={dim}, cost of by-products", row["by_products_cost"], "<=", 0.15))
    return verdicts


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--dims", type=int, nargs="+", default=[2, 8, 21, 43, 63])
    options.add_argument("--rounds", type=int)
    arguments = options.parse_args()
    common.start(arguments.threads)
    warnings.filterwarnings("ignore", module="pykeops|keopscore")
    num_queries = 1024 if arguments.quick else NUM_QUERIES
    num_reference = 4096 if arguments.quick else NUM_REFERENCE
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    rows = []
    for dim in arguments.dims:
        rows.append(measure(dim, num_queries, num_reference, rounds))
        common.console.print(f"dense d={dim} measured")
    for name, reason in {name: why for row in rows for name, why in row["missing"].items()}.items():
        common.console.print(f"{LABELS[name]} left out: {reason}")
    names = ["ours", "ours_all", *LABELS]
    present = [name for name in LABELS if any(name in row["pairs_per_s"] for row in rows)]
    common.show(
        f"Dense, {num_queries:,} queries x {num_reference:,} references: our pairs a second over the peer's",
        ["dim", *(LABELS[name] for name in present), "by-products cost", "ours, 1e9 pairs/s"],
        (
            [
                row["dim"],
                *(
                    row["pairs_per_s"]["ours"] / row["pairs_per_s"][name] if name in row["pairs_per_s"] else None
                    for name in present
                ),
                f"{row['by_products_cost']:+.1%}",
                row["pairs_per_s"]["ours"] / 1e9,
            ]
            for row in rows
        ),
    )
    common.show(
        f"Largest error of the posterior mean against float64, {NUM_CHECKED} rows",
        ["dim", *(LABELS.get(name, "ours") for name in names if name != "ours_all")],
        ([row["dim"], *(row["max_error"].get(name) for name in names if name != "ours_all")] for row in rows),
    )
    common.finish("dense", arguments.output, rows=rows, verdicts=targets(rows), quick=arguments.quick)


if __name__ == "__main__":
    main()
