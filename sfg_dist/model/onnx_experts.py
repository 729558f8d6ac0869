"""The pieces of an ONNX graph of a network of experts: the rows of each expert go through it alone."""

from __future__ import annotations

import numpy as np

from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.onnx_graph import Graph, Value, add_layer, add_network


def add_expert_network(graph: Graph, network: ExpertNetwork, inputs: Value) -> Value:
    """Labels of inputs, float32.

    Raises:
        ExportError: the network has a layer that is not known here.
    """
    logits = inputs
    for layer in network.gate:
        logits = add_layer(graph, layer, logits)
    chosen = graph.add("ArgMax", logits + network.offsets.cpu().numpy(), axis=1, keepdims=0)
    places, labels = [], []
    for index in range(network.experts):
        is_here = graph.add("Equal", chosen, np.int64(index))
        place = graph.add("Squeeze", graph.add("NonZero", is_here), np.array([0]))
        places.append(place)
        labels.append(add_network(graph, network.expert(index), inputs.gather(place, axis=0)))
    num_rows = graph.add("Shape", inputs, start=0, end=1)
    shape = graph.add("Concat", num_rows, np.array([network.dim]), axis=0)
    empty = graph.add("Expand", np.zeros((1, 1), np.float32), shape)
    order = graph.add("Unsqueeze", graph.add("Concat", *places, axis=0), np.array([1]))
    return graph.add("ScatterND", empty, order, graph.add("Concat", *labels, axis=0))
