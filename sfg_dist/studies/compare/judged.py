"""The figures of the judgement (``evaluate.judge``) that a comparison shows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import Prepared
from sfg_dist.evaluate.judge import References, judge
from sfg_dist.evaluate.judgement import Figure
from sfg_dist.pipeline.judged_tables import tables_of_run

SHOWN_FIGURES = (
    "shape", "trend", "c2st_trees_held_out", "c2st_trees_train", "alpha_precision", "beta_recall", "utility",
    "attack_auc",
)  # fmt: skip
"""Of each method, in the order of the table."""


def judged_figures(
    samples: NDArray[np.float64],
    table: Prepared,
    *,
    target: str | None,
    seed: int,
    references: References | None = None,
) -> Mapping[str, Figure]:
    """``SHOWN_FIGURES`` of samples against the test and the training rows of a table.

    ``samples`` are float64 of value - offset, shape (num_samples, num_columns); ``target`` is the column that utility
    predicts. ``references`` are shared by all methods.
    """
    tables = tables_of_run(table, samples, table.transform.types, target)
    return judge(tables, seed=seed, figures=SHOWN_FIGURES, references=references).figures
