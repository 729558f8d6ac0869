"""A look at a table that nobody has described yet: what its columns hold, and the keys with which it can be prepared.

Columns that cannot be used are left out, each with its reason. So are columns that number the rows, and, where rows
with a gap are left out, those with so many gaps that fewer than half of the rows would be complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.cleaning import SCAN_ROWS
from sfg_dist.data.column_type import TEMPORAL, ColumnType
from sfg_dist.data.naming import repeated_values
from sfg_dist.data.preparation import MIN_ROWS, open_whole, prepare
from sfg_dist.data.prepared import Prepared
from sfg_dist.data.row_reader import RowReader
from sfg_dist.data.rows import has_row_ranges, open_rows
from sfg_dist.data.settings import TableSettings
from sfg_dist.data.table import BUILTIN_NAMES
from sfg_dist.data.unfit import UnfitColumnsError
from sfg_dist.job.errors import DataError

LEAST_COMPLETE = 0.5
"""The share of the rows that must be complete."""
_FEW = 5
_MAX_PATTERNS = 100_000  # of gaps in a row, that are counted apart

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class ColumnLook:
    """What a column holds."""

    name: str  # of the column
    kind: str = ""  # its type in words; empty where it cannot be used
    low: float | str | None = None  # its smallest value, as the file has it
    high: float | str | None = None  # its largest
    gaps: float = 0.0  # share of the rows without a value
    step: str = ""  # of the grid that its values lie on, in words; empty where there is none
    noticed: tuple[str, ...] = ()  # what else there is to know of it
    left_out: str = ""  # why it is left out; empty where it is taken


@dataclass(frozen=True, eq=False)
class TableLook:
    """What a table holds."""

    num_rows: int  # rows of the table
    columns: tuple[ColumnLook, ...]  # all of its columns, in order
    keys: dict[str, Any]  # of the job's ``data`` table, beside those asked for, with which it can be prepared
    prepared: Prepared  # the table, prepared with them


@dataclass(eq=False)
class _Seen:
    """What one pass over the rows of a table tells."""

    types: dict[str, ColumnType]  # of its columns by name
    num_rows: int  # rows of the table
    is_large: bool  # whether it is prepared in passes
    gaps: NDArray[np.int64]  # missing and infinite values of each column, shape (num_columns,)
    num_infinite: NDArray[np.int64]  # infinite ones among them
    ends: _Array  # smallest and largest of the other values, shape (2, num_columns)
    steps: _Array  # smallest and largest difference to the row before, NaN beside a gap, shape (2, num_columns)
    # rows by which of their values are missing, as packed bits
    patterns: Counter[bytes] = field(default_factory=Counter)

    @classmethod
    def of(cls, reader: RowReader, is_large: bool) -> _Seen:
        """Read all rows."""
        width = len(reader.columns)
        outside = np.repeat([[np.inf], [-np.inf]], width, axis=1)
        gaps, infinite = np.zeros((2, width), np.int64)
        seen = cls(reader.types_by_name, reader.num_rows, is_large, gaps, infinite, outside, outside.copy())
        last = np.empty((0, width))
        for rows in reader.blocks(SCAN_ROWS):
            is_gap = ~np.isfinite(rows)
            seen.gaps += is_gap.sum(axis=0)
            seen.num_infinite += np.isinf(rows).sum(axis=0)
            seen._count_patterns(is_gap)
            ends = [np.where(is_gap, np.inf, rows).min(axis=0), np.where(is_gap, -np.inf, rows).max(axis=0)]
            seen.ends = np.stack([np.minimum(seen.ends[0], ends[0]), np.maximum(seen.ends[1], ends[1])])
            with np.errstate(invalid="ignore"):  # infinities
                apart = np.diff(np.concatenate([last, rows]), axis=0)
            steps = [apart.min(axis=0, initial=np.inf), apart.max(axis=0, initial=-np.inf)]
            seen.steps = np.stack([np.minimum(seen.steps[0], steps[0]), np.maximum(seen.steps[1], steps[1])])
            last = rows[-1:]
        return seen

    def _count_patterns(self, is_gap: NDArray[np.bool_]) -> None:
        found, counts = np.unique(np.packbits(is_gap, axis=1), axis=0, return_counts=True)
        for pattern, count in zip(found, counts.tolist(), strict=True):
            if (key := pattern.tobytes()) in self.patterns or len(self.patterns) < _MAX_PATTERNS:
                self.patterns[key] += count

    def numbers_rows(self, name: str) -> bool:
        """Whether a column is 1, 2, 3 and so on, from any number."""
        place = list(self.types).index(name)
        is_whole = self.types[name].kind == "integer" and self.num_rows >= MIN_ROWS
        return is_whole and bool((self.steps[:, place] == 1).all())

    def without_values(self) -> dict[str, str]:
        """Columns to leave out since they have no value."""
        names = zip(self.types, self.gaps, strict=True)
        return {name: "it has no value" for name, gaps in names if gaps == self.num_rows}

    def with_too_many_gaps(self, spared: Sequence[str]) -> dict[str, str]:
        """Columns to leave out, and why, until enough rows are complete: those with the most gaps first."""
        names, found = list(self.types), self.without_values()
        patterns = np.frombuffer(b"".join(self.patterns), np.uint8).reshape(len(self.patterns), -1)
        is_gap, rows = np.unpackbits(patterns, axis=1, count=len(names)), np.array(list(self.patterns.values()))
        while True:
            kept = [place for place, name in enumerate(names) if name not in found]
            complete = rows[~is_gap[:, kept].any(axis=1)].sum()
            free = [place for place in kept if names[place] not in spared and self.gaps[place]]
            if complete >= LEAST_COMPLETE * rows.sum() or not free:
                return found
            worst = max(free, key=lambda place: self.gaps[place])
            share = 100 * self.gaps[worst] / self.num_rows
            found[names[worst]] = f"{share:.0f} % of its values are missing, and rows with a gap are left out"


def look_at(source: str, settings: TableSettings, *, held_bytes: float, memory_gib: float) -> TableLook:
    """Look at all of a table, and find keys with which it can be prepared.

    Args:
        source: a built-in name, a path, or an ``s3://`` URL.
        settings: what is asked for already. Columns that are named there are taken or refused, never left out.
        held_bytes: a larger table that can be read by ranges of rows keeps its order, and is prepared in passes.
        memory_gib: what these passes may hold.

    Raises:
        DataError: the table cannot be used, or no column of it can.
    """
    out: dict[str, str] = {}
    names: tuple[str, ...] = ()
    typed = settings.asked
    asked = [*(settings.columns or ()), *(settings.condition or ()), *typed]
    while True:
        try:
            columns = settings.columns or ([name for name in names if name not in out] if out else None)
            with _open(source, replace(settings, columns=columns), held_bytes) as (reader, is_large):
                names = names or reader.columns
                seen = _Seen.of(reader, is_large)
            if not seen.num_rows:
                raise DataError(f"{source} has no rows: expected at least {MIN_ROWS}")
            drops = settings.missing == "drop" or bool(seen.num_infinite.any())
            if settings.columns is None:
                out |= seen.with_too_many_gaps(asked) if drops else seen.without_values()
                out |= {name: "it numbers the rows" for name in seen.types if seen.numbers_rows(name)}
            taken = [name for name in seen.types if name not in out or name in asked]
            _require_some(source, taken, out)
            keys: dict[str, Any] = {"columns": taken} if out else {}
            if drops and any(gaps and name in taken for name, gaps in zip(seen.types, seen.gaps, strict=True)):
                keys["missing"] = "drop"
            if is_large:
                keys["shuffle"] = "none"
            chosen = replace(settings, **{"constant": "keep", **keys})
            prepared = prepare(source, chosen, memory_gib=memory_gib if is_large else None)
            break
        except UnfitColumnsError as error:
            names = names or error.names
            if not names or settings.columns is not None:
                raise
            if given := [name for name in error.reasons if name in asked]:
                name, why = given[0], error.reasons[given[0]]
                what = "be read as data.types says" if name in typed else "be given (data.condition)"
                raise DataError(f"{source}: column {name!r} cannot {what}: {why}") from None
            out |= error.reasons
            _require_some(source, [name for name in names if name not in out], out)
    if prepared.report["constant"]:
        keys["constant"] = "keep"
    found = {name: _look_of(name, place, seen, prepared) for place, name in enumerate(seen.types)}
    reasons = {name: why for name, why in out.items() if name not in asked}
    looks = (replace(found.get(name, ColumnLook(name)), left_out=reasons.get(name, "")) for name in names)
    return TableLook(seen.num_rows, tuple(looks), keys, prepared)


@contextmanager
def _open(source: str, settings: TableSettings, held_bytes: float) -> Iterator[tuple[RowReader, bool]]:
    """The rows of a table, and whether it is prepared in passes."""
    is_plain = settings.arrays is None and not settings.append and source not in BUILTIN_NAMES
    if is_plain and has_row_ranges(source):
        columns, identifiers, asked = settings.columns, settings.identifiers, settings.asked
        with open_rows(source, array=settings.array, columns=columns, identifiers=identifiers, asked=asked) as reader:
            yield reader, reader.num_bytes > held_bytes
        return
    table = open_whole(source, replace(settings, condition=None))
    yield RowReader.over(table.values, source, table.columns, table.types, table.read_as), False


def _require_some(source: str, taken: Sequence[str], out: Mapping[str, str]) -> None:
    if not taken:
        shown = "; ".join(f"{name!r}: {why}" for name, why in list(out.items())[:4])
        more = f"; {len(out) - 4:,} more" if len(out) > 4 else ""
        raise DataError(f"{source}: none of its {len(out):,} columns can be used: {shown}{more}")


def _look_of(name: str, place: int, seen: _Seen, prepared: Prepared) -> ColumnLook:
    """What a column holds, by the pass over its rows and by what was found when it was prepared."""
    type_, report = seen.types[name], prepared.report
    low, high = (type_.shown(end) if np.isfinite(end) else None for end in seen.ends[:, place].tolist())
    ties, noticed = report["ties"].get(name), []
    if type_.kind == "category":
        low = high = None
        noticed.append(", ".join(type_.categories[:_FEW]) + (" and more" if len(type_.categories) > _FEW else ""))
    if name in report["determined"]:
        noticed.append(f"{report['determined'][name]!r} determines it: kept out of the flow, and looked up")
    if name in report["constant"]:
        noticed.append("never changes: kept out of the flow, and put back in samples")
    if name in report["atoms"]:
        found = {name: report["atoms"][name]}
        spikes = repeated_values(found, held=True) or repeated_values(found, held=False)
        noticed.append(f"repeats {spikes.removeprefix(f'{name!r} ')}")
    if type_.kind == "integer" and ties is not None and not ties["share"]:
        noticed.append("no value repeats: leave it out if it is an identifier")
    if type_.kind in TEMPORAL and seen.steps[0, place] >= 0:
        noticed.append("rises from row to row: leave it out if it only orders the rows")
    step = "" if ties is None or not ties.get("step") else f"{ties['step']:g}"
    if step and type_.kind in TEMPORAL:
        step += f" {type_.unit}" if type_.unit != "D" else " day" if step == "1" else " days"
    gaps = float(seen.gaps[place]) / max(1, seen.num_rows)
    return ColumnLook(name, type_.words, low, high, gaps, step, tuple(noticed))
