"""A rank of a fit in a process that stands for a worker of Ray Train, and how a rank notes what it trained on.

python tests/distributed/ranks.py RANK SIZE FOLDER SEEN CONFIG ...

The ranks meet in a file of the folder. They run the configurations one after the other, as a worker of Ray would.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfg_dist.model.trainer import Trainer


def record_batches(directory: Path) -> None:
    """Have the trainer of this process note the latents that its rank trains on."""
    step = Trainer.step

    def noted(self: Trainer, latents: Any, labels: Any, global_rows: int, done: float) -> Any:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        name = f"rank{rank}_epoch{self.progress.epoch}_step{self.progress.step:04d}.npy"
        np.save(directory / name, latents)
        return step(self, latents, labels, global_rows, done)

    Trainer.step = noted  # type: ignore[method-assign]


class Processes:
    """Stands for Ray Train: two workers that are children of this process, and start sooner.

    Args:
        seen: where they note their batches of the first fit.
        more: of the fit that they begin then.
        train_loop_config: what a worker of the first fit is given.
    """

    def __init__(self, seen: Path, more: dict[str, Any], loop: Any, *, train_loop_config: dict[str, Any], **_: Any):
        self.words = [str(seen), json.dumps(train_loop_config), json.dumps(train_loop_config | more)]

    def fit(self) -> None:
        """Run both to their ends."""
        from patience import patience  # which the script itself cannot see

        with tempfile.TemporaryDirectory() as folder:
            words = [[sys.executable, __file__, str(rank), "2", folder, *self.words] for rank in range(2)]
            ranks = [subprocess.Popen(each) for each in words]
            try:
                assert [rank.wait(patience(120)) for rank in ranks] == [0, 0]
            finally:
                for rank in ranks:
                    rank.kill()
                    rank.wait()


class Context:
    """What a worker asks Ray for."""

    def __init__(self, rank: int, size: int) -> None:
        self.get_world_rank, self.get_world_size = lambda: rank, lambda: size


def main() -> None:
    import ray.train

    from sfg_dist.distributed.fit import training

    rank, size, folder, seen, *configs = sys.argv[1:]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=int(rank), world_size=int(size)
    )
    ray.train.get_context = lambda: Context(int(rank), int(size))
    ray.train.report = lambda entry: None
    whole = Trainer.step
    record_batches(Path(seen))
    for config in configs:
        training._ray_worker(json.loads(config))
        Trainer.step = whole  # type: ignore[method-assign]
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
