"""Pieces of an ONNX graph: a network's layers, piecewise-linear curves, columns on a grid or within bounds.

Everything behind the network is computed in float64, as numpy does it. ONNX has no operator for a curve, so the
interval of a value is found by a binary search of about ten Gather and Where steps, for all columns at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from sfg_dist.data.tails import LARGEST_LOG, LEAST_TAIL, Tail
from sfg_dist.data.transform import Transform
from sfg_dist.job.errors import ExportError
from sfg_dist.model.calibration import Calibration
from sfg_dist.model.local_maps import LocalMaps
from sfg_dist.model.mlp import MLP, ResidualBlock
from sfg_dist.model.onnx_coding import add_decoded, add_ends, add_gaps, add_places
from sfg_dist.model.pair_maps import PairMaps

_Array = NDArray[np.float64]
PARTS_AT_ONCE = 8  # of local maps, whose products with rows are held together

OPSET, IR_VERSION = 20, 10


@dataclass(frozen=True)
class Value:
    """A value of a graph. Operators add their node to it; numbers and arrays become constants in their own dtype."""

    graph: Graph
    name: str

    def __add__(self, other: Operand) -> Value:
        return self.graph.add("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.graph.add("Sub", self, other)

    def __mul__(self, other: Operand) -> Value:
        return self.graph.add("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return self.graph.add("Div", self, other)

    def clipped(self, low: Operand, high: Operand) -> Value:
        """The value within these bounds."""
        return self.graph.add("Min", self.graph.add("Max", self, low), high)

    def cast(self, dtype: int) -> Value:
        """The value in another dtype."""
        return self.graph.add("Cast", self, to=dtype)

    def gather(self, index: Value, **attributes: Any) -> Value:
        """The parts of the value that an index names."""
        return self.graph.add("Gather", self, index, **attributes)


Operand = Value | NDArray[Any] | np.generic


class Graph:
    """Nodes and constants as they are added; values are named by what made them."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def input(self, name: str) -> Value:
        """An input of the graph."""
        return Value(self, name)

    def add(self, operator: str, *inputs: Operand, **attributes: Any) -> Value:
        """Add an operator with one output, which is returned."""
        names = [each.name if isinstance(each, Value) else self.constant(each).name for each in inputs]
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], name=name, **attributes))
        return Value(self, name)

    def constant(self, array: NDArray[Any] | np.generic) -> Value:
        """Add numbers, in their own dtype."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return Value(self, name)


def add_network(graph: Graph, network: MLP, inputs: Value) -> Value:
    """Labels of inputs, float32.

    Raises:
        ExportError: the network has a layer that is not known here.
    """
    hidden = inputs
    for layer in network.hidden:
        hidden = add_layer(graph, layer, hidden)
    labels = add_layer(graph, network.out, hidden)
    return labels if network.skip is None else labels + add_layer(graph, network.skip, inputs)


def add_layer(graph: Graph, layer: nn.Module, value: Value) -> Value:
    """What a layer makes of a value, float32.

    Raises:
        ExportError: the layer is not known here.
    """
    if isinstance(layer, ResidualBlock):
        inner = value
        for part in (layer.norm, layer.expand, layer.activation, layer.project):
            inner = add_layer(graph, part, inner)
        return value + inner
    if isinstance(layer, nn.Linear):
        return graph.add("Gemm", value, *_numbers(layer.weight, layer.bias), transB=1)
    if isinstance(layer, nn.LayerNorm):
        numbers = _numbers(layer.weight, layer.bias)
        return graph.add("LayerNormalization", value, *numbers, axis=-1, epsilon=layer.eps)
    if isinstance(layer, nn.SiLU):
        return value * graph.add("Sigmoid", value)
    if isinstance(layer, nn.GELU):
        return graph.add("Gelu", value, approximate=layer.approximate)
    if isinstance(layer, nn.ReLU | nn.Tanh):
        return graph.add("Relu" if isinstance(layer, nn.ReLU) else "Tanh", value)
    raise ExportError(f"a layer of kind {type(layer).__name__} cannot be exported to onnx")


def _numbers(*parameters: Tensor | None) -> list[NDArray[np.float32]]:
    return [parameter.detach().cpu().numpy() for parameter in parameters if parameter is not None]


def add_calibration(graph: Graph, calibration: Calibration, labels: Value) -> Value:
    """Calibrated labels, float64 in and out, rounded to float32 on the way as ``Calibration`` does."""
    rows = labels
    rounds = (calibration.centers, calibration.maps, calibration.shifts, calibration.knots, calibration.values)
    for center, linear, shift, knots, values in zip(*rounds, strict=True):
        rows = graph.add("MatMul", rows - center, linear) + shift
        rows = _add_column_maps(graph, knots, values, rows)
    if len(calibration.pairs):
        rows = _add_pair_maps(graph, calibration.pairs, rows, calibration.centers.shape[1])
    if len(calibration.local):
        rows = _add_local_maps(graph, calibration.local, rows)
    return rows.cast(TensorProto.FLOAT).cast(TensorProto.DOUBLE)


def _add_column_maps(graph: Graph, knots: _Array, values: _Array, rows: Value) -> Value:
    """``map_columns`` of rows, float64."""
    inside = rows.clipped(graph.constant(knots[:, 0]), graph.constant(knots[:, -1]))
    return add_curves(graph, list(knots), list(values), inside) + (rows - inside)


def _add_local_maps(graph: Graph, local: LocalMaps, rows: Value) -> Value:
    """``LocalMaps`` of rows, float64."""
    num_parts, dim = local.parts.shape
    logits = (graph.add("MatMul", rows, local.parts.T.copy()) - (local.parts**2).sum(axis=1) / 2) / local.width**2
    weights = graph.add("Softmax", logits, axis=1)
    row, moved = graph.add("Unsqueeze", rows, np.array([1])), rows
    for first in range(0, num_parts, PARTS_AT_ONCE):
        maps = local.maps[first : first + PARTS_AT_ONCE]
        some = graph.add("Slice", weights, np.array([first]), np.array([first + len(maps)]), np.array([1]))
        by_part = graph.add("Unsqueeze", some, np.array([2])) * row
        weighted = graph.add("Reshape", by_part, np.array([-1, len(maps) * dim]))
        moved = moved + graph.add("MatMul", weighted, maps.reshape(-1, dim))
    return _add_column_maps(graph, local.knots, local.values, moved + graph.add("MatMul", weights, local.shifts))


def _add_pair_maps(graph: Graph, pairs: PairMaps, rows: Value, dim: int) -> Value:
    """``PairMaps`` of rows, float64: they split the columns, map one after the other, and join them again."""
    names = [f"column_{len(graph.nodes)}_{index}" for index in range(dim)]
    graph.nodes.append(helper.make_node("Split", [rows.name], names, axis=1, num_outputs=dim))
    columns = [Value(graph, name) for name in names]
    parts = (pairs.centers, pairs.means, pairs.spreads, pairs.knots, pairs.shifts)
    for (i, j), centers, means, spreads, knots, shifts in zip(pairs.columns, *parts, strict=True):
        window, share = _add_place(graph, centers, columns[i])
        mean, spread = (_add_between(graph.constant(array), window, share) for array in (means, spreads))
        residual = (columns[j] - mean) / spread
        knot, rest = _add_place(graph, knots, residual)
        corner = window * np.int64(len(knots)) + knot
        table = graph.constant(shifts.ravel())
        lower = _add_between(table, corner, rest)
        upper = _add_between(table, corner + np.int64(len(knots)), rest)
        between = lower + share * (upper - lower)
        columns[j] = columns[j] + spread * between
    return graph.add("Concat", *columns, axis=1)


def _add_place(graph: Graph, knots: _Array, values: Value) -> tuple[Value, Value]:
    """The interval of each value, int64, and how far into it."""
    inside = values.clipped(knots[0], knots[-1])
    place = add_curves(graph, [knots], [np.arange(len(knots), dtype=np.float64)], inside)
    interval = graph.add("Min", place.cast(TensorProto.INT64), np.int64(len(knots) - 2))
    return interval, place - interval.cast(TensorProto.DOUBLE)


def _add_between(table: Value, index: Value, share: Value) -> Value:
    start = table.gather(index)
    stop = table.gather(index + np.int64(1))
    return start + share * (stop - start)


def add_inverse(graph: Graph, transform: Transform, columns: NDArray[np.intp], flow_rows: Value) -> Value:
    """Some columns of ``Transform.inverse``: from the flow's rows, float64, to the user's values.

    ``columns`` says which flow columns, ascending, ``flow_rows`` of shape (num_rows, len(columns)) has.
    """
    low, high = transform.bounds[columns].T
    if transform.curves:
        curves = [transform.curves[column] for column in columns]
        values = _add_curves_of(graph, [(c.scores, c.values) for c in curves], flow_rows)
        for side in (-1, 1):
            values = _add_tail(graph, transform, columns, side, flow_rows, values, inverse=True)
    else:
        values = flow_rows * transform.scale[columns] + transform.location[columns]
        values = _add_reflection(graph, low, high, values)
    inner_values = values.clipped(low, high)
    codings = [transform.codings[column] for column in columns]
    values = add_ends(graph, codings, inner_values)
    steps = transform.steps[columns]
    if not steps.any():
        return add_decoded(graph, codings, inner_values, values)
    has_grid = graph.constant(steps > 0)
    step, offset = graph.constant(np.where(steps > 0, steps, 1.0)), graph.constant(transform.offsets[columns])
    inner = graph.constant(transform.offsets[columns] - transform.origins[columns])
    cells = graph.add("Floor", (values - inner) / step)
    first, last = (graph.constant(transform.cell_ranges[columns, side]) for side in (0, 1))
    on_grid = offset + cells.clipped(first, last) * step
    decimals = [grid.num_decimals if grid else 0 for grid in (transform.grid(column) for column in columns)]
    power = graph.constant(10.0 ** np.minimum(decimals, 22))
    limit = graph.constant(2.0**52 / 10.0 ** np.minimum(decimals, 300))
    rounded = graph.add("Round", on_grid * power) / power
    is_exact = graph.add("Less", graph.add("Abs", on_grid), limit)
    values = graph.add("Where", has_grid, graph.add("Where", is_exact, rounded, on_grid), values)
    return add_decoded(graph, codings, inner_values, values)


def _add_reflection(graph: Graph, low: _Array, high: _Array, values: Value) -> Value:
    half = graph.constant((high - low) / 2)
    one, reflected = graph.constant(np.float64(1)), values
    for end, operator in ((high, "Greater"), (low, "Less")):
        beyond = values - end
        share = beyond / half
        inside = beyond / (share * share + one)
        inner = graph.constant(end) - inside
        reflected = graph.add("Where", graph.add(operator, values, end), inner, reflected)
    return reflected


def add_forward(graph: Graph, transform: Transform, columns: NDArray[np.intp], values: Value) -> Value:
    """Some columns of ``Transform.forward``, float64: a value on a grid or an atom goes to the middle of its place."""
    steps, codings, given = transform.steps[columns], [transform.codings[column] for column in columns], values
    values = add_places(graph, codings, values)
    if steps.any():
        step, offset = graph.constant(np.where(steps > 0, steps, 1.0)), graph.constant(transform.offsets[columns])
        places = (values - offset) / step
        whole = graph.add("Round", places)
        rounding = graph.constant(np.where(steps > 0, 0.51 * 2.0**-23 / np.where(steps > 0, steps, 1.0), 0.0))
        tolerance = graph.add("Abs", values) * rounding + np.float64(1e-6)
        tolerance = graph.add("Min", tolerance, np.float64(0.25))
        is_whole = graph.add("LessOrEqual", graph.add("Abs", places - whole), tolerance)
        middle = graph.add("Where", is_whole, whole, places) + np.float64(0.5)
        inner = graph.constant(transform.offsets[columns] - transform.origins[columns])
        spread = inner + middle * step
        values = graph.add("Where", steps > 0, spread, values)
    values = add_gaps(graph, codings, given, values)
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
    return (values - transform.location[columns]) / transform.scale[columns]


def _add_tail(
    graph: Graph,
    transform: Transform,
    columns: NDArray[np.intp],
    side: int,
    places: Value,
    mapped: Value,
    *,
    inverse: bool,
) -> Value:
    """What a curve gives, but beyond the outermost rows the law of its tail."""
    of_side, curves = max(side, 0), transform.curves
    ends, laws = transform.bounds[:, of_side], transform.tails[:, of_side]
    found = [Tail.of(curves[column], ends[column], side, laws[column]) for column in columns]
    if inverse:
        found = [tail if tail and tail.is_drawn else None for tail in found]
    if not any(found):
        return mapped
    some = [tail or Tail(side, 0.0, 0.0, 1.0, 1.0) for tail in found]
    parts = [(tail.value, tail.score, tail.rate, tail.room, tail.shape or 1.0) for tail in some]
    value, score, rate, room, shape = np.array(parts).T
    has_shape = graph.constant(np.array([tail.shape > 0 for tail in some]))
    zero, one, two, sign = (graph.constant(np.float64(number)) for number in (0, 1, 2, side))
    outside = (places - graph.constant(score if inverse else value)) * sign
    is_tail = graph.constant(np.array([tail is not None for tail in found]))
    beyond = graph.add("And", graph.add("Greater", outside, zero), is_tail)
    squared = graph.constant(score**2)
    if inverse:
        fall = (squared - places * places) / two
        kept = graph.add("Exp", fall) * -np.expm1(-room)
        hazard = graph.add("Log", kept + np.exp(-room)) * np.float64(-1)
        power = graph.add("Exp", graph.add("Min", hazard * shape, np.float64(LARGEST_LOG))) - one
        excess = graph.add("Where", has_shape, power / shape, hazard)
        tail = graph.constant(value) + excess / (side * rate)
    else:
        excess = graph.add("Max", outside, zero) * rate
        hazard = graph.add("Where", has_shape, graph.add("Log", excess * shape + one) / shape, excess)
        left = graph.add("Exp", graph.add("Min", hazard - room, zero))
        left = graph.add("Log", graph.add("Max", one - left, np.float64(LEAST_TAIL)))
        fall = hazard - left + np.log(-np.expm1(-room))
        tail = graph.add("Sqrt", squared + fall * two) * sign
    return graph.add("Where", beyond, tail, mapped)


def _add_curves_of(
    graph: Graph, curves: Sequence[tuple[_Array, _Array]], places: Value, at_knots: Sequence[_Array] | None = None
) -> Value:
    knots, heights = [knots for knots, _ in curves], [heights for _, heights in curves]
    return add_curves(graph, knots, heights, places, bounded=True, at_knots=at_knots)


def add_curves(
    graph: Graph,
    knots: Sequence[_Array],
    heights: Sequence[_Array],
    places: Value,
    *,
    bounded: bool = False,
    at_knots: Sequence[_Array] | None = None,
) -> Value:
    """One polyline a column, whose first and last piece go on for ever, at places float64, shape (num_rows, columns).

    ``knots``, ascending, and ``heights`` are one array a column each. If ``bounded``, a place never goes over the
    height of the knot after it, as in ``Curve``. ``at_knots`` are the heights at the knots themselves, where some are
    equal that of the last one; ``heights`` by default.
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
    count = (places * np.float64(0.0)).cast(TensorProto.INT64)
    step = size // 2
    while step:
        tried = count + np.int64(step)
        is_below = graph.add("LessOrEqual", table.gather(tried + (starts - 1)), places)
        count = graph.add("Where", is_below, tried, count)
        step //= 2
    ends = graph.constant(np.array([len(xs) - 2 for xs in knots], dtype=np.int64))
    index = (count - np.int64(1)).clipped(np.int64(0), ends) + start

    def at(array: _Array) -> Value:
        return graph.constant(array.ravel()).gather(index)

    beyond = places - table.gather(index)
    followed = at(flat_heights) + beyond * at(slopes)
    if bounded:
        followed = graph.add("Min", followed, at(limits))
    if at_knots is None:
        return followed
    flat_exact = np.zeros((len(knots), size))
    for column, exact in enumerate(at_knots):
        flat_exact[column, : len(exact)] = exact
    is_knot = graph.add("Equal", beyond, np.float64(0))
    return graph.add("Where", is_knot, at(flat_exact), followed)
