"""The engine that a call gets, and names that are refused."""

import pytest
import torch

from sfg_dist.flow import Reference
from sfg_dist.flow.posterior.backends import choose_backend
from sfg_dist.flow.posterior.cpu.simd import has_avx512


def cloud(num_rows, dim, dtype=torch.float32):
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_the_engine_that_auto_stands_for():
    small, wide = Reference(cloud(100, 2), sigma_data=1.0), Reference(cloud(100, 13), sigma_data=1.0)
    large = Reference(cloud(4096, 2), sigma_data=1.0)
    double = Reference(cloud(4096, 2), dtype=torch.float64, sigma_data=1.0)
    assert choose_backend(small, "auto", 1e-3) == "native"
    assert choose_backend(wide, "auto", 0.0) == ("native" if has_avx512() else "fused")
    assert choose_backend(large, "auto", 0.0) == "native"
    assert choose_backend(large, "auto", 1e-3) == "sparse"
    assert choose_backend(double, "auto", 1e-3) == "fused"
    assert choose_backend(large, "blocked", 1e-3) == "blocked"


@pytest.mark.parametrize("backend", ["sparse", "native", "triton"])
def test_engines_of_float32_refuse_float64(backend):
    reference = Reference(cloud(5, 2), dtype=torch.float64, sigma_data=1.0)
    with pytest.raises(ValueError, match="float32"):
        choose_backend(reference, backend, 0.0)


def test_refuses_bad_backends_and_tolerances():
    reference = Reference(cloud(5, 2), sigma_data=1.0)
    with pytest.raises(ValueError, match="backend must be one of"):
        choose_backend(reference, "quick", 0.0)
    for tolerance in (-1e-3, float("nan")):
        with pytest.raises(ValueError, match="tolerance"):
            choose_backend(reference, "sparse", tolerance)
