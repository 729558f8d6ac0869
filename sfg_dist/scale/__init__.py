"""Scaling studies: measured, fitted, compared, and predicted for clusters that are not there."""

from sfg_dist.scale.predict import predict
from sfg_dist.scale.study import compare_studies, scale

__all__ = ["compare_studies", "predict", "scale"]
