"""The frame of a store: all that is laid out before the plan is written, and never changes afterwards.

Metadata of groups and arrays, the reference with its order, the column transform and the user's query points: each
object is encoded in memory, written whole, and named with its size and sha256 in a manifest, ``frame.json``, whose own
digest stands in the plan. The same inputs give the same bytes, so a frame that was cut off is laid out again, and one
that was damaged is mended object by object. Tables come in blocks, so none need ever be in memory whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import StoreError
from sfg_dist.job.fingerprint import fingerprint_of_blocks
from sfg_dist.job.plan import REFERENCE_BLOCK_ROWS, Plan
from sfg_dist.store import arrays
from sfg_dist.store.arrays import ARRAYS, Layout, group_metadata, names_objects, record_layout, record_prefix
from sfg_dist.store.location import Location
from sfg_dist.store.manifest import (
    MANIFEST_KEY,
    NO_DIGEST,
    ManifestEntry,
    entry_of,
    manifest_json,
    read_manifest,
    sha256,
)

FORMAT_NAME = "sfg_dist.pairs"
OBJECT_NAME = re.compile(r"[^/]+/(.+/)?(zarr\.json|c(/\d+)+)")
"""What Zarr calls the objects of a group's members."""

Object = tuple[str, bytes]


@dataclass(frozen=True)
class RowBlocks:
    """A float32 table that may be larger than memory."""

    num_rows: int  # its rows
    dim: int  # its columns
    # gives its blocks of rows, float32 (some rows, dim), in order; called once for each pass over the table
    read: Callable[[], Iterable[NDArray[np.float32]]]

    @classmethod
    def of(cls, rows: NDArray[np.float32] | RowBlocks) -> RowBlocks:
        """Blocks of a table in memory, or those that there are already."""
        return rows if isinstance(rows, RowBlocks) else cls(len(rows), rows.shape[1], lambda: [rows])

    def cut(self, block_rows: int) -> Iterator[NDArray[np.float32]]:
        """The table in blocks of exactly ``block_rows`` rows, the last one shorter.

        Raises:
            StoreError: the blocks that were read are not the table that was promised.
        """
        parts: list[NDArray[np.float32]] = []
        held = total = 0
        for block in self.read():
            if block.ndim != 2 or block.shape[1] != self.dim:
                raise StoreError(f"a block of a table has shape {block.shape}, expected (some rows, {self.dim})")
            total += len(block)
            while len(block):
                part = block[: block_rows - held]
                block = block[len(part) :]
                parts.append(part)
                held += len(part)
                if held == block_rows:
                    yield _joined(parts)
                    parts, held = [], 0
        if total != self.num_rows:
            raise StoreError(f"a table has {total} rows, expected {self.num_rows}: it changed while it was read")
        if parts:
            yield _joined(parts)


_LATER_ARRAYS = ("origins", "bounds", "tails")  # of a transform; not in stores of version 0.1.0


