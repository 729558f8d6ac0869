"""How many workers a run has, and on which devices: counted once, for ``sfg plan`` and for the run itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfg_dist.distributed.nodes import gpu_room
from sfg_dist.job.config import ExecutorConfig
from sfg_dist.job.errors import ConfigError

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Workers:
    """The workers of a run."""

    executor: str  # "inline", processes of this machine without Ray, or "ray", actors
    num_actors: dict[DeviceKind, int]  # workers by kind of device; kinds without one are left out
    num_gpus_per_actor: float  # GPUs that an actor of kind "cuda" holds
    num_threads: int  # CPU threads of each
    actors_per_group: int  # actors that share one reference, and work on one shard together
    # whether they are on a cluster that runs already, and this machine only stands for theirs
    is_elsewhere: bool = False

    @property
    def is_this_process(self) -> bool:
        """Whether it is one worker, in the process itself."""
        return self.executor == "inline" and self.total == 1

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.num_actors.values())


def asked_workers(
    executor: ExecutorConfig,
    num_threads: int,
    *,
    num_cpus: float,
    num_gpus: float,
    place: str,
    gpu_word: str = "GPUs",
    is_elsewhere: bool = False,
) -> Workers:
    """The actors that a job asks for; by default as many as there is room for.

    Args:
        executor: the job's keys.
        num_threads: CPU threads of an actor.
        num_cpus: CPUs that there are for actors.
        num_gpus: GPUs that there are for actors.
        place: for messages, in front of a number: "the cluster has".
        gpu_word: for messages, after a number of GPUs.
        is_elsewhere: whether the actors run on a cluster that may be larger than that.

    Raises:
        ConfigError: there is no place for an actor, or a number of actors is no whole number of groups.
    """
    gpus = executor.num_gpus_per_actor if executor.num_gpus_per_actor is not None else min(1.0, num_gpus)
    if gpus > num_gpus and not is_elsewhere:
        raise ConfigError(
            f"executor.num_gpus_per_actor = {gpus:g}, but {place} {num_gpus:g} {gpu_word}: "
            + (f"take at most {num_gpus:g}" if num_gpus else "leave the key out for actors on CPUs")
        )
    if not is_elsewhere:
        require_threads(num_threads, num_cpus, place)
    group = executor.actors_per_group
    beside = whole_groups(executor.num_cpu_actors, key="executor.num_cpu_actors", group=group)
    room = gpu_room(num_gpus, gpus) if gpus else cpu_room(num_cpus, num_threads, beside=beside)
    if is_elsewhere and gpus:
        room = max(room, group)
    number = whole_groups(executor.num_actors, room=room, group=group)
    actors: dict[DeviceKind, int] = {"cuda": number, "cpu": beside} if gpus else {"cpu": number + beside}
    return Workers("ray", {kind: n for kind, n in actors.items() if n}, gpus, num_threads, group, is_elsewhere)


def require_threads(num_threads: int, num_cpus: float, place: str) -> None:
    """Refuse a worker with more threads than there are CPUs.

    Raises:
        ConfigError: with the largest number that fits.
    """
    if num_threads > num_cpus:
        raise ConfigError(
            f"labels.num_threads = {num_threads}, but {place} {num_cpus:g} CPUs: take labels.num_threads = {num_cpus:g}"
        )


def cpu_room(num_cpus: float, num_threads: int, *, beside: int = 0) -> int:
    """Actors on CPUs that so many CPUs have room for, beside others that are asked for."""
    return max(0, int(num_cpus // num_threads) - beside)


def whole_groups(asked: int | None, *, group: int, room: int = 0, key: str = "executor.num_actors") -> int:
    """Actors of a run, in whole groups: those asked for, else as many as there is room for.

    Args:
        asked: the job's number; None for as many as there is room for.
        group: actors of a group, ``executor.actors_per_group``.
        room: actors that there is room for.
        key: of the job's number, for the message.

    Raises:
        ConfigError: the number is no whole number of groups, or there is room for less than one.

    Examples:
        >>> whole_groups(None, group=2, room=5), whole_groups(6, group=2)
        (4, 6)
    """
    if asked is None and room == 0:
        raise ConfigError(
            "there is no room for an actor: lower labels.num_threads or executor.num_cpu_actors, or add nodes"
        )
    if asked is None and room < group:
        raise ConfigError(f"executor.actors_per_group = {group}, but there is room for {room} actors: take {room}")
    if asked is None:
        return room // group * group
    if asked % group:
        raise ConfigError(
            f"{key} = {asked} is no whole number of groups of executor.actors_per_group = {group}: "
            f"take {max(group, asked // group * group)}"
        )
    return asked
