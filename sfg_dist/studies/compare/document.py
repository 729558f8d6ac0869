"""The document of a comparison: the figures of every method, who is ahead and by what rule, and the curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sfg_dist.evaluate.judgement import Figure
from sfg_dist.job.config import Job
from sfg_dist.job.words import WIDE, wide_number
from sfg_dist.studies.compare.judging import Cell, Figures, Judged, Point
from sfg_dist.studies.compare.peers.choice import Choice
from sfg_dist.studies.compare.peers.kinds import PEERS

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
    "gaussian_copula": "Gaussian copula",
    "tabddpm": "TabDDPM",
    "ctgan": "CTGAN",
    "tvae": "TVAE",
    "forest_diffusion": "ForestDiffusion",
}
COSTS_COMPARED = ("nsf", "flow_matching", "score_sde", "tabddpm", "forest_diffusion")
LIKELIHOODS_COMPARED = ("realnvp", "nsf", "gaussian_copula")
FIDELITY, ATTACK = "c2st_trees_held_out", "attack_auc"
"""Names of the figures that the pictures show."""


@dataclass(frozen=True, kw_only=True)
class Method(Judged):
    """A row of the table: figures by seed with their standard errors; times, costs and the curve over all seeds."""

    c2st_auc: Sequence[float | None]
    c2st_auc_error: Sequence[float | None]
    test_log_likelihood: Sequence[float | None] | None  # None where no seed has one
    test_log_likelihood_error: Sequence[float | None] | None
    metrics: Mapping[str, Sequence[float | None]]  # other figures of samples by name and seed
    figures: Mapping[str, Sequence[Figure]]  # those of the judgement by name and seed
    load_average: float  # the highest of the machine


@dataclass(frozen=True)
class Budget:
    """What each method was given."""

    max_time_s: float
    num_seeds: int
    selection_time_s: float
    max_label_share: float


@dataclass(frozen=True)
class Comparison:
    """What compare.json holds."""

    methods: dict[str, Method]  # the rows of the table by name
    floor: Figures  # the figures of training rows in place of samples
    verdict: list[str]  # the result in sentences
    budget: Budget  # of each method
    selection: dict[str, Choice]  # by peer, how its configuration was chosen
    sizes: dict[str, Method]  # other sizes of ours, by "WIDTHxDEPTH"
    facts: dict[str, str]  # of the table and the machine


def make_document(
    found: Mapping[str, Sequence[Cell]],
    job: Job,
    *,
    floor: Figures,
    choices: Mapping[str, Choice],
    facts: dict[str, str],
) -> Comparison:
    """The comparison of what each seed's cell found, by row of the table."""
    configurations = {
        row: {
            "transform": choices[kind.name].chosen.kind,
            "learning_rate": choices[kind.name].chosen.learning_rate,
            **kind.settings,
        }
        for kind in PEERS
        if kind.name in choices
        for row in kind.samplers
    }
    rows = {row: _method(cells, job, configurations.get(row)) for row, cells in found.items()}
    methods = {row: method for row, method in rows.items() if row in job.compare.methods}
    sizes = {row.removeprefix("sfg_"): method for row, method in rows.items() if row not in methods}
    if sizes and OURS in methods:
        sizes = {f"{job.train.width}x{job.train.depth}": methods[OURS], **sizes}
    keys = job.compare
    budget = Budget(keys.max_time_s, keys.num_seeds, keys.selection_time_s, keys.max_label_share)
    return Comparison(methods, floor, verdict(methods), budget, dict(choices), sizes, facts)


def _method(cells: Sequence[Cell], job: Job, configuration: Mapping[str, object] | None) -> Method:
    first = cells[0]
    names = [name for name in job.evaluate.metrics if name in first.metrics]
    likelihoods, errors = ([getattr(cell, f"test_log_likelihood{end}") for cell in cells] for end in ("", "_error"))
    has_likelihood = any(value is not None for value in likelihoods)
    over_seeds: dict[str, Any] = {field.name: getattr(first, field.name) for field in fields(Judged)}
    for name in ("us_per_sample", "us_per_sample_back", "fit_s", "label_s"):
        over_seeds[name] = float(np.median([getattr(cell, name) for cell in cells]))
    for name in ("num_not_finite", "num_likelihood_not_finite"):
        over_seeds[name] = sum(getattr(cell, name) for cell in cells)
    over_seeds |= {"curve": _mean_curve([cell.curve for cell in cells]), "best_at_s": None}
    over_seeds["configuration"] = configuration or first.configuration
    return Method(
        c2st_auc=[cell.c2st_auc for cell in cells],
        c2st_auc_error=[cell.c2st_auc_error for cell in cells],
        test_log_likelihood=likelihoods if has_likelihood else None,
        test_log_likelihood_error=errors if has_likelihood else None,
        metrics={name: [cell.metrics[name] for cell in cells] for name in names},
        figures={name: [cell.figures[name] for cell in cells] for name in first.figures},
        load_average=max(max(cell.load_average) for cell in cells),
        **over_seeds,
    )


