"""The nodes of a Ray cluster: what each has room for, and the wait until they are there.

python -m sfg_dist.distributed.nodes ADDRESS NUMBER
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from sfg_dist.distributed.cluster import LOOPBACK, ray_session
from sfg_dist.job.errors import ClusterError


def wait_for_nodes(address: str, number: int) -> None:
    """Return when so many nodes are alive; never, where they do not come: the caller has the clock."""
    with ray_session(address):
        while len(alive_nodes()) < number:
            time.sleep(0.2)


def gpu_room(num_gpus: float, each: float) -> int:
    """Workers that fit so many GPUs, each with ``each`` of them: a part of a GPU is one GPU's.

    Examples:
        >>> gpu_room(4, 0.5), gpu_room(4, 0.6), gpu_room(4, 2), gpu_room(3, 2)
        (8, 4, 2, 1)
    """
    return int(num_gpus) * workers_per_gpu(each) if each <= 1 else int(num_gpus // each)


def workers_per_gpu(each: float) -> int:
    """Workers that share a GPU, each with ``each`` of it; 1 where a worker holds whole ones."""
    return max(1, int(1 / each + 1e-9))


def alive_nodes() -> list[Mapping[str, float]]:
    """What each node of the running Ray session has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def on_loopback() -> bool:
    """Whether the running Ray session is of this machine alone, and speaks on loopback."""
    import ray

    return all(node["NodeManagerAddress"] == LOOPBACK for node in ray.nodes() if node["Alive"])


def largest_share(nodes: Sequence[Mapping[str, float]], num_workers: int) -> int:
    """CPUs of a worker, the most with which all find a place.

    Examples:
        >>> largest_share([{"CPU": 8.0}, {"CPU": 8.0}], 1), largest_share([{"CPU": 8.0}, {"CPU": 5.0}], 3)
        (8, 4)
    """
    sizes = [int(resources.get("CPU", 0)) for resources in nodes]
    for cpus in range(max(sizes, default=1), 1, -1):
        if sum(size // cpus for size in sizes) >= num_workers:
            return cpus
    return 1


def num_places(nodes: Sequence[Mapping[str, float]], *, num_cpus: int, num_gpus: float) -> int:
    """Workers that find a place, each with so many CPUs and GPUs; a part of a GPU is one GPU's.

    Examples:
        >>> num_places([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}], num_cpus=2, num_gpus=0.0)
        5
        >>> num_places([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}], num_cpus=2, num_gpus=0.5)
        4
    """
    found = 0
    for resources in nodes:
        room = int(resources.get("CPU", 0) // num_cpus)
        if num_gpus:
            gpus = resources.get("GPU", 0.0)
            room = min(room, gpu_room(gpus, num_gpus))
        found += room
    return found


def require_places(num_workers: int, *, num_cpus: int, num_gpus: float, what: str) -> None:
    """Refuse more workers than the running Ray session has room for.

    Raises:
        ClusterError: it has not; the message says for how many it has.
    """
    room = num_places(alive_nodes(), num_cpus=num_cpus, num_gpus=num_gpus)
    if room < num_workers:
        each = f"{num_cpus} CPUs" + (f" and {num_gpus:g} GPUs" if num_gpus else "")
        raise ClusterError(
            f"{num_workers} {what} of {each} each: the cluster has room for {room}; ask for fewer, or for a larger "
            f"cluster"
        )


if __name__ == "__main__":
    wait_for_nodes(sys.argv[1], int(sys.argv[2]))
