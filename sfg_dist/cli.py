"""The command line: words in, words out; each command is a few lines over one function.

Exit status: 0 done; 1 the work failed; 2 the request was wrong; 130 interrupted, what is done is kept.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sfg_dist import __version__
from sfg_dist.errors import ConfigError, DataError, PlanMismatchError, SfgError

if TYPE_CHECKING:
    from sfg_dist.config import Job
    from sfg_dist.pipeline import Pipeline


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function: its errors become one message and an exit status, no traceback."""

    @functools.wraps(function)
    def guarded(*args: Any, json_: bool, debug: bool, **options: Any) -> None:
        try:
            function(*args, json_=json_, debug=debug, **options)
        except KeyboardInterrupt:
            _fail(
                json_,
                debug,
                "interrupted; what is committed is kept: run the same command again to go on",
                130,
            )
        except SfgError as error:
            _fail(json_, debug, str(error), 2 if isinstance(error, (ConfigError, DataError, PlanMismatchError)) else 1)
        except Exception as error:
            hint = "" if debug else " (run again with --debug for the traceback)"
            _fail(json_, debug, f"{type(error).__name__}: {error}{hint}", 1)

    return app.command()(guarded)


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


@command
def run(job: JobPath, set_: Set = None, executor: Executor = None, json_: Json = False, debug: Debug = False) -> None:
    """Label, train, sample and evaluate.

    Goes on where an earlier run of the job stopped. The README lists the keys of a job.
    """
    from sfg_dist.pipeline import run as run_job

    resolved = _load(job, set_, executor)
    with _Display(json_) as display:
        metrics = run_job(resolved, listener=display)
    _finish(json_, resolved, {"metrics": metrics, "report": str(Path(resolved.output.dir) / "report.html")})


@command
def label(job: JobPath, set_: Set = None, executor: Executor = None, json_: Json = False, debug: Debug = False) -> None:
    """Make the labeled pairs that are missing."""
    resolved = _load(job, set_, executor)
    with _Display(json_) as display:
        pairs = _pipeline(resolved, display).label()
    _finish(json_, resolved, {"pairs": pairs.plan.num_pairs, "store": pairs.location.url})


@command
def train(job: JobPath, set_: Set = None, executor: Executor = None, json_: Json = False, debug: Debug = False) -> None:
    """Fit the generator on the pairs.

    Goes on from the last checkpoint.
    """
    resolved = _load(job, set_, executor)
    with _Display(json_) as display:
        pipeline = _pipeline(resolved, display)
        generator = pipeline.train()
    _finish(json_, resolved, {"model": str(pipeline.model_path), "parameters": generator.network.num_parameters})


