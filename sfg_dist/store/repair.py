"""What ``verify`` found is made ready to be made again: bad objects go, plans come back from their copies.

Labelling itself is not done here. Repair while nobody labels: it removes data that have no commit yet. What a writer
loses by it is found pending and done again, so even then nothing is lost.
"""

from __future__ import annotations

import itertools
import re

from sfg_dist.job.errors import StoreError
from sfg_dist.store.arrays import ARRAYS, object_key
from sfg_dist.store.commits import commit_key
from sfg_dist.store.frame import extension_objects
from sfg_dist.store.keys import shard_of_key
from sfg_dist.store.local import PARTIAL
from sfg_dist.store.location import QUARANTINE, Location
from sfg_dist.store.pairs import Pairs
from sfg_dist.store.records import record_key, record_states
from sfg_dist.store.shards import ORPHAN_S
from sfg_dist.store.verify import Finding, Report, verify

CLAIM_NAME = re.compile(r"claims/\d+\.json")
STAGING_SUFFIX = re.compile(r"#\d+$")
BAD_DATA = ("damaged_data", "truncated_data", "empty_data")
BAD_COMMITS = ("missing_commit", "torn_commit", "edited_commit")


def repair_store(pairs: Pairs, report: Report | None = None) -> list[int]:
    """Make a store ready for its bad shards to be labelled again, and mend all else that needs no table.

    Bad objects are removed, and with a commit that is torn, edited or missing all that there is of its shard. A sound
    commit stays: what is labelled again must have its digests. Plans are restored from their copies and copies from
    their plans, foreign files and links are moved to quarantine/, and files that were left half written are removed. A
    damaged frame is mended by ``mend_frame``, which needs the user's table. ``pairs`` is opened with ``from_copies``
    where its plan may be damaged, and ``report`` is what ``verify`` just said of it.

    Returns:
        The shards to label again, those that were merely pending not among them.

    Raises:
        StoreError: the store cannot be written.
    """
    report = report or verify(pairs)
    location = pairs.location
    set_links_aside(location, report)
    if any(finding.kind == "damaged_plan" for finding in report.findings):
        _restore_plans(pairs)
    extensions = {
        key: content
        for record in range(1, len(pairs.plan.ends))
        for key, content in extension_objects(pairs.plan, record)
    }
    for finding in report.findings:
        if finding.kind in BAD_DATA:
            location.delete(finding.key)
        elif finding.kind in BAD_COMMITS:
            assert finding.shard is not None
            # The commit first: where this is ended in between, data without a commit are left, not the reverse.
            location.delete(commit_key(finding.shard))
            for name in ARRAYS:
                location.delete(object_key(pairs.plan, name, finding.shard))
        elif finding.kind == "damaged_frame" and finding.key in extensions:
            location.write(finding.key, extensions[finding.key])
        elif finding.kind == "foreign_file":
            _quarantine(location, finding)
    location.remove_partials()
    for claim in list(location.list("claims")):
        if CLAIM_NAME.fullmatch(claim.key):
            location.delete(claim.key)
    return list(report.bad_shards)


def set_links_aside(location: Location, report: Report) -> None:
    """Move links, pipes and the like to quarantine/ as they are: while one is there, nothing is written in its place.

    Raises:
        StoreLinkError: quarantine/ itself is one.
    """
    named = {finding.key: finding for finding in report.findings if finding.kind in ("link", "special_file")}
    for entry in list(location.oddities()):
        if entry.key in named:
            _quarantine(location, named[entry.key])


def sweep_partials(pairs: Pairs, *, refuse_links: bool = False) -> list[str]:
    """Remove files that ended writers left half written: old ones, and those of committed shards; their names.

    It is called before and after labelling. A file that a living writer fills is neither old nor of a committed shard.

    Raises:
        StoreLinkError: ``refuse_links`` is set, and there is a link or a pipe (see ``Location.require_no_links``).
    """
    location = pairs.location
    odd = [entry for entry in location.walk() if entry.oddity]
    if refuse_links:
        location.require_no_links(odd)
    partials = [entry for entry in odd if entry.oddity == PARTIAL]
    committed = pairs.committed() if partials else set()
    swept = []
    for partial in partials:
        shard = shard_of_key(pairs.plan, STAGING_SUFFIX.sub("", partial.key))
        if location.now() - partial.modified > ORPHAN_S or shard in committed:
            location.delete(partial.key)
            swept.append(partial.key)
    return swept


def _restore_plans(pairs: Pairs) -> None:
    for state in record_states(pairs.location, pairs.plan):
        if state.good is None:
            raise StoreError(
                f"{pairs.location.url}/{record_key(state.number)} and its copy are both damaged: bring one of them "
                f"back from a backup"
            )
        if state.error:
            pairs.location.write(record_key(state.number), state.good)
        elif state.copy_error:
            pairs.location.write(record_key(state.number, copy=True), state.good)


def _quarantine(location: Location, finding: Finding) -> None:
    """Move a file aside under its old key, with a number where one lies there already or a link is in the way."""
    location.look(QUARANTINE.rstrip("/"))  # refuses a link
    places = (
        place.format(QUARANTINE, finding.key, number)
        for number in itertools.count()
        for place in (("{0}{1}.{2}", "{0}{2}/{1}") if number else ("{0}{1}",))
    )
    location.move(finding.key, next(place for place in places if not location.exists(place)))
