"""`sfg scale`: how the time of a job grows with its workers.

Runs are measured, laws fitted to them, studies compared, and times predicted for clusters that are not there. A job
comes in; a document and a page go out.
"""

from sfg_dist.studies.scale.document import compare_studies
from sfg_dist.studies.scale.predict import predict
from sfg_dist.studies.scale.study import scale

__all__ = ["compare_studies", "predict", "scale"]
