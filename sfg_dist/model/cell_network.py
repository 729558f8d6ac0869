"""The network of a mixed table: it draws a cell of each column in turn, given the latent and the cells before it.

    s_1 = A h(u) + B u + b,    logits of column k = V_k act(W_k norm_k(s_k) + b_k),    s_(k+1) = s_k + E_k[c_k]

h is the trunk, as that of ``MLP``, u the latent and what goes with it, c_k the cell of column k (``data/cells.py``).
A latent does not tell a small network which side of a boundary between two categories its label lies on. The mean of
both, which squared error gives, is no category; and cells that columns choose apart do not agree with each other. So
the network fits the law of a label's cells given its latent, by cross-entropy, one column given those before it.

A cell is drawn by the inverse of its distribution function at a number that is part of the input, so a row is still
one pass and a function of its inputs. What is left of that number is the place within the cell.

References:
    Larochelle, Murray 2011, The neural autoregressive distribution estimator (the running sum s).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.mlp import ACTIVATIONS, DEFAULT_SHAPE, MLP, Shape, hidden_layers

_STATE, _INNER = 128, 64
_EMBEDDING_SPREAD = 0.5
_LEAST_SHARE = 1e-9
EDGE = 2.0**-10  # the place within a cell keeps off its ends


class CellNetwork(nn.Module):
    """A network from latents, and what goes with them, to labels in normal scores, cell by cell.

    The skip is a learned linear map of the input to where the cells begin.

    Args:
        dim: columns of a latent and of a label.
        cells: number of cells of each column.
        shape: of the trunk, what differs from ``DEFAULT_SHAPE``.

    The input ends in ``dim`` further N(0, 1) columns (``num_noise``), by which cells are drawn.
    """

    edges: Tensor

    def __init__(self, dim: int, *, cells: Sequence[int], **shape: Unpack[Shape]) -> None:
        super().__init__()
        whole = DEFAULT_SHAPE | shape
        self.dim, self.cells = dim, tuple(cells)
        if len(self.cells) != dim:
            raise ValueError(f"cells has {len(self.cells)} numbers for {dim} columns")
        self.num_conditions, self.num_noise = whole["num_conditions"], dim
        num_given = dim + self.num_conditions
        self.num_inputs = num_given + self.num_noise
        self.shape: Mapping[str, object] = {"cells": list(self.cells), **whole}
        self.hidden = hidden_layers(num_given, whole)
        self.start = nn.Linear(whole["width"], _STATE)
        self.skip = nn.Linear(num_given, _STATE, bias=False) if whole["linear_skip"] else None
        # The last column's cells have nothing after them; a parameter that no loss reaches would stop two workers.
        self.embed = nn.Embedding(sum(self.cells[:-1]), _STATE) if dim > 1 else None
        self.norms = nn.ModuleList(nn.LayerNorm(_STATE) for _ in self.cells)
        self.inner = nn.ModuleList(nn.Linear(_STATE, _INNER) for _ in self.cells)
        lasts = [nn.Linear(_INNER, size) for size in self.cells]
        self.logits = nn.ModuleList(lasts)
        self.activation = ACTIVATIONS[whole["activation"]]()
        if not self.start.weight.is_meta:
            if self.embed is not None:
                nn.init.normal_(self.embed.weight, std=_EMBEDDING_SPREAD)
            for last in lasts:
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        # probabilities between the cells of each column, one column's after the other's
        self.register_buffer("edges", torch.zeros(sum(self.cells) - dim, dtype=torch.float64))
        self._firsts = np.concatenate([[0], np.cumsum(self.cells)]).tolist()

    @classmethod
    def of_edges(cls, edges: Sequence[NDArray[np.float64]], **shape: Unpack[Shape]) -> CellNetwork:
        """A new network for columns whose cells have these probabilities between them (``data.cells.cell_edges``)."""
        network = cls(len(edges), cells=[len(some) + 1 for some in edges], **shape)
        network.edges.copy_(torch.from_numpy(np.concatenate(edges)))
        with torch.no_grad():  # each cell has its share from the first step on
            for last, some in zip(network.logits, edges, strict=True):
                assert isinstance(last, nn.Linear)
                shares = np.diff(some, prepend=0.0, append=1.0).clip(_LEAST_SHARE)
                last.bias.copy_(torch.from_numpy(np.log(shares)))
        return network

    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Labels of inputs, shape (num_rows, num_inputs) in and (num_rows, dim) out.

        With ``targets``, labels of shape (num_rows, dim), the cross-entropy of their cells instead, the mean over
        columns, shape (num_rows,); the inputs' noise is then not used and may be left out.
        """
        given = inputs[:, : self.dim + self.num_conditions]
        state = self.start(self.hidden(given))
        if self.skip is not None:
            state += self.skip(given)
        if targets is None:
            return self._drawn(state, inputs[:, self.dim + self.num_conditions :])
        return self._cross_entropy(state, targets)

    def _cross_entropy(self, state: Tensor, targets: Tensor) -> Tensor:
        cells = self.cells_of(targets)
        total = torch.zeros(len(targets), device=targets.device)
        for column, cell in enumerate(cells.unbind(1)):
            total = total + F.cross_entropy(self._logits(column, state).float(), cell, reduction="none")
            state = self._after(column, cell, state)
        return total / self.dim

    def _drawn(self, state: Tensor, noise: Tensor) -> Tensor:
        shares = torch.special.ndtr(noise.double()).float().clamp_(min=torch.finfo(torch.float32).tiny)
        cells = torch.empty(shares.shape, dtype=torch.int64, device=shares.device)
        within = torch.empty_like(shares)
        for column in range(self.dim):
            logits = self._logits(column, state).float()
            above = logits.sub_(logits.amax(1, keepdim=True)).exp_().cumsum_(1)
            share = shares[:, column, None] * above[:, -1:]
            cell = torch.searchsorted(above, share).clamp_(max=self.cells[column] - 1)
            upper = above.gather(1, cell)
            lower = torch.where(cell > 0, above.gather(1, (cell - 1).clamp_(min=0)), 0.0)
            within[:, column, None] = ((share - lower) / (upper - lower)).clamp_(EDGE, 1 - EDGE)
            cells[:, column, None] = cell
            state = self._after(column, cell[:, 0], state)
        ends = [self.ends_of(column) for column in range(self.dim)]
        starts, widths = torch.cat([some[:-1] for some in ends]), torch.cat([some.diff() for some in ends])
        cells += torch.tensor(self._firsts[:-1], device=cells.device)
        return torch.special.ndtri(starts[cells] + within * widths[cells]).float()

    def _after(self, column: int, cell: Tensor, state: Tensor) -> Tensor:
        """The running sum after a column's cells, for the columns behind it."""
        if self.embed is None or column == self.dim - 1:
            return state
        added: Tensor = self.embed(cell + self._firsts[column])
        return added.add_(state)

    def _logits(self, column: int, state: Tensor) -> Tensor:
        inner = self.inner[column](self.norms[column](state))
        logits: Tensor = self.logits[column](self.activation(inner))
        return logits

    def cells_of(self, labels: Tensor) -> Tensor:
        """The cell of each label, int64, shape (num_rows, dim) in and out."""
        places = torch.special.ndtr(labels.double())
        columns = [
            torch.searchsorted(self.ends_of(column)[1:-1], places[:, column].contiguous(), right=True)
            for column in range(self.dim)
        ]
        return torch.stack(columns, dim=1)

    def ends_of(self, column: int) -> Tensor:
        """The probabilities at which a column's cells begin and end, from 0 to 1, shape (number of cells + 1,)."""
        inner = self.edges[self._firsts[column] - column : self._firsts[column + 1] - column - 1]
        return F.pad(F.pad(inner, (1, 0)), (0, 1), value=1.0)

    @property
    def has_ascending_edges(self) -> bool:
        """Whether each column's edges ascend strictly within (0, 1)."""
        return all(bool((self.ends_of(column).diff() > 0).all()) for column in range(self.dim))

    @property
    def num_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())


Network = MLP | ExpertNetwork | CellNetwork
"""The network of a generator: labels of a continuous table, from one network or experts, or a mixed one's by cells."""
