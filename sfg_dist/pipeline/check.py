"""A checked job from whatever names it, and the keys of a job that do not fit together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfg_dist.data.table import is_table
from sfg_dist.job.config import Job, load_job, resolve_job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.paths import expanded
from sfg_dist.job.plan import MAX_SHARDS, check_shard_rows
from sfg_dist.job.words import shown


def as_job(job: str | Path | Mapping[str, Any] | Job) -> Job:
    """A checked job from whatever names it.

    Raises:
        ConfigError: it is none of these, or a key or value is wrong.
    """
    if isinstance(job, Job):
        return job
    if isinstance(job, Mapping):
        return resolve_job(job)
    if isinstance(job, str | os.PathLike):
        if is_table(place := expanded(os.fspath(job))):
            raise ConfigError(
                f'job: {shown(place)} is a table, which a job names: {{"data": {{"source": "table.csv"}}}}'
            )
        return load_job(place)
    raise ConfigError(
        f"job: expected the path of a job file, a mapping of its tables or a Job, got {shown(job)}; the table itself "
        f'is named in it: {{"data": {{"source": "table.csv"}}}}'
    )


def check_job(job: Job) -> None:
    """Refuse keys that do not fit together, before any work.

    Raises:
        ConfigError: with the keys and what to take instead.
    """
    check_shard_rows(job.labels.shard_rows, job.labels.batch_size, job.labels.gpu_batch_size)
    if job.labels.num_pairs > MAX_SHARDS * job.labels.shard_rows:
        shards = -(-job.labels.num_pairs // job.labels.shard_rows)
        raise ConfigError(
            f"labels.num_pairs = {job.labels.num_pairs:,} in shards of labels.shard_rows = {job.labels.shard_rows:,} "
            f"are {shards:,} shards, and a store has {MAX_SHARDS:,} at most: take larger shards or fewer pairs"
        )
    _check_certificate(job)
    _check_condition(job)
    if job.train.cells is True and job.transform.kind != "quantile":
        raise ConfigError(
            f'train.cells = true does not go with transform.kind = "{job.transform.kind}": take "quantile", or '
            'train.cells = "auto"'
        )
    from sfg_dist.flow.solver import num_steps

    try:
        num_steps(job.labels.solver, job.labels.num_evaluations)
    except ValueError as error:
        raise ConfigError(f"labels.{error}") from error


def _check_certificate(job: Job) -> None:
    """Refuse keys that do not go with a measured certificate.

    Raises:
        ConfigError: with the key.
    """
    labels = job.labels
    if labels.certificate == "measured" and job.executor.actors_per_group > 1:
        raise ConfigError(
            f"executor.actors_per_group = {job.executor.actors_per_group} does not go with "
            f'labels.certificate = "measured": take 1, or labels.certificate = "bound"'
        )
    if labels.certificate == "measured" and labels.latents is not None:
        raise ConfigError(
            'labels.latents does not go with labels.certificate = "measured", which is measured on random latents: '
            'leave labels.latents out, or take labels.certificate = "bound"'
        )


def _check_condition(job: Job) -> None:
    """Refuse keys that a conditional job cannot have, or only it can.

    Raises:
        ConfigError: with the key.
    """
    labels = job.labels
    if job.data.condition is None:
        for key in ("condition_neighbors", "condition_bandwidth", "condition_adjust"):
            if getattr(labels, key) is not None:
                raise ConfigError(f"labels.{key} is for conditional labels: name data.condition, or leave it out")
        return
    for key, is_wrong, advice in (
        ("labels.estimator", labels.estimator != "full", 'take "full"'),
        ("labels.direction", labels.direction != "decode", 'take "decode"'),
        ("labels.latents", labels.latents is not None, "leave it out"),
        ("labels.t_min", labels.t_min == "auto", "take a number"),
        ("labels.debias", labels.debias is not False, "take false"),
        ("labels.time_grid", labels.time_grid == "fitted", 'take "graded" or "uniform"'),
        ("labels.certificate", labels.certificate == "measured", 'take "bound"'),
        ("labels.solver_tolerance", labels.solver_tolerance is not None, "leave it out"),
        ("executor.actors_per_group", job.executor.actors_per_group > 1, "take 1"),
        ("train.encoder", job.train.encoder, "take false"),
    ):
        if is_wrong:
            table, name = key.split(".")
            value = getattr(getattr(job, table), name)
            raise ConfigError(f"{key} = {value!r} does not go with data.condition: {advice}")
