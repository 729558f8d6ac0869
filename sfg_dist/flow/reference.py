"""The data behind the score, prepared once: centred, on one device, with what the engines build over them.

Rounding: a logit's float32 error is about 6e-8 |z| |x| alpha / beta^2, so the reference is centred first.
"""

from __future__ import annotations

import hashlib
import threading
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from sfg_dist.flow.clusters import Clusters
    from sfg_dist.flow.fitted_grid import FittedGrid
    from sfg_dist.flow.triton_blocks import Blocks

Rows: TypeAlias = Tensor | NDArray[np.floating]

LARGEST = 1e8  # of centred coordinates in float32


class Reference:
    """The data behind the score: a reference set, centred once and kept on one device.

    Args:
        rows: samples of the data, shape (num_reference, dim), a tensor or a numpy array, finite.
        device: where the work is done; the rows' own device by default.
        dtype: torch.float32 (default) or torch.float64, the precision of all arithmetic.
        order: the clusters' ordering of these rows, from ``clusters.build_order``, where it was made earlier.

    Attributes:
        center: mean of the rows, shape (dim,), float64 on the CPU.
        keys: centred rows with their squared norm as one more column, shape (num_reference, dim + 1).
        fitted_grids: time grids that were fitted to these rows, by the settings of their labels.

    Raises:
        ValueError: the rows are not a finite, non-empty table.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        order: NDArray[np.int64] | None = None,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        table = to_tensor(rows)
        if table.ndim != 2 or 0 in table.shape:
            raise ValueError(f"the reference must be a non-empty table of rows, got shape {tuple(table.shape)}")
        if not table.is_floating_point():
            table = table.to(torch.float32)
        finite = torch.isfinite(table).all(dim=1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0, 0])
            raise ValueError(f"the reference is not finite: row {bad} holds {table[bad].tolist()}")
        device = table.device if device is None else torch.device(device)
        table = table.to(device=device, dtype=torch.float64)
        center = table.mean(dim=0)
        centred = (table - center).to(dtype)
        # The norm is taken of the rounded rows, so that key and norm belong to the same point.
        norm_sq = centred.double().square().sum(dim=1, keepdim=True).to(dtype)
        if dtype == torch.float32 and float(centred.abs().max()) > LARGEST:
            raise ValueError(
                f"the reference reaches {float(centred.abs().max()):.3g} from its mean, and float32 serves up to "
                f"{LARGEST:g}: rescale its columns"
            )
        self.center = center.cpu()
        self.keys = torch.cat([centred, norm_sq], dim=1).contiguous()
        self.fitted_grids: dict[tuple[object, ...], FittedGrid] = {}
        self._order = order

    @property
    def num_reference(self) -> int:
        """Number of rows."""
        return self.keys.shape[0]

    @property
    def dim(self) -> int:
        """Number of columns."""
        return self.keys.shape[1] - 1

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.keys.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the arithmetic."""
        return self.keys.dtype

    @cached_property
    def largest_square(self) -> float:
        """The largest |x|^2 of the centred rows."""
        return float(self.keys[:, -1].max())

    @cached_property
    def clusters(self) -> Clusters:
        """Compact clusters of the centred rows and their moments, built when first asked for (float32, on the CPU)."""
        from sfg_dist.flow.clusters import build_clusters

        return build_clusters(self._centred(), order=self._order)

    @cached_property
    def blocks(self) -> NDArray[np.float32]:
        """The centred rows as the compiled dense kernel reads them: those of the clusters where there are some.

        Their order moves the last bits of dense sums, so these differ once clusters were built.
        """
        from sfg_dist.flow.clusters import make_blocks

        return self.clusters.blocks if "clusters" in self.__dict__ else make_blocks(self._centred())

    @cached_property
    def device_blocks(self) -> Blocks:
        """The centred rows in compact blocks, as the Triton kernels read them."""
        from sfg_dist.flow.triton_blocks import make_blocks

        return make_blocks(self.keys[:, :-1].contiguous())

    def _centred(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.keys[:, :-1].to("cpu", torch.float32).numpy())

    def subset(self, index: Tensor | NDArray[np.integer]) -> Reference:
        """A reference of the rows at ``index``, centred about its own mean."""
        rows = self.keys[torch.as_tensor(index, device=self.device), :-1].double()
        return Reference(rows + self.center.to(self.device), dtype=self.dtype)


def to_tensor(rows: Rows) -> Tensor:
    """Rows as a tensor without history; numpy arrays that torch cannot share, read-only or strided, are copied."""
    if isinstance(rows, Tensor):
        return rows.detach()
    array = np.require(rows, requirements=["C", "W"])
    if array.dtype.kind not in "fiub":
        raise ValueError(f"expected a table of numbers, got an array of {array.dtype}")
    return torch.from_numpy(array)


def as_reference(reference: Rows | Reference, like: Tensor, dtype: torch.dtype) -> Reference:
    """``reference`` as a Reference on the device of ``like``; a prepared one is taken as it stands.

    What was built over other rows is found again by their content, for the last few references.
    """
    if isinstance(reference, Reference):
        if reference.device != like.device:
            raise ValueError(f"the reference is on {reference.device}, the rows are on {like.device}")
        return reference
    table = to_tensor(reference)
    content = hashlib.blake2b(table.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
    key = (content, tuple(table.shape), table.dtype, like.device, dtype)
    with _kept_lock:
        if (kept := _kept.pop(key, None)) is None:
            kept = Reference(table, device=like.device, dtype=dtype)
        _kept[key] = kept  # last in the order of use
        while len(_kept) > _NUM_KEPT:
            del _kept[next(iter(_kept))]
    return kept


_NUM_KEPT = 4
_kept: dict[tuple[object, ...], Reference] = {}
_kept_lock = threading.Lock()
