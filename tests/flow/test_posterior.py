"""The streamed posterior against a plain float64 softmax."""

import numpy as np
import pytest
import torch

from sfg_dist.flow.posterior.cpu.engine import HAS_AVX512
from sfg_dist.flow.posterior.posterior import posterior_mean, posterior_moments
from sfg_dist.flow.posterior.reference import Reference


def plain(z, x, alpha, beta_sq):
    """Mean, log-sum-exp and variance from the whole (M, J) matrix, in float64, in the logits' convention."""
    z, x = z.double(), x.double()
    alpha, beta_sq = (torch.as_tensor(v, dtype=torch.float64, device=z.device).reshape(-1, 1) for v in (alpha, beta_sq))
    logits = alpha / beta_sq * (z @ x.T) - alpha**2 / (2 * beta_sq) * x.square().sum(1)
    weights = logits.softmax(dim=1)
    mean = weights @ x
    return mean, logits.logsumexp(dim=1), weights @ x.square().sum(1) - mean.square().sum(1)


def cloud(num_rows, dim, device, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, dim, generator=generator, dtype=dtype).to(device)


@pytest.fixture(params=["native", "fused", "blocked"])
def backend(request, device):
    if request.param != "blocked" and device.type != "cpu":
        pytest.skip(f"the {request.param} backend is a CPU kernel")
    return request.param


@pytest.fixture(params=["fused", "blocked"])
def backend_of_float64(request, device):
    if request.param == "fused" and device.type != "cpu":
        pytest.skip("the fused backend is torch's CPU kernel")
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2, 6, 43])
@pytest.mark.parametrize("t", [0.9, 0.1, 1e-3, 1e-5])
def test_moments(dim, t, backend, device):
    reference = Reference(cloud(3001, dim, device), sigma_data=1.0)
    x = reference.keys[:, :-1]
    z = (1 - t) * x[:200] + t**0.5 * cloud(200, dim, device, seed=1)
    result = posterior_moments(z, reference, alpha=1 - t, beta_sq=t, backend=backend)
    mean, log_sum_exp, variance = plain(z, x, 1 - t, t)
    assert (result.mean.double() - mean).norm(dim=1).max() < 1e-3
    assert (result.mean.double() - mean).norm(dim=1).median() < 2e-6
    offset = z.double().square().sum(1) / (2 * t)
    torch.testing.assert_close(result.log_kernel_sum + offset, log_sum_exp, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(result.variance.double(), variance, rtol=1e-3, atol=1e-3)


def test_rows_may_have_times_of_their_own(backend_of_float64, device):
    reference = Reference(cloud(500, 3, device), dtype=torch.float64, sigma_data=1.0)
    z = cloud(64, 3, device, seed=1, dtype=torch.float64)
    t = torch.linspace(0.01, 1.0, 64, dtype=torch.float64, device=device)
    result = posterior_moments(z, reference, alpha=1 - t, beta_sq=t, backend=backend_of_float64)
    mean, log_sum_exp, variance = plain(z, reference.keys[:, :-1], 1 - t, t)
    torch.testing.assert_close(result.mean, mean)
    torch.testing.assert_close(result.log_kernel_sum + z.square().sum(1) / (2 * t), log_sum_exp)
    torch.testing.assert_close(result.variance, variance)


@pytest.mark.slow
def test_far_from_every_reference_no_weight_vanishes(backend, device):
    # Without the running maximum every weight here is exp(-1e6) = 0 and the row is 0 / 0.
    dim = 43 if backend == "native" and not HAS_AVX512 else 200  # a kernel that is compiled for each number of columns
    reference = Reference(torch.tensor([[-1.0] * dim, [1.0] * dim], device=device), sigma_data=1.0)
    z = torch.full((1, dim), 30.0, device=device)
    result = posterior_moments(z, reference, alpha=1.0, beta_sq=0.01, backend=backend)
    torch.testing.assert_close(result.mean, torch.ones(1, dim, device=device))
    assert torch.isfinite(result.log_kernel_sum).all()


def test_offset_data_keep_their_digits(device):
    # 20 standard deviations from the origin: centring keeps the error at rounding level (1e-2 without it).
    x = cloud(5000, 3, device, dtype=torch.float64) + 20
    t = 1e-4
    z = (1 - t) * x[:300] + t**0.5 * cloud(300, 3, device, seed=1, dtype=torch.float64)
    reference = Reference(x, sigma_data=1.0)
    center = reference.center.to(device)
    result = posterior_moments((z - (1 - t) * center).float(), reference, alpha=1 - t, beta_sq=t)
    mean, _, _ = plain(z - (1 - t) * center, x - center, 1 - t, t)
    assert (result.mean.double() - mean).norm(dim=1).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 6, 43])
def test_log_kernel_sum_keeps_its_digits_at_small_times(dim, device):
    # The kernel sum is what the density is made of; |z|^2 / (2 beta^2), 1e4 and more here, must not swallow it.
    t = 1e-4
    reference = Reference(cloud(3000, dim, device), sigma_data=1.0)
    x = reference.keys[:, :-1]
    z = (1 - t) * x[:100] + t**0.5 * cloud(100, dim, device, seed=1)
    backend = "native" if device.type == "cpu" else "auto"
    result = posterior_moments(z, reference, alpha=1 - t, beta_sq=t, backend=backend)
    squares = (z.double()[:, None] - (1 - t) * x.double()[None]).square().sum(2)
    kernels = torch.logsumexp(-squares / (2 * t), dim=1)
    assert result.log_kernel_sum.dtype == torch.float64
    torch.testing.assert_close(result.log_kernel_sum, kernels, rtol=0, atol=1e-3)


def test_posterior_mean_is_in_the_references_coordinates(device):
    x = torch.tensor([[9.0, 5.0], [11.0, 5.0]], device=device)
    z = torch.tensor([[10.5, 5.0]], device=device)
    torch.testing.assert_close(posterior_mean(z, x, alpha=1.0, beta=1.0), torch.tensor([[10.4621, 5.0]], device=device))


def test_subset_is_centred_anew(device):
    rows = cloud(50, 2, device, dtype=torch.float64) + 3
    index = np.array([1, 5, 7])
    torch.testing.assert_close(
        Reference(rows, dtype=torch.float64, sigma_data=1.0).subset(index).center,
        rows[torch.from_numpy(index)].mean(0).cpu(),
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 2)), "non-empty"),
        (np.zeros(3), "non-empty"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), "row 1"),
        (np.array([[0.0], [np.inf]]), "row 1"),
    ],
)
def test_refuses_a_bad_reference(rows, message):
    with pytest.raises(ValueError, match=message):
        Reference(rows, sigma_data=1.0)


def test_refuses_bad_calls(device):
    reference = Reference(cloud(5, 2, device), sigma_data=1.0)
    with pytest.raises(ValueError, match="shape"):
        posterior_moments(cloud(5, 3, device), reference, alpha=1.0, beta_sq=1.0)
    with pytest.raises(ValueError, match="positive"):
        posterior_moments(cloud(5, 2, device), reference, alpha=1.0, beta_sq=0.0)
    with pytest.raises(ValueError, match="float64"):
        posterior_moments(cloud(5, 2, device).double(), reference, alpha=1.0, beta_sq=1.0)
    with pytest.raises(ValueError, match="beta must be positive"):
        posterior_mean(cloud(5, 2, device), reference, alpha=1.0, beta=0.0)
