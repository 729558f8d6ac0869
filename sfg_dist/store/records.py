"""Plan records: the plan of a store and its extensions, each created if absent, sealed, and kept twice.

    plan.json        plan.copy.json         the plan
    plan-0001.json   plan-0001.copy.json    the first extension: up to which row, and of which plan

A record is never changed. The copy lets an edited or lost one be restored.
"""

from __future__ import annotations

from typing import NamedTuple

from sfg_dist.job.errors import StoreError, StoreLinkError
from sfg_dist.job.plan import Plan
from sfg_dist.job.reader import LONG_BYTES, check_fields
from sfg_dist.job.seal import seal, unseal
from sfg_dist.store.frame import extension_objects
from sfg_dist.store.location import Location
from sfg_dist.store.manifest import sha256

PLAN_KEY = "plan.json"
MAX_EXTENSIONS = 9999


class RecordState(NamedTuple):
    """A plan record and its copy as they are found."""

    number: int  # 0 the plan, 1 the first extension
    content: bytes | None  # the record's bytes, None where there are none
    copy: bytes | None  # the copy's bytes, None where there are none
    error: str  # what is wrong with the record, empty where nothing is
    copy_error: str  # what is wrong with the copy

    @property
    def good(self) -> bytes | None:
        """The bytes to go by: the record's or, where that is no use, the copy's."""
        return self.content if not self.error else self.copy if not self.copy_error else None


def record_key(number: int, *, copy: bool = False) -> str:
    """The name of a plan record."""
    return f"plan{f'-{number:04d}' if number else ''}{'.copy' if copy else ''}.json"


def read_plan(location: Location, *, from_copies: bool = False) -> Plan | None:
    """The plan of a store with its extensions; None where there is none.

    With ``from_copies`` the copy counts where a record is edited or lost, as for ``verify`` and ``repair``.

    Raises:
        StoreError: a record was edited or is lost.
    """
    plan: Plan | None = None
    for number in range(MAX_EXTENSIONS):
        key, copy = record_key(number), record_key(number, copy=True)
        content = _read(location, key) if from_copies else location.read(key, LONG_BYTES)
        try:
            if content is None:
                if _read(location, copy) is None:
                    return plan
                raise ValueError("it is missing, and its copy is there")
            plan = _with_record(plan, content)
        except ValueError as error:
            state = record_state(location, number, plan)
            if not from_copies or state.good is None:
                advice = (
                    "run `sfg repair` on the store, which restores it from its copy"
                    if state.good is not None
                    else "its copy cannot be used either: bring one of them back from a backup, or choose another "
                    "output.dir"
                )
                raise StoreError(f"{location.url}/{record_key(number)} cannot be used: {error}; {advice}") from error
            plan = _with_record(plan, state.good)
    return plan


def record_state(location: Location, number: int, before: Plan | None) -> RecordState:
    """A plan record and its copy, each checked; ``before`` is the plan without it."""
    content, copy = (_read(location, record_key(number, copy=copy)) for copy in (False, True))
    return RecordState(number, content, copy, _what_is_wrong(before, content), _what_is_wrong(before, copy))


def record_states(location: Location, plan: Plan) -> list[RecordState]:
    """All records of a plan."""
    before = [None, *(plan.record_plan(record) for record in range(len(plan.ends) - 1))]
    return [record_state(location, number, earlier) for number, earlier in enumerate(before)]


def create_record(location: Location, number: int, content: bytes) -> bytes:
    """Create a record if there is none, and its copy; the record that is there now, this one or an earlier one."""
    key = record_key(number)
    location.create(key, content)
    location.flush(key)
    stored = location.read(key)
    assert stored is not None
    keep_copy(location, number, stored)
    return stored


def keep_copy(location: Location, number: int, stored: bytes) -> None:
    """Write the copy of a good record where it is missing: a driver may have been killed between the two."""
    key = record_key(number, copy=True)
    if not location.exists(key):
        location.create(key, stored)
        location.flush(key)


def extension_record(plan: Plan) -> bytes:
    """The record of a plan's last extension."""
    record = len(plan.ends) - 1
    return seal(
        {
            "record": record,
            "first": plan.record_rows(record)[0],
            "num_pairs": plan.num_pairs,
            "run_id": plan.run_id,
            "before": plan.record_plan(record - 1).run_id,
            "frame": {key: sha256(content) for key, content in extension_objects(plan, record)},
            "format_version": plan.format_version,
        }
    )


def _with_record(plan: Plan | None, content: bytes) -> Plan:
    """The plan with one more record; ValueError where it was edited, or is not one of this plan."""
    if plan is None:
        return Plan.from_json(content)
    fields = unseal(content)
    try:
        check_fields(fields, {"num_pairs": range(2, 2**62), "before": str, "run_id": str}, "it")
        extended = plan.extended(fields["num_pairs"])
        extended.check_size()
    except ValueError as error:  # a ConfigError and a DocumentError are
        raise ValueError(f"not an extension of this plan: {error}") from error
    if (fields["before"], fields["run_id"]) != (plan.run_id, extended.run_id):
        raise ValueError("it is an extension of another plan")
    return extended


def _read(location: Location, key: str) -> bytes | None:
    """The bytes of a record; a link in its place counts as none, and ``verify`` names it."""
    try:
        return location.read(key, LONG_BYTES)
    except StoreLinkError:
        return None


def _what_is_wrong(before: Plan | None, content: bytes | None) -> str:
    if content is None:
        return "is missing"
    try:
        _with_record(before, content)
    except ValueError as error:
        return str(error)
    return ""
