"""The report: one HTML page about one run, with every picture inside it.

The page asks for nothing: no script, no font, no address. What the user wrote (names, the job file, notes) is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfg_dist.evaluate import pictures
from sfg_dist.evaluate.compared_rows import Rows, checked_rows, subset
from sfg_dist.evaluate.metrics import METRIC_NAMES
from sfg_dist.evaluate.pictures import Picture
from sfg_dist.evaluate.templates import page_template
from sfg_dist.job.errors import DataError
from sfg_dist.job.plan import Stream, random_generator
from sfg_dist.job.words import duration

HISTOGRAM_MAX_ROWS = 20_000
MEMORISING_RATIO = 0.5
FEW_HELD_OUT_ROWS = 200  # below this the AUC is uncertain by more than 0.03
NO_VALUE = "\N{EN DASH}"
_PICTURES_INDEX = 100  # its own place in the EVALUATE stream, past the metrics

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


@dataclass(frozen=True)
class ReportContent:
    """All that the page shows; rows are in the user's units."""

    title: str  # heading of the page
    columns: Sequence[str]  # names of the columns, dim of them
    held_out: ArrayLike  # held-out rows, shape (num_held_out, dim)
    samples: ArrayLike  # generated rows, shape (num_samples, dim)
    labels: ArrayLike | None  # labels of the pairs, shape (num_labels, dim); None leaves them out
    # as in metrics.json: floor, labels and samples (figures by name) and time_s (seconds by stage)
    metrics: Mapping[str, Mapping[str, Any]]
    # for each epoch: epoch, step, train_loss, validation_loss, learning_rate, elapsed_s
    history: Sequence[Mapping[str, Any]] = ()
    # paths of the flow for two columns, latents first, shape (num_times, num_rows, 2)
    trajectories: ArrayLike | None = None
    # log of the noise variance at each of those times, shape (num_times,)
    trajectory_log_beta_sq: ArrayLike | None = None
    # the true log density for two columns, (num_rows, 2) to (num_rows,) in nats
    log_density: Callable[[NDArray[np.float64]], ArrayLike] | None = None
    job_toml: str = ""  # the job as resolved
    # short things to know, name to value: rows, columns, pairs, device, versions
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what a reader has to be told: ties found, rows dropped, signs of memorising
    # how the labels were made, name to value: workers, devices, time, size
    labelling: Mapping[str, str] = field(default_factory=dict)
    # of each category column, the names of its numbers 0, 1, 2 and so on
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    failures: Sequence[str] = ()  # attempts at shards that failed on the way, each with its reason


class _Mark(NamedTuple):
    """A mark of the scale under the verdict; its place is in per cent of the way from 0.5 to 1."""

    kind: str
    name: str
    value: str
    place: float


def render_report(content: ReportContent) -> str:
    """The page as one string of HTML; the same content gives the same page.

    Pictures show random subsets of long tables.

    Raises:
        DataError: a table with NaN or infinity, or of another width than ``columns``; trajectories of another shape
            than (num_times, num_rows, 2) with one log_beta_sq a time.
    """
    time_s = _stage_seconds(content.metrics.get("time_s", {}))
    return page_template("evaluate/report.html").render(
        title=content.title,
        verdict=verdict(content.metrics, len(np.asarray(content.held_out))),
        scale=_auc_scale(content.metrics),
        notes=list(content.notes),
        facts=dict(content.facts),
        table=_metric_rows(content.metrics),
        likelihood=_likelihood_rows(content.metrics.get("likelihood") or {}),
        cloud_pictures=list(_cloud_pictures(content)),
        fit_pictures=list(_fit_pictures(content.history, time_s)),
        job_toml=content.job_toml,
        labelling=dict(content.labelling),
        failures=list(content.failures),
    )