@dataclass(frozen=True)
class Frame:
    """What a frame is made of."""

    reference: NDArray[np.float32] | RowBlocks  # the transformed reference set
    transform_arrays: Mapping[str, NDArray[Any]]  # the column transform's arrays
    transform_metadata: Mapping[str, Any]  # the rest of the transform, JSON
    queries: NDArray[np.float32] | RowBlocks | None = None  # the user's query points as the flow sees them, or None
    # orders rows in compact clusters, where labels use some; called for each block of ``block_rows`` rows of
    # ``score_rows``, whose clusters are its own
    make_order: Callable[[NDArray[np.float32]], NDArray[np.int64]] | None = None
    block_rows: int = REFERENCE_BLOCK_ROWS  # all rows of the reference for labels under a measured certificate
    debiased: NDArray[np.float32] | RowBlocks | None = None  # the reference set moved, where labels are made from that

    def arrays(self, plan: Plan) -> Mapping[str, NDArray[Any]]:
        """The transform's arrays that a store of this plan holds."""
        return _stored_arrays(plan, self.transform_arrays)

    def layouts(self, plan: Plan) -> dict[str, Layout]:
        """The arrays of a fresh store by name, latents and labels among them."""
        return frame_layouts(
            plan,
            num_reference=RowBlocks.of(self.reference).num_rows,
            transform_arrays=self.arrays(plan),
            num_queries=None if self.queries is None else RowBlocks.of(self.queries).num_rows,
            has_order=self.make_order is not None,
        )

    def objects(self, plan: Plan) -> Iterator[Object]:
        """(key, bytes) of each object, one after the other."""
        layouts = self.layouts(plan)
        yield from _metadata(plan, layouts, self.arrays(plan), self.transform_metadata)
        tables = (self.reference, self.debiased if plan.is_debiased else None, self.queries)
        for name, table in zip(("reference/rows", "reference/debiased", "queries/rows"), tables, strict=True):
            if table is not None:
                yield from _objects(name, layouts[name], RowBlocks.of(table).cut(layouts[name].object_rows))
        if self.make_order is not None:
            layout = layouts["reference/order"]
            yield from _objects("reference/order", layout, _cut(self._orders(), layout.object_rows))
        for name, values in self.arrays(plan).items():
            layout = layouts[f"transform/{name}"]
            yield from _objects(f"transform/{name}", layout, [values] if layout.num_objects else [])

    @cached_property
    def reference_fingerprint(self) -> str:
        """The reference's identity by content. A reference in memory is hashed once, one in blocks is read for it."""
        table = RowBlocks.of(self.reference)
        return fingerprint_of_blocks(table.read(), (table.num_rows, table.dim), "<f4")

    @property
    def score_rows(self) -> NDArray[np.float32] | RowBlocks:
        """The rows whose score labels follow."""
        return self.reference if self.debiased is None else self.debiased

    @cached_property
    def score_fingerprint(self) -> str:
        """The identity of ``score_rows`` by content."""
        if self.debiased is None:
            return self.reference_fingerprint
        table = RowBlocks.of(self.debiased)
        return fingerprint_of_blocks(table.read(), (table.num_rows, table.dim), "<f4")

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The order of a reference in memory, made once: each block's own order of its rows, block after block."""
        return np.concatenate(list(self._made_orders()))

    def _orders(self) -> Iterator[NDArray[np.int64]]:
        """``order`` block by block; kept only where the reference itself is in memory."""
        return iter([self.order]) if isinstance(self.score_rows, np.ndarray) else self._made_orders()

    def _made_orders(self) -> Iterator[NDArray[np.int64]]:
        assert self.make_order is not None
        for block in RowBlocks.of(self.score_rows).cut(self.block_rows):
            yield np.ascontiguousarray(self.make_order(block), dtype=np.int64)


