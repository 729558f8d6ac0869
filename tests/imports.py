"""What importing costs: modules of ours are imported in a process of their own, one after the other."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import NamedTuple

from patience import patience

from sfg_dist.job.threads import SETTINGS

LIBRARIES = ("torch", "ray", "dask", "zarr", "sklearn", "pyarrow", "h5py", "scipy.special", "scipy.spatial")
LIGHT = ("sfg_dist", "sfg_dist.data", "sfg_dist.cli.main", "sfg_dist.store")
HEAVY = (
    "sfg_dist.flow",
    "sfg_dist.distributed.fit.training",
    "sfg_dist.distributed.labels.actors",
    "sfg_dist.pipeline.pipeline",
)
PROGRAM = """
import importlib, json, os, sys
before, found = dict(os.environ), {}
for name in sys.argv[2:]:
    importlib.import_module(name)
    loaded = [library for library in sys.argv[1].split() if library in sys.modules]
    found[name] = [loaded, dict(os.environ) == before]
print(json.dumps(found))
"""


class Imported(NamedTuple):
    """After the import of a module and of all that were imported before it."""

    libraries: set[str]
    leaves_environment: bool


@functools.cache
def _imported(modules: tuple[str, ...]) -> dict[str, Imported]:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", PROGRAM, " ".join(LIBRARIES), *modules]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=patience(120))
    return {name: Imported(set(found[0]), found[1]) for name, found in json.loads(done.stdout).items()}


def imported(module: str) -> Imported:
    """Once the modules before it in its list, and then it, are imported: what is not there then, none of them loads."""
    return _imported(LIGHT if module in LIGHT else HEAVY)[module]
