"""The coordinates in which networks are fitted: columns of mean about 0 and spread about 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sfg_dist.data import Transform
    from sfg_dist.store import Pairs

_MAX_ROWS = 1 << 16


@dataclass(frozen=True)
class Scaling:
    """Location and scale of each column."""

    location: NDArray[np.float64]  # shape (dim,)
    scale: NDArray[np.float64]  # > 0, shape (dim,)

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scaled rows, shape (num_rows, dim) in and out."""
        return ((rows - self.location) / self.scale).astype(np.float32)

    def transform(self, transform: Transform) -> Transform:
        """The store's own transform of kind "none", which now ends in scaled rows."""
        return replace(transform, kind="standardize", location=self.location, scale=self.scale)

    def of_last(self, num_columns: int) -> Scaling:
        """The same for the last columns; the others are left as they are."""
        location, scale = np.zeros_like(self.location), np.ones_like(self.scale)
        location[-num_columns:], scale[-num_columns:] = self.location[-num_columns:], self.scale[-num_columns:]
        return Scaling(location, scale)


def scaling_of(pairs: Pairs) -> Scaling | None:
    """The scaling of a store's labels.

    None where a transform gave its rows spread 1 already, and for stores of versions that did not scale.
    """
    plan = pairs.plan
    if "sigma_data" not in plan.identity:
        return None
    rows = pairs.reference_rows(0, min(pairs.num_reference, _MAX_ROWS)).astype(np.float64)
    scale = np.full(plan.dim, plan.sigma_data)
    if plan.condition:
        spreads = rows[:, -len(plan.condition) :].std(axis=0)
        scale[-len(plan.condition) :] = np.where(spreads > 0, spreads, 1.0)
    return Scaling(rows.mean(axis=0), scale)


def scaled_reference(pairs: Pairs) -> NDArray[np.float32]:
    """Up to 65,536 rows of a store's reference in the coordinates in which its networks are fitted."""
    rows, scaling = pairs.reference_rows(0, min(pairs.num_reference, _MAX_ROWS)), scaling_of(pairs)
    return rows if scaling is None else scaling(rows)
