"""Pieces of an ONNX graph: a network's layers, piecewise-linear curves, columns on a grid or within bounds.

Everything that follows the network is computed in float64, as numpy does it. A curve has no operator of its own: the
interval of a value is found by a binary search of ten or so Gather and Where steps, all columns at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from sfg_dist.data.bounds import LEAST_TAIL, Tail
from sfg_dist.data.transform import Transform
from sfg_dist.job.errors import ExportError
from sfg_dist.model.calibration import Calibration
from sfg_dist.model.mlp import MLP, ResidualBlock
from sfg_dist.model.pair_maps import PairMaps

_Array = NDArray[np.float64]

OPSET, IR_VERSION = 20, 10


class Graph:
    """Nodes and constants as they are added; values are named by what made them."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output; returns the output's name."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, array: Any) -> str:
        """Add numbers, in their own dtype."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def cast(self, value: str, dtype: int) -> str:
        """A value in another dtype."""
        return self.add("Cast", value, to=dtype)


def add_network(graph: Graph, network: MLP, inputs: str) -> str:
    """Labels of inputs, float32.

    Raises:
        ExportError: the network has a layer that is not known here.
    """
    hidden = inputs
    for layer in network.hidden:
        hidden = _add_layer(graph, layer, hidden)
    labels = _add_layer(graph, network.out, hidden)
    return labels if network.skip is None else graph.add("Add", labels, _add_layer(graph, network.skip, inputs))


def _add_layer(graph: Graph, layer: nn.Module, value: str) -> str:
    if isinstance(layer, ResidualBlock):
        inner = value
        for part in (layer.norm, layer.expand, layer.activation, layer.project):
            inner = _add_layer(graph, part, inner)
        return graph.add("Add", value, inner)
    if isinstance(layer, nn.Linear):
        weights = [graph.constant(p.detach().cpu().numpy()) for p in (layer.weight, layer.bias) if p is not None]
        return graph.add("Gemm", value, *weights, transB=1)
    if isinstance(layer, nn.LayerNorm):
        weights = [graph.constant(p.detach().cpu().numpy()) for p in (layer.weight, layer.bias)]
        return graph.add("LayerNormalization", value, *weights, axis=-1, epsilon=layer.eps)
    if isinstance(layer, nn.SiLU):
        return graph.add("Mul", value, graph.add("Sigmoid", value))
    if isinstance(layer, nn.GELU):
        return graph.add("Gelu", value, approximate=layer.approximate)
    if isinstance(layer, nn.ReLU | nn.Tanh):
        return graph.add(type(layer).__name__.capitalize() if isinstance(layer, nn.Tanh) else "Relu", value)
    raise ExportError(f"a layer of kind {type(layer).__name__} cannot be exported to onnx")


def add_calibration(graph: Graph, calibration: Calibration, labels: str) -> str:
    """Calibrated labels, float64 in and out, rounded to float32 on the way as ``Calibration`` does."""
    rows = labels
    rounds = (calibration.centers, calibration.maps, calibration.shifts, calibration.knots, calibration.values)
    for center, linear, shift, knots, values in zip(*rounds, strict=True):
        rows = graph.add("MatMul", graph.add("Sub", rows, graph.constant(center)), graph.constant(linear))
        rows = graph.add("Add", rows, graph.constant(shift))
        low, high = graph.constant(knots[:, 0]), graph.constant(knots[:, -1])
        inside = graph.add("Min", graph.add("Max", rows, low), high)
        mapped = add_curves(graph, list(knots), list(values), inside)
        rows = graph.add("Add", mapped, graph.add("Sub", rows, inside))
    if len(calibration.pairs):
        rows = _add_pair_maps(graph, calibration.pairs, rows, calibration.centers.shape[1])
    return graph.cast(graph.cast(rows, TensorProto.FLOAT), TensorProto.DOUBLE)


def _add_pair_maps(graph: Graph, pairs: PairMaps, rows: str, dim: int) -> str:
    """``PairMaps`` of rows, float64: the columns apart, map by map, and together again."""
    names = [f"column_{len(graph.nodes)}_{index}" for index in range(dim)]
    graph.nodes.append(helper.make_node("Split", [rows], names, axis=1, num_outputs=dim))
    parts = (pairs.centers, pairs.means, pairs.spreads, pairs.knots, pairs.shifts)
    for (i, j), centers, means, spreads, knots, shifts in zip(pairs.columns, *parts, strict=True):
        window, share = _add_place(graph, centers, names[i])
        mean, spread = (_add_between(graph, graph.constant(array), window, share) for array in (means, spreads))
        residual = graph.add("Div", graph.add("Sub", names[j], mean), spread)
        knot, rest = _add_place(graph, knots, residual)
        corner = graph.add("Add", graph.add("Mul", window, graph.constant(np.int64(len(knots)))), knot)
        table = graph.constant(shifts.ravel())
        lower = _add_between(graph, table, corner, rest)
        upper = _add_between(graph, table, graph.add("Add", corner, graph.constant(np.int64(len(knots)))), rest)
        between = graph.add("Add", lower, graph.add("Mul", share, graph.add("Sub", upper, lower)))
        names[j] = graph.add("Add", names[j], graph.add("Mul", spread, between))
    return graph.add("Concat", *names, axis=1)


def _add_place(graph: Graph, knots: _Array, values: str) -> tuple[str, str]:
    """The interval of each value, int64, and how far into it."""
    inside = graph.add("Min", graph.add("Max", values, graph.constant(knots[0])), graph.constant(knots[-1]))
    place = add_curves(graph, [knots], [np.arange(len(knots), dtype=np.float64)], inside)
    interval = graph.cast(place, TensorProto.INT64)
    interval = graph.add("Min", interval, graph.constant(np.int64(len(knots) - 2)))
    return interval, graph.add("Sub", place, graph.cast(interval, TensorProto.DOUBLE))


def _add_between(graph: Graph, table: str, index: str, share: str) -> str:
    start = graph.add("Gather", table, index)
    stop = graph.add("Gather", table, graph.add("Add", index, graph.constant(np.int64(1))))
    return graph.add("Add", start, graph.add("Mul", share, graph.add("Sub", stop, start)))


def add_inverse(graph: Graph, transform: Transform, columns: NDArray[np.intp], flow_rows: str) -> str:
    """Some columns of ``Transform.inverse``: from the flow's rows, float64, to the user's values.

    Args:
        graph: what is added to.
        transform: the map.
        columns: which flow columns ``flow_rows`` has, ascending.
        flow_rows: shape (num_rows, len(columns)).
    """
    low, high = transform.bounds[columns].T
    if transform.curves:
        curves = [transform.curves[column] for column in columns]
        values = _add_curves_of(graph, [(c.scores, c.values) for c in curves], flow_rows)
        for side in (-1, 1):
            values = _add_tail(graph, transform, columns, side, flow_rows, values, inverse=True)
    else:
        scaled = graph.add("Mul", flow_rows, graph.constant(transform.scale[columns]))
        values = graph.add("Add", scaled, graph.constant(transform.location[columns]))
        values = _add_reflection(graph, low, high, values)
    values = graph.add("Min", graph.add("Max", values, graph.constant(low)), graph.constant(high))
    steps = transform.steps[columns]
    if not steps.any():
        return values
    has_grid = graph.constant(steps > 0)
    step, offset = graph.constant(np.where(steps > 0, steps, 1.0)), graph.constant(transform.offsets[columns])
    inner = graph.constant(transform.offsets[columns] - transform.origins[columns])
    cells = graph.add("Floor", graph.add("Div", graph.add("Sub", values, inner), step))
    low, high = (graph.constant(transform.cell_ranges[columns, side]) for side in (0, 1))
    cells = graph.add("Min", graph.add("Max", cells, low), high)
    on_grid = graph.add("Add", offset, graph.add("Mul", cells, step))
    decimals = [grid.num_decimals if grid else 0 for grid in (transform.grid(column) for column in columns)]
    power = graph.constant(10.0 ** np.minimum(decimals, 22))
    limit = graph.constant(2.0**52 / 10.0 ** np.minimum(decimals, 300))
    rounded = graph.add("Div", graph.add("Round", graph.add("Mul", on_grid, power)), power)
    is_exact = graph.add("Less", graph.add("Abs", on_grid), limit)
    return graph.add("Where", has_grid, graph.add("Where", is_exact, rounded, on_grid), values)


def _add_reflection(graph: Graph, low: _Array, high: _Array, values: str) -> str:
    half = graph.constant((high - low) / 2)
    one, reflected = graph.constant(np.float64(1)), values
    for end, operator in ((high, "Greater"), (low, "Less")):
        beyond = graph.add("Sub", values, graph.constant(end))
        share = graph.add("Div", beyond, half)
        inside = graph.add("Div", beyond, graph.add("Add", graph.add("Mul", share, share), one))
        inner = graph.add("Sub", graph.constant(end), inside)
        reflected = graph.add("Where", graph.add(operator, values, graph.constant(end)), inner, reflected)
    return reflected


def add_forward(graph: Graph, transform: Transform, columns: NDArray[np.intp], values: str) -> str:
    """Some columns of ``Transform.forward``, float64: a value on a grid or an atom goes to the middle of its place."""
    steps = transform.steps[columns]
    if steps.any():
        step, offset = graph.constant(np.where(steps > 0, steps, 1.0)), graph.constant(transform.offsets[columns])
        places = graph.add("Div", graph.add("Sub", values, offset), step)
        whole = graph.add("Round", places)
        rounding = graph.constant(np.where(steps > 0, 0.51 * 2.0**-23 / np.where(steps > 0, steps, 1.0), 0.0))
        tolerance = graph.add("Add", graph.add("Mul", graph.add("Abs", values), rounding), graph.constant(1e-6))
        tolerance = graph.add("Min", tolerance, graph.constant(0.25))
        is_whole = graph.add("LessOrEqual", graph.add("Abs", graph.add("Sub", places, whole)), tolerance)
        middle = graph.add("Add", graph.add("Where", is_whole, whole, places), graph.constant(0.5))
        inner = graph.constant(transform.offsets[columns] - transform.origins[columns])
        spread = graph.add("Add", inner, graph.add("Mul", middle, step))
        values = graph.add("Where", graph.constant(steps > 0), spread, values)
    if transform.curves:
        curves = [transform.curves[column] for column in columns]
        at_knots = [c.scores.copy() for c in curves]
        for curve, heights in zip(curves, at_knots, strict=True):
            middles = curve.atoms.scores(np.arange(len(curve.atoms)), np.full(len(curve.atoms), 0.5))
            heights[1:][np.diff(curve.values) == 0] = middles
        scores = _add_curves_of(graph, [(c.values, c.scores) for c in curves], values, at_knots)
        for side in (-1, 1):
            scores = _add_tail(graph, transform, columns, side, values, scores, inverse=False)
        return scores
    centered = graph.add("Sub", values, graph.constant(transform.location[columns]))
    return graph.add("Div", centered, graph.constant(transform.scale[columns]))


def _add_tail(
    graph: Graph, transform: Transform, columns: NDArray[np.intp], side: int, places: str, mapped: str, *, inverse: bool
) -> str:
    """What a curve gives, with that beyond the outermost rows replaced where the column's range is wider than they."""
    found = [Tail.of(transform.curves[column], transform.bounds[column, max(side, 0)], side) for column in columns]
    if not any(found):
        return mapped
    some = [tail or Tail(side, 0.0, 0.0, 1.0, 1.0) for tail in found]
    value, score, rate, room = np.array([[tail.value, tail.score, tail.rate, tail.room] for tail in some]).T
    zero, two, sign = (graph.constant(np.float64(number)) for number in (0, 2, side))
    start = graph.constant(score if inverse else value)
    outside = graph.add("Mul", graph.add("Sub", places, start), sign)
    is_tail = graph.constant(np.array([tail is not None for tail in found]))
    beyond = graph.add("And", graph.add("Greater", outside, zero), is_tail)
    squared = graph.constant(score**2)
    if inverse:
        fall = graph.add("Div", graph.add("Sub", squared, graph.add("Mul", places, places)), two)
        kept = graph.add("Mul", graph.add("Exp", fall), graph.constant(-np.expm1(-room)))
        log = graph.add("Log", graph.add("Add", kept, graph.constant(np.exp(-room))))
        excess = graph.add("Div", log, graph.constant(-side * rate))
        tail = graph.add("Add", graph.constant(value), excess)
    else:
        excess = graph.add("Mul", graph.add("Max", outside, zero), graph.constant(rate))
        left = graph.add("Exp", graph.add("Min", graph.add("Sub", excess, graph.constant(room)), zero))
        left = graph.add("Sub", graph.constant(np.float64(1)), left)
        left = graph.add("Log", graph.add("Max", left, graph.constant(np.float64(LEAST_TAIL))))
        fall = graph.add("Add", graph.add("Sub", excess, left), graph.constant(np.log(-np.expm1(-room))))
        tail = graph.add("Mul", graph.add("Sqrt", graph.add("Add", squared, graph.add("Mul", fall, two))), sign)
    return graph.add("Where", beyond, tail, mapped)


