"""A generator as one ONNX graph, checked against itself before it is handed out.

    latents (num_rows, dim) float32 [, conditions float64] [, noise float32]
        -> network -> raw_labels (num_rows, dim) float32
        -> calibration, the transform undone -> rows (num_rows, number of columns) float64, in the user's units

The number of rows is free. Random numbers stay outside: latents and noise are independent N(0, 1).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfg_dist.job.errors import ConfigError, ExportError
from sfg_dist.job.plan import Stream, normal_rows
from sfg_dist.job.version import __version__
from sfg_dist.model.cell_network import CellNetwork, Network
from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.generator import Generator

if TYPE_CHECKING:
    from sfg_dist.model.onnx_graph import Graph, Value

TOLERANCE = 1e-5
MOVED_ROWS = 0.01
CLOSE_LOGITS = 1e-4  # rounding may make the other of two experts the likelier
CHECK_ROWS = 16_381
_ROUNDING = 2.0**-22
_FAR = 1.5  # every fourth checked latent is stretched, to reach the tails


@dataclass(frozen=True)
class Agreement:
    """How far an exported graph is from its generator, on rows of its own."""

    rows: int  # rows compared
    # largest difference of the network's output, over max(1, its size), in the flow's coordinates; at most 1e-5, but
    # of a network that draws cells, of rows in the same cells, and of experts, of rows that are not between two of them
    raw_labels_max: float
    # largest difference of a value in the user's units, over the spread of its column plus its own size, in columns
    # without a step. Where a column's map is steep it enlarges a difference of labels.
    values_max: float
    values_within: float  # share of these that are at most 1e-5
    # values in another cell of their column's grid, or equal to a repeated value in one of the two alone, over all rows
    cells_differing: int

    def to_dict(self) -> dict[str, float]:
        """For a JSON document."""
        return asdict(self)


def export_onnx(generator: Generator, *, network_only: bool = False) -> tuple[bytes, Agreement]:
    """The generator as an ONNX model.

    Args:
        generator: on any device; nothing of it is changed.
        network_only: the network alone, from its input columns to labels before calibration, all float32.

    A category is its code in the columns of ``rows`` and ``conditions``: the model's property "categories" names the
    codes 0, 1, 2 and so on of each column. A missing value is NaN.

    Returns:
        The model, and how well onnxruntime's output of it agrees with the generator's.

    Raises:
        ConfigError: onnx or onnxruntime is not installed, or a column is one of dates, or of integers beyond 2^53.
        ExportError: a layer cannot be exported; or the network's outputs differ by more than 1e-5 over max(1, their
            size); or, of the same network output, a value differs by more than rounding its label to float32 does.
    """
    # Else onnxruntime keeps a number of this machine in the user's home when it is imported, and reports its use.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime  # noqa: F401
        from onnx import TensorProto, checker, helper

        from sfg_dist.model import onnx_graph as pieces
        from sfg_dist.model.onnx_cells import add_any_network
        from sfg_dist.model.onnx_coding import add_lookups
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed, and an export needs it: pip install 'sfg_dist[onnx]'"
        ) from error
    moved = [name for name, type_ in zip(generator.columns, generator.types, strict=True) if type_.offset]
    if moved and not network_only:
        raise ConfigError(
            f"column {moved[0]!r} holds {generator.types[generator.columns.index(moved[0])].words} whose offset the "
            f"graph's output would round: export the network alone (--network-only)"
        )
    graph, network = pieces.Graph(), generator.network
    inputs: list[Any] = []
    outputs = [_info("raw_labels", TensorProto.FLOAT, network.dim)]

    def taken(name: str, dtype: int, width: int) -> pieces.Value:
        inputs.append(_info(name, dtype, width))
        return graph.input(name)

    if network_only:
        graph.add("Identity", add_any_network(graph, network, taken("inputs", TensorProto.FLOAT, network.num_inputs)))
        graph.nodes[-1].output[0] = "raw_labels"
    else:
        parts, given = [taken("latents", TensorProto.FLOAT, network.dim)], None
        if network.num_conditions:
            given = taken("conditions", TensorProto.DOUBLE, network.num_conditions)
            flow_given = pieces.add_forward(graph, generator.transform, generator.split.conditions, given)
            parts.append(flow_given.cast(TensorProto.FLOAT))
        if network.num_noise:
            parts.append(taken("noise", TensorProto.FLOAT, network.num_noise))
        raw = add_any_network(graph, network, _joined(graph, parts))
        graph.nodes.append(helper.make_node("Identity", [raw.name], ["raw_labels"]))
        labels = raw.cast(TensorProto.DOUBLE)
        if generator.calibration is not None:
            labels = pieces.add_calibration(graph, generator.calibration, labels)
        values = pieces.add_inverse(graph, generator.transform, generator.split.targets, labels)
        rows = _in_order(graph, generator, values, given)
        lookups, num_columns = generator.transform.lookups, len(generator.columns)
        graph.add("Identity", add_lookups(graph, lookups, rows, num_columns))
        graph.nodes[-1].output[0] = "rows"
        outputs.insert(0, _info("rows", TensorProto.DOUBLE, len(generator.columns)))
    model = helper.make_model(
        helper.make_graph(graph.nodes, "generator", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", pieces.OPSET)],
        ir_version=pieces.IR_VERSION,
        producer_name="sfg_dist",
        producer_version=__version__,
    )
    helper.set_model_props(model, {name: json.dumps(fact) for name, fact in _facts(generator).items()})
    checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    return content, check_agreement(content, generator, network_only=network_only)


def _facts(generator: Generator) -> dict[str, Any]:
    """What the model says of its columns."""
    named = zip(generator.columns, generator.types, strict=True)
    categories = {name: list(type_.categories) for name, type_ in named if type_.is_coded}
    facts: dict[str, Any] = {"columns": list(generator.columns), "condition": list(generator.condition)}
    return facts | ({"categories": categories} if categories else {})


def _info(name: str, dtype: int, width: int) -> Any:
    """An input or output of the graph, for any number of rows."""
    from onnx import helper

    return helper.make_tensor_value_info(name, dtype, ["num_rows", width])


def _joined(graph: Graph, parts: Sequence[Value]) -> Value:
    return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)


def _in_order(graph: Graph, generator: Generator, values: Value, given: Value | None) -> Value:
    """The user's columns, from the values of the target columns, the conditions as given, and the constants."""
    constants = generator.transform.constants
    flow_columns, constant_columns = np.flatnonzero(np.isnan(constants)), np.flatnonzero(~np.isnan(constants))
    parts, places = [values], [flow_columns[generator.split.targets]]
    if given is not None:
        parts.append(given)
        places.append(flow_columns[generator.split.conditions])
    if len(constant_columns):
        num_rows = graph.add("Shape", values, start=0, end=1)
        shape = graph.add("Concat", num_rows, np.array([len(constant_columns)]), axis=0)
        parts.append(graph.add("Expand", constants[constant_columns][None], shape))
        places.append(constant_columns)
    order = np.argsort(np.concatenate(places))
    return _joined(graph, parts).gather(graph.constant(order), axis=1)


