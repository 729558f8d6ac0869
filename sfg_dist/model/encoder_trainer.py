"""The fit of the encoder: imitation of the pairs first, then maximum likelihood of the data with the exact Jacobian.

    imitation     |E(x) - y|^2 over pairs (y, x)
    likelihood    -log N(E(x)) - s log |det J| over data rows,   s = sign of det J times the sign it should have
                  + log mass, by importance sampling
                  + FOLD_WEIGHT log |det J| over rows of the proposal where det J has the wrong sign
                  + PAIR_WEIGHT |E(x) - y|^2 over pairs

Maximum likelihood alone folds a plain network: rows of several places then share a latent, and the mass of the
reported likelihood is many times 1. The signs drive rows on the back of a fold over its edge again. The mass is what
the density has to be divided by anyway. The pairs hold the map near the flow's own, which is one-to-one.

Measured on the gas turbine table (11 columns, 40 seconds of one core, test rows, in the flow's coordinates): without
the mass and the signs the formula says -1.8 and its mass is 9.6; with them -3.8 at a mass of 1.02. Estimates of the
gradient of log |det J| from one random direction cost half an exact step, and got to -4.4.

More rows of the proposal in a step give other rows a better likelihood. Beijing air table (10 columns), 100 seconds of
one core, test nats in the user's units and mass: 48 rows -38.54, 1.002; 96 -38.48, 1.02; 192 -38.42, 1.001; 384 -38.45,
1.000. With 96, and no gradient beyond MAX_LOG_WEIGHT, 140 seconds ended with a mass of 6.7 that no check had seen.
Steps must also meet new rows of the proposal to the end. Gas turbine table, 150 seconds: two fits that choose among
65,536 rows have masses of 1.3 and 3; among 262,144 and 1,048,576 the mass is 1.10 (0.02) and 1.07 (0.01), at -14.13 and
-14.19 nats.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfg_dist.job.errors import TrainingError
from sfg_dist.job.plan import Stream, random_generator
from sfg_dist.job.reader import LONG_BYTES, MAYBE_NAN, read_json
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.likelihood import (
    MASS_FIELDS,
    MASS_ROWS,
    Blend,
    Mass,
    Mixture,
    batch_rows_of,
    estimate_mass,
    mapped_log_density,
    normal_log_density,
    signed_log_density,
)
from sfg_dist.model.optimizers import split_optimizers, update_average
from sfg_dist.model.precision import has_bfloat16
from sfg_dist.model.saved import check_tensors, mixture_of, named_states, read_tensors, saved_bytes, states_of, under

IMITATION_STEPS, MAX_IMITATION_SHARE = 1500, 0.4  # of the training; a step costs a sixth of a later one
IMITATION_ROWS, DATA_ROWS, PAIR_ROWS, PROPOSAL_ROWS = 256, 128, 128, 192
PAIR_WEIGHT, FOLD_WEIGHT = 0.02, 0.5
LEARNING_RATE, INNER_LEARNING_RATE = 3e-3, 6e-3  # of AdamW, and of Muon for the matrices within
WEIGHT_DECAY, EMA_DECAY, WARMUP_STEPS = 0.01, 0.999, 100
MAX_GRADIENT_NORM = 5.0
MAX_LOG_WEIGHT = 6.0  # of importance weights in the loss: one row must not decide a step
MIN_LOG_DET = -8.0  # a row at the edge of a fold is pushed towards the edge down to this
NUM_POOL_ROWS = 262_144  # rows of the proposal that steps choose from; among fewer, folds grow between them
NUM_CHECK_ROWS = 2048  # validation rows, and rows of the proposal, that a check looks at
NUM_CHECKS = 12
FAR_BEHIND = -math.inf


Identity = dict[str, str | int]
"""Which fit a checkpoint belongs to."""
Limits = list[float | None]
"""Steps and seconds of a fit."""


@dataclass(frozen=True)
class Tables:
    """The rows that an encoder is fitted to, float32."""

    reference: NDArray[np.float32]  # rows of the data, shape (num_reference, dim)
    latents: NDArray[np.float32]  # of the pairs, shape (num_pairs, dim)
    labels: NDArray[np.float32]
    # rows that nothing else is fitted to, shape (num_validation, dim), at least 1; they choose among the averages
    validation: NDArray[np.float32]


@dataclass
class EncoderProgress:
    """How far the fit of an encoder is."""

    step: int = 0  # steps done
    elapsed_s: float = 0.0  # training time spent, over all attempts
    best: float = FAR_BEHIND  # validation log-likelihood of the best weights so far, blended with the mixture, nats
    history: list[dict[str, float]] = field(default_factory=list)  # one entry a check
    ended_by: Limits | None = None  # the limits by which it has run to its end; None while it has not
    mass: Mass | None = None  # of the best weights, once they are final
    share: float | None = None  # of the mixture beside them, likewise


class EncoderTrainer:
    """An encoder on its device, its optimiser, the running average of its weights, and the best average so far.

    ``tables`` are the rows that it is fitted to. ``bfloat16`` says whether the Jacobian's products are in it; None
    takes it where the device has units for it.
    """

    def __init__(self, encoder: Encoder, tables: Tables, *, seed: int, bfloat16: bool | None = None) -> None:
        self.encoder = encoder
        self.device = next(encoder.parameters()).device
        self.bfloat16 = has_bfloat16(self.device) if bfloat16 is None else bfloat16
        self.seed = seed
        self.mixture = Mixture.fit(tables.reference, seed=seed)
        self.proposal = self.mixture.widened()
        pool, log_proposal = self.proposal.draw(NUM_POOL_ROWS, seed=seed)
        fitted = (tables.reference, tables.latents, tables.labels)
        self._reference, self._latents, self._labels = (self._to_device(rows) for rows in fitted)
        self._pool, self._log_proposal = pool.to(self.device), log_proposal.float().to(self.device)
        self._validation = torch.from_numpy(np.ascontiguousarray(tables.validation[:NUM_CHECK_ROWS]))
        self._of_mixture = self.mixture.log_density(self._validation)
        self._parameters: list[Tensor] = list(encoder.parameters())
        self.optimizers = split_optimizers(
            encoder,
            [layer.get_parameter("weight") for layer in encoder.layers],
            learning_rate=LEARNING_RATE,
            inner_rate=INNER_LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
        )
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self._best = [parameter.detach().clone() for parameter in self._parameters]
        self._last: list[Tensor] | None = None  # the weights at the last step, once the encoder has its best ones
        self._running_mass = torch.ones((), device=self.device)
        self.progress = EncoderProgress()

    def step(self, done: float) -> None:
        """One optimiser step; ``done`` is the share of the training that is over, 0 to 1."""
        progress = self.progress
        generator = random_generator(self.seed, Stream.ENCODER, progress.step)
        warm = min(1.0, (progress.step + 1) / WARMUP_STEPS)
        share = warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        for optimizer, rate in zip(self.optimizers, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        if progress.step < IMITATION_STEPS and done < MAX_IMITATION_SHARE:
            loss = self._imitation(generator, IMITATION_ROWS)
        else:
            loss = self._likelihood(generator) + PAIR_WEIGHT * self._imitation(generator, PAIR_ROWS)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM, foreach=True)
        if bool(torch.isfinite(norm)):  # a singular Jacobian has no gradient, and its batch is skipped
            for optimizer in self.optimizers:
                optimizer.step()
        progress.step += 1
        update_average(self._average, self._parameters, step=progress.step, decay=EMA_DECAY)

    def _imitation(self, generator: np.random.Generator, num_rows: int) -> Tensor:
        rows = self._choose(generator, len(self._labels), num_rows)
        return (self.encoder(self._labels[rows]) - self._latents[rows]).square().sum(dim=1).mean()

    def _likelihood(self, generator: np.random.Generator) -> Tensor:
        data = self._reference[self._choose(generator, len(self._reference), DATA_ROWS)]
        chosen = self._choose(generator, len(self._pool), PROPOSAL_ROWS)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            latents, jacobians = self.encoder.with_jacobian(torch.cat([data, self._pool[chosen]]))
        latents, jacobians = latents.float(), jacobians.float()
        density, sign = signed_log_density(latents, jacobians)
        normal = normal_log_density(latents)
        log_det, sign = density - normal, sign * self.encoder.degree
        inside = torch.where(sign > 0, log_det, -log_det.clamp(min=MIN_LOG_DET))
        loss = -(normal + inside)[:DATA_ROWS].mean()
        # The loss has the logarithm of the mass, from a running mean: the logarithm of one batch's would be biased.
        mass = _bounded_exp(density[DATA_ROWS:] - self._log_proposal[chosen]).mean()
        self._running_mass = 0.98 * self._running_mass + 0.02 * mass.detach()
        folded = torch.where(sign < 0, log_det.clamp(min=MIN_LOG_DET), 0.0)[DATA_ROWS:].mean()
        return loss + mass / self._running_mass.clamp(min=1.0) + FOLD_WEIGHT * folded

    def check(self) -> dict[str, float]:
        """Judge the averaged weights on the validation rows, and keep them if they are the best so far.

        Returns:
            The entry of the history.

        Raises:
            TrainingError: the loss is not finite.
        """
        kept = self._swap(self._average)
        degree = self.encoder.degree
        density, _ = self._mapped(self._validation)
        # Rows that steps see. So few others would say nothing: one in ten thousand may have most of the weight.
        pool, log_proposal = self._pool[:NUM_CHECK_ROWS].cpu(), self._log_proposal[:NUM_CHECK_ROWS].cpu()
        proposed, sign = self._mapped(pool)
        folded = ((proposed - log_proposal).exp() * (sign != degree)).mean()
        rows = slice(0, NUM_CHECK_ROWS)
        with torch.inference_mode():
            loss = float((self.encoder(self._labels[rows]) - self._latents[rows]).square().mean())
        self._swap(kept)
        mass = 1 + 2 * float(folded)
        of_encoder = density - math.log(mass)
        blend = Blend.fit(self.mixture, of_encoder, self._of_mixture)
        entry = {
            "step": self.progress.step,
            "log_likelihood": float(blend.log_density(of_encoder, self._of_mixture).mean()),
            "share": blend.share,
            "mass": mass,
            "pair_loss": loss,
            "elapsed_s": round(self.progress.elapsed_s, 3),
        }
        if not math.isfinite(loss):
            raise TrainingError(
                "the encoder's loss is not finite: take a smaller train.encoder_width, or set "
                "train.encoder = false; the generator's own fit is kept"
            )
        self.progress.history.append(entry)
        if entry["log_likelihood"] >= self.progress.best:
            self.progress.best = entry["log_likelihood"]
            self._best = [tensor.clone() for tensor in self._average]
        return entry

    def finish(self) -> tuple[Mass, Blend]:
        """Give the encoder its best weights; returns their mass, from rows that no step has seen, and their blend."""
        self._last = self._swap(self._best)
        self.encoder.eval()
        mass = estimate_mass(
            self.encoder.with_jacobian,
            self.proposal,
            degree=self.encoder.degree,
            seed=self.seed + 1,
            batch_rows=self._batch_rows,
            device=self.device,
        )
        density, _ = self._mapped(self._validation)
        blend = Blend.fit(self.mixture, density - math.log(mass.value), self._of_mixture)
        self.progress.mass, self.progress.share = mass, blend.share
        return mass, blend

    def time_of_mass_s(self) -> float:
        """An estimate of the seconds that ``finish`` takes, from a small part of its work."""
        rows = self._pool[:NUM_CHECK_ROWS].cpu()
        started = time.monotonic()
        self._mapped(rows)
        return (time.monotonic() - started) * MASS_ROWS / len(rows)

    @property
    def _batch_rows(self) -> int:
        return batch_rows_of(self.encoder.dim, self.encoder.shape["width"])

    def _mapped(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return mapped_log_density(self.encoder.with_jacobian, rows, batch_rows=self._batch_rows, device=self.device)

    def _choose(self, generator: np.random.Generator, num_rows: int, how_many: int) -> Tensor:
        return torch.from_numpy(generator.integers(num_rows, size=how_many)).to(self.device)

    def _swap(self, tensors: list[Tensor]) -> list[Tensor]:
        """Give the encoder these weights; returns those that it had."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, tensors)
        return kept

    def _to_device(self, rows: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows, np.float32)).to(self.device)

    def state(self, identity: Identity) -> bytes:
        """A checkpoint as one safetensors file."""
        tensors = {"identity": _digest(identity), "progress": self._progress_tensor()}
        for name, values in self._groups().items():
            tensors |= {f"{name}.{index}": value for index, value in enumerate(values)}
        tensors |= {f"mixture.{name}": tensor for name, tensor in self.mixture.to_tensors().items()}
        tensors |= named_states(self.optimizers)
        # Copies, because no two tensors of a file may share memory.
        return saved_bytes({name: tensor.detach().clone() for name, tensor in tensors.items()})

    def load_state(self, content: bytes, identity: Identity) -> bool:
        """Go on from a checkpoint; False, and nothing is changed, where it belongs to another fit or is torn."""
        try:
            tensors = read_tensors(content, "encoder")
            if not torch.equal(tensors["identity"], _digest(identity)):
                return False
            progress = _read_progress(tensors["progress"])
            states = states_of(self.optimizers, tensors, "encoder")
            groups = {name: _numbered(values, tensors, name) for name, values in self._groups().items()}
        except Exception:  # whatever is wrong with it, the fit can start anew
            return False
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        with torch.no_grad():
            for name, values in self._groups().items():
                for value, saved in zip(values, groups[name], strict=True):
                    value.copy_(saved)
        self.progress = progress
        return True

    def _groups(self) -> dict[str, list[Tensor]]:
        return {
            "model": self._last or list(self._parameters),
            "average": self._average,
            "best": self._best,
            "mass": [self._running_mass],
        }

    def _progress_tensor(self) -> Tensor:
        """The progress as the bytes of a JSON document."""
        best = self.progress.best if math.isfinite(self.progress.best) else None
        content = json.dumps(asdict(self.progress) | {"best": best}).encode()
        return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())


