"""`sfg scale`: how labels and training scale with the number of workers, and what larger clusters would do.

A job comes in and runs through the pipeline with several numbers of workers (``study``, ``measuring``). Laws are fitted
to the times (``fits``), clusters that are not there are simulated with the measured costs (``simulated_cluster``,
``predict``), and a document and a page go out (``document``, ``page``).
"""

from sfg_dist.studies.scale.document import compare_studies, read_study
from sfg_dist.studies.scale.predict import predict
from sfg_dist.studies.scale.study import ScaleSettings, scale

__all__ = ["ScaleSettings", "compare_studies", "predict", "read_study", "scale"]
