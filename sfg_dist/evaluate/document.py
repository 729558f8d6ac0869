"""A judgement as metrics.json has it: what it must be when it is read, and how it is written.

| key | what it is |
| --- | --- |
| figures | by name, each with value, error (standard, of value less floor), floor, copy and independent; null if none |
| columns, pairs | the worst ten by their score, which is 1 for equal laws, with the floor of each |
| rules | the rules that samples break most often, each with the share of the samples and of real rows |
| target | the column that utility predicts, or null |
| left_out | what was not measured, and why, in sentences |
| calibration | of a conditional job: figures in the same form, the worst ten columns, numbers of rows and draws |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sfg_dist.evaluate.calibration import Calibration
from sfg_dist.evaluate.judgement import Figure, Judgement
from sfg_dist.job.reader import MAYBE_NAN

NUM_WORST = 10

_NUMBER = (MAYBE_NAN, None)
_FIGURES = {str: {"value": _NUMBER, "error": _NUMBER, "floor": _NUMBER, "copy": _NUMBER, "independent": _NUMBER}}
_CALIBRATED = {
    "column": str, "rank_distance": _NUMBER, "rank_spread": _NUMBER, "crps": _NUMBER, "crps_floor": _NUMBER,
}  # fmt: skip
JUDGEMENT_FIELDS = {
    "figures?": _FIGURES,
    "columns?": [{"column": str, "score": MAYBE_NAN, "floor": _NUMBER}],
    "pairs?": [{"columns": [str], "score": MAYBE_NAN, "floor": _NUMBER}],
    "rules?": [{"rule": str, "share": MAYBE_NAN, "floor": MAYBE_NAN}],
    "target?": (str, None),
    "left_out?": [str],
    "calibration?": {"figures": _FIGURES, "columns": [_CALIBRATED], "num_rows": int, "num_draws": int},
}
"""``Fields`` of the reader (``job.reader``); documents of earlier versions have none of these keys."""


def judgement_document(judgement: Judgement) -> dict[str, Any]:
    """The keys of a judgement, as JSON takes them."""
    return {
        "figures": _figures(judgement.figures),
        "columns": [
            {"column": shape.column, "score": shape.score, "floor": _finite(shape.floor)}
            for shape in judgement.shapes[:NUM_WORST]
        ],
        "pairs": [
            {"columns": list(trend.columns), "score": trend.score, "floor": _finite(trend.floor)}
            for trend in judgement.trends[:NUM_WORST]
        ],
        "rules": [
            {"rule": broken.rule, "share": broken.share, "floor": broken.floor}
            for broken in judgement.rules[:NUM_WORST]
        ],
        "target": judgement.target,
        "left_out": list(judgement.notes),
    }


def calibration_document(found: Calibration) -> dict[str, Any]:
    """The key calibration."""
    return {
        "figures": _figures(found.figures),
        "columns": [
            {key: value if isinstance(value, str) else _finite(value) for key, value in vars(column).items()}
            for column in found.columns[:NUM_WORST]
        ],
        "num_rows": found.num_rows,
        "num_draws": found.num_draws,
    }


def figure_of(name: str, record: Mapping[str, float | None]) -> Figure:
    """A figure of a document; numbers that are not finite are none."""
    return Figure(name, **{key: _finite(record.get(key)) for key in ("value", "error", "floor", "copy", "independent")})


def figures_of(document: Mapping[str, Any]) -> dict[str, Figure]:
    """All figures of a document by name, those of its calibration too."""
    records = {**(document.get("figures") or {}), **(document.get("calibration") or {}).get("figures", {})}
    return {name: figure_of(name, record) for name, record in records.items()}


def _figures(figures: Mapping[str, Figure]) -> dict[str, dict[str, float | None]]:
    keys = ("value", "error", "floor", "copy", "independent")
    return {name: {key: _finite(getattr(figure, key)) for key in keys} for name, figure in figures.items()}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
