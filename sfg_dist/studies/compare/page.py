"""The page of a comparison, compare.html, and its table as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sfg_dist.evaluate.pictures import Picture, picture
from sfg_dist.evaluate.plain_figures import MEANINGS, NO_VALUE, shown_number
from sfg_dist.job.words import WIDE, duration, wide_number
from sfg_dist.studies.compare import pictures
from sfg_dist.studies.compare.document import (
    ATTACK,
    FIDELITY,
    NAMES,
    NOT_PEERS,
    OURS,
    Comparison,
    Method,
    mean_auc,
    mean_figure,
    mean_likelihood,
)
from sfg_dist.studies.page import Section, render_study

OVERRUN = 1.02
"""Times the budget from which on the page says so."""
PACKAGED = ("ctgan", "tvae", "forest_diffusion")
"""Methods whose epochs or trees are planned by timed runs."""
MANY_FITS = 4.0
"""A load average so far above the number of threads says that others were at work."""
TABLE_NOTE = """
All figures are against the held-out rows, in the units of the table; ± is one standard error. The AUC says how well
boosted trees tell samples from held-out rows; 0.5 is perfect. The floor has training rows in place of samples. The
log-likelihood is in nats a row, with the Jacobian of the transform; higher is better. For flow matching and the score
model it is computed along the ODE with the exact divergence, on a random part of the rows. Training is the wall-clock
time of labels + fit. The cost of a row leaves out the way back to the units of the table, which all methods share but
CTGAN, TVAE and ForestDiffusion: their packages have ways of their own, and their costs hold all of it.
"""
CONFIGURATION_NOTE = """
NSF, RealNVP, flow matching and the score model each took the better of two transforms, quantile and standardizing, and
the best of three learning rates. They were chosen by the AUC of short fits against validation rows: first all six, then
the best two anew for three times as long. These and TabDDPM are fitted by Adam with a learning rate that falls to zero
with the time. Their weights are averaged, and those that were best on the validation rows are kept. The score model is
one fit with two samplers. TabDDPM and the Gaussian copula take the scores of the quantile transform. CTGAN and TVAE
take numbers and categories as they are, ForestDiffusion takes categories as whole numbers. Short timed runs choose
their epochs or trees. compare.json holds every trial.
"""
TITLES = {
    "shape": "shape",
    "trend": "trend",
    "c2st_trees_held_out": "trees, held-out",
    "c2st_trees_train": "trees, training",
    "alpha_precision": "alpha precision",
    "beta_recall": "beta recall",
    "utility": "utility",
    "attack_auc": "attack",
}
"""Columns of the table of the judgement's figures."""
FIGURES_NOTE = """
Shape is the part of each column's distribution that samples and held-out rows share. Trend is how well the
correlations of two numbers agree, or the counts where there are categories. 1 is best. Trees are the AUC of boosted
trees between samples and held-out rows, and between samples and training rows: 0.5 is perfect, and copies fall below
it against training rows. Alpha precision says whether samples lie where held-out rows do, beta recall how much of
these has a sample nearby. Utility is how well a model fitted to samples predicts the target. The attack is the AUC of
an attacker who tells training rows from held-out rows by the samples: 0.5 is by chance. The attack must find copies,
and the trees must find independent columns: this shows that the figures work. Real rows are the best that can be
expected.
"""


class TableRow(NamedTuple):
    """A row of the one table, as text."""

    name: str
    auc: str
    likelihood: str
    marginal_kl: str
    time: str
    cost: str
    evaluations: str


def render_page(document: Comparison, *, title: str, job_toml: str) -> str:
    """The page as one string of HTML; the same document of compare.json gives the same page."""
    notes = list(_notes(document))
    return render_study(title, document.verdict, _sections(document), _facts(document), job_toml, notes)


def text_table(document: Comparison) -> list[str]:
    """The one table in columns of text."""
    heads = TableRow("method", "AUC", "test log-lik.", "marginal KL", "labels + fit", "us a row", "passes")
    rows = [heads, *main_table(document)]
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = ["  ".join(map(str.rjust, row[1:], widths)) for row in rows]
    return [f"{row.name.ljust(first)}  {line}" for row, line in zip(rows, numbers, strict=True)]


