"""Data-parallel fit of the generator: Ray Train with gloo or NCCL, or the same loop in this process.

Every worker opens the store by path and reads the same global batches; it trains on its own rows of each. Checkpoints
are ours (safetensors and JSON in ``checkpoints/``), written by rank 0 and read by every rank, so a fit that was killed,
worker or driver, goes on at the batch after the last checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from sfg_dist.distributed.checkpoints import (
    FitSettings,
    Place,
    append_history,
    clear_foreign,
    follow_history,
    history_size,
    load_fitted,
    note_failure,
    resume,
    save_checkpoint,
    save_fitted,
    take_failure,
)
from sfg_dist.distributed.labeler import default_device
from sfg_dist.errors import ClusterError, SfgError, StoreError, TrainingError
from sfg_dist.model.fit import Stopwatch, Trainer
from sfg_dist.model.mlp import MLP
from sfg_dist.objects import absolute_url, is_url
from sfg_dist.store import PairStream, open_pairs, read_rows

SYNC_STEPS = 16  # ranks agree on the clock this often; a broadcast every step would cost as much as a small step
MAX_VALIDATION_ROWS = 65_536


class _DivergedError(TrainingError):
    """The loss is not finite: every rank sees it at the same place, because it is summed over ranks first."""


EpochReport = Callable[[dict[str, float]], None]


def fit_inline(
    url: str, checkpoints: Place, settings: FitSettings, *, on_epoch: EpochReport | None = None
) -> tuple[MLP, list[dict[str, float]]]:
    """Fit in this process; the averaged network and one history entry an epoch."""
    _require_ready(url, checkpoints, settings)
    _fit_rank(url, checkpoints, settings, rank=0, world_size=1, on_epoch=on_epoch)
    return load_fitted(checkpoints)


def fit_with_workers(
    url: str,
    checkpoints: Place,
    settings: FitSettings,
    *,
    num_workers: int,
    use_gpu: bool | None = None,
    max_failures: int = 3,
    on_epoch: EpochReport | None = None,
) -> tuple[MLP, list[dict[str, float]]]:
    """Fit with Ray Train on ``num_workers`` workers of the running Ray session; results as for fit_inline.

    Args:
        url: the store.
        checkpoints: a directory or an s3:// URL that all workers reach.
        settings: the fit.
        num_workers: ranks.
        use_gpu: whether each holds a GPU (and NCCL averages), or CPUs (and gloo); GPUs where the cluster has as many.
        max_failures: how often lost workers are replaced; the fit then goes on from the last checkpoint.
        on_epoch: called in this process with every history entry, in order.

    Raises:
        ClusterError: the cluster is too small.
        TrainingError: the fit failed; the cause is chained.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    _require_ready(url, checkpoints, settings)
    available = ray.cluster_resources()
    if use_gpu is None:
        use_gpu = available.get("GPU", 0) >= num_workers
    cpus = max(1, int(available.get("CPU", 1)) // num_workers)
    if not use_gpu and available.get("CPU", 0) < num_workers:
        raise ClusterError(f"train.num_workers = {num_workers}, but the cluster has {available.get('CPU', 0):g} CPUs")
    config = {"url": url, "checkpoints": absolute_url(checkpoints), "settings": asdict(settings)}
    with (
        tempfile.TemporaryDirectory(prefix="sfg-train-") as scratch,
        _following(checkpoints, on_epoch),
    ):
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                use_gpu=use_gpu,
                # A worker trains with all of its share of the CPUs; the controller itself asks for none.
                resources_per_worker={"CPU": 1, "GPU": 1} if use_gpu else {"CPU": cpus},
            ),
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


def _require_ready(url: str, checkpoints: Place, settings: FitSettings) -> None:
    """Before any rank starts: refuse an unfinished store, and clear away the checkpoints of another fit."""
    pairs = open_pairs(url)
    pairs.require_complete()
    clear_foreign(checkpoints, settings, pairs.plan.run_id)


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
    try:
        _fit_rank(
            config["url"],
            checkpoints,
            settings,
            rank=rank,
            world_size=context.get_world_size(),
            report=lambda entry: ray.train.report(entry),
        )
    except _DivergedError as error:
        # It would come again on every replacement: say so, and end well. Any other error is raised, so that Ray stops
        # the ranks that wait for this one.
        if rank == 0:
            note_failure(checkpoints, str(error))


