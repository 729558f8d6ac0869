"""The Triton kernels against a plain float64 softmax: on a GPU natively, elsewhere in triton's interpreter.

The interpreter must be chosen before triton is first imported, and torch may import triton at any time. So on CPUs the
checks run in a process of their own, one for the module: it reads a check's name and arguments from a line of JSON and
answers with one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import traceback

import pytest
import torch
from examples import a_third

from sfg_dist.flow.posterior.cuda import blocks as triton_blocks
from sfg_dist.flow.posterior.cuda.blocks import make_blocks, nearest_blocks, order_rows, select_blocks
from sfg_dist.flow.posterior.cuda.engine import _log_sum_floor, _queries, _reach_of_products, posterior_moments_cuda
from sfg_dist.flow.posterior.cuda.sums import Tiles, attend, tiles_for

pytestmark = pytest.mark.slow  # the interpreter takes a second or so a check
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def call(device):
    """Runs a check by name: here on CUDA, in the interpreter's process otherwise."""
    if device.type == "cuda":
        yield lambda name, **arguments: CHECKS[name](device=device, **arguments)
        return
    path = os.pathsep.join(filter(None, sys.path))  # this file imports what stands beside the tests
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def remote(name, **arguments):
        process.stdin.write(json.dumps([name, arguments]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, f"the interpreter's process ended with code {process.wait()}"
        failure = json.loads(answer)
        assert not failure, failure

    yield remote
    process.communicate()


CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def plain(z, x, alpha, beta_sq):
    """Mean, log-sum-exp and variance from the whole matrix, in float64, in the logits' convention of ``posterior``."""
    z, x = z.double(), x.double()
    alpha, beta_sq = (torch.as_tensor(v, dtype=torch.float64, device=z.device).reshape(-1, 1) for v in (alpha, beta_sq))
    logits = alpha / beta_sq * (z @ x.T) - alpha**2 / (2 * beta_sq) * x.square().sum(1)
    weights = logits.softmax(dim=1)
    mean = weights @ x
    return mean, logits.logsumexp(dim=1), (weights * torch.cdist(mean, x).square()).sum(dim=1)


def cloud(num_rows, dim, device, seed=0):
    rows = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))
    return (rows - rows.mean(0)).to(device)


def clusters(device, seed=0, dim=3):
    """A heavy far cluster, a light near one, a chain between them and some lone rows: bounds must not trust counts."""
    generator = torch.Generator().manual_seed(seed)

    def normal(num_rows):
        return torch.randn(num_rows, dim, generator=generator)

    chain = torch.linspace(-6, 2, 64)[:, None] + 0.01 * normal(64)
    rows = torch.cat(
        [2 + 0.05 * normal(400), -6 + 0.02 * normal(60), chain, 4 * normal(41), torch.full((33, dim), 2.5)]
    )
    return (rows - rows.mean(0)).to(device)


def in_blocks(x):
    return make_blocks(x, block_rows=64)


def assert_moments(result, z, x, alpha, beta_sq, tolerance=1e-5):
    mean, log_sum_exp, variance = plain(z, x, alpha, beta_sq)
    size = 1 + x.square().sum(1).max().item()
    assert (result.mean.double() - mean).norm(dim=1).max() < tolerance
    assert (result.variance.double() - variance).abs().max() < 5e-6 * size
    assert (result.variance >= 0).all()
    torch.testing.assert_close(result.log_sum_exp, log_sum_exp, rtol=3e-6, atol=3e-5)


@check
def moments(device, dim, t, num_rows=37, num_reference=301):
    x = cloud(num_reference, dim, device)
    z = (1 - t) * x[:num_rows] + t**0.5 * cloud(num_rows, dim, device, seed=1)
    result = posterior_moments_cuda(z, in_blocks(x), alpha=1 - t, beta_sq=t)
    assert_moments(result, z, x, 1 - t, t)
    assert not result.error_bound.any()


