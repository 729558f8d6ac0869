"""All that is in a store, read again and compared with its plan, its commits and its frame's manifest.

Nothing is changed here, and Zarr's own reading of the store is not relied on, so a store may be verified in any state,
while it is being labelled too: a shard without commit and data is pending, not bad.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from sfg_dist.job.errors import DocumentError, StoreError, StoreLinkError
from sfg_dist.job.plan import Plan
from sfg_dist.job.reader import MAX_BYTES, read_json
from sfg_dist.job.words import as_line
from sfg_dist.store.arrays import ARRAYS, object_bytes, object_key
from sfg_dist.store.commits import commit_key, read_record, stored_digest
from sfg_dist.store.frame import extension_objects
from sfg_dist.store.keys import shard_of_key
from sfg_dist.store.local import LINK, PARTIAL
from sfg_dist.store.location import NUM_THREADS, QUARANTINE, Location
from sfg_dist.store.manifest import MANIFEST_KEY, ManifestEntry, entry_of, read_manifest, sha256
from sfg_dist.store.pairs import Pairs
from sfg_dist.store.records import record_key, record_states

Kind = Literal[
    "damaged_data",
    "truncated_data",
    "empty_data",
    "missing_data",
    "missing_commit",
    "torn_commit",
    "edited_commit",
    "damaged_plan",
    "differing_plans",
    "damaged_frame",
    "foreign_file",
    "link",
    "special_file",
    "partial_file",
]
OTHERS = ("claims/", "drivers/", "events/", QUARANTINE)
"""Where objects lie that are not part of the pairs."""
FRAME_FOLDERS = ("reference/", "transform/", "queries/", "column/")
FROM_TABLE = "make it again from the job's table, which must be the same"
FROM_PLAN = "make it again from the plan"
RELABEL = "remove the object and label the shard again; the rows must come out as the commit says"
START_OVER = "remove what there is of the shard and label it again"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: Kind  # what it is, one word of ``Kind``
    key: str  # the object
    shard: int | None  # whose it is, None where it is no shard's
    problem: str  # what was expected and found
    repair: str  # what ``sfg repair`` does about it

    def __str__(self) -> str:
        key = as_line(self.key)
        where = key if self.shard is None else f"{key} (shard {self.shard})"
        return f"{where}: {self.problem}"


@dataclass(frozen=True)
class Report:
    """What ``verify`` found."""

    url: str  # the store
    num_shards: int  # shards of the plan
    findings: tuple[Finding, ...]  # what is wrong, ordered by key
    pending: tuple[int, ...]  # shards that are not done and have nothing wrong: no commit and no data
    num_objects: int  # objects that were read and compared
    num_bytes: int  # their size

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong; shards may be pending."""
        return not self.findings

    @property
    def bad_shards(self) -> tuple[int, ...]:
        """Shards that must be labelled again."""
        return tuple(sorted({finding.shard for finding in self.findings if finding.shard is not None}))

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self) | {"is_clean": self.is_clean, "bad_shards": list(self.bad_shards)}


def verify(pairs: Pairs, *, on_progress: Callable[[int, int], None] | None = None) -> Report:
    """Read all of a store again and say what is wrong with it; nothing is changed.

    Where the plan itself may be damaged, ``pairs`` is opened with ``from_copies``. ``on_progress`` is called now and
    then with (shards and objects of the frame that are checked, all there are).

    Raises:
        StoreUnavailableError: the store does not answer.
    """
    location, plan = pairs.location, pairs.plan
    checks = _Checks(location, plan)
    findings = [*checks.plan_findings(), *checks.survey()]
    begun = np.flatnonzero(checks.is_begun)
    total = len(checks.frame) + len(begun)
    tasks = chain(
        (partial(checks.frame_object, entry) for entry in checks.frame.values()),
        (partial(checks.shard, int(shard)) for shard in begun),
    )
    for done, found in enumerate(_in_threads(tasks), start=1):
        findings.extend(found)
        if on_progress is not None and (done % 64 == 0 or done == total):
            on_progress(done, total)
    return Report(
        url=location.url,
        num_shards=plan.num_shards,
        findings=tuple(sorted(findings, key=lambda finding: (finding.key, finding.kind))),
        pending=tuple(map(int, np.flatnonzero(~checks.is_begun))),
        num_objects=checks.num_objects,
        num_bytes=checks.num_bytes,
    )


def _in_threads(tasks: Iterator[Callable[[], Iterable[Finding]]]) -> Iterator[list[Finding]]:
    """Results in order; few of them are waited for at a time, however many tasks there are."""
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="verify") as pool:
        while some := list(islice(tasks, 16 * NUM_THREADS)):
            yield from pool.map(lambda task: list(task()), some)


