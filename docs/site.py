"""What the site has beyond the pages in this folder: references made from the code, pages of the project, formulas.

MkDocs calls the functions whose names begin with ``on_``.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_DISPLAY, _INLINE = re.compile(r"\$\$(.+?)\$\$", re.DOTALL), re.compile(r"\$([^$\n]+)\$")
_PLACE = "formula{}formula"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the project's own pages and the references."""
    from mkdocs.structure.files import File

    texts = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in ROOT_PAGES.items()}
    texts |= {"reference/keys.md": keys(), "reference/commands.md": commands(), "reference/python.md": python()}
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between pages of this folder and pages of the project; formulas wait until the text is HTML."""
    source = next((name for name, where in ROOT_PAGES.items() if where == page.file.src_uri), None)
    formulas = page.meta.setdefault("formulas", [])
    parts = _CODE.split(markdown)
    return "".join(
        part if index % 2 else _set_aside(_links(part, page.file.src_uri, source), formulas)
        for index, part in enumerate(parts)
    )


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    for number, (formula, display) in enumerate(page.meta.get("formulas", [])):
        html = html.replace(_PLACE.format(number), convert(formula, display=display))
    return html


def on_post_build(config: MkDocsConfig) -> None:
    """Every picture that a page shows must be there: MkDocs looks at links alone.

    Raises:
        FileNotFoundError: one is not.
    """
    for page in Path(config.site_dir).rglob("*.html"):
        for source in re.findall(r'<img[^>]* src="([^":]+)"', page.read_text(encoding="utf-8")):
            if not (page.parent / source).is_file():
                raise FileNotFoundError(f"{page.name} shows {source}, which is not there")


def _set_aside(text: str, formulas: list[tuple[str, str]]) -> str:
    """A word of its own in place of each formula, which Markdown would take apart."""

    def placed(found: re.Match[str], display: str) -> str:
        formulas.append((found[1].strip(), display))
        return _PLACE.format(len(formulas) - 1)

    text = _DISPLAY.sub(lambda found: placed(found, "block"), text)
    return _INLINE.sub(lambda found: placed(found, "inline"), text)


def _links(text: str, page: str, root_page: str | None) -> str:
    """Links by the places that files have in the checkout, by those that pages have on the site."""
    folder = ROOT if root_page else (ROOT / "docs" / page).parent

    def moved(link: re.Match[str]) -> str:
        is_image, label, target = link.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in path or not (folder / path).exists():
            return link[0]
        place = (folder / path).resolve().relative_to(ROOT).as_posix()
        if place in ROOT_PAGES:
            place = f"docs/{ROOT_PAGES[place]}"
        if not place.startswith("docs/") or not (is_image or place.endswith(".md")):
            return f"{label}"  # a file of the checkout
        up = "../" * page.count("/")
        return f"{is_image}[{label}]({up}{place.removeprefix('docs/')}{'#' + anchor if anchor else ''})"

    return _LINK.sub(moved, text)


def keys() -> str:
    """The keys of a job, from the models that check them."""
    from sfg_dist.job.keys import job_keys

    lines = ["# Job keys", "", "```bash", "sfg keys labels.t_min", "```", ""]
    lines += ["A job is a TOML file. Only `data.source` must be given.", ""]
    for table, found in groupby(job_keys(), key=lambda key: key.table):
        lines += [f"## {table}", ""]
        for key in found:
            default = f" Default: `{key.default}`." if key.default else ""
            lines += [f"- **`{key.name}`** {key.effect} *It takes {key.takes}.*{default}"]
        lines += [""]
    return "\n".join(lines)


def commands() -> str:
    """The command line, from the commands themselves."""
    import typer.main

    from sfg_dist.cli.main import app

    group: Any = typer.main.get_command(app)
    lines = ["# Commands", "", "```bash", "sfg --help", "```", ""]
    lines += [
        "Exit status: 0 done; 1 the work failed; 2 the request was wrong; 130 interrupted, what is done is kept.",
        "",
    ]
    for name in group.list_commands(None):
        command = group.commands[name]
        context = command.make_context(f"sfg {name}", [], resilient_parsing=True)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## sfg {name}", "", f"    sfg {name} {usage}", "", command.help or "", ""]
        rows = [record for param in command.params if (record := param.get_help_record(context)) is not None]
        if rows:
            lines += ["| option | effect |", "| --- | --- |"]
            lines += [f"| `{option}` | {_cell(text)} |" for option, text in rows]
            lines += [""]
    return "\n".join(lines)


def python() -> str:
    """The public names, from their docstrings."""
    import sfg_dist

    names = [name for name in sfg_dist.__all__ if name != "__version__"]
    return "\n\n".join(["# Python", "```python\nimport sfg_dist\n```", *(f"::: sfg_dist.{name}" for name in names)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
