"""What the commands share: the application, options, one clear message for an error, and the exit status.

Exit status: 0 done; 1 the work failed; 2 the request was wrong; 130 interrupted, what is done is kept.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from sfg_dist.job.errors import ConfigError, DataError, PlanMismatchError, SfgError
from sfg_dist.job.paths import expanded
from sfg_dist.job.words import as_line, printable, shown

if TYPE_CHECKING:
    from sfg_dist.job.config import Job

_UsageError: Any = typer.BadParameter.__bases__[0]
GROUPS = {
    "A job": ("init", "run", "plan", "keys"),
    "Its stages": ("label", "train", "sample", "evaluate", "report"),
    "Its pairs": ("status", "verify", "repair", "extend"),
    "On a cluster": ("submit", "jobs", "logs", "cancel"),
    "Studies": ("compare", "scale"),
    "Elsewhere": ("export",),
}
"""The commands in the order of use."""
PLACES = {
    "compare_with", "data", "given_table", "job", "model", "out", "profile", "resume_from", "samples", "store", "train",
    "what",
}  # fmt: skip
_LARGEST, _LONGEST = 2**63 - 1, 20


class _Commands(TyperGroup):
    """The commands, in groups. A mistake on the command line gives the same one-line message as any other error."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of use."""
        order = [name for names in GROUPS.values() for name in names]
        return sorted(self.commands, key=order.index)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """What each does, by groups; typer's own help by rich would take a fifth of a second."""
        for group, names in GROUPS.items():
            there = {name: self.commands[name] for name in names if name in self.commands}
            with formatter.section(group):
                formatter.write_dl([(name, (each.help or "").split("\n\n")[0]) for name, each in there.items()])

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **options: Any
    ) -> Any:
        """Run a command and end the process with its status."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **options)
        try:
            status = super().main(args, standalone_mode=False, **options)
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
                sys.exit(error.exit_code)
            is_named = getattr(error, "param", None) is not None and type(error) is typer.BadParameter
            message = f"{_name_of(error.param)}: {error.message}" if is_named else error.format_message().rstrip(".")
            path = error.ctx.command_path if error.ctx is not None else "sfg"
            as_json = "--json" in (sys.argv if args is None else args)
            _say_error(as_json, f"{message}; `{path} --help` shows what it takes")
            sys.exit(2)
        sys.exit(status if isinstance(status, int) else 0)


def _name_of(param: Any) -> str:
    return str(max(param.opts, key=len) if param.param_type_name == "option" else param.metavar or param.name)


def whole(value: Any) -> int:
    """The whole number of an option's text; 1e6 is one."""
    text = str(value).strip()
    with contextlib.suppress(ValueError, OverflowError):
        number = int(text) if text.lstrip("+-").isdigit() and text.isascii() and len(text) < _LONGEST else float(text)
        if number == int(number) and abs(number) <= _LARGEST and text.isascii():
            return int(number)
    raise typer.BadParameter(f"expected a whole number such as 10 or 1e6, got {shown(text)}")


def number(value: Any) -> float:
    """The finite number of an option's text."""
    text = str(value).strip()
    with contextlib.suppress(ValueError):
        found = float(text)
        if math.isfinite(found) and text.isascii():
            return found
    raise typer.BadParameter(f"expected a number such as 2 or 0.5, got {shown(text)}")


