"""The encoder as a part of a run: trained, saved, resumed, judged and shown."""

import numpy as np
import pytest

import sfg_dist
from sfg_dist.distributed import encoding
from sfg_dist.distributed.encoding import EncoderSettings, fit_encoder
from sfg_dist.model.encoder import Encoder
from sfg_dist.pipeline import Pipeline

TRAIN = {"encoder": True, "encoder_steps": 1200, "encoder_width": 48, "num_epochs": 40, "width": 48}


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A run on two moons with an encoder: its metrics, its pipeline, and what it told."""
    directory = tmp_path_factory.mktemp("moons") / "run"
    events = []
    job = {
        "data": {"source": "moons", "max_rows": 4000},
        "labels": {"num_pairs": 8192, "num_evaluations": 12, "t_min": 3e-3},
        "train": TRAIN,
        "evaluate": {"num_samples": 300, "metrics": ["ks_mean"]},
        "executor": {"kind": "inline"},
        "output": {"dir": str(directory)},
    }
    metrics = sfg_dist.run(job, listener=events.append)
    return metrics, Pipeline(sfg_dist.pipeline.as_job(job)), events


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


def test_encoded_rows_decode_to_about_themselves(moons):
    _, pipeline, _ = moons
    generator = sfg_dist.Generator.load(pipeline.model_url)
    latents = np.random.default_rng(0).standard_normal((500, 2)).astype(np.float32)
    rows = generator.decode(latents)
    back = generator.encode(rows)
    # Across a moon's width a small error of the row is a large one of the latent; independent latents differ by 2.
    assert np.square(back - latents).mean() < 0.25
    assert np.square(generator.decode(back) - rows).mean() < 0.08  # independent rows: 1.0


def test_the_run_tells_of_the_encoder_and_the_page_shows_it(moons):
    metrics, pipeline, events = moons
    checks = [event for event in events if event["event"] == "encoder"]
    assert len(checks) == 12
    assert checks[-1]["step"] == 1200
    assert checks[-1]["log_likelihood"] > checks[0]["log_likelihood"]
    page = pipeline.output.read("report.html").decode()
    assert "Generator.log_prob" in page
    assert f"{metrics['likelihood']['encoder']['mass']:.3f}" in page


def test_a_finished_encoder_is_not_fitted_again(moons, monkeypatch):
    _, pipeline, _ = moons
    before = pipeline.output.read("model/model.safetensors")
    monkeypatch.setattr(encoding.EncoderTrainer, "step", lambda *_: pytest.fail("it was fitted again"))
    pipeline.train()
    assert pipeline.output.read("model/model.safetensors") == before


def test_a_run_without_an_encoder_has_no_likelihood(make_job, tmp_path):
    metrics = sfg_dist.run(make_job())
    assert "likelihood" not in metrics
    assert "Generator.log_prob" not in (tmp_path / "run" / "report.html").read_text()
    assert sfg_dist.Generator.load(tmp_path / "run").encoder is None


class Stop(Exception):
    """Stands for a kill."""


def test_a_stopped_encoder_goes_on_from_its_checkpoint(make_job, tmp_path, monkeypatch):
    pairs = Pipeline(make_job()).label()
    validation = np.zeros((0, 2), np.float32)
    settings = EncoderSettings(16, 1, 60, None, 0.0, 1, 0)
    whole, _ = fit_encoder(pairs.location.url, tmp_path / "whole", settings, validation)
    step, steps = encoding.EncoderTrainer.step, []

    def step_and_stop(self, done):
        if len(steps) == 31:
            steps.append(None)
            raise Stop
        steps.append(done)
        step(self, done)

    monkeypatch.setattr(encoding.EncoderTrainer, "step", step_and_stop)
    with pytest.raises(Stop):
        fit_encoder(pairs.location.url, tmp_path / "cut", settings, validation)
    resumed, mass = fit_encoder(pairs.location.url, tmp_path / "cut", settings, validation)
    assert len(steps) == 61  # 60 steps, and the one that stopped
    assert mass.num_rows > 0
    assert isinstance(resumed, Encoder)
    for name, tensor in whole.state_dict().items():
        assert np.array_equal(tensor, resumed.state_dict()[name]), name


def test_the_time_limit_is_shared(make_job, monkeypatch):
    from sfg_dist.distributed import training

    job = make_job(train={"encoder": True, "encoder_share": 0.25, "max_time_s": 8.0, "encoder_steps": 5})
    Pipeline(job).label()
    limits = {}
    inline = training.fit_inline
    fit = encoding.fit_encoder

    def fit_inline(url, checkpoints, settings, **others):
        limits["generator"] = settings.max_time_s
        return inline(url, checkpoints, settings, **others)

    def fit_the_encoder(url, checkpoints, settings, *others, **named):
        limits["encoder"] = settings.max_time_s
        return fit(url, checkpoints, settings, *others, **named)

    monkeypatch.setattr(training, "fit_inline", fit_inline)
    monkeypatch.setattr(encoding, "fit_encoder", fit_the_encoder)
    Pipeline(job).train()
    assert limits == {"generator": 6.0, "encoder": 2.0}
