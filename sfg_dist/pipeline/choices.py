"""Settings of a plan that are chosen from the table: the unit of the noise, the final blur, and the time grid."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Required, TypedDict

import numpy as np

from sfg_dist.data.cells import draws_cells
from sfg_dist.job.config import Job
from sfg_dist.job.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.data import Prepared
    from sfg_dist.flow.schedule import ScheduleName
    from sfg_dist.flow.spread import ColumnSpread
    from sfg_dist.job.plan import Plan
    from sfg_dist.store import Frame

T_MIN, CELLS_T_MIN = 1e-3, 1e-6
"""Where a job names no ``labels.t_min``. The blur of the first, 0.03, is as wide as the interval of a category with a
share of 1 %. At the second labels keep such categories apart."""
_COARSEST = 0.01  # of a column's spread, the grid that float32 may put on it
_REMEDY = 'take transform.kind = "standardize" or "quantile"'


class Blur(TypedDict, total=False):
    """The entry ``blur`` of a plan's identity.

    ``debias`` is there where that was chosen, the two keys before it where ``t_min`` was.
    """

    t_min: Required[float]
    is_floor: bool
    is_ceiling: bool
    debias: bool


def measure_columns(blocks: Iterable[NDArray[np.float32]]) -> ColumnSpread:
    """Mean and spread of each column of a table that comes in blocks of rows."""
    import torch

    from sfg_dist.flow.spread import ColumnSpread

    tally = ColumnSpread()
    for rows in blocks:
        tally.add(torch.from_numpy(rows))
    return tally


def choose_unit(job: Job, measured: ColumnSpread, columns: tuple[str, ...]) -> float:
    """sigma_data of a plan over untransformed columns.

    It has six digits: any number near the spread will do, and another machine's last bits must not make another plan.

    Raises:
        ConfigError: the spread leaves float64.
    """
    from sfg_dist.flow.spread import root_mean_square

    try:
        return float(f"{root_mean_square(measured.result()[: _num_targets(job, columns)]):.6g}")
    except ValueError as error:
        raise ConfigError(f'transform.kind = "none": {error}') from error


def check_spreads(job: Job, measured: ColumnSpread, columns: tuple[str, ...], sigma_data: float, t_min: float) -> None:
    """Refuse a blur that hides a column, and warn of uneven columns.

    Raises:
        ConfigError: one blur does not suit all columns, or float32 does not suit one.
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
            warnings.warn(f'transform.kind = "none": {words}: {_REMEDY}', stacklevel=3)


def _num_targets(job: Job, columns: tuple[str, ...]) -> int:
    """How many of the flow's columns are drawn; conditions are the last."""
    return len(columns) - len(job.data.condition or ())


def t_min_of(job: Job, table: Prepared, existing: Plan | None) -> float | Literal["auto"]:
    """``labels.t_min``: that of the job, else a default: that of the plan which is there, or one for the columns."""
    if job.labels.t_min is not None:
        return job.labels.t_min
    if existing is not None and (kept := default_t_min_of(existing)) is not None:
        return kept
    has_cells = job.data.condition is None and draws_cells(table.transform, "auto")
    return CELLS_T_MIN if has_cells else T_MIN


def default_t_min_of(plan: Plan) -> float | None:
    """The ``labels.t_min`` of a plan where a job that names none can have it; None where a job named another."""
    return plan.t_min if plan.labels.get("t_min") in (T_MIN, CELLS_T_MIN) else None


def choose_blur(job: Job, reference: NDArray[np.float32] | None, sigma_data: float) -> Blur:
    """t_min and whether to debias; for t_min = "auto" also whether the leave-one-out likelihood ran into a limit.

    t_min has three digits: the likelihood is flat there, and another machine's last bits must not make another plan.
    """
    from sfg_dist.flow import choose_t_min, favours_debiasing

    t_min, debias, schedule = job.labels.t_min, job.labels.debias, job.labels.schedule
    assert t_min is not None
    asked = {'labels.t_min = "auto"': (t_min, "set a number"), 'labels.debias = "auto"': (debias, "take true or false")}
    asked = {key: each for key, each in asked.items() if each[0] == "auto"}
    keys, advice = " and ".join(asked), " and ".join(each[1] for each in asked.values())
    if asked and reference is None:
        raise ConfigError(f"{keys}: the reference must be in memory for that: {advice}")
    found: Blur
    try:
        if t_min == "auto":
            assert reference is not None
            chosen = choose_t_min(reference, schedule=schedule, sigma_data=sigma_data, debias=debias)
            found = {
                "t_min": float(f"{chosen.t_min:.3g}"),
                "is_floor": chosen.is_floor,
                "is_ceiling": chosen.is_ceiling,
            }
            return found | {"debias": chosen.debiased} if debias == "auto" else found
        if debias == "auto":
            assert reference is not None
            helps = favours_debiasing(reference, t_min=t_min, schedule=schedule, sigma_data=sigma_data)
            return {"t_min": t_min, "debias": helps}
    except ValueError as error:
        raise ConfigError(f"{keys}: {error}; {advice}") from error
    return {"t_min": t_min}


