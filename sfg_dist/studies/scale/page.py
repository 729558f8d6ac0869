"""The page of a scaling study, scale.html, and the same in lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sfg_dist.evaluate.pictures import Picture, picture
from sfg_dist.studies.page import Section, render_study
from sfg_dist.studies.scale import pictures
from sfg_dist.studies.scale.results import (
    AmdahlFit,
    Efficiency,
    Laws,
    MissingLaw,
    Number,
    Prediction,
    StudyDocument,
    UniversalFit,
)

TABLE_NOTE = """
Medians; in brackets the fastest and the slowest run; of the run with the median time the seconds of a worker. Strong
scaling: the same work for every number of workers; weak: so many times the work. Ray's own start is left out, the
workers' start is not.
"""
LAWS_NOTE = """
Least squares of log time over all strong-scaling runs; in brackets intervals of 90 % by Student's t. Coherence is what
grows with the pairs of workers; with it there is a number beyond which more workers do less.
"""


def render_page(document: StudyDocument, *, title: str, job_toml: str) -> str:
    """The page as one string of HTML; the same document of scale.json gives the same page."""
    sentences = list(verdict(document))
    return render_study(title, sentences or [title], _sections(document), document.facts, job_toml)


def text_lines(document: StudyDocument) -> list[str]:
    """All that the study found, a line each."""
    return [
        *verdict(document),
        *law_lines(document.fit),
        *validation_lines(document),
        *(
            f"{workers:>6} workers, shards of {shard_s} s: efficiency {efficiency} ({at_work} without start-up), "
            f"limited by {limit}"
            for workers, shard_s, _, _, efficiency, at_work, limit in prediction_table(document.predictions or ())
        ),
        *comparison_lines(document),
    ]


def _sections(document: StudyDocument) -> list[Section]:
    runs = ("stage, scaling", ">workers", ">runs", ">seconds", ">rows a second", ">efficiency", "seconds of a worker")
    simulated = (">workers", ">seconds a shard", ">shards", ">seconds", ">efficiency", ">without start-up",
                 "what limits it")  # fmt: skip
    sections = [
        Section("All runs", columns=runs, rows=main_table(document.summary), note=TABLE_NOTE),
        Section(pictures=list(_pictures(document))),
    ]
    if document.fit:
        sections.append(Section("Laws", list(law_lines(document.fit)), note=LAWS_NOTE))
    if document.predictions:
        assumed = "; ".join(f"{name} {value}" for name, value in (document.assumptions or {}).items())
        lines = [*(f"The simulation beside the runs: {line}" for line in validation_lines(document)),
                 *([f"Assumed: {assumed}."] if assumed else [])]  # fmt: skip
        rows = prediction_table(document.predictions)
        sections.append(Section("Larger clusters, simulated", lines, simulated, rows))
    if document.comparison is not None:
        sections.append(Section("Beside another study", list(comparison_lines(document))))
    return sections


def verdict(document: StudyDocument) -> Iterator[str]:
    """A sentence for each stage and mode."""
    for case, entries in document.summary.items():
        last = entries[-1]
        if len(entries) > 1:
            yield (
                f"{case}: efficiency {last.efficiency:.2f} with {last.num_workers} workers "
                f"({last.efficiency_low:.2f} to {last.efficiency_high:.2f} over the runs)."
            )
        else:
            yield f"{case}: one number of workers, {last.num_workers}: nothing to compare with."


def main_table(summary: Mapping[str, Sequence[Efficiency]]) -> list[tuple[str, ...]]:
    """The rows of the table, text for each column."""
    return [
        (
            case,
            str(entry.num_workers),
            str(entry.num_runs),
            f"{entry.wall_s:.1f} ({entry.wall_s_low:.1f} to {entry.wall_s_high:.1f})",
            f"{entry.rows_per_s:,.0f}",
            f"{entry.efficiency:.2f} ({entry.efficiency_low:.2f} to {entry.efficiency_high:.2f})",
            ", ".join(f"{name} {seconds:.1f}" for name, seconds in entry.parts_s.items()),
        )
        for case, entries in summary.items()
        for entry in entries
    ]


def law_lines(fit: Mapping[str, Laws]) -> Iterator[str]:
    """A line for each stage and law."""
    for stage, laws in fit.items():
        for name, law in (("Amdahl", laws.amdahl), ("universal scalability", laws.universal)):
            if isinstance(law, MissingLaw):
                yield f"{stage}, {name}: {law.missing}."
            elif law.is_tested:
                yield f"{stage}, {name}: {_numbers(law)}; times fit within {100 * law.residual:.1f} %."
            else:
                yield (
                    f"{stage}, {name}: {_numbers(law)}; it has as many numbers as there are numbers of workers, and is "
                    f"not tested by them."
                )


def _numbers(law: AmdahlFit | UniversalFit) -> str:
    if isinstance(law, AmdahlFit):
        return f"serial share {_with_interval(law.serial_share)}"
    peak = "" if law.peak is None else f", most is done by about {law.peak:.0f} workers"
    return f"contention {_with_interval(law.contention)}, coherence {_with_interval(law.coherence)}{peak}"


def _with_interval(number: Number) -> str:
    if number.low is None:
        return f"{number.value:.2g} (no runs to spare: no interval)"
    return f"{number.value:.2g} ({number.low:.2g} to {number.high:.2g})"


def validation_lines(document: StudyDocument) -> Iterator[str]:
    """The simulation beside the study's own runs, a line for each number of workers."""
    for entry in document.validation or ():
        error = 100 * (entry.predicted_s / entry.measured_s - 1)
        yield (
            f"{entry.num_workers} workers: {entry.measured_s:.1f} s measured up to the last commit, "
            f"{entry.predicted_s:.1f} s simulated by the costs of the fewest ({error:+.1f} %), "
            f"{entry.predicted_own_s:.1f} s by the costs of these runs"
        )
    if document.slowdown is not None:
        yield (
            f"a shard takes {document.slowdown:.2f} times as long where the most workers are at work as where the "
            f"fewest are: predictions have the costs of the former, and their efficiency is against workers as slow"
        )


