"""The mixture beside an encoder: its fit, its share, and the files and checkpoints that hold it or lack it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from sfg_dist.data import Transform
from sfg_dist.job.errors import StoreError
from sfg_dist.model import encoder_trainer, likelihood
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.encoder_trainer import EncoderTrainer, Tables, load_finished
from sfg_dist.model.generator import Generator
from sfg_dist.model.likelihood import Blend, Mass, Mixture
from sfg_dist.model.mlp import MLP
from sfg_dist.model.saved import read_tensors, saved_bytes


def rows_of(num_rows, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32)


class Largest(TorchFunctionMode):
    """Notes the numbers of the largest tensor that an operation gives."""

    numbers = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.numbers = max(self.numbers, found.numel())
        return found


def test_the_fit_of_many_columns_holds_no_square_of_them_for_each_row(monkeypatch):
    rows = rows_of(400, 30)
    whole = Mixture.fit(rows, seed=0)
    monkeypatch.setattr(likelihood, "_TANGENT_NUMBERS", 2**12)
    with Largest() as largest:
        parts = Mixture.fit(rows, seed=0)
    assert largest.numbers <= rows.size
    for name, tensor in parts.to_tensors().items():
        torch.testing.assert_close(tensor, whole.to_tensors()[name])


def test_the_heaviest_component_is_kept_where_rounding_makes_all_too_light():
    mixture = Mixture.fit(np.zeros((110, 1), np.float32), seed=0)  # 22 components of 5 rows less a rounding
    assert len(mixture.weights) > 0
    assert float(mixture.weights.sum()) == pytest.approx(1)


def test_rows_without_a_density_do_not_decide_the_share():
    mixture = Mixture.fit(rows_of(50, 2), seed=0)
    of_encoder, of_mixture = torch.randn(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = Blend.fit(mixture, of_encoder, of_mixture).share
    for nothing in (math.nan, -math.inf):
        none = torch.tensor([nothing], dtype=torch.float64)
        assert Blend.fit(mixture, torch.cat([of_encoder, none]), torch.cat([of_mixture, none])).share == wanted
        assert Blend.fit(mixture, none, none).share == 0.5
        assert Blend.fit(mixture, none, torch.zeros(1).double()).share > 0.99


def test_a_checkpoint_of_a_version_without_a_mixture_goes_on(monkeypatch):
    monkeypatch.setattr(encoder_trainer, "NUM_POOL_ROWS", 4096)
    rows, limits = rows_of(100, 2), [2, None]
    trainers = [EncoderTrainer(Encoder(2, width=8), Tables(rows, rows, rows, rows), seed=0) for _ in range(2)]
    for done in (0.0, 0.5):
        trainers[0].step(done)
    trainers[0].progress.ended_by = limits
    trainers[0].finish()
    tensors = read_tensors(trainers[0].state({}), "encoder")
    earlier = {name: tensor for name, tensor in tensors.items() if not name.startswith("mixture.")}
    progress = json.loads(tensors["progress"].numpy().tobytes())
    assert load_finished(Encoder(2, width=8), trainers[0].state({}), {}, limits) is not None
    del progress["share"]
    earlier["progress"] = torch.tensor(list(json.dumps(progress).encode()), dtype=torch.uint8)
    content = saved_bytes(earlier)
    assert load_finished(Encoder(2, width=8), content, {}, limits) is None
    assert trainers[1].load_state(content, {})
    assert (trainers[1].progress.step, trainers[1].progress.ended_by) == (2, limits)
    _, blend = trainers[1].finish()
    assert blend.share == trainers[0].progress.share


@pytest.fixture(scope="module")
def transforms():
    rows = np.random.default_rng(0).exponential(size=(400, 2))
    return {bounds: Transform.fit(rows, ["a", "b"], bounds=bounds) for bounds in ("observed", "none")}


def generator_of(transform, **parts):
    encoder = {"encoder": Encoder(2, width=8, depth=1), "mass": Mass(1.0, 0.1, 1.0, 0.1, 10)}
    return Generator(MLP(2, width=8, depth=1), transform, **encoder, **parts)


def test_a_mixture_without_a_share_is_refused(transforms, tmp_path):
    generator = generator_of(transforms["observed"], blend=Blend(0.4, Mixture.fit(rows_of(100, 2), seed=0)))
    generator.save(tmp_path)
    document = json.loads((tmp_path / "generator.json").read_text())
    del document["encoder"]["mixture_share"]
    (tmp_path / "generator.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"encoder\.mixture_share is missing"):
        Generator.load(tmp_path)


def test_version_0_1_0_refuses_what_it_would_give_another_density_of(transforms, tmp_path):
    """It takes no notice of the laws beyond the training rows, nor of a mixture."""
    of_observed, of_wide = (generator_of(transforms[bounds]) for bounds in ("observed", "none"))
    lawless = dataclasses.replace(transforms["observed"], tails=np.zeros((2, 2, 2)))
    blended = generator_of(lawless, blend=Blend(0.4, Mixture.fit(rows_of(100, 2), seed=0)))
    cases = {
        "samples stay within the rows": (dataclasses.replace(of_observed, encoder=None, mass=None), 1),
        "samples follow a law": (dataclasses.replace(of_wide, encoder=None, mass=None), 2),
        "the density follows a law": (of_observed, 2),
        "of an earlier version": (generator_of(lawless), 1),
        "blended": (blended, 2),
    }
    for name, (generator, wanted) in cases.items():
        generator.save(tmp_path)
        assert json.loads((tmp_path / "generator.json").read_text())["format"] == wanted, name
        assert Generator.load(tmp_path).digest == generator.digest