def _fit_rank(
    url: str,
    checkpoints: Place,
    settings: FitSettings,
    *,
    rank: int,
    world_size: int,
    on_epoch: EpochReport | None = None,
    report: EpochReport | None = None,
) -> None:
    """The fit of one rank; all ranks run the same lines."""
    pairs = open_pairs(url)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    num_rows = pairs.plan.num_pairs
    num_held_out = min(max(1, round(settings.validation_fraction * num_rows)), MAX_VALIDATION_ROWS)
    if num_held_out >= num_rows:
        raise TrainingError(f"{url} holds {num_rows} pairs: too few to train on; raise labels.num_pairs")
    held_out = [read_rows(array, num_rows - num_held_out, num_rows) for array in (pairs.latents, pairs.labels)]
    stream = PairStream(
        pairs.latents,
        pairs.labels,
        num_rows=num_rows - num_held_out,
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle_rows=settings.shuffle_rows,
        rank=rank,
        world_size=world_size,
    )
    torch.manual_seed(settings.seed)
    device = default_device()
    if device.type == "cuda" and world_size > 1:
        import ray.train.torch

        device = ray.train.torch.get_device()
    num_conditions = len(pairs.plan.condition)  # the last columns, of latents and of labels alike
    model = MLP(pairs.plan.dim - num_conditions, num_conditions=num_conditions, **settings.network).to(device)
    parallel: nn.Module | None = None
    if world_size > 1:
        parallel = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    trainer = Trainer(
        model,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        ema_decay=settings.ema_decay,
        schedule=settings.learning_rate_schedule,  # type: ignore[arg-type]
        precision=settings.precision,  # type: ignore[arg-type]
        parallel=parallel,
        world_size=world_size,
    )
    resume(trainer, checkpoints)
    _run_epochs(
        trainer,
        stream,
        held_out,
        checkpoints,
        settings,
        pairs.plan.run_id,
        rank,
        world_size,
        on_epoch,
        report,
    )


def _run_epochs(
    trainer: Trainer,
    stream: PairStream,
    held_out: list[np.ndarray],
    checkpoints: Place,
    settings: FitSettings,
    run_id: str,
    rank: int,
    world_size: int,
    on_epoch: EpochReport | None,
    report: EpochReport | None,
) -> None:
    progress = trainer.progress
    watch = Stopwatch(progress.elapsed_s)
    total_steps = settings.num_epochs * stream.num_batches
    saved_s = progress.elapsed_s
    done = _share_done(trainer, watch, total_steps, settings.max_time_s, world_size)
    while progress.epoch < settings.num_epochs and done < 1:
        loss = torch.zeros((), device=trainer.device)
        num_batches = 0
        for batch in stream.epoch(progress.epoch, start_step=progress.step_in_epoch):
            loss += trainer.step(batch.latents, batch.labels, batch.global_rows, done)
            num_batches += 1
            if settings.max_time_s is None or progress.step % SYNC_STEPS == 0:
                done = _share_done(trainer, watch, total_steps, settings.max_time_s, world_size)
            if done >= 1:
                break
            if rank == 0 and watch.elapsed_s - saved_s > settings.checkpoint_interval_s:
                saved_s = progress.elapsed_s = watch.elapsed_s
                save_checkpoint(trainer, checkpoints, settings, run_id)
        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
        entry = _entry(trainer, watch, loss, num_batches, held_out, world_size)
        if not math.isfinite(entry["train_loss"]):
            raise _DivergedError(
                f"the loss left the floating-point range in epoch {progress.epoch}: take a smaller train.learning_rate"
            )
        progress.history.append(entry)
        if rank == 0:
            append_history(checkpoints, entry)
            if on_epoch is not None:
                on_epoch(entry)
        if report is not None:
            report(entry)
    if rank == 0:
        progress.elapsed_s = watch.elapsed_s
        save_checkpoint(trainer, checkpoints, settings, run_id)
        trainer.model.load_state_dict(trainer.average)
        assert isinstance(trainer.model, MLP)
        save_fitted(trainer.model, checkpoints, progress)
    if world_size > 1:
        torch.distributed.barrier()


def _share_done(
    trainer: Trainer, watch: Stopwatch, total_steps: int, max_time_s: float | None, world_size: int
) -> float:
    """Share of the training that is over, by steps or by the clock; every rank gets rank 0's."""
    done = trainer.progress.step / total_steps
    if max_time_s is None:
        return done
    done = max(done, watch.elapsed_s / max_time_s)
    if world_size > 1:
        shared = torch.tensor([done], device=trainer.device)
        torch.distributed.broadcast(shared, src=0)
        done = float(shared)
    return done


def _entry(
    trainer: Trainer,
    watch: Stopwatch,
    loss: Tensor,
    num_batches: int,
    held_out: list[np.ndarray],
    world_size: int,
) -> dict[str, float]:
    """What an epoch leaves: each rank holds its part of every batch's loss, so the sum over ranks is the loss."""
    if world_size > 1:
        torch.distributed.all_reduce(loss)
    return {
        "epoch": trainer.progress.epoch,
        "step": trainer.progress.step,
        "train_loss": float(loss) / max(1, num_batches),
        "validation_loss": trainer.validation_loss(*held_out),
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        "elapsed_s": round(watch.elapsed_s, 3),
    }


@contextlib.contextmanager
def _following(checkpoints: Place, on_epoch: EpochReport | None) -> Iterator[None]:
    """Within, entries that a worker adds to the fit's history are passed on as they come."""
    if on_epoch is None:
        yield
        return
    stop = threading.Event()
    offset = history_size(checkpoints)  # what earlier attempts wrote was passed on by them

    def poll() -> None:
        nonlocal offset
        offset = follow_history(checkpoints, offset, on_epoch)

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
