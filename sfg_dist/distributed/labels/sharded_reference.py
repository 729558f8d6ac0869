"""A reference sharded over the actors of a group: each holds some of its blocks, the leader merges their answers.

With a tolerance, an evaluation takes two rounds. In the first each member finds a near row of its own. The nearest of
all is every member's anchor, so that a member whose rows are all far leaves them out at almost no cost. In the second
round each member sums within half of the tolerance: relative to its own mass or, where that is less, to its share 1 / P
of the mass that is certain to be there. Together that is within the tolerance of the whole mass. Errors of mass refer
to each member's own mean and are moved to the merged one, as in ``flow.posterior.cpu.blocks``, so the merged bound is
certified. Rows that miss it are asked for again with lower aims, and at last with every row summed. Without a tolerance
there is one round.

Only numpy arrays and plain objects cross between processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.distributed.labels.references import StoredReference, base_bytes, reference_memory
from sfg_dist.distributed.machine import default_device
from sfg_dist.flow import PosteriorMoments, PreparedReference, posterior_moments
from sfg_dist.flow.posterior.cpu.blocks import AIMS, RunningSums
from sfg_dist.flow.posterior.cpu.engine import queries_of
from sfg_dist.flow.posterior.cpu.leaf_sums import HUGE
from sfg_dist.flow.posterior.cpu.traversal import LEAST_MASS, nearest_rows
from sfg_dist.flow.posterior.merging import Merger
from sfg_dist.flow.posterior.moments import Request
from sfg_dist.flow.posterior.posterior import dense_within
from sfg_dist.flow.posterior.reference import block_ranges, centred_keys
from sfg_dist.flow.posterior.reference_block import ReferenceBlock
from sfg_dist.job.errors import LabelingError
from sfg_dist.job.words import GIB
from sfg_dist.store import open_pairs

Part = dict[str, NDArray[Any]]
"""What a member adds: "anchors", "sums", "side", "mean" and "pairs" of each row, as in ``RunningSums``."""


def part_ranges(num_reference: int, part: int, num_parts: int) -> list[tuple[int, int]]:
    """Rows of one part: every num_parts-th block, or where there are fewer blocks than parts, one run of rows.

    Raises:
        ValueError: there is no such part, or there are fewer rows than parts.
    """
    if not 0 <= part < num_parts <= num_reference:
        raise ValueError(f"part {part} of {num_parts} of {num_reference} rows: parts count from 0, with a row at least")
    blocks = block_ranges(num_reference)
    if len(blocks) >= num_parts:
        return blocks[part::num_parts]
    return [(num_reference * part // num_parts, num_reference * (part + 1) // num_parts)]


class PartReference(PreparedReference):
    """Some blocks of a reference, in memory, about the centre of all of it and over its scale."""

    def __init__(self, blocks: list[ReferenceBlock], center: Tensor, scale: float, device: torch.device) -> None:
        super().__init__(scale)
        self._blocks = blocks
        self.center, self.device, self.dtype = center, device, torch.float32
        self.num_reference = sum(block.num_rows for block in blocks)

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    def blocks(self) -> Iterator[ReferenceBlock]:
        """The blocks in order."""
        return iter(self._blocks)

    def take(self, index: NDArray[np.integer]) -> Tensor:
        """Rows by their place in this part, in the reference's own coordinates, float64 on the CPU."""
        keys = torch.cat([block.keys[:, :-1].cpu() for block in self._blocks])
        return self.scale * keys[torch.as_tensor(index)].double() + self.center


