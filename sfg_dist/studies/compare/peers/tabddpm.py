"""Diffusion of a table as in TabDDPM: Gaussian on the normal scores of numbers, multinomial on categories.

With a_t = 1 - beta_t and A_t their product, of a number x and of a category in one-hot form c with K places:

    x_t = sqrt(A_t) x + sqrt(1 - A_t) e,           loss  |e - e(x_t, c_t, t)|^2
    q(c_t | c) = A_t c + (1 - A_t) / K,            loss  KL(q(c_{t-1} | c_t, c) | q(c_{t-1} | c_t, c(x_t, c_t, t)))
    q(c_{t-1} | c_t, c) ~ (a_t c_t + (1 - a_t) / K) (A_{t-1} c + (1 - A_{t-1}) / K)

The schedule is the cosine one. One network of all columns gives e and c. A missing category is a category, and a
missing number has its interval of scores, as for the other methods.

References:
    Kotelnikov et al. 2023, TabDDPM, arXiv 2209.15421; Hoogeboom et al. 2021, Argmax Flows and Multinomial Diffusion,
    arXiv 2102.05379.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sfg_dist.model.precision import has_bfloat16
from sfg_dist.studies.compare.judging import Draw, FitFacts, Fitted, Rows
from sfg_dist.studies.compare.peers.fitting import PeerFitSettings, fit_peer
from sfg_dist.studies.compare.peers.peer import Peer
from sfg_dist.studies.compare.peers.plain_columns import PlainColumns
from sfg_dist.studies.compare.peers.table_peer import TableFit
from sfg_dist.studies.compare.peers.time_network import TimeMLP, spread_uniform
from sfg_dist.studies.compare.tables import Part

NUM_STEPS = 100
SHAPE = {"width": 256, "depth": 3}
BATCH_SIZE = 1024
LEARNING_RATE = 1e-3
MAX_SCORE = 5.0  # of a number without noise, as it is guessed on the way: no row of a table lies beyond
DRAWN_ROWS = 8192  # together
SETTINGS = {"steps": NUM_STEPS, **SHAPE, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}


class TabularDiffusion(Peer):
    """The model of rows with numbers first, then the place of each category, shape (num_rows, dim)."""

    kept: Tensor  # A_0 = 1 to A_T, shape (NUM_STEPS + 1,)

    def __init__(self, num_numbers: int, sizes: Sequence[int], *, width: int, depth: int) -> None:
        super().__init__()
        self.num_numbers, self.sizes = num_numbers, list(sizes)
        self.network = TimeMLP(num_numbers + sum(sizes), width=width, depth=depth)
        angles = (torch.arange(NUM_STEPS + 1, dtype=torch.float64) / NUM_STEPS + 0.008) / 1.008 * math.pi / 2
        steps = (angles.cos()[1:] / angles.cos()[:-1]).square().clamp(min=1e-3)
        self.register_buffer("kept", torch.cat([torch.ones(1), steps.cumprod(0).float()]))

    def loss(self, rows: Tensor) -> Tensor:
        """Squared error of the noise, a mean over numbers, and the divergence, a mean over categories."""
        t = (spread_uniform(rows) * NUM_STEPS).long().clamp(max=NUM_STEPS - 1)[:, 0] + 1
        numbers = rows[:, : self.num_numbers]
        kept = self.kept[t][:, None]
        noise = torch.randn_like(numbers)
        noisy = kept.sqrt() * numbers + (1 - kept).sqrt() * noise
        clean = self._one_hot(rows[:, self.num_numbers :])
        drawn = [_draw(kept * c + (1 - kept) / c.shape[1]) for c in clean]
        found, guesses = self._predict(noisy, drawn, t)
        loss = (found - noise).square().mean() if self.num_numbers else torch.zeros((), device=rows.device)
        for c, c_t, guess in zip(clean, drawn, guesses, strict=True):
            true, said = self._posterior(c_t, c, t), self._posterior(c_t, guess, t)
            loss = loss + (true * (_log(true) - _log(said))).sum(dim=1).mean() / len(self.sizes)
        return loss

    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Rows by ``NUM_STEPS`` steps back, shape (num_rows, num_numbers + num_categories)."""
        device = generator.device
        x = torch.randn(num_rows, self.num_numbers, generator=generator, device=device)
        c = [_draw(torch.full((num_rows, size), 1 / size, device=device), generator) for size in self.sizes]
        for step in range(NUM_STEPS, 0, -1):
            t = torch.full((1,), step, device=device)
            now, before = float(self.kept[step]), float(self.kept[step - 1])
            share = now / before
            noise, guesses = self._predict(x, c, t)
            clean = ((x - math.sqrt(1 - now) * noise) / math.sqrt(now)).clamp(-MAX_SCORE, MAX_SCORE)
            x = (math.sqrt(before) * (1 - share) * clean + math.sqrt(share) * (1 - before) * x) / (1 - now)
            spread = math.sqrt((1 - share) * (1 - before) / (1 - now))
            x = x + spread * torch.randn(x.shape, generator=generator, device=device)
            c = [_draw(self._posterior(c_t, guess, t), generator) for c_t, guess in zip(c, guesses, strict=True)]
        places = [one_hot.argmax(dim=1, keepdim=True).to(x.dtype) for one_hot in c]
        return torch.cat([x, *places], dim=1)

    def _predict(self, x: Tensor, c: Sequence[Tensor], t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The noise of the numbers, and the probabilities of the categories without noise."""
        out = self.network(torch.cat([x, *c], dim=1), (t / NUM_STEPS)[:, None].to(x.dtype)).float()
        noise, *logits = out.split([self.num_numbers, *self.sizes], dim=1)
        return noise, [each.softmax(dim=1) for each in logits]

    def _posterior(self, c_t: Tensor, c: Tensor, t: Tensor) -> Tensor:
        """q(c_{t-1} | c_t, c), shape (num_rows, K)."""
        before = self.kept[t - 1][:, None]
        share, size = self.kept[t][:, None] / before, c_t.shape[1]
        product = (share * c_t + (1 - share) / size) * (before * c + (1 - before) / size)
        return product / product.sum(dim=1, keepdim=True)

    def _one_hot(self, places: Tensor) -> list[Tensor]:
        columns = zip(places.long().T, self.sizes, strict=True)
        return [torch.nn.functional.one_hot(column, size).float() for column, size in columns]


def fit_tabddpm(given: TableFit) -> Fitted:
    """Fit the diffusion to the training rows until the time is over.

    Raises:
        TrainingError: no finite loss.
    """
    tables = given.tables
    transform = tables.transform("quantile")
    plain = PlainColumns(transform)
    is_number = ~np.array(plain.category_sizes, dtype=bool)

    def seen(part: Part) -> Tensor:
        scores = tables.flow_rows("quantile", part)
        places = torch.from_numpy(plain.places(tables.rows(part)).astype(np.float32)).to(scores.device)
        return torch.cat([scores[:, torch.from_numpy(is_number)], places], dim=1)

    torch.manual_seed(given.seed)
    sizes = [size for size in plain.category_sizes if size]
    model = TabularDiffusion(int(is_number.sum()), sizes, **SHAPE).to(tables.device)
    settings = PeerFitSettings(
        max_time_s=given.max_time_s,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        bfloat16=has_bfloat16(tables.device),
        marks_s=given.marks_s,
        seed=given.seed,
    )
    fit = fit_peer(model, seen("train"), seen("validation"), settings)

    def draw_plain(num_rows: int) -> Rows:
        generator = torch.Generator(tables.device).manual_seed(given.seed)
        with torch.inference_mode():
            batches = [
                model.sample(min(DRAWN_ROWS, num_rows - first), generator).cpu().numpy()
                for first in range(0, num_rows, DRAWN_ROWS)
            ]
        return np.concatenate(batches).astype(np.float64)

    def draw(num_rows: int) -> Rows:
        drawn = draw_plain(num_rows)
        scores = np.zeros((num_rows, tables.dim))
        scores[:, is_number] = drawn[:, : model.num_numbers]
        return plain.put_places(transform.inverse(scores), drawn[:, model.num_numbers :])

    def earlier() -> Iterator[tuple[float, Draw]]:
        for seconds, weights in fit.snapshots:
            model.load_state_dict(weights)
            yield seconds, draw
        model.load_state_dict(fit.weights)

    return Fitted(
        name="tabddpm",
        draw=draw,
        earlier=earlier,
        draw_flow_rows=draw_plain,
        transform=transform,
        test_log_density=np.empty(0),
        facts=FitFacts(
            label_s=0.0,
            fit_s=fit.seconds,
            num_steps=fit.num_steps,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            num_evaluations=NUM_STEPS,
            best_at_s=fit.best_at_s,
            configuration={"transform": "quantile", **SETTINGS},
        ),
    )


def _draw(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One category a row in one-hot form: the one whose exponential time, at the rate of its probability, is least."""
    times = torch.empty_like(probabilities).exponential_(generator=generator) / probabilities.clamp(min=1e-30)
    return torch.nn.functional.one_hot(times.argmin(dim=1), probabilities.shape[1]).to(probabilities.dtype)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=1e-30).log()
