"""How good the samples are: figures, that is numbers, against held-out rows, and one page that shows them.

Samples, labels and rows of the data come in, as arrays of shape (num_rows, dim) in the user's own columns and units.
Figures (``metrics``) and the page (``report``, with its ``pictures``) go out. The room imports ``job`` alone of all
rooms. Importing it loads numpy and nothing heavier; each figure brings what it needs when it is first computed.
"""

from sfg_dist.evaluate.figure_kinds import FIGURE_KINDS
from sfg_dist.evaluate.judge import judge
from sfg_dist.evaluate.metrics import METRIC_NAMES, classifier_test, floor, measure
from sfg_dist.evaluate.report import ReportContent, render_report

__all__ = [
    "FIGURE_KINDS",
    "METRIC_NAMES",
    "ReportContent",
    "classifier_test",
    "floor",
    "judge",
    "measure",
    "render_report",
]