app = typer.Typer(
    cls=_Commands,
    name="sfg",
    help="Turn a table of samples into a one-step generator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def option(name: str, takes: str, help: str, **more: Any) -> Any:
    """An option whose help shows what it takes."""
    return typer.Option(name, metavar=takes, help=help, **more)


JobPath = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key of the job; repeatable.")
]
Executor = Annotated[
    str | None,
    typer.Option("--executor", metavar="KIND", help="Override executor.kind: auto, ray or inline."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and everything else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function: its errors become one message and an exit status, no traceback.

    The function takes ``json_``; every command has ``--debug`` too. A parameter whose type is a dataclass stands for
    one option per field.
    """
    parameters: list[inspect.Parameter] = []
    records: dict[str, Callable[..., Any]] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            records[parameter.name] = kind
            parameters += inspect.signature(kind, eval_str=True).parameters.values()
        else:
            parameters.append(parameter)
    parameters.append(inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug))

    @functools.wraps(function)
    def guarded(*, debug: bool, **options: Any) -> None:
        json_ = options["json_"]
        try:
            options = {name: _written_out(name, value) for name, value in options.items()}
            for name, record in records.items():
                options[name] = record(**{field: options.pop(field) for field in inspect.signature(record).parameters})
            function(**options)
        except KeyboardInterrupt:
            _fail(json_, debug, "interrupted; what is committed is kept: run the same command again to go on", 130)
        except SfgError as error:
            _fail(json_, debug, str(error), 2 if isinstance(error, (ConfigError, DataError, PlanMismatchError)) else 1)
        except typer.Exit:
            raise
        except Exception as error:
            hint = "" if debug else " (run again with --debug for the traceback)"
            _fail(json_, debug, f"{_plain_words(error)}{hint}", 1)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    guarded.__dict__["__signature__"] = inspect.Signature(keyword_only)  # what typer reads
    return app.command()(guarded)


def load(path: Path, overrides: list[str] | None, executor: str | None) -> Job:
    """The job of a file with the overrides of the command line."""
    from sfg_dist.job.config import load_job

    if path.suffix.lower() != ".toml":
        from sfg_dist.data.table import is_table

        if is_table(str(path)) and not path.is_dir():
            raise ConfigError(f"{path} is a table, and this command takes its job; `sfg init {path}` writes one")
    return load_job(path, [*(overrides or []), *([f"executor.kind={executor}"] if executor is not None else [])])


def _written_out(option: str, value: Any) -> Any:
    """An option's value; in a path or URL ``~`` is written out."""
    if option in PLACES and isinstance(value, str | Path) and not str(value).strip():
        raise ConfigError(f"{option.replace('_', '-')}: expected the name of a file or folder, got {shown(str(value))}")
    if isinstance(value, list):
        return [_written_out(option, each) if isinstance(each, Path) else each for each in value]
    if not isinstance(value, str | Path):
        return value
    try:
        return type(value)(expanded(str(value)))
    except ConfigError as error:
        raise ConfigError(f"{option.strip('_').replace('_', '-')}: {error}") from None


def _plain_words(error: Exception) -> str:
    """A message for an unexpected error."""
    text = " ".join(str(error).split())
    if (
        isinstance(error, MemoryError)
        or "out of memory" in text
        or "not enough memory" in text
        or "allocate memory" in text
    ):
        return "there is not enough memory for this: make the job smaller, or take a machine with more memory"
    if isinstance(error, FileNotFoundError) and "usable temporary directory" in text:
        return "no temporary directory can be written: set TMPDIR to a directory that can"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return f"{type(error).__name__}: {text}"


def say(as_json: bool, document: Mapping[str, Any], text: str) -> None:
    """Print the result on stdout, as a JSON document or as text."""
    print(json.dumps(document, indent=1) if as_json else printable(text))


def aligned(rows: Sequence[Sequence[object]], *, numbers: bool = False) -> list[str]:
    """Rows as lines of aligned columns; with ``numbers`` all but the first are flush right."""
    padded = []
    for place, column in enumerate(zip(*rows, strict=True)):
        cells = [as_line(cell) for cell in column]
        width = max(map(len, cells))
        padded.append([cell.rjust(width) if numbers and place else cell.ljust(width) for cell in cells])
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def _fail(as_json: bool, debug: bool, message: str, status: int) -> NoReturn:
    from sfg_dist.job.object_stores import without_credentials

    if debug:
        print(printable(without_credentials(traceback.format_exc())), end="", file=sys.stderr)
    _say_error(as_json, without_credentials(message))
    raise typer.Exit(status)


def _say_error(as_json: bool, message: str) -> None:
    print(f"sfg: {printable(message)}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message}))
