"""The one place that names the version, and those that a store keeps."""

__version__ = "0.2.0"


def versions() -> dict[str, str]:
    """Versions that decide the last bits: of this package, numpy and torch."""
    import importlib.metadata  # it imports "random", which may be a file of the user's until the search path is clean

    return {"sfg_dist": __version__} | {name: importlib.metadata.version(name) for name in ("numpy", "torch")}
