"""What a run takes in memory and on disk, and refusals of what cannot fit, each with keys and values that do.

Workers on other machines (executor.address) are taken to be like this machine, but its limits do not bind them.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from sfg_dist.distributed.executor import why_ray
from sfg_dist.distributed.labels.choice import is_one, num_processes
from sfg_dist.distributed.labels.references import SHARED_BYTES, reference_memory
from sfg_dist.distributed.labels.sizes import (
    ACTOR_BYTES,
    CUDA_DEVICE_BYTES,
    CUDA_HOST_BYTES,
    EVENT_BYTES,
    RAY_BYTES,
    StoreBytes,
    device_memory,
    shard_memory,
)
from sfg_dist.distributed.labels.worker_count import DeviceKind, Workers, asked_workers, cpu_room, require_threads
from sfg_dist.distributed.machine import Machine, resident_memory, this_machine
from sfg_dist.distributed.nodes import gpu_room, workers_per_gpu
from sfg_dist.flow.posterior.block_file import reference_bytes
from sfg_dist.job.config import Job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.paths import free_disk, nearest_there
from sfg_dist.job.plan import Plan
from sfg_dist.job.words import GIB

HERE, SEEN = "this machine has", "GPUs that torch sees"


@dataclass(frozen=True)
class ActorMemory:
    """Peak memory of one actor."""

    host_bytes: int  # on the host
    device_bytes: int  # on its GPU, 0 for an actor on CPUs
    reference_bytes: int  # the part of either that is the reference set and what is built over it
    shared_bytes: int  # the part on the host that all actors of a node map together
    least_bytes: int  # of one that holds one block of the reference at a time; 0 where it must hold all of it


@dataclass(frozen=True)
class RunMemory:
    """Memory that a run takes."""

    actors: dict[DeviceKind, ActorMemory]  # of one actor, by kind of device
    driver_bytes: int  # of the process that holds the table and hands out shards, and of Ray's own processes
    total_bytes: int  # of all that runs on this machine
    limit_bytes: int  # what this machine, or its control group, has


def choose_workers(job: Job, machine: Machine) -> Workers:
    """The workers that the job asks for, those by default counted on this machine.

    Raises:
        ConfigError: the machine has fewer GPUs or CPUs.
    """
    keys, threads = job.executor, job.labels.num_threads
    is_ray = why_ray(keys, num_workers=job.train.num_workers) is not None
    if keys.kind == "inline" or (not is_ray and len(machine.gpus) < 2):
        require_threads(threads, machine.num_cpus, HERE)
        return own_workers(machine, threads, num_processes(keys, threads, machine))
    num_gpus, elsewhere = len(machine.gpus), keys.address is not None
    if elsewhere and keys.num_gpus_per_actor and not num_gpus:
        raise ConfigError(
            f"executor.num_gpus_per_actor = {keys.num_gpus_per_actor:g} on the cluster at {keys.address}, but this "
            f"machine has no GPU that torch sees, to calibrate on: plan on a machine like the cluster's"
        )
    workers = asked_workers(
        keys,
        threads,
        num_cpus=machine.num_cpus,
        num_gpus=num_gpus,
        place=HERE,
        gpu_word=SEEN,
        is_elsewhere=elsewhere,
    )
    if not elsewhere:
        _require_gpus(workers, num_gpus)
        _require_cpus(workers, machine.num_cpus, keys.num_cpu_actors)
    return workers


def own_workers(machine: Machine, num_threads: int, number: int) -> Workers:
    """Workers of this machine without Ray: one on a GPU, or a number of processes on CPUs."""
    has_gpu = bool(machine.gpus)
    return Workers("inline", {"cuda": 1} if has_gpu else {"cpu": max(1, number)}, float(has_gpu), num_threads, 1)


def _require_gpus(workers: Workers, num_gpus: int) -> None:
    number, each, group = workers.num_actors.get("cuda", 0), workers.num_gpus_per_actor, workers.actors_per_group
    room = gpu_room(num_gpus, each) if number else 0
    if number > room:
        raise ConfigError(
            f"executor.num_actors = {number} with executor.num_gpus_per_actor = {each:g} need {number * each:g} GPUs, "
            f"{HERE} {num_gpus} {SEEN}: take executor.num_actors = {max(1, room // group * group)}"
        )


def _require_cpus(workers: Workers, num_cpus: int, beside: int) -> None:
    """Refuse actors that have more threads together than there are CPUs; ``beside`` are on CPUs beside others."""
    needed, threads, group = workers.total * workers.num_threads, workers.num_threads, workers.actors_per_group
    if needed <= num_cpus:
        return
    fits = []
    if fitting := cpu_room(num_cpus, threads, beside=beside) // group * group:
        fits.append(f"executor.num_actors = {fitting}")
    elif beside:
        fits.append(f"fewer executor.num_cpu_actors than {beside}")
    if workers.total <= num_cpus and threads > 1:
        fits.append(f"labels.num_threads = {num_cpus // workers.total}")
    raise ConfigError(
        f"{workers.total} actors x labels.num_threads = {threads} need {needed} CPUs, {HERE} {num_cpus}: take "
        f"{' or '.join(fits) or f'labels.num_threads = {num_cpus}'}"
    )


def memory_of(
    plan: Plan,
    workers: Workers,
    machine: Machine,
    *,
    num_reference: int,
    has_clusters: bool,
    driver_bytes: int,
    memory_gib: float | None,
) -> RunMemory:
    """Memory of a run, before it is begun.

    ``driver_bytes`` is the resident size of this process, which holds the table as the run's own will.
    """
    rows = -(-num_reference // workers.actors_per_group)
    actors: dict[DeviceKind, ActorMemory] = {}
    base = (driver_bytes if workers.is_this_process else ACTOR_BYTES) + shard_memory(plan)
    for kind in workers.num_actors:
        if kind == "cuda":
            device = device_memory(rows, plan.dim)
            host = base + CUDA_HOST_BYTES + 4 * rows * plan.dim
            actors[kind] = ActorMemory(host, CUDA_DEVICE_BYTES + device, device, 0, 0)
            continue
        size = {"has_clusters": has_clusters, "is_whole": plan.is_whole}
        need = reference_memory(rows, plan.dim, **size)
        _check_budget(memory_gib, base, need.streamed)
        budget = math.inf if memory_gib is None else memory_gib * GIB - base
        whole = reference_bytes(rows, plan.dim, **size)
        is_shared = need.resident <= budget and whole >= SHARED_BYTES and workers.actors_per_group == 1
        reference = int(min(need.resident, budget))
        actors[kind] = ActorMemory(base + reference, 0, reference, whole * is_shared, base + need.streamed)
    here = 0
    if not workers.is_elsewhere:
        here = sum(
            actors[kind].host_bytes * number - actors[kind].shared_bytes * (number - 1)
            for kind, number in workers.num_actors.items()
        )
    driver = driver_bytes + (RAY_BYTES if workers.executor == "ray" else 0)
    total = here if workers.is_this_process else here + driver
    return RunMemory(actors, driver, total, machine.memory_bytes)


def require_budget(
    job: Job, plan: Plan | None = None, num_reference: int = 1, *, dim: int = 1, has_clusters: bool = False
) -> None:
    """Refuse a labels.memory_gib that cannot hold a block of the reference; where GPUs label, it has no say.

    Before the table is read there is no plan, and the smallest reference is taken. ``dim`` is its number of columns
    where there is no plan.

    Raises:
        ConfigError: the message has a budget that can.
    """
    if job.labels.memory_gib is None or job.executor.address is not None or this_machine().gpus:
        return
    held = resident_memory() if is_one(job.executor) else ACTOR_BYTES
    rows = -(-num_reference // job.executor.actors_per_group)
    is_whole = job.labels.certificate == "measured"
    need = reference_memory(
        rows, dim if plan is None else plan.dim, has_clusters=has_clusters, is_whole=is_whole
    ).streamed
    _check_budget(job.labels.memory_gib, held + (0 if plan is None else shard_memory(plan)), need)


def _check_budget(memory_gib: float | None, held: int, need: int) -> None:
    if memory_gib is not None and memory_gib * GIB - held < need:
        raise ConfigError(
            f"labels.memory_gib = {memory_gib:g} cannot hold one block of the reference beside interpreter and "
            f"libraries: take {_up((held + need) / GIB):g} or more, or leave the key out"
        )


def require_memory(memory: RunMemory, workers: Workers, machine: Machine) -> None:
    """Refuse what this machine cannot hold.

    Raises:
        ConfigError: with a number of actors that fits, a budget with which the reference is streamed, or both.
    """
    if memory.total_bytes > memory.limit_bytes:
        largest = max(memory.actors.values(), key=lambda actor: actor.host_bytes - actor.shared_bytes)
        one = largest.host_bytes - largest.shared_bytes
        room = memory.limit_bytes - (0 if workers.is_this_process else memory.driver_bytes)
        fits = []
        group = workers.actors_per_group
        number = int((room - largest.shared_bytes) // one) // group * group
        if not workers.is_this_process and number >= 1:
            kind = 'executor.kind = "inline" with ' if workers.executor == "inline" else ""
            fits.append(f"{kind}executor.num_actors = {number}")
        budget = math.floor(10 * room / workers.total / GIB) / 10
        if "cpu" in memory.actors and memory.actors["cpu"].least_bytes <= budget * GIB < largest.host_bytes:
            fits.append(f"labels.memory_gib = {budget:g} (the reference is then streamed)")
        them = f"{workers.total} {'actors' if workers.executor == 'ray' else 'processes'}"
        who = "the process" if workers.is_this_process else f"{them} of {largest.host_bytes / GIB:.2f} GiB"
        raise ConfigError(
            f"{who} and what else the run holds need {memory.total_bytes / GIB:.2f} GiB, this machine has "
            f"{memory.limit_bytes / GIB:.2f} GiB: "
            + (f"take {', or '.join(fits)}" if fits else "take a machine with more memory, or fewer data.max_rows")
        )
    if "cuda" not in memory.actors or workers.is_elsewhere:
        return
    smallest = min(gpu.memory_bytes for gpu in machine.gpus)
    each = memory.actors["cuda"]
    sharing = workers_per_gpu(workers.num_gpus_per_actor)
    if sharing * each.device_bytes > smallest:
        fits = ["executor.num_gpus_per_actor = 1"] if sharing > 1 and each.device_bytes <= smallest else []
        raise ConfigError(
            f"{sharing} actors on a GPU need {sharing * each.device_bytes / GIB:.2f} GiB of its memory, which is "
            f"{smallest / GIB:.2f} GiB: "
            + (
                f"take {', or '.join(fits)}"
                if fits
                else "take GPUs with more memory, or a larger executor.actors_per_group"
            )
        )


def _up(gib: float) -> float:
    return math.ceil(100 * gib) / 100


def require_output(directory: str) -> None:
    """Refuse an output.dir that the run could not write into; nothing is written to find out.

    Raises:
        ConfigError: it is a file, or may not be written, or is a URL without a bucket.
    """
    if "://" in directory:
        from sfg_dist.store import Location

        Location(directory)
        return
    for place in (Path(directory), Path(directory) / "pairs.zarr"):
        there = nearest_there(place)
        if not there.is_dir():
            raise ConfigError(f"output.dir = {directory!r}: {there} is a file: name a directory")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(
                f"output.dir = {directory!r} cannot be written: {there} is read-only for this user: take another "
                f"output.dir, or have its permissions changed"
            )


def require_disk(directory: str, left: StoreBytes, plan: Plan) -> int | None:
    """Bytes free where the run writes, None for an object store; refuses what does not fit.

    Raises:
        ConfigError: there is less room than the store still takes.
    """
    if "://" in directory:
        return None
    free = free_disk(Path(directory))
    if left.total > free:
        shards = left.latents + left.labels + left.commits + plan.num_shards * EVENT_BYTES
        fewer = int((free - (left.total - shards)) / (shards / plan.num_shards))
        # A store that is begun keeps its number of pairs, and so do the user's own query points.
        is_free = left.reference > 0 and plan.identity["queries"] is None
        fits = f"take labels.num_pairs = {fewer * plan.shard_rows}, or " if is_free and fewer >= 1 else "take "
        raise ConfigError(
            f"the run writes {left.total / GIB:.2f} GiB into output.dir = {directory!r}, where {free / GIB:.2f} GiB "
            f"are free: {fits}an output.dir with more room"
        )
    return free
