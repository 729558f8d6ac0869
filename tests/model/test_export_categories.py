"""An exported graph gives categories as codes, missing values as NaN, and looks up what another column determines."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from sfg_dist.data import prepare
from sfg_dist.model import MLP, Generator

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from sfg_dist.model import export_onnx as module  # noqa: E402
from sfg_dist.model.export_onnx import export_onnx  # noqa: E402


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(module, "CHECK_ROWS", 1000)


def generator_of(tmp_path, condition=(), **keys):
    random = np.random.default_rng(0)
    place = random.choice(4, 600, p=[0.5, 0.3, 0.15, 0.05])
    is_gap = random.random(600) < 0.2
    columns = {
        "town": np.array(["Rome", "Oslo", "Bonn", "Bern"])[place],
        "country": np.array(["IT", "NO", "DE", "CH"])[place],
        "job": pa.array(np.array(["clerk", "cook"])[place % 2], mask=is_gap),
        "income": pa.array(np.round(random.normal(30 + 8 * place), 1), mask=is_gap),
        "wind": pa.array(random.gamma(2.0, size=600), mask=random.random(600) < 0.1),
        "age": random.integers(18, 80, 600),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    transform = prepare(tmp_path / "t.parquet", condition=list(condition) or None, **keys).transform
    assert len(transform.lookups) == 1
    torch.manual_seed(0)
    network = MLP(transform.dim - len(condition), num_conditions=len(condition), width=16, depth=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Generator(network.eval(), transform, condition=tuple(condition))


def run(content, **feed):
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    return session.run(["rows"], feed)[0], {name: json.loads(text) for name, text in properties.items()}


@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
def test_rows_of_the_graph_are_the_generators(tmp_path, kind):
    generator = generator_of(tmp_path, kind=kind)
    content, agreement = export_onnx(generator)
    assert agreement.cells_differing < 20
    latents = np.random.default_rng(3).standard_normal((500, generator.network.dim)).astype(np.float32)
    rows, told = run(content, latents=latents)
    expected = generator.decode(latents)
    names = list(generator.columns)
    assert told["categories"]["town"] == ["Bern", "Bonn", "Oslo", "Rome"]
    for name in ("town", "country", "job", "income", "age"):
        column = names.index(name)
        same = (rows[:, column] == expected[:, column]) | np.isnan(rows[:, column]) & np.isnan(expected[:, column])
        assert same.mean() > 0.99, name
    assert kind == "none" or np.isnan(rows[:, names.index("job")]).any()  # there labels are values
    for lookup in generator.transform.lookups:
        assert not lookup.differs(rows, generator.types).any()


@pytest.mark.parametrize("kind", ["quantile", "standardize"])
def test_conditions_are_codes(tmp_path, kind):
    generator = generator_of(tmp_path, condition=("job", "income", "country"), kind=kind)
    content, _ = export_onnx(generator)
    latents = np.random.default_rng(3).standard_normal((4, generator.network.dim)).astype(np.float32)
    given = {
        "job": ["cook", None, "clerk", "cook"],
        "income": [30.1, None, 40, 38],
        "country": ["NO", "IT", "CH", "DE"],
    }
    conditions = generator.conditions_of(given, 4)
    rows, _ = run(content, latents=latents, conditions=conditions)
    np.testing.assert_allclose(rows, generator.decode(latents, conditions), rtol=1e-4, atol=1e-4)
    town = generator.types[list(generator.columns).index("town")]
    assert town.from_float(rows[:, list(generator.columns).index("town")]).to_pylist() == [
        "Oslo",
        "Rome",
        "Bern",
        "Bonn",
    ]
