"""A conditional job from its table to its samples, and what does not go with it."""

import json

import numpy as np
import pytest
from commands import sfg

import sfg_dist
from sfg_dist.cli.model import SampleOptions, sample_model
from sfg_dist.data.toy import wave_law
from sfg_dist.job.config import resolve_job
from sfg_dist.job.errors import ConfigError, LabelingError, SfgError
from sfg_dist.pipeline.check import check_job
from sfg_dist.pipeline.pipeline import Pipeline

CONDITIONAL = {"source": "wave", "max_rows": 2000, "condition": ["y"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, no_pictures_here):
    """A short run of a case whose law is known."""
    directory = tmp_path_factory.mktemp("conditional")
    job = {
        "data": {**CONDITIONAL, "max_rows": 40_000},
        "labels": {"num_pairs": 24_576, "t_min": 1e-4, "condition_neighbors": 400},
        "train": {"width": 48, "depth": 2, "num_epochs": 30, "batch_size": 512},
        "evaluate": {"num_samples": 1000, "metrics": ["ks_mean", "correlation_error", "kl"]},
        "executor": {"kind": "inline"},
        "output": {"dir": str(directory)},
    }
    return directory, sfg_dist.run(job)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The directory of a model that was hardly trained, for what does not depend on how good it is."""
    directory = tmp_path_factory.mktemp("small_conditional")
    job = {
        "data": CONDITIONAL,
        "labels": {"num_pairs": 1024, "num_evaluations": 8, "t_min": 1e-3},
        "train": {"width": 16, "depth": 1, "num_epochs": 2, "batch_size": 128},
        "executor": {"kind": "inline"},
        "output": {"dir": str(directory)},
    }
    pipeline = Pipeline(resolve_job(job))
    pipeline.label()
    pipeline.train()
    return directory


@pytest.mark.long
@pytest.mark.slow
def test_mean_and_spread_are_those_of_the_known_law(finished):
    """Within 5 % of the spread here; `tests/benchmarks/conditional.py` trains longer, for 2 %."""
    generator = sfg_dist.Generator.load(finished[0])
    for place in (0.4, 1.0, 1.6, 2.2, 2.7):
        drawn = generator.sample(20_000, seed=1, given={"y": place})
        assert (drawn[:, 1] == place).all()
        mean, spread = wave_law(np.array(place))
        assert abs(drawn[:, 0].mean() - mean) < 0.05 * spread, place
        assert abs(drawn[:, 0].std() / spread - 1) < 0.05, place


@pytest.mark.long
@pytest.mark.slow
def test_the_calibration_is_measured_and_shown(finished):
    """The law is neither much too narrow nor much too wide, and far better than without its condition."""
    directory, metrics = finished
    found = metrics["calibration"]
    figures = found["figures"]
    assert found["num_rows"] == 2000
    assert [record["column"] for record in found["columns"]] == ["x"]
    assert abs(figures["rank_spread"]["value"] - 1) < 0.15
    assert abs(figures["coverage_90"]["value"] - 0.9) < 0.04
    assert figures["crps"]["value"] < 0.85 * figures["crps"]["independent"]
    assert figures["crps"]["copy"] < 0.85 * figures["crps"]["independent"]
    assert 100 < figures["effective_rows"]["value"] <= 400
    assert "Calibration by column" in (directory / "report.html").read_text()


def test_a_row_for_each_sample_and_the_same_bits_however_they_are_drawn(small):
    generator = sfg_dist.Generator.load(small)
    assert generator.condition == ("y",)
    assert "given y" in repr(generator)
    given = np.linspace(0.1, 2.9, 9000)
    rows = generator.sample(9000, seed=2, given=given)
    np.testing.assert_array_equal(rows[:, 1], given)
    np.testing.assert_array_equal(generator.sample(700, seed=2, given=given[5000:5700], start=5000), rows[5000:5700])
    np.testing.assert_array_equal(generator.sample(1, seed=2, given=[given[17]], start=17), rows[17:18])
    with pytest.raises(ConfigError, match="needs values of y"):
        generator.sample(3)
    with pytest.raises(ConfigError, match="'z' is not one of them"):
        generator.sample(3, given={"y": 1.0, "z": 2.0})


@pytest.mark.long
@pytest.mark.slow
def test_pairs_hold_conditions_of_training_rows_in_latents_and_labels(finished):
    pairs = sfg_dist.open_pairs(finished[0])
    latents, labels = (np.asarray(array) for array in (pairs.latents, pairs.labels))
    np.testing.assert_array_equal(latents[:, 1], labels[:, 1])
    np.testing.assert_array_equal(np.asarray(pairs.conditions), latents[:, 1:])
    assert set(latents[:, 1]) <= set(pairs.reference[:, 1])
    assert len(set(latents[:, 1])) > 15_000
    assert abs(latents[:, 0].mean()) < 0.05
    assert pairs.plan.condition == ("y",)


@pytest.mark.long
@pytest.mark.slow
def test_figures_are_joint_and_the_report_says_what_is_given(finished):
    directory, metrics = finished
    assert metrics["samples"]["ks_mean"] < 0.06
    # Rows of their own on both sides: three standard errors of a correlation's difference between 1000 and 1000 rows.
    assert metrics["samples"]["correlation_error"] < 3 * (2 / 1000) ** 0.5
    assert metrics["samples"]["kl"] < metrics["floor"]["kl"] + 0.1
    assert metrics["label_error"]["median"] < 1e-2
    page = (directory / "report.html").read_text()
    assert "the 400 nearest rows" in page
    assert "compared with the test rows in all columns together" in page
    import zarr

    samples = zarr.open_group(str(directory / "samples.zarr"), mode="r")["X"][...]
    held_out = Pipeline(resolve_job(json.loads((directory / "model" / "generator.json").read_text())["job"])).prepared
    np.testing.assert_array_equal(samples[:, 1], held_out.validation[:1000, 1])


@pytest.mark.long
@pytest.mark.slow
def test_the_graph_takes_conditions(finished):
    pytest.importorskip("onnxruntime")
    from sfg_dist.model.export_onnx import export_onnx

    _, agreement = export_onnx(sfg_dist.Generator.load(finished[0]))
    assert agreement.raw_labels_max < 1e-5
    assert agreement.values_within > 0.99


@pytest.mark.slow
def test_few_test_rows_leave_the_calibration_out(tmp_path, no_pictures):
    job = {
        "data": {**CONDITIONAL, "max_rows": 150},
        "labels": {"num_pairs": 256, "num_evaluations": 8, "t_min": 1e-3},
        "train": {"width": 16, "depth": 1, "num_epochs": 2, "batch_size": 64},
        "evaluate": {"num_samples": 100, "metrics": ["ks_mean"]},
        "executor": {"kind": "inline"},
        "output": {"dir": str(tmp_path / "run")},
    }
    metrics = sfg_dist.run(job)
    assert "calibration" not in metrics
    assert any("15 held-out rows with 64 draws each" in sentence for sentence in metrics["left_out"])


@pytest.mark.slow
def test_an_extended_store_holds_a_longer_runs_pairs(make_job, store_bytes):
    data = {"data": CONDITIONAL}
    Pipeline(make_job("short", **data, labels={"num_pairs": 300})).label()
    Pipeline(make_job("short", **data, labels={"num_pairs": 700})).extend()
    Pipeline(make_job("long", **data, labels={"num_pairs": 700})).label()
    short, long = (sfg_dist.open_pairs(make_job(name).output.dir) for name in ("short", "long"))
    for name in ("latents", "labels"):
        np.testing.assert_array_equal(np.asarray(getattr(short, name)), np.asarray(getattr(long, name)))


@pytest.mark.long
@pytest.mark.ray
def test_an_actor_makes_the_bits_of_this_process(make_job, ray_cluster):
    for name, executor in (("here", {"kind": "inline"}), ("actor", {"kind": "ray", "num_actors": 1})):
        Pipeline(make_job(name, data=CONDITIONAL, labels={"num_pairs": 500}, executor=executor)).label()
    here, actor = (sfg_dist.open_pairs(make_job(name).output.dir) for name in ("here", "actor"))
    for name in ("latents", "labels"):
        np.testing.assert_array_equal(np.asarray(getattr(actor, name)), np.asarray(getattr(here, name)))


@pytest.mark.slow
def test_verify_and_repair_make_the_same_rows_again(make_job):
    from sfg_dist.pipeline.repair import job_beside, mend
    from sfg_dist.store import verify

    pairs = Pipeline(make_job(data=CONDITIONAL)).label()
    assert verify(pairs).is_clean
    before = np.asarray(pairs.labels)
    key = pairs.location.root / "labels" / "c" / "2" / "0"
    key.write_bytes(key.read_bytes()[:-1] + b"\0")
    mended = mend(pairs, job_beside(pairs, []), dry_run=False, emit=lambda *_, **__: None)
    assert list(mended.shards) == [2]
    np.testing.assert_array_equal(np.asarray(sfg_dist.open_pairs(pairs.location.root).labels), before)


@pytest.mark.parametrize("key", ["condition_neighbors", "condition_bandwidth", "condition_adjust"])
def test_the_keys_of_the_condition_are_in_the_plan(make_job, key):
    from sfg_dist.job.errors import PlanMismatchError

    Pipeline(make_job(data=CONDITIONAL, labels={"num_pairs": 128})).label()
    value = {"condition_neighbors": 99, "condition_bandwidth": 0.1, "condition_adjust": "none"}[key]
    with pytest.raises(PlanMismatchError, match=f"labels.{key}"):
        Pipeline(make_job(data=CONDITIONAL, labels={"num_pairs": 128, key: value})).label()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"labels": {"estimator": "minibatch"}}, "labels.estimator = 'minibatch' does not go with data.condition"),
        ({"labels": {"direction": "encode"}}, "labels.direction = 'encode' .* take \"decode\""),
        ({"labels": {"direction": "both"}}, "labels.direction = 'both'"),
        ({"labels": {"latents": "a.npy"}}, "labels.latents = 'a.npy' .* leave it out"),
        ({"labels": {"t_min": "auto"}}, "labels.t_min = 'auto' .* take a number"),
        ({"labels": {"debias": True}}, "labels.debias = True .* take false"),
        ({"labels": {"debias": "auto"}}, "labels.debias = 'auto' .* take false"),
        ({"labels": {"time_grid": "fitted"}}, "labels.time_grid"),
        ({"labels": {"solver_tolerance": 1e-3}}, "labels.solver_tolerance"),
        ({"executor": {"actors_per_group": 2}}, "executor.actors_per_group"),
        ({"train": {"encoder": True}}, "train.encoder = True .* take false"),
        ({"data": {"source": "wave"}, "labels": {"condition_neighbors": 9}}, "labels.condition_neighbors is for"),
        ({"data": {"source": "wave"}, "labels": {"condition_adjust": "none"}}, "labels.condition_adjust is for"),
    ],
)
def test_what_does_not_go_with_conditions_is_refused(make_job, tables, message):
    with pytest.raises(ConfigError, match=message):
        check_job(make_job(**({"data": CONDITIONAL} | tables)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"condition": ["y", "y"]}, "condition names a column twice"),
        ({"condition": []}, "data.condition"),
        ({"condition": ["y"], "columns": ["x"]}, "condition names 'y', which is not among columns"),
    ],
)
def test_conditions_that_cannot_be_read(keys, message):
    with pytest.raises(ConfigError, match=message):
        resolve_job({"data": {"source": "wave", **keys}})


@pytest.mark.slow
def test_a_reference_larger_than_the_memory_is_refused(make_job, tmp_path, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((20_000, 3))
    np.save(tmp_path / "rows.npy", rows)
    data = {"source": str(tmp_path / "rows.npy"), "condition": ["c1"]}
    with pytest.raises(ConfigError, match=r"memory_gib = 0\.01 cannot hold one block of the reference"):
        Pipeline(make_job(data=data, labels={"memory_gib": 0.01})).label()
    monkeypatch.setattr("sfg_dist.distributed.labels.requirements.require_budget", lambda *_, **__: None)
    with pytest.raises(LabelingError, match=r"hold the whole reference.*raise labels.memory_gib"):
        Pipeline(make_job(data=data, labels={"memory_gib": 0.01})).label()
    from sfg_dist.job.errors import DataError

    with pytest.raises(DataError, match="need it whole"):
        Pipeline(make_job(data=data | {"shuffle": "none"}, labels={"memory_gib": 1e-5})).label()


def test_a_value_far_outside_the_training_rows_is_warned_of(small):
    generator = sfg_dist.Generator.load(small)
    with pytest.warns(UserWarning, match="'y' is -1000, far outside the training rows"):
        rows = generator.sample(3, given={"y": [1.0, -1000.0, 2.0]})
    assert np.isfinite(rows).all()
    generator.sample(3, given={"y": [0.01, 1.5, 2.99]})  # the ends are no cause for a warning


def test_given_on_the_command_line(small, tmp_path):
    model = small / "model"
    sfg(tmp_path, "sample", model, "-n", "500", "--given", "y=1.25", "--out", "rows.npy")
    generator = sfg_dist.Generator.load(model)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), generator.sample(500, given={"y": 1.25}))
    (tmp_path / "given.csv").write_text("z,y\n" + "".join(f"0,{k / 100}\n" for k in range(50, 250)))
    sfg(tmp_path, "sample", model, "--given-table", "given.csv", "--start", "100", "--out", "rows.zarr")
    import zarr

    rows = zarr.open_group(str(tmp_path / "rows.zarr"), mode="r")["X"][...]
    given = np.arange(50, 250) / 100
    np.testing.assert_array_equal(rows, generator.sample(200, given=given, start=100))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "needs values of y"),
        ({"given": ["y"]}, "--given 'y': expected column=value"),
        ({"given": ["y=warm"]}, "given: 'y': 'warm' is no number"),
        ({"given": ["x=1"]}, "'y' is missing"),
        ({"given": ["y=nan"]}, "'y' is nan"),
        ({"given": ["y=1"], "given_table": "t.csv"}, "give only one of them"),
        ({"given_table": "t.csv"}, "no column 'y'"),
        ({"given_table": "y.csv", "num": 3}, "-n 3: y.csv has 2 rows"),
    ],
)
def test_wrong_words_on_the_command_line(small, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "y.csv").write_text("y\n1\n2\n")
    with pytest.raises(SfgError, match=message):
        sample_model(str(small / "model"), SampleOptions(**words), as_json=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.csv", "y.csv"]
