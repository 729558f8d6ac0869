"""A store repaired from its own plan and frame, the job of its last run, and the user's table."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sfg_dist.distributed.executor import why_ray
from sfg_dist.distributed.labels.label import Means, label_pending, label_settings
from sfg_dist.job.config import Job, parse_job, resolve_job
from sfg_dist.job.errors import ConfigError, SfgError, StoreError
from sfg_dist.job.object_stores import absolute_url
from sfg_dist.job.toml_documents import MAX_BYTES, text_of
from sfg_dist.pipeline.choices import debiased_frame
from sfg_dist.pipeline.plan import cluster_order, frame_of
from sfg_dist.pipeline.table import prepare_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sfg_dist.job.plan import Plan
    from sfg_dist.store import Pairs
    from sfg_dist.store.verify import Report

ALLOWED_KEYS = ("executor.", "labels.num_threads=", "labels.memory_gib=")


@dataclass(frozen=True)
class Mended:
    """What a repair did, or would do in a dry run."""

    report: Report  # what was wrong before
    shards: tuple[int, ...]  # those labelled again
    frame: tuple[str, ...]  # objects of the frame that were written again


def job_beside(pairs: Pairs, overrides: Sequence[str] = ()) -> Job:
    """The job of the last run in the output directory that holds a store; else a job made from the plan.

    A store and the job file beside it may be somebody else's, so the cluster that the file names is not used.

    Args:
        pairs: the store.
        overrides: ``executor.key=value`` assignments, labels.num_threads and labels.memory_gib.

    Raises:
        ConfigError: an override or the job file is wrong, or an override sets another key.
    """
    for assignment in overrides:
        if not assignment.startswith(ALLOWED_KEYS):
            raise ConfigError(
                f"--set {assignment}: a store has its job inside; only keys of executor, labels.num_threads and "
                f"labels.memory_gib can be set here"
            )
    directory, _, name = absolute_url(pairs.location.url).rstrip("/").rpartition("/")
    beside = _read_beside(directory) if name == "pairs.zarr" else None
    origin = f"the plan of {pairs.location.url}"
    planned = resolve_job(_job_of_plan(pairs.plan), origin=origin)  # refuses what no job could have asked for
    if beside is None:
        return parse_job(planned.to_toml(), overrides, origin=origin)
    origin = f"{directory}/job.toml"
    job = parse_job(beside, origin=origin)
    if job.executor.address is not None:
        if not any(assignment.startswith("executor.address=") for assignment in overrides):
            warnings.warn(
                f"executor.address = {job.executor.address!r} of {origin} is not used, since a store and its job file "
                f"may come from anywhere: to label on that cluster, give --set executor.address=ADDRESS",
                stacklevel=2,
            )
        job = job.changed(executor={"address": None})
    return parse_job(job.to_toml(), overrides, origin=origin)


def _read_beside(directory: str) -> str | None:
    from sfg_dist.store import Location

    content = Location(directory or "/").read("job.toml", MAX_BYTES)
    return None if content is None else text_of(content, f"{directory}/job.toml")


def _job_of_plan(plan: Plan) -> Mapping[str, Mapping[str, Any]]:
    """The tables of the job that a plan was made from, without those that no plan keeps."""
    tables: dict[str, dict[str, object]] = {
        name: dict(plan.identity.get(name, {})) for name in ("data", "transform", "labels")
    }
    tables["data"]["source"] = plan.source
    if tables["data"].get("missing") == "refuse":  # as a plan has "keep" too, by which a table without gaps is the same
        tables["data"]["missing"] = "keep"
    tables["labels"] |= {"num_pairs": plan.num_pairs, "shard_rows": plan.shard_rows}
    return tables


def mend(pairs: Pairs, job: Job, *, dry_run: bool = False, emit: Callable[..., None]) -> Mended:
    """Verify a store and make its bad parts again; shards that are only pending stay pending.

    Args:
        pairs: the store, opened with ``from_copies``.
        job: its executor labels, and its table gives a damaged frame.
        dry_run: change nothing.
        emit: called with every event.

    Raises:
        StoreError: something cannot be repaired.
        SfgError: shards cannot be labelled.
    """
    from sfg_dist.store import open_pairs
    from sfg_dist.store.repair import repair_store, set_links_aside
    from sfg_dist.store.verify import verify

    report = verify(pairs, on_progress=lambda done, total: emit("checked", done=done, total=total))
    frame = tuple(finding.key for finding in report.findings if finding.kind == "damaged_frame")
    if dry_run or report.is_clean:
        return Mended(report, report.bad_shards, frame)
    set_links_aside(pairs.location, report)
    if any(not key.startswith("extensions/") for key in frame):
        _mend_frame(pairs, job)
    shards = repair_store(pairs, report)
    pairs = open_pairs(pairs.location.url)
    if shards:
        _label_again(pairs, job, shards, emit)
    return Mended(report, tuple(shards), frame)


def _mend_frame(pairs: Pairs, job: Job) -> None:
    """Write damaged objects of the frame again, from the job's table."""
    from sfg_dist.distributed.cluster import ray_session
    from sfg_dist.store import mend_frame, require_reference

    try:
        table = prepare_table(job)
        frame = frame_of(job, table, cluster_order(job, lambda: ray_session(job.executor.address)))
    except (SfgError, OSError) as error:
        raise StoreError(
            f"{pairs.location.url}: the reference or the transform is damaged. It can only be made again from the "
            f"table {job.data.source}, which cannot be read: {error}"
        ) from error
    plan = pairs.plan
    if frame.queries is None and plan.identity.get("queries"):
        frame = replace(frame, queries=_stored_queries(pairs))
    if plan.is_debiased:
        require_reference(pairs.location, plan.record_plan(0), frame)  # before a table is moved in vain
        schedule = plan.labels["schedule"]
        frame = debiased_frame(frame, schedule, plan.t_min, plan.sigma_data, is_in_memory=table.is_whole)
    mend_frame(pairs, frame)


def _stored_queries(pairs: Pairs) -> NDArray[np.float32]:
    """The user's query points from the store, for a job that does not name their file."""
    try:
        return pairs.query_rows(0, pairs.plan.num_pairs)
    except StoreError as error:
        raise StoreError(
            f"{pairs.location.url}: the query points are damaged, and only the run's job.toml, beside the store, "
            "says where they came from: put it back, with labels.latents, and run this command again"
        ) from error


def _label_again(pairs: Pairs, job: Job, shards: Sequence[int], emit: Callable[..., None]) -> None:
    from sfg_dist.distributed.cluster import ray_session

    started = time.monotonic()
    rows = sum(stop - start for start, stop in map(pairs.plan.shard_range, shards))
    emit("stage_started", stage="label", fresh=True, total=len(shards), missing=len(shards), rows=rows)
    with contextlib.ExitStack() as stack:
        why = why_ray(job.executor)
        means = Means(why, lambda: stack.enter_context(ray_session(job.executor.address)))
        label_pending(pairs, job.executor, replace(label_settings(job, emit), only=shards), means)
    emit("stage_finished", stage="label", seconds=round(time.monotonic() - started, 3))
