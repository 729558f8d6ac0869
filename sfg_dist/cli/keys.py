"""`sfg keys`: the keys of a job."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sfg_dist.cli.command import Json, command, say


@command
def keys(
    name: Annotated[
        str | None, typer.Argument(metavar="[TABLE[.KEY]]", help="A table of the job, or one key such as labels.t_min.")
    ] = None,
    json_: Json = False,
) -> None:
    """List the keys of a job: what they take, their defaults and what they do."""
    from sfg_dist.job.keys import job_keys

    found = job_keys(name)
    if json_:
        say(json_, {f"{key.table}.{key.name}": asdict(key) for key in found}, "")
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if len(found) == 1:
        key = found[0]
        console.print(f"{key.table}.{key.name}: {key.effect}", markup=False)
        console.print(f"It takes {key.takes}. " + (f"Default: {key.default}." if key.default else ""), markup=False)
        return
    for table in dict.fromkeys(key.table for key in found):
        view = Table("key", "default", "effect", title=f"[{table}]".replace("[", r"\["), title_justify="left", box=None)
        for key in found:
            if key.table == table:
                view.add_row(key.name, key.default.replace("[", r"\["), key.effect.replace("[", r"\["))
        console.print(view)
