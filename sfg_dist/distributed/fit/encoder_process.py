"""The encoder's fit in a process of its own, beside the generator's: small steps of two fits use two cores better than
more threads use them in one.

    python -m sfg_dist.distributed.fit.encoder_process TASK.json

The process answers in lines of JSON and ends when its parent does. What it has found is in the checkpoint, from which
``fit_encoder`` in the parent takes it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from sfg_dist.distributed.fit.checkpoints import Place
from sfg_dist.distributed.fit.encoder import fit_encoder
from sfg_dist.job import errors
from sfg_dist.job.config import TrainConfig
from sfg_dist.job.errors import SfgError, TrainingError
from sfg_dist.job.search_path import child_environment, python_command
from sfg_dist.job.threads import wait_passively
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.encoder_trainer import NUM_CHECK_ROWS
from sfg_dist.model.likelihood import Mass

OnCheck = Callable[[dict[str, float]], None]
_answers: TextIO = sys.stdout


class EncoderBeside:
    """A fit that goes on in another process; made by ``encoder_beside``.

    Args:
        process: the other process.
        result: the fit once more, which takes up what the process has left.
        log: where the process writes what is no answer.
        on_check: called with every entry of the history, when it is asked for.
    """

    def __init__(
        self,
        process: subprocess.Popen[str],
        result: Callable[[], tuple[Encoder, Mass]],
        log: Path,
        on_check: OnCheck,
    ) -> None:
        self._process, self._result, self._log, self._on_check = process, result, log, on_check
        self._lines: list[str] = []
        self._error: tuple[str, str] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)

    def poll(self) -> None:
        """Tell what there is to tell; an error waits for ``wait``, so that it does not end another fit."""
        while self._lines:
            answer = json.loads(self._lines.pop(0))
            if "error" in answer:
                self._error = answer["error"], answer["message"]
            if "check" in answer:
                self._on_check(answer["check"])

    def wait(self) -> tuple[Encoder, Mass]:
        """The encoder with its best weights and the mass of its density, once they are there.

        Raises:
            SfgError: the fit has failed, as ``fit_encoder`` says.
            TrainingError: the process has ended otherwise.
        """
        while self._reader.is_alive():
            self._reader.join(0.2)
            self.poll()
        self.poll()
        if self._error is not None:
            name, message = self._error
            kind = getattr(errors, name, TrainingError)
            raise kind(message)
        status = self._process.wait()
        if status:
            reason = (self._log.read_text(errors="replace").strip().splitlines() or [f"exit status {status}"])[-1]
            raise TrainingError(f"the encoder's process ended: {reason}; the same command goes on from its checkpoint")
        return self._result()


@contextmanager
def encoder_beside(
    url: str, checkpoints: Place, settings: TrainConfig, validation: NDArray[np.float32], *, on_check: OnCheck
) -> Iterator[EncoderBeside]:
    """Start ``fit_encoder`` in another process, with its arguments; the process ends with the block."""
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="sfg-encoder-") as folder:
        rows, task, log = (Path(folder, name) for name in ("validation.npy", "task.json", "log"))
        np.save(rows, validation[:NUM_CHECK_ROWS], allow_pickle=False)
        document = {
            "url": url,
            "checkpoints": str(checkpoints),
            "settings": settings.model_dump(),
            "validation": str(rows),
        }
        task.write_text(json.dumps(document | {"started": started}), encoding="utf-8")
        environment = child_environment()
        wait_passively(environment)
        if settings.num_threads is not None:
            environment["OMP_NUM_THREADS"] = str(settings.num_threads)
        command = python_command(__name__, str(task))
        with (
            log.open("w") as log_file,
            subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log_file, text=True
            ) as process,
        ):

            def result() -> tuple[Encoder, Mass]:
                return fit_encoder(url, checkpoints, settings, validation, on_check=on_check)

            try:
                yield EncoderBeside(process, result, log, on_check)
            finally:
                process.kill()


def _work(task: dict[str, Any]) -> None:
    global _answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to both; the parent decides
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    validation = np.load(task["validation"], allow_pickle=False)
    try:
        fit_encoder(
            task["url"],
            task["checkpoints"],
            TrainConfig(**task["settings"]),
            validation,
            on_check=lambda entry: _answer("check", entry),
            begun_s=max(0.0, time.time() - task["started"]),
        )
    except SfgError as error:
        _answer("error", type(error).__name__, message=str(error))


def _end_with_parent() -> None:
    """The parent's end of standard input closes with it, however it ends."""
    sys.stdin.read()
    os._exit(1)


def _answer(key: str, value: Any, **more: Any) -> None:
    print(json.dumps({key: value, **more}), file=_answers, flush=True)


if __name__ == "__main__":
    _work(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
