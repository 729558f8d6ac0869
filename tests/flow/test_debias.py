"""The debiased reference against its formula, a known density, and a leave-one-out likelihood by brute force."""

import numpy as np
import pytest
import torch
from oracle import MixtureOracle

from sfg_dist.flow import (
    Reference,
    Schedule,
    choose_t_min,
    debias,
    favours_debiasing,
    label_latents,
    log_density,
    moved_rows,
)
from sfg_dist.flow.posterior.reference_block import ReferenceBlock
from sfg_dist.flow.posterior.streaming import StreamedReference
from sfg_dist.job.threads import torch_threads

MIXTURE = MixtureOracle(
    torch.tensor([0.4, 0.6]).double(), torch.tensor([[-1.0], [0.8]]).double(), torch.tensor([[0.05], [0.3]]).double()
)


def table(num_rows, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((num_rows, dim))


def half_way(rows, blur):
    """Rows half way to the mean of all rows by their kernels, their own among them."""
    kernels = np.exp(-((rows[:, None] - rows[None]) ** 2).sum(axis=2) / (2 * blur**2))
    return (rows + kernels @ rows / kernels.sum(axis=1, keepdims=True)) / 2


@pytest.mark.parametrize("schedule", ["linear", "linear_floor"])
def test_a_row_goes_half_way_to_its_posterior_mean(schedule):
    rows = table(300, 2) + np.array([7.0, 0.0])
    blur = Schedule(schedule, 0.05).blur
    moved = debias(rows, t_min=0.05, schedule=schedule, sigma_data=2.0)
    assert moved == pytest.approx(half_way(rows, 2 * blur), abs=2e-5)
    score = (moved - rows) / (2 * blur) ** 2 * 2
    places = torch.from_numpy(rows).requires_grad_()
    log_p = torch.logsumexp(-torch.cdist(places, torch.from_numpy(rows)).square() / (2 * (2 * blur) ** 2), dim=1)
    (gradient,) = torch.autograd.grad(log_p.sum(), places)
    assert score == pytest.approx(gradient.numpy(), abs=1e-3)


def test_a_row_on_its_own_stays():
    rows = np.array([[0.0, 0.0], [0.1, 0.0], [9.0, 9.0]])
    moved = debias(rows, t_min=1e-2, sigma_data=1.0)
    assert moved[2] == pytest.approx(rows[2], abs=1e-6)
    assert moved[0, 0] > 0.01


@pytest.mark.parametrize("t_min", [0.01, 0.02])
def test_the_density_has_a_smaller_error(t_min):
    generator = torch.Generator().manual_seed(0)
    rows = MIXTURE.sample(4000, generator)
    places = torch.linspace(-3, 4, 400).double()[:, None]
    exact = MIXTURE.log_density(places).exp()
    settings = {"t_min": t_min, "sigma_data": 1.0}

    def squared_error(reference):
        return float((log_density(places, reference, **settings).exp() - exact).square().mean())

    assert squared_error(debias(rows, **settings)) < 0.35 * squared_error(rows)


def test_labels_of_moved_rows_have_the_datas_spread():
    """Labels of a normal law have 1 + h^2 times its variance, and 1 + h^4 / 4 times after the correction."""
    rows, latents = table(3000, 1), table(2000, 1, seed=1)
    latents = (latents - latents.mean()) / latents.std()
    settings = {"t_min": 0.1, "sigma_data": 1.0}
    plain = label_latents(latents, rows, **settings).var() / rows.var()
    debiased = label_latents(latents, debias(rows, **settings), **settings).var() / rows.var()
    assert plain == pytest.approx(1 + Schedule("linear", 0.1).blur ** 2, rel=0.02)
    assert debiased == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("num_rows", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_the_bits_know_neither_threads_nor_how_the_rows_are_held(num_rows, monkeypatch):
    monkeypatch.setattr("sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS", num_rows // 3)
    rows = torch.from_numpy(table(num_rows, 2))
    with torch_threads(1):
        expected = debias(rows, t_min=1e-2)
    with torch_threads(3):
        assert torch.equal(debias(rows, t_min=1e-2), expected)
    whole = Reference(rows)
    blocks = [ReferenceBlock(whole.keys[start:stop]) for start, stop in whole.block_ranges]
    assert len(blocks) == 4
    streamed = StreamedReference(
        blocks.__getitem__, center=whole.center, num_reference=num_rows, device=rows.device, scale=whole.scale
    )
    parts = [moved_rows(part, streamed, Schedule("linear", 1e-2).blur) for part in rows.split(100)]
    assert torch.equal(torch.cat(parts), expected)


def left_out(rows, t):
    """Leave-one-out mean log likelihood, the reference debiased anew without each row and its duplicates."""
    blur = Schedule("linear", t).blur
    values = []
    for row in rows:
        others = half_way(rows[(rows != row).any(axis=1)], blur)
        kernels = np.exp(-((row - others) ** 2).sum(axis=1) / (2 * blur**2))
        values.append(np.log(kernels.mean()) - rows.shape[1] / 2 * np.log(2 * np.pi * blur**2))
    return np.mean(values)


@pytest.mark.parametrize("tile", [(256, 1024), (7, 13)])
def test_every_candidate_is_the_brute_force(tile, monkeypatch):
    monkeypatch.setattr("sfg_dist.flow.bandwidth._TILE", {"cpu": tile, "cuda": tile})
    rows = np.concatenate([table(60, 2), table(10, 2)[:4]])  # four duplicates
    choice = choose_t_min(rows, sigma_data=1.0, debias=True)
    for t, log_likelihood in choice.candidates:
        assert log_likelihood == pytest.approx(left_out(rows, t), abs=1e-5)
    assert (choice.t_min, choice.log_likelihood) == max(choice.candidates, key=lambda pair: pair[1])
    assert choice.debiased


def test_the_blur_is_larger_and_likelier_where_the_law_is_smooth():
    rows = table(600, 2)
    plain, debiased = (choose_t_min(rows, sigma_data=1.0, debias=debias) for debias in (False, True))
    assert debiased.t_min > 1.3 * plain.t_min
    assert debiased.log_likelihood > plain.log_likelihood
    assert choose_t_min(rows, sigma_data=1.0, debias="auto") == debiased
    assert not plain.debiased


def test_auto_goes_by_the_likelihood_of_rows_left_out():
    rows = table(60, 2)
    helps = [left_out(rows, t) > plain_left_out(rows, t) for t in (0.1, 0.4)]
    assert helps == [False, True]
    assert [favours_debiasing(rows, t_min=t, sigma_data=1.0) for t in (0.1, 0.4)] == helps


def test_auto_does_not_go_by_rounding():
    two_rows = [table(2, 2, seed) for seed in (1, 2)]
    lattice = np.indices((10, 10)).reshape(2, -1).T * 0.7
    assert not any(choose_t_min(rows, debias="auto").debiased for rows in two_rows)
    assert not any(favours_debiasing(rows, t_min=1e-5) for rows in (*two_rows, lattice))


def test_what_is_refused_is_called_by_its_name():
    for rows, words in (
        (np.zeros((0, 2)), r"rows must be a non-empty table, got shape \(0, 2\)"),
        (table(9, 2) * 1e150, r"the table of rows has spread .*e\+149"),
    ):
        with pytest.raises(ValueError, match=words):
            debias(rows)


def plain_left_out(rows, t):
    blur = Schedule("linear", t).blur
    kernels = np.exp(-((rows[:, None] - rows[None]) ** 2).sum(axis=2) / (2 * blur**2))
    np.fill_diagonal(kernels, 0)
    sums = kernels.sum(axis=1) / (len(rows) - 1)
    return np.mean(np.log(sums)) - rows.shape[1] / 2 * np.log(2 * np.pi * blur**2)
