"""Pairs as Zarr v3 groups with a plan and per-shard commits, and the stream of batches that training reads."""

from sfg_dist.objects import reason_of
from sfg_dist.store.arrays import object_bytes
from sfg_dist.store.create import create_store, extend_store, mend_frame
from sfg_dist.store.frame import Frame, RowBlocks, store_bytes
from sfg_dist.store.location import Entry, Location
from sfg_dist.store.pairs import Pairs, open_pairs
from sfg_dist.store.stream import Batch, PairStream, read_rows

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
    "object_bytes",
    "open_pairs",
    "read_rows",
    "reason_of",
    "store_bytes",
]
