"""A mixed table from its file to its samples, by a network that draws cells."""

import json

import numpy as np
import pytest
import torch
from small_fits import fitted_run, rows_of_two_and_one, table_job

import sfg_dist
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.dependencies import Lookup
from sfg_dist.data.fitting import ColumnFacts, fit_column
from sfg_dist.data.transform import Transform
from sfg_dist.distributed.fit.ahead import train_ahead
from sfg_dist.distributed.fit.checkpoints import Checkpoints, steps_ahead
from sfg_dist.distributed.fit.training import (
    fit_inline,
    most_steps_ahead,
    split_rows,
    within_looks,
)
from sfg_dist.job.errors import StoreError
from sfg_dist.model.cell_network import CellNetwork
from sfg_dist.model.export_onnx import export_onnx
from sfg_dist.model.mlp import MLP
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import open_pairs

TRAIN = {"width": 32, "depth": 1, "num_epochs": 12, "batch_size": 256, "precision": "float32"}


def write_table(path, num_rows=1500):
    """Three columns: a kind, a mark that one kind never has, and rain that is mostly none."""
    rng = np.random.default_rng(0)
    kinds = rng.choice(["oak", "fir", "ash"], num_rows, p=[0.5, 0.3, 0.2])
    marks = np.where((kinds != "fir") & (rng.random(num_rows) < 0.5), "marked", "plain")
    rain = np.where(rng.random(num_rows) < 0.6, 0.0, rng.exponential(size=num_rows)) + 3.0 * (kinds == "ash")
    lines = [f"{kind},{mark},{value!r}" for kind, mark, value in zip(kinds, marks, rain.tolist(), strict=True)]
    path.write_text("\n".join(["kind,mark,rain", *lines]))
    return str(path)


def job_of(source, directory, **train):
    return table_job(source, directory, TRAIN | train)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    return folder, *fitted_run(job_of(write_table(folder / "trees.csv"), folder / "run"))


@pytest.mark.slow
def test_samples_are_of_the_table(fitted):
    _, pipeline, generator = fitted
    assert isinstance(generator.network, CellNetwork)
    assert generator.calibration is None
    rows, train = generator.sample(8000, seed=1), pipeline.prepared.train
    for column in (0, 1):
        for code in np.unique(train[:, column]):
            assert (rows[:, column] == code).mean() == pytest.approx((train[:, column] == code).mean(), abs=0.04)
    pairs = {tuple(row) for row in train[:, :2]}
    assert len(pairs) == 5
    assert np.mean([tuple(row) in pairs for row in rows[:, :2]]) > 0.97
    for table in (rows, train):
        assert (table[:, 2] == 0).mean() == pytest.approx(0.48, abs=0.05)


@pytest.mark.slow
def test_a_row_has_its_own_bits_and_comes_back_from_its_file(fitted):
    folder, _, generator = fitted
    generator.save(folder / "model")
    again = sfg_dist.Generator.load(folder / "model")
    rows = generator.sample(5000, seed=2)
    np.testing.assert_array_equal(again.sample(5000, seed=2), rows)
    np.testing.assert_array_equal(again.sample(7, seed=2, start=4093), rows[4093:4100])
    assert json.loads((folder / "model" / "generator.json").read_text())["format"] == 2
    assert again.digest == generator.digest


@pytest.mark.long
@pytest.mark.slow
def test_a_fit_that_was_stopped_goes_on_with_the_same_bits(fitted, tmp_path):
    folder, _, _ = fitted
    whole = job_of(f"{folder}/trees.csv", folder / "run")
    store = Pipeline(whole).label().location.url
    half = whole.train.model_copy(update={"num_epochs": 12, "checkpoint_interval_s": 0.0, "keep_checkpoints": 1000})
    network, _ = fit_inline(store, tmp_path / "c", half)
    Checkpoints(tmp_path / "c", half, open_pairs(store).plan.run_id).go_back_to("61")
    again, _ = fit_inline(store, tmp_path / "c", half)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.slow
def test_a_fit_ends_after_so_many_looks_at_a_row(fitted):
    folder, pipeline, _ = fitted
    pairs = open_pairs(pipeline.label().location.url)
    num_train = len(pipeline.prepared.train)
    settings = job_of(f"{folder}/trees.csv", folder / "run", num_epochs=1000, max_looks=10).train
    epochs = within_looks(pairs, settings).num_epochs
    assert epochs * 4096 * 0.95 == pytest.approx(10 * num_train, abs=4096)
    assert within_looks(pairs, settings.model_copy(update={"max_looks": 0.01})).num_epochs == 1
    assert within_looks(pairs, settings.model_copy(update={"cells": False})).num_epochs == 1000


