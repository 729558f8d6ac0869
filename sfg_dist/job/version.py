"""The one place that names the version, and those that a store keeps."""

from functools import cache

__version__ = "0.2.0"


def versions() -> dict[str, str]:
    """Versions that decide the last bits: of this package, numpy and torch."""
    return {"sfg_dist": __version__} | {name: _installed(name) for name in ("numpy", "torch")}


@cache  # to look it up takes milliseconds, and each shard has it in its record
def _installed(name: str) -> str:
    import importlib.metadata  # it imports "random", which may be a file of the user's until the search path is clean

    return importlib.metadata.version(name)
