"""A store mended from what lies beside it: its own plan and frame, the job of its last run, and the user's table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfg_dist.config import Job, parse_job, resolve_job
from sfg_dist.errors import ConfigError, SfgError, StoreError
from sfg_dist.label_run import label_pending

if TYPE_CHECKING:
    from sfg_dist.store import Pairs
    from sfg_dist.store.verify import Report

ALLOWED_KEYS = ("executor.", "labels.num_threads=", "labels.memory_gib=")


@dataclass(frozen=True)
class Mended:
    """What a repair did, or would do.

    Attributes:
        report: what was wrong before.
        shards: labelled again, or to be.
        frame: objects of the frame that were written again, or are to be.
    """

    report: Report
    shards: tuple[int, ...]
    frame: tuple[str, ...]


def job_beside(pairs: Pairs, overrides: Sequence[str] = ()) -> Job:
    """The job of the last run in the output directory that holds a store; where there is none, one of defaults.

    Args:
        pairs: the store.
        overrides: ``executor.key=value`` assignments, labels.num_threads and labels.memory_gib.

    Raises:
        ConfigError: an override is of another key, or wrong; or the job file is.
    """
    for assignment in overrides:
        if not assignment.startswith(ALLOWED_KEYS):
            raise ConfigError(
                f"--set {assignment}: a store has its job inside; only keys of executor, labels.num_threads and "
                f"labels.memory_gib can be set here"
            )
    directory, _, name = pairs.location.url.rstrip("/").rpartition("/")
    beside = _read_beside(directory) if name == "pairs.zarr" else None
    if beside is not None:
        return parse_job(beside, overrides, origin=f"{directory}/job.toml")
    labels = {key: pairs.plan.labels[key] for key in ("shard_rows", "batch_size")}
    document = resolve_job({"data": {"source": pairs.plan.source}, "labels": labels}).to_toml()
    return parse_job(document, overrides, origin="the store's job")


def _read_beside(directory: str) -> str | None:
    from sfg_dist.store import Location

    content = Location(directory or ".").read("job.toml")
    return None if content is None else content.decode("utf-8", errors="replace")


def mend(
    pairs: Pairs,
    job: Job,
    *,
    dry_run: bool = False,
    emit: Callable[..., None],
) -> Mended:
    """Verify a store, and do again exactly what is bad; shards that are merely pending stay so.

    Args:
        pairs: the store, opened with ``from_copies``.
        job: whose executor labels, and whose table a damaged frame is made from.
        dry_run: change nothing.
        emit: told what happens.

    Raises:
        StoreError: something cannot be mended; the message says why.
        SfgError: whatever keeps shards from being labelled.
    """
    from sfg_dist.store import open_pairs
    from sfg_dist.store.repair import repair_store
    from sfg_dist.store.verify import verify

    report = verify(pairs, on_progress=lambda done, total: emit("checked", done=done, total=total))
    frame = tuple(finding.key for finding in report.findings if finding.kind == "damaged_frame")
    if dry_run or report.is_clean:
        return Mended(report, report.bad_shards, frame)
    if any(not key.startswith("extensions/") for key in frame):
        _mend_frame(pairs, job)
    shards = repair_store(pairs, report)
    pairs = open_pairs(pairs.location.url)
    if shards:
        _label_again(pairs, job, shards, emit)
    return Mended(report, tuple(shards), frame)


def _mend_frame(pairs: Pairs, job: Job) -> None:
    """Write damaged objects of the frame again, from the job's table."""
    from sfg_dist.pipeline import Pipeline
    from sfg_dist.store import mend_frame

    directory = pairs.location.url.rstrip("/").rpartition("/")[0] or "."
    pipeline = Pipeline(job.model_copy(update={"output": job.output.model_copy(update={"dir": directory})}))
    try:
        frame = pipeline.frame()
    except (SfgError, OSError) as error:
        raise StoreError(
            f"{pairs.location.url}: the frame is damaged and can only be made again from the table "
            f"{job.data.source}, which cannot be read: {error}"
        ) from error
    mend_frame(pairs, frame)


def _label_again(pairs: Pairs, job: Job, shards: Sequence[int], emit: Callable[..., None]) -> None:
    from sfg_dist.distributed.cluster import ray_session

    started = time.monotonic()
    rows = sum(stop - start for start, stop in map(pairs.plan.shard_range, shards))
    emit("stage_started", stage="label", fresh=True, total=len(shards), missing=len(shards), rows=rows)
    with ray_session(job.executor.address) if job.executor.kind == "ray" else contextlib.nullcontext():
        label_pending(
            pairs,
            job.executor,
            num_threads=job.labels.num_threads,
            memory_gib=job.labels.memory_gib,
            emit=emit,
            only=shards,
        )
    emit("stage_finished", stage="label", seconds=round(time.monotonic() - started, 3))