def verdict(metrics: Mapping[str, Mapping[str, Any]], num_held_out: int | None = None) -> list[str]:
    """The figures in plain words: a headline, then what it rests on and what would help."""
    samples, labels, floor = (_figure(metrics, kind, "c2st_auc") for kind in ("samples", "labels", "floor"))
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
        if labels is not None and gap > 0.03:
            lost_before_fit = (labels - base) / gap
            where = (
                "most of the gap arises before the fit (transform, t_min or tolerance)"
                if lost_before_fit > 0.5
                else "most of the gap arises in the fit (more pairs, a larger network or more time would help)"
            )
            sentences.append(f"The labels score {labels:.3f}: {where}.")
    ratio = _figure(metrics, "samples", "nearest_train_distance")
    if ratio is not None and ratio < MEMORISING_RATIO:
        sentences.append(
            f"Samples lie {ratio:.2f} times as far from the nearest training row as held-out rows do: "
            "in part they repeat the training rows."
        )
    return sentences


def _figure(metrics: Mapping[str, Mapping[str, Any]], kind: str, name: str) -> float | None:
    """One figure, or None where it is missing, NaN or not a number."""
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


def _metric_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each figure that any of floor, labels and samples holds."""
    kinds = ("floor", "labels", "samples")
    return [
        {kind: shown_number(_figure(metrics, kind, name)) for kind in kinds}
        | dict(zip(("name", "good", "meaning"), MEANINGS[name], strict=True))
        for name in METRIC_NAMES
        if any(name in (metrics.get(kind) or {}) for kind in kinds)
    ]


_LIKELIHOODS = {
    "encoder": ("Generator.log_prob", "the density of the encoder, divided by its mass"),
    "kernel": ("Blurred data", "the law of the labels, exactly: a Gaussian of the blur about every training row"),
    "ode": ("Blurred data, along the flow", "the same law by the change of variables along the ODE"),
    "normal": ("Normal law", "mean and covariance of the transformed training rows"),
}


def _likelihood_rows(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each density: mean over held-out rows with its standard error, rows, and the mass."""
    rows = []
    for name, (shown, meaning) in _LIKELIHOODS.items():
        if name not in figures:
            continue
        mean, error = (_figure(figures, name, key) for key in ("mean", "standard_error"))
        mass, mass_error = (_figure(figures, name, key) for key in ("mass", "mass_error"))
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
                "num_rows": f"{figures[name]['num_rows']:,}",
                "mass": said,
            }
        )
    return rows


def _auc_scale(metrics: Mapping[str, Mapping[str, Any]]) -> list[_Mark]:
    """Marks of the scale under the verdict: the floor, the labels and the samples."""
    marks = []
    for kind, name in (("floor", "real rows (floor)"), ("labels", "labels"), ("samples", "samples")):
        value = _figure(metrics, kind, "c2st_auc")
        if value is not None:
            place = round(100 * min(max((value - 0.5) / 0.5, 0.0), 1.0), 2)
            marks.append(_Mark(kind, name, f"{value:.3f}", place))
    return marks


def _stage_seconds(time_s: Mapping[str, Any]) -> dict[str, float]:
    """The stages with a finite time; the total is not a stage."""
    seconds = {str(name): _figure({"time_s": time_s}, "time_s", name) for name in time_s if name != "total"}
    return {name: value for name, value in seconds.items() if value is not None}


def _fit_pictures(history: Sequence[Mapping[str, Any]], time_s: Mapping[str, float]) -> Iterator[Picture]:
    losses = pictures.loss_curve(history)
    if losses is not None:
        yield pictures.picture(
            losses,
            "Training and validation loss by epoch, logarithmic scale",
            "The loss of the fit, in transformed coordinates. A validation loss that rises while the training loss "
            "falls is overfitting.",
        )
    if time_s:
        total = duration(sum(time_s.values()))
        yield pictures.picture(
            pictures.stage_times(time_s),
            "Bars of the seconds that each stage took",
            f"The wall-clock time of each stage; {total} in all.",
        )


