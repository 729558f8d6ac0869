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
Seconds and efficiencies are medians, with those of the fastest and the slowest run in brackets. The seconds of a worker
are those of the run with the median time. Strong scaling is the same work for every number of workers. In weak scaling
the work grows with the number of workers. The start of Ray is left out, that of the workers is not.
"""
LAWS_NOTE = """
The laws are fitted by least squares of log time over all runs of strong scaling. Brackets hold intervals of 90 % by
Student's t. Coherence is the cost that grows with the number of pairs of workers: where there is some, too many workers
do less.
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
        lines = [*(f"Simulation against measurement: {line}." for line in validation_lines(document)),
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
            yield f"{case}: there is no efficiency, since {last.num_workers} is the only number of workers."


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
                    f"{stage}, {name}: {_numbers(law)}; the runs cannot test it, since it has as many parameters as "
                    f"there are numbers of workers."
                )


def _numbers(law: AmdahlFit | UniversalFit) -> str:
    if isinstance(law, AmdahlFit):
        return f"serial share {_with_interval(law.serial_share)}"
    peak = "" if law.peak is None else f", the most is done by about {law.peak:.0f} workers"
    return f"contention {_with_interval(law.contention)}, coherence {_with_interval(law.coherence)}{peak}"


def _with_interval(number: Number) -> str:
    if number.low is None:
        return f"{number.value:.2g} (too few runs for an interval)"
    return f"{number.value:.2g} ({number.low:.2g} to {number.high:.2g})"


def validation_lines(document: StudyDocument) -> Iterator[str]:
    """The simulation beside the study's own runs, a line for each number of workers."""
    for entry in document.validation or ():
        error = 100 * (entry.predicted_s / entry.measured_s - 1)
        yield (
            f"{entry.num_workers} workers took {entry.measured_s:.1f} s up to the last commit; the simulation takes "
            f"{entry.predicted_s:.1f} s by the costs with the fewest workers ({error:+.1f} %), and "
            f"{entry.predicted_own_s:.1f} s by the costs of these runs"
        )
    if document.slowdown is not None:
        yield (
            f"a shard takes {document.slowdown:.2f} times as long with the most workers as with the fewest; "
            f"predictions take the costs with the most, and their efficiency is against workers as slow"
        )


def comparison_lines(document: StudyDocument) -> Iterator[str]:
    """This study beside another one, a line for each case."""
    if document.comparison is None:
        return
    yield from (f"the studies differ in {text}" for text in document.comparison.differences)
    for entry in document.comparison.cases:
        yield (
            f"{entry.case}, {entry.num_workers} workers: a row takes {entry.ratio:.2f} times as long as in the other "
            f"study ({entry.ratio_low:.2f} to {entry.ratio_high:.2f})"
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
        "Bars reach from the lowest to the highest efficiency that two runs give. The dotted line is Amdahl's law as "
        "fitted.",
    )
    yield picture(
        pictures.parts(document.summary),
        "Seconds of a worker by what it did",
        "The seconds of a worker in the run with the median time, averaged over its workers: start and load until it "
        "is at work, integration, writing, waiting for the driver or for the last shards of others, and the end of all "
        "processes.",
    )
    if document.predictions:
        yield picture(
            pictures.predictions(document.predictions),
            "Efficiency of simulated clusters",
            "The driver's own loop runs over simulated workers with the measured costs. A worker has as many shards "
            "for every number of workers.",
        )
