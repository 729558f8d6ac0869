"""The clusters, and the engine over them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from numba import njit
from patience import patience

from sfg_dist.flow import Effort, Reference, build_order, label_latents, posterior_moments
from sfg_dist.flow.posterior.clusters import FAN, LEAF_ROWS, build_clusters
from sfg_dist.flow.posterior.cpu import engine as cpu_engine
from sfg_dist.flow.posterior.cpu import simd
from sfg_dist.flow.posterior.cpu.engine import cluster_sums
from sfg_dist.flow.posterior.moments import Request


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sparse", "native"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e20])
def test_a_query_out_of_reach_is_nan_and_harms_no_other(backend, value):
    reference = Reference(np.random.default_rng(0).standard_normal((5001, 3)), sigma_data=1.0)
    z = torch.zeros(40, 3)
    z[7, 1] = value
    tolerance = 1e-3 if backend == "sparse" else 0.0
    given = {"alpha": 0.5, "beta_sq": 0.1, "backend": backend, "tolerance": tolerance}
    moments = posterior_moments(z, reference, **given)
    alone = posterior_moments(z[:1], reference, **given)
    assert moments.mean[7].isnan().all()
    assert moments.bound[7].isnan()
    others = torch.arange(40) != 7
    assert torch.equal(moments.mean[others], alone.mean.expand(39, 3))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sparse", "native"])
@pytest.mark.parametrize(("alpha", "beta_sq"), [(0.0, 1.0), (0.0, 1e-6), (0.0, 1e8), (1e-7, 1e-6), (1e-9, 0.01)])
def test_a_vanishing_alpha(backend, alpha, beta_sq):
    reference = Reference(np.random.default_rng(0).standard_normal((5001, 3)), sigma_data=1.0)
    rows = reference.keys[:, :-1].double()
    z = torch.full((2, 3), 3 * beta_sq**0.5 if alpha else 1.0)
    tolerance = 1e-4 if backend == "sparse" else 0.0
    moments = posterior_moments(z, reference, alpha=alpha, beta_sq=beta_sq, backend=backend, tolerance=tolerance)
    exponents = -(z.double()[:, None] - alpha * rows).square().sum(dim=2) / (2 * beta_sq)
    expected = exponents.softmax(dim=1) @ rows
    assert torch.allclose(moments.mean.double(), expected, atol=tolerance + 1e-6)
    assert torch.allclose(moments.log_kernel_sum, exponents.logsumexp(dim=1), rtol=1e-6, atol=1e-3)


def test_an_error_in_one_thread_ends_the_others():
    rows = np.arange(10 * cpu_engine._ROWS_A_TASK)
    seen = []

    def work(part):
        seen.append(part[0])
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        cpu_engine.share_out(work, rows)
    assert len(seen) <= 2


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    code = """
import os, torch, warnings
warnings.simplefilter("ignore")
from sfg_dist.flow import Reference, posterior_moments
torch.set_num_threads(2)
reference, z = Reference(torch.randn(5000, 2)), torch.randn(300, 2)
def call():
    posterior_moments(z, reference, alpha=0.5, beta_sq=0.5, backend="sparse", tolerance=1e-3)
