"""The document of a comparison: the figures of every method, who is ahead and by what rule, and the curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfg_dist.job.config import Job
from sfg_dist.job.words import WIDE, wide_number
from sfg_dist.studies.compare.peers import PeerKind
from sfg_dist.studies.compare.selection import Selection

OURS = "sfg"
NOT_PEERS = (OURS, "published")
NAMES = {
    "sfg": "sfg (ours)",
    "published": "as published",
    "nsf": "NSF",
    "realnvp": "RealNVP",
    "flow_matching": "flow matching",
    "score_sde": "score, reverse SDE",
    "score_ode": "score, ODE",
}
PER_SEED = ("c2st_auc", "c2st_auc_error", "test_log_likelihood", "test_log_likelihood_error")
COSTS_COMPARED = ("nsf", "flow_matching", "score_sde")


def make_document(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    job: Job,
    floor: Mapping[str, Any],
    selections: Mapping[str, Selection],
    peers: Sequence[PeerKind],
    facts: Mapping[str, str],
) -> dict[str, Any]:
    """What compare.json holds.

    Args:
        found: by row of the table, what each seed's cell found.
        job: the job.
        floor: the figures of training rows in place of samples.
        selections: by peer.
        peers: their recipes.
        facts: of the table and the machine.

    Returns:
        methods (by name; the figures a list over seeds), floor, verdict (sentences), budget, selection, sizes, facts.
    """
    configurations = {
        row: {
            "transform": selections[kind.name].chosen.kind,
            "learning_rate": selections[kind.name].chosen.learning_rate,
            **kind.settings,
        }
        for kind in peers
        for row in kind.samplers
    }
    methods = {
        row: _entry(cells, job) | {"configuration": configurations.get(row) or cells[0]["configuration"]}
        for row, cells in found.items()
        if row in job.compare.methods
    }
    sizes = {row.removeprefix("sfg_"): _entry(cells, job) for row, cells in found.items() if row not in methods}
    if sizes and OURS in methods:
        sizes = {f"{job.train.width}x{job.train.depth}": methods[OURS], **sizes}
    return {
        "methods": methods,
        "floor": dict(floor),
        "verdict": verdict(methods),
        "budget": {
            name: getattr(job.compare, name)
            for name in ("max_time_s", "num_seeds", "selection_time_s", "max_label_share")
        },
        "selection": {name: selection.to_json() for name, selection in selections.items()},
        "sizes": sizes,
        "facts": dict(facts),
    }


def _entry(cells: Sequence[Mapping[str, Any]], job: Job) -> dict[str, Any]:
    """One row of the table: figures of samples by seed, times and costs over all seeds."""
    entry: dict[str, Any] = {name: [cell.get(name) for cell in cells] for name in PER_SEED}
    for name in ("test_log_likelihood", "test_log_likelihood_error"):
        if all(value is None for value in entry[name]):
            entry[name] = None
    entry["metrics"] = {
        name: [cell[name] for cell in cells] for name in job.evaluate.metrics if name in cells[0] and name != "c2st_auc"
    }
    for name in ("us_per_sample", "us_per_sample_back", "fit_s", "label_s"):
        entry[name] = float(np.median([cell[name] for cell in cells]))
    first = cells[0]
    for name in ("num_evaluations", "num_parameters", "num_steps", "num_likelihood_rows", "num_pairs",
                 "num_pairs_wanted"):  # fmt: skip
        if name in first:
            entry[name] = first[name]
    for name in ("num_not_finite", "num_likelihood_not_finite"):
        entry[name] = sum(cell[name] for cell in cells)
    entry["load_average"] = max(max(cell["load_average"]) for cell in cells)
    entry["curve"] = _curve([cell["curve"] for cell in cells])
    return entry


def _curve(curves: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, float | None]]:
    """Mean over seeds, point by point from the end, of as many points as every seed has."""
    length = min(len(curve) for curve in curves)
    points = []
    for place in range(-length, 0):
        at = [curve[place] for curve in curves]
        known = [point["c2st_auc"] for point in at if point["c2st_auc"] is not None]
        points.append(
            {
                "elapsed_s": float(np.mean([point["elapsed_s"] for point in at])),
                "c2st_auc": float(np.mean(known)) if known else None,
            }
        )
    return points


def mean_auc(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """Mean AUC over seeds and its standard error: of the test rows, and of the fits where there are several.

    The seeds share the test rows, so the error of these does not fall with their number.
    """
    values = [value for value in entry["c2st_auc"] if value is not None]
    if not values:
        return None
    rows = float(np.mean([error**2 for error in entry["c2st_auc_error"] if error is not None]))
    fits = float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
    return float(np.mean(values)), math.sqrt(rows + fits)


def mean_likelihood(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """Mean test log-likelihood over seeds, and the standard error that the test rows leave."""
    values = entry["test_log_likelihood"]
    if values is None or any(value is None for value in values):
        return None  # the mean over the seeds that went well would flatter
    errors = [error for error in entry["test_log_likelihood_error"] if error is not None]
    return float(np.mean(values)), float(np.mean(errors))


def verdict(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The result in words: a headline, then AUC, likelihood and cost against the peers'."""
    ours = methods.get(OURS)
    own_auc = mean_auc(ours) if ours else None
    peers = {name: mean_auc(entry) for name, entry in methods.items() if name not in NOT_PEERS}
    ranked = sorted((value[0], value[1], name) for name, value in peers.items() if value is not None)
    if ours is None or own_auc is None or not ranked:
        return ["A comparison of some methods; the verdict needs sfg and a peer among them."]
    best, error, name = ranked[0]
    if own_auc[0] <= best:
        headline = "sfg is the best of the methods by the classifier's AUC."
    elif own_auc[0] <= best + error:
        headline = f"sfg stands beside the best peer, {NAMES[name]}: within one standard error of its AUC."
    else:
        headline = f"{NAMES[name]} is ahead of sfg by more than one standard error of its AUC."
    sentences = [
        headline,
        f"AUC against held-out rows, 0.5 is perfect: sfg {own_auc[0]:.3f} ± {own_auc[1]:.3f}, the best peer, "
        f"{NAMES[name]}, {best:.3f} ± {error:.3f}.",
    ]
    likelihood = mean_likelihood(ours)
    if likelihood is not None:
        others = {peer: mean_likelihood(methods[peer]) for peer in ("realnvp", "nsf") if peer in methods}
        compared = [
            f"{NAMES[peer]} {_nats(value[0])} ({'at least' if likelihood[0] >= value[0] else 'below'})"
            for peer, value in others.items()
            if value is not None
        ]
        if compared:
            sentences.append(f"Test log-likelihood in nats: sfg {_nats(likelihood[0])}; {', '.join(compared)}.")
    costs = [
        f"{NAMES[peer]} {_times(methods[peer]['us_per_sample'] / ours['us_per_sample'])} times as long"
        for peer in COSTS_COMPARED
        if peer in methods and ours["us_per_sample"] > 0
    ]
    if costs:
        sentences.append(f"A sampled row takes {ours['us_per_sample']:.1f} µs; {', '.join(costs)}.")
    return sentences


def _nats(value: float) -> str:
    return f"{value:.2f}" if abs(value) < WIDE else wide_number(value)


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"