@check
def sizes(device, dim):
    for num_rows, num_reference in ((1, 1), (5, 63), (65, 129), (0, 7)):
        x = cloud(num_reference + 1, dim, device)[:num_reference]
        z = cloud(max(num_rows, 2), dim, device, seed=1)[:num_rows]
        result = posterior_moments_cuda(z, in_blocks(x), alpha=0.5, beta_sq=0.5)
        assert result.mean.shape == (num_rows, dim)
        if num_rows:
            assert_moments(result, z, x, 0.5, 0.5)


@check
def row_times(device, dim):
    x = cloud(200, dim, device)
    t = torch.cat([torch.logspace(-5, 0, 39), torch.tensor([0.999999])]).to(device)
    alpha = (1 - t.double()).clamp_min(0)  # alpha = 0 at t = 1: the mean of the data
    z = alpha.float()[:, None] * x[:40] + t.sqrt()[:, None] * cloud(40, dim, device, seed=1)
    for tolerance in (0.0, 1e-3):
        result = posterior_moments_cuda(z, in_blocks(x), alpha=alpha, beta_sq=t.double(), tolerance=tolerance)
        assert_moments(result, z, x, alpha, t.double(), tolerance=1e-5 + tolerance)
    torch.testing.assert_close(result.mean[38], x.mean(0), rtol=0, atol=1e-5)


@check
def far_rows(device, dim):
    # Every weight underflows without the running maximum, and 0 / 0 follows.
    x = torch.cat([cloud(70, dim, device) - 3, torch.full((1, dim), 1.0, device=device)])
    z = torch.full((3, dim), 30.0, device=device)
    result = posterior_moments_cuda(z, in_blocks(x), alpha=1.0, beta_sq=0.01)
    torch.testing.assert_close(result.mean, x[-1:].expand(3, dim))
    assert torch.isfinite(result.log_sum_exp).all()
    assert result.variance.abs().max() < 1e-4
    sums = attend(z, torch.full((3,), 50.0, device=device), in_blocks(x))
    _, mean, _ = sums.finish(z)
    torch.testing.assert_close(mean, x[-1:].expand(3, dim), rtol=1e-5, atol=1e-5)


@check
def log_sums(device):
    # 1e6 and more, from which the density takes a term as large again; what is left is a kernel sum of order one.
    x = cloud(300, 6, device) + 3
    t = 1e-5
    z = (1 - t) * x[:40] + t**0.5 * cloud(40, 6, device, seed=1)
    result = posterior_moments_cuda(z, in_blocks(x), alpha=1 - t, beta_sq=t)
    _, log_sum_exp, _ = plain(z, x, 1 - t, t)
    assert log_sum_exp.max() > 1e6
    torch.testing.assert_close(result.log_sum_exp, log_sum_exp, rtol=0, atol=1e-2)


