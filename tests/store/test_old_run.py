"""The output directory of a small run, made before the modules moved to their rooms: read, verified and gone on with.

``old_run.tar.xz`` holds what commit 66a5bb5 made of a table of 120 rows, and in expected.json what the same code gave
for a longer run of it. Bits are compared where this machine computes like the one that made it.
"""

import hashlib
import json
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from sfg_dist.job.config import resolve_job
from sfg_dist.model.generator import Generator
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import open_pairs, verify
from sfg_dist.store.arrays import ARRAYS, object_key
from sfg_dist.store.commits import commit_key


@pytest.fixture
def expected(tmp_path, monkeypatch):
    with tarfile.open(Path(__file__).with_name("old_run.tar.xz")) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 has none
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return json.loads(Path("expected.json").read_text())


@pytest.fixture
def same_bits(expected):
    """Whether this machine's arithmetic gives the bits of the one that made the run."""
    rows = torch.from_numpy(np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32))
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # as there; compiled kernels use it too
        return False
    return hashlib.sha256(torch.tanh(rows @ rows).numpy()).hexdigest() == expected["probe"]


def old_pipeline(**tables):
    job = tomllib.loads(Path("run/job.toml").read_text())
    return Pipeline(resolve_job({name: keys | tables.get(name, {}) for name, keys in job.items()}))


def digests(pairs):
    records = (pairs.commit_record(shard)["objects"] for shard in range(pairs.plan.num_shards))
    return [[objects[name]["sha256"] for name in ARRAYS] for objects in records]


def test_an_old_store_is_sound(expected):
    pairs = open_pairs("run")
    report = verify(pairs)
    assert report.is_clean
    assert report.num_objects == 39
    assert pairs.is_complete
    assert digests(pairs) == expected["shards"]
    assert np.isfinite(pairs.labels.compute()).all()
    old_pipeline().open_store()  # the table and the job are those that it was made of


def test_a_lost_shard_of_an_old_store_comes_out_with_its_bits(expected, same_bits):
    pairs = open_pairs("run")
    before = pairs.labels.compute()
    for key in (commit_key(1), *(object_key(pairs.plan, name, 1) for name in ARRAYS)):
        pairs.location.delete(key)
    again = old_pipeline().label()
    np.testing.assert_allclose(again.labels.compute(), before, rtol=1e-3, atol=1e-3)
    if same_bits:
        assert digests(again) == expected["shards"]


def test_an_old_store_is_extended(expected, same_bits):
    pairs = old_pipeline(labels={"num_pairs": 60}).extend()
    assert digests(pairs)[:3] == expected["shards"]
    assert verify(pairs).is_clean
    if same_bits:
        assert digests(pairs) == expected["extended"]


def test_a_fit_goes_on_from_an_old_checkpoint(expected, same_bits):
    before = Path("run/checkpoints/history.jsonl").read_bytes()
    old_pipeline(train={"num_epochs": 4}).train()
    history = Path("run/checkpoints/history.jsonl").read_bytes()
    assert history.startswith(before)
    assert len(history.splitlines()) == 4
    if same_bits:
        assert hashlib.sha256(Path("run/model/model.safetensors").read_bytes()).hexdigest() == expected["model"]["4"]


def test_an_old_generator_draws_the_same_rows(expected):
    drawn = Generator.load("run/model").sample(16, seed=1)
    np.testing.assert_allclose(np.asarray(drawn)[:4], expected["drawn"], rtol=1e-6)
