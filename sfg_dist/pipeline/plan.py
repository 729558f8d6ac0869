"""From a checked job and its table to the plan of a store."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from sfg_dist.job.config import READING_KEYS, Job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.plan import MAX_SHARDS, Plan, check_shard_rows, fingerprint
from sfg_dist.job.version import versions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.flow.spread import ColumnSpread

# Keys of the labels table that change neither the bits nor their meaning, and the path of a table whose content counts.
NOT_IDENTITY = {"num_pairs", "num_threads", "memory_gib", "latents"}

Blocks = Callable[[], Iterable["NDArray[np.float32]"]]
"""A table's rows in blocks, anew at each call."""
_COARSEST = 0.01  # of a column's spread, the grid that float32 may put on it
_REMEDY = 'take transform.kind = "standardize" or "quantile"'


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
    blocks: Blocks | None = None,
    flow_columns: tuple[str, ...] | None = None,
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
        blocks: the reference in blocks of rows, where it is larger than memory; read with transform.kind = "none".
        flow_columns: names of the reference's columns, where they are not all of the user's.
        order: the clusters' ordering of the reference's rows, where it was made earlier.
        existing: the plan that is there already.

    Raises:
        ConfigError: something shall be chosen for the reference, which cannot be done for this one; or one blur does
            not suit all columns.
    """
    unit, measured, names = {} if existing is None else _entry_of(existing), None, flow_columns or columns
    if job.transform.kind == "none" and existing is None:
        measured = _measured(blocks() if blocks is not None else [reference])  # type: ignore[list-item]
        unit = {"sigma_data": _unit_of(measured, _num_targets(job, names))}
    sigma_data = unit.get("sigma_data", 1.0)
    blur = choose_blur(job, reference, sigma_data)
    if measured is not None:
        _check_spreads(job, measured, names, sigma_data, blur["t_min"])
    identity = {
        **identity_of_keys(job),
        "table": table,
        "reference": reference_fingerprint,
        "queries": fingerprint(queries) if queries is not None else None,
        "blur": blur,
        **unit,
    }
    if job.labels.time_grid == "fitted":
        if existing is None and reference is None:
            raise ConfigError('labels.time_grid = "fitted" needs the reference in memory: take "graded"')
        if existing is None:
            assert reference is not None
            identity["time_grid"] = fit_grids(job, reference, blur["t_min"], order, sigma_data)
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
    from sfg_dist.flow.posterior.backends import SPARSE_ROWS

    return (
        job.data.condition is None
        and job.labels.estimator == "full"
        and job.labels.tolerance > 0
        and num_reference >= SPARSE_ROWS
    )


def _entry_of(existing: Plan) -> dict[str, Any]:
    """The unit of a plan that is there already: a function of the rest of its identity, so it is not measured again.

    A plan of version 0.1.0 has none, and goes on as it was begun.
    """
    return {name: value for name, value in existing.identity.items() if name == "sigma_data"}


def _measured(blocks: Iterable[NDArray[np.float32]]) -> ColumnSpread:
    import torch

    from sfg_dist.flow.spread import ColumnSpread

    tally = ColumnSpread()
    for rows in blocks:
        tally.add(torch.from_numpy(rows))
    return tally


def _unit_of(measured: ColumnSpread, num_targets: int) -> float:
    """sigma_data of a plan; none where a transform gives the reference spread 1.

    Six digits: any number near the spread will do, and another machine's last bits must not make another plan.

    Raises:
        ConfigError: the spread leaves float64.
    """
    from sfg_dist.flow.spread import root_mean_square

    try:
        return float(f"{root_mean_square(measured.result()[:num_targets]):.6g}")
    except ValueError as error:
        raise ConfigError(f'transform.kind = "none": {error}') from error


def _check_spreads(job: Job, measured: ColumnSpread, columns: tuple[str, ...], sigma_data: float, t_min: float) -> None:
    """Refuse a blur that hides a column, and say where columns are uneven.

    Raises:
        ConfigError: with the columns.
    """
    from sfg_dist.flow import Schedule
    from sfg_dist.flow.spread import check_blur, check_start, uneven_columns

    split, spreads, schedule = _num_targets(job, columns), measured.result(), Schedule(job.labels.schedule, t_min)
    for name, mean, spread in zip(columns, measured.center.tolist(), spreads.tolist(), strict=True):
        if np.finfo(np.float32).eps * abs(mean) >= _COARSEST * spread or spread < np.finfo(np.float32).tiny:
            raise ConfigError(
                f'transform.kind = "none": column {name!r} has mean {mean:.3g} and spread {spread:.3g}, too little for '
                f"float32: {_REMEDY}"
            )
    try:
        check_blur(spreads[:split], sigma_data, schedule, remedy=_REMEDY, names=columns)
        if job.data.condition is None:
            check_start(measured.center, sigma_data, schedule, columns)
    except ValueError as error:
        raise ConfigError(f'transform.kind = "none": {error}') from error
    for words in (
        uneven_columns(spreads[:split], columns),
        uneven_columns(spreads[split:], columns[split:], "count alike in the distance of two conditions"),
    ):
        if words is not None:
            warnings.warn(f'transform.kind = "none": {words}: {_REMEDY}', stacklevel=4)


def _num_targets(job: Job, columns: tuple[str, ...]) -> int:
    """How many of the flow's columns are drawn; conditions are the last."""
    return len(columns) - len(job.data.condition or ())


