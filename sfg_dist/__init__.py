"""sfg_dist turns a table of samples into a one-step generator.

    >>> import sfg_dist
    >>> metrics = sfg_dist.run("jobs/quickstart.toml")                  # doctest: +SKIP
    >>> generator = sfg_dist.Generator.load("runs/quickstart/model")    # doctest: +SKIP
    >>> rows = generator.sample(1000, seed=0)                           # doctest: +SKIP

Importing the package loads neither torch nor ray: each public name brings what it needs when it is first used.

The package is a house of eleven rooms, each a folder. A room may import rooms on the floors below it, never above:
``cli`` at the top, then ``studies``, ``pipeline``, ``distributed``, ``model``, ``store``, ``data``; below these
``flow``, ``evaluate`` and ``launch``; and ``job`` at the bottom.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sfg_dist.job.version import __version__

if TYPE_CHECKING:
    from sfg_dist.flow import Reference, label_latents, log_density, score
    from sfg_dist.job.errors import SfgError
    from sfg_dist.model.generator import Generator
    from sfg_dist.pipeline.fit import fit
    from sfg_dist.pipeline.pipeline import run
    from sfg_dist.pipeline.streamed import open_reference
    from sfg_dist.store import Pairs, open_pairs

_HOMES = {
    "Generator": "sfg_dist.model.generator",
    "Pairs": "sfg_dist.store",
    "Reference": "sfg_dist.flow",
    "SfgError": "sfg_dist.job.errors",
    "fit": "sfg_dist.pipeline.fit",
    "label_latents": "sfg_dist.flow",
    "log_density": "sfg_dist.flow",
    "open_pairs": "sfg_dist.store",
    "open_reference": "sfg_dist.pipeline.streamed",
    "run": "sfg_dist.pipeline.pipeline",
    "score": "sfg_dist.flow",
}

__all__ = [
    "Generator",
    "Pairs",
    "Reference",
    "SfgError",
    "__version__",
    "fit",
    "label_latents",
    "log_density",
    "open_pairs",
    "open_reference",
    "run",
    "score",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sfg_dist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
