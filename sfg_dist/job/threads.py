"""How many threads compute, and how they wait for each other.

The threads of an OpenMP loop (torch, scikit-learn) wait for the last of them. By default they spin for it. On a busy
machine they then burn the CPU that the last one needs. tests/benchmarks/neighbours.py measures both ways.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager

from sfg_dist.job.memory import GROUPS, cpu_limits, own_groups

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables that say how threads wait."""


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have the threads of OpenMP sleep while they wait, unless the environment says how they wait.

    OpenMP reads its variables when it is loaded: call this before torch or scikit-learn are imported, or on the
    environment of a process that is about to start.

    Examples:
        >>> environment = {}
        >>> wait_passively(environment)
        >>> environment
        {'OMP_WAIT_POLICY': 'PASSIVE'}
    """
    if not is_settled(environment):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def is_settled(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether the environment says how threads wait."""
    return any(name in environment for name in SETTINGS)


def usable_cpus() -> int:
    """CPUs that this process may run on, or as many as its control group has time for; at least 1."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([number, *cpu_limits(GROUPS, own_groups())])))


@contextmanager
def torch_threads(number: int | None = None) -> Iterator[None]:
    """Within, torch computes on so many threads, or on whatever number is set there; after, on as many as before."""
    import torch

    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class SpinWatch:
    """Notices when the threads of this process spend their time spinning.

    A program that imports this package as a library keeps its own environment, so its threads may spin.

    Args:
        is_settled: whether the user has said how threads wait; there is no warning then.
        load: how many processes of the machine want a CPU now.
        num_cpus: CPUs of the machine.
    """

    SLOWER = 4.0  # times the fastest step; other work alone slows sleeping threads by less

    def __init__(
        self,
        is_settled: Callable[[], bool] = is_settled,
        load: Callable[[], float] | None = None,
        num_cpus: int | None = None,
    ) -> None:
        self._is_settled, self._num_cpus = is_settled, num_cpus or os.cpu_count() or 1
        self._load = load or (lambda: os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0)
        self._best, self._has_spoken = float("inf"), False

    def word(self, seconds: float) -> str | None:
        """A warning after a step of so many seconds, at most once; else None."""
        self._best = min(self._best, seconds)
        is_slow = seconds > self.SLOWER * self._best
        if self._has_spoken or not is_slow or self._is_settled() or self._load() <= self._num_cpus:
            return None
        self._has_spoken = True
        return (
            f"a step takes {seconds / self._best:.0f} times as long as the fastest so far, and other work keeps this "
            f"machine busy: threads that spin while they wait for each other may be why. Set OMP_WAIT_POLICY=PASSIVE "
            f"in the environment before Python starts"
        )
