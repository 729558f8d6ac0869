"""The pieces of an ONNX graph of a network that draws cells, column after column.

What follows the logits is computed as the network does it, in float32, and the place of a label in float64. ONNX has no
inverse of the normal distribution function: Acklam's rational approximations stand for it, good to 1.2e-9.

References:
    Acklam 2003, An algorithm for computing the inverse normal cumulative distribution function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from sfg_dist.model.cell_network import EDGE, CellNetwork, Network
from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.onnx_experts import add_expert_network
from sfg_dist.model.onnx_graph import Graph, Value, add_layer, add_network

_MIDDLE_ABOVE = (-3.969683028665376e1, 2.209460984245205e2, -2.759285104469687e2, 1.383577518672690e2,
                 -3.066479806614716e1, 2.506628277459239)  # fmt: skip
_MIDDLE_BELOW = (-5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2, 6.680131188771972e1,
                 -1.328068155288572e1, 1.0)  # fmt: skip
_TAIL_ABOVE = (-7.784894002430293e-3, -3.223964580411365e-1, -2.400758277161838, -2.549732539343734,
               4.374664141464968, 2.938163982698783)  # fmt: skip
_TAIL_BELOW = (7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0)
_TAIL = 0.02425


def add_any_network(graph: Graph, network: Network, inputs: Value) -> Value:
    """Labels of inputs, float32, of a network of any kind.

    Raises:
        ExportError: the network has a layer that is not known here.
    """
    if isinstance(network, ExpertNetwork):
        return add_expert_network(graph, network, inputs)
    if not isinstance(network, CellNetwork):
        return add_network(graph, network, inputs)
    num_given = network.dim + network.num_conditions
    given = inputs.gather(graph.constant(np.arange(num_given)), axis=1)
    hidden = given
    for layer in network.hidden:
        hidden = add_layer(graph, layer, hidden)
    state = add_layer(graph, network.start, hidden)
    if network.skip is not None:
        state = state + add_layer(graph, network.skip, given)
    embeddings = []  # of all columns but the last
    if network.embed is not None:
        embeddings = np.split(network.embed.weight.detach().cpu().numpy(), np.cumsum(network.cells)[:-2])
    places = []
    for column in range(network.dim):
        cell, place = _add_draw(graph, network, column, state, inputs, num_given + column)
        places.append(place)
        if column < len(embeddings):
            chosen = graph.constant(embeddings[column]).gather(graph.add("Squeeze", cell, np.array([1])))
            state = state + chosen
    return _add_scores(graph, graph.add("Concat", *places, axis=1)).cast(TensorProto.FLOAT)


def _add_draw(
    graph: Graph, network: CellNetwork, column: int, state: Value, inputs: Value, noise: int
) -> tuple[Value, Value]:
    """The cell that is drawn, int64, and the place of the label in it, float64, both of shape (num_rows, 1)."""
    inner = add_layer(graph, network.inner[column], add_layer(graph, network.norms[column], state))
    logits = add_layer(graph, network.logits[column], add_layer(graph, network.activation, inner))
    axis, last = np.array([1]), graph.constant(np.array([network.cells[column] - 1]))
    largest = graph.add("ReduceMax", logits, axis, keepdims=1)
    above = graph.add("CumSum", graph.add("Exp", logits - largest), np.array(1))
    erf = graph.add("Erf", inputs.gather(graph.constant(np.array([noise])), axis=1) * np.float32(np.sqrt(0.5)))
    share = (erf + np.float32(1)) * np.float32(0.5) * above.gather(last, axis=1)
    passed = graph.add("Less", above, share).cast(TensorProto.INT64)
    cell = graph.add("Min", graph.add("ReduceSum", passed, axis, keepdims=1), last)
    upper = graph.add("GatherElements", above, cell, axis=1)
    before = graph.add("GatherElements", above, graph.add("Max", cell - np.int64(1), np.int64(0)), axis=1)
    lower = graph.add("Where", graph.add("Greater", cell, np.int64(0)), before, np.float32(0))
    within = ((share - lower) / (upper - lower)).clipped(np.float32(EDGE), np.float32(1 - EDGE))
    ends = graph.constant(network.ends_of(column).cpu().numpy())
    start, stop = ends.gather(cell), ends.gather(cell + np.int64(1))
    return cell, start + within.cast(TensorProto.DOUBLE) * (stop - start)


def _add_scores(graph: Graph, places: Value) -> Value:
    """The normal scores of probabilities, float64."""
    half = np.float64(0.5)
    centered = places - half
    squared = centered * centered
    middle = centered * _polynomial(squared, _MIDDLE_ABOVE) / _polynomial(squared, _MIDDLE_BELOW)
    is_lower = graph.add("Less", places, half)
    nearer = graph.add("Where", is_lower, places, graph.constant(np.float64(1)) - places)
    root = graph.add("Sqrt", graph.add("Log", nearer) * np.float64(-2))
    lower = _polynomial(root, _TAIL_ABOVE) / _polynomial(root, _TAIL_BELOW)
    tail = graph.add("Where", is_lower, lower, lower * np.float64(-1))
    return graph.add("Where", graph.add("Less", nearer, np.float64(_TAIL)), tail, middle)


def _polynomial(value: Value, coefficients: Sequence[float]) -> Value:
    """A polynomial by Horner's rule, the highest power first."""
    total = value * np.float64(coefficients[0]) + np.float64(coefficients[1])
    for coefficient in coefficients[2:]:
        total = total * value + np.float64(coefficient)
    return total
