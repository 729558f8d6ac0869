"""Data-parallel fit of the generator: Ray Train with gloo or NCCL, or the same loop in this process.

Every worker opens the store by path and reads the same global batches; it trains on its own rows of each. Checkpoints
are ours (safetensors and JSON in ``checkpoints/``), written by rank 0 and read by every rank, so a fit that was killed,
worker or driver, goes on at the batch after the last checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from sfg_dist.distributed.fit.checkpoints import (
    FitSettings,
    Place,
    clear_foreign,
    follow_history,
    history_size,
    load_fitted,
    note_failure,
    read_live,
    take_failure,
    write_live,
)
from sfg_dist.distributed.fit.fit_loop import DivergedError, Entry, FitLoop, Hooks, Report
from sfg_dist.distributed.fit.hold import Hold, take_hold
from sfg_dist.distributed.fit.units import units_of
from sfg_dist.distributed.machine import default_device
from sfg_dist.distributed.nodes import alive_nodes, largest_share, on_loopback
from sfg_dist.distributed.stopping import stop_signals
from sfg_dist.job.errors import ClusterError, SfgError, StoreError, TrainingError
from sfg_dist.job.object_stores import absolute_url, is_url
from sfg_dist.model.fit import Trainer
from sfg_dist.model.mlp import MLP
from sfg_dist.store import Pairs, PairStream, open_pairs, read_ranges

MAX_VALIDATION_ROWS = 65_536
RESIZE_INTERVAL_S = 60.0
LIVE_PUT_INTERVAL_S = 10.0
STOP_GRACE_S = 10.0
"""Seconds that a step and a checkpoint may take after a signal."""


def fit_inline(
    url: str,
    checkpoints: Place,
    settings: FitSettings,
    *,
    on_epoch: Report | None = None,
    on_live: Report | None = None,
) -> tuple[MLP, list[Entry]]:
    """Fit in this process; the averaged network and one history entry an epoch.

    Args:
        url: the store.
        checkpoints: a directory or an s3:// URL.
        settings: the fit.
        on_epoch: called with every history entry.
        on_live: called every few seconds with how far the epoch is.

    Raises:
        TrainingError: the fit failed.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR2 came; a checkpoint is written.
    """
    attempt = _begin(url, checkpoints, settings)
    asked = threading.Event()
    hooks = Hooks(on_epoch=on_epoch, on_live=on_live, should_stop=asked.is_set)
    with stop_signals(lambda _: asked.set(), patience=lambda: (None, STOP_GRACE_S)):
        _fit_rank(url, checkpoints, settings, attempt, rank=0, world_size=1, hooks=hooks)
    return load_fitted(checkpoints)


def fit_with_workers(
    url: str,
    checkpoints: Place,
    settings: FitSettings,
    *,
    num_workers: int | tuple[int, int],
    use_gpu: bool | None = None,
    num_cpus_per_worker: int | None = None,
    max_failures: int = 3,
    on_epoch: Report | None = None,
    on_live: Report | None = None,
) -> tuple[MLP, list[Entry]]:
    """Fit with Ray Train on workers of the running Ray session; results as for fit_inline.

    Args:
        url: the store.
        checkpoints: a directory or an s3:// URL that all workers reach.
        settings: the fit.
        num_workers: ranks; or the fewest and the most of them, and the fit then runs with as many as the cluster has
            room for, looking for more every RESIZE_INTERVAL_S. The global batches are the same for any number.
        use_gpu: whether each holds a GPU (and NCCL averages), or CPUs (and gloo); GPUs where the cluster has as many.
        num_cpus_per_worker: CPUs of each without a GPU; if None as many as so many workers can have on these nodes.
        max_failures: how often lost workers are replaced; the fit then goes on from the last checkpoint. Nodes that
            are taken away with a notice do not count, and a checkpoint is written at the notice.
        on_epoch: called in this process with every history entry, in order.
        on_live: called in this process every few seconds with how far the epoch is.

    Raises:
        ClusterError: the cluster is too small.
        TrainingError: the fit failed; the cause is chained.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from sfg_dist.distributed.fit.rendezvous import FileConfig

    attempt = _begin(url, checkpoints, settings)
    fewest, most = (num_workers, num_workers) if isinstance(num_workers, int) else num_workers
    available = ray.cluster_resources()
    if use_gpu is None:
        use_gpu = available.get("GPU", 0) >= fewest
    cpus = num_cpus_per_worker or largest_share(alive_nodes(), most)
    if available.get("GPU" if use_gpu else "CPU", 0) < fewest:
        raise ClusterError(
            f"train.num_workers = {fewest}, but the cluster has {available.get('CPU', 0):g} CPUs and "
            f"{available.get('GPU', 0):g} GPUs"
        )
    config: dict[str, Any] = {
        "url": url,
        "checkpoints": absolute_url(checkpoints),
        "settings": asdict(settings),
        "attempt": attempt,
    }
    config["watch_preemption"] = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"
    scaling: dict[str, Any] = {
        "num_workers": num_workers,
        "elastic_resize_monitor_interval_s": RESIZE_INTERVAL_S,
        "use_gpu": use_gpu,
        # A worker trains with all of its share of the CPUs; the controller itself asks for none.
        "resources_per_worker": {"CPU": 1, "GPU": 1} if use_gpu else {"CPU": cpus},
    }
    with (
        tempfile.TemporaryDirectory(prefix="sfg-train-") as scratch,
        _following(checkpoints, on_epoch, on_live),
    ):
        trainer = TorchTrainer(
            _ray_worker,
            torch_config=FileConfig(folder=scratch) if on_loopback() else None,
            train_loop_config=config,
            scaling_config=ScalingConfig(**scaling),
            # Ray keeps its own notes here; the checkpoints that matter are ours.
            run_config=RunConfig(
                name="fit", storage_path=scratch, failure_config=FailureConfig(max_failures=max_failures)
            ),
        )
        take_failure(checkpoints)  # of an earlier fit
        interrupt, terminate = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        try:
            trainer.fit()
        except SystemExit:  # Ray's own handler stops the workers on Ctrl-C and then ends the process
            raise KeyboardInterrupt from None
        except Exception as error:
            raise _root_cause(error) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)
                signal.signal(signal.SIGTERM, terminate)
        if (failure := take_failure(checkpoints)) is not None:
            raise TrainingError(failure)
    return load_fitted(checkpoints)


