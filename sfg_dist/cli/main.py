"""The command line: words in, words out; each command is a few lines over one function.

Exit status: 0 done; 1 the work failed; 2 the request was wrong; 130 interrupted, what is done is kept.
"""

from __future__ import annotations

if __name__ == "__main__":
    from sfg_dist.job.search_path import clean

    clean()  # before the libraries are imported

import atexit
import contextlib
import io
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sfg_dist import __version__
from sfg_dist.cli.command import Executor, JobPath, Json, Set, app, command, load, say
from sfg_dist.cli.display import Display
from sfg_dist.cli.init import JobOrTable, job_of  # its command stands first in the help
from sfg_dist.cli.judge import FileOptions, judge_tables
from sfg_dist.cli.model import SampleOptions, sample_model
from sfg_dist.distributed.stopping import granted_s
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.paths import spare_home
from sfg_dist.job.threads import wait_passively
from sfg_dist.job.words import as_line

if TYPE_CHECKING:
    from sfg_dist.job.config import Job
    from sfg_dist.pipeline.pipeline import Pipeline

INTERRUPT_S = 20.0
"""Seconds that a command has to end after a signal, beyond the time that its work was granted."""
_ENDING_SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name)}


@command
def run(
    job: JobOrTable,
    overlap: Annotated[
        bool, typer.Option("--overlap", help="Begin to train on finished shards while others are labelled.")
    ] = False,
    set_: Set = None,
    executor: Executor = None,
    json_: Json = False,
) -> None:
    """Run all stages of a job: label, train, sample and evaluate.

    It goes on where an earlier run of the job stopped. `sfg keys` lists the keys of a job.
    """
    resolved = job_of(job, set_, executor)
    with Display(json_) as display:
        from sfg_dist.pipeline.pipeline import run as run_job

        metrics = run_job(resolved, listener=display, overlap=overlap)
    _finish(json_, resolved, {"metrics": metrics, "report": f"{resolved.output.dir.rstrip('/')}/report.html"})


@command
def plan(job: JobOrTable, set_: Set = None, executor: Executor = None, json_: Json = False) -> None:
    """Say what labelling will take: work, memory, disk, time and cost.

    It measures the pace of this machine for a few seconds, writes nothing and needs no Ray. It refuses what cannot fit.
    """
    from sfg_dist.cli.plan import show_estimate

    resolved = job_of(job, set_, executor)
    with Display(on_stderr=True) as display:
        from sfg_dist.studies.estimate.estimate import estimate_job

        estimate = estimate_job(resolved, on_step=display.step)
    if json_:
        say(json_, estimate.to_dict(), "")
    else:
        show_estimate(estimate)


@command
def label(job: JobPath, set_: Set = None, executor: Executor = None, json_: Json = False) -> None:
    """Make the pairs of latents and labels that are missing."""
    resolved = load(job, set_, executor)
    with Display(json_) as display:
        pairs = _pipeline(resolved, display).label()
    _finish(json_, resolved, {"pairs": pairs.plan.num_pairs, "store": pairs.location.url})


@command
def train(
    job: JobPath,
    resume_from: Annotated[
        str | None,
        typer.Option(
            "--resume-from",
            metavar="CHECKPOINT",
            help="Go on from this checkpoint, such as step_000001234, or the path or URL of another run's. Later "
            "checkpoints are removed.",
        ),
    ] = None,
    set_: Set = None,
    executor: Executor = None,
    json_: Json = False,
) -> None:
    """Fit the generator to the pairs.

    It goes on from the last checkpoint.
    """
    resolved = load(job, set_, executor)
    with Display(json_) as display:
        pipeline = _pipeline(resolved, display)
        generator = pipeline.train(resume_from=resume_from)
    _finish(json_, resolved, {"model": pipeline.model_url, "parameters": generator.network.num_parameters})


