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
from sfg_dist.display import Display
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
            _fail(json_, debug, "interrupted; what is committed is kept: run the same command again to go on", 130)
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
    with Display(json_) as display:
        metrics = run_job(resolved, listener=display)
    _finish(json_, resolved, {"metrics": metrics, "report": str(Path(resolved.output.dir) / "report.html")})


@command
def plan(job: JobPath, set_: Set = None, executor: Executor = None, json_: Json = False, debug: Debug = False) -> None:
    """Say what labelling will take: work, memory, disk, time and cost.

    Measures this machine's pace for a few seconds, writes nothing and needs no Ray. Refuses what cannot fit.
    """
    from sfg_dist.distributed.estimate import estimate_job
    from sfg_dist.plan_table import show_estimate, show_steps

    resolved = _load(job, set_, executor)
    with show_steps() as on_step:
        estimate = estimate_job(resolved, on_step=on_step)
    if json_:
        print(json.dumps(estimate.to_dict(), indent=1))
    else:
        show_estimate(estimate)


@command
def label(job: JobPath, set_: Set = None, executor: Executor = None, json_: Json = False, debug: Debug = False) -> None:
    """Make the labeled pairs that are missing."""
    resolved = _load(job, set_, executor)
    with Display(json_) as display:
        pairs = _pipeline(resolved, display).label()
    _finish(json_, resolved, {"pairs": pairs.plan.num_pairs, "store": pairs.location.url})


@command
def train(job: JobPath, set_: Set = None, executor: Executor = None, json_: Json = False, debug: Debug = False) -> None:
    """Fit the generator on the pairs.

    Goes on from the last checkpoint.
    """
    resolved = _load(job, set_, executor)
    with Display(json_) as display:
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
        with Display(json_) as display:
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
    with Display(json_) as display:
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
    # For developers of libraries, not for users of a command.
    for category in (FutureWarning, DeprecationWarning):
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


def _pipeline(job: Job, display: Display) -> Pipeline:
    from sfg_dist.pipeline import Pipeline

    return Pipeline(job, display)


def _finish(as_json: bool, job: Job, result: Mapping[str, Any]) -> None:
    lines = [f"{name}: {result[name]}" for name in ("store", "model", "samples", "report") if name in result]
    _say(as_json, {"output": job.output.dir, **result}, "\n".join(lines))


def _say(as_json: bool, document: Mapping[str, Any], text: str) -> None:
    print(json.dumps(document, indent=1) if as_json else text)


if __name__ == "__main__":
    main()
