"""A sound run in a world of its own, copied for each hostile case."""

from __future__ import annotations

import itertools
import shutil

import pytest
from harness import World

OUTPUT = "run"  # in the job, as the user names it: below the current directory


@pytest.fixture(scope="session")
def sound_world(small_run, tmp_path_factory):
    """The small run in the output directory of a world, with the user's own job beside it."""
    world = World.make(tmp_path_factory.mktemp("world") / "root")
    shutil.copytree(small_run.directory, world.run)
    job = (world.run / "job.toml").read_text().replace(str(small_run.directory), OUTPUT)
    for path in (world.run / "job.toml", world.work / "job.toml"):
        path.write_text(job)
    return world


@pytest.fixture
def make_world(sound_world, tmp_path, monkeypatch, no_pictures):
    """A function that gives a copy of the sound world, whose home is the user's from now on."""
    numbers = itertools.count()

    def make() -> World:
        root = tmp_path / f"root{next(numbers)}"
        shutil.copytree(sound_world.root, root, symlinks=True)
        monkeypatch.setenv("HOME", str(root / "home"))
        return World(root, allowed=[root / "work" / name for name in ("run", "rows.csv", "generator.onnx")])

    return make