@command
def sample(
    what: Annotated[
        str, typer.Argument(metavar="JOB.toml|MODEL", help="A job file, or a saved model: a directory or an s3:// URL.")
    ],
    options: SampleOptions,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Draw rows from a trained generator.

    With a job file, these are the samples that `sfg evaluate` judges. With a saved model, they go to a table of yours.
    """
    if not what.endswith(".toml"):
        if set_:
            raise ConfigError("--set changes a job; a saved model has its job inside")
        sample_model(what, options, json_)
        return
    if options != SampleOptions():
        raise ConfigError(
            "-n, --seed, --start, --share, --given and --out are for a saved model: name one, or leave them out and "
            "set the keys of the job's evaluate table"
        )
    resolved = load(Path(what), set_, None)
    with Display(json_) as display:
        path = _pipeline(resolved, display).sample()
    _finish(json_, resolved, {"samples": path, "rows": resolved.evaluate.num_samples})


@command
def evaluate(
    options: FileOptions,
    job: Annotated[Path | None, typer.Argument(metavar="[JOB.toml]", help="The job file.", show_default=False)] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Judge samples and labels against held-out rows, and write the report.

    With a job file it writes metrics.json and report.html of that run. With --samples and --data it judges the table of
    any generator, without a job.
    """
    if job is None or options != FileOptions():
        if job is not None:
            raise ConfigError("--samples, --data, --train, --target and --out judge tables without a job: leave it out")
        if set_:
            raise ConfigError("--set changes a job: name its file, or leave --set out")
        if options == FileOptions():
            raise ConfigError("name a job file, or tables by --samples and --data")
        judge_tables(options, json_)
        return
    resolved = load(job, set_, None)
    with Display(json_) as display:
        metrics = _pipeline(resolved, display).evaluate()
    _finish(json_, resolved, {"metrics": metrics, "report": f"{resolved.output.dir.rstrip('/')}/report.html"})


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
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    try:
        os.getcwd()
    except OSError:  # torch would end the process
        print("sfg: the working directory was removed: change to another one", file=sys.stderr)
        _leave(2)
    wait_passively()
    spare_home()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another alphabet
    show_warnings_in_a_line()
    for name in ("SIGTERM", "SIGUSR2"):  # USR2: a scheduler's notice ahead of its time limit
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    _end_where_signals_wait()
    try:
        app()
    except SystemExit as end:
        _leave(end.code)


def _end_where_signals_wait() -> None:
    """From now on, end the process INTERRUPT_S after a signal to stop if it has not ended itself.

    After SIGUSR2 the present work may have been granted more time.

    Python runs a signal's handler between two instructions of the main thread. While a library waits for a store that
    does not answer, there are none. The interpreter still writes the signal's number to a socket at once.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def wait() -> None:
        with ours, theirs:  # both stay open to the end, since the interpreter holds only a file number
            while (number := ours.recv(1)[0]) not in _ENDING_SIGNALS:
                pass
            begun = time.monotonic()
            wait_s = INTERRUPT_S + (granted_s() if number == signal.SIGUSR2 else 0.0)
            while (left := begun + wait_s - time.monotonic()) > 0:
                ours.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    if ours.recv(1)[0] in _ENDING_SIGNALS:  # a second signal takes the granted time back
                        wait_s = min(wait_s, time.monotonic() - begun + INTERRUPT_S)
            message = (
                f"sfg: interrupted. The command did not end within {wait_s:g} s, perhaps because a store does not "
                f"answer, and was stopped. What is committed is kept: run the same command again to go on\n"
            )
            os.write(2, message.encode())
            os._exit(130)

    threading.Thread(target=wait, name="end", daemon=True).start()


def _leave(code: str | int | None) -> NoReturn:
    """End the process without finalizing the interpreter, since obstore's threads may still run.

    A thread that releases a finished request while Python finalizes aborts the process: Python before 3.14 unwinds such
    a thread, which Rust does not allow. Without this, about one in ten commands that end with a request aborted.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader has closed the pipe
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def show_warnings_in_a_line() -> None:
    """From now on, print each warning as one line, and none of those for developers of libraries."""
    warnings.showwarning = lambda message, *_: _show_warning(message)
    for category in (FutureWarning, DeprecationWarning, SyntaxWarning):
        warnings.filterwarnings("ignore", category=category)


def _show_warning(message: Warning | str) -> None:
    from sfg_dist.job.object_stores import without_credentials

    print(f"sfg: warning: {as_line(without_credentials(str(message)))}", file=sys.stderr)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _pipeline(job: Job, display: Display) -> Pipeline:
    from sfg_dist.pipeline.pipeline import Pipeline

    return Pipeline(job, display)


def _finish(as_json: bool, job: Job, result: Mapping[str, Any]) -> None:
    lines = [f"{name}: {result[name]}" for name in ("store", "model", "samples", "report") if name in result]
    say(as_json, {"output": job.output.dir, **result}, "\n".join(lines))


import sfg_dist.cli.compare  # noqa: E402
import sfg_dist.cli.keys  # noqa: E402
import sfg_dist.cli.model  # noqa: E402
import sfg_dist.cli.report  # noqa: E402
import sfg_dist.cli.scale  # noqa: E402
import sfg_dist.cli.store  # noqa: E402
import sfg_dist.cli.submit  # noqa: E402, F401  (makes its commands known, behind those above in the help)
