"""Scaling studies: measured, fitted, compared, and predicted for clusters that are not there."""

from sfg_dist.scale.document import compare_studies
from sfg_dist.scale.predict import predict
from sfg_dist.scale.study import scale

__all__ = ["compare_studies", "predict", "scale"]
