"""Fits the networks of a generator to a complete store, and calibrates it: what the train stage does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sfg_dist.job.object_stores import absolute_url
from sfg_dist.job.threads import torch_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sfg_dist.distributed.fit.checkpoints import FitSettings
    from sfg_dist.distributed.fit.encoding import EncoderSettings
    from sfg_dist.job.config import Job
    from sfg_dist.model.encoder import Encoder
    from sfg_dist.model.generator import Generator
    from sfg_dist.model.likelihood import Mass
    from sfg_dist.model.mlp import MLP
    from sfg_dist.store import Pairs

Entry = Mapping[str, float]


@dataclass(frozen=True)
class TrainHooks:
    """What the fits tell and ask for.

    Attributes:
        emit: told every event: its name, then its details by keyword.
        on_epoch: told each entry of the generator's history.
        on_live: told how a running epoch stands.
        need_ray: called before Ray is used.
        validation: gives the rows that choose among the encoder's weights, in the flow's coordinates.
    """

    emit: Callable[..., None]
    on_epoch: Callable[[Entry], None]
    on_live: Callable[[Entry], None]
    need_ray: Callable[[], None]
    validation: Callable[[], NDArray[np.float32]]


def fit_settings(job: Job) -> FitSettings:
    """What the generator's fit needs to know of a job."""
    from sfg_dist.distributed.fit.checkpoints import FitSettings

    keys = job.train
    settings = FitSettings(
        network=keys.model_dump(include={"width", "depth", "block", "activation", "linear_skip", "num_noise"}),
        **keys.model_dump(include={field.name for field in fields(FitSettings)} - {"network"}),
    )
    if not keys.encoder:
        return settings
    threads = _threads_beside(job)
    if threads is not None:
        return replace(settings, num_threads=threads[0])
    if keys.max_time_s is not None:
        return replace(settings, max_time_s=keys.max_time_s * (1 - keys.encoder_share))
    return settings


def encoder_settings(job: Job) -> EncoderSettings:
    """What the encoder's fit needs to know of a job."""
    from sfg_dist.distributed.fit.encoding import EncoderSettings

    keys, threads = job.train, _threads_beside(job)
    max_time_s, num_threads = keys.max_time_s, keys.num_threads
    if threads is not None:
        num_threads = threads[1]
    elif max_time_s is not None:
        max_time_s *= keys.encoder_share
    return EncoderSettings(
        width=keys.encoder_width,
        depth=keys.encoder_depth,
        num_steps=keys.encoder_steps,
        max_time_s=max_time_s,
        checkpoint_interval_s=keys.checkpoint_interval_s,
        num_threads=num_threads,
        seed=keys.seed,
        precision=keys.precision,
    )


def _threads_beside(job: Job) -> tuple[int, int] | None:
    """CPU threads of the generator's fit and of the encoder's where both go on at once; None where one waits.

    Measured on two cores, a fit on one thread does 0.6 of the steps of a fit on two.
    """
    from sfg_dist.distributed.machine import default_device
    from sfg_dist.model.sampling import num_cpus

    if job.executor.kind != "inline" or default_device().type != "cpu":
        return None
    threads = job.train.num_threads or num_cpus()
    return (threads - threads // 2, threads // 2) if threads > 1 else None


def fit_generator(pairs: Pairs, job: Job, checkpoints: str, hooks: TrainHooks) -> Generator:
    """Fit the network, the encoder where the job wants one, and the calibration.

    Args:
        pairs: the complete store.
        job: what to fit.
        checkpoints: a directory or an s3:// URL; a fit goes on from what is there.
        hooks: see there.

    Raises:
        TrainingError: a fit diverged, or a checkpoint cannot be written.
        ClusterError: the cluster cannot hold the workers.
        StoreError: the pairs cannot be read.
    """
    from sfg_dist.data import Transform
    from sfg_dist.distributed.fit.units import units_of
    from sfg_dist.model.calibrate import Calibration
    from sfg_dist.model.generator import Generator

    with torch_threads(), _encoder_of(pairs, job, checkpoints, hooks) as (poll, encoder_of):
        network = _fit_network(pairs, job, checkpoints, hooks, poll)
        # Calibration takes samples to the law of the whole table, which for given conditions is another.
        calibrates = job.train.calibrate and not pairs.plan.condition
        units, calibration = units_of(pairs), None
        if calibrates:
            reference = pairs.reference if units is None else units(pairs.reference)
            calibration = Calibration.fit(network, reference, seed=job.train.seed)
        encoder, mass = encoder_of()
    transform = Transform.from_arrays(*pairs.transform)
    return Generator(
        network,
        transform if units is None else units.transform(transform),
        calibration,
        job=job.model_dump(exclude_none=True),
        condition=pairs.plan.condition,
        encoder=encoder,
        mass=mass,
    )


def _fit_network(pairs: Pairs, job: Job, checkpoints: str, hooks: TrainHooks, poll: Callable[[], None]) -> MLP:
    from sfg_dist.distributed.fit.checkpoints import is_finished, load_fitted
    from sfg_dist.distributed.fit.training import fit_inline, fit_with_workers

    settings, url = fit_settings(job), absolute_url(pairs.location.url)

    def on_epoch(entry: Entry) -> None:
        hooks.on_epoch(entry)
        poll()

    if is_finished(checkpoints, settings, pairs.plan.run_id):
        network, _ = load_fitted(checkpoints)
    elif job.executor.kind == "inline":
        network, _ = fit_inline(url, checkpoints, settings, on_epoch=on_epoch, on_live=hooks.on_live)
    else:
        hooks.need_ray()
        wanted = job.train.num_workers
        workers: Any = wanted if isinstance(wanted, int) else tuple(wanted)
        network, _ = fit_with_workers(
            url, checkpoints, settings, num_workers=workers, on_epoch=on_epoch, on_live=hooks.on_live
        )
    return network


@contextmanager
def _encoder_of(
    pairs: Pairs, job: Job, checkpoints: str, hooks: TrainHooks
) -> Iterator[tuple[Callable[[], None], Callable[[], tuple[Encoder | None, Mass | None]]]]:
    """Two callables: one tells how the encoder's fit stands, where it goes on meanwhile; one gives its result."""
    if not job.train.encoder:
        yield (lambda: None), (lambda: (None, None))
        return
    from sfg_dist.distributed.fit.encoder_process import encoder_beside
    from sfg_dist.distributed.fit.encoding import finished_encoder, fit_encoder

    url, settings = absolute_url(pairs.location.url), encoder_settings(job)

    def on_check(entry: Entry) -> None:
        hooks.emit("encoder", **entry)

    def with_mass(found: tuple[Encoder, Mass]) -> tuple[Encoder, Mass]:
        hooks.emit("mass", **asdict(found[1]))
        return found

    done = finished_encoder(pairs, checkpoints, settings)
    if done is not None:
        yield (lambda: None), (lambda: with_mass(done))
        return
    validation = hooks.validation()
    if _threads_beside(job) is None:
        yield (
            (lambda: None),
            (lambda: with_mass(fit_encoder(url, checkpoints, settings, validation, on_check=on_check))),
        )
        return
    with encoder_beside(url, checkpoints, settings, validation, on_check=on_check) as beside:
        yield beside.poll, (lambda: with_mass(beside.wait()))
