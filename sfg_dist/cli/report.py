"""`sfg report`: the page of a finished run, rendered anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sfg_dist.cli.command import Json, command, say
from sfg_dist.cli.display import Display
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.words import as_line


@command
def report(
    store: Annotated[str, typer.Argument(metavar="DIR", help="The output directory of a run; a path or an s3:// URL.")],
    open_: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    json_: Json = False,
) -> None:
    """Write report.html of a finished run anew; nothing is measured again.

    It shows held-out rows, so the table must still be where it was.
    """
    directory = store.rstrip("/")
    place = f"{directory}/pairs.zarr"
    if not is_url(place) and not Path(place).is_dir():
        raise ConfigError(f"{store} is not what a run has left: {place} does not exist")
    with Display(json_) as display:
        from sfg_dist.pipeline.pipeline import Pipeline
        from sfg_dist.pipeline.repair import job_beside
        from sfg_dist.store import open_pairs

        job = job_beside(open_pairs(place)).changed(output={"dir": directory})
        Pipeline(job, display).report()
    page = f"{directory}/report.html"
    say(json_, {"output": directory, "report": page}, f"report: {page}")
    if open_:
        _show(page)


def _show(page: str) -> None:
    """Show a page in a browser, or say where it lies where there is none.

    Raises:
        ConfigError: it lies in an object store.
    """
    import webbrowser

    if is_url(page):
        raise ConfigError(f"--open: a browser cannot read {page}: copy it to this machine first")
    path = Path(page).resolve()
    if not webbrowser.open(path.as_uri()):
        print(f"report: no browser was found on this machine: open {as_line(path)} in one", file=sys.stderr)
