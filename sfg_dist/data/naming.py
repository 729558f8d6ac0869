"""Names of columns, and words about them: the nearest name, unknown names, names given twice."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sfg_dist.data.described import RepeatedValues
from sfg_dist.job.errors import DataError


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The valid name that a mistyped one most likely means, or None.

    Examples:
        >>> nearest("Voltge", ["Voltage", "Current"])
        'Voltage'
    """
    by_lower: dict[str, str] = {}
    for valid in names:
        by_lower.setdefault(valid.lower(), valid)
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


def listed(names: Sequence[str], limit: int = 12) -> str:
    """Names in quotes, cut short after ``limit``.

    Examples:
        >>> listed(["a", "b", "c"], limit=2)
        "'a', 'b' and 1 more"
    """
    shown = ", ".join(map(repr, names[:limit]))
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def value_words(value: float | str) -> str:
    """A value of a column as ``ColumnType.shown`` has it, for a line of text."""
    return value if isinstance(value, str) else f"{value:g}"


def repeated_values(atoms: Mapping[str, RepeatedValues], *, held: bool, limit: int = 8) -> str:
    """The columns whose single values repeat, each with the most frequent one; at most ``limit`` columns are named.

    ``held`` chooses those that the transform gives back exactly, or the others.

    Examples:
        >>> zeros = {"held": True, "values": [{"value": 0.0, "count": 7, "share": 0.7}]}
        >>> repeated_values({"rain": zeros}, held=True)
        "'rain' 0 (70.0 %)"
    """
    shown = []
    for name, found in atoms.items():
        if found["held"] == held:
            top = max(found["values"], key=lambda value: value["count"])
            more = f" and {len(found['values']) - 1} more" if len(found["values"]) > 1 else ""
            shown.append(f"{name!r} {value_words(top['value'])} ({100 * top['share']:.1f} %){more}")
    return "; ".join(shown[:limit]) + (f"; {len(shown) - limit} more columns" if len(shown) > limit else "")


def category_words(report: Mapping[str, Any], limit: int = 8) -> list[str]:
    """What a reader is told of categories, missing values and columns that others determine, in sentences.

    Examples:
        >>> category_words({"categories": {"town": 3}, "determined": {"zip": "town"}})[1]
        "Looked up on the way back, and left out of the flow: 'zip' from 'town'."
    """

    def some(words: Sequence[str]) -> str:
        return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")

    categories = [f"{name!r} {number:,}" for name, number in (report.get("categories") or {}).items()]
    missing = [f"{name!r} {100 * share:.1f} %" for name, share in (report.get("missing") or {}).items()]
    determined = [f"{name!r} from {by!r}" for name, by in (report.get("determined") or {}).items()]
    kept = [f"{listed(words)} in {name!r}" for name, words in (report.get("kept_words") or {}).items()]
    told = [f"Categories: {some(categories)}."] if categories else []
    told += [f"Categories, not missing values: {some(kept)}."] if kept else []
    told += [f"Missing values are learnt and drawn: {some(missing)}."] if missing else []
    return told + ([f"Looked up on the way back, and left out of the flow: {some(determined)}."] if determined else [])


class NoColumnError(DataError):
    """A column is not there; ``fact`` says so without the key of a job, and ``hint`` names a column that is."""

    def __init__(self, message: str, fact: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.fact, self.hint = fact, hint


def check_columns(
    source: str, names: Sequence[str], wanted: Sequence[str] | None, *, key: str = "data.columns"
) -> tuple[str, ...]:
    """The wanted columns, or all of them. Each must be there exactly once; ``key`` is the job's that asks for them."""
    chosen = tuple(names) if wanted is None else tuple(wanted)
    counts = Counter(names)
    for name in chosen:
        if name not in counts:
            close = nearest(name, names)
            hint = f"did you mean {close!r}?" if close else f"it has {listed(list(names))}"
            fact = f"{source} has no column {name!r}"
            raise NoColumnError(f"{fact} ({key}); {hint}", fact, hint)
        if counts[name] > 1:
            raise DataError(f"{source}: {counts[name]} columns are named {name!r}; give each its own name")
    return chosen
