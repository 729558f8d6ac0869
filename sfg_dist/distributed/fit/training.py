"""The fit of the generator's network: data-parallel by Ray Train with gloo or NCCL, or the same loop in this process.

Every worker opens the store by its path and reads the same global batches, of which it trains on its own rows. Rank 0
writes checkpoints and every rank reads them. So a fit whose worker or driver was killed goes on at the batch after the
last checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from sfg_dist.data.cells import cell_edges, check_experts, draws_cells
from sfg_dist.data.conditions import ColumnSplit
from sfg_dist.data.transform import Transform
from sfg_dist.distributed.fit.checkpoints import NETWORK_KEYS, Checkpoints, Place, load_fitted
from sfg_dist.distributed.fit.fit_loop import DivergedError, FitLoop, Hooks
from sfg_dist.distributed.fit.hold import Hold, take_hold
from sfg_dist.distributed.fit.journal import Entry, Journal, Report
from sfg_dist.distributed.machine import default_device
from sfg_dist.distributed.nodes import alive_nodes, largest_share, on_loopback
from sfg_dist.distributed.stopping import stop_signals
from sfg_dist.job.config import TrainConfig
from sfg_dist.job.errors import ClusterError, SfgError, StoreError, TrainingError
from sfg_dist.job.object_stores import absolute_url
from sfg_dist.model.cell_network import CellNetwork, Network
from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.mlp import MLP
from sfg_dist.model.scaling import scaled_reference, scaling_of
from sfg_dist.model.trainer import Trainer
from sfg_dist.store import Pairs, PairStream, open_pairs, read_ranges

MAX_VALIDATION_ROWS = 65_536
RESIZE_INTERVAL_S = 60.0
STOP_GRACE_S = 10.0
"""Seconds that a step and a checkpoint may take after a signal."""


@dataclass(frozen=True)
class WorkerTask:
    """What a worker of Ray Train is told."""

    url: str  # of the store
    checkpoints: str  # a path or URL that every worker reaches
    settings: Mapping[str, object]  # the keys of a TrainConfig
    attempt: str  # the name of this attempt, for ``Hold``
    watch_preemption: bool  # whether Ray is asked for nodes that will be taken away


def fit_inline(
    url: str,
    checkpoints: Place,
    settings: TrainConfig,
    *,
    on_epoch: Report | None = None,
    on_live: Report | None = None,
) -> tuple[Network, list[Entry]]:
    """Fit in this process; the averaged network and its history.

    Args:
        url: the store.
        checkpoints: a directory or an s3:// URL.
        settings: the fit.
        on_epoch: called with every entry of the history.
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
    settings: TrainConfig,
    *,
    use_gpu: bool | None = None,
    num_cpus_per_worker: int | None = None,
    max_failures: int = 3,
    on_epoch: Report | None = None,
    on_live: Report | None = None,
) -> tuple[Network, list[Entry]]:
    """Fit with Ray Train on workers of the running Ray session; returns what ``fit_inline`` does.

    Args:
        url: the store.
        checkpoints: a directory or an s3:// URL that all workers reach.
        settings: the fit. Under num_workers = [fewest, most] it runs with as many workers as the cluster has room for,
            and looks for more every RESIZE_INTERVAL_S. The global batches are the same for any number.
        use_gpu: whether each worker holds a GPU (and NCCL averages) or CPUs (and gloo). None takes GPUs where the
            cluster has enough of them.
        num_cpus_per_worker: CPUs of a worker without a GPU; None takes as many as these nodes have for each worker.
        max_failures: how often lost workers are replaced; the fit then goes on from the last checkpoint. Nodes that
            are taken away with a notice do not count, and a checkpoint is written at the notice.
        on_epoch: called in this process with every entry of the history, in order.
        on_live: called in this process every few seconds with how far the epoch is.

    Raises:
        ClusterError: the cluster is too small.
        TrainingError: the fit failed; the cause is chained.
    """
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    from sfg_dist.distributed.fit.rendezvous import FileConfig

    attempt = _begin(url, checkpoints, settings)
    scaling = _scaling_config(settings, use_gpu, num_cpus_per_worker)
    watch_preemption = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"
    task = WorkerTask(url, absolute_url(checkpoints), settings.model_dump(), attempt, watch_preemption)
    journal = Journal(checkpoints)
    with tempfile.TemporaryDirectory(prefix="sfg-train-") as scratch, _following(journal, on_epoch, on_live):
        trainer = TorchTrainer(
            _ray_worker,
            torch_config=FileConfig(folder=scratch) if on_loopback() else None,
            train_loop_config=asdict(task),
            scaling_config=scaling,
            # Ray keeps its own notes there; the checkpoints that matter are this package's.
            run_config=RunConfig(
                name="fit", storage_path=scratch, failure_config=FailureConfig(max_failures=max_failures)
            ),
        )
        journal.take_failure()  # of an earlier fit
        _run(trainer)
        if (failure := journal.take_failure()) is not None:
            raise TrainingError(failure)
    return load_fitted(checkpoints)


