"""The network, one optimiser step at a time, its calibration, and the saved generator."""

from sfg_dist.model.calibration import Calibration
from sfg_dist.model.generator import Generator
from sfg_dist.model.mlp import MLP, predict
from sfg_dist.model.trainer import Trainer

__all__ = ["MLP", "Calibration", "Generator", "Trainer", "predict"]
