"""The command that compares this package with its peers."""

from __future__ import annotations

from sfg_dist.cli.command import Executor, JobPath, Json, Set, command, load, say
from sfg_dist.cli.display import Display


@command
def compare(job: JobPath, set_: Set = None, executor: Executor = None, json_: Json = False) -> None:
    """Train this package and its peers under one time budget, and judge them alike.

    It writes compare/compare.html and compare.json in output.dir. Finished methods are kept, so the same command goes
    on.
    """
    resolved = load(job, set_, executor)
    with Display(on_stderr=True) as display:
        from sfg_dist.studies.compare import compare as compare_methods
        from sfg_dist.studies.compare.page import text_table
        from sfg_dist.studies.records import to_json

        document = compare_methods(resolved, listener=display)
    report = f"report: {resolved.output.dir.rstrip('/')}/compare/compare.html"
    say(json_, to_json(document), "\n".join([*text_table(document), "", *document.verdict, report]))
