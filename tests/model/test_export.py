"""The exported graph beside the generator, in every kind of transform, network and column."""

import copy
import functools
import itertools
import json
import sys

import numpy as np
import pytest
import torch
from commands import sfg
from examples import a_third

from sfg_dist.data import Transform
from sfg_dist.job.errors import ConfigError, ExportError
from sfg_dist.model import MLP, Calibration, Generator

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from sfg_dist.model import export_onnx as module  # noqa: E402
from sfg_dist.model import onnx_graph  # noqa: E402
from sfg_dist.model.export_onnx import TOLERANCE, check_agreement, export_onnx  # noqa: E402

COLUMNS = ("heavy", "gap", "count", "fixed", "decimal")


def table(num_rows=3000):
    """A heavy tail, a gap in the middle, integers, a constant and tenths."""
    generator = np.random.default_rng(0)
    columns = [
        generator.standard_t(2, num_rows),
        np.sign(generator.standard_normal(num_rows)) * (4 + generator.random(num_rows)),
        generator.poisson(3.0, num_rows).astype(float),
        np.full(num_rows, 7.5),
        np.round(generator.standard_normal(num_rows), 1),
    ]
    return np.column_stack(columns)


@functools.cache
def fitted_transform(kind):
    rows = table()
    return Transform.fit(
        rows, COLUMNS, kind=kind, constants={"fixed": 7.5}, steps={"count": 1.0, "decimal": 0.1},
        noise=np.random.default_rng(1).random((len(rows), 4)),
    )  # fmt: skip


@functools.cache
def fitted_calibration(kind, dim):
    reference = np.tile(fitted_transform(kind).forward(table())[:, :dim], (3, 1))
    if dim > 1:  # something for the maps of pairs to do
        reference[:, 1] = np.maximum(reference[:, 0], 0) + 0.2 * reference[:, 1]
    torch.manual_seed(0)
    return Calibration.fit(MLP(dim, width=4, depth=1), reference, seed=0)


def make(kind="quantile", calibrated=True, condition=(), num_noise=0, **shape):
    """A generator; the slow parts of it are fitted once and copied, since some tests change them."""
    torch.manual_seed(0)
    dim = 4 - len(condition)
    network = MLP(dim, num_conditions=len(condition), num_noise=num_noise, **({"width": 24, "depth": 2} | shape))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    calibration = copy.deepcopy(fitted_calibration(kind, dim)) if calibrated else None
    return Generator(network.eval(), copy.deepcopy(fitted_transform(kind)), calibration, condition=tuple(condition))


def run(content, **feed):
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(["rows"], feed)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calibrated", "kind"), a_third(itertools.product([True, False], ["quantile", "standardize", "none"]))
)
def test_rows_of_the_graph_are_the_generators(kind, calibrated):
    generator = make(kind, calibrated)
    assert not calibrated or (len(generator.calibration.pairs) and len(generator.calibration.local))
    content, agreement = export_onnx(generator)
    assert agreement.raw_labels_max < TOLERANCE
    latents = np.random.default_rng(3).standard_normal((777, 4)).astype(np.float32)
    rows, expected = run(content, latents=latents), generator.decode(latents)
    spread = expected.std(axis=0) + 1e-12
    share = (np.abs(rows - expected) <= TOLERANCE * (spread + np.abs(expected))).mean(axis=0)
    assert (share > 0.98).all(), share
    assert agreement.values_within > 0.98  # the rest: another cell of the grid, or a steep place of a curve
    assert (rows[:, 3] == 7.5).all()
    assert np.array_equal(rows[:, 2], np.round(rows[:, 2]))
    assert np.array_equal(rows[:, 4], np.round(rows[:, 4], 1))


