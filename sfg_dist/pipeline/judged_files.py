"""A judgement of table files, without a job: the figures of any generator's samples, and their page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

from sfg_dist.evaluate.judgement import JudgedTables
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.version import versions
from sfg_dist.pipeline.evaluation import METRICS_KEY, Metrics
from sfg_dist.pipeline.judged_tables import tables_of_files
from sfg_dist.pipeline.ownership import HEAD_BYTES, PAGE_MARK

if TYPE_CHECKING:
    from sfg_dist.evaluate.verdict import AspectVerdict
    from sfg_dist.store import Location

REPORT_KEY = "report.html"
_OWN = {REPORT_KEY: PAGE_MARK, METRICS_KEY: re.compile(rb'^\{\s*"figures":')}


@dataclass(frozen=True)
class JudgedFiles:
    """What is judged; each table is a path, a URL or a built-in name."""

    samples: str
    held_out: str
    train: str | None = None  # None leaves out what needs the rows that the samples come from
    target: str | None = None  # the column that utility predicts


@dataclass(frozen=True, eq=False)
class FilesJudgement:
    """The figures of files, and what their page shows."""

    files: JudgedFiles
    tables: JudgedTables = field(repr=False)
    metrics: Metrics  # the keys of a judgement, see ``evaluate/document.py``

    @property
    def verdict(self) -> list[AspectVerdict]:
        """The verdict of each aspect."""
        from sfg_dist.evaluate.report import aspects_of

        return aspects_of(self.metrics, has_train=self.tables.train is not None)

    def page(self) -> bytes:
        """The page as HTML."""
        from sfg_dist.evaluate import ReportContent, render_report

        files, tables = self.files, self.tables
        sources = {"samples": files.samples, "held-out rows": files.held_out, "training rows": files.train}
        sizes = (tables.samples, tables.held_out, tables.train)
        facts = {
            name: f"{len(rows):,} rows of {source}"
            for (name, source), rows in zip(sources.items(), sizes, strict=True)
            if rows is not None
        }
        made = ", ".join(f"{name} {version}" for name, version in versions().items())
        title = f"{PurePath(files.samples).name} beside {PurePath(files.held_out).name}"
        content = ReportContent(title=title, tables=tables, metrics=self.metrics, facts={**facts, "versions": made})
        return render_report(content).encode()


def judge_files(files: JudgedFiles, step: Callable[[str], None]) -> FilesJudgement:
    """Read and judge tables; ``step`` is told what goes on.

    Raises:
        DataError: see ``tables_of_files``.
    """
    from sfg_dist.evaluate.document import judgement_document
    from sfg_dist.evaluate.judge import judge

    step("evaluate: reading the tables")
    tables = tables_of_files(files.samples, files.held_out, files.train, files.target)
    return FilesJudgement(files, tables, judgement_document(judge(tables, on_step=step)))


def own_folder(place: str) -> Location:
    """The folder to write to, made if it is not there.

    Raises:
        ConfigError: it holds a report.html or metrics.json that was not written for table files.
    """
    from sfg_dist.store import Location

    folder = Location(place, create=True)
    for key, mark in _OWN.items():
        head = folder.beginning(key, HEAD_BYTES)
        if head is not None and not mark.search(head):
            raise ConfigError(
                f"--out: {folder.url}/{key} was not written by a command for table files, which would write over it: "
                f"choose another folder, or give that file another name"
            )
    return folder


def write_judgement(folder: Location, judged: FilesJudgement) -> None:
    """Write report.html and metrics.json."""
    folder.write(REPORT_KEY, judged.page())
    folder.write(METRICS_KEY, json.dumps(judged.metrics, indent=1, allow_nan=False).encode())
