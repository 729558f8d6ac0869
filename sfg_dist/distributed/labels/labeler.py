"""One shard at a time: what a worker does, be it an actor or this process."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfg_dist.distributed.labels.events import Record
from sfg_dist.distributed.labels.references import StoredReference, prepared_reference
from sfg_dist.distributed.labels.sharded_reference import ShardedReference
from sfg_dist.distributed.labels.shared_blocks import SharedBlocks
from sfg_dist.distributed.machine import default_device, peak_memory
from sfg_dist.flow import (
    ConditionalReference,
    Effort,
    Flow,
    PreparedReference,
    Schedule,
    label_batch,
    label_given,
    label_latents,
)
from sfg_dist.flow.certificate import Measured
from sfg_dist.flow.posterior.streaming import StreamedReference
from sfg_dist.job.errors import LabelingError, NonFiniteLabelError
from sfg_dist.job.plan import Plan, Stream, integer_rows, normal_rows, random_generator
from sfg_dist.job.threads import torch_threads
from sfg_dist.job.version import versions
from sfg_dist.job.words import GIB
from sfg_dist.store import Pairs, open_pairs, read_rows

_CONDITIONAL_COPIES = 6  # of the reference, with the tree of its conditions and their numbers in float64
_TRIAL_ROWS = 64  # enough to know how fast labels are
# To measure the labels' error by: evaluations of RK4, rows, and pairs of a row and a reference row.
_ERROR_EVALUATIONS, _MAX_ROWS, _MAX_PAIRS = 96, 256, 1e9


class ShardLabeler:
    """Labels shards of one store; opens everything by path, so nothing large travels to it.

    Args:
        url: the store.
        num_threads: CPU threads. They decide the last bits, so they are never taken from the machine.
        device: where the flow runs; the GPU when there is one.
        memory_gib: memory that this process may hold resident, in GiB, interpreter and libraries included; by default
            what the machine has free. A reference that does not fit in is streamed, with the same bits.
        members: actor handles of ``ReferenceMember`` that hold the reference, one a part, in order, where one process
            cannot. Labels are then within the same tolerance, and the same for the same number of members.

    Raises:
        LabelingError: the memory is too small for one block of the reference.
        StoreError: the store cannot be read, or its reference is damaged.
    """

    def __init__(
        self,
        url: str,
        *,
        num_threads: int = 1,
        device: torch.device | None = None,
        memory_gib: float | None = None,
        members: Sequence[Any] = (),
    ) -> None:
        self.pairs: Pairs = open_pairs(url)
        self.pairs.check_frame()
        self.plan: Plan = self.pairs.plan
        try:
            for direction in {self.plan.shard_direction(shard) for shard in range(min(2, self.plan.num_shards))}:
                flow = self._flow(direction)
                if flow.solver_tolerance is None:  # else each row chooses its own steps
                    flow.grid()
        except ValueError as error:  # of a plan of other settings than any job's
            raise LabelingError(f"{self.pairs.location.url}: no labels can be made by its plan: {error}") from error
        self.num_threads = num_threads
        self.device = device or default_device()
        self.members = tuple(members)
        self.reference: PreparedReference | ConditionalReference
        self._table: SharedBlocks | None
        with torch_threads(num_threads):
            if self.plan.condition:
                self.reference, self._table = conditional_reference(self.pairs, self.device, memory_gib), None
            elif members:
                self.reference, self._table = ShardedReference(StoredReference(self.pairs), members), None
            else:
                self.reference, self._table = prepared_reference(self.pairs, device=self.device, memory_gib=memory_gib)
        if self.plan.is_whole and self.device.type != "cpu":
            raise LabelingError(
                f'labels.certificate = "measured" works on CPUs, not on {self.device.type}: take "bound", in another '
                f"output.dir"
            )

    def close(self) -> None:
        """Give up this process's share of the node's files; it can label no more."""
        if self._table is not None:
            self._table.close()

    def label(self, shard: int, attempt: int = 1) -> Record:
        """Integrate, write and commit one shard, unless that is done already; its commit record.

        Raises:
            NonFiniteLabelError: the flow left the floating-point range; nothing was written.
            StoreError: the shard could not be written.
        """
        if self.pairs.is_done(shard) and (record := self.pairs.commit_record(shard)) is not None:
            return record
        started = time.time()
        effort = Effort()
        streamed = _num_streamed(self.reference)
        own = self.plan.shard_range(shard)
        starts: list[NDArray[np.float32]] = []
        ends: list[NDArray[np.float32]] = []
        with torch_threads(self.num_threads):
            for first, stop in self.plan.batches(shard, self.device.type):
                rows = self._start_points(shard, first, stop)
                images_of_batch = self._integrate(shard, first, rows, effort)
                # A store that was extended may have a shard that begins within a batch. The whole batch is integrated,
                # as in a longer run.
                kept = slice(max(own[0] - first, 0), own[1] - first)
                starts.append(rows[kept])
                ends.append(images_of_batch[kept])
        integrated = time.time()
        points, images = np.concatenate(starts), np.concatenate(ends)
        if not np.isfinite(images).all():
            bad = int(np.flatnonzero(~np.isfinite(images).all(axis=1))[0]) + own[0]
            raise NonFiniteLabelError(
                f"shard {shard}: row {bad} has no finite end point: check the table for values far outside the rest, "
                f"or take a larger labels.t_min"
            )
        latents, labels = (points, images) if self.plan.shard_direction(shard) == "decode" else (images, points)
        return self.pairs.write_shard(
            shard,
            latents,
            labels,
            {
                "attempt": attempt,
                "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "versions": versions(),
                "evaluations": round(effort.evaluations / effort.rows, 2),
                "pairs": effort.pairs,
                **_certified(effort, self.plan.sigma_data),
                "step_control_exceeded": effort.exceeded,
                "blocks": self.reference.num_blocks,
                "blocks_streamed": _num_streamed(self.reference) - streamed,
                "memory_peak": peak_memory(),
                "group": len(self.members) or 1,
                "seconds": round(integrated - started, 4),
                "finished": time.time(),
            },
        )

    def seconds_a_shard(self, shard: int) -> float:
        """How long a whole shard takes here, from a part of one batch, or all of it where an engine fills it up.

        Nothing is written. The batch is integrated twice, because the first time compiles code.
        """
        first, stop = next(iter(self.plan.batches(shard, self.device.type)))
        batch_rows = self.plan.batch_rows(self.device.type)
        takes_part = self.pairs.has_order and self.device.type == "cpu"
        stop = min(stop, first + _TRIAL_ROWS) if takes_part else stop
        seconds = []
        with torch_threads(self.num_threads):
            rows = self._start_points(shard, first, stop)
            for _ in range(2):
                started = time.perf_counter()
                self._integrate(shard, first, rows, Effort())
                seconds.append(time.perf_counter() - started)
        shard_rows = min(self.plan.shard_rows, self.plan.num_pairs)
        return min(seconds) * (shard_rows / len(rows) if takes_part else -(-shard_rows // batch_rows))

    def _start_points(self, shard: int, first: int, stop: int) -> NDArray[np.float32]:
        """Latents to decode, or rows to encode, in the flow's coordinates."""
        if self.pairs.has_queries:
            return self.pairs.query_rows(first, stop)
        seed = self.plan.labels["seed"]
        noise = normal_rows(seed, Stream.LATENTS, first, stop, self.plan.dim)
        if isinstance(self.reference, ConditionalReference):
            index = integer_rows(seed, Stream.CONDITION, first, stop, self.reference.num_reference)
            noise[:, self.reference.num_targets :] = self.reference.conditions(index)
            return noise
        if self.plan.shard_direction(shard) == "decode":
            return noise
        # A draw of the blurred data, whose latent is then N(0, I) as the decoder's are: x_j + (beta / alpha) s eps.
        index = integer_rows(seed, Stream.ENCODE, first, stop, self.reference.num_reference)
        blur = self.plan.sigma_data * self._flow("encode").schedule.blur
        return (self.reference.take(index).numpy() + blur * noise).astype(np.float32)

    def _integrate(self, shard: int, first: int, rows: NDArray[np.float32], effort: Effort) -> NDArray[np.float32]:
        """One batch, padded to the plan's size, since the shape of a matrix product decides its last bits."""
        direction = self.plan.shard_direction(shard)
        batch_rows, start = self.plan.batch_rows(self.device.type), torch.from_numpy(rows).to(self.device)
        flow = self._flow(direction)
        if isinstance(self.reference, ConditionalReference):
            padded = torch.zeros(batch_rows, self.plan.dim, device=self.device)
            padded[: len(rows)] = start
            return label_given(padded, self.reference, flow, effort=effort)[: len(rows)].cpu().numpy()
        reference, tolerance = self._batch_reference(first), self.plan.labels["tolerance"]
        record = self.plan.certificate(direction)
        ends = label_batch(
            start, reference, flow, batch_rows=batch_rows, tolerance=tolerance, effort=effort,
            measured=None if record is None else Measured.from_record(record),
        )  # fmt: skip
        return ends.float().cpu().numpy()

    def _flow(self, direction: str) -> Flow:
        settings = self.plan.labels
        return Flow(
            Schedule(settings["schedule"], self.plan.t_min),
            settings["solver"],
            settings["num_evaluations"],
            self.plan.time_grid(direction),  # type: ignore[arg-type]
            direction,  # type: ignore[arg-type]
            settings.get("solver_tolerance"),
        )

    def _batch_reference(self, first: int) -> PreparedReference:
        """The whole reference, or the published mini-batch of it, drawn anew for every batch."""
        assert not isinstance(self.reference, ConditionalReference)
        settings = self.plan.labels
        if settings["estimator"] == "full" or settings["num_reference"] >= self.reference.num_reference:
            return self.reference
        generator = random_generator(settings["seed"], Stream.MINIBATCH, first // settings["batch_size"])
        return self.reference.subset(
            generator.choice(self.reference.num_reference, settings["num_reference"], replace=False)
        )


def conditional_reference(
    pairs: Pairs, device: torch.device, memory_gib: float | None = None, dtype: torch.dtype = torch.float32
) -> ConditionalReference:
    """The reference of a store of conditional labels, held whole.

    Raises:
        LabelingError: it does not fit in ``memory_gib``.
    """
    plan = pairs.plan
    need = _CONDITIONAL_COPIES * 4 * plan.dim * pairs.num_reference
    if memory_gib is not None and peak_memory() + need > memory_gib * GIB:
        raise LabelingError(
            f"labels for data.condition hold the whole reference, {need / GIB:.2f} GiB beside the interpreter's "
            f"{peak_memory() / GIB:.2f}: raise labels.memory_gib = {memory_gib:g}, or lower data.max_rows"
        )
    return ConditionalReference(
        pairs.reference,
        len(plan.condition),
        neighbors=plan.labels["condition_neighbors"],
        bandwidth=plan.labels.get("condition_bandwidth"),
        adjust=plan.labels["condition_adjust"] == "linear",
        dtype=dtype,
        device=device,
        sigma_data=plan.sigma_data,
    )


def _certified(effort: Effort, sigma_data: float) -> dict[str, float]:
    """The largest certified bound of a shard's labels, or what was measured of them."""
    if not effort.measured:
        return {"tolerance_reached": effort.bound / sigma_data}
    return {
        "measured": effort.measured,
        "measured_over": effort.over,
        "measured_largest": effort.largest,
        "rows_bounded": effort.bounded,
    }


def _num_streamed(reference: PreparedReference | ConditionalReference) -> int:
    return reference.num_streamed if isinstance(reference, StreamedReference) else 0


def label_error(pairs: Pairs, *, memory_gib: float | None = None) -> dict[str, float]:
    """The labels' own error, measured on the first rows of a store. No bound tells it, because the flow forks.

    The rows are integrated again in float64, with every row of the reference in each score: 256 rows, or as many as
    1e9 kernel evaluations allow, but at least 8. RK4 with 96 evaluations is taken where the whole reference fits in
    memory. Else each evaluation reads the rest of it again, so it takes "exp_abm4" with twice the labels' own
    evaluations, but at least 48; its error is about a twentieth of that of labels with 22.

    Args:
        pairs: the open store; its first shard is committed.
        memory_gib: memory that this process may hold resident, in GiB; by default half of what the machine has free.

    Returns:
        num_rows, and the median and 90th percentile of the 2-norm of the difference, in units of the plan's sigma_data
        for labels and of 1 for latents. Empty for mini-batch labels, each of which has a reference of its own.
    """
    plan = pairs.plan
    if plan.labels["estimator"] != "full":
        return {}
    if plan.condition:
        return _conditional_error(pairs)
    stored = StoredReference(pairs, in_blocks=True)
    num_kept = stored.num_fitting(memory_gib, torch.float64)
    solver, num_evaluations = "rk4", _ERROR_EVALUATIONS
    if num_kept < stored.num_blocks:
        twice = max(_ERROR_EVALUATIONS // 2, 2 * plan.labels["num_evaluations"])
        solver, num_evaluations = "exp_abm4", min(twice, _ERROR_EVALUATIONS)
    wanted = max(8, int(_MAX_PAIRS / (stored.num_reference * num_evaluations)))
    start, stop = plan.shard_range(0)
    num_rows = min(_MAX_ROWS, wanted, stop - start)
    latents, labels = (read_rows(array, 0, num_rows).astype(np.float64) for array in (pairs.latents, pairs.labels))
    decodes = plan.shard_direction(0) == "decode"
    ends = label_latents(
        latents if decodes else labels,
        stored.streamed(torch.device("cpu"), torch.float64, num_kept=num_kept),
        t_min=plan.t_min,
        schedule=plan.labels["schedule"],
        direction="decode" if decodes else "encode",
        solver=solver,
        num_evaluations=num_evaluations,
        batch_size=num_rows,
        tolerance=0.0,
    )
    difference = (ends - labels) / plan.sigma_data if decodes else ends - latents
    return _error_figures(difference) | {"tolerance_reached": max_reached(pairs)} | _measured_of(pairs)


def _conditional_error(pairs: Pairs) -> dict[str, float]:
    plan = pairs.plan
    start, stop = plan.shard_range(0)
    num_rows = min(_MAX_ROWS, stop - start)
    latents, labels = (read_rows(array, 0, num_rows).astype(np.float64) for array in (pairs.latents, pairs.labels))
    ends = label_given(
        torch.from_numpy(latents),
        conditional_reference(pairs, torch.device("cpu"), dtype=torch.float64),
        Flow(Schedule(plan.labels["schedule"], plan.t_min), "rk4", _ERROR_EVALUATIONS),
    )
    return _error_figures((ends.numpy() - labels) / plan.sigma_data) | {"tolerance_reached": 0.0}


def _error_figures(difference: NDArray[np.float64]) -> dict[str, float]:
    error = np.linalg.norm(difference, axis=1)
    return {
        "num_rows": len(error),
        "median": float(np.median(error)),
        "percentile_90": float(np.quantile(error, 0.9)),
    }


def _measured_of(pairs: Pairs) -> dict[str, float]:
    """Evaluations that were measured, and those over the tolerance; nothing where it is a certified bound."""
    if not pairs.plan.is_whole:
        return {}
    records = [record for shard in sorted(pairs.committed()) if (record := pairs.commit_record(shard))]
    return {
        "measured": sum(record.get("measured", 0) for record in records),
        "measured_over": sum(record.get("measured_over", 0) for record in records),
    }


def max_reached(pairs: Pairs) -> float:
    """The largest certified bound of the posterior mean's error that any shard recorded, in units of sigma_data."""
    records = (pairs.commit_record(shard) for shard in sorted(pairs.committed()))
    return max((float(record.get("tolerance_reached", 0.0)) for record in records if record), default=0.0)