class ReferenceMember:
    """One part of a store's reference, and what it adds to the posterior; an actor's class.

    Args:
        url: the store.
        part: which one, from 0 on.
        num_parts: members of the group.
        num_threads: CPU threads.
        device: where the sums are made; the GPU when there is one.
        memory_gib: memory that this process may hold resident, in GiB.

    Raises:
        LabelingError: the part does not fit in the memory.
        StoreError: the store's reference is damaged.
    """

    def __init__(
        self,
        url: str,
        part: int,
        num_parts: int,
        *,
        num_threads: int = 1,
        device: torch.device | None = None,
        memory_gib: float | None = None,
    ) -> None:
        stored = StoredReference(open_pairs(url))
        ranges = part_ranges(stored.num_reference, part, num_parts)
        self.device = device or default_device()
        if memory_gib is not None and self.device.type == "cpu":
            _check_memory(stored, ranges, memory_gib, num_parts)
        torch.set_num_threads(num_threads)
        center = stored.center()
        is_whole = set(ranges) <= set(block_ranges(stored.num_reference))
        blocks = [
            ReferenceBlock(
                centred_keys(
                    torch.from_numpy(stored.rows(start, stop)).to(self.device), center, torch.float32, stored.scale
                ),
                order=stored.order(start, stop) if is_whole else None,
            )
            for start, stop in ranges
        ]
        self.reference = PartReference(blocks, center, stored.scale, self.device)

    def kind(self) -> str:
        """Where the sums are made, "cpu" or "cuda"."""
        return self.device.type

    def nearest(self, z_t: NDArray, alpha: NDArray, beta_sq: NDArray) -> NDArray[np.float32]:
        """Squared distance of a near row to each x~ = z / alpha, shape (num_rows,); HUGE where none was found."""
        queries = queries_of(_request(z_t, alpha, beta_sq))
        anchors = np.full(len(z_t), HUGE, np.float32)
        for block in self.reference.blocks():
            clusters = block.clusters
            found = anchors[queries.rows]
            nearest_rows(
                queries.x[queries.rows], clusters.offsets, clusters.sizes, clusters.bounds.reshape(-1),
                clusters.blocks.reshape(-1), found,
            )  # fmt: skip
            anchors[queries.rows] = found
        return anchors

    def partial(
        self, z_t: NDArray, alpha: NDArray, beta_sq: NDArray, aim: float, anchors: NDArray, unit: float
    ) -> Part:
        """This part's sums within ``aim``; all rows must be within reach.

        Args:
            z_t: noisy states of the centred data of spread 1, float32, shape (num_rows, dim).
            alpha: shape (num_rows,).
            beta_sq: shape (num_rows,).
            aim: of the error, relative to this part's mass or ``unit``, whichever is larger.
            anchors: the nearest squared distances that are known, shape (num_rows,).
            unit: this part's share of the mass that is certain to be there.
        """
        request = _request(z_t, alpha, beta_sq)
        queries = queries_of(request)
        running = RunningSums(queries, queries.rows, anchors=anchors[queries.rows], unit=unit)
        running.add(self.reference.blocks(), self.reference.num_blocks, aim, dense_within(request))
        return {
            "anchors": running.carried.anchors,
            "sums": running.carried.sums,
            "side": running.carried.side,
            "mean": running.mean,
            "pairs": running.work[:, 0],
        }

    def dense(self, z_t: NDArray, alpha: NDArray, beta_sq: NDArray) -> tuple[NDArray, NDArray]:
        """Mean and log kernel sum of each row over all of this part, float64."""
        z, alpha_row, beta_sq_row = (value.to(self.device) for value in _request(z_t, alpha, beta_sq)[:3])
        moments = posterior_moments(
            z, self.reference, alpha=alpha_row[:, 0], beta_sq=beta_sq_row[:, 0], variance=False, backend="dense"
        )
        assert moments.log_kernel_sum is not None
        return moments.mean.double().cpu().numpy(), moments.log_kernel_sum.cpu().numpy()


