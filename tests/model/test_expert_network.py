"""The network of experts: its regions, its loss and fit, its optimisers, its bits."""

import numpy as np
import pytest
import torch

from sfg_dist.data import Transform
from sfg_dist.job.config import TrainConfig, resolve_job
from sfg_dist.job.errors import ConfigError, DocumentError
from sfg_dist.model import Generator
from sfg_dist.model.expert_network import TILE_ROWS, ExpertNetwork
from sfg_dist.model.optimizers import Muon, make_optimizers
from sfg_dist.model.saved import network_of
from sfg_dist.model.trainer import Trainer


def clusters(num_rows, seed=0):
    """Latents, and labels of two clusters of equal size that are far apart on the two sides of a cliff."""
    half = np.random.default_rng(seed).standard_normal((num_rows // 2, 2)).astype(np.float32)
    latents = np.concatenate([half, -half])
    side = np.where(latents[:, :1] > 0, 2.0, -2.0)
    return latents, (side + 0.2 * latents).astype(np.float32)


def reference_of(num_rows=4000, dim=3):
    return np.random.default_rng(0).standard_normal((num_rows, dim)).astype(np.float32) * np.float32([3, 2, 1][:dim])


def make(experts=8, dim=3, **shape):
    torch.manual_seed(0)
    network = ExpertNetwork.of_reference(
        reference_of(dim=dim), dim, experts=experts, **({"width": 16, "depth": 1} | shape)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize("experts", [2, 8, 64])
def test_regions_have_equal_numbers_of_the_references_rows(experts):
    counts = torch.bincount(make(experts).region_of(torch.from_numpy(reference_of())))
    assert len(counts) == experts
    assert int(counts.max() - counts.min()) <= 1


def test_the_first_cut_is_across_the_longest_axis():
    network = make(2)
    assert abs(float(network.directions[0, 0])) > 0.99
    assert float(network.thresholds[0]) == pytest.approx(np.median(reference_of()[:, 0]), abs=0.1)


def test_rows_that_are_equal_stay_together_and_too_few_rows_leave_regions_empty():
    rows = np.repeat(np.array([[0.0, 1.0], [5.0, 1.0]], np.float32), [70, 30], axis=0)
    network = ExpertNetwork.of_reference(rows, 2, experts=8, width=8, depth=1)
    regions = network.region_of(torch.from_numpy(rows))
    assert len(set(regions[:70].tolist())) == len(set(regions[70:].tolist())) == 1
    assert regions[0] != regions[-1]
    assert torch.equal(network.out.bias[regions[-1]], torch.tensor([5.0, 1.0]))
    assert bool(torch.isfinite(network.out.bias).all())
    network.match_shares(rows, seed=0)
    assert bool(torch.isfinite(network.offsets).all())


@pytest.mark.parametrize("linear_skip", [True, False])
def test_a_row_goes_through_the_expert_that_the_gate_names(linear_skip):
    network = make(num_conditions=1, linear_skip=linear_skip)
    inputs = torch.randn(500, 4)
    chosen = network.logits(inputs).argmax(1)
    assert len(set(chosen.tolist())) > 3
    labels, random_state = network(inputs), torch.random.get_rng_state()
    for index in set(chosen.tolist()):
        rows = chosen == index
        torch.testing.assert_close(labels[rows], network.expert(index)(inputs[rows]), rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.random.get_rng_state(), random_state)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_rows_bits_do_not_depend_on_the_rows_beside_it(dim):
    network = make(dim=dim)
    inputs = torch.randn(1000, dim)
    labels = network(inputs)
    for size in (1, TILE_ROWS, 333, 999):
        rows = torch.randperm(1000)[:size]
        assert torch.equal(network(inputs[rows]), labels[rows])
    assert network(inputs[:0]).shape == (0, dim)


def test_the_loss_is_that_of_the_regions_expert_and_of_the_gate():
    network = make()
    inputs, targets = torch.randn(200, 3), torch.from_numpy(reference_of(200))
    regions, losses = network.region_of(targets), network(inputs, targets)
    for row in range(20):
        predicted = network.expert(int(regions[row]))(inputs[row : row + 1])[0]
        error = (predicted - targets[row]).square().mean()
        entropy = -network.gate(inputs[row]).log_softmax(0)[regions[row]]
        torch.testing.assert_close(losses[row], error + entropy, rtol=1e-4, atol=1e-4)
    parts = torch.cat([network(inputs[:70], targets[:70]), network(inputs[70:], targets[70:])])
    torch.testing.assert_close(parts, losses)


@pytest.mark.parametrize("num_rows", [0, 1, 40])
def test_each_step_reaches_each_parameter(num_rows):
    """Two workers that average gradients wait for each of them."""
    network = make(num_conditions=2)
    network(torch.randn(num_rows, 5), torch.randn(num_rows, 3)).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_muon_takes_each_experts_inner_matrices():
    network = make(experts=4, depth=2)
    optimizers = make_optimizers(network, "muon", learning_rate=1e-2, weight_decay=0.0)
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    inner = [p for block in list(network.hidden)[1:3] for p in (block.expand.weight, block.project.weight)]
    assert {id(p) for p in optimizers[1].param_groups[0]["params"]} == {id(p) for p in inner}


def test_a_step_of_a_stack_is_that_of_its_matrices_alone():
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 8, 16))
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    for parameters in ([stack], alone):
        optimizer = Muon(parameters, lr=0.1, weight_decay=0.1)
        for parameter in parameters:
            parameter.grad = parameter.detach() ** 2
        optimizer.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]))


