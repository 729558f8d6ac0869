"""The package as a whole: what importing it costs, and what its pages and docstrings show is run."""

import doctest
import importlib
import os
import pkgutil
import re
from pathlib import Path

import pytest
from imports import imported

import sfg_dist

ROOT = Path(__file__).parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages(sfg_dist.__path__, "sfg_dist."))
PAGES = sorted(ROOT.glob("*.md"))
SOURCES = sorted((ROOT / "sfg_dist").rglob("*.py"))


def test_importing_the_package_loads_neither_torch_nor_ray():
    assert imported("sfg_dist").libraries == set()
    assert imported("sfg_dist.cli.main").libraries == set()


@pytest.mark.slow
def test_each_room_loads_no_more_than_it_may():
    assert imported("sfg_dist.flow").libraries == {"torch"}
    assert "torch" not in imported("sfg_dist.store").libraries
    for name in (
        "sfg_dist.distributed.fit.training",
        "sfg_dist.distributed.labels.actors",
        "sfg_dist.pipeline.pipeline",
    ):
        assert not {"ray", "scipy.special", "scipy.spatial"} & imported(name).libraries


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="no groups without pytest-xdist")
def test_the_suite_runs_in_its_groups(request):
    assert request.node.nodeid.endswith("@test_package.py"), "pytest-xdist does not see the groups of conftest.py"


def test_public_names():
    for name in sfg_dist.__all__:
        assert getattr(sfg_dist, name) is not None
    assert set(sfg_dist.__all__) <= set(dir(sfg_dist))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sfg_dist.nonsense


def module_of(source):
    """The name of the module that a file of the package holds."""
    return ".".join(source.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_module_is_imported():
    assert {module_of(source) for source in SOURCES} == {"sfg_dist", *MODULES}
    for name in MODULES:
        importlib.import_module(name)


@pytest.mark.parametrize("name", [module_of(source) for source in SOURCES if ">>>" in source.read_text()])
def test_docstring_examples(name):
    import numpy as np
    import torch

    module = importlib.import_module(name)
    failures, _ = doctest.testmod(
        module, extraglobs={"np": np, "torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failures == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