class ShardedReference(PreparedReference):
    """A reference that the members of a group hold between them, as their leader sees it.

    Args:
        stored: the store's reference, from which single rows are read.
        members: handles of Ray actors of ``ReferenceMember``, or such objects themselves, one a part, in order.
    """

    def __init__(self, stored: StoredReference, members: Sequence[Any]) -> None:
        super().__init__(stored.scale)
        self._members = list(members)
        self._rows = stored.streamed(torch.device("cpu"))
        self.center, self.num_reference = self._rows.center, stored.num_reference
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._has_clusters = set(self._ask("kind")) == {"cpu"}  # on GPUs every row is summed

    def blocks(self) -> Iterator[ReferenceBlock]:
        """The members hold them.

        Raises:
            TypeError: always; only ``posterior_moments`` without variance works over a group.
        """
        raise TypeError("the blocks of this reference lie with the members of a group")

    def take(self, index: NDArray[np.integer]) -> Tensor:
        """The rows at ``index`` in the reference's own coordinates, float64 on the CPU, shape (len(index), dim)."""
        return self._rows.take(index)

    def moments_elsewhere(self, request: Request, tolerance: float, *, is_sparse: bool) -> PosteriorMoments | None:
        """The members' answers, merged; without variance."""
        given = (request.z_t.numpy(), request.alpha[:, 0].numpy(), request.beta_sq[:, 0].numpy())
        num_rows = len(request.z_t)
        mean = np.full(request.z_t.shape, np.nan, np.float32)
        bound, pairs = np.full(num_rows, np.nan), np.zeros(num_rows, np.int64)
        queries = queries_of(request)
        todo = queries.rows
        if is_sparse and self._has_clusters and tolerance > 0 and len(todo):
            anchors = np.minimum.reduce(self._ask("nearest", *given))
            for aim in AIMS:
                if len(todo):
                    rows = (value[todo] for value in given)
                    answers = self._ask("partial", *rows, aim * tolerance / 2, anchors[todo], 1 / len(self._members))
                    found = merge_parts(answers, queries.inv_sigma_sq[todo])
                    mean[todo], bound[todo], pairs[todo] = found
                    todo = todo[~(bound[todo] <= tolerance)]
        if len(todo):
            merger = Merger()
            for part_mean, log_kernel_sum in self._ask("dense", *(value[todo] for value in given)):
                merger.add(torch.from_numpy(part_mean), torch.from_numpy(log_kernel_sum), None)
            mean[todo] = merger.result()[0].float().numpy()
            bound[todo], pairs[todo] = 0, self.num_reference
        return PosteriorMoments(torch.from_numpy(mean), bound=torch.from_numpy(bound), pairs=torch.from_numpy(pairs))

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        """What each member answers, all at work at once where they are actors."""
        calls = [getattr(member, method) for member in self._members]
        if not hasattr(calls[0], "remote"):
            return [call(*arguments) for call in calls]
        import ray

        answers: list[Any] = ray.get([call.remote(*arguments) for call in calls])
        return answers


def merge_parts(
    parts: Sequence[Part], inv_sigma_sq: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    """Mean, its certified bound and pairs of each row, from what the members added; an infinite bound where a row's
    float32 distances do not compare."""
    anchor = np.minimum.reduce([part["anchors"] for part in parts]).astype(np.float64)
    half = 0.5 * inv_sigma_sq
    sums, side = np.zeros_like(parts[0]["sums"]), np.zeros_like(parts[0]["side"])
    shares = [np.exp(np.maximum((anchor - part["anchors"]) * half, -700.0)) for part in parts]
    for part, share in zip(parts, shares, strict=True):
        sums += part["sums"] * share[:, None]
        side += part["side"] * share[:, None]
    mass = sums[:, 0]
    fine = mass > LEAST_MASS
    mean = (side / np.where(fine, mass, 1)[:, None]).astype(np.float32)
    error = sums[:, 2].copy()
    for part, share in zip(parts, shares, strict=True):
        moved = np.linalg.norm(mean.astype(np.float64) - part["mean"], axis=1)
        error += part["sums"][:, 5] * share * moved
    floor = mass - sums[:, 4]
    fine &= floor > 0
    bound = np.where(fine, error / np.where(fine, floor, 1), np.inf)
    return mean, bound, np.sum([part["pairs"] for part in parts], axis=0)


def _request(z_t: NDArray, alpha: NDArray, beta_sq: NDArray) -> Request:
    z, alpha_row, beta_sq_row = (
        torch.from_numpy(np.require(value, np.float32, ["C", "W"])) for value in (z_t, alpha, beta_sq)
    )
    return Request(z, alpha_row[:, None], beta_sq_row[:, None], variance=False)


def _check_memory(stored: StoredReference, ranges: list[tuple[int, int]], memory_gib: float, num_parts: int) -> None:
    num_rows = sum(stop - start for start, stop in ranges)
    need = reference_memory(num_rows, stored.dim, has_clusters=stored.has_clusters).resident
    need += base_bytes(stored.dim, stored.has_clusters)
    if need > memory_gib * GIB:
        raise LabelingError(
            f"labels.memory_gib = {memory_gib:g} cannot hold a part of the reference: with "
            f"executor.actors_per_group = {num_parts} a process needs {need / GIB:.2f} GiB; take more actors a group"
        )
