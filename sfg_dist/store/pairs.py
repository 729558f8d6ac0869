"""The pairs on disk: a Zarr v3 group, its plan and one commit record a shard.

    pairs.zarr/
        zarr.json             the group; opens with plain zarr
        plan.json             the plan, created if absent and never changed; made last, so a plan means a whole frame
        plan-0001.json        an extension, if any; each record has a copy, plan.copy.json, plan-0001.copy.json
        frame.json            keys, sizes and digests of all that was laid out before the plan
        latents/, labels/     float32 (num_pairs, dim); unwritten rows are NaN; every chunk carries a crc32c
        column/               names of their columns
        extensions/0001/      the latents and labels that an extension adds, on the same grid
        reference/rows        float32 (num_reference, dim): the data behind the score, as the flow sees them
        reference/debiased    the same rows moved, where labels.debias makes labels from these
        reference/order       int64 (num_reference,): their order in compact clusters, where labels.tolerance uses some
        transform/            the column transform as plain arrays, its names in the group's attributes
        queries/rows          the user's own query points, when there are any
        commits/00000042.json one a finished shard, created after its data have reached the disk
        claims/               who is finishing what a dead writer left, if anyone
        drivers/, events/     what drivers say of themselves
        quarantine/           what `sfg repair` found and knew nothing of

A shard is one storage object per array, so two writers never share an object. It is done when its commit exists and the
objects have the recorded sizes; it is never inferred from chunks. A shard written twice has the same bytes, so retries
and overlapping attempts are harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import IncompleteStoreError, PlanMismatchError, StoreError
from sfg_dist.job.fingerprint import fingerprint
from sfg_dist.job.paths import place_of
from sfg_dist.job.plan import Plan
from sfg_dist.job.reader import LONG_BYTES, read_json
from sfg_dist.store.arrays import ARRAYS, object_bytes, object_key, record_layout, record_prefix
from sfg_dist.store.checked import check_declared, check_kind, checked_store, reading
from sfg_dist.store.commits import CommitRecord, ShardContent, find_record, find_records
from sfg_dist.store.frame import check_frame
from sfg_dist.store.keys import shard_of_commit, shard_of_object
from sfg_dist.store.location import Location, places_of
from sfg_dist.store.records import PLAN_KEY, read_plan
from sfg_dist.store.rows import ObjectRows, RowSource, StoredRows
from sfg_dist.store.shards import write_shard

if TYPE_CHECKING:
    import dask.array as da
    import zarr

OTHERWISE = "version 0.1.0, which made the store, read or transformed some tables otherwise"


def open_pairs(path: str | Path, *, from_copies: bool = False) -> Pairs:
    """Open the pairs of a run.

    Args:
        path: a pairs.zarr, or the output directory that holds one; a local path or an object-store URL.
        from_copies: where the plan was edited or lost, go by its copy; for ``verify`` and ``repair``.

    Returns:
        An object with ``latents`` and ``labels`` (Dask arrays, rows x columns), ``plan`` and ``is_complete``.

    Raises:
        ConfigError: it is no path.
        StoreError: there is no store of pairs there, or its plan cannot be read.

    Examples:
        >>> pairs = sfg_dist.open_pairs("runs/quickstart")      # doctest: +SKIP
        >>> pairs.labels.mean(axis=0).compute()                 # doctest: +SKIP
    """
    text = place_of("path", path).rstrip("/")
    for location in places_of(text, "pairs.zarr"):
        if (plan := read_plan(location, from_copies=from_copies)) is not None:
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
        """The Zarr group itself, of format 3; what is read of it is looked at by ``CheckedStore``."""
        import zarr

        with self._reading("zarr.json"):
            return zarr.open_group(checked_store(self.location), mode="r+", zarr_format=3)

    # Rows.

    @property
    def latents(self) -> da.Array:
        """Latents, float32 (num_pairs, dim), one Dask block a shard; NaN where not yet written."""
        return self._dask_array("latents")

    @property
    def labels(self) -> da.Array:
        """Labels in the flow's coordinates, float32 (num_pairs, dim), one Dask block a shard; NaN where not written."""
        return self._dask_array("labels")

    def rows(self, name: str) -> StoredRows:
        """An array, "latents" or "labels", to be read by ranges of rows; costs the same for any number of shards."""
        parts = []
        for record in range(len(self.plan.ends)):
            start, stop = self.plan.record_rows(record)
            origin = record_layout(self.plan, record).shape[0] - (stop - start)
            parts.append((partial(self._record_rows, name, record), origin, stop - start))
        return StoredRows(parts, self.plan.dim)

    @property
    def conditions(self) -> da.Array:
        """What the labels are given, float32 (num_pairs, len(plan.condition)): the last columns of both arrays."""
        return self.latents[:, self.plan.dim - len(self.plan.condition) :]

    # The frame.

    @property
    def num_reference(self) -> int:
        """Rows of the reference set."""
        with self._reading("reference/rows"):
            return int(self._table("reference/rows").shape[0])

    def reference_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of the reference as the flow sees them, float32 (stop - start, dim).

        Raises:
            StoreError: they cannot be read, or are missing.
        """
        return self._whole_rows("reference/rows", start, stop)

    def score_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows whose score labels follow, float32 (stop - start, dim): the debiased ones, or those of the reference.

        Raises:
            StoreError: they cannot be read, or are missing.
        """
        return self._whole_rows(self.score_name, start, stop)

    @property
    def score_name(self) -> str:
        """The array of ``score_rows``."""
        return "reference/debiased" if self.plan.is_debiased else "reference/rows"

    def order_rows(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """Entries of the clusters' order of ``score_rows``, int64 (stop - start,), or None where there is none.

        Each block of REFERENCE_BLOCK_ROWS rows has an order of its own, counted from the block's first row.
        """
        return self._rows("reference/order", start, stop) if self.has_order else None

    @cached_property
    def has_order(self) -> bool:
        """Whether the store holds an order of the reference in compact clusters."""
        with self._reading("reference"):
            members: Any = self.group["reference"]
            return "order" in members

    @property
    def reference(self) -> NDArray[np.float32]:
        """The reference set as the flow sees it, checked against its fingerprint."""
        rows = self.reference_rows(0, self.num_reference)
        return self._checked("reference/rows", rows, self.plan.identity["reference"])

    @property
    def score_reference(self) -> NDArray[np.float32]:
        """All ``score_rows``, checked against their fingerprint."""
        return self._checked(self.score_name, self.score_rows(0, self.num_reference), self.plan.score_fingerprint)

    def _checked(self, name: str, rows: NDArray[np.float32], wanted: str) -> NDArray[np.float32]:
        if fingerprint(rows) != wanted:
            raise StoreError(
                f"{self.location.url}/{name} is not the table that the plan was made for: it was changed or "
                f"damaged; run `sfg verify` and `sfg repair` on the store"
            )
        return rows

    @property
    def has_queries(self) -> bool:
        """Whether the user's own query points take the place of drawn latents."""
        return bool(self.plan.identity["queries"])

    def query_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Query points ``start`` to ``stop`` as the flow sees them, float32 (stop - start, dim).

        Raises:
            StoreError: they cannot be read, or are missing.
        """
        return self._whole_rows("queries/rows", start, stop)

    def check_frame(self) -> None:
        """Refuse a frame that is not the plan's, but for the reference's rows; see ``frame.check_frame``."""
        check_frame(self.location, self.plan)

    @property
    def transform(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The column transform: its arrays and its metadata."""
        with self._reading("transform"):
            group: Any = self.group["transform"]
            members = {name: self._looked_at(f"transform/{name}", array) for name, array in group.arrays()}
            arrays = {name: np.asarray(array[...]) for name, array in members.items()}
            return arrays, read_json(str(group.attrs["metadata"]), "metadata", max_bytes=LONG_BYTES)

    # What is done.

    def committed(self) -> set[int]:
        """Shards with a commit record, be it a torn one."""
        shards = (shard_of_commit(self.plan, entry.key) for entry in self.location.list("commits"))
        return {shard for shard in shards if shard is not None}

    def commit_records(self) -> Iterator[tuple[int, CommitRecord]]:
        """The commit records of all shards that have one, with the shards, in order; read a few at a time."""
        return find_records(self.location, self.plan, sorted(self.committed()))

    def stored_bytes(self) -> NDArray[np.int64]:
        """Bytes of each shard's objects, int64 (num_shards, 2) for latents and labels; -1 where there is none."""
        sizes = np.full((self.plan.num_shards, len(ARRAYS)), -1, dtype=np.int64)
        for record in range(len(self.plan.ends)):
            for column, name in enumerate(ARRAYS):
                for entry in self.location.list(f"{record_prefix(record)}{name}/c"):
                    if (shard := shard_of_object(self.plan, entry.key)) is not None:
                        sizes[shard, column] = entry.bytes
        return sizes

    def pending(self) -> list[int]:
        """Shards still to do: no commit, or objects whose size is not the recorded one."""
        is_done = np.zeros(self.plan.num_shards, dtype=bool)
        sizes = self.stored_bytes()
        for shard, _ in self.commit_records():
            is_done[shard] = (sizes[shard] == object_bytes(self.plan, shard)).all()
        return [int(shard) for shard in np.flatnonzero(~is_done)]

    def is_done(self, shard: int) -> bool:
        """Whether a shard is committed and its objects have the recorded sizes."""
        size = object_bytes(self.plan, shard)
        return self.commit_record(shard) is not None and all(
            self.location.size(object_key(self.plan, name, shard)) == size for name in ARRAYS
        )

    def commit_record(self, shard: int) -> CommitRecord | None:
        """The commit record of a shard; None where there is none, or a torn one, as a power cut may leave it."""
        return find_record(self.location, self.plan, shard)

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
            advice = "change the job back, or choose another output.dir"
            if plan.num_pairs > self.plan.num_pairs and len(difference) == 1 and not self.plan.identity.get("queries"):
                more = plan.num_pairs - self.plan.num_pairs
                advice = (
                    f"run `sfg extend` with this job to add the {more} pairs once the store is complete, or {advice}"
                )
            if not self.plan.has_names and any(line.startswith(("reference:", "table:")) for line in difference):
                advice = f"{OTHERWISE}; {advice}"
            raise PlanMismatchError(
                f"{self.location.url} was made by another plan (store -> job):\n  {shown}\n{advice}"
            )

    def require_complete(self) -> None:
        """Refuse to go on with missing shards.

        Raises:
            IncompleteStoreError: shards are missing.
        """
        missing = self.pending()
        if missing:
            self.location.require_no_links()  # a link is listed as nothing
            shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise IncompleteStoreError(
                f"{self.location.url}: {len(missing)} of {self.plan.num_shards} shards are missing ({shown}); "
                f"run `sfg label` with the same job to finish it"
            )

    def write_shard(
        self,
        shard: int,
        latents: NDArray[np.float32],
        labels: NDArray[np.float32],
        provenance: Mapping[str, Any] | None = None,
    ) -> CommitRecord:
        """Write one shard, read it back, and commit it.

        Latents and labels are finite float32, shape (rows of the shard, dim). ``provenance`` is what the record shall
        keep beside: device, seconds, attempt.

        Returns:
            The commit record; of the earlier commit where there was one with equal digests.

        Raises:
            ConflictError: another attempt came out with other bytes; nothing that is there was changed.
            StoreFullError: no space is left.
            StoreUnavailableError: the store does not answer.
            StoreError: the rows are not what the shard holds, or the disk gave back other bytes.
        """
        content = ShardContent.of(self.plan, shard, latents, labels)
        return write_shard(self.location, self.plan, shard, content, provenance or {})

    # Reading.

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        with self._reading(name):
            return np.ascontiguousarray(self._table(name)[start:stop])

    def _table(self, name: str) -> Any:
        """The Zarr array of a table of the frame, which is of the plan's columns and type."""
        array = self._looked_at(name, self.group[name])
        if name == "reference/order":
            check_kind(self.location, name, array, (), np.int64)
        else:
            check_kind(self.location, name, array, (self.plan.dim,), np.float32)
        return array

    def _whole_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._rows(name, start, stop)
        if len(rows) != stop - start or not np.isfinite(rows).all():
            raise StoreError(
                f"{self.location.url}/{name} lacks some of rows {start} to {stop}: an object is lost; run `sfg verify` "
                f"and `sfg repair` on the store"
            )
        return rows

    def _looked_at(self, name: str, array: Any) -> Any:
        """A Zarr array of the store, after ``check_declared`` has looked at it once."""
        if name not in self._sound:
            check_declared(self.location, name, array)
            self._sound.add(name)
        return array

    @cached_property
    def _sound(self) -> set[str]:
        return set()

    def _reading(self, name: str) -> AbstractContextManager[None]:
        return reading(f"{self.location.url}/{name}")

    def _dask_array(self, name: str) -> da.Array:
        import dask.array

        # Blocks are whole shards: one object is opened once. Inline, because Ray's Dask scheduler takes the
        # dataclasses inside a Zarr array apart when it is a value of the graph.
        parts = []
        for record in range(len(self.plan.ends)):
            shape = record_layout(self.plan, record).shape
            whole = dask.array.from_array(
                self._record_array(name, record),
                chunks=(self.plan.shard_rows, self.plan.dim),
                name=f"{name}-{self.plan.run_id[:16]}-{record}-{id(self):x}",
                inline_array=True,
            )
            start, stop = self.plan.record_rows(record)
            parts.append(whole[shape[0] - (stop - start) :])
        return parts[0] if len(parts) == 1 else dask.array.concatenate(parts)

    def _record_rows(self, name: str, record: int) -> RowSource:
        """Rows of the Zarr array of a plan record, in the fastest way to read them."""
        array, layout = self._record_array(name, record), record_layout(self.plan, record)
        return array if layout.is_cut else ObjectRows(self.location, f"{record_prefix(record)}{name}", layout)

    def _record_array(self, name: str, record: int) -> Any:
        """The Zarr array of a plan record."""
        prefix, layout = record_prefix(record), record_layout(self.plan, record)
        with self._reading(f"{prefix}{name}"):
            array: Any = self.group[f"{prefix}{name}"]
            if array.shape != layout.shape or array.dtype != np.dtype(layout.dtype):
                raise StoreError(
                    f"{self.location.url}/{prefix}{name} is {array.dtype} of shape {array.shape}, the plan says "
                    f"{layout.dtype} of shape {layout.shape}: its zarr.json is another job's; run `sfg verify` and "
                    f"`sfg repair` on the store"
                )
            return array
