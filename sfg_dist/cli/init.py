"""`sfg init`, and the job of a command that may be given a table instead."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfg_dist.cli.command import Json, Set, command, load, number, say
from sfg_dist.cli.display import Display
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.object_stores import absolute_url, is_url
from sfg_dist.job.paths import expanded
from sfg_dist.job.words import as_line, shown

if TYPE_CHECKING:
    from sfg_dist.job.config import Job

JobOrTable = Annotated[
    str,
    typer.Argument(
        metavar="JOB.toml|TABLE",
        help="A job file; or a table, for which a job is made: a file, a folder, an s3:// URL or a built-in name.",
    ),
]


@dataclass(frozen=True)
class InitOptions:
    """What job to write, and where."""

    out: Annotated[
        Path | None, typer.Option("--out", metavar="JOB.toml", help="Where; the table's name with .toml if left out.")
    ] = None
    condition: Annotated[
        list[str] | None,
        typer.Option("--condition", metavar="COLUMN", help="Draw the other columns given this one; repeatable."),
    ] = None
    minutes: Annotated[
        float, typer.Option("--minutes", metavar="MINUTES", parser=number, help="About how long the run may take.")
    ] = 5.0
    example: Annotated[
        bool, typer.Option("--example", help="Copy a job that comes with the package; quickstart if none is named.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False


@command
def init(
    *,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[TABLE|EXAMPLE]", help="A file, a folder, an s3:// URL or a built-in name; or an example's name."
        ),
    ] = None,
    options: InitOptions,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Write a job for a table, with comments.

    Says what the columns hold, leaves out what cannot be used, and takes a budget for this machine.
    """
    if options.example:
        _copy_example(what or "quickstart", options, json_)
        return
    if what is None:
        raise ConfigError("name a table, or --example for a job that comes with the package")
    if not 0 < options.minutes <= 1e6:
        raise ConfigError(f"--minutes: expected a number above 0, got {options.minutes:g}")
    path = options.out or Path(f"{table_name(_table(what))}.toml")
    if path.suffix.lower() != ".toml":
        raise ConfigError(f"--out {shown(str(path))}: the name of a job file ends in .toml")
    _require_free(path, options.force)
    given = [f"data.condition={json.dumps(options.condition, ensure_ascii=False)}"] if options.condition else []
    with Display(on_stderr=True) as display:
        from sfg_dist.studies.estimate.first_job import first_job

        made = first_job(what, [*given, *(set_ or [])], name=str(path), minutes=options.minutes, on_step=display.step)
    _write(path, made.text, options.force)
    lines = [*map(_sentence, made.chosen), f"job: {path}", f"next: sfg plan {path}, then sfg run {path}"]
    columns = [asdict(column) for column in made.look.columns]
    say(json_, {"job": str(path), "output": made.job.output.dir, "columns": columns}, "\n".join(lines))


def job_of(what: str, overrides: list[str] | None, executor: str | None) -> Job:
    """The job of a file; or that of a table: the one that a run has left for it, else one made for it."""
    from sfg_dist.data import is_table

    if not is_table(what):
        return load(Path(what), overrides, executor)
    given = [*(overrides or []), *([f"executor.kind={executor}"] if executor is not None else [])]
    name = table_name(_table(what))
    directory = expanded(_asked_directory(given) or f"runs/{name}")
    if (job := _job_there(what, directory, given)) is not None:
        _tell(f"job: goes on with {directory}/job.toml")
        return job
    _tell(f"job: looking at {what} to make one")
    with Display(on_stderr=True) as display:
        from sfg_dist.studies.estimate.first_job import first_job

        made = first_job(what, given, name=f"{name}.toml", on_step=display.step)
    for sentence in made.chosen:
        _tell(f"job: {sentence}")
    _tell(f"job: a run keeps it in {made.job.output.dir}/job.toml; `sfg init {what}` writes it with comments")
    return made.job


def table_name(source: str) -> str:
    """A name for the job of a table.

    Examples:
        >>> table_name("s3://bucket/july/rows.csv.gz"), table_name("parts/part-*.parquet"), table_name("data/")
        ('rows', 'part', 'data')
    """
    from sfg_dist.data.sources import suffix_of

    last, suffix = source.rstrip("/").rpartition("/")[2], suffix_of(source)
    stem = last[: last.lower().rindex(suffix)] if suffix else last
    return re.sub(r"[^\w.-]+", "_", stem).strip("_-.") or "table"


def _table(what: str) -> str:
    """The table's name itself, if it may be one."""
    from sfg_dist.data import is_table

    if not is_table(what):
        raise ConfigError(
            f"{shown(what)} is no table by its name: expected a file such as table.csv, a folder, an s3:// URL or a "
            f"built-in name such as moons"
        )
    if not is_url(what) and os.path.exists(os.path.join(what, "job.toml")):
        raise ConfigError(f"{what} is what a run has left: name {what.rstrip('/')}/job.toml, or the table itself")
    if os.path.isdir(what) and Path.cwd().is_relative_to(Path(what).resolve()):
        raise ConfigError(f"{what} is the current folder or one above it: name a file or folder in it")
    return what


def _asked_directory(overrides: list[str]) -> str | None:
    """The output.dir among the overrides."""
    from sfg_dist.job.config import Job
    from sfg_dist.job.toml_documents import apply_override

    document: dict[str, Any] = {}
    for assignment in overrides:
        apply_override(document, assignment, Job)
    directory: str | None = document.get("output", {}).get("dir")
    return directory


def _job_there(what: str, directory: str, overrides: list[str]) -> Job | None:
    """The job that a run of this table has left in a directory, with the overrides; None where there is none.

    Raises:
        ConfigError: it is the job of another table.
    """
    from sfg_dist.job.config import stored_job
    from sfg_dist.job.toml_documents import MAX_BYTES, text_of
    from sfg_dist.store import Location

    if not is_url(directory) and not Path(directory).is_dir():
        return None
    origin = f"{directory}/job.toml"
    content = Location(directory).read("job.toml", MAX_BYTES)
    if content is None:
        return None
    job = stored_job(text_of(content, origin), overrides, origin=origin, default_dir=directory)
    job = job.changed(output={"dir": directory})  # whatever a directory from somebody else says of itself
    if absolute_url(job.data.source) != absolute_url(what):
        raise ConfigError(
            f"{origin} is the job of another table, {job.data.source}: give this one its own by --set output.dir=DIR"
        )
    return job


def _copy_example(name: str, options: InitOptions, as_json: bool) -> None:
    from sfg_dist.job.shipped import example, example_names

    if options.condition:
        raise ConfigError("--condition is for a table: an example is copied as it is")
    source = example(name)
    if source is None:
        raise ConfigError(f"there is no example {shown(name)}: there are {', '.join(example_names())}")
    path = options.out or Path(source.name)
    _require_free(path, options.force)
    if source.is_dir():
        shutil.copytree(source, path, dirs_exist_ok=options.force, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        _write(path, source.read_text(encoding="utf-8"), options.force)
    then = "" if source.is_dir() else f"\nnext: sfg run {path}"
    say(as_json, {"example": name, "path": str(path)}, f"example: {path}{then}")


def _require_free(path: Path, force: bool) -> None:
    if not force and os.path.lexists(path):
        raise ConfigError(f"{path} is there already: --force writes over it, --out names another place")


def _write(path: Path, text: str, force: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _tell(line: str) -> None:
    print(as_line(line), file=sys.stderr, flush=True)