class _Checks:
    """The checks of one store, and what the listing said."""

    def __init__(self, location: Location, plan: Plan) -> None:
        self.location, self.plan = location, plan
        self.is_begun = np.zeros(plan.num_shards, dtype=bool)
        """Whether anything of a shard is there."""
        self.frame: dict[str, ManifestEntry] = {}
        """What the frame holds, by key."""
        self.has_manifest = False
        self.num_objects = self.num_bytes = 0
        self._counting = threading.Lock()

    def plan_findings(self) -> Iterator[Finding]:
        """Each plan record against its seal and its copy; and what the frame holds, as the manifest says it."""
        for state in record_states(self.location, self.plan):
            keys = [record_key(state.number, copy=copy) for copy in (False, True)]
            errors = (state.error, state.copy_error)
            for key, other, error in zip(keys, keys[::-1], errors, strict=True):
                if error:
                    yield Finding("damaged_plan", key, None, error, f"restore it from {other}")
            if not any(errors) and state.content != state.copy:
                problem = f"it differs from {keys[1]}, and both are whole: one of them was made anew"
                yield Finding("differing_plans", keys[0], None, problem, "nothing: bring the right one back by hand")
        for record in range(1, len(self.plan.ends)):
            objects = extension_objects(self.plan, record)
            self.frame |= {key: entry_of(key, content) for key, content in objects}
        try:
            self.frame |= read_manifest(self.location, self.plan)
        except StoreError as error:
            yield Finding("damaged_frame", MANIFEST_KEY, None, str(error).split(";")[0], FROM_TABLE)
        else:
            self.has_manifest = True

    def survey(self) -> Iterator[Finding]:
        """List the store: which shards are begun, and what does not belong there."""
        for key, _, _, _, oddity in self.location.walk():
            place = f"{QUARANTINE}{as_line(key)}"
            if oddity == PARTIAL:
                yield Finding("partial_file", key, None, oddity, "remove it")
            elif oddity:
                if not key.startswith(QUARANTINE):
                    kind: Kind = "link" if oddity == LINK else "special_file"
                    yield Finding(kind, key, None, oddity, f"move it as it is to {place}")
            elif (shard := shard_of_key(self.plan, key)) is not None:
                self.is_begun[shard] = True
            elif not self._is_known(key):
                yield Finding("foreign_file", key, None, "is no part of the store", f"move it to {place}")

    def _is_known(self, key: str) -> bool:
        records = range(len(self.plan.ends))
        if key in self.frame or key == MANIFEST_KEY or key.startswith(OTHERS):
            return True
        if key in {record_key(number, copy=copy) for number in records for copy in (False, True)}:
            return True
        # Without its manifest, what belongs to the frame cannot be told from what does not.
        return not self.has_manifest and (key.endswith("zarr.json") or key.startswith(FRAME_FOLDERS))

    def frame_object(self, entry: ManifestEntry) -> Iterator[Finding]:
        """An object of the frame against the manifest."""
        key, size = entry.key, entry.bytes
        content = self._read(key, size)
        repair = FROM_PLAN if key.startswith("extensions/") else FROM_TABLE
        if content is None:
            yield Finding("damaged_frame", key, None, "is missing", repair)
        elif sha256(content) != entry.sha256:
            state = f"has {self._size(key, content, size)} bytes, which are not those that were written"
            yield Finding("damaged_frame", key, None, state, repair)

    def shard(self, shard: int) -> Iterator[Finding]:
        """A shard that is begun: its commit and both objects."""
        content = self._read(commit_key(shard), MAX_BYTES)
        try:
            record = None if content is None else read_record(self.plan, shard, content)
        except DocumentError as error:
            record, problem = None, str(error)
        else:
            problem = ""
        if record is None:
            yield self._commit(shard, content, problem)
            for name in ARRAYS:
                for finding in self._data(shard, name, None):
                    if finding.kind != "missing_data":
                        yield replace(finding, repair=START_OVER)
            return
        for name in ARRAYS:
            yield from self._data(shard, name, record["objects"][name]["sha256"])

    def _commit(self, shard: int, content: bytes | None, problem: str) -> Finding:
        key = commit_key(shard)
        if content is None:
            problem = (
                "is missing, and data of the shard are there: it was deleted, or the writer is at work or was ended"
            )
            return Finding("missing_commit", key, shard, problem, START_OVER)
        try:
            read_json(content, "it")
        except DocumentError as error:
            size = self._size(key, content, MAX_BYTES)
            problem = f"has {size} bytes, which are no record: a power cut or a full disk tore it ({error})"
            return Finding("torn_commit", key, shard, problem, START_OVER)
        return Finding("edited_commit", key, shard, f"was edited, or is of another plan: {problem}", START_OVER)

    def _data(self, shard: int, name: str, digest: str | None) -> Iterator[Finding]:
        key, size = object_key(self.plan, name, shard), object_bytes(self.plan, shard)
        content = self._read(key, size)
        if content is None:
            yield Finding("missing_data", key, shard, "is missing, and the shard is committed", RELABEL)
        elif not content:
            yield Finding("empty_data", key, shard, f"has no bytes, expected {size}", RELABEL)
        elif len(content) != size:
            yield Finding(
                "truncated_data", key, shard, f"has {self._size(key, content, size)} bytes, expected {size}", RELABEL
            )
        else:
            try:
                found = stored_digest(self.plan, shard, content)
            except ValueError as error:
                yield Finding("damaged_data", key, shard, f"its checksum does not fit its bytes ({error})", RELABEL)
                return
            if digest is not None and found != digest:
                yield Finding("damaged_data", key, shard, "its rows are not the committed ones (sha256)", RELABEL)

    def _size(self, key: str, content: bytes, most: int) -> int:
        """Bytes of an object that ``_read`` was asked for."""
        return len(content) if len(content) <= most else self.location.size(key) or len(content)

    def _read(self, key: str, most: int) -> bytes | None:
        """An object, or the beginning of one that is longer than it may be."""
        try:
            content = self.location.read(key, most)
        except StoreLinkError:  # the survey names it
            content = None
        if content is not None:
            with self._counting:
                self.num_objects += 1
                self.num_bytes += len(content)
        return content
