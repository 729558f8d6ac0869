"""The network that draws cells: its law, its fit, its file."""

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from sfg_dist.data.transform import Transform
from sfg_dist.job.config import TrainConfig
from sfg_dist.model.cell_network import CellNetwork
from sfg_dist.model.export_onnx import export_onnx
from sfg_dist.model.generator import Generator
from sfg_dist.model.trainer import Trainer

EDGES = [np.array([0.3]), np.array([0.2, 0.7]), np.linspace(0.1, 0.9, 9)]


def make(num_conditions=0, **shape):
    torch.manual_seed(0)
    return CellNetwork.of_edges(EDGES, width=16, depth=1, num_conditions=num_conditions, **shape)


def trained(latents, labels, steps=300):
    network = make()
    trainer = Trainer(network, TrainConfig(learning_rate=1e-2, precision="float32", ema_decay=0.9))
    for step in range(steps):
        trainer.step(latents, labels, len(latents), step / steps)
    return network.eval()


def cells_of(labels):
    scores = [ndtri(edges) for edges in EDGES]
    return np.stack([np.searchsorted(each, labels[:, k]) for k, each in enumerate(scores)], axis=1)


def test_a_new_network_draws_each_cell_by_its_share():
    network = make()
    drawn = network(torch.randn(20_000, network.num_inputs)).detach().numpy()
    for column, edges in enumerate(EDGES):
        shares = np.bincount(cells_of(drawn)[:, column]) / len(drawn)
        assert shares == pytest.approx(np.diff(edges, prepend=0, append=1), abs=0.015)


def test_within_a_cell_a_label_has_the_normal_law():
    network = make()
    drawn = network(torch.randn(40_000, network.num_inputs)).detach().numpy()
    is_lower = drawn[:, 0] < ndtri(0.3)
    for quarter in (0.25, 0.5, 0.75):
        assert (drawn[is_lower, 0] < ndtri(0.3 * quarter)).mean() == pytest.approx(quarter, abs=0.02)


@pytest.mark.slow
def test_the_cross_entropy_is_that_of_the_drawn_law():
    network = make(num_conditions=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    inputs = torch.randn(1, network.num_inputs).repeat(60_000, 1)
    inputs[:, 4:] = torch.randn(60_000, 3)
    drawn = network(inputs)
    cells = cells_of(drawn.detach().numpy()) @ [100, 10, 1]
    entropies = network(inputs, drawn).detach().numpy() * network.dim
    for cell in np.unique(cells)[:20]:
        found = cells == cell
        assert np.ptp(entropies[found]) < 1e-4
        assert found.mean() == pytest.approx(np.exp(-entropies[found][0]), abs=0.01)


@pytest.mark.slow
def test_columns_that_determine_each_other_agree_after_the_fit():
    torch.manual_seed(1)
    latents = torch.randn(512, 3)
    # the first column and the second are one fact that the latent says nothing about
    first = torch.rand(512) < 0.3
    labels = torch.stack([torch.where(first, -1.0, 1.0), torch.where(first, 0.0, 2.0), torch.randn(512)], dim=1)
    network = trained(latents, labels)
    drawn = cells_of(network(torch.randn(4000, network.num_inputs)).detach().numpy())
    assert (drawn[:, 0] == 0).mean() == pytest.approx(0.3, abs=0.07)
    assert (drawn[:, 1] == np.where(drawn[:, 0] == 0, 1, 2)).mean() > 0.99


def test_a_step_takes_no_rows_and_parts_of_a_batch_add_up():
    network, settings = make(), TrainConfig(precision="float32")
    latents, labels = torch.randn(64, 3), torch.randn(64, 3)
    trainer = Trainer(network, settings)
    assert float(trainer.step(latents[:0], labels[:0], 64, 0.0)) == 0.0
    whole = network(latents, labels).sum()
    parts = network(latents[:20], labels[:20]).sum() + network(latents[20:], labels[20:]).sum()
    torch.testing.assert_close(parts, whole)


def test_edges_stay_what_they_are_in_the_average():
    network = make()
    trainer = Trainer(network, TrainConfig(precision="float32"))
    for _ in range(3):
        trainer.step(torch.randn(32, 3), torch.randn(32, 3), 32, 0.0)
    assert torch.equal(trainer.average["edges"], torch.from_numpy(np.concatenate(EDGES)))


@pytest.mark.parametrize("edges", [EDGES[:1], EDGES[:2], EDGES])
def test_the_loss_reaches_each_parameter(edges):
    """Two workers that average gradients wait for each of them."""
    network = CellNetwork.of_edges(edges, width=16, depth=1, num_conditions=2)
    network(torch.randn(8, len(edges) + 2), torch.randn(8, len(edges))).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_a_network_of_one_column_comes_back_from_its_file_and_has_its_graph(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = CellNetwork.of_edges(EDGES[1:2], width=16, depth=1).eval()
    transform = Transform.fit(np.random.default_rng(0).normal(size=(50, 1)), ["a"])
    generator = Generator(network, transform)
    generator.save(tmp_path)
    rows = generator.sample(100, seed=1)
    np.testing.assert_array_equal(Generator.load(tmp_path).sample(100, seed=1), rows)
    session = onnxruntime.InferenceSession(export_onnx(generator)[0], providers=["CPUExecutionProvider"])
    drawn = np.random.default_rng(3).standard_normal((200, 2)).astype(np.float32)
    (found,) = session.run(["rows"], {"latents": drawn[:, :1], "noise": drawn[:, 1:]})
    assert np.allclose(found, generator.decode(drawn), atol=1e-3)
