"""The density that an encoder gives, and its total mass.

    log p(x) = log N(E(x); 0, I) + log |det J(x)|,    J = dE/dx

integrates to 1 only if E is one-to-one. In general it integrates to the mean number of preimages of a latent under
N(0, I). So this mass is estimated by importance sampling from a proposal q that covers the data, and the density is
divided by it:

    mass = E_q[p(x) / q(x)]

Where E is affine far out, its degree is known, +1 or -1: of a latent's preimages, one more has this sign of det J than
has the other. The signed mass is then exactly 1, and

    mass = 1 + 2 E_q[p(x) / q(x) 1{det J has the wrong sign}]

has a far smaller error, because only the folds enter it. The plain estimate is kept beside it as a check of q.

A mixture of t distributions is blended with the encoder's density, by the share that gives validation rows the highest
likelihood:

    p(x) = (1 - share) N(E(x); 0, I) |det J(x)| / mass + share q(x)

Few rows teach an encoder little of where rows are rare, and single rows there cost it 50 nats; the mixture is seldom
right and never far off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.job.errors import DocumentError

NUM_COMPONENTS, COMPONENT_ROWS = 200, 5  # at most; rows for each component and column
LEAST_ROWS = 5  # of a component: one of fewer would hold nearly a row of the table
NUM_FIT_ROWS = 12_000
NUM_FIT_ROUNDS = 20
DEGREES_OF_FREEDOM, WIDE_DEGREES = 20.0, 5.0
INFLATION = 1.5  # of a wide mixture's covariances: a proposal's tails must reach as far as the encoder's law
RIDGE = 1e-3  # added to the components' covariance, in units of a column's mean variance
MASS_ROWS = 65_536
LEAST_SHARE, NUM_SHARE_ROUNDS = 1e-3, 100  # of a blend, on either side
_TANGENT_NUMBERS = 2**22  # of a layer, or of a mixture's components, that are held at once

JacobianMap = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows (num_rows, dim) to their images and Jacobians (num_rows, dim, dim)."""


def signed_log_density(latents: Tensor, jacobians: Tensor) -> tuple[Tensor, Tensor]:
    """log N(y; 0, I) + log |det J| in nats, and the sign of det J, each of shape (num_rows,)."""
    sign, log_det = torch.linalg.slogdet(jacobians)
    return normal_log_density(latents) + log_det, sign


def normal_log_density(latents: Tensor) -> Tensor:
    """log N(y; 0, I), shape (num_rows,)."""
    return -0.5 * latents.square().sum(dim=1) - 0.5 * latents.shape[1] * math.log(2 * math.pi)


