"""The one place that names the version, and those that a store keeps."""

import importlib.metadata

__version__ = "0.2.0"


def versions() -> dict[str, str]:
    """Versions that decide the last bits: of this package, numpy and torch."""
    return {"sfg_dist": __version__} | {name: importlib.metadata.version(name) for name in ("numpy", "torch")}