def _bounded_exp(log_weights: Tensor) -> Tensor:
    """exp, and its tangent beyond MAX_LOG_WEIGHT: a large weight is still pushed down, but does not decide a step."""
    tangent = math.exp(MAX_LOG_WEIGHT) * (1 + log_weights - MAX_LOG_WEIGHT)
    return torch.where(log_weights > MAX_LOG_WEIGHT, tangent, log_weights.clamp(max=MAX_LOG_WEIGHT).exp())


def load_finished(encoder: Encoder, content: bytes, identity: Identity, limits: Limits) -> tuple[Mass, Blend] | None:
    """Give an encoder the best weights of a checkpoint whose fit is over; their mass and blend, None if it is not over.

    ``content`` is as ``EncoderTrainer.state`` made it, of an encoder of this size, identity and limits.
    """
    try:
        tensors = read_tensors(content, "encoder")
        progress = _read_progress(tensors["progress"])
        if not torch.equal(tensors["identity"], _digest(identity)) or progress.ended_by != limits:
            return None
        best = _numbered(list(encoder.parameters()), tensors, "best")
        mixture = mixture_of(under(tensors, "mixture."), encoder.dim)
    except Exception:  # whatever is wrong with it, the fit can go on or start anew
        return None
    if progress.mass is None or progress.share is None or not 0 < progress.share < 1:
        return None
    with torch.no_grad():
        for parameter, tensor in zip(encoder.parameters(), best, strict=True):
            parameter.copy_(tensor)
    encoder.eval()
    return progress.mass, Blend(progress.share, mixture)


