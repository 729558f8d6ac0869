"""A generator of a mixed table: its way back to latents, and its files."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from sfg_dist.data import prepare
from sfg_dist.data.cells import cell_edges
from sfg_dist.job.errors import DataError
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
