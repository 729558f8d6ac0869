"""The table of a comparison: one split, seen through each of the transforms that a peer may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.data import Prepared, Transform

MIN_VALIDATION_ROWS = 200
HELD_BACK_SHARE = 0.1
CPU = torch.device("cpu")

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Tables:
    """One table, prepared once for each transform.

    Where the split leaves fewer than ``MIN_VALIDATION_ROWS`` validation rows, the peers hold back the last
    ``HELD_BACK_SHARE`` of the training rows to choose by, and train on the rest.
    """

    prepared: Mapping[str, Prepared]  # by the kind of transform; the rows are the same in each
    device: torch.device = CPU  # where the peers are fitted

    @property
    def any(self) -> Prepared:
        """The table, where the transform does not matter."""
        return next(iter(self.prepared.values()))

    @property
    def dim(self) -> int:
        """Columns as the flow sees them."""
        return self.any.transform.dim

    def transform(self, kind: str) -> Transform:
        """The map between the user's rows and the flow's."""
        return self.prepared[kind].transform

    @property
    def holds_back(self) -> bool:
        """Whether the validation rows are the last training rows."""
        return len(self.any.validation) < MIN_VALIDATION_ROWS

    def rows(self, part: Part) -> NDArray[np.float64]:
        """A part in the user's units, as peers see it."""
        return self._seen(part, getattr(self.any, self._source(part)))

    def flow_rows(self, kind: str, part: Part) -> Tensor:
        """A part as the flow sees it, dequantized, float32, shape (num_rows, dim)."""
        rows = self._seen(part, self.prepared[kind].flow_rows(self._source(part)))
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.device)

    def log_det_jacobian(self, kind: str, part: Part) -> NDArray[np.float64]:
        """log |d flow row / d user row| of ``flow_rows``, shape (num_rows,)."""
        prepared, source = self.prepared[kind], self._source(part)
        rows = prepared.transform.log_det_jacobian(getattr(prepared, source), noise=prepared.noise(source))
        return self._seen(part, rows)

    def _source(self, part: Part) -> Part:
        return "train" if part == "validation" and self.holds_back else part

    def _seen(self, part: Part, rows: NDArray[np.floating]) -> NDArray:
        if not self.holds_back or part == "test":
            return rows
        held_back = max(1, round(HELD_BACK_SHARE * len(rows)))
        return rows[-held_back:] if part == "validation" else rows[:-held_back]
