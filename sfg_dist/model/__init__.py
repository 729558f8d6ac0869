"""The network (``mlp``; ``cell_network`` for mixed tables), its fit step by step, its calibration, and the generator.

Batches of pairs come in, and a ``Generator`` goes out, which samples, scores rows and saves itself. This room knows
neither ray, zarr nor dask: the room distributed brings it the batches.
"""

from sfg_dist.model.calibration import Calibration
from sfg_dist.model.generator import Generator
from sfg_dist.model.mlp import MLP, predict
from sfg_dist.model.trainer import Trainer

__all__ = ["MLP", "Calibration", "Generator", "Trainer", "predict"]
