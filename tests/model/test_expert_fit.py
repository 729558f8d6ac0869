"""A table from its file to its samples, by a network of experts."""

import json

import numpy as np
import pytest
import torch
from small_fits import fitted_run, rows_of_two_and_one, table_job

import sfg_dist
from sfg_dist.distributed.fit.checkpoints import Checkpoints, identity_of
from sfg_dist.distributed.fit.training import fit_inline
from sfg_dist.job.config import TrainConfig
from sfg_dist.job.errors import DataError
from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.scaling import scaled_reference
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import open_pairs

TRAIN = {"width": 16, "depth": 1, "experts": 4, "num_epochs": 12, "batch_size": 256, "precision": "float32"}


def write_table(path, num_rows=1500):
    """Two clusters of three columns, far apart, one of them a third of the rows."""
    rng = np.random.default_rng(0)
    centers = np.where(rng.random((num_rows, 1)) < 1 / 3, 40.0, -40.0)
    rows = centers + rng.standard_normal((num_rows, 3))
    path.write_text("\n".join(["a,b,c", *(",".join(map(repr, row)) for row in rows.tolist())]))
    return str(path)


def job_of(source, directory, *, kind="quantile", condition=None, **train):
    data = {} if condition is None else {"condition": condition}
    return table_job(source, directory, TRAIN | train, data=data, transform={"kind": kind})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    return folder, *fitted_run(job_of(write_table(folder / "t.csv"), folder / "run"))


@pytest.mark.slow
def test_samples_are_of_the_table(fitted):
    _, _, generator = fitted
    assert isinstance(generator.network, ExpertNetwork)
    assert generator.calibration is not None
    assert bool(generator.network.offsets.any())
    rows = generator.sample(8000, seed=1)
    assert (rows[:, 0] > 0).mean() == pytest.approx(1 / 3, abs=0.04)
    # Columns that do not go together would agree in a third of the rows.
    assert (np.sign(rows) == np.sign(rows[:, :1])).all(axis=1).mean() > 0.75


@pytest.mark.slow
def test_a_row_has_its_own_bits_and_comes_back_from_its_file(fitted):
    folder, pipeline, generator = fitted
    again = sfg_dist.Generator.load(folder / "run")
    rows = generator.sample(5000, seed=2)
    np.testing.assert_array_equal(again.sample(5000, seed=2), rows)
    np.testing.assert_array_equal(again.sample(7, seed=2, start=4093), rows[4093:4100])
    document = json.loads((folder / "run" / "model" / "generator.json").read_text())
    assert (document["format"], document["network"]["experts"]) == (2, 4)
    assert pipeline.train().digest == generator.digest


@pytest.mark.slow
def test_given_a_condition_rows_have_their_own_bits_too(fitted, tmp_path):
    folder, _, _ = fitted
    pipeline = Pipeline(job_of(f"{folder}/t.csv", tmp_path, kind="none", condition=["c"], num_epochs=4))
    store = pipeline.label()
    generator = pipeline.train()
    assert isinstance(generator.network, ExpertNetwork)
    regions = generator.network.region_of(torch.from_numpy(scaled_reference(store)[:, :2]))
    assert (torch.bincount(regions) / len(regions)).tolist() == pytest.approx([0.25] * 4, abs=0.01)
    given = {"c": np.linspace(-42, 42, 5000)}
    rows = generator.sample(5000, seed=1, given=given)
    part = generator.sample(600, seed=1, start=4000, given={"c": given["c"][4000:4600]})
    np.testing.assert_array_equal(part, rows[4000:4600])


@pytest.mark.long
@pytest.mark.slow
def test_a_fit_that_was_stopped_goes_on_with_the_same_bits(fitted, tmp_path):
    folder, pipeline, _ = fitted
    store = pipeline.label().location.url
    keys = {"num_epochs": 4, "checkpoint_interval_s": 0.0, "keep_checkpoints": 1000}
    settings = job_of(f"{folder}/t.csv", folder / "run").train.model_copy(update=keys)
    network, _ = fit_inline(store, tmp_path / "c", settings)
    Checkpoints(tmp_path / "c", settings, open_pairs(store).plan.run_id).go_back_to("21")
    again, _ = fit_inline(store, tmp_path / "c", settings)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_of_ray_fit_what_one_fits(ray_cluster, fitted, tmp_path):
    folder, pipeline, _ = fitted
    settings = job_of(f"{folder}/t.csv", folder / "run", num_workers=2, num_epochs=4, num_threads=1).train
    rows_of_two_and_one(pipeline.label().location.url, settings, tmp_path)


@pytest.mark.slow
def test_a_table_whose_network_draws_cells_is_refused_before_any_label(tmp_path):
    (tmp_path / "t.csv").write_text("\n".join(["kind,value", *(f"{'ab'[k % 2]},{k / 7}" for k in range(200))]))
    job = job_of(str(tmp_path / "t.csv"), tmp_path / "run")
    with pytest.raises(DataError, match="experts = 4 does not go with a network that draws cells"):
        Pipeline(job).label()
    assert not (tmp_path / "run" / "pairs.zarr").exists()
    Pipeline(job.changed(train={"experts": 1})).label()
    with pytest.raises(DataError, match="experts = 4 does not go with a network that draws cells"):
        Pipeline(job).train()


def test_the_fit_of_a_network_alone_is_that_of_earlier_versions():
    assert "experts" not in identity_of(TrainConfig())["network"]
    assert identity_of(TrainConfig(experts=8))["network"]["experts"] == 8
