"""Labels by Ray actors: the pool of actors behind the driver's loop.

Actors open the store by path, write their own shards, and return only commit records: nothing large passes through the
driver or the object store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sfg_dist.distributed.labels.driver import Driver
from sfg_dist.distributed.labels.labeler import ShardLabeler
from sfg_dist.distributed.labels.pool import Policy, Progress
from sfg_dist.distributed.labels.ray_pool import RayPool, Role
from sfg_dist.distributed.labels.shards import Shards
from sfg_dist.distributed.labels.workers import DriverId
from sfg_dist.distributed.places import cpu_room, gpu_room, whole_groups
from sfg_dist.distributed.stopping import stop_signals
from sfg_dist.job.errors import ClusterError
from sfg_dist.store import open_pairs
from sfg_dist.store.snapshot import SnapshotDocument


def label_with_actors(
    url: str,
    *,
    num_actors: int | None = None,
    num_gpus_per_actor: float | None = None,
    num_cpu_actors: int = 0,
    actors_per_group: int = 1,
    num_threads: int = 1,
    memory_gib: float | None = None,
    shard_timeout_s: float | None = None,
    max_attempts: int = 4,
    notice_s: float = Policy.notice_s,
    driver: DriverId | None = None,
    on_progress: Progress | None = None,
    on_event: Callable[..., None] | None = None,
    on_snapshot: Callable[[SnapshotDocument], None] | None = None,
    only: Collection[int] | None = None,
    reserved: Mapping[str, float] | None = None,
    labeler: Callable[..., Any] = ShardLabeler,
    policy: Policy | None = None,
) -> None:
    """Label all pending shards of a store by actors of the running Ray session.

    Args:
        url: the store.
        num_actors: how many; one a GPU (or its fraction) where the cluster has some, else one a CPU.
        num_gpus_per_actor: GPUs an actor holds, fractions allowed; 1 where the cluster has GPUs, else none.
        num_cpu_actors: actors without a GPU beside them.
        actors_per_group: actors that hold one reference between them, each a part; num_actors counts all of them, but
            not the process that leads each group and needs neither CPU nor GPU of its own.
        num_threads: CPU threads of an actor.
        memory_gib: host memory that an actor's reference may take; None for all of it.
        shard_timeout_s: a shard that runs longer is taken to hang; None for 10 times the median of its kind of actor.
        max_attempts: failed attempts at a shard before it is given up.
        notice_s: how long shards at work may go on after SIGUSR2.
        driver: the driver's id; a new one if not given.
        on_progress: called after every commit.
        on_event: called with a name and details when something happens (see ``Driver``).
        on_snapshot: called with the state of everything, at most every two seconds and at the end.
        only: leave pending shards that are not among these as they are.
        reserved: resources of the cluster that something else holds meanwhile; so many fewer actors by default.
        labeler: the class whose ``label(shard, attempt)`` does the work.
        policy: the driver's patience, where the three keys above are not enough.

    Raises:
        ConfigError: a number of actors is no whole number of groups.
        ClusterError: the cluster cannot hold an actor, or actors die before they do any work.
        LabelingError: shards were given up; the message has every attempt's reason.
        StoreError: the store cannot be read, or its disk stayed full.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR2 came; what is committed is kept.
    """
    import ray
    from ray.exceptions import RayError

    shards = Shards(open_pairs(url), only)
    wanted = WantedActors(num_actors, num_gpus_per_actor, num_cpu_actors, actors_per_group, num_threads)
    available = ray.cluster_resources()
    for name, amount in (reserved or {}).items():
        available[name] = max(1.0, available[name] - amount) if available.get(name) else 0.0
    roles, numbers = wanted.roles(available)
    arguments = {"num_threads": num_threads} | ({} if memory_gib is None else {"memory_gib": memory_gib})
    pool = RayPool(url, labeler, roles, arguments, actors_per_group=actors_per_group)
    policy = policy or Policy(shard_timeout_s=shard_timeout_s, max_attempts=max_attempts, notice_s=notice_s)
    loop = Driver(
        shards,
        pool,
        numbers,
        total=shards.total,
        driver=driver,
        policy=policy,
        on_progress=on_progress,
        on_event=on_event,
        on_snapshot=on_snapshot,
    )

    def stop(reason: str) -> None:
        loop.request_stop(reason)
        pool.wake()

    with stop_signals(stop, notice_s=policy.notice_s):
        try:
            loop.run()
        except RayError as error:
            raise ClusterError(
                f"the Ray cluster failed ({' '.join(str(error).split())[:300]}); what is committed is kept: run the "
                f"same command again to go on"
            ) from error
        finally:
            pool.close()
            loop.settle()


@dataclass(frozen=True)
class WantedActors:
    """The actors that a job asks for."""

    num_actors: int | None
    num_gpus: float | None
    num_cpu_actors: int
    group: int
    num_threads: int

    def roles(self, available: dict[str, float]) -> tuple[dict[str, Role], dict[str, int]]:
        """What an actor of each role holds, and how many workers (groups count once), checked against the cluster."""
        cluster_gpus, cluster_cpus = available.get("GPU", 0.0), available.get("CPU", 0.0)
        gpus = self.num_gpus if self.num_gpus is not None else min(1.0, cluster_gpus)
        if gpus > cluster_gpus:
            raise ClusterError(
                f"executor.num_gpus_per_actor = {gpus:g}, but the cluster has {cluster_gpus:g} GPUs: leave the key out "
                f"for CPU actors, or add GPUs"
            )
        if self.num_threads > cluster_cpus:
            raise ClusterError(
                f"labels.num_threads = {self.num_threads}, but the cluster has {cluster_cpus:g} CPUs: take fewer"
            )
        beside = whole_groups(self.num_cpu_actors, key="executor.num_cpu_actors", group=self.group)
        room = gpu_room(cluster_gpus, gpus) if gpus else cpu_room(cluster_cpus, self.num_threads, beside=beside)
        count = whole_groups(self.num_actors, room=room, group=self.group)
        numbers = {"gpu" if gpus else "cpu": count // self.group}
        roles = {"gpu": Role(self.num_threads, gpus), "cpu": Role(self.num_threads, 0.0, is_cpu=cluster_gpus > 0)}
        if beside:
            numbers["cpu"] = numbers.get("cpu", 0) + beside // self.group
        return roles, numbers