def _mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Mean over seeds, point by point from the end, of as many points as every seed has."""
    points = []
    for place in range(-min(map(len, curves)), 0):
        at = [curve[place] for curve in curves]
        known = [point.c2st_auc for point in at if point.c2st_auc is not None]
        points.append(
            Point(float(np.mean([point.elapsed_s for point in at])), float(np.mean(known)) if known else None)
        )
    return points


def mean_auc(method: Method) -> tuple[float, float] | None:
    """Mean AUC over seeds and its standard error: of the test rows, and of the fits where there are several.

    The seeds share the test rows, so the error of these does not fall with their number.
    """
    values = [value for value in method.c2st_auc if value is not None]
    return _mean_and_error(values, method.c2st_auc_error) if values else None


def _mean_and_error(values: Sequence[float], errors: Sequence[float | None]) -> tuple[float, float]:
    known = [error**2 for error in errors if error is not None]
    fits = float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
    return float(np.mean(values)), math.sqrt((float(np.mean(known)) if known else 0.0) + fits)


def mean_figure(method: Method, name: str) -> tuple[float, float] | None:
    """Mean of a figure over seeds and its standard error, as ``mean_auc``; None where no seed has one."""
    found = [figure for figure in method.figures.get(name, ()) if figure.value is not None]
    values = [figure.value for figure in found if figure.value is not None]
    return _mean_and_error(values, [figure.error for figure in found]) if values else None


def mean_likelihood(method: Method) -> tuple[float, float] | None:
    """Mean test log-likelihood over seeds, and the standard error that the test rows leave."""
    values = [value for value in method.test_log_likelihood or () if value is not None]
    if len(values) < len(method.c2st_auc):
        return None  # the mean over the seeds that went well would flatter
    errors = [error for error in method.test_log_likelihood_error or () if error is not None]
    return float(np.mean(values)), float(np.mean(errors))


def verdict(methods: Mapping[str, Method]) -> list[str]:
    """The result in words: a headline, then AUC, likelihood and cost against the peers'."""
    ours = methods.get(OURS)
    own_auc = mean_auc(ours) if ours else None
    peers = {name: mean_auc(method) for name, method in methods.items() if name not in NOT_PEERS}
    ranked = sorted((value[0], value[1], name) for name, value in peers.items() if value is not None)
    if ours is None or own_auc is None or not ranked:
        return ["There is no verdict: it needs sfg and a peer among the methods."]
    best, error, name = ranked[0]
    if own_auc[0] <= best:
        headline = "sfg is the best of the methods by the classifier's AUC."
    elif own_auc[0] <= best + error:
        headline = f"sfg stands beside the best peer, {NAMES[name]}: within one standard error of its AUC."
    else:
        headline = f"{NAMES[name]} is ahead of sfg by more than one standard error of its AUC."
    sentences = [
        headline,
        f"The AUC against held-out rows, where 0.5 is perfect, is {own_auc[0]:.3f} ± {own_auc[1]:.3f} for sfg and "
        f"{best:.3f} ± {error:.3f} for the best peer, {NAMES[name]}.",
    ]
    likelihood = mean_likelihood(ours)
    if likelihood is not None:
        others = {peer: mean_likelihood(methods[peer]) for peer in LIKELIHOODS_COMPARED if peer in methods}
        compared = [f"{NAMES[peer]} {_nats(value[0])}" for peer, value in others.items() if value is not None]
        if compared:
            sentences.append(
                f"The test log-likelihood in nats is {_nats(likelihood[0])} for sfg; {', '.join(compared)}."
            )
    attack = mean_figure(ours, ATTACK)
    if attack is not None:
        sentences.append(
            f"A membership attack has an AUC of {attack[0]:.3f} ± {attack[1]:.3f} for sfg, where 0.5 is by chance and "
            "1 finds every training row."
        )
    costs = [
        f"{NAMES[peer]} takes {_times(methods[peer].us_per_sample / ours.us_per_sample)} times as long"
        for peer in COSTS_COMPARED
        if peer in methods and ours.us_per_sample > 0
    ]
    if costs:
        sentences.append(f"sfg takes {ours.us_per_sample:.1f} µs for a sampled row; {', '.join(costs)}.")
    return sentences


def _nats(value: float) -> str:
    return f"{value:.2f}" if abs(value) < WIDE else wide_number(value)


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"
