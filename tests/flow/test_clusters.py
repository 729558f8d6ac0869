"""The clusters, and the bound that the sparse engine certifies, on data made to break it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from sfg_dist.flow import Effort, Reference, build_order, cpu_engine, label_latents, posterior_moments, simd
from sfg_dist.flow.clusters import FAN, LEAF_ROWS, build_clusters
from sfg_dist.flow.cpu_engine import cluster_sums

EPSILON = 2.0**-24


def line(rng, n):
    return np.outer(rng.standard_normal(n), [1.0, -2.0, 0.5])


FAMILIES = {
    "gaussian": lambda rng, n: rng.standard_normal((n, 3)),
    "one column": lambda rng, n: rng.standard_normal((n, 1)),
    "duplicates": lambda rng, n: np.repeat(rng.standard_normal((max(1, n // 20), 2)), 20, axis=0),
    "identical": lambda rng, n: np.full((n, 2), 0.7),
    "one far outlier": lambda rng, n: np.vstack([rng.standard_normal((n, 3)), [[1e3, 0.0, 0.0]]]),
    "a line": line,
    "heavy tails": lambda rng, n: rng.standard_cauchy((n, 3)).clip(-1e4, 1e4),
    "one column, heavy tails": lambda rng, n: rng.standard_cauchy((n, 1)).clip(-1e4, 1e4),
    "nine columns": lambda rng, n: rng.standard_normal((n, 9)),
    "two far clusters": lambda rng, n: rng.standard_normal((n, 2)) * 0.1 + 50 * rng.integers(0, 2, (n, 1)),
    "lattice": lambda rng, n: rng.integers(0, 4, (n, 3)).astype(float),
    "21 columns, 3 of them free": lambda rng, n: (
        rng.standard_normal((n, 3)) @ rng.standard_normal((3, 21)) + 0.02 * rng.standard_normal((n, 21))
    ),
    "21 columns, small clusters": lambda rng, n: (
        rng.standard_normal((8, 21))[rng.integers(0, 8, n)]
        + 0.05 * rng.standard_normal((n, 3)) @ rng.standard_normal((3, 21))
    ),
    "40 columns": lambda rng, n: rng.standard_normal((n, 40)) * np.geomspace(1, 0.01, 40),
}


def exact(z, rows, alpha, beta_sq):
    """Mean, log-sum of kernels and variance by a plain float64 softmax over the same float32 numbers."""
    z, rows = z.double().numpy(), rows.astype(np.float64)
    squares = ((z[:, None, :] - alpha * rows[None]) ** 2).sum(2) / (2 * beta_sq)
    least = squares.min(axis=1, keepdims=True)
    weights = np.exp(least - squares)
    log_sum = np.log(weights.sum(axis=1)) - least[:, 0]
    weights /= weights.sum(axis=1, keepdims=True)
    mean = weights @ rows
    return mean, log_sum, np.einsum("ij,ij->i", weights, ((rows[None] - mean[:, None]) ** 2).sum(2))


def rounding(z, rows, alpha, beta_sq, mean, dense):
    """What float32 may add to the mean's error, whatever the weights are: no slack but the constants.

    If each log weight is off by at most eta_j, then m is off by sum_j w_j (e^(eta_j + eta_0) - 1) |x_j - m| over
    sum_j w_j e^-(eta_j + eta_0), where 0 is the largest weight. A squared distance d^2 is off by its own rounding and
    by d |x~| from that of x~; a dense pass in many columns has the products |x~| |x_j| in its logits instead.
    """
    x, rows = z.double().numpy() / alpha, rows.astype(np.float64)
    squares = ((x[:, None] - rows[None]) ** 2).sum(2)
    size = np.linalg.norm(x, axis=1)[:, None]
    eta = (4 + rows.shape[1] / 4) * squares + 8 * np.sqrt(squares) * size
    norms = np.linalg.norm(rows, axis=1)[None]
    eta = EPSILON * (eta + np.where(dense[:, None], 8 * (norms**2 + norms * size), 0)) / (2 * beta_sq / alpha**2)
    logits = -squares / (2 * beta_sq / alpha**2)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    eta = np.minimum(eta + np.take_along_axis(eta, logits.argmax(axis=1)[:, None], 1), 300)
    moved = (weights * np.expm1(eta) * np.linalg.norm(rows[None] - mean[:, None], axis=2)).sum(1)
    return moved / (weights * np.exp(-eta)).sum(1) + 8 * EPSILON * np.abs(rows).max() + 1e-20


def queries(rng, rows, t, num=24):
    """On the noised data, between two rows, and far outside."""
    picked = rows[rng.integers(0, len(rows), num)]
    picked[num // 2 : -4] = (picked[num // 2 : -4] + rows[rng.integers(0, len(rows), num // 2 - 4)]) / 2
    noise = rng.standard_normal(picked.shape)
    noise[-4:] *= 10
    return torch.from_numpy(((1 - t) * picked + t**0.5 * noise).astype(np.float32))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(1, 3000),
    log_t=st.floats(-5, -1e-3),
    log_tolerance=st.floats(-5, -1),
)
def test_the_bound_holds(family, seed, num_rows, log_t, log_tolerance):
    rng = np.random.default_rng(seed)
    reference = Reference(FAMILIES[family](rng, num_rows))
    rows = reference.keys[:, :-1].numpy()
    t, tolerance = 10**log_t, 10**log_tolerance
    z = queries(rng, rows, t)
    moments = posterior_moments(z, reference, alpha=1 - t, beta_sq=t, backend="sparse", tolerance=tolerance)
    mean, log_sum, _ = exact(z, rows, 1 - t, t)
    error = np.linalg.norm(moments.mean.double().numpy() - mean, axis=1)
    bound = moments.bound.numpy()
    dense = (moments.pairs.numpy() == len(rows)) & (bound == 0)
    assert (bound <= tolerance * (1 + 1e-6)).all()
    assert (error <= bound * (1 + 1e-4) + rounding(z, rows, 1 - t, t, mean, dense)).all()
    assert torch.isfinite(moments.variance).all()
    assert (moments.variance >= 0).all()
    assert torch.isfinite(moments.log_kernel_sum).all()
    assert np.isfinite(log_sum).all()


@pytest.mark.parametrize("family", ["gaussian", "heavy tails", "two far clusters", "nine columns", "one far outlier"])
def test_the_bound_holds_over_three_levels_and_more(family):
    """As above where "auto" goes by clusters: from 4097 rows on stand-ins of stand-ins come in."""
    for seed, (num_rows, t) in enumerate([(4097, 0.6), (9000, 0.3), (20_001, 0.8), (33_000, 0.05)]):
        rng = np.random.default_rng(seed)
        reference = Reference(FAMILIES[family](rng, num_rows))
        rows = reference.keys[:, :-1].numpy()
        assert len(reference.clusters.sizes) >= 3
        z = queries(rng, rows, t, num=16)
        moments = posterior_moments(z, reference, alpha=1 - t, beta_sq=t, backend="sparse", tolerance=1e-3)
        mean, _, _ = exact(z, rows, 1 - t, t)
        error = np.linalg.norm(moments.mean.double().numpy() - mean, axis=1)
        bound = moments.bound.numpy()
        dense = (moments.pairs.numpy() == len(rows)) & (bound == 0)
        assert (bound <= 1e-3).all()
        assert (error <= bound * (1 + 1e-4) + rounding(z, rows, 1 - t, t, mean, dense)).all()


@pytest.mark.parametrize("backend", ["sparse", "native"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e20])
def test_a_query_out_of_reach_is_nan_and_harms_no_other(backend, value):
    reference = Reference(np.random.default_rng(0).standard_normal((5001, 3)))
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


@pytest.mark.parametrize("backend", ["sparse", "native"])
@pytest.mark.parametrize(("alpha", "beta_sq"), [(0.0, 1.0), (0.0, 1e-6), (0.0, 1e8), (1e-7, 1e-6), (1e-9, 0.01)])
def test_a_vanishing_alpha(backend, alpha, beta_sq):
    reference = Reference(np.random.default_rng(0).standard_normal((5001, 3)))
    rows = reference.keys[:, :-1].double()
    z = torch.full((2, 3), 3 * beta_sq**0.5 if alpha else 1.0)
    tolerance = 1e-4 if backend == "sparse" else 0.0
    moments = posterior_moments(z, reference, alpha=alpha, beta_sq=beta_sq, backend=backend, tolerance=tolerance)
    exponents = -(z.double()[:, None] - alpha * rows).square().sum(dim=2) / (2 * beta_sq)
    expected = exponents.softmax(dim=1) @ rows
    assert torch.allclose(moments.mean.double(), expected, atol=tolerance + 1e-6)
    assert torch.allclose(moments.log_kernel_sum, exponents.logsumexp(dim=1), rtol=1e-6, atol=1e-3)


def test_an_error_in_one_thread_ends_the_others(monkeypatch):
    rows = np.arange(10 * cpu_engine._ROWS_A_TASK)
    seen = []

    def work(part):
        seen.append(part[0])
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        cpu_engine._share_out(work, rows)
    assert len(seen) <= 2


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
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_tolerance_it_is_exact(family):
    rng = np.random.default_rng(3)
    reference = Reference(FAMILIES[family](rng, 1500))
    rows = reference.keys[:, :-1].numpy()
    t = 0.05
    z = queries(rng, rows, t)
    moments = posterior_moments(z, reference, alpha=1 - t, beta_sq=t, backend="sparse", tolerance=0.0)
    mean, log_sum, variance = exact(z, rows, 1 - t, t)
    nearest_sq = ((z.double().numpy()[:, None] / (1 - t) - rows[None]) ** 2).sum(2).min(axis=1)
    scale = np.abs(rows).max()
    np.testing.assert_allclose(moments.mean.numpy(), mean, atol=3e-5 * scale + 1e-6)
    np.testing.assert_allclose(moments.log_kernel_sum.numpy(), log_sum, rtol=1e-5, atol=1e-3)
    assert (
        np.abs(moments.variance.numpy() - variance) <= 1e-6 + 1e-2 * variance + 2e-6 * (nearest_sq + scale**2)
    ).all()


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
    monkeypatch.setattr("sfg_dist.flow.clusters.PARALLEL_ROWS", 4096)
    with ThreadPoolExecutor(2) as pool:
        assert np.array_equal(build_order(rows), build_order(rows, mapper=pool.map))
    assert np.array_equal(np.sort(alone), np.arange(len(rows)))


@pytest.mark.parametrize("dim", [3, 43])
def test_a_rows_bits_depend_on_nothing_beside_it(dim):
    rng = np.random.default_rng(1)
    reference = Reference(rng.standard_normal((6000, dim)))
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


def test_where_skipping_does_not_pay_every_row_is_summed():
    rng = np.random.default_rng(2)
    reference = Reference(rng.standard_normal((5000, 43)))
    z = torch.from_numpy(rng.standard_normal((40, 43), dtype=np.float32))
    moments = posterior_moments(z, reference, alpha=0.5, beta_sq=0.5, tolerance=1e-3)
    assert (moments.pairs == 5000).all()
    assert (moments.bound == 0).all()
    mean, _, _ = exact(z, reference.keys[:, :-1].numpy(), 0.5, 0.5)
    np.testing.assert_allclose(moments.mean.numpy(), mean, atol=2e-5)


def test_a_near_row_in_a_far_node_is_not_lost():
    # A node whose centre is 126 powers of two off while its one near row holds two thirds of all weight: the bound of
    # its stand-in must not be the product of two clamped powers. Each of the many stands for 4096 rows.
    many, few, times = 512, 256, 4096
    rows = np.zeros((many + few, 33), np.float32)
    rows[:many, 0] = -np.sqrt(2 * 22 * np.log(2))
    rows[many:, 0] = np.sqrt(2 * 148 * np.log(2))
    rows[many, 0] = 0
    clusters = build_clusters(rows)
    assert clusters.sizes.tolist() == [24, 3]
    bounds = clusters.bounds.copy()
    for offset, nodes in zip(clusters.offsets, (many // LEAF_ROWS, many // (LEAF_ROWS * FAN)), strict=False):
        for node in range(offset, offset + nodes):
            bounds[node // FAN, 3 * 33, node % FAN] *= times
    one = torch.ones(1)
    weights = np.exp(-0.5 * rows[:, 0].astype(np.float64) ** 2) * np.where(np.arange(len(rows)) < many, times, 1)
    exact_mean = weights @ rows / weights.sum()
    for tolerance in (4.0, 2.0, 1.0):
        sums = cluster_sums(torch.zeros(1, 33), one, one, replace(clusters, bounds=bounds), tolerance)
        assert 0 <= sums.bound[0] <= tolerance
        assert np.linalg.norm(sums.mean[0] - exact_mean) <= sums.bound[0] + 1e-5


@pytest.mark.parametrize("dim", [1, 3, 21])
def test_no_tolerance_equals_dense(dim):
    rng = np.random.default_rng(5)
    reference = Reference(rng.standard_normal((3000, dim)))
    z = torch.from_numpy(rng.standard_normal((20, dim), dtype=np.float32))
    sparse = posterior_moments(z, reference, alpha=0.9, beta_sq=0.1, backend="sparse", tolerance=0.0)
    dense = posterior_moments(z, reference, alpha=0.9, beta_sq=0.1, backend="dense")
    torch.testing.assert_close(sparse.mean, dense.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sparse.log_kernel_sum, dense.log_kernel_sum, rtol=1e-5, atol=1e-5)


def test_rows_with_times_of_their_own_are_as_if_alone():
    rng = np.random.default_rng(6)
    reference = Reference(rng.standard_normal((3000, 3)))
    z = torch.from_numpy(rng.standard_normal((20, 3), dtype=np.float32))
    t = torch.logspace(-4, -0.01, 20)
    together = posterior_moments(z, reference, alpha=1 - t, beta_sq=t, backend="sparse", tolerance=1e-3)
    for i in range(0, 20, 5):
        alone = posterior_moments(
            z[i : i + 1], reference, alpha=1 - t[i], beta_sq=t[i], backend="sparse", tolerance=1e-3
        )
        assert torch.equal(together.mean[i], alone.mean[0])
        assert together.bound[i] == alone.bound[0]


def test_labels_agree_with_float64():
    from sklearn.datasets import make_moons

    rows, _ = make_moons(5000, noise=0.05, random_state=0)
    rows = (rows - rows.mean(0)) / rows.std(0)
    latents = np.random.default_rng(7).standard_normal((48, 2))
    effort = Effort()
    labels = label_latents(latents, rows, tolerance=1e-3, t_min=1e-3, batch_size=48, effort=effort)
    every = label_latents(latents, rows, tolerance=0.0, t_min=1e-3, batch_size=48, dtype=torch.float64)
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


def test_labels_keep_the_tolerance_and_cost_less():
    from sklearn.datasets import make_moons

    rows, _ = make_moons(20_000, noise=0.05, random_state=0)
    rows = (rows - rows.mean(0)) / rows.std(0)
    latents = np.random.default_rng(4).standard_normal((64, 2))
    effort, full = Effort(), Effort()
    labels = label_latents(latents, rows, batch_size=64, effort=effort)
    every = label_latents(latents, rows, tolerance=0.0, batch_size=64, effort=full)
    assert 0 < effort.bound <= 1e-3
    assert effort.evaluations == full.evaluations == 64 * 21  # the one at t = 1 is free
    assert effort.pairs < full.pairs / 3
    assert np.quantile(np.linalg.norm(labels - every, axis=1), 0.9) < 2e-3
