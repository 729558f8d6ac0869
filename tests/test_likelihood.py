"""The encoder as a part of a run: trained, saved, resumed, judged and shown."""

import time
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jinja2 import Template
from patience import patience

import sfg_dist
from sfg_dist.data import prepare
from sfg_dist.distributed.fit import encoder, encoder_process
from sfg_dist.distributed.fit.encoder import fit_encoder
from sfg_dist.distributed.fit.encoder_process import encoder_beside
from sfg_dist.distributed.fit.generator import encoder_settings, fit_settings
from sfg_dist.evaluate.plain_figures import costliest_rows, likelihood_rows
from sfg_dist.job.config import TrainConfig
from sfg_dist.job.errors import StoreError, TrainingError
from sfg_dist.model import MLP, Generator
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.likelihood import Mass
from sfg_dist.pipeline.check import as_job
from sfg_dist.pipeline.likelihood import likelihood_figures
from sfg_dist.pipeline.pipeline import Pipeline

TRAIN = {"encoder": True, "encoder_steps": 1200, "encoder_width": 48, "num_epochs": 40, "width": 48}


@pytest.fixture(scope="module")
def moons(tmp_path_factory, no_pictures_here):
    """A run on two moons with an encoder: its metrics, its pipeline, and what it told."""
    directory = tmp_path_factory.mktemp("moons") / "run"
    events = []
    job = {
        "data": {"source": "moons", "max_rows": 4000},
        "labels": {"num_pairs": 8192, "num_evaluations": 12, "t_min": 3e-3},
        "train": TRAIN,
        "evaluate": {"num_samples": 300, "metrics": ["ks_mean"], "judge": False},
        "executor": {"kind": "inline"},
        "output": {"dir": str(directory)},
    }
    metrics = sfg_dist.run(job, listener=events.append)
    return metrics, Pipeline(as_job(job)), events


@pytest.mark.long
@pytest.mark.slow
def test_the_encoder_comes_near_the_known_density(moons):
    metrics, pipeline, _ = moons
    generator, table = sfg_dist.Generator.load(pipeline.model_url), pipeline.prepared
    truth = np.asarray(table.log_density(table.test))
    assert generator.log_prob(table.test).mean() > truth.mean() - 0.35
    figures = metrics["likelihood"]
    assert figures["encoder"]["mean"] == pytest.approx(generator.log_prob(table.test).mean(), abs=1e-6)
    assert figures["encoder"]["mean"] > figures["normal"]["mean"] + 0.5
    assert figures["encoder"]["mass"] == pytest.approx(1, abs=0.05)
    assert figures["encoder"]["mass_established"]
    assert figures["kernel"]["mean"] == pytest.approx(figures["ode"]["mean"], abs=0.3)
    assert {figure["num_rows"] for figure in figures.values()} == {400}


@pytest.mark.long
@pytest.mark.slow
def test_encoded_rows_decode_to_about_themselves(moons):
    _, pipeline, _ = moons
    generator = sfg_dist.Generator.load(pipeline.model_url)
    latents = np.random.default_rng(0).standard_normal((500, 2)).astype(np.float32)
    rows = generator.decode(latents)
    back = generator.encode(rows)
    # Across a moon's width a small error of the row is a large one of the latent; independent latents differ by 2.
    assert np.square(back - latents).mean() < 0.25
    assert np.square(generator.decode(back) - rows).mean() < 0.08  # independent rows: 1.0


@pytest.mark.long
@pytest.mark.slow
def test_the_run_tells_of_the_encoder_and_the_page_shows_it(moons):
    metrics, pipeline, events = moons
    checks = [event for event in events if event["event"] == "encoder"]
    assert len(checks) == 12
    assert checks[-1]["step"] == 1200
    assert checks[-1]["log_likelihood"] > checks[0]["log_likelihood"]
    page = pipeline.output.read("report.html").decode()
    assert "Generator.log_prob" in page
    assert f"{metrics['likelihood']['encoder']['mass']:.3f}" in page


