"""What this machine has for actors: CPUs, memory, GPUs and room on a disk, within the limits of its control group."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfg_dist.job.memory import GROUPS, memory_limits, own_groups
from sfg_dist.job.threads import usable_cpus

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees, with all of its memory."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """What the processes of a run may use here."""

    num_cpus: int  # CPUs that this process may run on
    memory_bytes: int  # memory of the machine, or of the control group where that is less
    available_bytes: int  # what of it is free now, or could be freed without swapping
    gpus: tuple[Gpu, ...] = ()  # those that torch sees


def this_machine() -> Machine:
    """Look at the machine that this process runs on."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit, used in memory_limits(GROUPS, own_groups()):
        if limit < total:
            total, available = limit, min(available, max(0, limit - used))
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append(Gpu(properties.name, properties.total_memory))
    return Machine(usable_cpus(), total, available, tuple(gpus))


def default_device() -> torch.device:
    """Where labels and fits run: the GPU when there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resident_memory() -> int:
    """The bytes that this process holds resident now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """The most bytes that this process has held resident so far."""
    if sys.platform == "linux":  # there a child inherits ru_maxrss from its parent, but not VmHWM
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
