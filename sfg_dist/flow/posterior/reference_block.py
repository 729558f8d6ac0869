"""One block of a reference, and what the engines build over it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from sfg_dist.flow.posterior.clusters import Clusters
    from sfg_dist.flow.posterior.cuda.blocks import Blocks
    from sfg_dist.flow.posterior.normals import NormalNodes


class ReferenceBlock:
    """One block of a reference: its centred rows on one device, and what the engines build over them.

    ``keys`` are the rows with their squared norm as one more column, shape (num_rows, dim + 1). Where they were made
    earlier, ``order`` comes from ``clusters.build_order``, ``clusters`` are the clusters themselves, and ``leaves`` the
    rows as ``clusters.make_blocks`` lays them out. ``release`` gives up the memory of a block that is mapped.
    """

    def __init__(
        self,
        keys: Tensor,
        *,
        order: NDArray[np.int64] | None = None,
        clusters: Clusters | None = None,
        leaves: NDArray[np.float32] | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.keys, self.release = keys, release
        self._order = order
        if clusters is not None:
            self.__dict__["clusters"] = clusters
        if leaves is not None:
            self.__dict__["leaves"] = leaves

    @property
    def num_rows(self) -> int:
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
        from sfg_dist.flow.posterior.clusters import build_clusters

        return build_clusters(self._centred(), order=self._order)

    @cached_property
    def normals(self) -> NormalNodes:
        """The nodes of the clusters as normal laws."""
        from sfg_dist.flow.posterior.normals import NormalNodes

        return NormalNodes(self.clusters, done=self.release)

    @property
    def has_clusters(self) -> bool:
        """Whether clusters were built."""
        return "clusters" in self.__dict__

    @cached_property
    def leaves(self) -> NDArray[np.float32]:
        """The centred rows as the compiled dense kernel reads them: those of the clusters where there are some.

        Their order moves the last bits of dense sums, so these differ once clusters were built.
        """
        from sfg_dist.flow.posterior.clusters import make_blocks

        return self.clusters.blocks if self.has_clusters else make_blocks(self._centred())

    @cached_property
    def device_blocks(self) -> Blocks:
        """The centred rows in compact blocks, as the Triton kernels read them."""
        from sfg_dist.flow.posterior.cuda.blocks import make_blocks

        return make_blocks(self.keys[:, :-1].contiguous())

    def _centred(self) -> NDArray[np.float32]:
        return self.keys[:, :-1].to("cpu", torch.float32).numpy()
