"""A Gaussian copula: normal scores of each column, and the correlation of the scores.

The scores are those of the quantile transform. A category or a missing value is spread over its interval of scores, as
the synthesizers by this name do it. The fit is one product of matrices, so there is nothing to end by the clock.

References:
    Patki, Wedge, Veeramachaneni 2016, The Synthetic Data Vault.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from sfg_dist.studies.compare.judging import FitFacts, Fitted, Rows
from sfg_dist.studies.compare.peers.table_peer import TableFit

RIDGE = 1e-6
"""Added to the diagonal of the correlation, which has no inverse where columns repeat each other."""


def fit_gaussian_copula(given: TableFit) -> Fitted:
    """Fit the correlation to the training rows; nothing is chosen."""
    tables = given.tables
    transform, dim = tables.transform("quantile"), tables.dim
    scores: Rows = tables.flow_rows("quantile", "train").cpu().numpy().astype(np.float64)
    started = time.perf_counter()
    correlation = np.corrcoef(scores, rowvar=False).reshape(dim, dim).astype(np.float64)
    lower = np.linalg.cholesky((correlation + RIDGE * np.eye(dim)) / (1 + RIDGE)).astype(np.float64)
    seconds = time.perf_counter() - started

    def draw_scores(num_rows: int) -> Rows:
        drawn = np.random.default_rng(given.seed).standard_normal((num_rows, dim))
        result: Rows = drawn @ lower.T
        return result

    test: Rows = tables.flow_rows("quantile", "test").cpu().numpy().astype(np.float64)
    return Fitted(
        name="gaussian_copula",
        draw=lambda num_rows: transform.inverse(draw_scores(num_rows)),
        earlier=tuple,
        draw_flow_rows=draw_scores,
        transform=transform,
        test_log_density=_log_normal(test, lower) + tables.log_det_jacobian("quantile", "test"),
        facts=FitFacts(
            label_s=0.0,
            fit_s=seconds,
            num_steps=1,
            num_parameters=dim * (dim - 1) // 2,
            num_evaluations=1,
            configuration={"transform": "quantile"},
        ),
    )


def _log_normal(rows: Rows, lower: Rows) -> NDArray[np.float64]:
    """Log density of N(0, L L^T) in nats, shape (num_rows,)."""
    whitened = solve_triangular(lower, rows.T, lower=True)
    constant = np.log(np.diag(lower)).sum() + 0.5 * len(lower) * np.log(2 * np.pi)
    result: NDArray[np.float64] = -0.5 * np.square(whitened).sum(axis=0) - constant
    return result
