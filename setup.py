"""Puts the jobs and cluster files into the wheel, inside the package; everything else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShipped(build_py):
    """Builds the package with ``jobs`` and ``cluster`` in its folder ``shipped``; an editable one finds them here."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            for folder in ("jobs", "cluster"):
                place = Path(self.build_lib) / "sfg_dist" / "shipped" / folder
                shutil.copytree(folder, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithShipped})