def _begin(url: str, checkpoints: Place, settings: FitSettings) -> str:
    """Before any rank starts: refuse an unfinished store, take hold, clear away the checkpoints of another fit."""
    pairs = open_pairs(url)
    pairs.require_complete()
    attempt = take_hold(checkpoints)  # first: an older attempt must not save in between
    clear_foreign(checkpoints, settings, pairs.plan.run_id)
    return attempt


def _root_cause(error: Exception) -> Exception:
    """Our own error out of what Ray Train wraps it in."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, SfgError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return TrainingError(f"the fit failed: {error}")


def _ray_worker(config: dict[str, Any]) -> None:
    import ray.train

    context = ray.train.get_context()
    settings = FitSettings(**config["settings"])
    if settings.num_threads is None and not torch.cuda.is_available():
        cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
        torch.set_num_threads(max(1, cpus))
    checkpoints, rank = config["checkpoints"], context.get_world_rank()
    hooks = Hooks(
        on_live=_live_writer(checkpoints),
        report=lambda entry: ray.train.report(entry),
        is_preempted=_is_preempted if config["watch_preemption"] else None,
    )
    try:
        _fit_rank(
            config["url"],
            checkpoints,
            settings,
            config["attempt"],
            rank=rank,
            world_size=context.get_world_size(),
            hooks=hooks,
        )
    except DivergedError as error:
        # It would come again on every replacement: say so, and end well. Any other error is raised, so that Ray stops
        # the ranks that wait for this one.
        if rank == 0:
            note_failure(checkpoints, str(error))


def _live_writer(checkpoints: Place) -> Report:
    """Writes how far the fit is, on an object store not with every call: a step waits for it."""
    written_at = -math.inf

    def write(entry: Entry) -> None:
        nonlocal written_at
        if not is_url(checkpoints) or time.monotonic() - written_at >= LIVE_PUT_INTERVAL_S:
            written_at = time.monotonic()
            write_live(checkpoints, entry)

    return write


def _is_preempted() -> bool:
    import ray.train

    return ray.train.get_preemption_info() is not None


def _fit_rank(
    url: str,
    checkpoints: Place,
    settings: FitSettings,
    attempt: str,
    *,
    rank: int,
    world_size: int,
    hooks: Hooks,
) -> None:
    """The fit of one rank; all ranks run the same lines."""
    hold = Hold(checkpoints, attempt) if rank == 0 else None  # before the checkpoints are read
    pairs = open_pairs(url)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    num_rows, num_held_out = split_rows(pairs, settings)
    names = table_names(settings)
    held_out = read_ranges([pairs.rows(name) for name in names], [(num_rows, num_rows + num_held_out)])
    with PairStream.of(
        pairs,
        names,
        num_rows=num_rows,
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle_rows=settings.shuffle_rows,
        rank=rank,
        world_size=world_size,
    ) as stream:
        trainer = make_trainer(pairs, settings, rank=rank, world_size=world_size)
        FitLoop(
            trainer,
            stream,
            held_out,
            checkpoints,
            settings,
            pairs.plan.run_id,
            rank=rank,
            world_size=world_size,
            hooks=hooks,
            hold=hold,
        ).run()


def split_rows(pairs: Pairs, settings: FitSettings) -> tuple[int, int]:
    """Rows of the pairs that are trained on, the first ones, and rows that are held out, the last ones.

    Raises:
        TrainingError: there are too few.
    """
    num_rows = pairs.plan.num_pairs
    num_held_out = min(max(1, round(settings.validation_fraction * num_rows)), MAX_VALIDATION_ROWS)
    if num_held_out >= num_rows:
        raise TrainingError(f"{pairs.location.url} holds {num_rows} pairs: too few to train on; raise labels.num_pairs")
    return num_rows - num_held_out, num_held_out


def table_names(settings: FitSettings) -> tuple[str, str]:
    """The arrays of the store that are the network's inputs and its targets."""
    return ("labels", "latents") if settings.direction == "encode" else ("latents", "labels")


