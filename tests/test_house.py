"""The house is as CONTRIBUTING.md draws it, and stays small enough to live in."""

import ast
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sfg_dist"
SOURCES = {source.relative_to(PACKAGE).as_posix(): source for source in PACKAGE.rglob("*.py")}
ROOMS = {source.parent.name for source in PACKAGE.glob("*/__init__.py")}
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]
KERNELS = ("flow/posterior/cpu/", "flow/posterior/cuda/")
LONG = {"launch/slurm_task.py", "job/config.py"}  # a program that is copied alone; all keys with what they do
WHOLE_NAMES = ("sfg_dist", "tests", "jobs", "cluster", "docs", "notebooks")


def floors():
    """The rooms of each floor of the import contract, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [{name.strip().removeprefix("sfg_dist.") for name in layer.split("|")} for layer in layers]


def arrows():
    """The pairs of rooms that the picture joins."""
    picture = re.search(r"```mermaid\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL).group(1)
    chains = [line.split("-->") for line in picture.splitlines() if "-->" in line]
    return {(above.strip(), below.strip()) for chain in chains for above, below in pairwise(chain)}


def test_the_picture_is_the_import_contract():
    drawn = {(above, below) for upper, lower in pairwise(floors()) for above in upper for below in lower}
    assert arrows() == drawn
    assert set().union(*floors()) == ROOMS


def test_the_hall_is_not_crowded():
    names = {name.split("/")[0] for name in SOURCES} - {"__init__.py", "__main__.py", "sklearn.py"}  # doors
    assert names == ROOMS
    assert len(names) <= 12


@pytest.mark.parametrize("folder", sorted({str(Path(name).parent) for name in SOURCES}))
def test_a_folder_says_what_it_is_for(folder):
    text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
    assert text is not None
    assert len(re.findall(r"\.(\s|$)", text)) >= 2
    for name in re.findall(r"``([a-z_]+)``", " ".join(re.findall(r"\(([^()]*)\)", text))):
        assert (PACKAGE / folder / f"{name}.py").exists() or (PACKAGE / folder / name).is_dir(), name


def test_files_and_functions_are_short():
    long = [name for name, source in SOURCES.items() if source.read_text().count("\n") > 400]
    assert set(long) <= LONG
    for name, source in SOURCES.items():
        if name.startswith(KERNELS):
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{name}: {node.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_name_files_that_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for path in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|toml|md|yaml|ipynb|html))`", text):
        folder = path.split("/")[0]
        assert folder not in {*WHOLE_NAMES, *ROOMS} or any((root / path).exists() for root in (ROOT, PACKAGE)), path
