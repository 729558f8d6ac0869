"""The pages' templates. Each room has its own, which extends the report's and so has its look."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def page_template(name: str) -> Template:
    """A template by its room and file, such as "studies/scale/scale.html"; it may extend "evaluate/report.html"."""
    from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined

    rooms = {"evaluate", name.partition("/")[0]}
    loader = PrefixLoader({room: PackageLoader("sfg_dist", room) for room in rooms})
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