@pytest.mark.slow
@pytest.mark.parametrize("block", ["residual", "plain"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "tanh"])
@pytest.mark.parametrize("linear_skip", [True, False])
def test_every_network(monkeypatch, block, activation, linear_skip):
    monkeypatch.setattr(module, "CHECK_ROWS", 2000)
    generator = make(calibrated=False, block=block, activation=activation, linear_skip=linear_skip)
    _, agreement = export_onnx(generator)
    assert agreement.raw_labels_max < TOLERANCE
    content, alone = export_onnx(generator, network_only=True)
    assert alone.raw_labels_max < TOLERANCE
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    latents = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(
        session.run(None, {"inputs": latents})[0], generator.predict_raw(latents), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
def test_conditions_and_noise_are_inputs(kind):
    generator = make(kind, condition=("count", "heavy"), num_noise=3)
    content, _ = export_onnx(generator)
    draw = np.random.default_rng(3)
    latents, noise = (draw.standard_normal((300, width)).astype(np.float32) for width in (2, 3))
    given = np.ascontiguousarray(table()[:300, [2, 0]])
    rows = run(content, latents=latents, conditions=given, noise=noise)
    expected = generator.decode(np.concatenate([latents, noise], axis=1), given)
    np.testing.assert_array_equal(rows[:, [2, 0]], given)
    spread = expected.std(axis=0) + 1e-12
    assert (np.abs(rows - expected) <= TOLERANCE * (spread + np.abs(expected))).mean() > 0.98


def spiked_transform(kind, rows):
    """Repeated values in the middle and at an end, ranges given and observed, and whole numbers far from 0."""
    return Transform.fit(
        rows, ("rain", "clip", "share", "stamp"), kind=kind, steps={"stamp": 1.0},
        atoms={"rain": np.array([0.0]), "clip": np.array([-1.0, 1.5])},
        bounds={"share": (-0.001, 1.5), "clip": (-9, 9)},
        noise=np.random.default_rng(1).random(rows.shape),
    )  # fmt: skip


def spiked_rows(num_rows=3000):
    random = np.random.default_rng(0)
    return np.column_stack([
        np.where(random.random(num_rows) < 0.6, 0.0, random.standard_normal(num_rows)),
        np.clip(random.standard_normal(num_rows), -1, 1.5),
        random.random(num_rows),
        2.0**50 + random.integers(0, 50, num_rows),
    ])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("condition", [(), ("rain", "stamp"), ("share", "clip")])
@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
def test_repeated_values_and_ranges(kind, condition):
    rows = spiked_rows()
    torch.manual_seed(0)
    network = MLP(4 - len(condition), num_conditions=len(condition), width=24, depth=2).eval()
    torch.nn.init.normal_(network.out.weight, std=0.3)
    transform = spiked_transform(kind, rows)
    generator = Generator(network, transform, None, condition=condition)
    content, agreement = export_onnx(generator)
    assert agreement.values_within > 0.98
    assert agreement.cells_differing < 0.01 * agreement.rows
    latents = np.random.default_rng(3).standard_normal((3000, 4 - len(condition))).astype(np.float32)
    places = [("rain", "clip", "share", "stamp").index(name) for name in condition]
    given = np.ascontiguousarray(rows[:, places]) if condition else None
    found = run(content, latents=latents, **({"conditions": given} if condition else {}))
    expected = generator.decode(latents, given)
    np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_array_equal(found[:, 1] == 1.5, expected[:, 1] == 1.5)
    if kind == "quantile" and not condition:
        assert 0.1 < np.mean(found[:, 0] == 0) < 1
    np.testing.assert_array_equal(found[:, 3] % 1, 0)
    spread = expected.std(axis=0) + 1e-12
    assert (np.abs(found - expected) <= TOLERANCE * (spread + np.abs(expected))).mean() > 0.98
    assert (found >= [-9, -9, -0.001, 2.0**50]).all()
    assert (found <= [9, 9, 1.5, 2.0**50 + 49]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
def test_ends_of_ranges_in_the_graph_and_in_numpy(kind):
    rows = spiked_rows()
    transform = spiked_transform(kind, rows)
    scores = np.linspace(-12, 12, 4001)[:, None] + np.zeros(4)
    if kind == "none":
        scores *= 3
    far = rows[:800] + np.linspace(-0.6, 0.6, 800)[:, None] * [0.0, 1, 1, 0]
    assert_the_graph_is_the_transform(transform, scores, far)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", ["observed", "none", {"a": (-np.inf, 1e6), "d": (-300, 300)}])
def test_laws_of_the_tails_in_the_graph_and_in_numpy(bounds):
    """Heavy tails far beyond the rows; and columns of an older model, which has no laws."""
    rows = np.random.default_rng(0).standard_t(2, (3000, 4)).clip(-250, 250)
    transform = Transform.fit(rows, tuple("abcd"), bounds=bounds)
    transform.tails[[1, 3]] = 0
    scores = np.linspace(-7, 7, 4001)[:, None] + np.zeros(4)
    far = np.sinh(np.linspace(-7, 7, 801))[:, None].clip(-299, 299) + np.zeros(4)
    assert_the_graph_is_the_transform(transform, scores, far)


def assert_the_graph_is_the_transform(transform, scores, far):
    """Of scores, and of rows beyond those that the transform was fitted to, shape (any, 4) each."""
    for add, fed, expected in (
        (onnx_graph.add_inverse, scores, transform.inverse(scores)),
        (onnx_graph.add_forward, far, transform.forward(far)),
    ):
        graph = onnx_graph.Graph()
        name = add(graph, transform, np.arange(4), graph.input("fed")).name
        value, double = onnx.helper.make_tensor_value_info, onnx.TensorProto.DOUBLE
        built = onnx.helper.make_graph(
            graph.nodes, "g", [value("fed", double, ["n", 4])], [value(name, double, ["n", 4])], graph.constants
        )
        model = onnx.helper.make_model(
            built, opset_imports=[onnx.helper.make_opsetid("", onnx_graph.OPSET)], ir_version=onnx_graph.IR_VERSION
        )
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"fed": fed})
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.slow
def test_curves_at_their_knots_between_them_and_far_beyond():
    """The binary search against numpy's, to the last bits of float64."""
    transform = make().transform
    graph = onnx_graph.Graph()
    columns = np.arange(4)
    name = onnx_graph.add_inverse(graph, transform, columns, graph.input("scores")).name
    back = onnx_graph.add_forward(graph, transform, columns, graph.input("scores")).name
    value = onnx.helper.make_tensor_value_info
    double = onnx.TensorProto.DOUBLE
    built = onnx.helper.make_graph(
        graph.nodes, "g", [value("scores", double, ["n", 4])],
        [value(name, double, ["n", 4]), value(back, double, ["n", 4])], graph.constants,
    )  # fmt: skip
    model = onnx.helper.make_model(
        built, opset_imports=[onnx.helper.make_opsetid("", onnx_graph.OPSET)], ir_version=onnx_graph.IR_VERSION
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    longest = max(len(curve.scores) for curve in transform.curves)
    knots = np.stack([np.resize(curve.scores, longest) for curve in transform.curves], axis=1)
    places = np.concatenate([knots, (knots[1:] + knots[:-1]) / 2, [[-40.0] * 4, [40.0] * 4, [0.0] * 4]])
    flow = places.copy()
    found, _ = session.run(None, {"scores": flow})
    expected = transform.inverse(flow)[:, [0, 1, 2, 4]]
    on_edge = found != expected
    assert on_edge[:, :2].sum() == 0 or np.allclose(found[:, :2], expected[:, :2], rtol=1e-14, atol=1e-14)
    assert (np.abs(found[:, 2] - expected[:, 2]) <= 1.0).all()
    assert on_edge[:, 2:].mean() < 0.02
    rows = table(500)
    _, scores = session.run(None, {"scores": np.ascontiguousarray(rows[:, [0, 1, 2, 4]])})
    np.testing.assert_allclose(scores.astype(np.float32), transform.forward(rows), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["label", "value", "calibration"])
def test_a_graph_that_differs_is_refused(what, monkeypatch):
    generator = make()
    content, _ = export_onnx(generator)
    other = make(calibrated=what != "calibration")
    if what == "label":
        with torch.no_grad():
            other.network.out.bias += 3e-5
        message = "a label by"
    elif what == "value":
        other.transform.curves[1].values[:] += 1e-3
        message = "column 'gap' is"
    else:
        message = "column 'heavy' is"
    with pytest.raises(ExportError, match=message):
        check_agreement(content, other)
    if what == "label":
        monkeypatch.setattr(module, "TOLERANCE", 1e-4)
        assert check_agreement(content, other).raw_labels_max > 2e-5


def test_a_layer_that_is_not_known_is_refused():
    generator = make(calibrated=False)
    generator.network.hidden.append(torch.nn.Softsign())
    with pytest.raises(ExportError, match="Softsign cannot be exported"):
        export_onnx(generator)


@pytest.mark.slow
def test_the_command_writes_a_file_that_onnxruntime_opens(tmp_path):
    generator = make()
    generator.save(tmp_path / "model")
    done = sfg(tmp_path, "export", "model", "--to", "onnx", "--out", "deep/g.onnx", "--json")
    assert json.loads(done.stdout)["agreement"]["raw_labels_max"] < TOLERANCE
    model = onnx.load(tmp_path / "deep" / "g.onnx")
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts == {"columns": list(COLUMNS), "condition": []}


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime is not installed.*pip install 'sfg_dist\[onnx\]'"):
        export_onnx(make(calibrated=False))