def warn_of_plain_process(plan: Plan) -> None:
    """Say that a store of version 0.1.0 without a transform goes on with noise of spread 1, whatever its rows'."""
    if plan.identity.get("transform", {}).get("kind") == "none" and "sigma_data" not in plan.identity:
        warnings.warn(
            'the store was begun by version 0.1.0 with transform.kind = "none", and goes on with sigma_data = 1: where '
            "its rows have another spread than about 1, take another output.dir",
            stacklevel=3,
        )


def choose_blur(job: Job, reference: NDArray[np.float32] | None, sigma_data: float) -> dict[str, Any]:
    """t_min, and for "auto" whether the leave-one-out likelihood ran into its floor.

    Three digits: the likelihood is flat there, and another machine's last bits must not make another plan.
    """
    if job.labels.t_min != "auto":
        return {"t_min": job.labels.t_min}
    if reference is None:
        raise ConfigError('labels.t_min = "auto" needs the reference in memory: name a number')
    from sfg_dist.flow import choose_t_min

    try:
        chosen = choose_t_min(reference, schedule=job.labels.schedule, sigma_data=sigma_data)
    except ValueError as error:
        raise ConfigError(f'labels.t_min = "auto": {error}; name a number') from error
    return {"t_min": float(f"{chosen.t_min:.3g}"), "is_floor": chosen.is_floor, "is_ceiling": chosen.is_ceiling}


def fit_grids(
    job: Job,
    reference: NDArray[np.float32],
    t_min: float,
    order: NDArray[np.int64] | None = None,
    sigma_data: float = 1.0,
) -> dict[str, list[float]]:
    """The time grid fitted to the reference, for each direction of the job: log beta^2 from noise to data."""
    import torch

    from sfg_dist.flow import Flow, Reference, Schedule, fit_time_grid
    from sfg_dist.flow.solver import Direction

    labels = job.labels
    prepared = Reference(torch.from_numpy(reference), order=order, sigma_data=sigma_data)
    directions: tuple[Direction, ...] = ("decode", "encode") if labels.direction == "both" else (labels.direction,)
    return {
        direction: list(
            fit_time_grid(
                prepared,
                Flow(Schedule(labels.schedule, t_min), labels.solver, labels.num_evaluations, direction=direction),
                tolerance=labels.tolerance,
            ).points
        )
        for direction in directions
    }


def identity_of_keys(job: Job) -> dict[str, Any]:
    """The tables of the job that decide the bits of labels, as they read back from JSON."""
    tables = {
        # which identifiers were left out shows in the columns
        "data": job.data.model_dump(exclude={"source", "identifiers", *READING_KEYS}, exclude_none=True),
        "transform": job.transform.model_dump(exclude_none=True),
        "labels": job.labels.model_dump(exclude=NOT_IDENTITY, exclude_none=True),
    }
    if job.data.bounds == "observed":  # so it was not in the plans of stores before there was a choice
        del tables["data"]["bounds"]
    elif not isinstance(job.data.bounds, str):  # JSON has no infinity
        ends = job.data.bounds.items()
        tables["data"]["bounds"] = {
            name: [str(end) if end in (np.inf, -np.inf) else end for end in pair] for name, pair in ends
        }
    if job.data.condition is not None:
        from sfg_dist.flow.conditional import DEFAULT_NEIGHBORS

        tables["labels"].setdefault("condition_neighbors", DEFAULT_NEIGHBORS)
        tables["labels"].setdefault("condition_adjust", "linear")
    keys: dict[str, Any] = json.loads(json.dumps(tables))
    return keys
