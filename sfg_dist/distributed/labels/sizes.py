"""How many bytes a store takes on disk, exactly, and how many an actor takes in memory, about.

What lies on disk is asked of the store, which lays it out; what lies in memory is added up from the arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from sfg_dist import store
from sfg_dist.job.plan import Plan
from sfg_dist.job.words import GIB

COMMIT_BYTES = 870  # of a commit record, before one was seen
EVENT_BYTES = 180  # of a shard's line in the event log

# Measured: the resident size of an actor with torch, numba's compiled code and Ray, before it opens a store. Usual
# values, not measured: the CUDA libraries, and their context on the device.
ACTOR_BYTES = int(0.45 * GIB)
CUDA_HOST_BYTES = int(1.5 * GIB)
CUDA_DEVICE_BYTES = int(0.6 * GIB)
RAY_BYTES = int(0.4 * GIB)  # Ray's own processes on a node


@dataclass(frozen=True)
class StoreBytes:
    """Bytes of a store: of its arrays, which are exact, and of the rest."""

    latents: int
    labels: int
    reference: int  # with the debiased one, where there is one
    order: int  # the reference's order in clusters; 0 where labels use none
    transform: int  # the column transform's arrays
    queries: int  # the user's own query points; 0 where latents are drawn
    metadata: int  # zarr.json files, the plan with its copy, and the manifest of the frame
    commits: int  # commit records, an estimate
    logs: int  # the event log and the job, an estimate
    column: int = 0  # names of the pairs' columns

    @property
    def arrays(self) -> int:
        """All arrays, exact."""
        return self.latents + self.labels + self.reference + self.order + self.transform + self.queries + self.column

    @property
    def total(self) -> int:
        """Everything that labelling writes."""
        return self.arrays + self.metadata + self.commits + self.logs


def store_bytes(
    plan: Plan,
    *,
    num_reference: int,
    has_order: bool,
    transform_arrays: Mapping[str, NDArray[Any]],
    transform_metadata: Mapping[str, Any],
    num_queries: int | None = None,
) -> StoreBytes:
    """Bytes of a finished store of this plan; ``num_queries`` is None where latents are drawn."""
    arrays = store.store_bytes(
        plan,
        num_reference=num_reference,
        transform_arrays=transform_arrays,
        num_queries=num_queries,
        has_order=has_order,
    )
    return StoreBytes(
        latents=arrays["latents"],
        labels=arrays["labels"],
        reference=arrays["reference/rows"] + arrays.get("reference/debiased", 0),
        order=arrays.get("reference/order", 0),
        transform=sum(size for name, size in arrays.items() if name.startswith("transform/")),
        queries=arrays.get("queries/rows", 0),
        metadata=store.metadata_bytes(
            plan,
            transform_metadata,
            num_reference=num_reference,
            transform_arrays=transform_arrays,
            num_queries=num_queries,
            has_order=has_order,
        ),
        commits=plan.num_shards * COMMIT_BYTES,
        logs=plan.num_shards * EVENT_BYTES + 4096,
        column=arrays["column"],
    )


def bytes_left(plan: Plan, written: StoreBytes, pending: Sequence[int]) -> StoreBytes:
    """What a begun store still takes: its frame is there already, and shards that are left are written whole."""
    shards = sum(store.object_bytes(plan, shard) for shard in pending)
    return StoreBytes(
        latents=shards,
        labels=shards,
        reference=0,
        order=0,
        transform=0,
        queries=0,
        metadata=0,
        commits=round(written.commits * len(pending) / plan.num_shards),
        logs=len(pending) * EVENT_BYTES + 4096,
    )


def device_memory(num_rows: int, dim: int) -> int:
    """Peak bytes on a GPU of a reference set: centred in float64, then its rows in blocks and what orders them."""
    row = 4 * dim
    return num_rows * max(2 * row + row + 4 * row, row + 4 + 3 * row)


def shard_memory(plan: Plan) -> int:
    """Bytes of the arrays that a shard passes through while it is integrated, written and read back."""
    return 8 * 4 * min(plan.shard_rows, plan.num_pairs) * plan.dim
