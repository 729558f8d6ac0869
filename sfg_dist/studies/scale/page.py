"""The page of a scaling study: scale.html, in the report's style, with every picture inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sfg_dist.evaluate.figures import to_data_uri
from sfg_dist.evaluate.templates import page_template
from sfg_dist.studies.scale import figures

LAW_NAMES = {"amdahl": "Amdahl", "universal": "universal scalability"}
NUMBER_NAMES = {"serial_share": "serial share", "contention": "contention", "coherence": "coherence"}


def render_page(document: Mapping[str, Any], *, title: str, job_toml: str) -> str:
    """The page as one string of HTML; the same document gives the same page.

    Args:
        document: of scale.json.
        title: heading.
        job_toml: the job as resolved.
    """
    return page_template("studies/scale/scale.html").render(
        title=title,
        verdict=list(verdict(document)),
        table=main_table(document["summary"]),
        laws=list(law_lines(document["fit"])),
        pictures=list(_pictures(document)),
        validation=list(validation_lines(document)),
        predictions=prediction_table(document.get("predictions", [])),
        assumptions=document.get("assumptions", {}),
        comparison=list(comparison_lines(document)),
        facts=document["facts"],
        job_toml=job_toml,
    )


def verdict(document: Mapping[str, Any]) -> Iterator[str]:
    """A sentence a stage and mode."""
    for case, entries in document["summary"].items():
        last = entries[-1]
        if len(entries) > 1:
            yield (
                f"{case}: efficiency {shown(last['efficiency'])} with {last['num_workers']} workers "
                f"({shown(last['efficiency_low'])} to {shown(last['efficiency_high'])} over the runs)."
            )
        else:
            yield f"{case}: one number of workers, {last['num_workers']}: nothing to compare with."


def main_table(summary: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """The rows of the table: text a column."""
    return [
        {
            "case": case,
            "workers": str(entry["num_workers"]),
            "runs": str(entry["num_runs"]),
            "wall": f"{entry['wall_s']:.1f} ({entry['wall_s_low']:.1f} to {entry['wall_s_high']:.1f})",
            "rate": f"{entry['rows_per_s']:,.0f}",
            "efficiency": f"{shown(entry['efficiency'])} ({shown(entry['efficiency_low'])} to "
            f"{shown(entry['efficiency_high'])})",
            "parts": ", ".join(f"{name} {seconds:.1f}" for name, seconds in entry["parts_s"].items()),
        }
        for case, entries in summary.items()
        for entry in entries
    ]


def law_lines(fit: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line a stage and law."""
    for stage, laws in fit.items():
        for name, law in laws.items():
            if "missing" in law:
                yield f"{stage}, {LAW_NAMES[name]}: {law['missing']}."
                continue
            numbers = ", ".join(
                f"{words} {law[key]['value']:.2g} {_interval(law[key])}"
                for key, words in NUMBER_NAMES.items()
                if key in law
            )
            if law.get("peak") is not None:
                numbers += f", most is done by about {law['peak']:.0f} workers"
            if law["is_tested"]:
                yield f"{stage}, {LAW_NAMES[name]}: {numbers}; times fit within {100 * law['residual']:.1f} %."
            else:
                yield (
                    f"{stage}, {LAW_NAMES[name]}: {numbers}; it has as many numbers as there are numbers of workers, "
                    f"and is not tested by them."
                )


def _interval(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return "(no runs to spare: no interval)"
    return f"({entry['low']:.2g} to {entry['high']:.2g})"


def validation_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The simulation beside the study's own runs, a line a number of workers."""
    for entry in document.get("validation", ()):
        measured, predicted = entry["measured_s"], entry["predicted_s"]
        yield (
            f"{entry['num_workers']} workers: {measured:.1f} s measured up to the last commit, {predicted:.1f} s "
            f"simulated by the costs of the fewest ({100 * (predicted / measured - 1):+.1f} %), "
            f"{entry['predicted_own_s']:.1f} s by the costs of these runs"
        )
    if (slowdown := document.get("slowdown")) is not None:
        yield (
            f"a shard takes {slowdown:.2f} times as long where the most workers are at work as where the fewest are: "
            f"predictions have the costs of the former, and their efficiency is against workers as slow"
        )


def comparison_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """This study beside another one, a line a case."""
    comparison = document.get("comparison")
    if comparison is None:
        return
    yield from (f"the studies differ in {text}" for text in comparison["differences"])
    for entry in comparison["cases"]:
        yield (
            f"{entry['case']}, {entry['num_workers']} workers: {entry['ratio']:.2f} times as long a row as there "
            f"({entry['ratio_low']:.2f} to {entry['ratio_high']:.2f})"
        )


def prediction_table(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows of the table of simulated clusters."""
    return [
        {
            "workers": f"{entry['num_workers']:,}",
            "shard": f"{entry['shard_s']:g}",
            "shards": f"{entry['num_shards']:,}",
            "wall": f"{entry['wall_s']:,.0f}",
            "efficiency": shown(entry["efficiency"]),
            "at_work": shown(entry["efficiency_at_work"]),
            "limit": entry["limit"],
        }
        for entry in entries
    ]


def shown(value: float) -> str:
    """A share with two digits."""
    return f"{value:.2f}"


def _pictures(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    drawn = [
        (
            figures.efficiency(document["summary"], document["fit"]),
            "Efficiency against the number of workers",
            "Bars from the slowest run over the fastest base to the opposite; dotted: Amdahl's law as fitted.",
        ),
        (
            figures.parts(document["summary"]),
            "Seconds of a worker by what it did",
            "Seconds of a worker, the mean over those of the run with the median time: start and load until it is at "
            "work; integrating; writing; waiting, for the driver or for others' last shards; the end of all processes.",
        ),
    ]
    if document.get("predictions"):
        drawn.append(
            (
                figures.predictions(document["predictions"]),
                "Efficiency of simulated clusters",
                "The driver's own loop over workers with the costs that were measured; as many shards a worker for "
                "every number of workers.",
            )
        )
    for figure, alt, caption in drawn:
        yield {"uri": to_data_uri(figure), "width": round(100 * figure.get_figwidth()), "alt": alt, "caption": caption}
