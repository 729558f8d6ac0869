"""Training ahead of the labels: passes over the committed shards, while the rest are still being made.

One worker passes over the shards that are there, and again whenever more have come, at the full learning rate. When all
labels are made it writes a checkpoint and ends, and the fit goes on from its weights. The epochs have the same pairs,
batches and learning rates with and without it. Held-out rows are not trained on. A kill costs what came after the last
checkpoint.

The worker is a process of this machine (executor "inline") or an actor of the Ray session. It trains on a GPU of its
own where there are two or more, and else on CPUs: beside the labels' GPU, or on a quarter of the cluster's CPUs.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from sfg_dist.distributed.child import Child, Parent, serve
from sfg_dist.distributed.failure import Failure
from sfg_dist.distributed.fit.checkpoints import Checkpoints, Place, resume
from sfg_dist.distributed.fit.fit_loop import LIVE_INTERVAL_S
from sfg_dist.distributed.fit.hold import Hold, take_hold
from sfg_dist.distributed.fit.journal import Report
from sfg_dist.distributed.fit.training import make_trainer, most_steps_ahead, split_rows
from sfg_dist.job.config import TrainConfig
from sfg_dist.job.errors import TrainingError
from sfg_dist.job.object_stores import absolute_url
from sfg_dist.job.threads import usable_cpus
from sfg_dist.model.device_feed import DeviceFeed
from sfg_dist.model.trainer import Stopwatch, Trainer
from sfg_dist.store import Pairs, PairStream, open_pairs

FIRST_PASS = 2**31
"""Passes are numbered from here on, so that none has the order of an epoch."""
POLL_S = 1.0
LOOKUPS_AT_ONCE = 16
STOP_S = 20.0
"""Seconds that the worker has to write its checkpoint once the labels have ended."""


def train_ahead(
    url: str,
    checkpoints: Place,
    settings: TrainConfig,
    *,
    should_stop: Callable[[], bool],
    on_live: Report | None = None,
    device: str | None = None,
    attempt: str | None = None,
) -> int:
    """Pass over the committed shards until told to stop, with a checkpoint now and then and at the end.

    A network that draws cells stops by itself where ``train.max_looks`` leaves room for one epoch alone.

    Args:
        url: the store.
        checkpoints: of the fit that will go on from here.
        settings: the fit's.
        should_stop: asked after every batch.
        on_live: called every few seconds with how far it is.
        device: torch's name of the device; the GPU when there is one.
        attempt: for ``Hold``; a new one if None.

    Returns:
        Steps done ahead, over all attempts. A fit whose epochs have begun is left as it is.

    Raises:
        TrainingError: the loss is no longer finite, or another attempt has taken over; the last checkpoint is kept.
    """
    hold = Hold(checkpoints, attempt or take_hold(checkpoints))
    pairs = open_pairs(url)
    num_rows, _ = split_rows(pairs, settings)
    trainer = make_trainer(pairs, settings, device=None if device is None else torch.device(device))
    resume(checkpoints, trainer.load_files)
    if trainer.progress.epoch or trainer.progress.step_in_epoch:
        return trainer.progress.ahead_steps
    own = Checkpoints(checkpoints, settings, pairs.plan.run_id)
    most_steps = most_steps_ahead(pairs, settings)
    watch, known = Stopwatch(0.0), _Committed(pairs, num_rows)
    saved = [0.0, trainer.progress.step]

    def save() -> None:
        if trainer.progress.step > saved[1]:
            hold.require()
            own.save(trainer)
        saved[:] = [watch.elapsed_s, trainer.progress.step]

    def is_over() -> bool:
        return trainer.progress.ahead_steps >= most_steps or should_stop()

    number = 0
    while not is_over():
        if not known.has_grown() or known.num_rows < settings.batch_size:
            time.sleep(POLL_S)
            continue
        with PairStream.of(
            pairs,
            num_rows=num_rows,
            batch_size=settings.batch_size,
            seed=settings.seed,
            shuffle_rows=settings.shuffle_rows,
            blocks=known.shards,
        ) as stream:
            for _ in _passed(trainer, stream, FIRST_PASS + number, watch, on_live):
                if is_over():
                    break
                if watch.elapsed_s - saved[0] > settings.checkpoint_interval_s:
                    save()
        number += 1
    save()
    return trainer.progress.ahead_steps


def _passed(
    trainer: Trainer, stream: PairStream, number: int, watch: Stopwatch, on_live: Report | None
) -> Iterator[None]:
    """One pass, batch by batch."""
    progress = trainer.progress
    total = torch.zeros((), device=trainer.device)
    looked_s, looked_step, looked_loss = watch.elapsed_s, progress.step, 0.0
    for batch, (inputs, targets) in DeviceFeed(trainer.device)(stream.epoch(number)):
        total += trainer.step(inputs, targets, batch.global_rows, 0.0)
        progress.step_in_epoch = 0  # no epoch has begun
        progress.ahead_steps += 1
        if watch.elapsed_s - looked_s >= LIVE_INTERVAL_S:
            loss, steps, seconds = float(total), progress.step - looked_step, watch.elapsed_s - looked_s
            _require_finite(loss)
            if on_live is not None:
                on_live(
                    {
                        "step": progress.step,
                        "train_loss": (loss - looked_loss) / steps,
                        "rows": stream.num_rows,
                        "rows_per_s": steps * stream.batch_size / seconds,
                    }
                )
            looked_s, looked_step, looked_loss = watch.elapsed_s, progress.step, loss
        yield
    _require_finite(float(total))


def _require_finite(loss: float) -> None:
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise TrainingError("the loss is not finite: take a smaller train.learning_rate, or set train.clip_norm")


class _Committed:
    """The shards that can be trained on so far.

    Args:
        pairs: the store.
        num_rows: its rows that are not held out.
    """

    def __init__(self, pairs: Pairs, num_rows: int) -> None:
        self._pairs, self._train_rows = pairs, num_rows
        self._looked_at: set[int] = set()
        self.shards: list[int] = []
        self.num_rows = 0

    def has_grown(self) -> bool:
        """Look again; whether there are more than at the last look."""
        plan = self._pairs.plan
        fresh = [
            shard
            for shard in sorted(self._pairs.committed() - self._looked_at)
            if plan.shard_range(shard)[0] < self._train_rows
        ]
        with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as threads:  # a commit may be torn, or its objects lost
            whole = [shard for shard, ok in zip(fresh, threads.map(self._pairs.is_done, fresh), strict=True) if ok]
        self._looked_at.update(whole)
        self.shards += whole
        self.num_rows += sum(min(self._train_rows, stop) - start for start, stop in map(plan.shard_range, whole))
        return bool(whole)


@dataclass(frozen=True)
class AheadTask:
    """What the worker is asked to do; see ``train_ahead``."""

    url: str
    checkpoints: str
    settings: TrainConfig
    attempt: str
    device: str | None = None

    def train(self, should_stop: Callable[[], bool], on_live: Report) -> None:
        """Do it."""
        train_ahead(
            self.url,
            self.checkpoints,
            self.settings,
            should_stop=should_stop,
            on_live=on_live,
            device=self.device,
            attempt=self.attempt,
        )


@contextlib.contextmanager
def training_ahead(
    executor: str,
    url: str,
    checkpoints: Place,
    settings: TrainConfig,
    *,
    label_actor: Mapping[str, float] | None = None,
    on_live: Report | None = None,
) -> Iterator[dict[str, float]]:
    """Within, a worker trains on what is committed; it has written its checkpoint and ended when this is left.

    What goes wrong with it is warned of and does not touch the labels.

    Args:
        executor: "inline" or "ray", whose session is then up.
        url: the store.
        checkpoints: of the fit that will go on from here.
        settings: the fit's.
        label_actor: the CPUs and GPUs that an actor of the labels needs, and that are left to one at least.
        on_live: called every few seconds with how far it is.

    Yields:
        What of the machine's or Ray's resources the worker holds, and labels should leave to it.
    """
    attempt = take_hold(checkpoints)
    Checkpoints(checkpoints, settings, open_pairs(url).plan.run_id).clear_foreign()
    task = AheadTask(absolute_url(url), absolute_url(checkpoints), settings, attempt)
    worker: _TrainingProcess | _TrainingActor = (
        _TrainingProcess(task, on_live) if executor == "inline" else _TrainingActor(task, label_actor or {}, on_live)
    )
    try:
        yield worker.resources
    finally:
        worker.stop()
        if worker.failure:
            warnings.warn(
                f"training ahead of the labels ended early ({worker.failure}); training goes on from its last "
                f"checkpoint, if any",
                stacklevel=3,
            )


def held_resources(
    available: Mapping[str, float], num_threads: int | None, label_actor: Mapping[str, float]
) -> dict[str, float]:
    """What the actor holds for itself: nothing that would leave less than an actor of the labels needs.

    Args:
        available: of the cluster.
        num_threads: that the fit asks for; None takes a quarter of the CPUs.
        label_actor: what one actor of the labels needs.
    """
    wanted = {
        "CPU": float(num_threads or max(1, int(available.get("CPU", 1)) // 4)),
        "GPU": float(available.get("GPU", 0) >= 2),
    }
    return {
        name: amount if available.get(name, 0.0) - amount >= max(1.0, label_actor.get(name, 0.0)) else 0.0
        for name, amount in wanted.items()
    }


class _TrainingProcess:
    """The worker as a process of this machine; it ends when its input does, so also when this process is killed."""

    def __init__(self, task: AheadTask, on_live: Report | None) -> None:
        # The labels have the first GPU, or one CPU.
        threads = task.settings.num_threads or max(1, usable_cpus() - 1)
        self.resources = {"CPU": float(threads)}
        device = "cuda:1" if torch.cuda.device_count() >= 2 else "cpu"
        task = replace(task, settings=task.settings.model_copy(update={"num_threads": threads}), device=device)
        self._child = Child(__name__, task)
        self._child.follow(lambda entry: on_live and on_live(dict(entry)))

    @property
    def failure(self) -> str:
        """What went wrong; empty where nothing did."""
        return str(self._child.failure or "")

    def stop(self) -> None:
        """Ask for the checkpoint and the end, and wait for it."""
        with self._child:
            self._child.finish(STOP_S)


class _ActorBody:
    """What the actor runs: one call works, another tells it to stop."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._live: list[Mapping[str, float]] = []

    def train(self, task: AheadTask, num_cpus: int) -> str:
        """Train until told to stop; what went wrong, or nothing."""
        torch.set_num_threads(task.settings.num_threads or num_cpus)
        try:
            task.train(self._stop.is_set, self._live.append)
        except Exception as error:
            return str(Failure.of(error))
        return ""

    def stop(self) -> None:
        """Let ``train`` write its checkpoint and return."""
        self._stop.set()

    def news(self) -> list[Mapping[str, float]]:
        """What was said since the last call."""
        said, self._live = self._live, []
        return said