def _cloud_pictures(content: ReportContent) -> Iterator[Picture]:
    """The pictures of data and samples that suit the table, the most telling first."""
    from sfg_dist.evaluate import clouds

    columns = [str(name) for name in content.columns]
    dim = len(columns)
    generator = random_generator(0, Stream.EVALUATE, _PICTURES_INDEX)

    def prepared(name: str, table: ArrayLike) -> Rows:
        return subset(checked_rows(name, table, dim=dim, min_rows=1), HISTOGRAM_MAX_ROWS, generator)

    held_out = prepared("held-out rows", content.held_out)
    samples = prepared("samples", content.samples)
    labels = None if content.labels is None else prepared("labels", content.labels)

    if dim == 2:
        yield pictures.picture(
            clouds.density_panels(columns, held_out, labels, samples, content.log_density, generator=generator),
            "Densities in the plane: data, labels, samples and, where known, the truth",
            "Densities in the plane on one colour scale, with as many rows in each panel.",
        )
        if content.trajectories is not None:
            yield _trajectory_picture(content, columns)
    if clouds.is_color_table(columns, held_out):
        yield pictures.picture(
            clouds.color_clouds(held_out, samples, generator=generator),
            "Colours of the data and of the samples as points and as swatches",
            "Each row is drawn in its own colour: two planes of the colour cube, and 400 random rows by lightness.",
        )
    shape = clouds.patch_shape(columns)
    if shape is not None:
        yield pictures.picture(
            clouds.patch_mosaic(shape, held_out, samples, generator=generator),
            "Random rows drawn as small images, data beside samples",
            f"Random rows, drawn as images of {shape[0]} by {shape[1]} pixels on the grey scale of the data.",
        )
    bars = ", with a bar for each category" if content.categories else ""
    left_out = dim - pictures.MAX_MARGINALS
    more = f" Only the first {pictures.MAX_MARGINALS} of {dim} columns are shown." if left_out > 0 else ""
    yield pictures.picture(
        pictures.marginals(columns, held_out, samples, content.categories),
        "Histograms of the columns, data against samples",
        f"The histogram of each column{bars}. The axes show {100 * pictures.SHOWN_SHARE:.0f} % of the data.{more}",
    )
    if dim > 1:
        shown = clouds.pair_columns(held_out)
        which = f" Shown are the {len(shown)} of {dim} with the highest rank correlations." if len(shown) < dim else ""
        yield pictures.picture(
            clouds.pair_plot([columns[i] for i in shown], held_out[:, shown], samples[:, shown], generator=generator),
            "Pairs of columns: data below the diagonal, samples above",
            f"Pairs of columns: data below the diagonal, samples above. Good samples make it symmetric.{which}",
        )


def _trajectory_picture(content: ReportContent, columns: Sequence[str]) -> Picture:
    from sfg_dist.evaluate import clouds

    trajectories = np.asarray(content.trajectories, dtype=np.float64)
    if content.trajectory_log_beta_sq is None:
        raise DataError("trajectories: trajectory_log_beta_sq is missing: expected one number for each time")
    log_beta_sq = np.asarray(content.trajectory_log_beta_sq, dtype=np.float64)
    if trajectories.ndim != 3 or trajectories.shape[2] != 2 or log_beta_sq.shape != (len(trajectories),):
        raise DataError(
            "trajectories: expected shape (num_times, num_rows, 2) with one log_beta_sq for each time, found "
            f"{trajectories.shape} and {log_beta_sq.shape}"
        )
    if not (np.isfinite(trajectories).all() and np.isfinite(log_beta_sq).all()):
        raise DataError("trajectories: expected finite numbers, found NaN or infinity")
    return pictures.picture(
        clouds.trajectory_plot(columns, trajectories, log_beta_sq),
        "Paths of the flow from latents to labels, and snapshots as the noise falls",
        "The probability flow leads from noise to data. β is the standard deviation of the noise.",
    )