def main_table(document: Comparison) -> list[TableRow]:
    """The rows of the one table, the floor first."""
    floor = document.floor
    auc, kl = with_error(floor.get("c2st_auc"), floor.get("c2st_auc_error")), floor.get("marginal_kl_mean")
    rows = [TableRow("real rows (floor)", auc, NO_VALUE, shown_number(kl), NO_VALUE, NO_VALUE, NO_VALUE)]
    for name, method in document.methods.items():
        likelihood = mean_likelihood(method)
        labels = f"{duration(method.label_s)} + " if method.label_s else ""
        rows.append(
            TableRow(
                name=NAMES[name],
                auc=with_error(*(mean_auc(method) or (None, None))),
                likelihood=NO_VALUE if likelihood is None else with_error(*likelihood, digits=2),
                marginal_kl=shown_number(_mean(method.metrics.get("marginal_kl_mean"))),
                time=labels + duration(method.fit_s),
                cost=_microseconds(method.us_per_sample),
                evaluations=f"{method.num_evaluations:,}",
            )
        )
    return rows


def with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """A number and its standard error; one that no column has room for has three digits and a power of ten.

    Examples:
        >>> with_error(0.5, 0.01), with_error(-1.6329665e20, 3e19)
        ('0.500 ± 0.010', '−1.63e20 ± 3.00e19')
    """
    if value is None:
        return NO_VALUE
    numbers = [value] if error is None else [value, error]
    is_wide = max(map(abs, numbers)) >= WIDE
    shown = " ± ".join(wide_number(number) if is_wide else f"{number:.{digits}f}" for number in numbers)
    return shown.replace("-", "\N{MINUS SIGN}")


def shown_figures(methods: Mapping[str, Method]) -> list[str]:
    """The figures of the judgement that some method has."""
    return [name for name in TITLES if any(mean_figure(method, name) for method in methods.values())]


def figure_table(methods: Mapping[str, Method], names: Sequence[str]) -> list[list[str]]:
    """The figures of the judgement: real rows, copies of training rows and independent columns, then each method."""
    first = next(iter(methods.values())).figures
    rows = [
        [title, *(shown_figure(getattr(first[name][0], field)) for name in names)]
        for title, field in (
            ("real rows (floor)", "floor"), ("copy of training rows", "copy"), ("independent columns", "independent")
        )
    ]  # fmt: skip
    for method, found in methods.items():
        values = (mean_figure(found, name) for name in names)
        cells = (f"{shown_figure(value[0])}\n± {value[1]:.3f}" if value else NO_VALUE for value in values)
        rows.append([NAMES[method], *cells])
    return rows


def shown_figure(value: float | None) -> str:
    """A figure of three digits."""
    return with_error(value, None)


def size_table(sizes: Mapping[str, Method]) -> list[tuple[str, str, str, str]]:
    """Other sizes of ours: width x depth, parameters, cost and AUC."""
    return [
        (
            size,
            f"{method.num_parameters:,}",
            _microseconds(method.us_per_sample),
            with_error(*(mean_auc(method) or (None, None))),
        )
        for size, method in sorted(sizes.items(), key=lambda item: item[1].us_per_sample)
    ]


def _sections(document: Comparison) -> list[Section]:
    columns = ("method", ">classifier AUC", ">test log-likelihood", ">marginal KL", ">training", ">µs a row",
               ">passes a row")  # fmt: skip
    methods = document.methods.values()
    sections = [
        Section("All methods", columns=columns, rows=main_table(document), own_row=NAMES[OURS], note=TABLE_NOTE),
        Section(pictures=list(_pictures(document))),
    ]
    if names := shown_figures(document.methods):
        heads = ("rows", *(f">{TITLES[name]}" for name in names))
        found = figure_table(document.methods, names)
        sections.append(
            Section(
                "Fidelity, diversity, utility, privacy",
                columns=heads,
                rows=found,
                own_row=NAMES[OURS],
                note=FIGURES_NOTE,
            )
        )
    if document.sizes:
        sizes = ("width x depth", ">parameters", ">µs a row", ">classifier AUC")
        sections.append(Section("Other sizes of the generator", columns=sizes, rows=size_table(document.sizes)))
    if names := [name for name in MEANINGS if any(name in method.metrics for method in methods)]:
        rows = [
            (
                "\n".join(MEANINGS[name]),
                shown_number(document.floor.get(name)),
                *(shown_number(_mean(method.metrics.get(name))) for method in methods),
            )
            for name in names
        ]
        figure_columns = ("figure", ">floor", *(f">{NAMES[name]}" for name in document.methods))
        sections.append(Section("Every figure", columns=figure_columns, rows=rows))
    configurations = list(_configurations(document))
    sections.append(
        Section("How each was fitted", columns=("method", "settings"), rows=configurations, note=CONFIGURATION_NOTE)
    )
    return sections


