"""The figures of the judgement (``evaluate.judge``) that a comparison shows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import Prepared
from sfg_dist.data.column_type import ColumnType
from sfg_dist.evaluate.judge import judge
from sfg_dist.evaluate.judgement import ColumnKind, Figure, JudgedColumn, JudgedTables

SHOWN_FIGURES = (
    "shape", "trend", "c2st_trees_held_out", "c2st_trees_train", "alpha_precision", "beta_recall", "utility",
    "attack_auc",
)  # fmt: skip
"""Of each method, in the order of the table."""
_KINDS: Mapping[str, ColumnKind] = {
    "integer": "integer", "boolean": "boolean", "timestamp": "datetime", "date": "datetime", "category": "category",
    "ordinal": "category",
}  # fmt: skip


def judged_figures(
    samples: NDArray[np.float64], table: Prepared, *, target: str | None, seed: int
) -> Mapping[str, Figure]:
    """``SHOWN_FIGURES`` of samples in the user's units against the test and the training rows.

    ``target`` is the column that utility predicts.
    """
    columns = tuple(_column(name, type_) for name, type_ in table.types.items())
    tables = JudgedTables(columns, samples, held_out=table.test, train=table.train, target=target)
    return judge(tables, seed=seed, figures=SHOWN_FIGURES).figures


def _column(name: str, type_: ColumnType) -> JudgedColumn:
    names = ("false", "true") if type_.kind == "boolean" else type_.categories
    return JudgedColumn(name, _KINDS.get(type_.kind, "number"), names)