@pytest.mark.long
@pytest.mark.slow
def test_a_finished_encoder_is_not_fitted_again(moons, monkeypatch):
    _, pipeline, _ = moons
    before = pipeline.output.read("model/model.safetensors")
    monkeypatch.setattr(encoder, "EncoderTrainer", lambda *_, **__: pytest.fail("it was fitted again"))
    monkeypatch.setattr(encoder_process, "encoder_beside", lambda *_, **__: pytest.fail("it was fitted again"))
    pipeline.train()
    assert pipeline.output.read("model/model.safetensors") == before


def test_the_rows_that_cost_most_are_named(tmp_path):
    rows = np.random.default_rng(0).standard_normal((400, 2))
    rows[np.random.default_rng(0).permutation(400)[-1], 1] = 50.0  # the last held-out row
    np.save(tmp_path / "t.npy", rows)
    table = prepare(tmp_path / "t.npy", seed=0)
    encoder, mass = Encoder(2, width=8, depth=1).eval(), Mass(1.0, 0.01, 1.0, 0.01, 1000)
    generator = Generator(MLP(2, width=8, depth=1).eval(), table.transform, encoder=encoder, mass=mass)
    plan = SimpleNamespace(labels={"estimator": "minibatch"}, sigma_data=1.0)
    reference = table.reference()
    pairs = SimpleNamespace(plan=plan, num_reference=len(reference), reference_rows=lambda start, stop: reference)
    figures = likelihood_figures(generator, table, pairs)
    found, values = figures["encoder"], generator.log_prob(table.test, noise=table.noise("test"))
    assert found["median"] == pytest.approx(np.median(values))
    (first, *others) = found["costliest"]
    assert rows[first["row"], 1] == 50
    assert (first["column"], first["log_density"]) == (table.columns[1], pytest.approx(values.min()))
    assert [row["log_density"] for row in others] == pytest.approx(np.sort(values)[1:5].tolist())
    page = Template(files("sfg_dist.evaluate").joinpath("likelihood.html").read_text()).render(
        likelihood=likelihood_rows(figures), costliest=costliest_rows(figures)
    )
    assert f"row {first['row']}</td>" in page
    assert f"{-found['median']:.3f}" in page  # behind a minus sign


@pytest.mark.slow
def test_a_run_without_an_encoder_has_no_likelihood(small_run):
    assert "likelihood" not in small_run.metrics
    assert "Generator.log_prob" not in (small_run.directory / "report.html").read_text()
    assert sfg_dist.Generator.load(small_run.directory).encoder is None


def encoder_settings_of(**changed):
    keys = {"encoder_width": 16, "encoder_depth": 1, "encoder_steps": 60, "checkpoint_interval_s": 1e-9}
    return TrainConfig(**(keys | {"num_threads": 1} | changed))


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.slow
def test_a_stopped_encoder_goes_on_from_its_checkpoint(copy_labels, tmp_path, monkeypatch):
    pairs = copy_labels()
    validation = np.zeros((0, 2), np.float32)
    settings = encoder_settings_of()
    whole, *_ = fit_encoder(pairs.location.url, tmp_path / "whole", settings, validation)
    step, steps = encoder.EncoderTrainer.step, []

    def step_and_stop(self, done):
        if len(steps) == 31:
            steps.append(None)
            raise Stop
        steps.append(done)
        step(self, done)

    monkeypatch.setattr(encoder.EncoderTrainer, "step", step_and_stop)
    with pytest.raises(Stop):
        fit_encoder(pairs.location.url, tmp_path / "cut", settings, validation)
    resumed, mass, _ = fit_encoder(pairs.location.url, tmp_path / "cut", settings, validation)
    assert len(steps) == 61  # 60 steps, and the one that stopped
    assert mass.num_rows > 0
    assert isinstance(resumed, Encoder)
    for name, tensor in whole.state_dict().items():
        assert np.array_equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("threads", "device", "kind", "generator", "encoder"),
    [
        (1, "cpu", "inline", (6.0, 1), (2.0, 1)),
        (4, "cpu", "ray", (6.0, 4), (2.0, 4)),
        (4, "cuda", "inline", (6.0, 4), (2.0, 4)),
        (5, "cpu", "inline", (8.0, 3), (8.0, 2)),  # at once, on threads of their own
    ],
)
def test_the_fits_share_the_time_or_the_threads(make_job, monkeypatch, threads, device, kind, generator, encoder):
    monkeypatch.setattr("sfg_dist.distributed.machine.default_device", lambda: torch.device(device))
    keys = {"encoder": True, "encoder_share": 0.25, "max_time_s": 8.0, "num_threads": threads}
    job = make_job(train=keys, executor={"kind": kind})
    assert tuple(getattr(fit_settings(job), name) for name in ("max_time_s", "num_threads")) == generator
    assert tuple(getattr(encoder_settings(job), name) for name in ("max_time_s", "num_threads")) == encoder


