"""Waits until a Ray cluster has as many nodes as it should.

python -m sfg_dist.distributed.nodes ADDRESS NUMBER
"""

from __future__ import annotations

import sys
import time


def wait_for_nodes(address: str, number: int) -> None:
    """Return when so many nodes are alive; never, where they do not come: the caller has the clock."""
    import ray

    from sfg_dist.distributed.cluster import ray_session

    with ray_session(address):
        while sum(bool(node["Alive"]) for node in ray.nodes()) < number:
            time.sleep(0.2)


if __name__ == "__main__":
    wait_for_nodes(sys.argv[1], int(sys.argv[2]))
