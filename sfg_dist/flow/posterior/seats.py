"""Which rows are evaluated together, so that a row's last bits do not depend on the others.

The last bits of a row's matrix product depend on its place within a register block (measured: 4 places on AVX2), and on
nothing else of the batch. So rows that are picked out of a batch keep their place modulo ``LANES``, and batches are
multiples of ``MULTIPLE``.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES, MULTIPLE = 16, 64


def seats(active: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to evaluate together, each at its own place modulo LANES, of the ``active`` ones among a multiple of LANES.

    Returns:
        The row number in each seat, shape (num_seats,), a multiple of MULTIPLE; and which seats are real, bool. The
        others are filled with a copy of some row.
    """
    lanes = active.reshape(-1, LANES)
    rank = lanes.cumsum(dim=0) - 1
    depth = int(lanes.sum(dim=0).max())
    per_batch = MULTIPLE // LANES
    depth = -(-depth // per_batch) * per_batch
    index = torch.arange(len(active), device=active.device).reshape(lanes.shape)
    rows = torch.full((depth, LANES), -1, dtype=torch.int64, device=active.device)
    column = torch.arange(LANES, device=active.device).expand(lanes.shape)
    rows[rank[lanes], column[lanes]] = index[lanes]
    rows = rows.reshape(-1)
    real = rows >= 0
    filler = active.nonzero()[:1].reshape(-1)
    return (torch.where(real, rows, filler), real) if len(filler) else (filler, filler.bool())