def _add_curves_of(
    graph: Graph, curves: Sequence[tuple[_Array, _Array]], places: str, at_knots: Sequence[_Array] | None = None
) -> str:
    knots, heights = [knots for knots, _ in curves], [heights for _, heights in curves]
    return add_curves(graph, knots, heights, places, bounded=True, at_knots=at_knots)


def add_curves(
    graph: Graph,
    knots: Sequence[_Array],
    heights: Sequence[_Array],
    places: str,
    *,
    bounded: bool = False,
    at_knots: Sequence[_Array] | None = None,
) -> str:
    """One polyline a column, its first and last piece continued for ever.

    Args:
        graph: what is added to.
        knots: ascending, one array a column.
        heights: of the same lengths.
        places: float64, shape (num_rows, number of columns).
        bounded: a place never goes over the height of the knot after it, as ``Curve`` has it.
        at_knots: heights at the knots themselves, of the last one where some are equal; default ``heights``.
    """
    size = 2
    while size <= max(map(len, knots)):
        size *= 2
    starts = np.arange(len(knots)) * size
    flat_knots = np.full((len(knots), size), np.inf)
    flat_heights, slopes, limits = np.zeros((3, len(knots), size))
    limits[:] = np.inf
    for column, (xs, ys) in enumerate(zip(knots, heights, strict=True)):
        flat_knots[column, : len(xs)], flat_heights[column, : len(xs)] = xs, ys
        widths = np.diff(xs)
        slopes[column, : len(widths)] = np.divide(np.diff(ys), widths, out=np.zeros(len(widths)), where=widths > 0)
        limits[column, : len(xs) - 2] = ys[1:-1]
    table = graph.constant(flat_knots.ravel())
    start = graph.constant(starts)
    # How many knots are at or below the place: the largest count whose last knot is.
    count = graph.add("Cast", graph.add("Mul", places, graph.constant(0.0)), to=TensorProto.INT64)
    step = size // 2
    while step:
        tried = graph.add("Add", count, graph.constant(np.int64(step)))
        last = graph.add("Add", tried, graph.constant(starts - 1))
        is_below = graph.add("LessOrEqual", graph.add("Gather", table, last), places)
        count = graph.add("Where", is_below, tried, count)
        step //= 2
    ends = graph.constant(np.array([len(xs) - 2 for xs in knots], dtype=np.int64))
    piece = graph.add("Sub", count, graph.constant(np.int64(1)))
    piece = graph.add("Min", graph.add("Max", piece, graph.constant(np.int64(0))), ends)
    index = graph.add("Add", piece, start)

    def at(array: _Array) -> str:
        return graph.add("Gather", graph.constant(array.ravel()), index)

    beyond = graph.add("Sub", places, graph.add("Gather", table, index))
    followed = graph.add("Add", at(flat_heights), graph.add("Mul", beyond, at(slopes)))
    if bounded:
        followed = graph.add("Min", followed, at(limits))
    if at_knots is None:
        return followed
    flat_exact = np.zeros((len(knots), size))
    for column, exact in enumerate(at_knots):
        flat_exact[column, : len(exact)] = exact
    is_knot = graph.add("Equal", beyond, graph.constant(np.float64(0)))
    return graph.add("Where", is_knot, at(flat_exact), followed)