@pytest.mark.slow
def test_looks_ahead_of_the_labels_count(fitted, tmp_path):
    folder, pipeline, _ = fitted
    pairs = open_pairs(pipeline.label().location.url)
    settings = job_of(f"{folder}/trees.csv", folder / "run", num_epochs=1000, max_looks=4).train
    most, num_rows = 4 * len(pipeline.prepared.train), split_rows(pairs, settings)[0]
    assert num_rows < most < 2 * num_rows
    steps = train_ahead(pairs.location.url, tmp_path / "c", settings, should_stop=lambda: False)
    assert steps == steps_ahead(tmp_path / "c") == (most - num_rows) // 256 > 0
    more = settings.model_copy(update={"max_looks": 40})
    assert within_looks(pairs, more, 100).num_epochs == round((10 * most - 100 * 256) / num_rows)
    assert within_looks(pairs, settings, 100).num_epochs == 1
    assert most_steps_ahead(pairs, settings.model_copy(update={"cells": False})) == np.inf


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_of_ray_fit_what_one_fits(ray_cluster, fitted, tmp_path):
    folder, pipeline, _ = fitted
    settings = job_of(f"{folder}/trees.csv", folder / "run", num_workers=2, num_epochs=4, num_threads=1).train
    rows, alone_rows = rows_of_two_and_one(pipeline.label().location.url, settings, tmp_path)
    assert (rows[:, :2] == alone_rows[:, :2]).all(axis=1).mean() > 0.99


@pytest.mark.slow
def test_the_graph_draws_the_same_rows(fitted):
    _, _, generator = fitted
    onnxruntime = pytest.importorskip("onnxruntime")
    content, agreement = export_onnx(generator)
    assert agreement.values_within > 0.9
    assert agreement.cells_differing < 0.01 * agreement.rows
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    drawn = np.random.default_rng(3).standard_normal((500, 6)).astype(np.float32)
    (rows,) = session.run(["rows"], {"latents": drawn[:, :3], "noise": drawn[:, 3:]})
    assert (np.abs(rows - generator.decode(drawn)) < 1e-3).all(axis=1).mean() > 0.99
    _, alone = export_onnx(generator, network_only=True)
    assert alone.rows == agreement.rows


@pytest.mark.slow
def test_values_are_given_where_cells_are_not_wanted(fitted):
    folder, _, _ = fitted
    with pytest.warns(UserWarning, match="checkpoints of other train keys"):
        generator = Pipeline(job_of(f"{folder}/trees.csv", folder / "run", cells=False, num_epochs=1)).train()
    assert isinstance(generator.network, MLP)
    assert generator.calibration is not None


TREES = ColumnType("category", "string", categories=("ash", "elm", "oak"))


@pytest.mark.parametrize(
    ("rows", "facts", "saved_format"),
    [
        (np.linspace(0.0, 1.0, 40), {}, 1),
        (np.where(np.arange(40) % 3, np.linspace(0.0, 1.0, 40), np.nan), {"missing": -1}, 2),
        (np.arange(40.0) % 3, {"order": np.array([2.0, 0.0, 1.0]), "type": TREES}, 2),
    ],
)
def test_what_an_older_version_would_draw_wrong_it_refuses(tmp_path, rows, facts, saved_format):
    each = fit_column(ColumnFacts("a", **facts), rows, "quantile", "observed", np.full(40, 0.5))
    transform = Transform.of_columns("quantile", [each])
    sfg_dist.Generator(MLP(1, width=4, depth=1), transform).save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "generator.json").read_text())["format"] == saved_format
    assert len(sfg_dist.Generator.load(tmp_path / "m").sample(5)) == 5


def test_a_generator_that_looks_a_column_up_has_the_format_of_mixed_tables(tmp_path):
    rows = np.linspace(0.0, 1.0, 40)
    maps = [
        fit_column(ColumnFacts("a"), rows, "quantile", "observed", np.full(40, 0.5)),
        fit_column(ColumnFacts("b", constant=0.0), 2 * rows, "quantile", "observed", None),
    ]
    transform = Transform.of_columns("quantile", maps, [Lookup(1, 0, rows, 2 * rows)])
    sfg_dist.Generator(MLP(1, width=4, depth=1), transform).save(tmp_path)
    assert json.loads((tmp_path / "generator.json").read_text())["format"] == 2
    drawn = sfg_dist.Generator.load(tmp_path).sample(50)
    assert np.isin(drawn[:, 1], 2 * rows).all()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cells": [3, 2]}, "cells has 2 numbers, and dim is 3"),
        ({"cells": [3, 2, -1]}, r"cells\.2 must be"),
        ({"num_noise": 3}, "does not know, 'num_noise'"),
        ({"cells": [3, 2, 5]}, "expected"),
    ],
)
def test_damaged_networks_of_cells_are_refused(tmp_path, changed, words):
    network = CellNetwork.of_edges([np.array([0.3, 0.6]), np.array([0.5]), np.array([0.1, 0.2, 0.9])], width=4, depth=1)
    transform = Transform.fit(np.random.default_rng(0).normal(size=(50, 3)), ["a", "b", "c"])
    sfg_dist.Generator(network.eval(), transform).save(tmp_path)
    document = json.loads((tmp_path / "generator.json").read_text())
    document["network"] |= changed
    (tmp_path / "generator.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match=words):
        sfg_dist.Generator.load(tmp_path)


def test_edges_that_do_not_ascend_are_refused(tmp_path):
    network = CellNetwork.of_edges([np.array([0.6, 0.3])], width=4, depth=1)
    transform = Transform.fit(np.random.default_rng(0).normal(size=(50, 1)), ["a"])
    sfg_dist.Generator(network.eval(), transform).save(tmp_path)
    with pytest.raises(StoreError, match="edges of cells that do not ascend"):
        sfg_dist.Generator.load(tmp_path)
