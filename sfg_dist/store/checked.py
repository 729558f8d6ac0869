"""The Zarr arrays of a store, which may be somebody else's: looked at before anything is read of them."""

from __future__ import annotations

import math
from typing import Any

from sfg_dist.data.sizes import SMALL_BYTES
from sfg_dist.data.zarr_codecs import OF_STORES
from sfg_dist.errors import StoreError
from sfg_dist.store.location import Location
from sfg_dist.words import size_of


def checked_store(location: Location, *, read_only: bool = False) -> Any:
    """A location as Zarr sees it: with the codecs of this package's stores alone, and no links that lead out of it."""
    from sfg_dist.data.zarr_store import CheckedStore

    return CheckedStore(
        location.zarr_store(read_only=read_only), location.url, location.root, OF_STORES, refusal=StoreError
    )


def check_declared(location: Location, name: str, array: Any) -> None:
    """Refuse an array that declares more than its objects hold: none of them is packed.

    Raises:
        StoreError: with both sizes.
    """
    declared = math.prod(array.shape) * array.dtype.itemsize
    if declared > SMALL_BYTES:
        stored = sum(entry.bytes for entry in location.list(f"{name}/c"))
        if stored < declared // 2:
            raise StoreError(
                f"{location.url}/{name} declares {size_of(declared)}, and {size_of(stored)} are stored: run "
                "`sfg verify` and `sfg repair` on the store"
            )
