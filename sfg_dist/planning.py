"""From a checked job and its table to the plan of a store."""

from __future__ import annotations

import importlib.metadata
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from sfg_dist._version import __version__
from sfg_dist.config import READING_KEYS, Job
from sfg_dist.errors import ConfigError
from sfg_dist.plan import Plan, check_shard_rows, fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Keys of the labels table that change neither the bits nor their meaning, and the path of a table whose content counts.
NOT_IDENTITY = {"num_pairs", "num_threads", "memory_gib", "latents"}


def check_job(job: Job) -> None:
    """Refuse keys that do not fit together, before any work.

    Raises:
        ConfigError: with the keys and what to take instead.
    """
    check_shard_rows(job.labels.shard_rows, job.labels.batch_size, job.labels.gpu_batch_size)
    _check_condition(job)
    from sfg_dist.flow.solver import num_steps

    try:
        num_steps(job.labels.solver, job.labels.num_evaluations)
    except ValueError as error:
        raise ConfigError(f"labels.{error}") from error


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
    wrong = {
        "labels.estimator": labels.estimator != "full",
        "labels.direction": labels.direction != "decode",
        "labels.latents": labels.latents is not None,
        "labels.t_min": labels.t_min == "auto",
        "labels.time_grid": labels.time_grid == "fitted",
        "labels.solver_tolerance": labels.solver_tolerance is not None,
        "executor.actors_per_group": job.executor.actors_per_group > 1,
        "train.encoder": job.train.encoder,
    }
    instead = {
        "labels.t_min": "a number",
        "labels.time_grid": '"graded" or "uniform"',
        "labels.estimator": '"full"',
        "labels.direction": '"decode"',
        "executor.actors_per_group": "1",
        "train.encoder": "false",
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            table, name = key.split(".")
            value = getattr(getattr(job, table), name)
            raise ConfigError(
                f"{key} = {value!r} does not go with data.condition: "
                + (f"take {instead[key]}" if key in instead else "leave it out")
            )


def make_plan(
    job: Job,
    *,
    table: str,
    reference: NDArray[np.float32] | None,
    reference_fingerprint: str,
    dim: int,
    columns: tuple[str, ...],
    queries: NDArray[np.float32] | None,
    order: NDArray[np.int64] | None = None,
    existing: Plan | None = None,
) -> Plan:
    """The plan of a job over a transformed reference set.

    A grid that was fitted once is taken from the plan that is there already, not fitted again: it is a function of the
    rest of the identity.

    The path of the table is no part of it: fingerprints say what was read from there. The reference's alone would not
    do, since a quantile or standardizing transform takes away a change of units.

    Args:
        job: the checked job.
        table: fingerprint of the training rows in the user's units.
        reference: the reference, shape (num_reference, dim); None where it is larger than memory.
        reference_fingerprint: of the reference.
        dim: columns as the flow sees them.
        columns: the user's column names.
        queries: the user's query points as the flow sees them, or None.
        order: the clusters' ordering of the reference's rows, where it was made earlier.
        existing: the plan that is there already.

    Raises:
        ConfigError: something shall be chosen for the reference, which cannot be done for this one.
    """
    identity = {
        **identity_of_keys(job),
        "table": table,
        "reference": reference_fingerprint,
        "queries": fingerprint(queries) if queries is not None else None,
        "blur": choose_blur(job, reference),
    }
    if job.labels.time_grid == "fitted":
        if existing is None and reference is None:
            raise ConfigError('labels.time_grid = "fitted" needs the reference in memory: take "graded"')
        if existing is None:
            assert reference is not None
            identity["time_grid"] = fit_grids(job, reference, identity["blur"]["t_min"], order)
        elif "time_grid" in existing.identity:
            identity["time_grid"] = existing.identity["time_grid"]
    return Plan(
        identity=identity,
        num_pairs=job.labels.num_pairs if queries is None else len(queries),
        dim=dim,
        shard_rows=job.labels.shard_rows,
        columns=tuple(columns),
        source=job.data.source,
        versions=versions(),
    )


def uses_clusters(job: Job, num_reference: int) -> bool:
    """Whether labels of this job look at clusters of the reference."""
    from sfg_dist.flow.backends import SPARSE_ROWS

    return (
        job.data.condition is None
        and job.labels.estimator == "full"
        and job.labels.tolerance > 0
        and num_reference >= SPARSE_ROWS
    )


def choose_blur(job: Job, reference: NDArray[np.float32] | None) -> dict[str, Any]:
    """t_min, and for "auto" whether the leave-one-out likelihood ran into its floor.

    Three digits: the likelihood is flat there, and another machine's last bits must not make another plan.
    """
    if job.labels.t_min != "auto":
        return {"t_min": job.labels.t_min}
    if reference is None:
        raise ConfigError('labels.t_min = "auto" needs the reference in memory: name a number')
    from sfg_dist.flow import choose_t_min

    try:
        chosen = choose_t_min(reference, schedule=job.labels.schedule)
    except ValueError as error:
        raise ConfigError(f'labels.t_min = "auto": {error}; name a number') from error
    return {"t_min": float(f"{chosen.t_min:.3g}"), "is_floor": chosen.is_floor, "is_ceiling": chosen.is_ceiling}


def fit_grids(
    job: Job,
    reference: NDArray[np.float32],
    t_min: float,
    order: NDArray[np.int64] | None = None,
) -> dict[str, list[float]]:
    """The time grid fitted to the reference, for each direction of the job: log beta^2 from noise to data."""
    import torch

    from sfg_dist.flow import Reference, Schedule, fit_time_grid
    from sfg_dist.flow.solver import Direction

    labels = job.labels
    prepared = Reference(torch.from_numpy(reference), order=order)
    directions: tuple[Direction, ...] = ("decode", "encode") if labels.direction == "both" else (labels.direction,)
    return {
        direction: list(
            fit_time_grid(
                prepared,
                schedule=Schedule(labels.schedule, t_min),
                direction=direction,
                solver=labels.solver,
                num_evaluations=labels.num_evaluations,
                tolerance=labels.tolerance,
            ).points
        )
        for direction in directions
    }


def identity_of_keys(job: Job) -> dict[str, Any]:
    """The tables of the job that decide the bits of labels, as they read back from JSON."""
    tables = {
        "data": job.data.model_dump(exclude={"source", *READING_KEYS}, exclude_none=True),
        "transform": job.transform.model_dump(exclude_none=True),
        "labels": job.labels.model_dump(exclude=NOT_IDENTITY, exclude_none=True),
    }
    if job.data.condition is not None:
        from sfg_dist.flow.conditional import DEFAULT_NEIGHBORS

        tables["labels"].setdefault("condition_neighbors", DEFAULT_NEIGHBORS)
        tables["labels"].setdefault("condition_adjust", "linear")
    keys: dict[str, Any] = json.loads(json.dumps(tables))
    return keys


def versions() -> dict[str, str]:
    """Versions that decide the last bits."""
    return {"sfg_dist": __version__} | {name: importlib.metadata.version(name) for name in ("numpy", "torch")}
