"""A network of experts: a gate names one of them by the latent, and that one alone gives the label.

    x = f_k(u),    k = argmax_j (g_j(u) + o_j)

u is the latent and what goes with it, each f_k a network as ``MLP``, g a small network, the gate, and o offsets. Labels
have cliffs: latents on their two sides lie close, and their labels lie far apart. One smooth network has to bridge a
cliff, and experts need not.

Regions of labels are found before the fit. A balanced binary tree cuts the rows of the reference at their median along
their leading principal axis, node by node. In the fit an expert has the rows whose label lies in its region, by squared
error, and the gate learns that region by cross-entropy. The offsets give each region its share of samples.

References:
    Jacobs, Jordan, Nowlan, Hinton 1991, Adaptive mixtures of local experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sfg_dist.job.plan import Stream, normal_rows
from sfg_dist.model.mlp import ACTIVATIONS, DEFAULT_SHAPE, MLP, Shape, predict

TILE_ROWS = 32
"""Rows of one expert that go through one matrix product. Its size does not depend on the rows beside a row."""
INPUT_STEP = 8
"""The number of inputs of such a product is rounded up to a multiple of this. Else some products (MKL on AVX2, with
fewer than 12 outputs and no multiple of 4 inputs) give a row other bits at another place in its tile."""
NUM_SHARE_ROWS = 50_000
_GATE_WIDTH = 128
_SKIP = 0.3  # a region has only a part of the spread of all labels
_SHARE_ROUNDS, _SHARE_STEP, _LEAST_SHARE = 200, 0.5, 1e-5
_OF_EXPERTS = ("hidden", "out", "skip")


class _Linear(nn.Module):
    """One linear map for each expert, (num_groups, num_rows, num_inputs) to (num_groups, num_rows, num_outputs).

    ``chosen`` names the expert of each group; None is each expert once, in order.
    """

    def __init__(self, experts: int, num_inputs: int, num_outputs: int, *, is_zero: bool = False) -> None:
        super().__init__()
        bound = 0.0 if is_zero else num_inputs**-0.5
        self.weight = nn.Parameter(torch.empty(experts, num_outputs, num_inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(experts, num_outputs))

    def forward(self, h: Tensor, chosen: Tensor | None) -> Tensor:
        weight, bias = _of_groups(self, chosen)
        if chosen is not None and (lacking := -h.shape[-1] % INPUT_STEP):
            h, weight = F.pad(h, (0, lacking)), F.pad(weight, (0, lacking))
        return torch.baddbmm(bias[:, None], h, weight.mT)


class _Norm(nn.Module):
    """Layer normalisation with a scale and a shift of each expert."""

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(experts, width))
        self.bias = nn.Parameter(torch.zeros(experts, width))

    def forward(self, h: Tensor, chosen: Tensor | None) -> Tensor:
        weight, bias = _of_groups(self, chosen)
        return F.layer_norm(h, h.shape[-1:]) * weight[:, None] + bias[:, None]


class _ResidualBlock(nn.Module):
    """``ResidualBlock`` of each expert."""

    def __init__(self, experts: int, width: int, activation: str) -> None:
        super().__init__()
        self.norm = _Norm(experts, width)
        self.expand = _Linear(experts, width, width)
        self.activation = ACTIVATIONS[activation]()
        self.project = _Linear(experts, width, width, is_zero=True)

    def forward(self, h: Tensor, chosen: Tensor | None) -> Tensor:
        inner = self.activation(self.expand(self.norm(h, chosen), chosen))
        change: Tensor = self.project(inner, chosen)
        return change.add_(h)


def _of_groups(layer: _Linear | _Norm, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
    if chosen is None:
        return layer.weight, layer.bias
    return layer.weight[chosen], layer.bias[chosen]


class ExpertNetwork(nn.Module):
    """Experts from latents, and what goes with them, to labels, and the gate that picks one of them a row.

    The parameters of all experts lie in one tensor a layer, of shape (experts, ...), under the names of ``MLP``'s.

    Args:
        dim: columns of a latent and of a label.
        experts: number of experts, a power of two.
        shape: of each expert, what differs from ``DEFAULT_SHAPE``; its blocks are residual.
    """

    directions: Tensor  # of the nodes of the tree, those of a node k in front of 2k + 1 and 2k + 2, (experts - 1, dim)
    thresholds: Tensor  # above which a label goes to the second of them, shape (experts - 1,)
    offsets: Tensor  # of the gate's logits, shape (experts,)

    def __init__(self, dim: int, *, experts: int, **shape: Unpack[Shape]) -> None:
        super().__init__()
        whole = DEFAULT_SHAPE | shape
        if whole["block"] != "residual":
            raise ValueError(f"experts are of residual blocks, not of block = {whole['block']!r}")
        self.dim, self.experts = dim, experts
        self.num_conditions, self.num_noise = whole["num_conditions"], 0
        self.num_inputs = dim + self.num_conditions
        self._expert_shape = whole
        self.shape: Mapping[str, object] = {"experts": experts, **whole}
        width, activation = whole["width"], whole["activation"]
        self.hidden = nn.ModuleList(
            [
                _Linear(experts, self.num_inputs, width),
                *(_ResidualBlock(experts, width, activation) for _ in range(whole["depth"])),
                _Norm(experts, width),
            ]
        )
        self.out = _Linear(experts, width, dim, is_zero=whole["linear_skip"])
        self.skip = _Linear(experts, self.num_inputs, dim, is_zero=True) if whole["linear_skip"] else None
        if self.skip is not None and not self.skip.weight.is_meta:
            with torch.no_grad():
                self.skip.weight.diagonal(dim1=1, dim2=2).fill_(_SKIP)
        kind = ACTIVATIONS[activation]
        self.gate = nn.Sequential(
            nn.Linear(self.num_inputs, _GATE_WIDTH),
            kind(),
            nn.Linear(_GATE_WIDTH, _GATE_WIDTH),
            kind(),
            nn.Linear(_GATE_WIDTH, experts),
        )
        self.register_buffer("directions", torch.zeros(experts - 1, dim))
        self.register_buffer("thresholds", torch.zeros(experts - 1))
        self.register_buffer("offsets", torch.zeros(experts))

    @classmethod
    def of_reference(
        cls, reference: NDArray[np.float32], dim: int, *, experts: int, **shape: Unpack[Shape]
    ) -> ExpertNetwork:
        """A new network with the regions of a reference, in the coordinates of its targets.

        ``reference`` has shape (num_reference, dim or more); further columns are conditions. Each cut is at the median,
        or where many rows are equal along the axis, above them.
        """
        network = cls(dim, experts=experts, **shape)
        parts = [torch.from_numpy(np.ascontiguousarray(reference[:, :dim], np.float64))]
        means = parts[0].new_zeros(2 * experts - 1, dim)
        for node in range(experts - 1):
            part = parts[node]
            axis, threshold = _cut(part)
            network.directions[node], network.thresholds[node] = axis, threshold
            is_second = part @ axis > threshold
            for child, inner in ((2 * node + 1, part[~is_second]), (2 * node + 2, part[is_second])):
                means[child] = inner.mean(0) if len(inner) else means[node]
                parts.append(inner)
        with torch.no_grad():
            network.out.bias.copy_(means[experts - 1 :])
        return network

    def match_shares(self, reference: NDArray[np.float32], *, seed: int) -> None:
        """Set the offsets so that of draws with this seed each region has the share that it has of the reference.

        ``reference`` has shape (num_reference, dim + num_conditions); draws take its conditions in turn.
        """
        device = self.offsets.device
        labels = torch.from_numpy(np.ascontiguousarray(reference[:, : self.dim])).to(device)
        shares = torch.bincount(self.region_of(labels), minlength=self.experts).double() / len(labels)
        inputs = np.concatenate(
            [
                normal_rows(seed, Stream.GATE, 0, NUM_SHARE_ROWS, self.dim),
                np.resize(reference[:, self.dim :], (NUM_SHARE_ROWS, self.num_conditions)).astype(np.float32),
            ],
            axis=1,
        )
        said = predict(self.gate, torch.from_numpy(inputs).to(device)).float()
        offsets = torch.zeros_like(self.offsets, dtype=torch.float64)
        for left in range(_SHARE_ROUNDS, 0, -1):
            found = torch.bincount((said + offsets.float()).argmax(1), minlength=self.experts).double() / NUM_SHARE_ROWS
            step = _SHARE_STEP * left / _SHARE_ROUNDS
            offsets += step * (shares.clamp(min=_LEAST_SHARE).log() - found.clamp(min=_LEAST_SHARE).log())
        self.offsets.copy_(offsets)

    def region_of(self, labels: Tensor) -> Tensor:
        """The region of each label, int64, shape (num_rows, dim) in and (num_rows,) out."""
        node = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
        for _ in range(self.experts.bit_length() - 1):
            is_second = (labels * self.directions[node]).sum(1) > self.thresholds[node]
            node = 2 * node + 1 + is_second.long()
        return node - (self.experts - 1)

    def logits(self, inputs: Tensor) -> Tensor:
        """What the gate says of each expert, with the offsets, float32, shape (num_rows, experts)."""
        said: Tensor = self.gate(inputs)
        return said.float() + self.offsets

    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Labels of inputs, shape (num_rows, num_inputs) in and (num_rows, dim) out.

        With ``targets``, labels of shape (num_rows, dim), the loss instead, shape (num_rows,): the mean over columns of
        the squared error of the expert of the label's region, and the cross-entropy of the gate. The two share no
        parameter.
        """
        if targets is None:
            return self._of_experts(inputs, self.logits(inputs).argmax(1), TILE_ROWS)
        region = self.region_of(targets)
        errors = (self._of_experts(inputs, region).float() - targets).square().mean(1)
        return errors + F.cross_entropy(self.gate(inputs).float(), region, reduction="none")

    def _of_experts(self, inputs: Tensor, region: Tensor, tile_rows: int | None = None) -> Tensor:
        """The label of each row by the expert of its region.

        Rows go through in tiles of so many rows of one expert, filled up with zeros; None is one tile for each expert,
        as large as the largest needs.
        """
        counts = torch.bincount(region, minlength=self.experts)
        if tile_rows is None:
            tile_rows, tiles, chosen = max(1, int(counts.max())), torch.ones_like(counts), None
        else:
            tiles = (counts + tile_rows - 1) // tile_rows
            chosen = torch.arange(self.experts, device=region.device).repeat_interleave(tiles)
        num_tiles, order = int(tiles.sum()), region.argsort(stable=True)
        # From the place of a row among all rows, in the order of regions, to its slot among those of the tiles.
        moved = (tiles.cumsum(0) - tiles) * tile_rows - (counts.cumsum(0) - counts)
        slots = torch.empty_like(order)
        slots[order] = moved[region[order]] + torch.arange(len(order), device=region.device)
        filled = inputs.new_zeros(num_tiles * tile_rows, self.num_inputs).index_copy_(0, slots, inputs)
        given = filled.view(num_tiles, tile_rows, self.num_inputs)
        h = given
        for layer in self.hidden:
            h = layer(h, chosen)
        x: Tensor = self.out(h, chosen)
        if self.skip is not None:
            x = x + self.skip(given, chosen)
        return x.flatten(0, 1).index_select(0, slots)

    def expert(self, index: int) -> MLP:
        """One expert as a network of its own, with copies of its parameters."""
        with torch.device("meta"):  # which draws no random numbers
            network = MLP(self.dim, **self._expert_shape)
        parameters = {name: value for name, value in self.state_dict().items() if name.partition(".")[0] in _OF_EXPERTS}
        network.load_state_dict({name: value[index].clone() for name, value in parameters.items()}, assign=True)
        return network.eval()

    @property
    def num_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())


def _cut(rows: Tensor) -> tuple[Tensor, float]:
    """The leading principal axis of rows and a threshold that cuts them in two halves along it, float64."""
    dim = rows.shape[1]
    if len(rows) < 2:
        return torch.eye(dim, dtype=rows.dtype)[0], float(rows[:, 0].sum())
    axis = torch.linalg.eigh(torch.atleast_2d(rows.T.cov()))[1][:, -1]
    axis = axis * axis[axis.abs().argmax()].sign()
    places = rows @ axis
    middle = places.median()
    above = places[places > middle]
    # Halfway to the next row, which no rounding moves to the other side.
    return axis, float((middle + above.min()) / 2 if len(above) else middle)