def _scaling_config(settings: TrainConfig, use_gpu: bool | None, num_cpus_per_worker: int | None) -> Any:
    """How many workers there are, and what each of them holds.

    Raises:
        ClusterError: the cluster has not even the fewest.
    """
    import ray
    from ray.train import ScalingConfig

    wanted = settings.num_workers
    fewest, most = (wanted, wanted) if isinstance(wanted, int) else wanted
    available = ray.cluster_resources()
    if use_gpu is None:
        use_gpu = available.get("GPU", 0) >= fewest
    cpus = num_cpus_per_worker or largest_share(alive_nodes(), most)
    if available.get("GPU" if use_gpu else "CPU", 0) < fewest:
        raise ClusterError(
            f"train.num_workers = {fewest}, but the cluster has {available.get('CPU', 0):g} CPUs and "
            f"{available.get('GPU', 0):g} GPUs"
        )
    make: Any = ScalingConfig  # its types are those of another version of Ray Train
    return make(
        num_workers=wanted if isinstance(wanted, int) else (fewest, most),
        elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        use_gpu=use_gpu,
        # A worker trains with all of its share of the CPUs; the controller itself asks for none.
        resources_per_worker={"CPU": 1, "GPU": 1} if use_gpu else {"CPU": cpus},
    )


def _run(trainer: Any) -> None:
    """Ray Train's fit, with this package's errors and signal handlers.

    Raises:
        KeyboardInterrupt: on Ctrl-C, where Ray's own handler stops the workers and then ends the process.
    """
    interrupt, terminate = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        trainer.fit()
    except SystemExit:
        raise KeyboardInterrupt from None
    except Exception as error:
        raise _root_cause(error) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGTERM, terminate)


def _begin(url: str, checkpoints: Place, settings: TrainConfig) -> str:
    """Refuse an unfinished store, take the hold, remove checkpoints of another fit: all before any rank starts.

    Returns:
        The name of this attempt, for ``Hold``.
    """
    pairs = open_pairs(url)
    pairs.require_complete()
    attempt = take_hold(checkpoints)  # first: an older attempt must not save in between
    Checkpoints(checkpoints, settings, pairs.plan.run_id).clear_foreign()
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

    task = WorkerTask(**config)
    context = ray.train.get_context()
    settings = TrainConfig.model_validate(task.settings)
    if settings.num_threads is None and not torch.cuda.is_available():
        cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
        torch.set_num_threads(max(1, cpus))
    checkpoints, rank = task.checkpoints, context.get_world_rank()
    journal = Journal(checkpoints)
    hooks = Hooks(
        on_live=journal.write_live,
        report=lambda entry: ray.train.report(entry),
        is_preempted=_is_preempted if task.watch_preemption else None,
    )
    size = context.get_world_size()
    try:
        _fit_rank(task.url, checkpoints, settings, task.attempt, rank=rank, world_size=size, hooks=hooks)
    except DivergedError as error:
        # A replacement would diverge too, so the failure is noted and the worker ends well. Any other error is raised,
        # so that Ray stops the ranks that wait for this one.
        if rank == 0:
            journal.note_failure(str(error))


def _is_preempted() -> bool:
    import ray.train

    return ray.train.get_preemption_info() is not None


def _fit_rank(
    url: str,
    place: Place,
    settings: TrainConfig,
    attempt: str,
    *,
    rank: int,
    world_size: int,
    hooks: Hooks,
) -> None:
    """The fit of one rank; all ranks run the same lines."""
    hold = Hold(place, attempt) if rank == 0 else None  # before the checkpoints are read
    pairs = open_pairs(url)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    num_rows, num_held_out = split_rows(pairs, settings)
    held_out = read_ranges([pairs.rows("latents"), pairs.rows("labels")], [(num_rows, num_rows + num_held_out)])
    with PairStream.of(
        pairs,
        num_rows=num_rows,
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle_rows=settings.shuffle_rows,
        rank=rank,
        world_size=world_size,
    ) as stream:
        trainer = make_trainer(pairs, settings, world_size=world_size)
        checkpoints = Checkpoints(place, settings, pairs.plan.run_id)
        FitLoop(trainer, stream, held_out, checkpoints, hooks=hooks, hold=hold).run()


