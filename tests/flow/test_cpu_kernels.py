"""The compiled kernels one by one: against plain float64 sums, in many shapes, and where AVX-512 is not to be used."""

import os
import subprocess
import sys

import numpy as np
import pytest

from sfg_dist.flow.posterior.clusters import make_blocks
from sfg_dist.flow.posterior.cpu import simd
from sfg_dist.flow.posterior.cpu.kernels import dense_rows, listed_rows
from sfg_dist.flow.posterior.cpu.simd import has_avx512
from sfg_dist.flow.posterior.cpu.traversal import cluster_rows
from sfg_dist.flow.posterior.cpu.wide_sums import wide_rows

needs_avx512 = pytest.mark.skipif(not has_avx512(), reason="this processor has no AVX-512")


def exact(x, rows, inv_sigma_sq):
    """Mean, log-sum of kernels and variance in float64."""
    squares = ((x.astype(float)[:, None] - rows.astype(float)[None]) ** 2).sum(2) * inv_sigma_sq[:, None] / 2
    least = squares.min(axis=1)
    weights = np.exp(least[:, None] - squares)
    log_sum = np.log(weights.sum(axis=1)) - least
    weights /= weights.sum(axis=1, keepdims=True)
    mean = weights @ rows
    return mean, log_sum, np.einsum("ij,ij->i", weights, ((rows[None] - mean[:, None]) ** 2).sum(2))


def run(kernel, x, inv_sigma_sq, rows, squares=(0,)):
    blocks = make_blocks(rows)
    count, dim = x.shape
    mean, log_sum, variance = np.empty((count, dim), np.float32), np.empty(count), np.empty(count, np.float32)
    axes = () if kernel is wide_rows else (tuple(range(dim)),)
    kernel(x, inv_sigma_sq, blocks.reshape(-1), len(blocks), mean, log_sum, variance, *axes, squares)
    return mean, log_sum, variance


def test_disk_copies_are_of_all_the_kernels_text():
    """Numba stamps a function with its own file's time, and these are made of several files."""
    stamps = {kernel._cache._cache_file._source_stamp for kernel in (dense_rows, listed_rows, wide_rows, cluster_rows)}
    assert stamps == {simd._sources()}


def case(dim, num_rows, num_reference, inv_sigma_sq, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num_reference, dim)).astype(np.float32)
    x = rows[rng.integers(0, num_reference, num_rows)] + rng.standard_normal((num_rows, dim)) / inv_sigma_sq**0.5
    return x.astype(np.float32), np.full(num_rows, inv_sigma_sq), rows


KERNELS = [dense_rows, pytest.param(wide_rows, marks=needs_avx512)]
SHAPES = [(1, 1, 1), (1, 9, 100), (2, 7, 31), (3, 8, 32), (6, 33, 5000), (3, 16, 1000)]
# They are compiled for each number of columns: the large ones are those of other tests.
SHAPES += [pytest.param(*shape, marks=pytest.mark.long) for shape in [(21, 5, 4097), (43, 9, 700)]]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("dim", "num_rows", "num_reference"), SHAPES)
@pytest.mark.parametrize("inv_sigma_sq", [1e-3, 0.5, 30.0])
def test_dense_kernels_are_the_plain_sums(kernel, dim, num_rows, num_reference, inv_sigma_sq):
    x, scales, rows = case(dim, num_rows, num_reference, inv_sigma_sq)
    mean, log_sum, variance = run(kernel, x, scales, rows)
    expected_mean, expected_log_sum, expected_variance = exact(x, rows, scales)
    np.testing.assert_allclose(mean, expected_mean, atol=2e-5)
    # Expanded exponents are rounded by their largest term.
    rounding = 2.0**-23 * inv_sigma_sq * (np.square(x).sum(1).max() + np.square(rows).sum(1).max())
    np.testing.assert_allclose(log_sum, expected_log_sum, atol=1e-5 + rounding)
    np.testing.assert_allclose(variance, expected_variance, rtol=1e-3, atol=2e-4)
    without = run(kernel, x, scales, rows, squares=())
    np.testing.assert_array_equal(without[0], mean)
    np.testing.assert_array_equal(without[1], log_sum)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_gives_the_same_bits_beside_any_others(kernel):
    x, scales, rows = case(3, 21, 3000, 4.0)
    together = run(kernel, x, scales, rows)
    for part in (slice(0, 1), slice(3, 11), slice(20, 21)):
        alone = run(kernel, x[part], scales[part], rows)
        for some, every in zip(alone, together, strict=True):
            np.testing.assert_array_equal(some, every[part])


