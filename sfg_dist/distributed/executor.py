"""Which stages take Ray, by the keys of a job alone."""

from __future__ import annotations

from sfg_dist.job.config import ExecutorConfig, Job

_ACTOR_KEYS = ("num_actors", "num_gpus_per_actor", "num_cpu_actors", "actors_per_group")


def why_ray(executor: ExecutorConfig, *, num_workers: object = 1, overlap: bool = False) -> str | None:
    """The key that makes Ray label, in words; None where no key does.

    Args:
        executor: the job's keys.
        num_workers: of the fit, ``train.num_workers``: with several the fit needs Ray in any case.
        overlap: whether a worker trains meanwhile.

    Example:
        >>> why_ray(ExecutorConfig()), why_ray(ExecutorConfig(num_actors=4))
        (None, 'executor.num_actors is given')
    """
    if executor.kind != "auto":
        return 'executor.kind = "ray"' if executor.kind == "ray" else None
    if executor.address is not None:
        return "executor.address is given"
    for name in _ACTOR_KEYS:
        if getattr(executor, name) != type(executor).model_fields[name].default:
            return f"executor.{name} is given"
    if num_workers != 1:
        return "train.num_workers asks for several workers"
    return "it trains meanwhile (--overlap)" if overlap else None


def fit_takes_ray(job: Job) -> bool:
    """Whether the network is fitted by Ray Train: where the job says so, on a cluster, and on several workers."""
    if job.executor.kind != "auto":
        return job.executor.kind == "ray"
    return job.executor.address is not None or job.train.num_workers != 1


def fit_choice(job: Job) -> dict[str, str]:
    """What an event tells of where the network is fitted: the ``executor``, and in ``words`` where and why."""
    if fit_takes_ray(job):
        labels_alone = {name: ExecutorConfig.model_fields[name].default for name in _ACTOR_KEYS}
        why = why_ray(job.executor.model_copy(update=labels_alone), num_workers=job.train.num_workers)
        return {"executor": "ray", "words": f"by Ray Train, since {why}"}
    free = ", where Ray would be no faster; --executor ray takes Ray Train" if job.executor.kind == "auto" else ""
    return {"executor": "inline", "words": f"in this process{free}"}
