"""Stores are made, mended and extended here: the frame first, the plan last."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from sfg_dist.job.errors import ConfigError, PlanMismatchError, StoreError
from sfg_dist.job.plan import Plan
from sfg_dist.store.commits import find_record
from sfg_dist.store.frame import FORMAT_NAME, Frame, extension_objects, write_frame
from sfg_dist.store.keys import COMMIT_NAME, shard_of_commit
from sfg_dist.store.location import Location
from sfg_dist.store.manifest import MANIFEST_KEY, ManifestEntry, entry_of, manifest_json, sha256
from sfg_dist.store.pairs import OTHERWISE, Pairs
from sfg_dist.store.parts import attributes_of
from sfg_dist.store.records import create_record, extension_record, keep_copy, read_plan, record_key


def create_store(url: str | Path, plan: Plan, frame: Frame) -> Pairs:
    """Lay out a store, or go on with the one that the same plan made.

    Raises:
        ConfigError: the store would have too many shards.
        PlanMismatchError: another plan made the store; the message shows the difference.
        StoreError: the place cannot be written, or the reference is not the one that the plan was made for.
    """
    plan.check_size()
    location = Location(url, create=True)
    existing = read_plan(location)
    if existing is None:
        existing = _lay_out(location, plan, frame)
    pairs = Pairs(location, existing)
    pairs.require_plan(plan)
    for record in range(len(existing.ends)):
        content = location.read(record_key(record))
        assert content is not None
        keep_copy(location, record, content)
    _warn_of_versions(location.url, existing, plan)
    return pairs


def _lay_out(location: Location, plan: Plan, frame: Frame) -> Plan:
    _require_own(location)
    _require_no_commits(location, plan)
    _require_frame(location, plan, frame)
    digest = write_frame(location, plan, frame, is_settled=lambda: location.exists(record_key(0)))
    if digest is not None:
        create_record(location, 0, replace(plan, frame=digest).to_json())
    existing = read_plan(location)  # another driver may have been first
    assert existing is not None
    if digest is None:
        return existing
    if not existing.difference(plan) and existing.frame != sha256(location.read(MANIFEST_KEY) or b""):
        raise StoreError(
            f"{location.url}: another driver began the store at the same time with other bytes; choose another "
            "output.dir, or remove this one"
        )
    return existing


def require_reference(location: Location, plan: Plan, frame: Frame) -> None:
    """Refuse the reference of another table than the plan was made for.

    Raises:
        StoreError: it is of another table.
    """
    if frame.reference_fingerprint != plan.identity["reference"]:
        why = (
            "it changed since then: run the same command again"
            if plan.has_names
            else f"it changed since then, or {OTHERWISE}: mend it with that version, or choose another output.dir"
        )
        raise StoreError(f"{location.url}: the reference is not the table that the plan was made for; {why}")


def _require_frame(location: Location, plan: Plan, frame: Frame) -> None:
    """Refuse a reference, or one that is debiased, that the plan was not made for."""
    require_reference(location, plan, frame)
    if plan.is_debiased and frame.score_fingerprint != plan.score_fingerprint:
        raise StoreError(
            f"{location.url}: the debiased reference has other bytes on this kind of CPU: run `sfg repair` on a "
            "machine of the kind that made the store"
        )


def _require_own(location: Location) -> None:
    """Refuse to lay out a store over what something else has made."""
    found = next(location.list(), None)
    if found is None or location.exists(MANIFEST_KEY):
        return
    if not str(attributes_of(location).get("format", "")).startswith(FORMAT_NAME):
        raise ConfigError(
            f"{location.url} holds something else than pairs, such as {found.key!r}, and nothing was changed: choose "
            "another output.dir"
        )


def _require_no_commits(location: Location, plan: Plan) -> None:
    """Refuse to lay out a store over the shards of a lost plan, unless they are this plan's own."""
    for entry in location.list("commits"):
        shard = shard_of_commit(plan, entry.key)
        if COMMIT_NAME.fullmatch(entry.key) is None:
            continue
        if shard is None or find_record(location, plan, shard) is None:
            raise PlanMismatchError(
                f"{location.url} holds commits of another plan, whose records {record_key(0)} and "
                f"{record_key(0, copy=True)} are lost: bring one back from a backup, or choose another output.dir"
            )


def mend_frame(pairs: Pairs, frame: Frame) -> list[str]:
    """Write again the objects of the frame that are missing or damaged, from the user's table.

    ``pairs`` is opened with ``from_copies`` where its plan is damaged too.

    Returns:
        The keys of what was written.

    Raises:
        StoreError: the table is not the one that the store was made from, so the frame cannot be made again.
    """
    location, plan = pairs.location, pairs.plan.record_plan(0)
    _require_frame(location, plan, frame)
    entries: list[ManifestEntry] = []
    bad: list[str] = []
    for key, content in frame.objects(plan):
        entries.append(entry_of(key, content))
        if location.read(key) != content:
            bad.append(key)
    manifest = manifest_json(entries)
    if sha256(manifest) != pairs.plan.frame:
        raise StoreError(
            f"{location.url}: the reference and the transform come out with other bytes than when the store was "
            "made, so nothing was changed: the table, the transform or the versions of numpy and zarr differ"
        )
    if location.read(MANIFEST_KEY) != manifest:
        location.write(MANIFEST_KEY, manifest)
        bad.append(MANIFEST_KEY)
    wanted = set(bad)
    location.write_many((key, content) for key, content in frame.objects(plan) if key in wanted)
    return bad


def extend_store(url: str | Path, num_pairs: int) -> Pairs:
    """Add rows to a complete store: a further plan record and its empty arrays, for ``sfg label`` to fill.

    The rows are those that a longer run would have had, and nothing that is committed changes. An extension to the same
    number of pairs that was interrupted goes on. ``num_pairs`` counts the rows of all records together.

    Raises:
        ConfigError: that adds no rows, or the store was made of the user's own query points.
        IncompleteStoreError: shards are missing; the store must be complete first.
        StoreError: there is no store, or it cannot be written.
    """
    location = Location(url)
    plan = read_plan(location)
    if plan is None:
        raise StoreError(f"{location.url} holds no pairs: run `sfg label` with the job first")
    pairs = Pairs(location, plan)
    missing = pairs.pending()
    if num_pairs == plan.num_pairs and plan.earlier_ends and missing:
        return pairs
    extended = plan.extended(num_pairs)
    extended.check_size()
    if missing:
        pairs.require_complete()
    record = len(extended.ends) - 1
    objects = extension_objects(extended, record)
    if location.write_many(objects, is_settled=lambda: location.exists(record_key(record))):
        create_record(location, record, extension_record(extended))
    if location.read(record_key(record)) != extension_record(extended):  # another driver was first
        found = read_plan(location)
        assert found is not None
        raise ConfigError(
            f"{location.url} was just extended to {found.num_pairs} pairs by another driver, not to {num_pairs}"
        )
    return Pairs(location, extended)


def _warn_of_versions(url: str, existing: Plan, plan: Plan) -> None:
    for name, version in plan.versions.items():
        if existing.versions.get(name) not in (None, version):
            warnings.warn(
                f"{url} was begun with {name} {existing.versions[name]}, this is {version}: new shards may differ in "
                f"the last bits",
                stacklevel=3,
            )
