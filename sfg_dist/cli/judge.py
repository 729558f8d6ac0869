"""`sfg evaluate --samples`: table files are judged, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfg_dist.cli.command import aligned, say
from sfg_dist.cli.display import Display
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.words import as_line

if TYPE_CHECKING:
    from sfg_dist.pipeline.judged_files import FilesJudgement

_HEADINGS = ("", "samples", "error", "real rows", "copy", "independent")


@dataclass(frozen=True)
class FileOptions:
    """Tables that are judged without a job, and where the page goes."""

    samples: Annotated[
        str | None,
        typer.Option("--samples", metavar="FILE", help="Judge this table, of any generator, without a job."),
    ] = None
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Real rows that the generator was not fitted to."),
    ] = None
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            metavar="FILE",
            help="The rows that its generator was fitted to. Without them privacy, broken rules and comparisons with "
            "training rows are left out.",
        ),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="COLUMN", help="The column that utility predicts by a model trained on samples."
        ),
    ] = None
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FOLDER", help="Write report.html and metrics.json there."),
    ] = None


def judge_tables(options: FileOptions, as_json: bool) -> None:
    """Judge the tables of the options, and print or write what was found.

    Raises:
        ConfigError: --samples or --data is missing, or the folder holds files of others.
        DataError: a table cannot be used.
    """
    if options.samples is None or options.data is None:
        raise ConfigError("--samples needs --data, the held-out rows to judge by, and the other way round: name both")
    with Display(as_json) as display:
        from sfg_dist.pipeline.judged_files import JudgedFiles, judge_files, own_folder, write_judgement

        folder = None if options.out is None else own_folder(options.out)
        files = JudgedFiles(options.samples, options.data, options.train, options.target)
        judged = judge_files(files, display.step)
        if folder is not None:
            display.step("evaluate: drawing the report")
            write_judgement(folder, judged)
    document: dict[str, Any] = {
        "metrics": judged.metrics,
        "verdict": {each.aspect.lower(): each.grade for each in judged.verdict},
    }
    lines = _lines(judged)
    if options.out is not None:
        report = f"{options.out.rstrip('/')}/report.html"
        document["report"] = report
        lines.append(f"report: {report}")
    say(as_json, document, "\n".join(lines))


def _lines(judged: FilesJudgement) -> list[str]:
    """The table of figures, the verdict, the worst column and pair, and what was left out."""
    from sfg_dist.evaluate.document import figures_of
    from sfg_dist.evaluate.judged_figures import figure_rows

    rows = figure_rows(figures_of(judged.metrics))
    lines = aligned(
        [_HEADINGS, *((row.title, row.value, row.error, row.floor, row.copy, row.independent) for row in rows)],
        numbers=True,
    )
    lines += ["", *(as_line(f"{each.aspect}: {each.word}. {each.headline}") for each in judged.verdict)]
    lines += [f"The worst {name} is {_worst(record)}." for name, record in _firsts(judged.metrics)]
    return [*lines, *map(as_line, judged.metrics["left_out"])]


def _firsts(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    names = (("column", "columns"), ("pair of columns", "pairs"))
    return [(name, metrics[key][0]) for name, key in names if metrics[key]]


def _worst(record: Mapping[str, Any]) -> str:
    name = record["column"] if "column" in record else " and ".join(record["columns"])
    floor = "none" if record["floor"] is None else f"{record['floor']:.3f}"
    return f"{as_line(name)}: {record['score']:.3f}, where real rows have {floor}"