@check
def floors(device, dim, t, offset):
    # The kernels' sums over near blocks bound Z from below whatever float32 and products did to them: the queries'
    # own rounding where the table lies far out, and wide blocks of products at a small t.
    x = torch.cat([0.3 * cloud(128, dim, device) + 2, cloud(130, dim, device)]) + offset
    z = (1 - t) * x[::4] + t**0.5 * cloud(len(x[::4]), dim, device, seed=1)
    blocks = make_blocks(x, block_rows=64)
    alpha_sq, shape = (1 - t) ** 2, Tiles(16, 16, 4, 1)
    for queries in (_queries(z, x, 1 - t, t), _queries(z + 3 * t**0.5, x, 1 - t, t)):
        num_tiles = -(-len(z) // shape.rows)
        centers = queries.place[:: shape.rows]
        lists = nearest_blocks(centers, blocks)
        near = attend(queries.anchor, queries.kernel_scale, blocks, tilt=queries.kernel_tilt, lists=lists, tiles=shape)
        indices = lists[1]
        seat = torch.arange(num_tiles * shape.rows, device=device).clamp_max(len(z) - 1)
        reach = _reach_of_products(queries.anchor[seat], indices, blocks, num_tiles)[: len(z)] if dim >= 16 else None
        floor = _log_sum_floor(near, queries, reach)
        listed = indices.long().reshape(num_tiles, -1).repeat_interleave(shape.rows, dim=0)[: len(z)]
        squares = (queries.place[:, None] - blocks.rows.double()).square().sum(2)
        inside = (torch.arange(len(x), device=device) // 64 == listed[:, :, None]).any(1)
        exact = (-alpha_sq / (2 * t) * squares).masked_fill(~inside, -torch.inf).logsumexp(1)
        assert (floor <= exact).all(), (floor - exact).max()


@check
def strided_lists(device):
    blocks = make_blocks(cloud(200, 6, device), block_rows=64)
    z, scale = cloud(33, 6, device, seed=1), torch.full((33,), 3.0, device=device)
    lists = torch.tensor([0, 3], device=device).int(), torch.tensor([0, 1, 3], device=device).int()
    packed = attend(z, scale, blocks, lists=lists)
    strided = attend(z, scale, blocks, lists=tuple(part.repeat_interleave(2)[::2] for part in lists))
    for first, second in zip(vars(packed).values(), vars(strided).values(), strict=True):
        assert torch.equal(first, second)
    with pytest.raises(ValueError, match="float32"):
        attend(z, scale, blocks, tilt=z.double())


@check
def no_gradient(device):
    z = cloud(5, 6, device).requires_grad_()
    assert not posterior_moments_cuda(z, in_blocks(cloud(20, 6, device)), alpha=0.5, beta_sq=0.5).mean.requires_grad


@check
def duplicates(device, dim):
    x = cloud(20, dim, device).repeat(9, 1)
    z = x[:20] + 1e-3 * cloud(20, dim, device, seed=1)
    result = posterior_moments_cuda(z, in_blocks(x), alpha=1.0, beta_sq=1e-6)
    assert_moments(result, z, x, 1.0, 1e-6)
    torch.testing.assert_close(result.mean, x[:20], rtol=0, atol=1e-5)


@check
def offset_block(device):
    # A dense cluster 14 away that fills two blocks, at t = 1e-4: products about the origin are off by 1e-3 there,
    # about its centre they hold.
    x = torch.cat([0.01 * cloud(128, 16, device) + 3.5, cloud(192, 16, device)])
    t = 1e-4
    z = (1 - t) * x[:32] + t**0.5 * cloud(32, 16, device, seed=1)
    mean, _, _ = plain(z, x, 1 - t, t)
    found = posterior_moments_cuda(z, in_blocks(x), alpha=1 - t, beta_sq=t).mean
    assert (found - mean).norm(dim=1).max() < 1e-5


@check
def splits(device, dim):
    x = cloud(400, dim, device)
    z = cloud(33, dim, device, seed=1)
    scale = torch.full((33,), 3.0, device=device)
    blocks = make_blocks(x, block_rows=64)
    one = attend(z, scale, blocks, num_splits=1).finish(z)
    for num_splits in (3, 20):  # of 7 blocks: some programs have nothing to do
        many = attend(z, scale, blocks, num_splits=num_splits).finish(z)
        for first, second in zip(one, many, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@check
def every_block_listed(device, dim):
    blocks = make_blocks(cloud(200, dim, device), block_rows=64)
    z = cloud(33, dim, device, seed=1)
    scale = torch.full((33,), 3.0, device=device)
    num_tiles = -(-33 // tiles_for(dim).rows)
    offsets = (torch.arange(num_tiles + 1, device=device) * blocks.num_blocks).int()
    indices = torch.arange(blocks.num_blocks, device=device).repeat(num_tiles).int()
    listed = attend(z, scale, blocks, lists=(offsets, indices))
    dense = attend(z, scale, blocks)
    torch.testing.assert_close(listed.finish(z), dense.finish(z))
    empty = attend(z, scale, blocks, lists=(torch.zeros_like(offsets), indices[:0]))
    assert not empty.total.any()
    assert torch.isneginf(empty.log_max).all()


@check
def sparse(device, t, tolerance, dim=3):
    x = clusters(device, dim=dim)
    z = (1 - t) * x[::5] + t**0.5 * cloud(len(x[::5]), dim, device, seed=1)
    tiles = Tiles(16, 16, 4, 1)
    blocks = make_blocks(x, block_rows=64)
    result = posterior_moments_cuda(z, blocks, alpha=1 - t, beta_sq=t, tolerance=tolerance, tiles=tiles)
    mean, _, _ = plain(z, x, 1 - t, t)
    assert (result.error_bound <= tolerance).all()
    assert ((result.mean - mean).norm(dim=1) <= result.error_bound + 1e-5).all()
    assert result.error_bound.any()


@needs_triton
@pytest.mark.parametrize("t", [0.9, 0.05, 1e-5])
@pytest.mark.parametrize("dim", [1, 2, 6, 16, 43, 130])
def test_moments(call, dim, t):
    call("moments", dim=dim, t=t)


@needs_triton
@pytest.mark.parametrize("dim", [6, 16])
@pytest.mark.parametrize("name", ["sizes", "row_times", "far_rows", "duplicates", "splits", "every_block_listed"])
def test_check(call, name, dim):
    call(name, dim=dim)


@needs_triton
def test_a_dense_cluster_far_out_keeps_its_digits(call):
    call("offset_block")


@needs_triton
@pytest.mark.parametrize("name", ["log_sums", "strided_lists", "no_gradient"])
def test_check_of_one_dimension(call, name):
    call(name)


@needs_triton
@pytest.mark.parametrize(
    ("dim", "t", "offset"),
    a_third((*case, offset) for case in [(3, 1e-3), (3, 1e-5), (20, 1e-2), (20, 1e-5)] for offset in (0.0, 100.0)),
)
def test_the_sum_over_near_blocks_is_a_lower_bound(call, dim, t, offset):
    call("floors", dim=dim, t=t, offset=offset)


@needs_triton
@pytest.mark.parametrize(("t", "tolerance"), a_third([(0.02, 0.1), (0.3, 0.1), (0.02, 1e-4), (1e-3, 1e-4)]))
def test_blocks_left_out_stay_within_the_bound(call, t, tolerance):
    call("sparse", t=t, tolerance=tolerance)


@needs_triton
def test_many_columns_in_sparse_blocks(call):
    call("sparse", t=0.01, tolerance=1e-3, dim=20)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("t", [0.5, 0.1, 0.01, 1e-4])
@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-6])
@pytest.mark.parametrize("near", [False, True])
def test_selection_is_certified(t, tolerance, seed, near):
    # In float64 and without kernels: the bound must hold to the last digit, for tiles that mix two times as well.
    x = clusters("cpu", seed=seed)
    blocks = make_blocks(x, block_rows=64)
    x = blocks.rows.double()
    num_tiles, tile_rows = 12, 8
    order = order_rows(x[: num_tiles * tile_rows * 6 : 6].float(), tile_rows)
    starts = x[: num_tiles * tile_rows * 6 : 6][order]
    noise = cloud(len(starts), 3, "cpu", seed=seed + 10).double()
    times = torch.full((len(starts),), t, dtype=torch.float64)
    times[::3] *= 1.5
    query = starts + times.sqrt()[:, None] * noise
    scale = 1 / (2 * times)
    boxes, scales = query.reshape(num_tiles, tile_rows, 3), scale.reshape(num_tiles, tile_rows)
    logits = -scale[:, None] * torch.cdist(query, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    # A bound on Z from the nearest rows, as the first blocks give it, or none.
    log_sum = logits.topk(20, dim=1).values.logsumexp(dim=1).reshape(num_tiles, tile_rows).amin(1) if near else None
    selection = select_blocks(
        boxes.amin(1), boxes.amax(1), scales.amin(1), scales.amax(1), blocks, tolerance=tolerance, log_sum=log_sum
    )
    assert (selection.error_bound <= tolerance).all()
    exact = logits.softmax(dim=1) @ x
    for tile in range(num_tiles):
        chosen = selection.indices[selection.offsets[tile] : selection.offsets[tile + 1]]
        assert len(chosen)
        kept = torch.isin(torch.arange(len(x)) // 64, chosen)
        part = slice(tile * tile_rows, (tile + 1) * tile_rows)
        mean = logits[part, kept].softmax(dim=1) @ x[kept]
        error = (mean - exact[part]).norm(dim=1)
        assert (error <= selection.error_bound[tile] + 1e-13).all()
    if t <= 0.01:
        assert len(selection.indices) < num_tiles * blocks.num_blocks


@pytest.mark.parametrize("tolerance", [1.0, 0.1, 1e-3])
def test_no_bound_passes_the_tolerance(tolerance):
    # Blocks of unlike sizes at unlike distances: what the second pass drops is not what the first one did.
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        num_blocks = int(torch.randint(5, 40, (1,), generator=generator))
        places = torch.randn(num_blocks, 2, generator=generator)
        places *= (2 * torch.randn(num_blocks, 1, generator=generator)).exp()
        noise = torch.randn(num_blocks, 64, 2, generator=generator)
        blocks = make_blocks((places[:, None] + 0.02 * noise).reshape(-1, 2), block_rows=64)
        query = places.double() + 0.3 * torch.randn(num_blocks, 2, generator=generator)
        scale = (2 * torch.randn(num_blocks, generator=generator)).exp().double()
        selection = select_blocks(query, query, scale, scale, blocks, tolerance=tolerance)
        assert (selection.error_bound <= tolerance).all()


def test_selection_in_chunks_is_the_same(monkeypatch):
    x = clusters("cpu")
    blocks = make_blocks(x, block_rows=64)
    low = blocks.low.repeat(3, 1)
    scale = torch.full((len(low),), 50.0, dtype=torch.float64)
    whole = select_blocks(low, low + 0.1, scale, scale, blocks, tolerance=1e-3)
    monkeypatch.setattr(triton_blocks, "_CHUNK_ELEMENTS", 3 * blocks.num_blocks)
    chunked = select_blocks(low, low + 0.1, scale, scale, blocks, tolerance=1e-3)
    for first, second in zip(vars(whole).values(), vars(chunked).values(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("num_rows", [1, 64, 65, 1000])
def test_blocks_hold_every_row_once_and_are_compact(num_rows):
    x = cloud(num_rows + 1, 2, "cpu")[:num_rows]
    blocks = make_blocks(x, block_rows=64)
    assert torch.equal(blocks.order.sort().values, torch.arange(num_rows))
    assert torch.equal(blocks.rows, x[blocks.order])
    assert blocks.counts.sum() == num_rows
    for number, rows in enumerate(blocks.rows.double().split(64)):
        torch.testing.assert_close(blocks.mean[number], rows.mean(0))
        assert torch.equal(blocks.low[number], rows.amin(0))
        assert torch.equal(blocks.high[number], rows.amax(0))
        distance = (rows - blocks.mean[number]).norm(dim=1)
        torch.testing.assert_close(blocks.radius[number], distance.max())
        torch.testing.assert_close(blocks.spread[number], distance.square().mean())
    if num_rows == 1000:
        assert blocks.radius.median() < 0.6 * x.norm(dim=1).max()


def test_refuses_bad_calls():
    z, scale = cloud(5, 2, "cpu"), torch.ones(5)
    blocks, wide = in_blocks(z), in_blocks(cloud(5, 3, "cpu"))
    with pytest.raises(ValueError, match="columns"):
        attend(z, scale, wide)
    with pytest.raises(ValueError, match="float32"):
        attend(z.double(), scale, blocks)
    with pytest.raises(ValueError, match="positive"):
        posterior_moments_cuda(z, blocks, alpha=1.0, beta_sq=0.0)
    with pytest.raises(ValueError, match="columns"):
        posterior_moments_cuda(z[:, :1], wide, alpha=1.0, beta_sq=1.0)
    for beta_sq in (float("nan"), torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])):
        with pytest.raises(ValueError, match="positive"):
            posterior_moments_cuda(z, blocks, alpha=1.0, beta_sq=beta_sq)
    for tolerance in (float("nan"), -1e-3):
        with pytest.raises(ValueError, match="negative"):
            posterior_moments_cuda(z, blocks, alpha=1.0, beta_sq=1.0, tolerance=tolerance)
    with pytest.raises(ValueError, match="multiple of 64"):
        make_blocks(z, block_rows=10)


def serve():
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            CHECKS[name](device=torch.device("cpu"), **arguments)
            failure = ""
        except Exception:
            failure = traceback.format_exc()
        print(json.dumps(failure), flush=True)


if __name__ == "__main__":
    serve()
