"""How the ranks of a fit on one machine find each other: by a file.

Ray Train itself uses a server of torch on the first rank. That server listens on every address of the machine and asks
for no token.
"""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig


@dataclass
class FileConfig(TorchConfig):
    """Ray Train's settings of a process group whose ranks meet by a file."""

    folder: str = ""  # a directory that all ranks reach, and nobody else

    @property
    def backend_cls(self) -> type:
        """What starts and ends the process group."""
        return FileBackend


class FileBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Starts the process group by a file that is new each time; ends it as Ray Train does."""

    def on_start(self, worker_group: Any, backend_config: FileConfig) -> None:
        """Join the ranks, again after each change of their number."""
        on_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        size = len(worker_group)
        keywords = {
            "path": f"{backend_config.folder}/ranks-{secrets.token_hex(8)}",
            "backend": "nccl" if on_gpus else "gloo",
            "size": size,
            "timeout_s": backend_config.timeout_s,
        }
        ray.get([worker_group.execute_single_async(rank, join, number=rank, **keywords) for rank in range(size)])


def join(*, path: str, backend: str, number: int, size: int, timeout_s: int) -> None:
    """Become a rank of the process group."""
    from torch.distributed import FileStore, init_process_group  # type: ignore[attr-defined]

    store = FileStore(path, size)
    timeout = datetime.timedelta(seconds=timeout_s)
    init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)
