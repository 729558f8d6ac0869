"""Scaling studies: measured, fitted, compared, and predicted for clusters that are not there."""

from sfg_dist.studies.scale.document import compare_studies
from sfg_dist.studies.scale.predict import predict
from sfg_dist.studies.scale.study import scale

__all__ = ["compare_studies", "predict", "scale"]
