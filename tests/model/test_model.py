"""The network, its calibration, and the saved artifact."""

import itertools
import json

import numpy as np
import pytest
import torch

from sfg_dist.data import Transform
from sfg_dist.job.config import TrainConfig
from sfg_dist.job.errors import StoreError
from sfg_dist.model import MLP, Calibration, Generator, Trainer, predict


def make_generator(calibration=None, kind="quantile", dim=3):
    generator = np.random.default_rng(0)
    rows = np.exp(generator.standard_normal((400, dim))) + 5
    transform = Transform.fit(rows, tuple(f"c{i}" for i in range(dim)), kind=kind)
    torch.manual_seed(0)
    network = MLP(dim, width=8, depth=1)
    torch.nn.init.normal_(network.out.weight, std=0.1)
    return Generator(
        network.eval(), transform, calibration, job={"data": {"source": "x"}}, metrics={"floor": {"ks_mean": 0.1}}
    )


@pytest.mark.parametrize("block", ["residual", "plain"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "tanh"])
def test_shapes_and_the_linear_start(block, activation):
    model = MLP(5, width=12, depth=2, block=block, activation=activation)
    y = torch.randn(7, 5)
    assert torch.equal(model(y), y)  # the skip starts at the identity, the rest at zero
    assert model(torch.empty(0, 5)).shape == (0, 5)
    assert MLP(5, width=12, depth=2, block=block, linear_skip=False)(y).shape == (7, 5)


def test_depth_counts_blocks_and_hidden_layers():
    residual = [m for m in MLP(2, width=4, depth=3).modules() if isinstance(m, torch.nn.Linear)]
    plain = [
        m
        for m in MLP(2, width=4, depth=3, block="plain", linear_skip=False).modules()
        if isinstance(m, torch.nn.Linear)
    ]
    assert len(residual) == 1 + 2 * 3 + 1 + 1
    assert len(plain) == 3 + 1


def test_predict_in_parts():
    model = MLP(2, width=4, depth=1)
    y = torch.randn(100, 2)
    torch.testing.assert_close(predict(model, y, batch_size=7), model(y).detach())
    assert predict(model, y[:0]).shape == (0, 2)


def plain_settings(**changed):
    keys = {"learning_rate": 1e-2, "weight_decay": 0.0, "ema_decay": 0.0, "optimizer": "adamw"}
    return TrainConfig(**(keys | changed))


@pytest.mark.parametrize("parts", [[8], [5, 3], [8, 0], [4, 4]])
def test_gradients_of_uneven_parts_average_to_the_batchs(parts):
    """What data-parallel training computes: the mean over ranks of each rank's gradient."""
    y, x = np.random.default_rng(0).standard_normal((2, 8, 3)).astype(np.float32)

    def gradient(world_size, y, x):
        torch.manual_seed(0)
        settings = plain_settings(precision="float32", learning_rate=1e-30)
        trainer = Trainer(MLP(3, width=6, depth=1), settings, world_size=world_size)
        torch.nn.init.normal_(trainer.model.out.weight)
        trainer.step(y, x, 8, 0.0)
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    whole = gradient(1, y, x)
    edges = np.cumsum([0, *parts])
    mean = sum(gradient(len(parts), y[a:b], x[a:b]) for a, b in itertools.pairwise(edges)) / len(parts)
    torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-6)


def test_the_average_of_weights_follows_its_recursion():
    trainer = Trainer(MLP(2, width=4, depth=1), plain_settings(ema_decay=0.5))
    expected = trainer.average["out.weight"].clone()
    rows = np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32)
    for step in range(1, 30):
        trainer.step(rows, rows[:, ::-1].copy(), 16, 0.0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * trainer.model.state_dict()["out.weight"]
    torch.testing.assert_close(trainer.average["out.weight"], expected)
    current = trainer.model.state_dict()["out.weight"].clone()
    with trainer.averaged_weights():
        assert torch.equal(trainer.model.state_dict()["out.weight"], trainer.average["out.weight"])
    assert torch.equal(trainer.model.state_dict()["out.weight"], current)


@pytest.mark.slow
def test_learning_rate_schedules():
    rows = np.zeros((4, 2), np.float32)
    cosine, constant = (
        Trainer(MLP(2, width=4, depth=1), plain_settings(learning_rate=1.0, learning_rate_schedule=schedule))
        for schedule in ("cosine", "constant")
    )
    rates = []
    for step in range(400):
        for trainer in (cosine, constant):
            trainer.step(rows, rows, 4, step / 400)
        rates.append(cosine.rate)
        assert constant.rate == 1.0
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) > 0.8
    assert rates[-1] < 1e-3


