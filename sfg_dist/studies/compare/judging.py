"""How every method is judged: the same code for all, on rows in the user's units against the test rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import Prepared, Transform
from sfg_dist.evaluate import classifier_test, measure
from sfg_dist.evaluate.judge import References
from sfg_dist.evaluate.judgement import Figure
from sfg_dist.job.errors import TrainingError
from sfg_dist.job.reader import check_fields
from sfg_dist.studies.compare.judged import judged_figures
from sfg_dist.studies.records import from_json, to_json

TIMED_ROWS = 16_384
TIMED_S = 2.0  # repetitions stop here
MAX_REPEATS = 7
TRANSFORMED_ROWS = 4096

Rows = NDArray[np.float64]
Draw = Callable[[int], Rows]
"""Draws so many samples in the user's units, shape (num_rows, num_columns)."""
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Rules:
    """What is the same for every method."""

    max_time_s: float  # wall-clock budget of labels and fit
    marks: Sequence[float]  # shares of the budget at which a snapshot is kept; it is judged later, outside the budget
    num_samples: int  # drawn for the figures
    metrics: Sequence[str]  # names of the figures
    metric_seed: int  # of the figures' own draws
    target: str | None = None  # the column that utility predicts


@dataclass(frozen=True, kw_only=True)
class FitFacts:
    """What a fit says of itself."""

    label_s: float  # wall-clock seconds
    fit_s: float
    num_steps: int  # batches of the fit
    num_parameters: int  # of the network that draws
    num_evaluations: int  # passes of the network for a sample
    best_at_s: float | None = None  # when the weights that are kept were reached, where the fit chooses among them
    configuration: dict[str, Any] | None = None  # what the page says of it, where it is not a peer's
    num_pairs: int | None = None  # labels that were made
    num_pairs_wanted: int | None = None  # labels that the job asks for


@dataclass(frozen=True)
class Fitted:
    """A fitted method as it is judged; one fit may stand for two rows of the table."""

    name: str  # of the row of the table
    draw: Draw  # its samples
    # (seconds of the budget, draw) of the snapshots, each valid until the next is taken
    earlier: Callable[[], Iterable[tuple[float, Draw]]]
    # draws without the way back to the user's units, which all methods share; it is timed
    draw_flow_rows: Callable[[int], object]
    transform: Transform  # the way back, which is timed by itself
    test_log_density: NDArray[np.float64]  # of test rows in the user's units; empty where the method has no density
    facts: FitFacts  # of the fit


@dataclass(frozen=True)
class Point:
    """The AUC after a part of the budget, its standard error, and the seconds until then."""

    elapsed_s: float
    c2st_auc: float | None
    c2st_auc_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Judged(FitFacts):
    """What is found of a fit beside the figures of its samples."""

    # test rows with a density, and those whose density is not finite
    num_likelihood_rows: int
    num_likelihood_not_finite: int
    us_per_sample: float  # microseconds for a row
    us_per_sample_back: float  # the same of the way back to the user's units
    num_not_finite: int  # samples with NaN or infinity, which are left out
    curve: Sequence[Point]  # by time, the end last


@dataclass(frozen=True, kw_only=True)
class Cell(Judged):
    """What is found of a row of the table with one seed."""

    c2st_auc: float | None
    c2st_auc_error: float | None
    metrics: Figures  # figures of samples by name, beside the classifier's AUC
    figures: Mapping[str, Figure]  # those of the judgement by name
    test_log_likelihood: float | None
    test_log_likelihood_error: float | None
    # of the machine, before and after. Above the number of threads, others were at work.
    load_average: Sequence[float] = ()

    def to_json(self) -> dict[str, Any]:
        """As a record holds it: the metrics stand among the other figures."""
        document: dict[str, Any] = to_json(self)
        metrics: dict[str, Any] = document.pop("metrics")
        return document | metrics

    @classmethod
    def from_json(cls, document: dict[str, Any], name: str) -> Cell:
        """From ``to_json``.

        Raises:
            DocumentError: a figure is missing or wrong.
        """
        check_fields(document, dict, name)
        names = {field.name for field in fields(cls)}
        metrics = {key: value for key, value in document.items() if key not in names}
        return from_json(cls, document | {"metrics": metrics}, name)