class _TrainingActor:
    """The worker as an actor of the running Ray session; it ends with this process."""

    def __init__(self, task: AheadTask, label_actor: Mapping[str, float], on_live: Report | None) -> None:
        import ray

        held = held_resources(ray.cluster_resources(), task.settings.num_threads, label_actor)
        self.resources, self.failure = held, ""
        actor: Any = ray.remote(_ActorBody)
        self._worker = actor.options(num_cpus=held["CPU"], num_gpus=held["GPU"], max_concurrency=3).remote()
        task = replace(task, device=None if held["GPU"] else "cpu")
        # Without a CPU of its own it shares one, on one thread.
        self._result = self._worker.train.remote(task, int(held["CPU"]) or 1)
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, args=(on_live,), name="ahead", daemon=True)
        self._follower.start()

    def _follow(self, on_live: Report | None) -> None:
        import ray

        while not self._ended.wait(LIVE_INTERVAL_S):
            with contextlib.suppress(ray.exceptions.RayError):
                for entry in ray.get(self._worker.news.remote(), timeout=STOP_S):
                    if on_live is not None:
                        on_live(entry)

    def stop(self) -> None:
        """Ask for the checkpoint and the end, and wait for it."""
        import ray

        self._ended.set()
        try:
            ray.get(self._worker.stop.remote(), timeout=STOP_S)
            self.failure = ray.get(self._result, timeout=STOP_S)
        except ray.exceptions.GetTimeoutError:
            self.failure = f"it did not answer within {STOP_S:g} s: the cluster may have had no room for it"
        except ray.exceptions.RayError as error:
            self.failure = " ".join(str(error).split())[:300]
        self._follower.join(LIVE_INTERVAL_S)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self._worker)


def _work(parent: Parent) -> None:
    """What the process does."""
    asked = threading.Event()
    parent.when_gone(asked.set)
    settings = TrainConfig(**parent.task["settings"])
    AheadTask(**{**parent.task, "settings": settings}).train(asked.is_set, lambda entry: parent.answer(**entry))


if __name__ == "__main__":
    serve(_work)