def test_bfloat16_trains(device):
    trainer = Trainer(MLP(2, width=32, depth=1).to(device), plain_settings(precision="bfloat16"))
    rows = np.random.default_rng(0).standard_normal((256, 2)).astype(np.float32)
    losses = [float(trainer.step(rows, -rows, 256, 0.0)) for _ in range(100)]
    assert losses[-1] < 0.2 * losses[0]
    assert next(trainer.model.parameters()).dtype == torch.float32


def correlated(num_rows, seed):
    rows = np.random.default_rng(seed).standard_normal((num_rows, 2))
    return np.stack([rows[:, 0], 0.9 * rows[:, 0] + 0.4 * rows[:, 1] ** 2], axis=1)


class Shrunk(MLP):
    """A network whose samples have the reference's law but too little variance."""

    def forward(self, y):
        rows = np.stack([y[:, 0], 0.9 * y[:, 0] + 0.4 * y[:, 1] ** 2], axis=1)
        return torch.from_numpy(0.6 * rows).float()


@pytest.mark.slow
def test_calibration_restores_variance_correlation_and_marginals():
    from scipy.stats import ks_2samp

    reference = correlated(20_000, 0).astype(np.float32)
    network = Shrunk(2, width=4, depth=1)
    calibration = Calibration.fit(network, reference, seed=0)
    raw = predict(network, torch.randn(20_000, 2, generator=torch.Generator().manual_seed(9))).numpy()
    calibrated = calibration(raw)
    assert np.abs(np.cov(calibrated.T) - np.cov(reference.T)).max() < 0.03
    for column in range(2):
        assert ks_2samp(calibrated[:, column], reference[:, column]).statistic < 0.02
        assert ks_2samp(raw[:, column], reference[:, column]).statistic > 0.1


def test_calibration_is_monotone_in_one_dimension_and_finite_far_out():
    reference = np.sort(np.random.default_rng(0).exponential(size=(5000, 1)).astype(np.float32))
    calibration = Calibration.fit(MLP(1, width=4, depth=1), reference, seed=0)
    places = np.linspace(-50, 50, 2001, dtype=np.float32)[:, None]
    images = calibration(places)[:, 0]
    assert np.isfinite(images).all()
    assert (np.diff(images) >= 0).all()
    assert (np.diff(images)[[0, -1]] > 0).all()  # beyond the last knots rows keep their distance


def test_calibration_of_a_collapsed_network_is_finite():
    network = MLP(3, width=4, depth=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    calibration = Calibration.fit(
        network, np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32), seed=0
    )
    assert np.isfinite(calibration(np.zeros((5, 3), np.float32))).all()


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
def test_save_and_load(tmp_path, calibrated, kind):
    generator = make_generator(kind=kind)
    if calibrated:
        reference = np.random.default_rng(1).standard_normal((500, 3)).astype(np.float32)
        generator = Generator(
            generator.network, generator.transform, Calibration.fit(generator.network, reference, seed=0)
        )
    generator.save(tmp_path / "model")
    loaded = Generator.load(tmp_path / "model")
    assert np.array_equal(loaded.sample(50, seed=3), generator.sample(50, seed=3))
    assert loaded.columns == ("c0", "c1", "c2")
    assert loaded.job == generator.job
    assert loaded.metrics == generator.metrics
    assert np.array_equal(Generator.load(tmp_path).sample(5), generator.sample(5))
    assert {file.name for file in (tmp_path / "model").iterdir()} == {"model.safetensors", "generator.json"}


def test_loading_what_is_not_a_generator(tmp_path):
    with pytest.raises(StoreError, match="holds no generator"):
        Generator.load(tmp_path)
    make_generator().save(tmp_path / "model")
    path = tmp_path / "model" / "generator.json"
    whole = path.read_text()
    for text, message in [
        ("{", r"damaged or of another version: generator\.json is no JSON document"),
        (json.dumps(json.loads(whole) | {"format": 9}), "format 9"),
        (json.dumps(json.loads(whole) | {"network": {"dim": 3, "width": 9}}), "damaged or of another version"),
    ]:
        path.write_text(text)
        with pytest.raises(StoreError, match=message):
            Generator.load(tmp_path / "model")
    path.write_text(whole)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"model\.safetensors is no safetensors file"):
        Generator.load(tmp_path / "model")
