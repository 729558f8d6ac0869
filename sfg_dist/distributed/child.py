"""A child process: a module of this package that is given a task and answers in lines of JSON.

The task is the first line of the child's standard input. The end of that input means that the parent wants the child to
stop, or is gone. Answers are lines on the child's standard output; whatever else is printed there goes to its log, with
the errors. A child has a session of its own, so that Ctrl-C reaches the parent alone.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from os import dup, dup2, fdopen
from typing import Any

from sfg_dist.distributed.failure import PROCESS_ENDED, Failure
from sfg_dist.job.search_path import child_environment, python_command
from sfg_dist.job.threads import wait_passively

Message = Mapping[str, Any]
"""What one line of JSON holds."""


class Child:
    """A module at work in another process, which ends with the ``with`` block at the latest.

    Args:
        module: its full name; it calls ``serve``.
        task: a dataclass of plain values and tables of a job.
        environment: variables beside those of this process.

    Attributes:
        answers: what it answers, one after the other, until it ends.
        failure: once it has ended, why it failed; None where it did not.
    """

    def __init__(self, module: str, task: Any, environment: Mapping[str, str] | None = None) -> None:
        variables = child_environment() | dict(environment or {})
        wait_passively(variables)
        self.failure: Failure | None = None
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            self._process = stack.enter_context(
                subprocess.Popen(
                    python_command(module),
                    env=variables,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    text=True,
                    start_new_session=True,
                )
            )
            self._open = stack.pop_all()
        self._reader: threading.Thread | None = None
        self.answers = self._read()
        self.say(json.dumps(asdict(task), default=lambda settings: settings.model_dump()))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.is_heard()
        self._open.close()

    def say(self, line: str = "") -> None:
        """Send it a line. One that has ended meanwhile does not hear it, and ``failure`` tells why it has."""
        with contextlib.suppress(OSError):
            print(line, file=self._process.stdin, flush=True)

    def follow(self, hear: Callable[[Message], None]) -> None:
        """Have a thread take the answers as they come."""

        def listen() -> None:
            for answer in self.answers:
                hear(answer)

        self._reader = threading.Thread(target=listen, name="child", daemon=True)
        self._reader.start()

    def is_heard(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended and the thread has taken all answers; waits for that, but no longer than told."""
        if self._reader is not None:
            self._reader.join(timeout_s)
        return self._reader is None or not self._reader.is_alive()

    def finish(self, patience_s: float) -> None:
        """Ask it to stop, and wait for its end; it is killed where it takes too long."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        self._process.kill()
        self.is_heard()

    def _read(self) -> Iterator[Message]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "failure" in answer:
                self.failure = Failure(**answer["failure"])
            else:
                yield answer
        status = self._process.wait()
        if status and self.failure is None:
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            hint = "; most often the machine ran out of memory" if status == -9 else ""
            message = f"its process ended with status {status}{hint}" + (f": {said[-1]}" if said else "")
            self.failure = Failure(PROCESS_ENDED, message)


class Parent:
    """The parent, as its child knows it.

    Attributes:
        task: what it asks for.
    """

    def __init__(self) -> None:
        self._answers = fdopen(dup(1), "w")
        dup2(2, 1)  # what a library prints is no answer
        self.task: Message = json.loads(sys.stdin.readline())

    def answer(self, **message: Any) -> None:
        """Tell it something."""
        print(json.dumps(message), file=self._answers, flush=True)

    def wait(self) -> None:
        """Wait for a line from it; where it is gone, this process ends."""
        if not sys.stdin.readline():
            sys.exit(1)

    def when_gone(self, action: Callable[[], None]) -> None:
        """Have a thread call something once the parent wants no more, or is gone."""

        def wait() -> None:
            sys.stdin.read()
            action()

        threading.Thread(target=wait, name="parent", daemon=True).start()


def serve(work: Callable[[Parent], None]) -> None:
    """What the module of a child does: its work for its parent, who is told of an error."""
    parent = Parent()
    try:
        work(parent)
    except Exception as error:
        failure = Failure.of(error)
        parent.answer(failure={"error": failure.error, "message": failure.message})
