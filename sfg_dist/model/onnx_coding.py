"""Pieces of an ONNX graph for categories, missing values and columns that others determine.

A category goes in and out as its code, a missing value as NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from sfg_dist.data.coding import Coding, are_plain
from sfg_dist.data.dependencies import Lookup
from sfg_dist.job.errors import ExportError

if TYPE_CHECKING:
    from sfg_dist.model.onnx_graph import Graph, Value

_MAX_KEYS = 4096  # of a column that determines others: each row is compared with all of them


def add_places(graph: Graph, codings: Sequence[Coding], values: Value) -> Value:
    """Codes of category columns as their places, also of missing ones; other columns as they stand."""
    if all(coding.places is None for coding in codings):
        return values
    tables = [np.zeros(1) if coding.places is None else coding.places for coding in codings]
    placed = _looked_up(graph, tables, _filled(graph, values, np.zeros(len(codings))))
    placed = graph.add("Where", graph.add("IsNaN", values), _missing(codings), placed)
    return graph.add("Where", _are_coded(codings), placed, values)


def add_gaps(graph: Graph, codings: Sequence[Coding], given: Value, values: Value) -> Value:
    """Values with what stands for a missing one where ``given`` is NaN, in columns of numbers."""
    has_gaps = np.array([coding.places is None and not np.isnan(coding.missing) for coding in codings])
    if not has_gaps.any():
        return values
    is_gap = graph.add("And", graph.add("IsNaN", given), graph.constant(has_gaps))
    return graph.add("Where", is_gap, _missing(codings), values)


def add_decoded(graph: Graph, codings: Sequence[Coding], inner: Value, values: Value) -> Value:
    """``Coding.decode`` of columns: from the numbers before and after they are put on their grids."""
    if are_plain(codings):
        return values
    if any(coding.places is not None for coding in codings):
        tables = [np.zeros(1) if coding.places is None else coding.codes_by_place for coding in codings]
        codes = _looked_up(graph, tables, graph.add("Round", values))
        values = graph.add("Where", _are_coded(codings), codes, values)
    sides, middles = _beyond(codings)
    if sides.any():
        is_gap = graph.add("Greater", (inner - graph.constant(middles)) * graph.constant(sides), np.float64(0))
        values = graph.add("Where", is_gap, np.float64(np.nan), values)
    return values


def add_ends(graph: Graph, codings: Sequence[Coding], inner: Value) -> Value:
    """Numbers that are no missing values within the end that those lie beyond."""
    sides, _ = _beyond(codings)
    if not sides.any():
        return inner
    ends = np.array([coding.end for coding in codings])
    return inner.clipped(np.where(sides < 0, ends, -np.inf), np.where(sides > 0, ends, np.inf))


def add_lookups(graph: Graph, lookups: Sequence[Lookup], rows: Value, num_columns: int) -> Value:
    """The user's rows with the columns that others determine looked up.

    Raises:
        ExportError: a column that determines another has too many values.
    """
    found = []
    for lookup in lookups:
        if len(lookup.keys) > _MAX_KEYS:
            raise ExportError(
                f"a column that determines another has {len(lookup.keys):,} values, and a graph looks up among "
                f"{_MAX_KEYS:,}: export the network alone (--network-only)"
            )
        by = rows.gather(graph.constant(np.array([lookup.by])), axis=1)
        known = lookup.keys[~np.isnan(lookup.keys)]
        middles = graph.constant(known[:-1] / 2 + known[1:] / 2)
        above = graph.add("GreaterOrEqual", by, middles).cast(TensorProto.INT64)
        place = graph.add("ReduceSum", above, np.array([1]), keepdims=1) if len(known) > 1 else by * np.float64(0)
        place = place.cast(TensorProto.INT64)
        if len(known) < len(lookup.keys):
            place = graph.add("Where", graph.add("IsNaN", by), np.int64(len(known)), place)
        found.append(graph.constant(lookup.values).gather(place))
    if not found:
        return rows
    order = np.arange(num_columns)
    order[[lookup.column for lookup in lookups]] = num_columns + np.arange(len(lookups))
    return graph.add("Concat", rows, *found, axis=1).gather(graph.constant(order), axis=1)


def _looked_up(graph: Graph, tables: Sequence[NDArray[Any]], places: Value) -> Value:
    """The entry of each column's table at whole places, held within it."""
    sizes = np.array([len(table) for table in tables])
    starts = np.cumsum(sizes) - sizes
    index = _filled(graph, places, np.zeros(len(tables))).cast(TensorProto.INT64)
    return graph.constant(np.concatenate(tables)).gather(index.clipped(np.int64(0), sizes - 1) + starts)


def _filled(graph: Graph, values: Value, fill: NDArray[Any]) -> Value:
    return graph.add("Where", graph.add("IsNaN", values), fill, values)


def _missing(codings: Sequence[Coding]) -> NDArray[np.float64]:
    return np.array([coding.missing for coding in codings])


def _are_coded(codings: Sequence[Coding]) -> NDArray[np.bool_]:
    return np.array([coding.places is not None for coding in codings])


def _beyond(codings: Sequence[Coding]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """On which side of columns of numbers missing values lie, 0 where none do, and what divides the two."""
    is_number = [coding.places is None and not np.isnan(coding.missing) for coding in codings]
    gaps, ends = _missing(codings), np.array([coding.end for coding in codings])
    return np.where(is_number, np.sign(gaps - ends), 0.0), np.where(is_number, gaps / 2 + ends / 2, 0.0)
