"""A generator of a mixed table: its way back to latents, and its files."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from sfg_dist.data import prepare
from sfg_dist.data.cells import cell_edges
from sfg_dist.job.errors import DataError, StoreError
from sfg_dist.model.cell_network import CellNetwork
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.generator import Generator
from sfg_dist.model.likelihood import Mass


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "t.parquet"
    random = np.random.default_rng(0)
    place = random.integers(0, 4, 600)
    gap = random.random(600) < 0.2
    columns = {
        "town": np.array(["Rome", "Oslo", "Bonn", "Bern"])[place],
        "country": np.array(["IT", "NO", "DE", "CH"])[place],
        "x": pa.array(random.normal(size=600), mask=gap),
    }
    parquet.write_table(pa.table(columns), path)
    return prepare(path)


@pytest.fixture(scope="module")
def generator(prepared):
    torch.manual_seed(0)
    transform = prepared.transform
    network = CellNetwork.of_edges(cell_edges(transform, np.arange(transform.dim)), width=8, depth=1)
    mass = Mass(**{field.name: 1.0 if "float" in str(field.type) else 1 for field in dataclasses.fields(Mass)})
    return Generator(network.eval(), transform, encoder=Encoder(transform.dim, width=8, depth=0).eval(), mass=mass)


def test_what_was_encoded_is_decoded(prepared, generator):
    latents = generator.encode(prepared.train[:50])
    assert latents.shape == (50, 2)
    rows = generator.decode(latents)
    with_noise = np.concatenate([latents, np.zeros((50, 2), np.float32)], axis=1)
    np.testing.assert_array_equal(rows, generator.decode(with_noise))
    assert rows.shape == (50, 3)
    with pytest.raises(DataError, match=r"\(50, 3\): expected \(num_rows, 2\), or \(num_rows, 4\) with the noise"):
        generator.decode(with_noise[:, :3])


FORGED = {
    "fewer categories": lambda types, tensors: [types[place].update(categories=["a"]) for place in (0, 1)],
    "more categories": lambda types, tensors: types[0]["categories"].append("Ulm"),
    "a type without categories": lambda types, tensors: types.__setitem__(0, {"kind": "float", "dtype": "float64"}),
    "categories of a column of numbers": lambda types, tensors: types.__setitem__(2, types[0]),
    "a key beyond": lambda types, tensors: tensors["transform.lookup_keys"][-1:].fill_(4.0),
    "a value beyond": lambda types, tensors: tensors["transform.lookup_values"][:1].fill_(7.0),
    "a value below": lambda types, tensors: tensors["transform.lookup_values"][:1].fill_(-1.0),
    "half a value": lambda types, tensors: tensors["transform.lookup_values"][:1].fill_(0.5),
    "a constant beyond": lambda types, tensors: tensors["transform.constants"][1:2].fill_(1e12),
    "a nested type": lambda types, tensors: types[0].update(dtype=NESTED.format(NESTED.format("string"))),
    "a type nested without end": lambda types, tensors: types[0].update(
        dtype="dictionary<values=" * 3000 + "string" + ", indices=int8, ordered=0>" * 3000
    ),
}
NESTED = "dictionary<values={}, indices=int8, ordered=0>"


@pytest.mark.parametrize("name", FORGED)
def test_forged_categories_are_refused(generator, tmp_path, name):
    generator.save(tmp_path)
    Generator.load(tmp_path)
    document, tensors = json.loads((tmp_path / "generator.json").read_text()), load_file(tmp_path / "model.safetensors")
    FORGED[name](document["transform"]["types"], tensors)
    (tmp_path / "generator.json").write_text(json.dumps(document))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(StoreError, match="is damaged"):
        Generator.load(tmp_path)