@dataclass(frozen=True)
class Mixture:
    """A mixture of multivariate t distributions, which is drawn from and evaluated exactly."""

    weights: Tensor  # shape (num_components,), summing to 1
    means: Tensor  # shape (num_components, dim)
    factors: Tensor  # lower triangular factors of the scale matrices, shape (num_components, dim, dim)
    degrees_of_freedom: float = DEGREES_OF_FREEDOM  # of the tails; > 0

    @classmethod
    def fit(cls, rows: NDArray[np.float32], *, seed: int, num_components: int = NUM_COMPONENTS) -> Mixture:
        """A Gaussian mixture, fitted by expectation and maximisation, whose tails are then made a little heavier.

        The rows are in the flow's coordinates, shape (num_rows, dim), 2 at least. There are ``num_components`` at most;
        fewer where there are not ``COMPONENT_ROWS`` for each component and column.
        """
        generator = np.random.default_rng(seed)
        chosen = rows[generator.permutation(len(rows))[:NUM_FIT_ROWS]]
        x = torch.from_numpy(np.ascontiguousarray(chosen)).double()
        num_rows, dim = x.shape
        num = max(1, min(num_components, num_rows // (COMPONENT_ROWS * dim)))
        whole = torch.cov(x.t()).reshape(dim, dim)
        ridge = RIDGE * whole.diagonal().mean().clamp(min=1e-12) * torch.eye(dim, dtype=x.dtype)
        means = x[:num].clone()
        weights = torch.full((num,), 1 / num, dtype=x.dtype)
        factors = torch.linalg.cholesky((whole / num ** (2 / dim) + ridge).expand(num, dim, dim))
        for _ in range(NUM_FIT_ROUNDS if num > 1 else 0):
            counts, sums, squares = (torch.zeros(num, *more, dtype=x.dtype) for more in ((), (dim,), (dim, dim)))
            for part in x.split(_rows_at_once(num, dim)):
                shares = _component_log_density(part, weights, means, factors).softmax(dim=1).t()
                counts += shares.sum(dim=1)
                sums += shares @ part
                squares += (shares[:, :, None] * part).transpose(1, 2) @ part
            counts += 1e-9
            weights, means = counts / counts.sum(), sums / counts[:, None]
            covariances = squares / counts[:, None, None] - means[:, :, None] * means[:, None, :]
            factors = torch.linalg.cholesky(covariances + ridge)
        if num == 1:
            return cls(weights, x.mean(dim=0, keepdim=True), torch.linalg.cholesky(whole + ridge)[None])
        kept = weights * num_rows >= min(LEAST_ROWS, float(weights.max()) * num_rows)
        return cls(weights[kept] / weights[kept].sum(), means[kept], factors[kept])

    def to_tensors(self) -> dict[str, Tensor]:
        """Its numbers, for a file of named tensors."""
        return {"weights": self.weights, "means": self.means, "factors": self.factors}

    def widened(self) -> Mixture:
        """The proposal of an importance sampling: heavier tails, and wider components."""
        return Mixture(self.weights, self.means, math.sqrt(INFLATION) * self.factors, WIDE_DEGREES)

    def draw(self, num_rows: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Rows, float32 (num_rows, dim), and their log densities in nats, float64 (num_rows,)."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights, num_rows, replacement=True, generator=generator)
        noise = torch.randn(num_rows, self.means.shape[1], generator=generator, dtype=torch.float64)
        squares = np.random.default_rng(seed).chisquare(self.degrees_of_freedom, num_rows) / self.degrees_of_freedom
        noise /= torch.from_numpy(squares).sqrt()[:, None]
        rows = torch.empty_like(noise)
        for number in range(len(self.weights)):
            here = component == number
            rows[here] = self.means[number] + noise[here] @ self.factors[number].t()
        rows = rows.float()
        return rows, self.log_density(rows)

    def log_density(self, rows: Tensor) -> Tensor:
        """In nats, float64 (num_rows,); products are in the rows' own precision."""
        arguments = self.weights, self.means, self.factors, self.degrees_of_freedom
        parts = rows.split(_rows_at_once(*self.means.shape))
        return torch.cat([_component_log_density(part, *arguments).logsumexp(dim=1) for part in parts])


def _rows_at_once(num_components: int, dim: int) -> int:
    return max(16, _TANGENT_NUMBERS // (num_components * dim))


def _component_log_density(
    rows: Tensor, weights: Tensor, means: Tensor, factors: Tensor, degrees: float = math.inf
) -> Tensor:
    """log of weight times density of each component, normal or t, shape (num_rows, num_components)."""
    num, dim = means.shape
    inverses = torch.linalg.solve_triangular(factors, torch.eye(dim, dtype=factors.dtype), upper=False)
    centres = (inverses @ means[:, :, None]).flatten().to(rows.dtype)
    away = rows @ inverses.reshape(num * dim, dim).t().to(rows.dtype) - centres
    distances = away.square().reshape(len(rows), num, dim).sum(dim=2).double()
    log_scale = weights.log() - factors.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    if math.isinf(degrees):
        return log_scale - 0.5 * distances - 0.5 * dim * math.log(2 * math.pi)
    normaliser = math.lgamma((degrees + dim) / 2) - math.lgamma(degrees / 2) - 0.5 * dim * math.log(degrees * math.pi)
    return log_scale + normaliser - 0.5 * (degrees + dim) * torch.log1p(distances / degrees)


@dataclass(frozen=True)
class Blend:
    """A mixture beside an encoder's density."""

    share: float  # of the mixture, between 0 and 1
    mixture: Mixture

    @classmethod
    def fit(cls, mixture: Mixture, of_encoder: Tensor, of_mixture: Tensor) -> Blend:
        """With the share that gives held-out rows the highest likelihood, by expectation and maximisation.

        Both densities of these rows are in nats, float64 of shape (num_rows,), at least 1. Rows are left out where
        neither is finite; the share is 1/2 where no row is left.
        """
        share = 0.5
        ratio = of_mixture - of_encoder.nan_to_num(nan=-math.inf)
        ratio = ratio[of_encoder.isfinite() | of_mixture.isfinite()]
        for _ in range(NUM_SHARE_ROUNDS if len(ratio) else 0):
            odds = ratio + math.log(share / (1 - share))
            share = min(max(float(torch.sigmoid(odds).mean()), LEAST_SHARE), 1 - LEAST_SHARE)
        return cls(share, mixture)

    def log_density(self, of_encoder: Tensor, of_mixture: Tensor) -> Tensor:
        """Of rows from both densities, in nats, shape (num_rows,)."""
        return torch.logaddexp(math.log1p(-self.share) + of_encoder, math.log(self.share) + of_mixture)


MASS_FIELDS = {**dict.fromkeys(("value", "standard_error", "plain", "plain_error"), float), "num_rows": int}
"""Of a ``Mass`` in a document."""


@dataclass(frozen=True)
class Mass:
    """The integral of an encoder's density over all rows, 1 for a one-to-one map."""

    value: float  # the estimate, > 0
    standard_error: float  # of the value, from the spread of the importance weights
    # the estimate without the degree, and its error. Where it is far from value, the proposal misses a part.
    plain: float
    plain_error: float
    num_rows: int  # rows of the proposal that were drawn

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Mass:
        """From a document with ``MASS_FIELDS``; other keys are passed over.

        Raises:
            DocumentError: the mass is not above 0.
        """
        if not document["value"] > 0:
            raise DocumentError(f"mass.value is {document['value']:g}, expected a number above 0")
        return cls(**{name: document[name] for name in MASS_FIELDS})

    @property
    def is_established(self) -> bool:
        """Whether both estimates agree within three errors, and the error is below a tenth of the mass."""
        apart = abs(self.value - self.plain)
        return self.standard_error < 0.1 * self.value and apart < 3 * (self.plain_error + self.standard_error)


def estimate_mass(
    encode: JacobianMap,
    proposal: Mixture,
    *,
    degree: int | None,
    num_rows: int = MASS_ROWS,
    batch_rows: int = 4096,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Mass:
    """Integral of N(E(x)) |det J(x)| over all x, by importance sampling of ``num_rows`` >= 2 rows.

    The proposal covers the places that the map ``encode`` takes to the bulk of N(0, I). ``degree`` is the map's where
    it is known, 1 or -1; None takes the plain estimate.

    References:
        Outerelo, Ruiz 2009, Mapping Degree Theory, chapter IV (the degree counts preimages with their signs).
    """
    rows, log_proposal = proposal.draw(num_rows, seed=seed)
    densities, signs = mapped_log_density(encode, rows, batch_rows=batch_rows, device=device)
    weights = (densities - log_proposal).exp()
    root = math.sqrt(num_rows)
    plain, plain_error = float(weights.mean()), float(weights.std()) / root
    if degree is None:
        return Mass(plain, plain_error, plain, plain_error, num_rows)
    folded = weights * (signs != degree)
    return Mass(1 + 2 * float(folded.mean()), 2 * float(folded.std()) / root, plain, plain_error, num_rows)


def mapped_log_density(
    encode: JacobianMap, rows: Tensor, *, batch_rows: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """log N(E(x)) + log |det J| and the sign of det J, float64 on the CPU, a batch of rows at a time."""
    values, signs = [torch.empty(0, dtype=torch.float64)], [torch.empty(0, dtype=torch.float64)]
    with torch.inference_mode():
        for part in rows.split(batch_rows):
            latents, jacobians = encode(part.to(device))
            value, sign = signed_log_density(latents.double().cpu(), jacobians.double().cpu())
            values.append(value)
            signs.append(sign)
    return torch.cat(values), torch.cat(signs)


def batch_rows_of(dim: int, width: int) -> int:
    """Rows whose tangents are held at once, so that memory does not grow with the columns."""
    return min(4096, max(16, _TANGENT_NUMBERS // (dim * width)))