def _stored_arrays(plan: Plan, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The transform's arrays that a store of this plan holds: those of version 0.1.0 have fewer."""
    return arrays if plan.has_names else {name: arrays[name] for name in arrays if name not in _LATER_ARRAYS}


class FrameShape(TypedDict):
    """What decides the sizes of a frame."""

    num_reference: int  # rows of the reference
    transform_arrays: Mapping[str, NDArray[Any]]  # the column transform's arrays
    # rows of the user's query points; None, the default, where the latents are drawn
    num_queries: NotRequired[int | None]
    has_order: NotRequired[bool]  # whether the store holds the clusters' order of the reference; False by default


def frame_layouts(plan: Plan, **shape: Unpack[FrameShape]) -> dict[str, Layout]:
    """The arrays of a fresh store by name; nothing is read or written."""
    num_reference, num_queries = shape["num_reference"], shape.get("num_queries")
    layouts = {name: record_layout(plan, 0) for name in ARRAYS}
    num_debiased = num_reference if plan.is_debiased else None
    tables = {"reference/rows": num_reference, "reference/debiased": num_debiased, "queries/rows": num_queries}
    for name, num_rows in tables.items():
        if num_rows is not None:
            chunk_rows = min(num_rows, max(1, arrays.MAX_CHUNK_BYTES // (4 * plan.dim)))
            layouts[name] = Layout((num_rows, plan.dim), "float32", max(1, chunk_rows))
    if shape.get("has_order"):
        layouts["reference/order"] = Layout((num_reference,), "int64", min(num_reference, arrays.MAX_CHUNK_BYTES // 8))
    for name, values in shape["transform_arrays"].items():
        layouts[f"transform/{name}"] = Layout(values.shape, values.dtype.str, max((1, *values.shape[:1])))
    return (
        {name: replace(layout, dims=_dims(name, layout)) for name, layout in layouts.items()}
        if plan.has_names
        else layouts
    )


def _dims(name: str, layout: Layout) -> tuple[str, ...]:
    """Names of an array's dimensions: equal ones are equally long in all groups."""
    if name.startswith("transform/"):
        return tuple(f"{name.removeprefix('transform/')}_{axis}" for axis in range(len(layout.shape)))
    return ("reference_row" if name.startswith("reference/") else "row", "column")[: len(layout.shape)]


def store_bytes(plan: Plan, **shape: Unpack[FrameShape]) -> dict[str, int]:
    """Exact bytes of the array objects of a complete store by array; nothing is read or written.

    Returns:
        Bytes of ``latents``, ``labels``, ``reference/rows``, ``transform/...`` and so on, extensions included. The
        texts beside them, a zarr.json an array and a commit record of about a kilobyte a shard, are not counted.
    """
    shape["transform_arrays"] = transform_arrays = _stored_arrays(plan, shape["transform_arrays"])
    pairs = sum(_record_bytes(plan, record) for record in range(len(plan.ends)))
    layouts = frame_layouts(plan, **shape)
    sizes = dict.fromkeys(ARRAYS, pairs)
    for name, layout in layouts.items():
        if name.startswith("transform/"):
            values = transform_arrays[name.removeprefix("transform/")]
            sizes[name] = len((layout.encode(values) if layout.num_objects else None) or b"")
        elif name == "reference/order" and shape["num_reference"] == 1:
            sizes[name] = 0  # [0] is all fill value
        elif name not in ARRAYS:
            sizes[name] = layout.num_objects * layout.object_bytes(0, layout.object_rows)
    sizes["column"] = sum(len(content) for key, content in _column_objects(plan, transform_arrays) if _is_chunk(key))
    return sizes


def metadata_bytes(plan: Plan, transform_metadata: Mapping[str, Any], **shape: Unpack[FrameShape]) -> int:
    """Exact bytes of the texts of a fresh store: zarr.json files, the plan with its copy, and the manifest."""
    shape["transform_arrays"] = transform_arrays = _stored_arrays(plan, shape["transform_arrays"])
    layouts = frame_layouts(plan, **shape)
    texts = list(_metadata(plan, layouts, transform_arrays, transform_metadata))
    entries = [ManifestEntry(key, len(content)) for key, content in texts]
    for name, layout in layouts.items():
        size = layout.object_bytes(0, layout.object_rows)
        if name.startswith("transform/"):
            values = transform_arrays[name.removeprefix("transform/")]
            content = layout.encode(values) if layout.num_objects else None
            entries += [] if content is None else [ManifestEntry(f"{name}/{layout.object_key(0)}", len(content))]
        elif name not in ARRAYS:
            keys = (f"{name}/{layout.object_key(number)}" for number in range(layout.num_objects))
            entries += [ManifestEntry(key, size) for key in keys]
    text_bytes = sum(len(content) for key, content in texts if not _is_chunk(key))
    return text_bytes + len(manifest_json(entries)) + 2 * len(replace(plan, frame=NO_DIGEST).to_json())


def _record_bytes(plan: Plan, record: int) -> int:
    shards = plan.record_shards(record)
    ragged = {shards[0], shards[-1]}  # all others hold every row of their place on the grid
    inner = (len(shards) - len(ragged)) * arrays.shard_layout(plan).object_bytes(0, plan.shard_rows)
    return inner + sum(arrays.object_bytes(plan, shard) for shard in ragged)


def write_frame(location: Location, plan: Plan, frame: Frame, *, is_settled: Callable[[], bool]) -> str | None:
    """Lay out a frame and its manifest; the manifest's digest, or None where another driver's plan came first.

    ``is_settled`` says whether a plan is there by now. From then on the frame is that plan's, and is left alone.
    """
    entries: list[ManifestEntry] = []

    def noted() -> Iterator[Object]:
        for key, content in frame.objects(plan):
            entries.append(entry_of(key, content))
            yield key, content

    # The group's metadata first, by itself: they say that what else is there is a store's.
    objects = noted()
    for some in (islice(objects, 1), objects):
        if not location.write_many(some, is_settled=is_settled):
            return None
    # What a frame that was cut off left, if it was another job's. Never latents or labels: while this driver was laying
    # out, another one of the same job may have begun to label.
    keys = {entry.key for entry in entries}
    for name in ("reference", "queries", "transform", "column"):
        for found in location.list(name):
            if found.key not in keys and OBJECT_NAME.fullmatch(found.key):
                if is_settled():
                    return None
                location.delete(found.key)
    manifest = manifest_json(entries)
    return sha256(manifest) if location.write_many([(MANIFEST_KEY, manifest)], is_settled=is_settled) else None


def check_frame(location: Location, plan: Plan) -> None:
    """Refuse a frame that is not the plan's, before labels are made from it.

    Looked at are the manifest and all that it names but the objects of the reference, which whoever labels compares
    with the fingerprint in the plan; and the empty arrays of extensions.

    Raises:
        StoreError: an object is missing, or has other bytes than it was laid out with.
    """
    manifest = read_manifest(location, plan)
    of_reference = ("reference/rows/c", "reference/debiased/c", "reference/order/c")
    wanted = {key: entry.sha256 for key, entry in manifest.items() if not key.startswith(of_reference)}
    for record in range(1, len(plan.ends)):
        wanted |= {key: sha256(content) for key, content in extension_objects(plan.record_plan(record), record)}
    for key, content in location.read_many(wanted):
        if content is None or sha256(content) != wanted[key]:
            state = "is missing" if content is None else "was changed or damaged"
            raise StoreError(
                f"{location.url}/{key} {state}: no labels are made from it; run `sfg verify` and `sfg repair` on the "
                f"store"
            )


def extension_objects(plan: Plan, record: int) -> list[Object]:
    """The empty arrays of an extension, whose metadata are all that there is."""
    prefix = record_prefix(record)
    metadata = record_layout(plan, record).metadata
    return [
        ("extensions/zarr.json", group_metadata({})),
        (f"{prefix}zarr.json", group_metadata({})),
        *((f"{prefix}{name}/zarr.json", metadata) for name in ARRAYS),
    ]


def _metadata(
    plan: Plan,
    layouts: Mapping[str, Layout],
    transform_arrays: Mapping[str, NDArray[Any]],
    transform_metadata: Mapping[str, Any],
) -> Iterator[Object]:
    yield "zarr.json", group_metadata({"format": f"{FORMAT_NAME} {plan.format_version}"})
    if not plan.has_names:
        transform_metadata = {name: value for name, value in transform_metadata.items() if name != "types"}
    words = {"metadata": json.dumps(transform_metadata, sort_keys=True)}
    for group in sorted({"transform", *(name.split("/")[0] for name in layouts if "/" in name)}):
        yield f"{group}/zarr.json", group_metadata(words if group == "transform" else {})
    for name, layout in layouts.items():
        yield f"{name}/zarr.json", layout.metadata
    yield from _column_objects(plan, transform_arrays)


def _column_objects(plan: Plan, transform_arrays: Mapping[str, NDArray[Any]]) -> Iterator[Object]:
    if plan.has_names and (names := _flow_columns(plan, transform_arrays)):
        yield from names_objects(names).items()


def _is_chunk(key: str) -> bool:
    return not key.endswith("zarr.json")


def _flow_columns(plan: Plan, transform_arrays: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    """Names of the pairs' columns, those of the table that change; empty where the transform does not say."""
    constants = transform_arrays.get("constants")
    if constants is None or constants.shape != (len(plan.columns),):
        return ()
    names = tuple(name for name, constant in zip(plan.columns, constants, strict=True) if np.isnan(constant))
    return names if len(names) == plan.dim else ()


def _objects(name: str, layout: Layout, blocks: Iterable[NDArray[Any]]) -> Iterator[Object]:
    for number, block in enumerate(blocks):
        content = layout.encode(block)
        if content is not None:
            yield f"{name}/{layout.object_key(number)}", content


def _cut(parts: Iterable[NDArray[np.int64]], length: int) -> Iterator[NDArray[np.int64]]:
    held = np.empty(0, dtype=np.int64)
    for part in parts:
        held = np.concatenate([held, part])
        while len(held) >= length:
            yield held[:length]
            held = held[length:]
    if len(held):
        yield held


def _joined(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts), dtype="<f4")
