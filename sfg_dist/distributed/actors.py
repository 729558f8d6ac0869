"""Labels by Ray actors: a bounded number of shards in flight, a lost actor replaced and its shards done again.

Actors open the store by path, write their own shards, and return only commit records: nothing large passes through the
driver or the object store. An actor gets its first shard once it answers, so one that waits for a free CPU holds none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sfg_dist.distributed.labeler import Progress, ShardLabeler
from sfg_dist.errors import ClusterError, LabelingError, SfgError
from sfg_dist.store import open_pairs

SHARDS_IN_FLIGHT = 2  # one at work, one waiting, so that an actor never idles for the driver
MAX_ATTEMPTS = 4
MAX_IDLE_LOSSES = 3
_ALIVE = -1


@dataclass
class _Slot:
    """A place for an actor; the actor in it may be replaced."""

    handle: Any
    is_ready: bool = False
    in_flight: dict[Any, int] = field(default_factory=dict)


def label_with_actors(
    url: str,
    *,
    num_actors: int | None = None,
    num_gpus_per_actor: float | None = None,
    num_threads: int = 1,
    on_progress: Progress | None = None,
    labeler: Callable[..., Any] = ShardLabeler,
) -> None:
    """Label all pending shards of a store by actors of the running Ray session.

    Args:
        url: the store.
        num_actors: how many; one a GPU (or its fraction) where the cluster has some, else one a CPU.
        num_gpus_per_actor: GPUs an actor holds, fractions allowed; 1 where the cluster has GPUs, else none.
        num_threads: CPU threads of an actor.
        on_progress: called after every commit.
        labeler: the class whose ``label(shard, attempt)`` does the work.

    Raises:
        ClusterError: the cluster cannot hold an actor, or actors die before they do any work.
        LabelingError: a shard was lost with its actor too often; whatever the labeler raised is passed on.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

    pairs = open_pairs(url)
    total = pairs.plan.num_shards
    todo = deque(pairs.pending())
    done = total - len(todo)
    if not todo:
        return
    num_actors, gpus = _resources(ray.cluster_resources(), num_actors, num_gpus_per_actor, num_threads)
    remote_class = ray.remote(labeler).options(num_cpus=num_threads, num_gpus=gpus, max_restarts=0, max_concurrency=1)

    def new_slot() -> _Slot:
        handle = remote_class.remote(url, num_threads=num_threads)
        return _Slot(handle, in_flight={handle.__ray_ready__.remote(): _ALIVE})

    def finish(record: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total, record)

    attempts = dict.fromkeys(todo, 0)
    idle_losses = 0
    slots = [new_slot() for _ in range(min(num_actors, len(todo)))]
    try:
        while todo or any(shard != _ALIVE for slot in slots for shard in slot.in_flight.values()):
            for slot in slots:
                while slot.is_ready and todo and len(slot.in_flight) < SHARDS_IN_FLIGHT:
                    shard = todo.popleft()
                    slot.in_flight[slot.handle.label.remote(shard, attempts[shard] + 1)] = shard
            (ready, *_), _ = ray.wait([call for slot in slots for call in slot.in_flight], num_returns=1)
            slot = next(slot for slot in slots if ready in slot.in_flight)
            try:
                record = ray.get(ready)
            except (RayActorError, OutOfMemoryError) as error:
                # What it committed before it died is done, whether or not the answer came through.
                lost = []
                for shard in (shard for shard in slot.in_flight.values() if shard != _ALIVE):
                    record = pairs.commit_record(shard) if pairs.is_done(shard) else None
                    if record is None:
                        lost.append(shard)
                    else:
                        finish(record)
                ray.kill(slot.handle)  # it may live on, out of reach, and hold its CPU or GPU
                slots[slots.index(slot)] = new_slot()
                if not slot.is_ready:
                    idle_losses += 1
                    if idle_losses >= MAX_IDLE_LOSSES:
                        reason = str(error).strip().splitlines()[-1]
                        raise ClusterError(f"{idle_losses} actors died before their first shard: {reason}") from error
                todo.extendleft(reversed(lost))
                # Calls of one actor run in order, so only the first that is not done can have brought it down.
                for shard in lost[:1]:
                    attempts[shard] += 1
                    if attempts[shard] >= MAX_ATTEMPTS:
                        raise LabelingError(
                            f"shard {shard} was lost with its actor {MAX_ATTEMPTS} times; most often the machine ran "
                            f"out of memory: take fewer executor.num_actors or a smaller labels.batch_size. "
                            f"{done} of {total} shards are kept"
                        ) from error
            except RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else error
                if isinstance(cause, SfgError):
                    raise cause from error
                raise LabelingError(f"shard {slot.in_flight[ready]}: {cause}") from error
            else:
                shard = slot.in_flight.pop(ready)
                slot.is_ready, idle_losses = True, 0
                if shard != _ALIVE:
                    finish(record)
    finally:
        for slot in slots:
            ray.kill(slot.handle)


def _resources(
    available: dict[str, float], num_actors: int | None, num_gpus: float | None, num_threads: int
) -> tuple[int, float]:
    """Number of actors and GPUs an actor, checked against what the cluster has."""
    cluster_gpus = available.get("GPU", 0.0)
    gpus = num_gpus if num_gpus is not None else min(1.0, cluster_gpus)
    if gpus > cluster_gpus:
        raise ClusterError(
            f"executor.num_gpus_per_actor = {gpus:g}, but the cluster has {cluster_gpus:g} GPUs: leave the key out for "
            f"CPU actors, or add GPUs"
        )
    if num_threads > available.get("CPU", 0.0):
        raise ClusterError(
            f"labels.num_threads = {num_threads}, but the cluster has {available.get('CPU', 0.0):g} CPUs: take fewer"
        )
    room = cluster_gpus / gpus if gpus else available["CPU"] / num_threads
    return num_actors or max(1, int(room)), gpus
