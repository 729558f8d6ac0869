"""Kinds of tables in memory: which library a table is of, and whether that library is there."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping

import numpy as np

from sfg_dist.job.errors import ConfigError, DataError
from sfg_dist.job.words import shown

KINDS = ("arrow", "pandas", "polars", "numpy")
SOURCES = {"arrow": "the Arrow table", "pandas": "the pandas frame", "polars": "the polars frame",
           "numpy": "the array"}  # fmt: skip


def check_container(kind: str | None) -> str | None:
    """The kind of a container as it was asked for.

    Raises:
        ConfigError: there is none of that name.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"container = {shown(kind)}: expected one of {', '.join(KINDS)}")
    return kind


def is_frame(rows: object) -> bool:
    """Whether rows are a table in memory whose columns say their types: any but an array of plain numbers."""
    if isinstance(rows, np.ndarray):
        return rows.dtype.names is not None or rows.dtype.kind in "UTSmM"
    return _is_of(rows, "pandas", "DataFrame") or hasattr(rows, "__arrow_c_stream__")


def source_of(frame: object) -> str:
    """What messages call a table in memory.

    Raises:
        DataError: it is none.
    """
    return SOURCES[kind_of(frame)]


def kind_of(frame: object) -> str:
    """The kind of a table in memory."""
    if isinstance(frame, np.ndarray):
        return "numpy"
    for module, name, advice in (
        ("pandas", "Series", "frame.to_frame()"),
        ("polars", "Series", "frame.to_frame()"),
        ("polars", "LazyFrame", "frame.collect()"),
    ):
        if _is_of(frame, module, name):
            raise DataError(f"expected a table, got a {name} of {module}: take {advice}")
    for module, name in (("pandas", "DataFrame"), ("polars", "DataFrame")):
        if _is_of(frame, module, name):
            return module
    if hasattr(frame, "__arrow_c_stream__") and not hasattr(frame, "type"):
        return "arrow"
    advice = ""
    if isinstance(frame, str) or hasattr(frame, "__fspath__"):
        advice = '; a file is named in a job: sfg_dist.run({"data": {"source": "table.csv"}})'
    elif isinstance(frame, Mapping | list | tuple):
        advice = "; pandas.DataFrame and numpy.asarray make such tables"
    raise DataError(
        f"expected a frame of pandas or polars, a table of pyarrow or an array of numpy, got {shown(frame)}{advice}"
    )


def require(kind: str) -> None:
    """Refuse a container whose library is not installed."""
    if not is_installed(kind):
        raise ConfigError(f"container = {kind!r}: {kind} is not installed")


def is_installed(kind: str) -> bool:
    """Whether the library of a container is there; those of arrow and numpy are, as this package needs them."""
    return kind in ("arrow", "numpy") or kind in sys.modules or importlib.util.find_spec(kind) is not None


def _is_of(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class of a library that may not be there; one of it brings the library with it."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))
