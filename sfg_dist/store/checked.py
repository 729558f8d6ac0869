"""The Zarr arrays of a store, which may be somebody else's: looked at before anything is read of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sfg_dist.data.declared_sizes import SMALL_BYTES
from sfg_dist.data.zarr_codecs import OF_STORES
from sfg_dist.job.errors import StoreError, StoreLinkError, StoreUnavailableError
from sfg_dist.job.object_stores import reason_of, trouble_of
from sfg_dist.job.words import size_of
from sfg_dist.store.local import OddFileError
from sfg_dist.store.location import Location

ADVICE = "run `sfg verify` and `sfg repair` on the store"
_UNREADABLE = (json.JSONDecodeError, UnicodeError, RecursionError, TypeError, KeyError, AttributeError)


@contextmanager
def reading(place: str, advice: str = ADVICE) -> Iterator[None]:
    """Turn whatever Zarr raises into one message that names the array and says what to do.

    Raises:
        StoreUnavailableError: the store does not answer.
        StoreError: there is no such array, or it is damaged.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # zarr and its codecs raise anything here
        if trouble_of(error) == "unavailable":
            raise StoreUnavailableError(f"cannot read {place}: {reason_of(error)}") from error
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, OddFileError):
            raise StoreLinkError(f"{place} cannot be read: {reason_of(error)}") from error
        if isinstance(error, _UNREADABLE) or "zarr.json" in str(error) or "data type" in str(error):
            reason = "its zarr.json, or one above it, is damaged"
        elif library in ("obstore", "zarr") or isinstance(error, OSError):
            reason = "it is no group or array of Zarr format 3"
        else:
            reason = reason_of(error)
        raise StoreError(f"{place} cannot be read: {reason}; {advice}") from error


def checked_store(location: Location, *, read_only: bool = False) -> Any:
    """A location as Zarr sees it: with the codecs of this package's stores alone, and without links."""
    from sfg_dist.data.zarr_store import CheckedStore

    store = location.zarr_store(read_only=read_only)
    return CheckedStore(store, location.url, codecs=OF_STORES, refusal=StoreError)


def check_kind(location: Location, name: str, array: Any, columns: tuple[int, ...], dtype: type[np.generic]) -> None:
    """Refuse a table without rows, or of other columns or another type than the plan says.

    Compiled code looks at no bounds.

    Raises:
        StoreError: with both.
    """
    if array.ndim != 1 + len(columns) or not array.shape[0] or array.shape[1:] != columns or array.dtype != dtype:
        wanted = ", ".join(["1 or more", *map(str, columns)])
        raise StoreError(
            f"{location.url}/{name} is {array.dtype} of shape {array.shape}, and the plan says {np.dtype(dtype)} of "
            f"shape ({wanted}): {ADVICE}"
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
