"""How good the samples are: figures against held-out rows, and one page that shows them.

Arrays are tables in the user's own columns and units, shape (num_rows, dim). Importing the room loads numpy
and nothing heavier; each figure brings what it needs when it is first computed.
"""

from sfg_dist.evaluate.metrics import METRIC_NAMES, classifier_test, floor, measure
from sfg_dist.evaluate.report import ReportContent, render_report

__all__ = ["METRIC_NAMES", "ReportContent", "classifier_test", "floor", "measure", "render_report"]
