"""The optimisers that share the weights between them, their resume, and an objective that is gone."""

import numpy as np
import pytest
import torch

from sfg_dist.job.config import TrainConfig, resolve_job
from sfg_dist.job.errors import ConfigError
from sfg_dist.model import MLP, Trainer
from sfg_dist.model.optimizers import make_optimizers, orthogonal

SPREAD = 0.5


def blurred_pairs(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x = y + 0.5 e: half of a standard deviation of a label does not follow from its latent."""
    generator = np.random.default_rng(seed)
    latents = generator.standard_normal((num_rows, 2)).astype(np.float32)
    return latents, latents + SPREAD * generator.standard_normal((num_rows, 2)).astype(np.float32)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_weight_has_one_optimizer(name: str) -> None:
    network = MLP(40, width=64, depth=2)
    optimizers = make_optimizers(network, name, learning_rate=1e-3, weight_decay=0.1)
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    if name == "muon":
        inner = {id(p) for block in network.hidden[1:3] for p in (block.expand.weight, block.project.weight)}
        assert {id(p) for p in optimizers[1].param_groups[0]["params"]} == inner
    else:
        assert len(optimizers) == 1


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 64, 24), (2, 24, 64)])
def test_a_muon_step_is_about_the_nearest_orthogonal_matrix(shape) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonal(matrices) @ v.mT
    values = torch.diagonal(inner, dim1=1, dim2=2)
    # Diagonal in the basis of the singular vectors, and near one wherever the singular value is not tiny.
    assert float((inner - torch.diag_embed(values)).abs().max()) < 0.03
    assert float(values[s > 0.05 * s.amax(1, keepdim=True)].min()) > 0.6
    assert float(values.max()) < 1.3


def test_fit_resumed_from_its_state_goes_on_to_the_same_bits() -> None:
    def trainer() -> Trainer:
        torch.manual_seed(0)
        return Trainer(MLP(2, width=32, depth=1), TrainConfig(learning_rate=1e-2, ema_decay=0.9))

    whole, first = trainer(), trainer()
    for step in range(6):
        whole.step(*blurred_pairs(64, seed=step), 64, step / 6)
    for step in range(3):
        first.step(*blurred_pairs(64, seed=step), 64, step / 6)
    second = trainer()
    second.load_files(first.state_files(), "here")
    for step in range(3, 6):
        second.step(*blurred_pairs(64, seed=step), 64, step / 6)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert whole.validation_loss(*blurred_pairs(64, 9)) == second.validation_loss(*blurred_pairs(64, 9))


def test_an_objective_that_is_gone_is_refused_with_a_word_and_its_old_default_is_not() -> None:
    """Every job.toml and model of earlier versions names these keys."""
    data = {"source": "moons"}
    assert resolve_job({"data": data, "train": {"objective": "mse", "num_noise": 0}}).train == TrainConfig()
    with pytest.raises(ConfigError, match="train: leave out objective and num_noise: every fit minimises the mean"):
        resolve_job({"data": data, "train": {"objective": "energy", "num_noise": 2}})