@command
def sample(
    what: Annotated[Path, typer.Argument(metavar="JOB.toml|MODEL", help="A job file, or a saved model directory.")],
    num: Annotated[
        float | None, typer.Option("-n", "--num", help="Rows to draw, 1000 if not given; 1e6 is fine.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the latents.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to: .zarr, .parquet, .csv or .npy; samples.csv if not given.")
    ] = None,
    set_: Set = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Draw rows from a trained generator.

    With a job file, the samples that it evaluates; with a saved model, to a file of your own.
    """
    if what.suffix == ".toml":
        if num is not None or out is not None or seed:
            raise ConfigError(
                "with a job file the keys of its evaluate table rule; name a model for -n, --seed and --out"
            )
        resolved = _load(what, set_, None)
        with _Display(json_) as display:
            path = _pipeline(resolved, display).sample()
        _finish(json_, resolved, {"samples": str(path), "rows": resolved.evaluate.num_samples})
        return
    from sfg_dist.model.generator import Generator
    from sfg_dist.store.table import write_table

    if set_:
        raise ConfigError("--set changes a job; a saved model has its job inside")
    if num is not None and (num < 0 or num != int(num)):
        raise ConfigError(f"-n must be a whole number of rows, got {num}")
    if not what.exists():
        raise ConfigError(f"{what} does not exist: name a job file, or a saved model's directory")
    generator = Generator.load(what)
    path = out or Path("samples.csv")
    rows = write_table(
        path, generator.columns, generator.sample_parts(int(num if num is not None else 1000), seed=seed)
    )
    _say(json_, {"samples": str(path), "rows": rows}, f"{rows:,} rows in {path}")


@command
def evaluate(job: JobPath, set_: Set = None, json_: Json = False, debug: Debug = False) -> None:
    """Measure against held-out rows and report.

    Writes metrics.json and report.html.
    """
    resolved = _load(job, set_, None)
    with _Display(json_) as display:
        metrics = _pipeline(resolved, display).evaluate()
    _finish(json_, resolved, {"metrics": metrics, "report": str(Path(resolved.output.dir) / "report.html")})


@command
def status(
    store: Annotated[str, typer.Argument(metavar="STORE", help="pairs.zarr, or the output directory that holds it.")],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Say how far a store of pairs is."""
    from sfg_dist.store import open_pairs

    if "://" not in store and not Path(store).exists():
        raise ConfigError(f"{store} does not exist: name a pairs.zarr, or the output directory that holds it")
    pairs = open_pairs(store)
    plan = pairs.plan
    pending = pairs.pending()
    rows = plan.num_pairs - sum(stop - start for start, stop in map(plan.shard_range, pending))
    facts = {
        "store": pairs.location.url,
        "shards": plan.num_shards,
        "shards_done": plan.num_shards - len(pending),
        "rows": plan.num_pairs,
        "rows_done": rows,
        "is_complete": not pending,
        "columns": list(plan.columns),
        "dim": plan.dim,
        "labels": dict(plan.labels),
    }
    text = (
        f"{facts['shards_done']:,} of {plan.num_shards:,} shards, {rows:,} of {plan.num_pairs:,} pairs, dim {plan.dim}"
    )
    _say(json_, facts, f"{pairs.location.url}: {text}" + ("" if pending else "; complete"))


def _version(show: bool) -> None:
    if show:
        typer.echo(f"sfg_dist {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Entry point of the console script."""
    warnings.showwarning = lambda message, *_: print(f"sfg: warning: {message}", file=sys.stderr)
    for category in (
        FutureWarning,
        DeprecationWarning,
    ):  # for developers of libraries, not for users of a command
        warnings.filterwarnings("ignore", category=category)
    signal.signal(signal.SIGTERM, _interrupt)
    app()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(as_json: bool, debug: bool, message: str, status: int) -> NoReturn:
    if debug:
        traceback.print_exc()
    print(f"sfg: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message}))
    raise typer.Exit(status)


def _load(path: Path, overrides: list[str] | None, executor: str | None) -> Job:
    from sfg_dist.config import load_job

    return load_job(path, [*(overrides or []), *([f"executor.kind={executor}"] if executor else [])])


def _pipeline(job: Job, display: _Display) -> Pipeline:
    from sfg_dist.pipeline import Pipeline

    return Pipeline(job, display)


def _finish(as_json: bool, job: Job, result: Mapping[str, Any]) -> None:
    lines = [f"{name}: {result[name]}" for name in ("store", "model", "samples", "report") if name in result]
    _say(as_json, {"output": job.output.dir, **result}, "\n".join(lines))


def _say(as_json: bool, document: Mapping[str, Any], text: str) -> None:
    print(json.dumps(document, indent=1) if as_json else text)


class _Display:
    """Shows events: bars with rate and time left on a terminal, plain lines elsewhere.

    With ``--json`` all of it goes to stderr.
    """

    def __init__(self, as_json: bool) -> None:
        from rich.console import Console

        self._console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self._progress: Any = None
        self._task: Any = None
        self._last_line = 0.0
        self._rows = 0
        self._first: tuple[float, float] | None = None
        self._stage: Mapping[str, Any] = {}
        self._handlers: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "stage_started": self._on_stage,
            "stage_finished": self._on_finished,
            "table": self._on_table,
            "shard": self._on_shard,
            "epoch": self._on_epoch,
            "measured": self._on_measured,
        }

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_bar()

    def __call__(self, event: Mapping[str, Any]) -> None:
        handler = self._handlers.get(event["event"])
        if handler is not None:
            handler(event)

    def _on_stage(self, event: Mapping[str, Any]) -> None:
        self._stage = event
        if event["stage"] == "label":
            missing = event["missing"]
            kept = event["total"] - missing
            self._print(
                f"label: {event['rows']:,} pairs in {event['total']:,} shards"
                + (f", {kept:,} done already" if kept else "")
            )
            if missing:
                self._open_bar("label", event["total"], kept)
        elif event["stage"] == "train":
            limit = f", at most {event['max_time_s']:g} s" if event["max_time_s"] else ""
            self._print(
                f"train: {event['num_epochs']:,} epochs{limit}"
                + ("" if event["fresh"] else ", from the last checkpoint")
            )
            self._open_bar("train", event["max_time_s"] or event["num_epochs"], 0)
        elif event["stage"] != "data":
            self._print(f"{event['stage']} ...")

    def _on_finished(self, event: Mapping[str, Any]) -> None:
        self._close_bar()
        if event["stage"] != "data":
            self._print(f"{event['stage']}: done in {event['seconds']:.1f} s")

    def _on_table(self, event: Mapping[str, Any]) -> None:
        sizes = event["split"]
        self._print(f"data: {sizes['train']:,} train, {sizes['validation']:,} validation, {sizes['test']:,} test rows")
        if event["num_rows_dropped"]:
            self._print(f"data: {event['num_rows_dropped']:,} incomplete rows dropped")
        if event["constant"]:
            self._print(f"data: constant columns kept aside: {', '.join(event['constant'])}")
        gridded = [name for name, tie in event["ties"].items() if tie.get("step")]
        if gridded:
            shown = ", ".join(gridded[:8]) + (f" and {len(gridded) - 8} more" if len(gridded) > 8 else "")
            self._print(f"data: columns with ties on a grid, dequantized by one step: {shown}")

    def _on_shard(self, event: Mapping[str, Any]) -> None:
        self._rows += event["rows"][1] - event["rows"][0]
        rate = self._rows / max(1e-3, event["time"] - self._stage["time"])
        line = f"label: {event['done']:,} of {event['total']:,} shards, {rate:,.0f} pairs/s"
        self._advance(event["done"], line, event)

    def _on_epoch(self, event: Mapping[str, Any]) -> None:
        position = event["elapsed_s"] if self._stage.get("max_time_s") else event["epoch"]
        rate = event["step"] / max(1e-3, event["elapsed_s"])
        losses = f"loss {event['train_loss']:.4f}, held out {event['validation_loss']:.4f}"
        self._advance(position, f"train: epoch {event['epoch']}, {losses}, {rate:,.0f} batches/s", event)

    def _on_measured(self, event: Mapping[str, Any]) -> None:
        auc = event.get("c2st_auc")
        if auc is not None:
            self._print(f"evaluate: {event['what']} against held-out rows, AUC {auc:.3f} (0.5 is perfect)")

    def _print(self, text: str) -> None:
        (self._progress.console if self._progress else self._console).print(text, markup=False)

    def _open_bar(self, name: str, total: float, completed: float) -> None:
        self._last_line, self._rows, self._first = 0.0, 0, None
        if not self._console.is_terminal:
            return
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(name, total=total, completed=completed)

    def _advance(self, completed: float, line: str, event: Mapping[str, Any]) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=completed, description=line)
            return
        # Plain lines: at most one in five seconds, so that a log stays readable.
        now, left = event["time"], self._time_left(event, completed)
        if now - self._last_line >= 5 or completed == event.get("total"):
            self._last_line = now
            self._print(line + (f", about {left:.0f} s left" if left else ""))

    def _time_left(self, event: Mapping[str, Any], completed: float) -> float | None:
        """Seconds left at the pace since the first event; what went before was starting up."""
        limit = self._stage.get("max_time_s")
        if limit and "elapsed_s" in event:
            return max(0.0, float(limit) - float(event["elapsed_s"]))
        total = event.get("total") or self._stage.get("num_epochs")
        if self._first is None:
            self._first = (event["time"], completed)
        since, before = self._first
        if not total or completed <= before:
            return None
        return max(0.0, (event["time"] - since) * (total - completed) / (completed - before))

    def _close_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


if __name__ == "__main__":
    main()
