"""Commands as a user types them, run in this process: only what needs a process of its own is worth its start."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

from patience import patience
from typer.testing import CliRunner

from sfg_dist.cli import main as cli


class Done(NamedTuple):
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def sfg(directory: str | Path, *words: object, check: int | None = 0) -> Done:
    """`sfg WORDS` in a directory; ``check`` is the exit status that it must have, None for any."""
    with contextlib.chdir(directory), warnings.catch_warnings():
        warnings.resetwarnings()
        cli.show_warnings_in_a_line()
        result = CliRunner().invoke(cli.app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError("".join(traceback.format_exception(result.exception)))
    return _checked(Done(result.exit_code, result.stdout, result.stderr), check)


def sfg_process(directory: str | Path, *words: object, check: int | None = 0) -> Done:
    """The same in a process of its own: for streams, exit statuses and what is imported."""
    command = [sys.executable, "-m", "sfg_dist", *map(str, words)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=patience(300))
    return _checked(Done(done.returncode, done.stdout, done.stderr), check)


def _checked(done: Done, check: int | None) -> Done:
    assert check is None or done.returncode == check, done.stdout + done.stderr
    return done
