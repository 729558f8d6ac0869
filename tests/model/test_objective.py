"""Objectives against laws that are known, and the optimisers that share the weights between them."""

import numpy as np
import pytest
import torch

from sfg_dist.job.config import resolve_job
from sfg_dist.job.errors import ConfigError
from sfg_dist.model import MLP, Trainer
from sfg_dist.model.objective import loss_sum, with_noise
from sfg_dist.model.optimizers import make_optimizers, orthogonal

SPREAD = 0.5


def blurred_pairs(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x = y + 0.5 e: half of a standard deviation of a label does not follow from its latent."""
    generator = np.random.default_rng(seed)
    latents = generator.standard_normal((num_rows, 2)).astype(np.float32)
    return latents, latents + SPREAD * generator.standard_normal((num_rows, 2)).astype(np.float32)


def fitted(objective: str, num_noise: int, *, steps: int = 500) -> MLP:
    torch.manual_seed(0)
    network = MLP(2, width=32, depth=1, num_noise=num_noise)
    kinds = {"objective": objective, "optimizer": "muon", "precision": "float32"}
    trainer = Trainer(network, learning_rate=1e-2, weight_decay=0, ema_decay=0.9, **kinds)
    for step in range(steps):
        trainer.step(*blurred_pairs(512, seed=step), 512, step / steps)
    network.load_state_dict(trainer.average)
    return network


@pytest.mark.slow
def test_energy_score_learns_the_law_of_a_label_and_mean_squared_error_only_its_mean() -> None:
    inputs = torch.full((20_000, 2), 0.7)
    noisy_network, mean_network = fitted("energy", 2), fitted("mse", 0)
    with torch.inference_mode():
        noisy = noisy_network(with_noise(inputs, 2, torch.Generator().manual_seed(1)))
        mean = mean_network(inputs)
    assert noisy.mean(0).tolist() == pytest.approx([0.7, 0.7], abs=0.08)
    assert noisy.std(0).tolist() == pytest.approx([SPREAD, SPREAD], rel=0.12)
    assert abs(float(torch.corrcoef(noisy.T)[0, 1])) < 0.15
    assert mean.std(0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert mean[0].tolist() == pytest.approx([0.7, 0.7], abs=0.08)


def test_energy_score_is_the_closed_form_of_normal_draws() -> None:
    """For x, F ~ N(0, 1) in one column, E|x - F| = 2/sqrt(pi) and half the spread is 1/sqrt(pi)."""
    labels = torch.from_numpy(np.random.default_rng(0).standard_normal((200_000, 1)).astype(np.float32))
    inputs = torch.zeros(len(labels), 1)
    total = loss_sum(
        "energy", lambda u: u[:, 1:], inputs, labels, num_noise=1, generator=torch.Generator().manual_seed(0)
    )
    assert float(total) / len(labels) == pytest.approx(np.pi**-0.5, abs=5e-3)


def test_energy_score_without_noise_is_refused() -> None:
    rows = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="columns of noise"):
        loss_sum("energy", lambda u: u, rows, rows)


@pytest.mark.parametrize(("objective", "num_noise"), [("energy", 0), ("mse", 3)])
def test_job_whose_objective_and_noise_do_not_fit_is_refused(objective: str, num_noise: int) -> None:
    with pytest.raises(ConfigError, match="num_noise"):
        resolve_job({"data": {"source": "moons"}, "train": {"objective": objective, "num_noise": num_noise}})


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


def test_energy_score_of_no_rows_is_zero_and_has_a_gradient() -> None:
    network = MLP(2, width=8, depth=1, num_noise=2)
    rows = torch.zeros(0, 2)
    total = loss_sum("energy", network, rows, rows, num_noise=2, generator=torch.Generator().manual_seed(0))
    total.backward()
    assert total.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(("objective", "num_noise"), [("mse", 0), ("energy", 2)])
def test_fit_resumed_from_its_state_goes_on_to_the_same_bits(objective: str, num_noise: int) -> None:
    def trainer() -> Trainer:
        torch.manual_seed(0)
        network = MLP(2, width=32, depth=1, num_noise=num_noise)
        return Trainer(
            network, learning_rate=1e-2, weight_decay=0.1, ema_decay=0.9, objective=objective, optimizer="muon", seed=3
        )

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