def debiased_frame(
    frame: Frame, schedule: ScheduleName, t_min: float, sigma_data: float, *, is_in_memory: bool
) -> Frame:
    """A frame with its reference moved for labels that end at ``t_min``.

    A reference in memory is moved there. A larger one is moved a block at a time, with the same bits, over its blocks
    in a temporary file, and the moved rows go to another one.

    Raises:
        ConfigError: the directory for temporary files has no room.
    """
    import torch

    from sfg_dist.distributed.labels.references import blocks_in_file
    from sfg_dist.flow import Reference, Schedule, block_ranges, moved_rows
    from sfg_dist.flow.posterior.mapped import Scratch, give_up
    from sfg_dist.store import RowBlocks

    blur, table = Schedule(schedule, t_min).blur, RowBlocks.of(frame.reference)
    if is_in_memory:
        assert isinstance(frame.reference, np.ndarray)
        rows = torch.from_numpy(frame.reference)
        moved = moved_rows(rows, Reference(rows, sigma_data=sigma_data), blur)
        return replace(frame, debiased=moved.float().numpy())
    scratch, ranges, prepared = Scratch(), block_ranges(table.num_rows), blocks_in_file(table, sigma_data)
    places: NDArray[np.float32] = scratch.array((table.num_rows, table.dim))
    for (start, stop), block in zip(ranges, table.cut(ranges[0][1]), strict=True):
        places[start:stop] = moved_rows(torch.from_numpy(block), prepared, blur).float().numpy()
        scratch.release()
        give_up(block)
    if isinstance(frame.reference, np.ndarray):
        return replace(frame, debiased=places)
    return replace(
        frame, debiased=RowBlocks(table.num_rows, table.dim, lambda: (places[start:stop] for start, stop in ranges))
    )


def fit_grids(job: Job, frame: Frame, t_min: float, sigma_data: float) -> dict[str, list[float]]:
    """The time grid fitted to the reference, which is in memory, for each direction of the job.

    Grids are log beta^2 from noise to data.
    """
    import torch

    from sfg_dist.flow import Flow, Reference, Schedule, fit_time_grid
    from sfg_dist.flow.solver import Direction

    labels, rows = job.labels, frame.score_rows
    assert isinstance(rows, np.ndarray)
    order = frame.order if frame.make_order is not None else None
    prepared = Reference(torch.from_numpy(rows), order=order, sigma_data=sigma_data)
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


def measure_certificates(
    job: Job, frame: Frame, identity: Mapping[str, Any], *, is_mapped: bool
) -> dict[str, dict[str, Any]]:
    """The measured certificate of each direction of the job, as the plan keeps it.

    ``is_mapped`` says that the reference of the frame is larger than memory, and mapped from a file.

    Raises:
        ConfigError: a measured certificate does not serve this reference, or labels.memory_gib cannot hold it.
    """
    import torch

    from sfg_dist.distributed.labels.references import mapped_reference
    from sfg_dist.distributed.labels.requirements import require_budget
    from sfg_dist.distributed.machine import this_machine
    from sfg_dist.flow import Flow, PreparedReference, Reference, Schedule
    from sfg_dist.flow.certificate import fit_certificate
    from sfg_dist.flow.posterior.mapped import give_up
    from sfg_dist.flow.solver import Direction

    if job.executor.address is None and this_machine().gpus:
        raise ConfigError(
            'labels.certificate = "measured" works on CPUs, and torch sees a GPU here: take "bound", or hide the GPU '
            'by CUDA_VISIBLE_DEVICES=""'
        )
    labels, grids = job.labels, identity.get("time_grid", {})
    schedule = Schedule(labels.schedule, identity["blur"]["t_min"])
    unit = identity.get("sigma_data", 1.0)
    rows, has_clusters = frame.score_rows, frame.make_order is not None
    assert isinstance(rows, np.ndarray)
    if is_mapped:
        give_up(rows)
        require_budget(job, num_reference=len(rows), dim=rows.shape[1], has_clusters=has_clusters)
    order = frame.order if has_clusters else None
    if is_mapped and order is not None:
        prepared: PreparedReference = mapped_reference(rows, order, unit, job.labels.memory_gib)
    else:
        prepared = Reference(torch.from_numpy(rows), order=order, sigma_data=unit, whole=True)
    directions: tuple[Direction, ...] = ("decode", "encode") if labels.direction == "both" else (labels.direction,)
    records: dict[str, dict[str, Any]] = {}
    for direction in directions:
        grid = grids.get(direction, labels.time_grid)
        flow = Flow(schedule, labels.solver, labels.num_evaluations, grid, direction)
        try:
            records[direction] = fit_certificate(prepared, flow, tolerance=labels.tolerance).to_record()
        except ValueError as error:
            raise ConfigError(f"labels.{error}") from error
    return records