def test_rows_far_closer_than_the_ones_before_take_over_the_sums():
    # Ever closer rows, each hundreds of powers of two heavier than the one before.
    rows = np.stack([np.geomspace(100, 0.01, 700), np.zeros(700)], axis=1).astype(np.float32)
    mean, log_sum, variance = run(dense_rows, np.zeros((1, 2), np.float32), np.array([1e6]), rows)
    expected = exact(np.zeros((1, 2)), rows, np.array([1e6]))
    np.testing.assert_allclose(mean, expected[0], rtol=1e-5, atol=1e-20)
    np.testing.assert_allclose(log_sum, expected[1], rtol=1e-5)
    np.testing.assert_allclose(variance, expected[2], atol=1e-11)  # of squares of 1e-4, rounded


@pytest.mark.slow
def test_listed_leaves_alone_are_summed():
    dim, num_leaves = 3, 3000  # several windows
    x, scales, rows = case(dim, 3, num_leaves * 32, 2.0)
    blocks = make_blocks(rows)
    picked = [np.arange(0, num_leaves, 3), np.array([], int), np.array([63, num_leaves - 1])]
    leaves, counts = np.zeros((3, num_leaves), np.int32), np.array([len(picked[0]), -1, 2])
    for row, chosen in enumerate(picked):
        leaves[row, : len(chosen)] = chosen
    anchors = np.array([((x[i] - rows) ** 2).sum(1).min() for i in range(3)], np.float32)
    mean, log_sum, variance = np.full((3, dim), 7, np.float32), np.zeros(3), np.zeros(3, np.float32)
    listed_rows(
        x, scales, blocks.reshape(-1), leaves, counts, num_leaves, anchors, np.zeros((3, 2)), np.zeros((3, dim)), mean,
        log_sum, variance, tuple(range(dim)), (0,),
    )  # fmt: skip
    for row in (0, 2):
        own = rows.reshape(num_leaves, 32, dim)[picked[row]].reshape(-1, dim)
        expected = exact(x[row : row + 1], own, scales[:1])
        np.testing.assert_allclose(mean[row], expected[0][0], atol=1e-5)
        np.testing.assert_allclose(log_sum[row], expected[1][0], atol=1e-5)
        np.testing.assert_allclose(variance[row], expected[2][0], rtol=1e-4)
    assert (mean[1] == 7).all()  # a negative count is left alone


@needs_avx512
@pytest.mark.slow
def test_the_same_labels_without_avx512(tmp_path, pytestconfig):
    """In a process whose compiler may use AVX2 at most: other bits, the same labels within their tolerance."""
    code = """
import sys
import numpy as np
from sfg_dist.flow import label_latents
from sfg_dist.flow.posterior.cpu.leaf_sums import WIDTH
rng = np.random.default_rng(0)
rows = np.concatenate([rng.standard_normal((6000, 2)), rng.standard_normal((3000, 2)) * 0.2 + 4])
np.save(sys.argv[1], label_latents(rng.standard_normal((40, 2)), rows, t_min=1e-2, tolerance=1e-4))
print(WIDTH)
"""
    narrow = {
        "NUMBA_CPU_FEATURES": "+avx2,+avx,+fma,+sse4.2,+popcnt,+bmi,+bmi2", "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CACHE_DIR": str(pytestconfig.cache.mkdir("narrow-kernels")),
    }  # fmt: skip
    ends, widths = [], []
    for name, extra in (("own", {}), ("narrow", narrow)):
        path = tmp_path / f"{name}.npy"
        environment = {**os.environ, **extra}
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True, env=environment
        )
        widths.append(int(done.stdout))
        ends.append(np.load(path, allow_pickle=False))
    assert widths == [16, 8]
    assert np.quantile(np.linalg.norm(ends[0] - ends[1], axis=1), 0.9) < 2e-3
