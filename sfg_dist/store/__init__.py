"""Pairs as Zarr v3 groups with a plan and per-shard commits, and the stream of batches that training reads."""

from sfg_dist.store.location import Location, absolute_url, reason_of
from sfg_dist.store.pairs import Pairs, create_store, open_pairs
from sfg_dist.store.stream import Batch, PairStream, read_rows

__all__ = [
    "Batch",
    "Location",
    "PairStream",
    "Pairs",
    "absolute_url",
    "create_store",
    "open_pairs",
    "read_rows",
    "reason_of",
]
