"""The train stage: fits the networks of a generator to a complete store, and calibrates the generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sfg_dist.distributed.executor import fit_takes_ray
from sfg_dist.job.object_stores import absolute_url
from sfg_dist.job.threads import torch_threads, usable_cpus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sfg_dist.distributed.fit.encoder import FittedEncoder
    from sfg_dist.job.config import Job, TrainConfig
    from sfg_dist.model.cell_network import Network
    from sfg_dist.model.generator import Generator
    from sfg_dist.store import Pairs

Entry = Mapping[str, float]


@dataclass(frozen=True)
class TrainHooks:
    """What the fits call."""

    emit: Callable[..., None]  # called with every event: its name, then its details by keyword
    on_epoch: Callable[[Entry], None]  # called with each entry of the network's history
    on_live: Callable[[Entry], None]  # called every few seconds with how far the epoch is
    need_ray: Callable[[], None]  # called before Ray is used
    # gives the rows that choose among the encoder's weights, in the flow's coordinates
    validation: Callable[[], NDArray[np.float32]]


def fit_settings(job: Job) -> TrainConfig:
    """The settings of the fit of the generator's network, which shares time or threads with the encoder's."""
    keys, threads = job.train, _threads_beside(job)
    if not keys.encoder:
        return keys
    if threads is not None:
        return keys.model_copy(update={"num_threads": threads[0]})
    if keys.max_time_s is not None:
        return keys.model_copy(update={"max_time_s": keys.max_time_s * (1 - keys.encoder_share)})
    return keys


def encoder_settings(job: Job) -> TrainConfig:
    """The settings of the encoder's fit."""
    keys, threads = job.train, _threads_beside(job)
    if threads is not None:
        return keys.model_copy(update={"num_threads": threads[1]})
    if keys.max_time_s is not None:
        return keys.model_copy(update={"max_time_s": keys.max_time_s * keys.encoder_share})
    return keys


def _threads_beside(job: Job) -> tuple[int, int] | None:
    """CPU threads of the network's fit and of the encoder's where both run at once; None where one waits.

    Measured on two cores, a fit on one thread does 0.6 of the steps of a fit on two.
    """
    from sfg_dist.distributed.machine import default_device

    if fit_takes_ray(job) or default_device().type != "cpu":
        return None
    threads = job.train.num_threads or usable_cpus()
    return (threads - threads // 2, threads // 2) if threads > 1 else None


def fit_generator(pairs: Pairs, job: Job, checkpoints: str, hooks: TrainHooks) -> Generator:
    """Fit the network, the encoder where the job wants one, and the calibration.

    Args:
        pairs: the complete store.
        job: what to fit.
        checkpoints: a directory or an s3:// URL; a fit goes on from what is there.
        hooks: what the fits call.

    Raises:
        TrainingError: a fit diverged, or a checkpoint cannot be written.
        ClusterError: the cluster cannot hold the workers.
        StoreError: the pairs cannot be read.
    """
    from sfg_dist.data import Transform
    from sfg_dist.model.calibration import Calibration
    from sfg_dist.model.cell_network import CellNetwork
    from sfg_dist.model.expert_network import ExpertNetwork
    from sfg_dist.model.generator import Generator
    from sfg_dist.model.scaling import scaled_reference, scaling_of

    with torch_threads(), _encoder_fit(pairs, job, checkpoints, hooks) as encoder_fit:
        network = _fit_network(pairs, job, checkpoints, hooks, encoder_fit.poll)
        scaling, calibration = scaling_of(pairs), None
        if isinstance(network, ExpertNetwork):
            network.match_shares(scaled_reference(pairs), seed=job.train.seed)
        # Given a condition, the law is not the whole table's; and cells have the shares that they were fitted to.
        if job.train.calibrate and not pairs.plan.condition and not isinstance(network, CellNetwork):
            hooks.emit("calibrating")
            reference = pairs.reference if scaling is None else scaling(pairs.reference)
            calibration = Calibration.fit(network, reference, seed=job.train.seed)
        encoder, mass, blend = encoder_fit.result()
    transform = Transform.from_arrays(*pairs.transform)
    return Generator(
        network,
        transform if scaling is None else scaling.transform(transform),
        calibration,
        job=job.model_dump(exclude_none=True),
        condition=pairs.plan.condition,
        encoder=encoder,
        mass=mass,
        blend=blend,
    )


def _fit_network(pairs: Pairs, job: Job, checkpoints: str, hooks: TrainHooks, poll: Callable[[], None]) -> Network:
    from sfg_dist.distributed.fit.checkpoints import Checkpoints, load_fitted, steps_ahead
    from sfg_dist.distributed.fit.training import fit_inline, fit_with_workers, within_looks

    settings, url = fit_settings(job), absolute_url(pairs.location.url)
    is_ours = Checkpoints(checkpoints, settings, pairs.plan.run_id).is_ours
    settings = within_looks(pairs, settings, steps_ahead(checkpoints) if is_ours else 0)

    def on_epoch(entry: Entry) -> None:
        hooks.on_epoch(entry)
        poll()

    if Checkpoints(checkpoints, settings, pairs.plan.run_id).is_finished:
        network, _ = load_fitted(checkpoints)
    elif not fit_takes_ray(job):
        network, _ = fit_inline(url, checkpoints, settings, on_epoch=on_epoch, on_live=hooks.on_live)
    else:
        hooks.need_ray()
        network, _ = fit_with_workers(url, checkpoints, settings, on_epoch=on_epoch, on_live=hooks.on_live)
    return network


@dataclass(frozen=True)
class _EncoderFit:
    """The encoder's fit, which may go on beside the other."""

    # waits for what ``fit_encoder`` returns; None each where the job wants none
    result: Callable[[], FittedEncoder | tuple[None, None, None]]
    poll: Callable[[], None] = lambda: None  # passes on what the fit has said meanwhile


@contextmanager
def _encoder_fit(pairs: Pairs, job: Job, checkpoints: str, hooks: TrainHooks) -> Iterator[_EncoderFit]:
    if not job.train.encoder:
        yield _EncoderFit(lambda: (None, None, None))
        return
    from sfg_dist.distributed.fit.encoder import finished_encoder, fit_encoder
    from sfg_dist.distributed.fit.encoder_process import encoder_beside

    url, settings = absolute_url(pairs.location.url), encoder_settings(job)

    def on_check(entry: Entry) -> None:
        hooks.emit("encoder", **entry)

    def with_mass(found: FittedEncoder) -> FittedEncoder:
        hooks.emit("mass", **asdict(found[1]))
        return found

    done = finished_encoder(pairs, checkpoints, settings)
    if done is not None:
        yield _EncoderFit(lambda: with_mass(done))
        return
    validation = hooks.validation()
    if _threads_beside(job) is None:
        yield _EncoderFit(lambda: with_mass(fit_encoder(url, checkpoints, settings, validation, on_check=on_check)))
        return
    with encoder_beside(url, checkpoints, settings, validation, on_check=on_check) as beside:
        yield _EncoderFit(lambda: with_mass(beside.wait()), beside.poll)
