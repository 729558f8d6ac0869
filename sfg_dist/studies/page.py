"""The page of a study, in the look of the report: a verdict, sections of lines, tables and pictures, and the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfg_dist.evaluate.pictures import Picture
from sfg_dist.evaluate.templates import page_template


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is left out."""

    heading: str = ""  # above all of it
    lines: Sequence[str] = ()  # a list of sentences
    columns: Sequence[str] = ()  # headings of a table; those that begin with ">" stand above numbers
    rows: Sequence[Sequence[str]] = ()  # text for every column. What follows a line break in a cell is shown smaller.
    own_row: str = ""  # first cell of the row that is shown in bold
    note: str = ""  # small print below the table
    pictures: Sequence[Picture] = ()  # below all of it


def render_study(
    title: str,
    verdict: Sequence[str],
    sections: Sequence[Section],
    facts: Mapping[str, str],
    job_toml: str,
    notes: Sequence[str] = (),
) -> str:
    """The page as one string of HTML; the same content gives the same page.

    The first sentence of ``verdict`` is in large letters. ``facts`` are by name; ``notes`` say what disturbed the
    study.
    """
    page = page_template("studies/study.html")
    return page.render(title=title, verdict=verdict, sections=sections, facts=facts, job_toml=job_toml, notes=notes)