def check_agreement(content: bytes, generator: Generator, *, network_only: bool = False) -> Agreement:
    """Run a model beside its generator.

    Raises:
        ExportError: they differ.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    network, transform = generator.network, generator.transform
    drawn = normal_rows(0, Stream.EXPORT, 0, CHECK_ROWS, network.num_inputs)
    drawn[::4] *= _FAR
    if network_only:
        (found,) = session.run(None, {"inputs": drawn})
        wanted = generator.predict_raw(drawn)
        difference, _ = _labels_difference(network, drawn, found, wanted)
        return Agreement(len(drawn), difference, 0.0, 1.0, 0)
    latents, _, noise = np.split(drawn, np.cumsum([network.dim, network.num_conditions]), axis=1)
    feed: dict[str, NDArray[Any]] = {"latents": np.ascontiguousarray(latents)}
    given = None
    if network.num_conditions:
        flow_rows = np.zeros((len(drawn), transform.dim))
        flow_rows[:, generator.split.conditions] = drawn[:, network.dim : network.dim + network.num_conditions]
        feed["conditions"] = given = np.ascontiguousarray(transform.inverse(flow_rows)[:, generator.split.places])
    if network.num_noise:
        feed["noise"] = np.ascontiguousarray(noise)
    rows, raw = session.run(["rows", "raw_labels"], feed)
    for size in (1, 2):  # the number of rows is free
        again = session.run(["rows"], {name: array[:size] for name, array in feed.items()})[0]
        if again.shape != (size, len(generator.columns)):
            raise ExportError(f"the exported graph gives {again.shape} for {size} rows")
    network_inputs = generator.network_inputs(np.concatenate([latents, noise], axis=1), given)
    wanted = generator.predict_raw(network_inputs)
    difference, is_same = _labels_difference(network, network_inputs, raw, wanted)
    labels = generator.calibrate(raw)
    # Of the same raw labels, a value may be what the rounding of a label to float32 makes of it: each column's map is
    # monotone.
    reach = _ROUNDING * np.maximum(1.0, np.abs(labels.astype(np.float64)))
    low, high = (_comparable(generator.rows_of(labels + side * reach, given), generator) for side in (-1, 1))
    exact = _comparable(generator.rows_of(generator.calibrate(wanted), given), generator)
    _check_looked_up(rows, generator)
    rows = _comparable(rows, generator)
    spread = np.maximum(exact.std(axis=0), 1e-300)
    slack = 1e-12 * (spread + np.abs(exact))
    if transform.kind != "quantile":  # values are reflected at the ends of their range, where the map turns around
        targets = np.flatnonzero(np.isnan(transform.constants))[generator.split.targets]
        slack[:, targets] += 2 * reach * transform.scale[generator.split.targets]
        low, high = np.minimum(low, high), np.maximum(low, high)
    is_outside = (rows < low - slack) | (rows > high + slack) | ~np.isfinite(rows)
    if is_outside.any():
        row, column = np.argwhere(is_outside)[0]
        raise ExportError(
            f"the exported graph differs from the generator: column {generator.columns[column]!r} is "
            f"{rows[row, column]!r} where the generator gives {low[row, column]!r} to {high[row, column]!r}"
        )
    is_exact = np.zeros(rows.shape, dtype=bool)  # on a grid, or an atom for one of the two
    for index, place in enumerate(np.flatnonzero(np.isnan(transform.constants))):
        is_exact[:, place] = transform.steps[index] > 0 or transform.codings[index].places is not None
        if transform.curves and len(atoms := transform.curves[index].atoms):
            is_exact[:, place] |= atoms.find(rows[:, place])[0] | atoms.find(exact[:, place])[0]
    relative = (np.abs(rows - exact) / (spread + np.abs(exact)))[~is_exact & is_same[:, None]]
    return Agreement(
        rows=len(rows),
        raw_labels_max=difference,
        values_max=float(relative.max(initial=0.0)),
        values_within=float((relative <= TOLERANCE).mean()) if relative.size else 1.0,
        cells_differing=int((rows != exact)[is_exact].sum()),
    )


def _comparable(rows: NDArray[np.float64], generator: Generator) -> NDArray[np.float64]:
    """Rows as numbers in which each column rises with its label; columns that are looked up count as 0."""
    coded = np.array(generator.transform.coded(rows))
    coded[:, [lookup.column for lookup in generator.transform.lookups]] = 0.0
    return coded


def _check_looked_up(rows: NDArray[np.float64], generator: Generator) -> None:
    """Refuse rows of a graph that contradict what one column says of another."""
    for lookup in generator.transform.lookups:
        wanted = lookup.look_up(rows[:, lookup.by])
        if not np.array_equal(rows[:, lookup.column], wanted, equal_nan=True):
            raise ExportError(f"the exported graph looks up {generator.columns[lookup.column]!r} otherwise")


def _labels_difference(
    network: Network, inputs: NDArray[np.float32], found: NDArray[np.float32], wanted: NDArray[np.float32]
) -> tuple[float, NDArray[np.bool_]]:
    """The largest difference of labels, and the rows of which it is: those with labels in the same cells, where there
    are cells, and those that are not between two experts, where there are experts.

    Raises:
        ExportError: labels differ by more than rounding explains.
    """
    difference = np.abs(found.astype(np.float64) - wanted) / np.maximum(1.0, np.abs(wanted))
    is_same = np.ones(len(found), dtype=bool)
    if isinstance(network, ExpertNetwork):
        with torch.inference_mode():
            best = network.logits(torch.from_numpy(inputs).to(network.offsets.device)).topk(2).values
        is_same = (best[:, 0] - best[:, 1] > CLOSE_LOGITS).cpu().numpy()
        if not is_same.mean() >= 1 - MOVED_ROWS:
            raise ExportError(
                f"the gate does not tell two experts apart for {1 - is_same.mean():.2%} of rows, which rounding sends "
                f"to either; allowed are {MOVED_ROWS:.0%}"
            )
    largest = float(difference[is_same].max())
    if isinstance(network, CellNetwork):
        # A rounded logit may move a draw across the end of a cell, and in an unlikely cell its place.
        cells = [network.cells_of(torch.from_numpy(labels).to(network.edges.device)) for labels in (found, wanted)]
        is_same = (cells[0] == cells[1]).all(dim=1).cpu().numpy()
        moved, median = 1 - float(is_same.mean()), float(np.median(difference))
        if not (moved <= MOVED_ROWS and median <= TOLERANCE):
            raise ExportError(
                f"the exported graph differs from the generator: {moved:.2%} of rows lie in other cells, allowed are "
                f"{MOVED_ROWS:.0%}, and half of the labels differ by more than {median:.2g}, allowed is {TOLERANCE:g}"
            )
        return float(difference[is_same].max()), is_same
    if not largest <= TOLERANCE:  # NaN too
        raise ExportError(
            f"the exported graph differs from the generator: a label by {largest:.2g}, allowed is {TOLERANCE:g}"
        )
    return largest, is_same
