"""What the commands share: the application, options, one clear message for an error, and the exit status.

Exit status: 0 done; 1 the work failed; 2 the request was wrong; 130 interrupted, what is done is kept.
"""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sfg_dist.errors import ConfigError, DataError, PlanMismatchError, SfgError

if TYPE_CHECKING:
    from sfg_dist.config import Job

app = typer.Typer(
    name="sfg",
    help="Turn a table of samples into a one-step generator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

JobPath = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key of the job; repeatable."),
]
Executor = Annotated[str | None, typer.Option("--executor", help="Override executor.kind: ray or inline.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function: its errors become one message and an exit status, no traceback."""

    @functools.wraps(function)
    def guarded(*args: Any, json_: bool, debug: bool, **options: Any) -> None:
        try:
            function(*args, json_=json_, debug=debug, **options)
        except KeyboardInterrupt:
            _fail(json_, debug, "interrupted; what is committed is kept: run the same command again to go on", 130)
        except SfgError as error:
            _fail(json_, debug, str(error), 2 if isinstance(error, (ConfigError, DataError, PlanMismatchError)) else 1)
        except typer.Exit:
            raise
        except Exception as error:
            hint = "" if debug else " (run again with --debug for the traceback)"
            _fail(json_, debug, f"{type(error).__name__}: {error}{hint}", 1)

    return app.command()(guarded)


def load(path: Path, overrides: list[str] | None, executor: str | None) -> Job:
    """The job of a file with the overrides of the command line."""
    from sfg_dist.config import load_job

    return load_job(path, [*(overrides or []), *([f"executor.kind={executor}"] if executor else [])])


def say(as_json: bool, document: Mapping[str, Any], text: str) -> None:
    """The result on stdout, as a document or in words."""
    print(json.dumps(document, indent=1) if as_json else text)


def _fail(as_json: bool, debug: bool, message: str, status: int) -> NoReturn:
    from sfg_dist.events import without_credentials

    message = without_credentials(message)
    if debug:
        print(without_credentials(traceback.format_exc()), end="", file=sys.stderr)
    print(f"sfg: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message}))
    raise typer.Exit(status)
