"""The peers, written plainly: the published procedure, blocked torch, KeOps, jax and torch's own attention.

Each ``prepare_*`` takes the references x and gives a function (z, alpha, beta_sq) -> posterior mean, so that what
depends on the references alone is not timed. float32 throughout, unless x is float64.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

PosteriorMean = Callable[[Tensor, float, float], Tensor]

PUBLISHED_STEPS = 500
PUBLISHED_REFERENCES = 1000
LOGIT_FLOOR = -87.0


class Missing(Exception):
    """The peer cannot run here; the message says why."""


def published_mean(z: Tensor, x: Tensor, alpha: float, beta_sq: float) -> Tensor:
    """Differences by broadcasting, a softmax, a matrix product: the formulas as they stand."""
    distance = (z[:, None, :] - alpha * x[None]).square().sum(dim=2)
    return torch.softmax(-distance / (2 * beta_sq), dim=1) @ x


def published_labels(latents: Tensor, table: Tensor, *, t_min: float, generator: torch.Generator) -> Tensor:
    """Labels as published: 1000 references drawn for the batch, 500 uniform Euler steps in t.

    dz/dt = (z - (1 + t) m) / (2 t)
    """
    x = table[torch.randperm(len(table), generator=generator)[:PUBLISHED_REFERENCES]]
    z = latents
    for t, t_next in itertools.pairwise(torch.linspace(1.0, t_min, PUBLISHED_STEPS + 1, dtype=torch.float64).tolist()):
        z = z + (t_next - t) * (z - (1 + t) * published_mean(z, x, 1 - t, t)) / (2 * t)
    return z / (1 - t_min)


def prepare_published(x: Tensor) -> PosteriorMean:
    return lambda z, alpha, beta_sq: published_mean(z, x, alpha, beta_sq)


def prepare_blocked(x: Tensor, tile_queries: int = 256, tile_keys: int = 2048) -> PosteriorMean:
    """Tiles of logits by matrix products, with a running maximum."""
    bias = 0.5 * x.square().sum(dim=1)

    def mean(z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        blocks = []
        for query in (z * (alpha / beta_sq)).split(tile_queries):
            largest = query.new_full((len(query), 1), -math.inf)
            total, moment = torch.zeros_like(largest), torch.zeros_like(query)
            for key, offset in zip(x.split(tile_keys), bias.split(tile_keys), strict=True):
                logits = torch.addmm(offset * (-(alpha**2) / beta_sq), query, key.T)
                new = torch.maximum(largest, logits.amax(dim=1, keepdim=True))
                # Plainer without the floor, and several times slower: torch's exp crawls where it underflows.
                weights = logits.sub_(new).clamp_(min=LOGIT_FLOOR).exp_()
                scale = torch.exp(largest - new)
                total = total * scale + weights.sum(dim=1, keepdim=True)
                moment = moment * scale + weights @ key
                largest = new
            blocks.append(moment / total)
        return torch.cat(blocks)

    return mean


def prepare_sdpa(x: Tensor, value_column: bool = False) -> PosteriorMean:
    """torch's attention called plainly, the bias as one more column of queries and keys.

    Torch's streaming kernel may want values as wide as keys; with ``value_column`` they get the same column.
    """
    key = torch.cat([x, x.square().sum(dim=1, keepdim=True)], dim=1)
    value = key if value_column else x

    def mean(z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        query = torch.cat([alpha * z, z.new_full((len(z), 1), -0.5 * alpha**2)], dim=1) / beta_sq
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(query[None, None], key[None, None], value[None, None], scale=1.0)[0, 0, :, : x.shape[1]]

    return mean


def prepare_keops(x: Tensor) -> PosteriorMean:
    """KeOps on the CPU: the formula on symbolic matrices, compiled at the first call of a dimension."""
    if importlib.util.find_spec("pykeops") is None:
        raise Missing("pykeops is not installed")
    os.environ.setdefault("PYKEOPS_VERBOSE", "0")
    try:
        from pykeops.torch import LazyTensor
    except Exception as error:  # without a compiler the import itself fails, in several ways
        raise Missing(f"pykeops cannot be imported: {error}") from error
    key = LazyTensor(x[None].contiguous())

    def mean(z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        distance = ((LazyTensor((z / alpha)[:, None].contiguous()) - key) ** 2).sum(dim=2)
        return (-(alpha**2) / (2 * beta_sq) * distance).sumsoftmaxweight(key, dim=1, backend="CPU")

    return mean


def prepare_jax(x: Tensor, tile_queries: int = 256) -> PosteriorMean:
    """jax.jit: logits by a matrix product, softmax @ x, one block of queries at a time; 0 for one block of all."""
    if importlib.util.find_spec("jax") is None:
        raise Missing("jax is not installed")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    def block_mean(query, scale, key, bias):
        logits = query @ key.T - scale * bias
        weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        return (weights @ key) / weights.sum(axis=1, keepdims=True)

    @jax.jit
    def all_means(z, alpha, beta_sq, key, bias):
        query, scale = z * (alpha / beta_sq), alpha**2 / beta_sq
        tile = tile_queries or len(z)
        if len(z) % tile:
            raise ValueError(f"{len(z)} queries do not divide into blocks of {tile}")
        blocks = query.reshape(-1, tile, query.shape[1])
        means = jax.lax.map(lambda block: block_mean(block, scale, key, bias), blocks)
        return means.reshape(z.shape)

    key = jnp.asarray(x.numpy())
    bias = 0.5 * jnp.square(key).sum(axis=1)

    def mean(z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        # np.array copies: torch refuses jax's read-only memory. One small table, not worth a share of the time.
        return torch.from_numpy(np.array(all_means(jnp.asarray(z.numpy()), alpha, beta_sq, key, bias)))

    return mean


def exact_labels(latents: Tensor, table: Tensor, *, t_min: float, num_evaluations: int = 160) -> Tensor:
    """Labels by float64 sums over every pair; nothing of the package."""
    table = table.double()
    center = table.mean(dim=0)
    mean_of = prepare_sdpa(table - center, value_column=True)
    return labels_by(mean_of, latents.double(), t_min=t_min, num_evaluations=num_evaluations) + center


def labels_by(mean_of: PosteriorMean, latents: Tensor, *, t_min: float, num_evaluations: int) -> Tensor:
    """Labels by classical RK4 in log t on a graded grid, of a reference whose mean is 0: at t = 1 no mean is asked."""
    z, steps = latents, num_evaluations // 4

    def velocity(s: float, state: Tensor) -> Tensor:
        t = min(math.exp(s), 1.0)
        mean = mean_of(state, 1 - t, t) if t < 1 else torch.zeros_like(state)
        return (state - (1 + t) * mean) / 2

    grid = [math.log(t_min) * (k / steps) ** 1.5 for k in range(steps + 1)]
    for s, s_next in itertools.pairwise(grid):
        h = s_next - s
        k1 = velocity(s, z)
        k2 = velocity(s + h / 2, z + h / 2 * k1)
        k3 = velocity(s + h / 2, z + h / 2 * k2)
        k4 = velocity(s_next, z + h * k3)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z / (1 - t_min)


def exact_log_density(labels: Tensor, table: Tensor, *, t_min: float, block: int = 64) -> Tensor:
    """log p of the blurred data at labels, up to its constant, float64: log mean_j exp(-|x - x_j|^2 / (2 sigma^2))."""
    sigma_sq = t_min / (1 - t_min) ** 2
    parts = [
        torch.logsumexp(-torch.cdist(rows, table.double()).square() / (2 * sigma_sq), dim=1) - math.log(len(table))
        for rows in labels.double().split(block)
    ]
    return torch.cat(parts) if parts else labels.new_zeros(0, dtype=torch.float64)
