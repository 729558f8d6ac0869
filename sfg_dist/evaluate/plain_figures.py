"""The figures that samples and labels have apart: what they mean, as rows of a table, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sfg_dist.evaluate.metrics import METRIC_NAMES

MEMORISING_RATIO = 0.5
FEW_HELD_OUT_ROWS = 200  # below this the AUC is uncertain by more than 0.03
NO_VALUE = "\N{EN DASH}"

# name in metrics.json -> (shown name, what is good, what it means)
MEANINGS = {
    "c2st_auc": (
        "Classifier AUC",
        "0.5 is perfect; lower is noise",
        "how well boosted trees tell these rows from held-out rows",
    ),
    "sliced_wasserstein": (
        "Sliced Wasserstein",
        "0 is perfect, lower is better",
        "how far mass must be moved along random directions, in standard deviations",
    ),
    "energy_distance": (
        "Energy distance",
        "0 is perfect; lower is noise",
        "distances between the two tables against distances within each, over all columns",
    ),
    "ks_mean": (
        "Kolmogorov-Smirnov",
        "0 is perfect, lower is better",
        "largest gap between two cumulative distributions, mean over columns",
    ),
    "marginal_kl_mean": (
        "Marginal KL",
        "0 is perfect, lower is better",
        "divergence of the histograms of a column in nats, mean over columns",
    ),
    "correlation_error": (
        "Correlation error",
        "0 is perfect, lower is better",
        "mean difference of rank correlations between columns",
    ),
    "nearest_train_distance": (
        "Distance to training rows",
        "1 is right; far below 1 is memorising",
        "median distance to the nearest training row, divided by that of held-out rows",
    ),
    "kl": (
        "KL to the true density",
        "0 is perfect, lower is better",
        "divergence from the known density in nats, by nearest neighbours",
    ),
}


def verdict(metrics: Mapping[str, Mapping[str, Any]], num_held_out: int | None = None) -> list[str]:
    """The figures in plain words: a headline, then what it rests on and what would help."""
    samples, floor = (figure_in(metrics, kind, "c2st_auc") for kind in ("samples", "floor"))
    sentences = []
    if samples is None:
        sentences.append("Samples were not judged by the classifier.")
    else:
        base = max(floor if floor is not None else 0.5, 0.5)
        gap = samples - base
        share = gap / max(1 - base, 1e-9)  # of the way from real rows (0) to rows that are always told apart (1)
        # The standard error of the rank test for equal laws, with n rows of each kind.
        error = math.sqrt((2 * num_held_out + 1) / (12 * num_held_out**2)) if num_held_out else None
        is_plain = error is not None and gap > 3 * error  # however few rows say so
        if num_held_out is not None and num_held_out < FEW_HELD_OUT_ROWS and not is_plain:
            sentences.append(f"There are too few held-out rows ({num_held_out}) to tell samples from data.")
        elif share <= 0.04:
            sentences.append("The samples pass for held-out rows.")
        elif share <= 0.14:
            sentences.append("The samples are close to the data.")
        elif share <= 0.4:
            sentences.append("The samples resemble the data, with differences that a classifier finds.")
        else:
            sentences.append("The samples are easily told from the data.")
        beside = f"; real rows in their place score {floor:.3f}" if floor is not None else ""
        sentences.append(
            f"A classifier that tries to tell samples from held-out rows scores an AUC of {samples:.3f}, "
            f"where 0.5 is guessing{beside}."
        )
        if error is not None:
            sentences.append(f"With {num_held_out:,} held-out rows the AUC is uncertain by about {error:.3f}.")
        sentences += gap_words(metrics)
    ratio = figure_in(metrics, "samples", "nearest_train_distance")
    if ratio is not None and ratio < MEMORISING_RATIO:
        sentences.append(
            f"Samples lie {ratio:.2f} times as far from the nearest training row as held-out rows do: "
            "in part they repeat the training rows."
        )
    return sentences


def gap_words(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where the gap between samples and data arises, in a sentence; none where there is hardly one."""
    samples, labels, floor = (figure_in(metrics, kind, "c2st_auc") for kind in ("samples", "labels", "floor"))
    base = max(floor if floor is not None else 0.5, 0.5)
    if samples is None or labels is None or samples - base <= 0.03:
        return []
    lost_before_fit = (labels - base) / (samples - base)
    where = (
        "most of the gap arises before the fit (transform, t_min or tolerance)"
        if lost_before_fit > 0.5
        else "most of the gap arises in the fit (more pairs, a larger network or more time would help)"
    )
    return [
        "By the classifier of the table that has labels and samples apart, labels have an AUC of "
        f"{labels:.3f} and samples {samples:.3f}: {where}."
    ]


def figure_in(metrics: Mapping[str, Mapping[str, Any]], kind: str, name: str) -> float | None:
    """One figure of metrics.json, or None where it is missing, NaN or not a number."""
    value = (metrics.get(kind) or {}).get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if math.isfinite(value) else None


def shown_number(value: float | None) -> str:
    """Three significant digits or three decimals; a dash for no value."""
    if value is None:
        return NO_VALUE
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 0.001:
        shown = f"{value:.2e}"
    elif size >= 1000:
        shown = f"{value:,.0f}"
    else:
        shown = f"{value:.3f}" if size < 10 else f"{value:.1f}"
    return shown.replace("-", "\N{MINUS SIGN}")


def metric_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each figure that any of floor, labels and samples holds."""
    kinds = ("floor", "labels", "samples")
    return [
        {kind: shown_number(figure_in(metrics, kind, name)) for kind in kinds}
        | dict(zip(("name", "good", "meaning"), MEANINGS[name], strict=True))
        for name in METRIC_NAMES
        if any(name in (metrics.get(kind) or {}) for kind in kinds)
    ]


_LIKELIHOODS = {
    "encoder": ("Generator.log_prob", "the density of the encoder, divided by its mass, with a mixture"),
    "kernel": ("Blurred data", "the law of the labels, exactly: a Gaussian of the blur about every training row"),
    "ode": ("Blurred data, along the flow", "the same law by the change of variables along the ODE"),
    "normal": ("Normal law", "mean and covariance of the transformed training rows"),
}


def likelihood_rows(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each density: mean over held-out rows with its standard error, median, rows, and the mass."""
    rows = []
    for name, (shown, meaning) in _LIKELIHOODS.items():
        if name not in figures:
            continue
        mean, error = (figure_in(figures, name, key) for key in ("mean", "standard_error"))
        mass, mass_error = (figure_in(figures, name, key) for key in ("mass", "mass_error"))
        known = "1, up to the solver's error" if name == "ode" else "1, exactly"
        said = known if mass is None else f"{mass:.3f} \N{PLUS-MINUS SIGN} {mass_error or 0:.3f}"
        if not figures[name].get("mass_established", True):
            said += ", not established"
        rows.append(
            {
                "name": shown,
                "meaning": meaning,
                "mean": shown_number(mean),
                "error": shown_number(error),
                "median": shown_number(figure_in(figures, name, "median")),
                "num_rows": f"{figures[name]['num_rows']:,}",
                "mass": said,
            }
        )
    return rows


def costliest_rows(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """The held-out rows to which the encoder gives least: number, log density, and the column farthest out."""
    rows = (figures.get("encoder") or {}).get("costliest", ())
    return [
        {
            "row": f"{row['row']:,}",
            "log_density": shown_number(figure_in({"row": row}, "row", "log_density")),
            "column": row["column"],
        }
        for row in rows
    ]