@pytest.mark.slow
def test_a_cliff_is_learnt_sharply():
    latents, labels = clusters(2048)
    torch.manual_seed(0)
    network = ExpertNetwork.of_reference(labels, 2, experts=2, width=16, depth=1)
    trainer = Trainer(network, TrainConfig(learning_rate=1e-2, precision="float32", ema_decay=0.9))
    losses = [float(trainer.step(latents, labels, len(latents), step / 150)) for step in range(150)]
    assert losses[-1] < 0.1 * losses[0]
    network.eval().match_shares(labels, seed=0)
    fresh, wanted = clusters(4000, seed=1)
    drawn = network(torch.from_numpy(fresh)).detach().numpy()
    assert np.mean((drawn[:, 0] > 0) == (wanted[:, 0] > 0)) > 0.98
    assert np.abs(np.abs(drawn) - 2).max() < 1.0  # none lies between the two clusters
    assert np.mean(np.abs(drawn - wanted) < 0.2) > 0.95


def test_offsets_give_each_region_its_share():
    network, labels = make(num_conditions=1), reference_of()
    reference = np.concatenate([labels, labels[:, :1]], axis=1)
    network.match_shares(reference, seed=0)
    inputs = torch.cat([torch.randn(20_000, 3), torch.from_numpy(np.resize(reference[:, 3:], (20_000, 1)))], dim=1)
    shares = torch.bincount(network.logits(inputs).argmax(1), minlength=8) / 20_000
    assert shares.tolist() == pytest.approx([0.125] * 8, abs=0.015)
    before = network.offsets.clone()
    network.match_shares(reference, seed=0)
    assert torch.equal(network.offsets, before)


def test_a_fit_resumed_from_its_state_goes_on_to_the_same_bits():
    def trainer():
        torch.manual_seed(0)
        network = ExpertNetwork.of_reference(clusters(500)[1], 2, experts=4, width=16, depth=1)
        return Trainer(network, TrainConfig(learning_rate=1e-2, ema_decay=0.9))

    whole, first, second = trainer(), trainer(), trainer()
    for step in range(6):
        whole.step(*clusters(64, seed=step), 64, step / 6)
    for step in range(3):
        first.step(*clusters(64, seed=step), 64, step / 6)
    second.load_files(first.state_files(), "here")
    for step in range(3, 6):
        second.step(*clusters(64, seed=step), 64, step / 6)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
        assert torch.equal(second.average[name], whole.average[name]), name
    assert torch.equal(whole.average["thresholds"], whole.model.thresholds)


def test_products_in_bfloat16_are_about_those_in_float32():
    latents, labels = clusters(256)
    losses = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        network = ExpertNetwork.of_reference(labels, 2, experts=4, width=16, depth=1)
        trainer = Trainer(network, TrainConfig(precision=precision))
        losses.append([float(trainer.step(latents, labels, len(latents), 0.0)) for _ in range(5)])
        losses[-1].append(trainer.validation_loss(latents, labels))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"experts": 3}, "train.experts must be 1, 2, 4, 8, 16, 32 or 64"),
        ({"experts": 128}, "train.experts"),
        ({"experts": 4, "block": "plain"}, "block = 'plain' does not go with experts = 4"),
        ({"experts": 4, "cells": True}, "cells = true does not go with experts = 4"),
    ],
)
def test_keys_that_do_not_go_with_experts_are_named(keys, named):
    with pytest.raises(ConfigError, match=named):
        resolve_job({"data": {"source": "moons"}, "train": keys})


@pytest.mark.slow
@pytest.mark.parametrize("num_conditions", [0, 1])
def test_a_network_comes_back_from_its_file_and_has_its_graph(tmp_path, monkeypatch, num_conditions):
    onnxruntime = pytest.importorskip("onnxruntime")
    from sfg_dist.model import export_onnx as module

    monkeypatch.setattr(module, "CHECK_ROWS", 2000)
    dim = 3 - num_conditions
    network = make(dim=dim, num_conditions=num_conditions)
    network.match_shares(reference_of(), seed=0)
    names = ("a", "b", "c")
    generator = Generator(network, Transform.fit(np.exp(reference_of()), names), condition=names[dim:])
    generator.save(tmp_path)
    again = Generator.load(tmp_path)
    inputs = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    np.testing.assert_array_equal(again.predict_raw(inputs), generator.predict_raw(inputs))
    assert again.digest == generator.digest
    _, agreement = module.export_onnx(again)
    assert agreement.raw_labels_max < module.TOLERANCE
    assert agreement.values_within > 0.98
    alone, _ = module.export_onnx(again, network_only=True)
    session = onnxruntime.InferenceSession(alone, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"inputs": inputs[:5]})  # most experts have no row
    np.testing.assert_allclose(found, generator.predict_raw(inputs[:5]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"experts": 3}, "experts = 3, expected a power of two"),
        ({"experts": 1}, "experts"),
        ({"experts": 4}, "shape"),
        ({"experts": True}, "experts"),
        ({"experts": 1 << 40}, "experts"),
        ({"block": "plain"}, "block"),
        ({"num_noise": 1}, "num_noise"),
        ({"cells": [2, 2, 2]}, "key that this version does not know"),
        ({"depth": 60_000}, "depth"),
    ],
)
def test_a_document_that_does_not_fit_is_refused(changed, said):
    network = make()
    document, tensors = {"dim": 3, **network.shape}, network.state_dict()
    assert isinstance(network_of(document, tensors, "network"), ExpertNetwork)
    with pytest.raises(DocumentError, match=said):
        network_of(document | changed, tensors, "network")
    with pytest.raises(DocumentError, match="offsets"):
        network_of(document, tensors | {"offsets": torch.full((8,), torch.nan)}, "network")
