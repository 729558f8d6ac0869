"""Labels by Ray actors: the pool of actors behind the driver's loop.

Actors open the store by path, write their own shards, and return only commit records: nothing large passes through the
driver or the object store.
"""

from __future__ import annotations

from collections.abc import Mapping

from sfg_dist.distributed.labels.ray_pool import RayPool, Role
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.distributed.labels.shards import Shards
from sfg_dist.distributed.labels.worker_count import Workers, asked_workers
from sfg_dist.distributed.stopping import stop_signals
from sfg_dist.job.config import ExecutorConfig
from sfg_dist.job.errors import ClusterError
from sfg_dist.store import open_pairs


def label_with_actors(
    url: str,
    executor: ExecutorConfig,
    settings: LabelSettings | None = None,
    *,
    reserved: Mapping[str, float] | None = None,
) -> None:
    """Label all pending shards of a store by actors of the running Ray session.

    Args:
        url: the store.
        executor: which actors. By default there is one for each GPU (or fraction of it), else one for each CPU.
        settings: all else.
        reserved: resources of the cluster that something else holds meanwhile; so many fewer actors by default.

    Raises:
        ConfigError: the cluster cannot hold an actor, or a number of actors is no whole number of groups.
        ClusterError: actors die before they do any work, or the cluster fails.
        LabelingError: shards were given up; the message has every attempt's reason.
        StoreError: the store cannot be read, or its disk stayed full.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR2 came; what is committed is kept.
    """
    import ray
    from ray.exceptions import RayError

    settings = settings or LabelSettings()
    available = ray.cluster_resources()
    for name, amount in (reserved or {}).items():
        available[name] = max(1.0, available[name] - amount) if available.get(name) else 0.0
    num_gpus = available.get("GPU", 0.0)
    workers = asked_workers(
        executor, settings.num_threads, num_cpus=available.get("CPU", 0.0), num_gpus=num_gpus, place="the cluster has"
    )
    pool = RayPool(
        url,
        settings.labeler_class,
        actor_roles(workers, hides_gpus=num_gpus > 0),
        settings.labeler_arguments,
        actors_per_group=workers.actors_per_group,
    )
    driver = settings.new_driver(Shards(open_pairs(url), settings.only), pool, groups_by_role(workers))

    def stop(reason: str) -> None:
        driver.request_stop(reason)
        pool.wake()

    with stop_signals(stop, notice_s=settings.policy.notice_s):
        try:
            driver.run()
        except RayError as error:
            raise ClusterError(
                f"the Ray cluster failed ({' '.join(str(error).split())[:300]}); what is committed is kept: run the "
                f"same command again to go on"
            ) from error
        finally:
            pool.close()
            driver.settle()


def actor_roles(workers: Workers, *, hides_gpus: bool) -> dict[str, Role]:
    """What an actor of each role holds; ``hides_gpus`` keeps those on CPUs off the cluster's GPUs."""
    threads = workers.num_threads
    return {"gpu": Role(threads, workers.num_gpus_per_actor), "cpu": Role(threads, 0.0, is_cpu=hides_gpus)}


def groups_by_role(workers: Workers) -> dict[str, int]:
    """The driver's workers by role: a group of actors is one of them."""
    names = {"cuda": "gpu", "cpu": "cpu"}
    return {names[kind]: number // workers.actors_per_group for kind, number in workers.num_actors.items()}