def make_trainer(
    pairs: Pairs, settings: FitSettings, *, rank: int = 0, world_size: int = 1, device: torch.device | None = None
) -> Trainer:
    """The network of these settings at its start, on this rank's device if no other is given, and what trains it."""
    torch.manual_seed(settings.seed)
    device = device or default_device()
    if device.type == "cuda" and world_size > 1:
        import ray.train.torch

        device = ray.train.torch.get_device()
    num_conditions = len(pairs.plan.condition)  # the last columns, of latents and of labels alike
    model = MLP(pairs.plan.dim - num_conditions, num_conditions=num_conditions, **settings.network).to(device)
    parallel: nn.Module | None = None
    if world_size > 1:
        parallel = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    units = units_of(pairs)
    labels = None if units is None else (units.location, units.scale)
    latents = None
    if units is not None and num_conditions:  # they stand behind the latents too
        latents = (np.zeros(pairs.plan.dim), np.ones(pairs.plan.dim))
        for part, whole in zip(latents, (units.location, units.scale), strict=True):
            part[-num_conditions:] = whole[-num_conditions:]
    return Trainer(
        model,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        ema_decay=settings.ema_decay,
        schedule=settings.learning_rate_schedule,  # type: ignore[arg-type]
        precision=settings.precision,  # type: ignore[arg-type]
        objective=settings.objective,  # type: ignore[arg-type]
        optimizer=settings.optimizer,  # type: ignore[arg-type]
        clip_norm=settings.clip_norm,
        parallel=parallel,
        world_size=world_size,
        rank=rank,
        seed=settings.seed,
        input_units=labels if settings.direction == "encode" else latents,
        target_units=latents if settings.direction == "encode" else labels,
    )


@contextlib.contextmanager
def _following(checkpoints: Place, on_epoch: Report | None, on_live: Report | None) -> Iterator[None]:
    """Within, what the first worker says is passed on: each entry of its history, and how far it is."""
    if on_epoch is None and on_live is None:
        yield
        return
    stop = threading.Event()
    offset = history_size(checkpoints)  # what earlier attempts wrote was passed on by them
    last: dict[str, Any] | None = read_live(checkpoints)

    def poll() -> None:
        nonlocal offset, last
        live = read_live(checkpoints) if on_live is not None else None
        offset = follow_history(checkpoints, offset, on_epoch or (lambda entry: None))
        if live is not None and live != last:
            last = live
            assert on_live is not None
            on_live(live)

    def watch() -> None:
        while not stop.wait(2.0 if is_url(checkpoints) else 0.5):
            with contextlib.suppress(StoreError):  # looked at again in a moment, and once more at the end
                poll()

    thread = threading.Thread(target=watch, name="history", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        poll()
