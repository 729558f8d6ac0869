"""The pairs on disk: a Zarr v3 group, its plan and one commit record a shard.

    pairs.zarr/
        zarr.json             the group; opens with plain zarr
        plan.json             the plan, created if absent and never changed; made last, so a plan means a whole frame
        latents/, labels/     float32 (num_pairs, dim); unwritten rows are NaN; every chunk carries a crc32c
        reference/rows        float32 (num_reference, dim): the data behind the score, as the flow sees them
        reference/order       int64 (num_reference,): their order in compact clusters, where labels.tolerance uses some
        transform/            the column transform as plain arrays, its names in the group's attributes
        queries/rows          the user's own query points, when there are any
        commits/00000042.json one a finished shard, created after its data have reached the disk

A shard is one storage object per array, so two writers never share an object. It is done when its commit exists and the
objects have the recorded sizes; it is never inferred from chunks. A shard written twice has the same bytes, so retries
and overlapping attempts are harmless.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.errors import IncompleteStoreError, PlanMismatchError, StoreError
from sfg_dist.plan import Plan, fingerprint
from sfg_dist.store.frame import ARRAYS, write_frame
from sfg_dist.store.location import Location

if TYPE_CHECKING:
    import dask.array as da
    import zarr

PLAN_KEY = "plan.json"
COMMIT_NAME = re.compile(r"commits/(\d{8,})\.json")


def create_store(
    url: str | Path,
    plan: Plan,
    *,
    reference: NDArray[np.float32],
    transform_arrays: Mapping[str, NDArray[Any]],
    transform_metadata: Mapping[str, Any],
    queries: NDArray[np.float32] | None = None,
    make_order: Callable[[NDArray[np.float32]], NDArray[np.int64]] | None = None,
) -> Pairs:
    """Lay out a store, or go on with the one that the same plan made.

    Args:
        url: where the group is, a local directory or an object-store URL.
        plan: what it will hold.
        reference: the transformed reference set, float32, shape (num_reference, dim).
        transform_arrays: the column transform's arrays.
        transform_metadata: the rest of the transform, JSON.
        queries: the user's query points as the flow sees them, shape (num_pairs, dim), or None.
        make_order: orders the reference's rows in compact clusters, where labels use some.

    Returns:
        The open store.

    Raises:
        PlanMismatchError: another plan made the store; the message shows the difference.
        StoreError: the place cannot be written.
    """
    location = Location(url, create=True)
    if (existing := _read_plan(location)) is None:
        with location.writing("the frame"):
            order = make_order(reference) if make_order is not None else None
            write_frame(location, plan, reference, transform_arrays, transform_metadata, queries, order)
        location.create(PLAN_KEY, plan.to_json())
        existing = _read_plan(location)  # another driver may have been first
        assert existing is not None
    pairs = Pairs(location, existing)
    pairs.require_plan(plan)
    _warn_of_versions(location.url, existing, plan)
    return pairs


def open_pairs(path: str | Path) -> Pairs:
    """Open the pairs of a run.

    Args:
        path: a pairs.zarr, or the output directory that holds one; a local path or an object-store URL.

    Returns:
        An object with ``latents`` and ``labels`` (Dask arrays, rows x columns), ``plan`` and ``is_complete``.

    Raises:
        StoreError: there is no store of pairs there, or its plan cannot be read.

    Example:
        >>> pairs = sfg_dist.open_pairs("runs/quickstart")      # doctest: +SKIP
        >>> pairs.labels.mean(axis=0).compute()                 # doctest: +SKIP
    """
    text = str(path).rstrip("/")
    for candidate in (text, f"{text}/pairs.zarr"):
        if "://" not in candidate and not Path(candidate).is_dir():
            continue
        location = Location(candidate)
        if (plan := _read_plan(location)) is not None:
            return Pairs(location, plan)
    raise StoreError(f"{text} holds no pairs: expected a directory with {PLAN_KEY}, or one with pairs.zarr/{PLAN_KEY}")


@dataclass(frozen=True, repr=False)
class Pairs:
    """An open store of pairs.

    Attributes:
        location: where it is.
        plan: what it holds.
    """

    location: Location
    plan: Plan

    def __repr__(self) -> str:
        size = f"{self.plan.num_pairs} pairs in {self.plan.num_shards} shards, dim {self.plan.dim}"
        return f"Pairs({self.location.url!r}, {size})"

    @cached_property
    def group(self) -> zarr.Group:
        """The Zarr group itself."""
        import zarr

        return zarr.open_group(self.location.zarr_store(), mode="r+")

    @property
    def latents(self) -> da.Array:
        """Latents, float32 (num_pairs, dim), one Dask block a shard; NaN where not yet written."""
        return self._dask_array("latents")

    @property
    def labels(self) -> da.Array:
        """Labels in the flow's coordinates, float32 (num_pairs, dim), one Dask block a shard; NaN where not written."""
        return self._dask_array("labels")

    @property
    def reference(self) -> NDArray[np.float32]:
        """The reference set as the flow sees it, checked against its fingerprint."""
        rows = self._read_rows("reference")
        if fingerprint(rows) != self.plan.identity["reference"]:
            raise StoreError(
                f"{self.location.url}/reference is not the table that the plan was made for: it was changed or "
                f"damaged; choose another output.dir and label again"
            )
        return rows

    @property
    def cluster_order(self) -> NDArray[np.int64] | None:
        """The clusters' ordering of the reference's rows, or None where labels sum over every row."""
        if "order" not in self.group["reference"]:  # type: ignore[operator]
            return None
        order = np.asarray(self.group["reference/order"][...])  # type: ignore[index]
        rows = self.group["reference/rows"].shape[0]  # type: ignore[union-attr]
        if order.shape != (rows,) or not np.array_equal(np.sort(order), np.arange(rows)):
            raise StoreError(
                f"{self.location.url}/reference/order is not an ordering of the {rows} reference rows: it was changed "
                f"or damaged; choose another output.dir and label again"
            )
        return order

    @property
    def queries(self) -> NDArray[np.float32] | None:
        """The user's query points as the flow sees them, or None when the latents are drawn."""
        return self._read_rows("queries") if self.plan.identity["queries"] else None

    @property
    def transform(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The column transform: its arrays and its metadata."""
        group = self.group["transform"]
        arrays = {name: np.asarray(array[...]) for name, array in group.arrays()}  # type: ignore[union-attr]
        return arrays, json.loads(str(group.attrs["metadata"]))

    def committed(self) -> set[int]:
        """Shards with a commit record."""
        names = (COMMIT_NAME.fullmatch(key) for key in self.location.list("commits"))
        return {int(name[1]) for name in names if name}

    def pending(self) -> list[int]:
        """Shards still to do: no commit, or objects whose size is not the recorded one."""
        done = {shard for shard in self.committed() if self.is_done(shard)}
        return [shard for shard in range(self.plan.num_shards) if shard not in done]

    @property
    def is_complete(self) -> bool:
        """Whether every shard is done."""
        return not self.pending()

    def require_plan(self, plan: Plan) -> None:
        """Refuse another plan than the one that made the store.

        Raises:
            PlanMismatchError: they differ in what decides the bits; the message shows the difference.
        """
        if difference := self.plan.difference(plan):
            shown = "\n  ".join(difference)
            raise PlanMismatchError(
                f"{self.location.url} was made by another plan (store -> job):\n  {shown}\n"
                f"change the job back, or choose another output.dir"
            )

    def require_complete(self) -> None:
        """Refuse to go on with missing shards.

        Raises:
            IncompleteStoreError: shards are missing.
        """
        missing = self.pending()
        if missing:
            shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise IncompleteStoreError(
                f"{self.location.url}: {len(missing)} of {self.plan.num_shards} shards are missing ({shown}); "
                f"run `sfg label` with the same job to finish it"
            )

    def commit_record(self, shard: int) -> dict[str, Any] | None:
        """The commit record of a shard; None where there is none, or a torn one, as a power cut may leave it."""
        content = self.location.read(_commit_key(shard))
        try:
            record: dict[str, Any] | None = json.loads(content) if content else None
            if record is not None and all(
                {"key", "bytes", "sha256"} <= record["objects"][name].keys() for name in ARRAYS
            ):
                return record
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        return None

    def write_shard(
        self,
        shard: int,
        latents: NDArray[np.float32],
        labels: NDArray[np.float32],
        provenance: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write one shard, read it back, and commit it.

        Args:
            shard: its number.
            latents: float32, shape (rows of the shard, dim), finite.
            labels: the same shape, finite.
            provenance: what the record shall keep beside: device, seconds, attempt.

        Returns:
            The commit record; of the earlier commit where there was one with equal digests.

        Raises:
            StoreError: the disk gave back other bytes, or an earlier commit has other digests.
        """
        start, stop = self.plan.shard_range(shard)
        tables: dict[str, NDArray[np.float32]] = {}
        for name, rows in zip(ARRAYS, (latents, labels), strict=True):
            if rows.shape != (stop - start, self.plan.dim) or not np.isfinite(rows).all():
                raise StoreError(f"shard {shard}: {name} must be finite and have {stop - start} rows, got {rows.shape}")
            tables[name] = np.ascontiguousarray(rows, dtype="<f4")
        digests = {name: hashlib.sha256(rows.data).hexdigest() for name, rows in tables.items()}
        earlier = self.commit_record(shard)
        if earlier is not None:
            self._require_digests(shard, earlier, digests)
            if self.is_done(shard):  # a committed shard is never written again
                return earlier
        elif self.location.exists(_commit_key(shard)):
            self.location.delete(_commit_key(shard))  # torn: it commits nothing
        for name, rows in tables.items():
            self._write_rows(name, shard, rows)
        record = {
            "shard": shard,
            "rows": [start, stop],
            "run_id": self.plan.run_id,
            "objects": {
                name: {
                    "key": _object_key(name, shard),
                    "sha256": digests[name],
                    "bytes": self.location.size(_object_key(name, shard)),
                }
                for name in ARRAYS
            },
            **(provenance or {}),
        }
        if self.location.create(_commit_key(shard), json.dumps(record, sort_keys=True).encode()):
            return record
        earlier = self.commit_record(shard)
        if earlier is None:
            raise StoreError(f"the commit of shard {shard} of {self.location.url} cannot be read back")
        try:
            self._require_digests(shard, earlier, digests)
        except StoreError:
            # This attempt wrote over the winner's objects. Where its bytes are gone, its commit must go too, so that
            # the shard is made again and never trained on as what it is not.
            if any(self._stored_digest(name, shard) != earlier["objects"][name]["sha256"] for name in ARRAYS):
                self.location.delete(_commit_key(shard))
            raise
        return earlier

    def _require_digests(self, shard: int, record: Mapping[str, Any], digests: Mapping[str, str]) -> None:
        for name in ARRAYS:
            if record["objects"][name]["sha256"] != digests[name]:
                raise StoreError(
                    f"shard {shard} of {self.location.url}: {name} came out with other bytes than the committed ones. "
                    f"Machines of different kinds differ in the last bits; give each kind its own store"
                )

    def _stored_digest(self, name: str, shard: int) -> str:
        start, stop = self.plan.shard_range(shard)
        return hashlib.sha256(np.ascontiguousarray(self.group[name][start:stop]).data).hexdigest()  # type: ignore[index]

    def _write_rows(self, name: str, shard: int, rows: NDArray[np.float32]) -> None:
        start, stop = self.plan.shard_range(shard)
        with self.location.writing(f"shard {shard} of {name}"):
            array = self.group[name]
            array[start:stop] = rows  # type: ignore[index]
            self.location.flush(_object_key(name, shard))
            back = np.asarray(array[start:stop])  # type: ignore[index]
        if back.tobytes() != rows.tobytes():
            raise StoreError(f"shard {shard} of {self.location.url}/{name} reads back other bytes than were written")

    def is_done(self, shard: int) -> bool:
        """Whether a shard is committed and its objects have the recorded sizes."""
        record = self.commit_record(shard)
        return record is not None and all(
            self.location.size(entry["key"]) == entry["bytes"] for entry in record["objects"].values()
        )

    def _read_rows(self, name: str) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.group[f"{name}/rows"][...])  # type: ignore[index]

    def _dask_array(self, name: str) -> da.Array:
        import dask.array

        # Blocks are whole shards: one object is opened once. Inline, because Ray's Dask scheduler takes the
        # dataclasses inside a Zarr array apart when it is a value of the graph.
        return dask.array.from_array(
            self.group[name],
            chunks=(self.plan.shard_rows, self.plan.dim),
            name=f"{name}-{self.plan.run_id[:16]}-{id(self):x}",
            inline_array=True,
        )


def _object_key(name: str, shard: int) -> str:
    return f"{name}/c/{shard}/0"


def _commit_key(shard: int) -> str:
    return f"commits/{shard:08d}.json"


def _read_plan(location: Location) -> Plan | None:
    content = location.read(PLAN_KEY)
    if content is None:
        return None
    try:
        return Plan.from_json(content)
    except ValueError as error:
        raise StoreError(f"{location.url}/{PLAN_KEY} cannot be used: {error}") from error


def _warn_of_versions(url: str, existing: Plan, plan: Plan) -> None:
    for name, version in plan.versions.items():
        if existing.versions.get(name) not in (None, version):
            warnings.warn(
                f"{url} was begun with {name} {existing.versions[name]}, this is {version}: new shards may differ in "
                f"the last bits",
                stacklevel=3,
            )
