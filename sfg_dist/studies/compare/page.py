"""The page of a comparison: compare.html, in the report's style, with every picture inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sfg_dist.evaluate.figures import to_data_uri
from sfg_dist.evaluate.report import MEANINGS, NO_VALUE, shown_number
from sfg_dist.evaluate.templates import page_template
from sfg_dist.job.words import WIDE, duration, wide_number
from sfg_dist.studies.compare import figures
from sfg_dist.studies.compare.document import NAMES, NOT_PEERS, mean_auc, mean_likelihood

OVERRUN = 1.02
"""Times the budget from which on the page says so."""
MANY_FITS = 4.0
"""A load average so far above the number of threads says that others were at work."""


def render_page(document: Mapping[str, Any], *, title: str, job_toml: str) -> str:
    """The page as one string of HTML; the same document gives the same page.

    Args:
        document: of compare.json.
        title: heading.
        job_toml: the job as resolved.
    """
    methods = document["methods"]
    return page_template("studies/compare/compare.html").render(
        title=title,
        verdict=document["verdict"],
        table=main_table(document),
        details=_detail_table(document),
        sizes=size_table(document["sizes"]),
        pictures=list(_pictures(document)),
        configurations=list(_configurations(document)),
        facts=_facts(document),
        notes=list(_notes(document)),
        has_score=any(name.startswith("score") for name in methods),
        job_toml=job_toml,
    )


def main_table(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the one table, the floor first: text a column."""
    floor = document["floor"]
    rows: list[dict[str, Any]] = [
        {
            "name": "real rows (floor)",
            "is_own": False,
            "auc": with_error(floor.get("c2st_auc"), floor.get("c2st_auc_error")),
            "likelihood": NO_VALUE,
            "marginal_kl": shown_number(floor.get("marginal_kl_mean")),
            "time": NO_VALUE,
            "cost": NO_VALUE,
            "evaluations": NO_VALUE,
        }
    ]
    for name, entry in document["methods"].items():
        likelihood = mean_likelihood(entry)
        kl = entry["metrics"].get("marginal_kl_mean")
        labels = f"{duration(entry['label_s'])} + " if entry["label_s"] else ""
        rows.append(
            {
                "name": NAMES[name],
                "is_own": name == "sfg",
                "auc": with_error(*(mean_auc(entry) or (None, None))),
                "likelihood": NO_VALUE if likelihood is None else with_error(*likelihood, digits=2),
                "marginal_kl": shown_number(_mean(kl)),
                "time": labels + duration(entry["fit_s"]),
                "cost": _microseconds(entry["us_per_sample"]),
                "evaluations": f"{entry['num_evaluations']:,}",
            }
        )
    return rows


def with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """A number and its standard error; one that no column has room for has three digits and a power of ten.

    Example:
        >>> with_error(0.5, 0.01), with_error(-1.6329665e20, 3e19)
        ('0.500 ± 0.010', '−1.63e20 ± 3.00e19')
    """
    if value is None:
        return NO_VALUE
    numbers = [value] if error is None else [value, error]
    is_wide = max(map(abs, numbers)) >= WIDE
    shown = " ± ".join(wide_number(number) if is_wide else f"{number:.{digits}f}" for number in numbers)
    return shown.replace("-", "\N{MINUS SIGN}")


def size_table(sizes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Other sizes of ours: width x depth, parameters, cost and AUC."""
    return [
        {
            "name": size,
            "parameters": f"{entry['num_parameters']:,}",
            "cost": _microseconds(entry["us_per_sample"]),
            "auc": with_error(*(mean_auc(entry) or (None, None))),
        }
        for size, entry in sorted(sizes.items(), key=lambda item: item[1]["us_per_sample"])
    ]


def _detail_table(document: Mapping[str, Any]) -> dict[str, Any]:
    """Every other figure: a line a figure, a column a method."""
    methods = document["methods"]
    names = [name for name in MEANINGS if any(name in entry["metrics"] for entry in methods.values())]
    lines = [
        {
            "name": MEANINGS[name][0],
            "good": MEANINGS[name][1],
            "numbers": [shown_number(document["floor"].get(name))]
            + [shown_number(_mean(entry["metrics"].get(name))) for entry in methods.values()],
        }
        for name in names
    ]
    return {"columns": ["floor", *(NAMES[name] for name in methods)], "lines": lines}


def _mean(values: Sequence[float | None] | None) -> float | None:
    known = [value for value in values or () if value is not None]
    return sum(known) / len(known) if known else None


def _microseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _configurations(document: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for name, entry in document["methods"].items():
        text = ", ".join(f"{key} {value}" for key, value in entry["configuration"].items())
        if name in NOT_PEERS:
            text = f"{entry['num_pairs']:,} pairs of {entry['num_pairs_wanted']:,} asked for, {text}"
        yield {
            "name": NAMES[name],
            "text": f"{text}; {entry['num_parameters']:,} parameters, {entry['num_steps']:,} steps",
        }


def _facts(document: Mapping[str, Any]) -> dict[str, str]:
    budget = document["budget"]
    return {
        "budget": f"{duration(budget['max_time_s'])} a method, labels and fit",
        "seeds": str(budget["num_seeds"]),
        "selection": f"fits of {budget['selection_time_s']:g} s, outside the budget",
        **document["facts"],
    }


def _notes(document: Mapping[str, Any]) -> Iterator[str]:
    limit_s = document["budget"]["max_time_s"]
    for name, entry in document["methods"].items():
        spent_s = entry["label_s"] + entry["fit_s"]
        if spent_s > OVERRUN * limit_s:
            yield f"{NAMES[name]}: {spent_s:.0f} s instead of {limit_s:g} s, since its last steps were long."
        if entry.get("num_pairs", 0) < entry.get("num_pairs_wanted", 0):
            share = document["budget"]["max_label_share"]
            yield (
                f"{NAMES[name]}: {entry['num_pairs']:,} of {entry['num_pairs_wanted']:,} pairs; more labels would take "
                f"more than {100 * share:.0f} % of the budget."
            )
        if entry["num_not_finite"]:
            yield f"{NAMES[name]}: {entry['num_not_finite']:,} samples held NaN or infinity and were left out."
        if entry["num_likelihood_not_finite"]:
            yield (
                f"{NAMES[name]}: the log density of {entry['num_likelihood_not_finite']:,} test rows is not finite, so "
                "their mean is not shown."
            )
    threads = int(document["facts"]["threads"])
    busy = [NAMES[name] for name, entry in document["methods"].items() if entry["load_average"] > threads + MANY_FITS]
    if busy:
        yield f"Other processes were at work on the machine during {', '.join(busy)}: times are not comparable."


def _pictures(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    methods, floor = document["methods"], document["floor"].get("c2st_auc")
    drawn = [
        (
            figures.curves(methods, floor, document["budget"]["max_time_s"]),
            "Lines of the classifier's AUC against seconds, one a method",
            "What each method has after a part of its budget, judged outside it. Learning rates are planned for the "
            "whole budget, so a method that was given less from the start would stand a little lower on the left.",
        ),
        (
            figures.costs(methods, document["sizes"]),
            "Points of AUC against microseconds a sampled row",
            "The cost of a sampled row and its quality; lower left is better.",
        ),
    ]
    for figure, alt, caption in drawn:
        if figure is not None:
            width = round(100 * figure.get_figwidth())
            yield {"uri": to_data_uri(figure), "width": width, "alt": alt, "caption": caption}