def _read_progress(tensor: Tensor) -> EncoderProgress:
    fields = {"step": int, "elapsed_s": float, "best": (float, None), "history": [{str: MAYBE_NAN}],
              "ended_by": ([(float, None)], None), "mass": (MASS_FIELDS, None), "share?": (float, None)}  # fmt: skip
    document = read_json(tensor.numpy().tobytes(), "progress", fields, max_bytes=LONG_BYTES, allow_nan=True)
    best, mass = document["best"], document["mass"]
    return EncoderProgress(
        document["step"],
        document["elapsed_s"],
        FAR_BEHIND if best is None else best,
        document["history"],
        document["ended_by"],
        None if mass is None else Mass.of(mass),
        document.get("share"),  # checkpoints of earlier versions have none
    )


def _numbered(values: Sequence[Tensor], tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The saved tensors of these values, ``NAME.0`` and so on."""
    wanted = {str(index): value for index, value in enumerate(values)}
    found = under(tensors, f"{name}.")
    check_tensors(wanted, found, name)
    return [found[index] for index in wanted]


def _digest(identity: Identity) -> Tensor:
    text = json.dumps(identity, sort_keys=True).encode()
    return torch.from_numpy(np.frombuffer(hashlib.sha256(text).digest(), dtype=np.uint8).copy())
