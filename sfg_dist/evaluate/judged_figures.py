"""The figures of a judgement as rows of tables, in words and numbers that a reader sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sfg_dist.evaluate.calibration import CALIBRATION_KINDS
from sfg_dist.evaluate.judgement import Figure, FigureKind
from sfg_dist.evaluate.plain_figures import shown_number


class FigureRow(NamedTuple):
    """A row of the table of figures."""

    aspect: str
    title: str
    value: str
    error: str  # with its sign, or empty
    floor: str
    copy: str
    independent: str
    right: str  # what is right, and which way is better
    meaning: str


def figure_rows(figures: Mapping[str, Figure]) -> list[FigureRow]:
    """The rows of all figures that have a value, in the order of the catalogue."""
    from sfg_dist.evaluate.figure_kinds import FIGURE_KINDS

    kinds = {**FIGURE_KINDS, **CALIBRATION_KINDS}
    return [
        FigureRow(
            kind.aspect.capitalize(),
            kind.title,
            shown_number(figure.value),
            "" if figure.error is None else f"\N{PLUS-MINUS SIGN} {shown_number(figure.error)}",
            shown_number(figure.floor),
            shown_number(figure.copy),
            shown_number(figure.independent),
            right_words(kind),
            kind.meaning,
        )
        for name, kind in kinds.items()
        if (figure := figures.get(name)) is not None and figure.value is not None
    ]


def right_words(kind: FigureKind) -> str:
    """What is right for a figure, in a few words."""
    if kind.direction == "at":
        return f"{kind.best:g} is right"
    better = f"{'lower' if kind.direction == 'low' else 'higher'} is better"
    if kind.by_floor:
        return f"{better}; compare it with real rows"
    return better if kind.best == float("inf") else f"{better}; {kind.best:g} at best"


def worst_rows(records: Iterable[Mapping[str, Any]], *keys: str) -> list[list[str]]:
    """The named values of columns or pairs in metrics.json: names as they stand, and numbers as they are shown."""
    return [[_shown(record[key]) for key in keys] for record in records]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(value)
    return value if isinstance(value, str) else shown_number(value)