def judge(fitted: Fitted, table: Prepared, rules: Rules, references: References | None = None) -> tuple[Cell, Rows]:
    """What is found of a fitted method, and its samples; ``references`` are shared by all methods.

    Raises:
        TrainingError: nearly all samples hold NaN or infinity.
    """
    drawn = fitted.draw(rules.num_samples)
    coded = table.coded(drawn)
    rows, num_bad = finite_rows(coded, fitted.name)
    found = figures(rows, table, metrics=rules.metrics, seed=rules.metric_seed)
    end = Point(fitted.facts.label_s + fitted.facts.fit_s, found.pop("c2st_auc"), found.pop("c2st_auc_error"))
    density = fitted.test_log_density
    num_infinite = int((~np.isfinite(density)).sum())
    mean, error = mean_and_error(density) if len(density) and not num_infinite else (None, None)
    flow_rows = fitted.transform.forward(drawn[np.isfinite(coded).all(axis=1)][:TRANSFORMED_ROWS])
    cell = Cell(
        **vars(fitted.facts),
        c2st_auc=end.c2st_auc,
        c2st_auc_error=end.c2st_auc_error,
        metrics=found,
        figures=judged_figures(
            drawn[np.isfinite(coded).all(axis=1)],
            table,
            target=rules.target,
            seed=rules.metric_seed,
            references=references,
        ),
        test_log_likelihood=mean,
        test_log_likelihood_error=error,
        num_likelihood_rows=len(density),
        num_likelihood_not_finite=num_infinite,
        us_per_sample=us_per_row(fitted.draw_flow_rows),
        us_per_sample_back=us_per_row(lambda n: fitted.transform.inverse(flow_rows[:n]), len(flow_rows)),
        num_not_finite=num_bad,
        curve=[*_earlier(fitted, table, rules), end],
    )
    return cell, rows


def _earlier(fitted: Fitted, table: Prepared, rules: Rules) -> Iterator[Point]:
    """The AUC of the snapshots; one whose samples are mostly NaN or infinity is left out."""
    for seconds, draw in fitted.earlier():
        drawn = table.coded(draw(min(rules.num_samples, len(table.test))))
        good = drawn[np.isfinite(drawn).all(axis=1)]
        if len(good) > len(drawn) / 2:
            yield Point(seconds, **auc(good, table, seed=rules.metric_seed))


def figures(rows: Rows, table: Prepared, *, metrics: Sequence[str], seed: int) -> Figures:
    """All figures of a method's rows, finite, as ``Prepared.coded`` has them, against test rows.

    They are those of ``measure``, the classifier test in any case, and c2st_auc_error, the standard error of its AUC.
    """
    others = [name for name in metrics if name != "c2st_auc" and (name != "kl" or table.log_density is not None)]
    found = auc(rows, table, seed=seed)
    if others:
        found |= measure(
            rows,
            table.coded(table.test),
            table.coded(table.train),
            metrics=others,
            seed=seed,
            log_density=table.log_density,
        )
    return found


def auc(rows: Rows, table: Prepared, *, seed: int) -> Figures:
    """c2st_auc against the test rows, and its standard error."""
    result = classifier_test(rows, table.coded(table.test), seed=seed)
    return {"c2st_auc": result and result[0], "c2st_auc_error": result and result[1]}


def finite_rows(rows: Rows, name: str) -> tuple[Rows, int]:
    """The rows without NaN or infinity, and how many were left out.

    Raises:
        TrainingError: nearly all of them were.
    """
    good = np.isfinite(rows).all(axis=1)
    if good.sum() < 0.5 * len(rows):
        raise TrainingError(f"{name}: {len(rows) - good.sum()} of {len(rows)} samples hold NaN or infinity")
    return rows[good], int(len(rows) - good.sum())


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def us_per_row(draw: Callable[[int], object], num_rows: int | None = None) -> float:
    """Microseconds a row: the median of some calls that draw ``num_rows`` (TIMED_ROWS) rows each, after a short one."""
    num_rows = TIMED_ROWS if num_rows is None else num_rows
    draw(min(num_rows, 256))
    seconds: list[float] = []
    while not seconds or (sum(seconds) < TIMED_S and len(seconds) < MAX_REPEATS):
        started = time.perf_counter()
        draw(num_rows)
        seconds.append(time.perf_counter() - started)
    return 1e6 * float(np.median(seconds)) / num_rows
