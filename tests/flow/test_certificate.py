"""The bound that the sparse engine certifies, over one block and over several, on data made to break it."""

import itertools

import numpy as np
import pytest
import torch
from examples import a_third, examples
from families import EVERY_FAMILY, FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from sfg_dist.flow import Reference, posterior_moments

EPSILON = 2.0**-24
BLOCK_ROWS = "sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS"


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


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY_FAMILY)
@settings(max_examples=examples(12), deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(1, 3000),
    log_t=st.floats(-5, -1e-3),
    log_tolerance=st.floats(-5, -1),
    num_blocks=st.sampled_from([1, 1, 2, 3, 7]),
    is_sorted=st.booleans(),
)
def test_the_bound_holds(family, seed, num_rows, log_t, log_tolerance, num_blocks, is_sorted):
    """Over several blocks too, of like law or, where rows are sorted by a column, far from each other."""
    rng = np.random.default_rng(seed)
    table = FAMILIES[family](rng, num_rows)
    if is_sorted:
        table = table[np.argsort(table[:, 0])]
    block_rows = max(1, -(-len(table) // num_blocks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BLOCK_ROWS, block_rows)
        check_bound(rng, Reference(table, sigma_data=1.0), 10**log_t, 10**log_tolerance, block_rows)


@pytest.mark.slow
def test_a_row_too_far_for_an_anchor_in_float32_is_summed_whole():
    """A thousand units away at a noise of 0.003, the next number of float32 is 3000 in the exponent."""
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BLOCK_ROWS, 1)
        for num_rows in (1, 3):
            check_bound(rng, Reference(FAMILIES["one far outlier"](rng, num_rows), sigma_data=1.0), 1e-5, 0.1, 1)


def check_bound(rng, reference, t, tolerance, block_rows):
    rows = reference.keys[:, :-1].numpy()
    z = queries(rng, rows, t)
    moments = posterior_moments(z, reference, alpha=1 - t, beta_sq=t, backend="sparse", tolerance=tolerance)
    mean, log_sum, _ = exact(z, rows, 1 - t, t)
    error = np.linalg.norm(moments.mean.double().numpy() - mean, axis=1)
    bound = moments.bound.numpy()
    # A block was summed densely, perhaps; of a single one the bound tells.
    dense = moments.pairs.numpy() >= min(block_rows, len(rows) % block_rows or block_rows)
    if block_rows >= len(rows):
        dense &= bound == 0
    assert (bound <= tolerance * (1 + 1e-6)).all()
    assert (error <= bound * (1 + 1e-4) + rounding(z, rows, 1 - t, t, mean, dense)).all()
    assert torch.isfinite(moments.variance).all()
    assert (moments.variance >= 0).all()
    # What is left out is a quarter of the mass at most, or one part in 16 more where blocks took what was spare.
    shift = moments.log_kernel_sum.numpy() - log_sum
    assert (np.abs(shift) <= -np.log(1 - (1 + 1 / 16) / 4) + 1e-5 * np.abs(log_sum) + 1e-3).all()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "num_blocks"),
    a_third(
        itertools.product(["gaussian", "heavy tails", "two far clusters", "six columns", "one far outlier"], [1, 3])
    ),
)
def test_the_bound_holds_over_three_levels_and_more(family, num_blocks, monkeypatch):
    """As above where "auto" goes by clusters: from about 4100 rows on stand-ins of stand-ins come in."""
    for seed, (num_rows, t) in enumerate([(4200, 0.6), (9000, 0.3), (20_001, 0.8), (33_000, 0.05)]):
        rng = np.random.default_rng(seed)
        table = FAMILIES[family](rng, num_rows * num_blocks)
        block_rows = -(-len(table) // num_blocks)
        monkeypatch.setattr(BLOCK_ROWS, block_rows)
        reference = Reference(table, sigma_data=1.0)
        assert all(len(block.clusters.sizes) >= 3 for block in reference.blocks())
        check_bound(rng, reference, t, 1e-3, block_rows)


@pytest.mark.slow
@pytest.mark.parametrize("block_rows", [2000, 400])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_without_a_tolerance_it_is_exact(family, block_rows, monkeypatch):
    monkeypatch.setattr(BLOCK_ROWS, block_rows)
    rng = np.random.default_rng(3)
    reference = Reference(FAMILIES[family](rng, 1500), sigma_data=1.0)
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


@pytest.mark.long
@pytest.mark.slow
def test_where_skipping_does_not_pay_every_row_is_summed():
    rng = np.random.default_rng(2)
    reference = Reference(rng.standard_normal((5000, 43)), sigma_data=1.0)
    z = torch.from_numpy(rng.standard_normal((40, 43), dtype=np.float32))
    moments = posterior_moments(z, reference, alpha=0.5, beta_sq=0.5, tolerance=1e-3)
    assert (moments.pairs == 5000).all()
    assert (moments.bound == 0).all()
    mean, _, _ = exact(z, reference.keys[:, :-1].numpy(), 0.5, 0.5)
    np.testing.assert_allclose(moments.mean.numpy(), mean, atol=2e-5)


@pytest.mark.parametrize("num_rows", [2000, 3100])
@pytest.mark.parametrize(("backend", "dtype"), [("native", torch.float32), ("fused", torch.float64), ("blocked", None)])
def test_every_pair_over_several_blocks(num_rows, backend, dtype):
    rng = np.random.default_rng(4)
    table = np.sort(rng.standard_normal((num_rows, 3)), axis=0)
    reference = Reference(table, dtype=dtype or torch.float32, sigma_data=1.0)
    rows = reference.keys[:, :-1].numpy()
    for t in (0.5, 1e-2, 1e-4):
        z = queries(rng, rows, t).to(reference.dtype)
        given = {"alpha": 1 - t, "beta_sq": t}
        single = posterior_moments(z, reference, backend=backend, **given)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BLOCK_ROWS, 1000)
            blocked = Reference(table, dtype=dtype or torch.float32, sigma_data=1.0)
            assert blocked.num_blocks == -(-num_rows // 1000)
            moments = posterior_moments(z, blocked, backend=backend, **given)
        mean, log_sum, variance = exact(z, rows, 1 - t, t)
        atol = 1e-10 if dtype == torch.float64 else 2e-3
        np.testing.assert_allclose(moments.mean.numpy(), mean, atol=atol)
        # Exponents made of products are off by some units in the last place of |z|^2 / beta^2, the size of their terms,
        # over one block as over several (t = 1e-4: by 0.016 in one row, here and in a single block alike).
        shift = np.abs(moments.log_kernel_sum.numpy() - log_sum)
        products = EPSILON * (z.double().square().sum(dim=1).numpy() / t) if backend == "blocked" else 0.0
        assert (shift <= 5 * atol + 1e-5 * np.abs(log_sum) + 2 * products).all()
        assert shift.max() <= 2 * np.abs(single.log_kernel_sum.numpy() - log_sum).max() + 1e-5
        np.testing.assert_allclose(moments.variance.numpy()[:-4], variance[:-4], rtol=1e-2, atol=10 * atol)