def comparison_lines(document: StudyDocument) -> Iterator[str]:
    """This study beside another one, a line for each case."""
    if document.comparison is None:
        return
    yield from (f"the studies differ in {text}" for text in document.comparison.differences)
    for entry in document.comparison.cases:
        yield (
            f"{entry.case}, {entry.num_workers} workers: {entry.ratio:.2f} times as long a row as there "
            f"({entry.ratio_low:.2f} to {entry.ratio_high:.2f})"
        )


def prediction_table(entries: Sequence[Prediction]) -> list[tuple[str, ...]]:
    """The rows of the table of simulated clusters."""
    return [
        (
            f"{entry.num_workers:,}",
            f"{entry.shard_s:g}",
            f"{entry.num_shards:,}",
            f"{entry.wall_s:,.0f}",
            f"{entry.efficiency:.2f}",
            f"{entry.efficiency_at_work:.2f}",
            entry.limit,
        )
        for entry in entries
    ]


def _pictures(document: StudyDocument) -> Iterator[Picture]:
    yield picture(
        pictures.efficiency(document.summary, document.fit),
        "Efficiency against the number of workers",
        "Bars from the slowest run over the fastest base to the opposite; dotted: Amdahl's law as fitted.",
    )
    yield picture(
        pictures.parts(document.summary),
        "Seconds of a worker by what it did",
        "Seconds of a worker, the mean over those of the run with the median time: start and load until it is at work; "
        "integrating; writing; waiting, for the driver or for others' last shards; the end of all processes.",
    )
    if document.predictions:
        yield picture(
            pictures.predictions(document.predictions),
            "Efficiency of simulated clusters",
            "The driver's own loop over workers with the costs that were measured; as many shards a worker for every "
            "number of workers.",
        )