def small_fit(copy_labels, **changed):
    pairs = copy_labels()
    return pairs, encoder_settings_of(**changed), np.zeros((0, 2), np.float32)


@pytest.mark.slow
def test_a_fit_in_another_process_is_the_same_fit(copy_labels, tmp_path):
    pairs, settings, validation = small_fit(copy_labels)
    alone, mass, blend = fit_encoder(pairs.location.url, tmp_path / "alone", settings, validation)
    told = []
    with encoder_beside(pairs.location.url, tmp_path / "beside", settings, validation, on_check=told.append) as beside:
        encoder, same_mass, same_blend = beside.wait()
    assert [entry["step"] for entry in told] == [5 * check for check in range(1, 13)]
    assert same_mass == mass
    assert same_blend.share == blend.share
    assert torch.equal(same_blend.mixture.means, blend.mixture.means)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name]), name


@pytest.mark.long
@pytest.mark.slow
def test_a_process_that_is_killed_says_so_and_the_fit_goes_on(copy_labels, tmp_path, monkeypatch):
    pairs, settings, validation = small_fit(copy_labels, encoder_steps=1_000_000)
    arguments = (pairs.location.url, tmp_path / "c", settings, validation)
    with encoder_beside(*arguments, on_check=lambda entry: None) as beside:
        deadline = time.monotonic() + patience(60)
        while not (tmp_path / "c" / encoder.STATE_NAME).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        beside._child._process.kill()
        with pytest.raises(TrainingError, match="the encoder's process ended"):
            beside.wait()
    step, steps = encoder.EncoderTrainer.step, []

    def counted(self, done):
        steps.append(done)
        step(self, done)

    monkeypatch.setattr(encoder.EncoderTrainer, "step", counted)
    fit_encoder(*arguments[:2], settings.model_copy(update={"encoder_steps": 300}), validation)
    assert len(steps) < 300  # it did not begin anew


@pytest.mark.slow
def test_an_error_in_the_other_process_is_raised_here(copy_labels, tmp_path):
    _, settings, validation = small_fit(copy_labels)
    arguments = (str(tmp_path / "nowhere.zarr"), tmp_path / "c", settings, validation)
    with (
        encoder_beside(*arguments, on_check=lambda entry: None) as beside,
        pytest.raises(StoreError, match=r"nowhere\.zarr"),
    ):
        beside.wait()


@pytest.mark.slow
def test_a_mass_belongs_to_the_weights_that_it_was_measured_for(copy_labels, tmp_path, monkeypatch):
    """Killed after more steps and before their mass, a fit does not pass the old mass off as the new one's."""
    pairs, settings, validation = small_fit(copy_labels)
    fit_encoder(pairs.location.url, tmp_path / "c", settings, validation)
    longer = settings.model_copy(update={"encoder_steps": 200})

    def stop(self):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(encoder.EncoderTrainer, "finish", stop)
        with pytest.raises(Stop):
            fit_encoder(pairs.location.url, tmp_path / "c", longer, validation)
    assert encoder.finished_encoder(pairs, tmp_path / "c", longer) is None
    fit_encoder(pairs.location.url, tmp_path / "c", longer, validation)
    assert encoder.finished_encoder(pairs, tmp_path / "c", longer) is not None


@pytest.mark.slow
def test_the_other_process_ends_with_this_one(copy_labels, tmp_path):
    pairs, settings, validation = small_fit(copy_labels, encoder_steps=1_000_000)
    arguments = (pairs.location.url, tmp_path / "c", settings, validation)
    with encoder_beside(*arguments, on_check=lambda entry: None) as beside:
        process = beside._child._process
        process.stdin.close()  # as the system does when a process is killed
        assert process.wait(patience(60)) == 1
