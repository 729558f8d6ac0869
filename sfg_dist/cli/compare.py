"""The command that compares this package with its peers, and its progress lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from sfg_dist.cli.command import Executor, JobPath, Json, Set, command, load, say
from sfg_dist.job.words import WIDE, as_line, wide_number


@command
def compare(job: JobPath, set_: Set = None, executor: Executor = None, json_: Json = False) -> None:
    """Train this package and its peers under one time budget, and judge them alike.

    Writes compare/compare.html and compare.json in output.dir; finished methods are kept, so the same command goes on.
    """
    from sfg_dist.studies.compare import compare as compare_methods
    from sfg_dist.studies.compare.page import text_table
    from sfg_dist.studies.records import to_json

    resolved = load(job, set_, executor)
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print
        document = compare_methods(resolved, listener=_show)
    report = f"report: {resolved.output.dir.rstrip('/')}/compare/compare.html"
    say(json_, to_json(document), "\n".join([*text_table(document), "", *document.verdict, report]))


def _show(event: Mapping[str, Any]) -> None:
    """One line an event, on stderr."""
    kind, method = event["event"], event.get("method")
    if kind in ("cell_started", "cell_kept", "cell_step", "cell_failed"):
        method = f"{method}, seed {event['seed']}"
    lines = {
        "table": lambda: "data: " + ", ".join(f"{size:,} {part}" for part, size in event["split"].items()) + " rows",
        "selection_started": lambda: f"{method}: choosing transform and learning rate, fits of {event['time_s']:g} s",
        "trial": lambda: (
            f"{method}: {event['transform']}, {event['learning_rate']:g}, {event['seconds']:g} s: "
            f"validation AUC {event['c2st_auc']:.3f}"
        ),
        "selected": lambda: f"{method}: takes {_configuration(event)}",
        "cell_kept": lambda: f"{method}: done already",
        "cell_started": lambda: f"{method}: {event['max_time_s']:g} s",
        "cell_failed": lambda: f"{method}: failed: {event['reason']}",
        "cell_step": lambda: f"{method}: {event['text']}",
        "cell_finished": lambda: (
            f"{method}, seed {event['seed']}: AUC {_number(event['c2st_auc'])}, "
            f"log-likelihood {_number(event['test_log_likelihood'])}, {event['us_per_sample']:.1f} us a row"
        ),
    }
    if kind in lines:
        print(as_line(lines[kind]()), file=sys.stderr, flush=True)


def _configuration(event: Mapping[str, Any]) -> str:
    hidden = ("event", "time", "method")
    return ", ".join(f"{key} {value}" for key, value in event.items() if key not in hidden)


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.3f}" if abs(value) < WIDE else wide_number(value)
