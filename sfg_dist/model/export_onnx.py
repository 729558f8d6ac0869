"""A generator as one ONNX graph, checked against itself before it is handed out.

    latents (num_rows, dim) float32 [, conditions float64] [, noise float32]
        -> network -> calibration -> labels (num_rows, dim) float32
        -> the transform undone -> rows (num_rows, number of columns) float64, in the user's columns and units

The number of rows is free. Random numbers stay outside: latents and noise are independent N(0, 1).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist._version import __version__
from sfg_dist.errors import ConfigError, ExportError
from sfg_dist.model.generator import Generator
from sfg_dist.plan import Stream, normal_rows

TOLERANCE = 1e-5
CHECK_ROWS = 16_381
_FAR = 1.5  # every fourth checked latent is stretched, to reach the tails


@dataclass(frozen=True)
class Agreement:
    """How far an exported graph is from its generator, on rows of its own.

    Attributes:
        rows: rows compared.
        labels_max: largest difference of a label, over max(1, its size), in the flow's coordinates, where a column's
            spread is about 1.
        values_max: largest difference of a value in the user's units over the spread of its column, in columns without
            a step; a steep place of a column's curve makes more of the same difference of labels.
        values_median: the median of these.
        cells_differing: values of columns with a step that came out on another cell of the grid, of all rows.
    """

    rows: int
    labels_max: float
    values_max: float
    values_median: float
    cells_differing: int

    def to_dict(self) -> dict[str, Any]:
        """For a JSON document."""
        return asdict(self)


def export_onnx(generator: Generator, *, network_only: bool = False) -> tuple[bytes, Agreement]:
    """The generator as an ONNX model.

    Args:
        generator: on any device; nothing of it is changed.
        network_only: the network alone, from its input columns to labels before calibration, all float32.

    Returns:
        The model, and how well onnxruntime's output of it agrees with the generator's.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
        ExportError: a layer cannot be exported, or the outputs differ by more than 1e-5: a label over max(1, its size),
            and a value beyond what such a change of its label makes of it.
    """
    try:
        import onnxruntime  # noqa: F401
        from onnx import TensorProto, checker, helper

        from sfg_dist.model import onnx_graph as pieces
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed, and an export needs it: pip install 'sfg_dist[onnx]'"
        ) from error
    graph, network = pieces.Graph(), generator.network
    transform = generator.transform
    targets, given = generator.target_columns, generator.condition_columns

    def value(name: str, dtype: int, width: int) -> Any:
        return helper.make_tensor_value_info(name, dtype, ["num_rows", width])

    if network_only:
        inputs = [value("inputs", TensorProto.FLOAT, network.num_inputs)]
        graph.add("Identity", pieces.add_network(graph, network, "inputs"))
        outputs = [value("labels", TensorProto.FLOAT, network.dim)]
        last = "labels"
    else:
        inputs = [value("latents", TensorProto.FLOAT, network.dim)]
        parts = ["latents"]
        if len(given):
            inputs.append(value("conditions", TensorProto.DOUBLE, len(given)))
            flow_given = pieces.add_forward(graph, transform, given, "conditions")
            parts.append(graph.cast(flow_given, TensorProto.FLOAT))
        if network.num_noise:
            inputs.append(value("noise", TensorProto.FLOAT, network.num_noise))
            parts.append("noise")
        together = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
        labels = graph.cast(pieces.add_network(graph, network, together), TensorProto.DOUBLE)
        if generator.calibration is not None:
            labels = pieces.add_calibration(graph, generator.calibration, labels)
        graph.nodes.append(helper.make_node("Cast", [labels], ["labels"], to=TensorProto.FLOAT))
        values = pieces.add_inverse(graph, transform, targets, labels)
        graph.add("Identity", _in_order(graph, generator, values))
        last = "rows"
        outputs = [
            value("rows", TensorProto.DOUBLE, len(generator.columns)),
            value("labels", TensorProto.FLOAT, network.dim),
        ]
    graph.nodes[-1].output[0] = last
    model = helper.make_model(
        helper.make_graph(graph.nodes, "generator", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", pieces.OPSET)],
        ir_version=pieces.IR_VERSION,
        producer_name="sfg_dist",
        producer_version=__version__,
    )
    facts = {"columns": list(generator.columns), "condition": list(generator.condition)}
    helper.set_model_props(model, {name: json.dumps(fact) for name, fact in facts.items()})
    checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    return content, check_agreement(content, generator, network_only=network_only)


def _in_order(graph: Any, generator: Generator, values: str) -> str:
    """The user's columns, from the values of the target columns, the conditions as given, and the constants."""
    transform = generator.transform
    flow_columns = np.flatnonzero(np.isnan(transform.constants))
    constant_columns = np.flatnonzero(~np.isnan(transform.constants))
    parts = [values]
    places = [flow_columns[generator.target_columns]]
    if len(generator.condition_columns):
        parts.append("conditions")
        places.append(flow_columns[generator.condition_columns])
    if len(constant_columns):
        num_rows = graph.add("Shape", values, start=0, end=1)
        width = graph.constant(np.array([len(constant_columns)]))
        shape = graph.add("Concat", num_rows, width, axis=0)
        parts.append(graph.add("Expand", graph.constant(transform.constants[constant_columns][None]), shape))
        places.append(constant_columns)
    order = np.argsort(np.concatenate(places))
    joined = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
    return str(graph.add("Gather", joined, graph.constant(order), axis=1))


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
        return Agreement(len(drawn), _labels_difference(found, wanted), 0.0, 0.0, 0)
    noise = drawn[:, network.dim + network.num_conditions :]
    feed: dict[str, NDArray[Any]] = {"latents": np.ascontiguousarray(drawn[:, : network.dim])}
    given = None
    if network.num_conditions:
        flow_rows = np.zeros((len(drawn), transform.dim))
        flow_rows[:, generator.condition_columns] = drawn[:, network.dim : network.dim + network.num_conditions]
        columns = [generator.columns.index(name) for name in generator.condition]
        feed["conditions"] = given = np.ascontiguousarray(transform.inverse(flow_rows)[:, columns])
    if network.num_noise:
        feed["noise"] = np.ascontiguousarray(noise)
    rows, labels = session.run(["rows", "labels"], feed)
    for size in (1, 2):  # the number of rows is free
        again = session.run(["rows"], {name: array[:size] for name, array in feed.items()})[0]
        if again.shape != (size, len(generator.columns)):
            raise ExportError(f"the exported graph gives {again.shape} for {size} rows")
    wanted = generator.predict_labels(generator.network_inputs(feed["latents"], given, feed.get("noise")))
    difference = _labels_difference(labels, wanted)
    exact = generator.rows_of(wanted, given)
    # A value may be what a label within the tolerance gives: the map of each column is monotone.
    reach = TOLERANCE * np.maximum(1.0, np.abs(wanted.astype(np.float64)))
    low, high = (generator.rows_of(wanted + side * reach, given) for side in (-1, 1))
    spread = np.maximum(exact.std(axis=0), 1e-300)
    rounding = 1e-12 * (spread + np.abs(exact))
    is_outside = (rows < low - rounding) | (rows > high + rounding) | ~np.isfinite(rows)
    if is_outside.any():
        row, column = np.argwhere(is_outside)[0]
        raise ExportError(
            f"the exported graph differs from the generator: column {generator.columns[column]!r} is "
            f"{rows[row, column]!r} where the generator gives {exact[row, column]!r}; nothing was written"
        )
    stepped = np.zeros(len(generator.columns), dtype=bool)
    stepped[np.flatnonzero(np.isnan(transform.constants))] = transform.steps > 0
    relative = (np.abs(rows - exact) / spread)[:, ~stepped]
    return Agreement(
        rows=len(rows),
        labels_max=difference,
        values_max=float(relative.max(initial=0.0)),
        values_median=float(np.median(relative)) if relative.size else 0.0,
        cells_differing=int((rows != exact)[:, stepped].sum()),
    )


def _labels_difference(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    difference = np.abs(found.astype(np.float64) - wanted) / np.maximum(1.0, np.abs(wanted))
    largest = float(difference.max())
    if not largest <= TOLERANCE:  # NaN too
        raise ExportError(
            f"the exported graph differs from the generator: a label by {largest:.2g}, allowed is {TOLERANCE:g}; "
            f"nothing was written"
        )
    return largest
