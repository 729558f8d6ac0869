"""Pairs of latents and labels on disk or in an object store: Zarr arrays, a plan, and a commit for each shard.

A plan and the transformed data (the ``frame``) come in and make a store (``create``). Rows of shards come in and are
written and committed (``shards``; a commit's record is in ``commits``). Damaged ones are found (``verify``) and put
into quarantine (``repair``), and batches go out to training in their order (``stream``). The log of a run,
events.jsonl, is written here too (``event_log``). docs/store-protocol.md says what writers may do. This room imports
neither ray nor torch.
"""

from sfg_dist.job.object_stores import reason_of
from sfg_dist.store.arrays import object_bytes
from sfg_dist.store.create import create_store, extend_store, mend_frame, require_reference
from sfg_dist.store.frame import Frame, RowBlocks, metadata_bytes, store_bytes
from sfg_dist.store.local import Entry
from sfg_dist.store.location import Location, places_of
from sfg_dist.store.pairs import Pairs, open_pairs
from sfg_dist.store.repair import repair_store, sweep_partials
from sfg_dist.store.rows import read_ranges, read_rows
from sfg_dist.store.stream import Batch, PairStream
from sfg_dist.store.verify import verify

__all__ = [
    "Batch",
    "Entry",
    "Frame",
    "Location",
    "PairStream",
    "Pairs",
    "RowBlocks",
    "create_store",
    "extend_store",
    "mend_frame",
    "metadata_bytes",
    "object_bytes",
    "open_pairs",
    "places_of",
    "read_ranges",
    "read_rows",
    "reason_of",
    "repair_store",
    "require_reference",
    "store_bytes",
    "sweep_partials",
    "verify",
]
