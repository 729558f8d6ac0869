"""The encoder's fit in a process of its own, beside the generator's.

Small steps of two fits use two cores better than more threads use them in one. What the process has found is in the
checkpoint, from which ``fit_encoder`` in the parent takes it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfg_dist.distributed.child import Child, Message, Parent, serve
from sfg_dist.distributed.fit.checkpoints import Place
from sfg_dist.distributed.fit.encoder import FittedEncoder, fit_encoder
from sfg_dist.job.config import TrainConfig
from sfg_dist.job.errors import TrainingError
from sfg_dist.model.encoder_trainer import NUM_CHECK_ROWS

OnCheck = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class EncoderTask:
    """What the process is asked to do: the arguments of ``fit_encoder``, the validation rows in a file."""

    url: str
    checkpoints: str
    settings: TrainConfig
    validation: str
    started: float


class EncoderBeside:
    """A fit that goes on in another process; made by ``encoder_beside``.

    Args:
        child: the other process.
        result: the fit once more, which takes up what the process has left.
        on_check: told every entry of the history, when ``poll`` is called.
    """

    def __init__(self, child: Child, result: Callable[[], FittedEncoder], on_check: OnCheck) -> None:
        self._child, self._result, self._on_check = child, result, on_check
        self._checks: list[Message] = []
        child.follow(self._checks.append)

    def poll(self) -> None:
        """Tell what there is to tell; an error waits for ``wait``, so that it does not end another fit."""
        while self._checks:
            self._on_check(dict(self._checks.pop(0)))

    def wait(self) -> FittedEncoder:
        """What ``fit_encoder`` returns, once it is there.

        Raises:
            SfgError: the fit has failed, as ``fit_encoder`` says.
            TrainingError: the process has ended otherwise.
        """
        while not self._child.is_heard(0.2):
            self.poll()
        self.poll()
        if (failure := self._child.failure) is not None:
            if failure.known_class is not None:
                raise failure.known_class(failure.message)
            raise TrainingError(
                f"the encoder's process ended: {failure}; run the same command again to go on from its checkpoint"
            )
        return self._result()


@contextmanager
def encoder_beside(
    url: str, checkpoints: Place, settings: TrainConfig, validation: NDArray[np.float32], *, on_check: OnCheck
) -> Iterator[EncoderBeside]:
    """Start ``fit_encoder`` in another process, with its arguments; the process ends with the block."""
    with tempfile.TemporaryDirectory(prefix="sfg-encoder-") as folder:
        rows = str(Path(folder, "validation.npy"))
        np.save(rows, validation[:NUM_CHECK_ROWS], allow_pickle=False)
        task = EncoderTask(url, str(checkpoints), settings, rows, time.time())
        threads = {} if settings.num_threads is None else {"OMP_NUM_THREADS": str(settings.num_threads)}
        with Child(__name__, task, threads) as child:

            def result() -> FittedEncoder:
                return fit_encoder(url, checkpoints, settings, validation, on_check=on_check)

            yield EncoderBeside(child, result, on_check)


def _work(parent: Parent) -> None:
    parent.when_gone(lambda: os._exit(1))
    task = EncoderTask(**parent.task)
    fit_encoder(
        task.url,
        task.checkpoints,
        TrainConfig(**parent.task["settings"]),
        np.load(task.validation, allow_pickle=False),
        on_check=lambda entry: parent.answer(**entry),
        begun_s=max(0.0, time.time() - task.started),
    )


if __name__ == "__main__":
    serve(_work)