call()
child = os.fork()
if child == 0:
    call()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=patience(120))


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 257, 5000])
@pytest.mark.parametrize("dim", [1, 3, 9, 40])
def test_nodes_hold_what_they_say(num_rows, dim):
    rows = np.random.default_rng(num_rows).standard_normal((num_rows, dim), dtype=np.float32)
    clusters = build_clusters(rows)
    assert np.array_equal(np.sort(clusters.order), np.arange(num_rows))
    ordered = rows[clusters.order].astype(np.float64)
    for level, size in enumerate(clusters.sizes):
        span = LEAF_ROWS * FAN**level
        for i in range(0, size, max(1, size // 5)):
            part = ordered[i * span : (i + 1) * span]
            node = clusters.offsets[level] + i
            stored = clusters.bounds[node // FAN, :, node % FAN]
            delta = part - stored[:dim]
            squares = (delta**2).sum(axis=1)
            np.testing.assert_allclose(stored[:dim], part.mean(axis=0), atol=1e-5)
            np.testing.assert_array_equal(stored[dim : 2 * dim], part.min(axis=0))
            np.testing.assert_array_equal(stored[2 * dim : 3 * dim], part.max(axis=0))
            count, radius, square, widest, fourth = stored[3 * dim :]
            assert count == len(part)
            np.testing.assert_allclose([square, fourth], [squares.mean(), (squares**2).mean()], rtol=1e-4, atol=1e-9)
            assert radius >= np.sqrt(squares.max())
            assert widest >= np.linalg.eigvalsh(delta.T @ delta / len(part))[-1] * (1 - 1e-5)
            if clusters.moment_order >= 2:
                np.testing.assert_allclose(
                    clusters.moments[node, 1 : 1 + dim, :dim], delta.T @ delta / len(part), atol=1e-5
                )
            if clusters.moment_order >= 3:
                cube = np.einsum("ni,nj,nk->ijk", delta, delta, delta) / len(part)
                pairs = [(a, b) for a in range(dim) for b in range(a, dim)]
                for p, (a, b) in enumerate(pairs):
                    np.testing.assert_allclose(
                        clusters.moments[node, 1 + dim + p, :dim], cube[a, b] * (1 if a == b else 2), atol=1e-4
                    )


def test_the_order_is_the_same_whoever_sorts(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((20_000, 3), dtype=np.float32)
    alone = build_order(rows)
    assert np.array_equal(alone, build_order(rows))
    monkeypatch.setattr("sfg_dist.flow.posterior.clusters.PARALLEL_ROWS", 4096)
    with ThreadPoolExecutor(2) as pool:
        assert np.array_equal(build_order(rows), build_order(rows, mapper=pool.map))
    assert np.array_equal(np.sort(alone), np.arange(len(rows)))


# Kernels are compiled for each number of columns; for every day those of 2 and 3 do.
@pytest.mark.slow
@pytest.mark.parametrize("dim", [3, pytest.param(43, marks=pytest.mark.long)])
def test_a_rows_bits_depend_on_nothing_beside_it(dim):
    rng = np.random.default_rng(1)
    reference = Reference(rng.standard_normal((6000, dim)), sigma_data=1.0)
    z = torch.from_numpy(rng.standard_normal((70, dim), dtype=np.float32))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(posterior_moments(z, reference, alpha=0.9, beta_sq=0.1, tolerance=1e-3).mean)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
    if dim == 3:
        alone = posterior_moments(z[5:6], reference, alpha=0.9, beta_sq=0.1, tolerance=1e-3).mean
        assert torch.equal(results[0][5:6], alone)


@pytest.mark.long
@pytest.mark.slow
def test_a_near_row_in_a_far_node_is_not_lost():
    # A node whose centre is 126 powers of two off while its one near row holds two thirds of all weight: the bound of
    # its stand-in must not be the product of two clamped powers. Each of the many stands for 4096 rows.
    many, few, times = 512, 256, 4096
    rows = np.zeros((many + few, 43), np.float32)
    rows[:many, 0] = -np.sqrt(2 * 22 * np.log(2))
    rows[many:, 0] = np.sqrt(2 * 148 * np.log(2))
    rows[many, 0] = 0
    clusters = build_clusters(rows)
    assert clusters.sizes.tolist() == [24, 3]
    bounds = clusters.bounds.copy()
    for offset, nodes in zip(clusters.offsets, (many // LEAF_ROWS, many // (LEAF_ROWS * FAN)), strict=False):
        for node in range(offset, offset + nodes):
            bounds[node // FAN, 3 * 43, node % FAN] *= times
    request = Request(torch.zeros(1, 43), torch.ones(1, 1), torch.ones(1, 1))
    weights = np.exp(-0.5 * rows[:, 0].astype(np.float64) ** 2) * np.where(np.arange(len(rows)) < many, times, 1)
    exact_mean = weights @ rows / weights.sum()
    for tolerance in (4.0, 2.0, 1.0):
        sums = cluster_sums(request, replace(clusters, bounds=bounds), tolerance)
        assert 0 <= sums.bound[0] <= tolerance
        assert np.linalg.norm(sums.mean[0] - exact_mean) <= sums.bound[0] + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dim", [pytest.param(1, marks=pytest.mark.long), 3, pytest.param(21, marks=pytest.mark.long)])
def test_no_tolerance_equals_dense(dim):
    rng = np.random.default_rng(5)
    reference = Reference(rng.standard_normal((3000, dim)), sigma_data=1.0)
    z = torch.from_numpy(rng.standard_normal((20, dim), dtype=np.float32))
    sparse = posterior_moments(z, reference, alpha=0.9, beta_sq=0.1, backend="sparse", tolerance=0.0)
    dense = posterior_moments(z, reference, alpha=0.9, beta_sq=0.1, backend="dense")
    torch.testing.assert_close(sparse.mean, dense.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sparse.log_kernel_sum, dense.log_kernel_sum, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_rows_with_times_of_their_own_are_as_if_alone():
    rng = np.random.default_rng(6)
    reference = Reference(rng.standard_normal((3000, 3)), sigma_data=1.0)
    z = torch.from_numpy(rng.standard_normal((20, 3), dtype=np.float32))
    t = torch.logspace(-4, -0.01, 20)
    together = posterior_moments(z, reference, alpha=1 - t, beta_sq=t, backend="sparse", tolerance=1e-3)
    for i in range(0, 20, 5):
        alone = posterior_moments(
            z[i : i + 1], reference, alpha=1 - t[i], beta_sq=t[i], backend="sparse", tolerance=1e-3
        )
        assert torch.equal(together.mean[i], alone.mean[0])
        assert together.bound[i] == alone.bound[0]


@pytest.mark.slow
def test_labels_agree_with_float64():
    from sklearn.datasets import make_moons

    rows, _ = make_moons(5000, noise=0.05, random_state=0)
    rows = (rows - rows.mean(0)) / rows.std(0)
    latents = np.random.default_rng(7).standard_normal((48, 2))
    effort = Effort()
    labels = label_latents(latents, rows, tolerance=1e-3, t_min=1e-3, batch_size=48, effort=effort, sigma_data=1.0)
    every = label_latents(latents, rows, tolerance=0.0, t_min=1e-3, batch_size=48, dtype=torch.float64, sigma_data=1.0)
    gap = np.linalg.norm(labels - every, axis=1)
    assert 0 < effort.bound <= 1e-3
    assert 0 < effort.pairs < effort.evaluations * len(rows) / 2
    assert np.median(gap) < 1e-3
    assert np.quantile(gap, 0.9) < 5e-3


def test_vectors_of_eight_do_arithmetic():
    @njit
    def run(a, b, c, out):
        out[32] = simd.total(simd.load(a, 0))
        out[33] = simd.least(simd.load(a, 0))
        simd.store(out, 0, simd.fma(simd.load(a, 0), simd.load(b, 0), simd.load(c, 0)))
        simd.store(out, 8, simd.smaller(simd.load(a, 0), simd.load(b, 0)))
        simd.store(out, 16, simd.where_below(simd.load(a, 0), simd.load(b, 0), simd.load(c, 0), simd.splat(a[0])))
        simd.store(out, 24, simd.root(simd.larger(simd.load(a, 0), simd.splat(np.float32(0)))))

    @njit
    def powers(a, out):
        for i in range(0, len(a), 8):
            simd.store(out, i, simd.exp2(simd.load(a, i)))

    a, b, c = np.random.default_rng(8).standard_normal((3, 8), dtype=np.float32)
    out = np.empty(34, np.float32)
    run(a, b, c, out)
    np.testing.assert_allclose(out[:8], a.astype(float) * b + c, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(out[8:16], np.minimum(a, b))
    np.testing.assert_array_equal(out[16:24], np.where(a <= b, c, a[0]))
    np.testing.assert_allclose(out[24:32], np.sqrt(a.clip(0)), rtol=1e-6)
    np.testing.assert_allclose(out[32], a.astype(float).sum(), rtol=1e-5, atol=1e-6)
    assert out[33] == a.min()
    y = np.linspace(-126, 126, 8000, dtype=np.float32)
    values = np.empty_like(y)
    powers(y, values)
    np.testing.assert_allclose(values, np.exp2(y.astype(float)), rtol=3e-7)
    ends = np.array([-np.inf, -1e30, -126.5, 126.5, 1e30, np.inf, 0, -0.0], np.float32)
    powers(ends, values)
    np.testing.assert_array_equal(values[:8], np.exp2(ends.clip(-126, 126)))


@pytest.mark.slow
def test_labels_keep_the_tolerance_and_cost_less():
    from sklearn.datasets import make_moons

    rows, _ = make_moons(20_000, noise=0.05, random_state=0)
    rows = (rows - rows.mean(0)) / rows.std(0)
    latents = np.random.default_rng(4).standard_normal((64, 2))
    effort, full = Effort(), Effort()
    labels = label_latents(latents, rows, batch_size=64, effort=effort, sigma_data=1.0)
    every = label_latents(latents, rows, tolerance=0.0, batch_size=64, effort=full, sigma_data=1.0)
    assert 0 < effort.bound <= 1e-3
    assert effort.evaluations == full.evaluations == 64 * 21  # the one at t = 1 is free
    assert effort.pairs < full.pairs / 3
    assert np.quantile(np.linalg.norm(labels - every, axis=1), 0.9) < 2e-3