def _mean(values: Sequence[float | None] | None) -> float | None:
    known = [value for value in values or () if value is not None]
    return sum(known) / len(known) if known else None


def _microseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _configurations(document: Comparison) -> Iterator[tuple[str, str]]:
    for name, method in document.methods.items():
        text = ", ".join(f"{key} {value}" for key, value in (method.configuration or {}).items())
        if name in NOT_PEERS:
            text = f"{method.num_pairs:,} pairs of {method.num_pairs_wanted:,} asked for, {text}"
        parameters = f"{method.num_parameters:,} parameters, " if method.num_parameters else ""
        yield NAMES[name], f"{text}; {parameters}{method.num_steps:,} steps"


def _facts(document: Comparison) -> dict[str, str]:
    budget = document.budget
    return {
        "budget": f"{duration(budget.max_time_s)} for each method, labels included; transforms are fitted outside it",
        "seeds": str(budget.num_seeds),
        "selection": f"fits of {budget.selection_time_s:g} s, outside the budget",
        **document.facts,
    }


def _notes(document: Comparison) -> Iterator[str]:
    limit_s = document.budget.max_time_s
    for name, method in document.methods.items():
        spent_s = method.label_s + method.fit_s
        if spent_s > OVERRUN * limit_s:
            reason = "its timed runs were quicker" if name in PACKAGED else "its last steps were long"
            yield f"{NAMES[name]}: {spent_s:.0f} s instead of {limit_s:g} s, since {reason}."
        made, wanted = method.num_pairs or 0, method.num_pairs_wanted or 0
        if made < wanted:
            share = document.budget.max_label_share
            yield (
                f"{NAMES[name]}: {made:,} of {wanted:,} pairs; more labels would take more than {100 * share:.0f} % of "
                f"the budget."
            )
        if method.num_not_finite:
            yield f"{NAMES[name]}: {method.num_not_finite:,} samples held NaN or infinity and were left out."
        if method.num_likelihood_not_finite:
            yield (
                f"{NAMES[name]}: the log density of {method.num_likelihood_not_finite:,} test rows is not finite, so "
                "their mean is not shown."
            )
    threads = int(document.facts["threads"])
    busy = [NAMES[name] for name, method in document.methods.items() if method.load_average > threads + MANY_FITS]
    if busy:
        yield f"Other processes were at work on the machine during {', '.join(busy)}: times are not comparable."


def _pictures(document: Comparison) -> Iterator[Picture]:
    methods = document.methods
    if (costs := pictures.costs(methods, document.sizes)) is not None:
        yield picture(
            costs,
            "Points of the AUC of boosted trees against microseconds a sampled row, one for each method",
            "Fidelity against the cost of a sampled row; lower left is better.",
        )
    if (privacy := pictures.privacy(methods)) is not None:
        first = next(iter(methods.values())).figures
        copies, independent = (
            " and ".join(shown_figure(getattr(first[name][0], field)) for name in (ATTACK, FIDELITY))
            for field in ("copy", "independent")
        )
        yield picture(
            privacy,
            "Points of the AUC of boosted trees against the AUC of a membership attack, one for each method",
            f"Fidelity against privacy; lower left is better. Copies of training rows lie at {copies}, independent "
            f"columns at {independent}.",
        )
    yield picture(
        pictures.curves(methods, document.floor.get("c2st_auc"), document.budget.max_time_s),
        "Lines of the classifier's AUC against seconds, one for each method",
        "The AUC of each method after a part of its budget; the judging is outside the budget. Learning rates are "
        "planned for the whole budget, so a method with less time from the start would do a little better on the left. "
        "Methods of packages have their end alone.",
    )
