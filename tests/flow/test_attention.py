"""Softmax attention through torch, against the formula."""

import pytest
import torch

from sfg_dist.flow.posterior import attention
from sfg_dist.flow.posterior.attention import attend_blocked, attend_fused


@pytest.fixture(params=["fused", "blocked", "blocked in small tiles"])
def attend(request, device, monkeypatch):
    if request.param == "fused" and device.type != "cpu":
        pytest.skip("the fused kernel is torch's for the CPU")
    if request.param == "blocked in small tiles":
        monkeypatch.setattr(attention, "_TILE", {device.type: (7, 13), "cuda": (7, 13)})
    return attend_fused if request.param == "fused" else attend_blocked


def draw(num_rows, width, device, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator, dtype=torch.float64).to(device)


@pytest.mark.parametrize("num_keys", [1, 13, 100])  # one, a whole tile, a ragged rest
@pytest.mark.parametrize("num_rows", [1, 23])
@pytest.mark.parametrize("scale", [1.0, 1e4])  # where without the running maximum weights overflow
def test_attention(attend, device, num_rows, num_keys, scale):
    query, keys = scale * draw(num_rows, 3, device, seed=1), draw(num_keys, 3, device, seed=2)
    output, log_sum_exp = attend(query, keys)
    logits = query @ keys.T
    torch.testing.assert_close(output, logits.softmax(dim=1) @ keys)
    torch.testing.assert_close(log_sum_exp, logits.logsumexp(dim=1))


def test_the_precision_of_products_is_left_as_it_was(device):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        attend_blocked(draw(4, 2, device, seed=1).float(), draw(5, 2, device, seed=2).float())
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
