"""ForestDiffusion by its package: flow matching whose field is boosted trees, for each of some times and each column.

Categories go in as whole numbers in the order that like ones are neighbours, which the package rounds. Its one-hot
columns would take a tree for each category in each round: on a table of 100 of them one round of all times takes a
minute. A random part of the rows is taken where there are many, with several noises a row where there are few. Two
short timed runs, outside the budget, choose the number of trees.

References:
    Jolicoeur-Martineau et al. 2024, Generating and Imputing Tabular Data via Diffusion and Flow-based
    Gradient-Boosted Trees, arXiv 2309.09968.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from sfg_dist.studies.compare.judging import FitFacts, Fitted, Rows
from sfg_dist.studies.compare.peers.plain_columns import PlainColumns
from sfg_dist.studies.compare.peers.table_peer import SAFETY, TableFit, package_of, seconds_of, without_density

PACKAGE = "ForestDiffusion"
NUM_TIMES = 10
MAX_TREES = 100  # of a column and a time; the package's own number
MAX_ROWS = 10_000
NOISED_ROWS = 20_000  # rows times noises of a row, about
MAX_NOISES = 100  # of a row; the package's own number
TIMED_TREES = (1, 4)
SETTINGS = {"n_t": NUM_TIMES, "max_rows": MAX_ROWS, "noised_rows": NOISED_ROWS}


def fit_forest(given: TableFit) -> Fitted:
    """Fit as many trees as the time allows."""
    plain = PlainColumns(given.tables.any.transform)
    matrix = plain.encode(given.tables.rows("train"))
    rows = matrix[np.random.default_rng(given.seed).permutation(len(matrix))[:MAX_ROWS]]
    noises = int(np.clip(NOISED_ROWS // len(rows), 1, MAX_NOISES))

    def run(trees: int, num_times: int) -> Any:
        return package_of(PACKAGE).ForestDiffusionModel(
            rows,
            n_t=num_times,
            n_estimators=trees,
            duplicate_K=noises,
            int_indexes=np.flatnonzero(plain.sizes).tolist(),
            n_jobs=1,
            nthread=given.num_threads,
            seed=given.seed,
        )

    run(1, 1)
    begin_s, tree_s = seconds_of(lambda trees: run(trees, 1), *TIMED_TREES)
    trees = int(np.clip((SAFETY * given.max_time_s / NUM_TIMES - begin_s) / tree_s, 1, MAX_TREES))
    started = time.perf_counter()
    model = run(trees, NUM_TIMES)
    seconds = time.perf_counter() - started

    def draw(num_rows: int) -> Rows:
        np.random.seed(given.seed)  # noqa: NPY002 (the package draws from numpy's global generator)
        return plain.decode(model.generate(batch_size=num_rows))

    configuration = {"rows": f"{len(rows):,} of {len(matrix):,}", "n_t": NUM_TIMES, "duplicate_K": noises}
    facts = FitFacts(
        label_s=0.0,
        fit_s=seconds,
        num_steps=NUM_TIMES * trees,
        num_parameters=0,
        num_evaluations=NUM_TIMES - 1,
        configuration={**configuration, "n_estimators": trees, **plain.words},
    )
    return without_density(given, "forest_diffusion", draw, facts)