def split_rows(pairs: Pairs, settings: TrainConfig) -> tuple[int, int]:
    """Number of pairs that are trained on, the first ones, and of those that are held out, the last ones.

    Raises:
        TrainingError: there are too few pairs.
    """
    num_rows = pairs.plan.num_pairs
    num_held_out = min(max(1, round(settings.validation_fraction * num_rows)), MAX_VALIDATION_ROWS)
    if num_held_out >= num_rows:
        raise TrainingError(f"{pairs.location.url} holds {num_rows} pairs: too few to train on; raise labels.num_pairs")
    return num_rows - num_held_out, num_held_out


def make_trainer(
    pairs: Pairs, settings: TrainConfig, *, world_size: int = 1, device: torch.device | None = None
) -> Trainer:
    """A new network for a store's pairs and its trainer, on this rank's device if no other is given."""
    torch.manual_seed(settings.seed)
    device = device or default_device()
    if device.type == "cuda" and world_size > 1:
        import ray.train.torch

        device = ray.train.torch.get_device()
    num_conditions = len(pairs.plan.condition)  # the last columns, of latents and of labels alike
    model = _new_network(pairs, settings).to(device)
    parallel: nn.Module | None = None
    if world_size > 1:
        parallel = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    scaling = scaling_of(pairs)
    return Trainer(
        model,
        settings,
        parallel=parallel,
        world_size=world_size,
        input_scaling=scaling.of_last(num_conditions) if scaling is not None and num_conditions else None,
        target_scaling=scaling,
    )


def within_looks(pairs: Pairs, settings: TrainConfig, steps_ahead: int = 0) -> TrainConfig:
    """The settings with no more epochs than ``max_looks`` allows a network that draws cells; at least one.

    ``steps_ahead`` were done before the first epoch.
    """
    if (most_rows := _most_rows(pairs, settings)) is None:
        return settings
    most = round((most_rows - steps_ahead * settings.batch_size) / split_rows(pairs, settings)[0])
    return settings.model_copy(update={"num_epochs": max(1, min(settings.num_epochs, most))})


def most_steps_ahead(pairs: Pairs, settings: TrainConfig) -> float:
    """The steps before the first epoch that ``max_looks`` allows, where one epoch is to follow."""
    if (most_rows := _most_rows(pairs, settings)) is None:
        return math.inf
    return max(0.0, (most_rows - split_rows(pairs, settings)[0]) // settings.batch_size)


def _most_rows(pairs: Pairs, settings: TrainConfig) -> float | None:
    """The pairs that a network may be trained on, each as often as it is met; None where there is no limit."""
    if not draws_cells(Transform.from_arrays(*pairs.transform), settings.cells):
        return None
    return settings.max_looks * pairs.num_reference


def _new_network(pairs: Pairs, settings: TrainConfig) -> Network:
    """The network of a store's table, which draws cells or gives values (``train.cells``), by experts or alone.

    Raises:
        DataError: there are no cells for ``train.cells`` to ask for, or both cells and experts.
    """
    shape: dict[str, Any] = settings.model_dump(include=set(NETWORK_KEYS))
    shape["num_conditions"] = len(pairs.plan.condition)
    transform = Transform.from_arrays(*pairs.transform)
    check_experts(transform, settings.cells, settings.experts)
    if draws_cells(transform, settings.cells):
        split = ColumnSplit.of(transform, pairs.plan.condition)
        return CellNetwork.of_edges(cell_edges(transform, split.targets), **shape)
    dim = pairs.plan.dim - shape["num_conditions"]
    if settings.experts > 1:
        return ExpertNetwork.of_reference(scaled_reference(pairs), dim, experts=settings.experts, **shape)
    return MLP(dim, **shape)


@contextlib.contextmanager
def _following(journal: Journal, on_epoch: Report | None, on_live: Report | None) -> Iterator[None]:
    """Within, what the first worker writes into the journal is passed on."""
    if on_epoch is None and on_live is None:
        yield
        return
    stop = threading.Event()
    offset = journal.history_size  # what earlier attempts wrote was passed on by them
    last = journal.read_live()

    def poll() -> None:
        nonlocal offset, last
        live = journal.read_live()
        offset = journal.follow_epochs(offset, on_epoch or (lambda entry: None))
        if on_live is not None and live is not None and live != last:
            last = live
            on_live(live)

    def watch() -> None:
        while not stop.wait(journal.poll_interval_s):
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
