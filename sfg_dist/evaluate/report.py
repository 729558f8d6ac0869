"""The report: one HTML page about one table of samples, with every picture inside it.

The page asks for nothing: no script, no font, no address. What the user wrote (names, the job file, notes) is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sfg_dist.evaluate.document import figures_of
from sfg_dist.evaluate.judged_figures import FigureRow, figure_rows, worst_rows
from sfg_dist.evaluate.judgement import JudgedTables
from sfg_dist.evaluate.plain_figures import (
    costliest_rows,
    figure_in,
    gap_words,
    likelihood_rows,
    metric_rows,
    verdict,
)
from sfg_dist.evaluate.report_pictures import Flow, LogDensity, ReportPictures, fit_pictures
from sfg_dist.evaluate.templates import page_template
from sfg_dist.evaluate.verdict import FIDELITY, AspectVerdict, summary, verdicts


@dataclass(frozen=True)
class ReportContent:
    """All that the page shows; rows are in the user's units."""

    title: str  # heading of the page
    tables: JudgedTables  # held-out rows and samples
    # as in metrics.json: figures and what belongs to them (see ``document``); floor, labels and samples (figures by
    # name); time_s (seconds by stage). Any of them may be missing.
    metrics: Mapping[str, Any]
    labels: ArrayLike | None = None  # labels of the pairs, shape (num_labels, dim); None leaves them out
    # for each epoch: epoch, step, train_loss, validation_loss, learning_rate, elapsed_s
    history: Sequence[Mapping[str, Any]] = ()
    flow: Flow | None = None  # paths of the flow, for a table of two columns
    # the true log density for two columns, (num_rows, 2) to (num_rows,) in nats
    log_density: LogDensity | None = None
    job_toml: str = ""  # the job as resolved
    # short things to know, name to value: rows, columns, pairs, device, versions
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what a reader has to be told: ties found, rows dropped
    # how the labels were made, name to value: workers, devices, time, size
    labelling: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()  # attempts at shards that failed on the way, each with its reason


class _Mark(NamedTuple):
    """A mark of the scale under the verdict; its place is in per cent of the way from 0.5 to 1."""

    kind: str
    name: str
    value: str
    place: float


def render_report(content: ReportContent) -> str:
    """The page as one string of HTML; the same content gives the same page.

    Pictures show random subsets of long tables. Figures of an earlier version, without "figures", have the verdict by
    the classifier alone.

    Raises:
        DataError: a table with infinity, or of another width than there are columns; trajectories of another shape
            than (num_times, num_rows, 2) with one log_beta_sq a time.
    """
    metrics = content.metrics
    time_s = _stage_seconds(metrics.get("time_s", {}))
    shown = ReportPictures(content.tables, content.labels)
    aspects = aspects_of(metrics, has_train=content.tables.train is not None)
    headline = [summary(aspects), *gap_words(metrics)] if aspects else _old_verdict(content)
    return page_template("evaluate/report.html").render(
        title=content.title,
        verdict=headline,
        aspects=aspects,
        scale=_auc_scale(metrics),
        notes=[*content.notes, *metrics.get("left_out", ())],
        facts=dict(content.facts),
        groups=_groups(metrics),
        worst_columns=worst_rows(metrics.get("columns", ()), "column", "score", "floor"),
        worst_pairs=worst_rows(metrics.get("pairs", ()), "columns", "score", "floor"),
        column_pictures=shown.worst_columns(metrics.get("columns", ())),
        pair_pictures=shown.worst_pairs(metrics.get("pairs", ())),
        rules=[
            (broken["rule"], _share(broken["share"]), _share(broken["floor"])) for broken in metrics.get("rules", ())
        ],
        calibration=metrics.get("calibration"),
        calibrated=worst_rows(
            (metrics.get("calibration") or {}).get("columns", ()),
            *("column", "rank_distance", "rank_spread", "crps", "crps_floor"),
        ),
        table=metric_rows(metrics),
        likelihood=likelihood_rows(metrics.get("likelihood") or {}),
        costliest=costliest_rows(metrics.get("likelihood") or {}),
        cloud_pictures=list(shown.clouds(content.log_density, content.flow)),
        fit_pictures=list(fit_pictures(content.history, time_s)),
        job_toml=content.job_toml,
        labelling=dict(content.labelling),
        failures=list(content.failures),
    )


def aspects_of(metrics: Mapping[str, Any], *, has_train: bool) -> list[AspectVerdict]:
    """The verdict of each aspect by the figures of metrics.json; none where it has no "figures"."""
    if "figures" not in metrics:
        return []
    return verdicts(figures_of(metrics), metrics.get("target"), has_train=has_train)


def _old_verdict(content: ReportContent) -> list[str]:
    return verdict(content.metrics, len(np.asarray(content.tables.held_out)))


def _groups(metrics: Mapping[str, Any]) -> dict[str, list[FigureRow]]:
    """The rows of the table of figures, by aspect."""
    groups: dict[str, list[FigureRow]] = {}
    for row in figure_rows(figures_of(metrics)):
        groups.setdefault(row.aspect, []).append(row)
    return groups


def _share(value: float) -> str:
    return f"{100 * value:.2g} %"


def _auc_scale(metrics: Mapping[str, Any]) -> list[_Mark]:
    """Marks of the scale under the verdict: real rows, samples, and independent columns or labels."""
    trees = figures_of(metrics).get(FIDELITY.name)
    if trees is None:
        names = (("floor", "real rows (floor)"), ("labels", "labels"), ("samples", "samples"))
        values = [(kind, name, figure_in(metrics, kind, "c2st_auc")) for kind, name in names]
    else:
        values = [
            ("floor", "real rows", trees.floor),
            ("independent", "independent columns", trees.independent),
            ("samples", "samples", trees.value),
        ]
    return [
        _Mark(kind, name, f"{value:.3f}", round(100 * min(max((value - 0.5) / 0.5, 0.0), 1.0), 2))
        for kind, name, value in values
        if value is not None
    ]


def _stage_seconds(time_s: Mapping[str, Any]) -> dict[str, float]:
    """The stages with a finite time; the total is not a stage."""
    seconds = {str(name): figure_in({"time_s": time_s}, "time_s", name) for name in time_s if name != "total"}
    return {name: value for name, value in seconds.items() if value is not None}
