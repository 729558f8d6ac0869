"""The units in which networks are fitted: those of the flow, for stores whose rows have another spread than 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sfg_dist.data import Transform
    from sfg_dist.store import Pairs

_MOST_ROWS = 1 << 16


@dataclass(frozen=True)
class Units:
    """Where the columns of a store's labels lie and how large they are; conditions have a size of their own.

    Attributes:
        location: of each column, shape (dim,).
        scale: > 0, shape (dim,).
    """

    location: NDArray[np.float64]
    scale: NDArray[np.float64]

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of the store in these units, shape (num_rows, dim) in and out."""
        return ((rows - self.location) / self.scale).astype(np.float32)

    def transform(self, transform: Transform) -> Transform:
        """Between the user's rows and rows in these units, of the store's own transform of kind "none"."""
        return replace(transform, kind="standardize", location=self.location, scale=self.scale)


def units_of(pairs: Pairs) -> Units | None:
    """The units of a store; None where a transform gave its rows spread 1, or it was begun without sigma_data."""
    plan = pairs.plan
    if "sigma_data" not in plan.identity:
        return None
    rows = pairs.reference_rows(0, min(pairs.num_reference, _MOST_ROWS)).astype(np.float64)
    scale = np.full(plan.dim, plan.sigma_data)
    if plan.condition:
        spreads = rows[:, -len(plan.condition) :].std(axis=0)
        scale[-len(plan.condition) :] = np.where(spreads > 0, spreads, 1.0)
    return Units(rows.mean(axis=0), scale)
