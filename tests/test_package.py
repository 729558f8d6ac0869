"""The package as a whole: what importing it costs, and what its pages and docstrings show is run."""

import doctest
import importlib
import os
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
from commands import sfg
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


def readme_commands():
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip().startswith((".venv/bin/sfg", "sfg "))]


@pytest.mark.parametrize("command", sorted(set(readme_commands())))
def test_readme_commands_name_what_exists(command, monkeypatch):
    """Every command of the README parses; its job files exist and take the keys that it sets."""
    from sfg_dist.job.config import load_job

    words = shlex.split(command)[1:]
    done = sfg(".", words[0], "--help")
    for option in (word for word in words if word.startswith("--") and " " not in word):  # not those of another command
        assert option in done.stdout, command
    monkeypatch.chdir(ROOT)
    jobs = [word for word in words[1:2] if word.startswith("jobs/")]
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    for job in jobs:
        load_job(job, overrides)


SMALLER = {
    '"max_rows": 2000': '"max_rows": 500',
    '"num_pairs": 8192': '"num_pairs": 512',
    '"num_epochs": 5': '"num_epochs": 1, "width": 16, "depth": 1',
    '"executor": {"kind": "inline"}': '"executor": {"kind": "inline"}, "evaluate": {"num_samples": 200}',
}


@pytest.mark.slow
def test_readme_python_runs(tmp_path, monkeypatch, no_pictures):
    """The README's Python, line by line, with smaller numbers in its job."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    (block,) = (text for text in blocks if "log_prob" not in text)  # that one: tests/test_likelihood.py
    for said, smaller in SMALLER.items():
        assert block.count(said) == 1
        block = block.replace(said, smaller)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
