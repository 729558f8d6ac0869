"""The test log-likelihood of a run's encoder, and of other densities to compare it with.

    encoder   the density of Generator.log_prob: the encoder's, divided by its mass, and the mixture's beside it
    kernel    the density of the blurred training rows (debiased, if labels are), which is the exact law of the labels
    ode       the same law along the probability-flow ODE, on fewer rows
    normal    a normal law in the flow's coordinates, with the training rows' mean and covariance

All are in nats per unit volume of the user's columns, on held-out rows. A column on a grid counts as spread over its
cells, and a value that repeats as a point with a share of its own. A few rows can decide a mean, so the median stands
beside it, and the rows to which the encoder gives least are named.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.data import Prepared
    from sfg_dist.model.generator import Generator
    from sfg_dist.store import Pairs

MAX_ROWS = 10_000
NUM_COSTLIEST = 5
_PAIRS = 2e8  # pairs of a row and a reference that a figure may sum, over all evaluations
_ODE_EVALUATIONS = 64
_MAX_REFERENCE = 2**20
Method = Literal["kernel", "ode"]


class Figure(TypedDict):
    """A log-likelihood; None where it is not finite, which JSON cannot say."""

    mean: float | None
    median: float | None
    standard_error: float | None
    num_rows: int


class CostlyRow(TypedDict):
    """A held-out row with little density."""

    row: int  # its number in the table, as of ``Prepared.test_places``
    log_density: float | None
    column: str  # the column in which the flow has it farthest out


class EncoderFigure(Figure):
    """The encoder's, with the mass of its density."""

    costliest: list[CostlyRow]

    mass: float
    mass_error: float
    mass_plain: float
    mass_plain_error: float
    mass_established: bool


def likelihood_figures(generator: Generator, prepared: Prepared, pairs: Pairs) -> dict[str, Figure]:
    """The figures by name.

    Args:
        generator: with an encoder.
        prepared: the table, whose test rows are judged.
        pairs: the store that holds the reference. The kernel and ODE densities are left out where the reference has
            more than 2^20 rows, or the labels were made from mini-batches.
    """
    rows, noise = prepared.test[:MAX_ROWS], prepared.noise("test")[:MAX_ROWS]
    volume = prepared.transform.log_det_jacobian(rows, noise=noise)
    flow_rows = prepared.transform.forward(rows, noise=noise).astype(np.float64)
    mass = generator.mass
    assert mass is not None  # it has an encoder
    found = generator.log_density(rows, noise=noise)
    encoder: EncoderFigure = {
        **_figure(found),
        "costliest": _costliest(found, flow_rows, prepared),
        "mass": mass.value,
        "mass_error": mass.standard_error,
        "mass_plain": mass.plain,
        "mass_plain_error": mass.plain_error,
        "mass_established": mass.is_established,
    }
    figures: dict[str, Figure] = {"encoder": encoder}
    num_reference = pairs.num_reference
    if num_reference <= _MAX_REFERENCE and pairs.plan.labels["estimator"] == "full":
        reference = pairs.score_reference.astype(np.float64)
        budgets: dict[Method, float] = {"kernel": num_reference, "ode": num_reference * _ODE_EVALUATIONS}
        for method, row_pairs in budgets.items():
            part = slice(0, min(len(rows), max(20, int(_PAIRS / row_pairs))))
            figures[method] = _figure(_flow_density(flow_rows[part], reference, pairs, method) + volume[part])
    figures["normal"] = _figure(_normal_log_density(flow_rows, pairs) + volume)
    return figures


def _figure(values: NDArray[np.float64]) -> Figure:
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {
        "mean": _number(float(values.mean())),
        "median": _number(float(np.median(values))),
        "standard_error": _number(error),
        "num_rows": len(values),
    }


def _costliest(values: NDArray[np.float64], flow_rows: NDArray[np.float64], prepared: Prepared) -> list[CostlyRow]:
    names = prepared.transform.flow_columns
    return [
        {
            "row": int(prepared.test_places[place]),
            "log_density": _number(float(values[place])),
            "column": names[int(np.abs(flow_rows[place]).argmax())],
        }
        for place in np.argsort(values, kind="stable")[:NUM_COSTLIEST]
    ]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _flow_density(
    rows: NDArray[np.float64], reference: NDArray[np.float64], pairs: Pairs, method: Method
) -> NDArray[np.float64]:
    from sfg_dist.flow import log_density

    values: NDArray[np.float64] = log_density(
        rows,
        reference,
        t_min=pairs.plan.t_min,
        schedule=pairs.plan.labels["schedule"],
        method=method,
        num_evaluations=_ODE_EVALUATIONS,
        sigma_data=pairs.plan.sigma_data,
    ).astype(np.float64)
    return values


def _normal_log_density(rows: NDArray[np.float64], pairs: Pairs) -> NDArray[np.float64]:
    known = pairs.reference_rows(0, min(pairs.num_reference, _MAX_REFERENCE)).astype(np.float64)
    covariance = np.atleast_2d(np.cov(known.T)) + 1e-9 * pairs.plan.sigma_data**2 * np.eye(known.shape[1])
    factor = np.linalg.cholesky(covariance)
    distances = np.square(np.linalg.solve(factor, (rows - known.mean(axis=0)).T)).sum(axis=0)
    values: NDArray[np.float64] = (
        -0.5 * distances - np.log(np.diag(factor)).sum() - 0.5 * known.shape[1] * math.log(2 * math.pi)
    )
    return values
