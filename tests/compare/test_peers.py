"""The peers against known laws: densities, moments of every sampler, and the fit under its clock."""

import itertools
import math

import numpy as np
import pytest
import torch

from sfg_dist.job.errors import TrainingError
from sfg_dist.studies.compare.peers.fitting import PeerFitSettings, fit_peer
from sfg_dist.studies.compare.peers.flow_matching import FlowMatching
from sfg_dist.studies.compare.peers.kinds import PEERS
from sfg_dist.studies.compare.peers.ode_density import log_normal, transported_log_density
from sfg_dist.studies.compare.peers.score_matching import SIGMA_MAX, SIGMA_MIN, ScoreModel, noise_levels
from sfg_dist.studies.compare.peers.time_network import TimeMLP

SCALE = 0.6  # deviation of the Gaussians whose fields are known in closed form


class ExactMatching(FlowMatching):
    """The velocity that flow matching learns from N(0, SCALE^2 I)."""

    def velocity(self, rows, t):
        return rows * (t * SCALE**2 - (1 - t)) / (t**2 * SCALE**2 + (1 - t) ** 2)


class ExactScore(ScoreModel):
    """The posterior mean of N(0, SCALE^2 I)."""

    def denoise(self, z, sigma):
        return z * SCALE**2 / (SCALE**2 + sigma**2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
def test_a_linear_flow_has_its_own_log_density():
    matrix = torch.tensor([[0.3, -0.5], [0.2, 0.1]])
    rows = torch.randn(50, 2, generator=generator())
    ends, change = transported_log_density(lambda x, t: x @ matrix, rows, torch.linspace(0, 1, 9).tolist())
    torch.testing.assert_close(ends, rows @ torch.linalg.matrix_exp(matrix), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(change, torch.full((50,), 0.4), atol=1e-5, rtol=0)  # the trace, over a unit of time


def test_the_velocity_of_a_gaussian_gives_its_samples_and_its_density():
    model = ExactMatching(2, width=8, depth=1)
    samples = model.sample(40_000, generator())
    assert samples.std(dim=0).numpy() == pytest.approx(SCALE, rel=0.02)
    rows = SCALE * torch.randn(200, 2, generator=generator(1))
    torch.testing.assert_close(model.log_density(rows), log_normal(rows, SCALE), atol=2e-3, rtol=0)


@pytest.mark.parametrize("sampler", ["sample_sde", "sample_ode"])
def test_the_denoiser_of_a_gaussian_gives_its_samples(sampler):
    model = ExactScore(2, width=8, depth=1)
    samples = getattr(model, sampler)(20_000, generator())
    assert samples.mean(dim=0).numpy() == pytest.approx(0, abs=0.02)
    assert samples.std(dim=0).numpy() == pytest.approx(SCALE, rel=0.02)
    # rows are independent of each other and columns too: nothing of the start is left in them
    assert abs(float(torch.corrcoef(samples.T)[0, 1])) < 0.03


def test_the_denoiser_of_a_gaussian_gives_its_density():
    rows = SCALE * torch.randn(200, 2, generator=generator(1))
    # at SIGMA_MAX the law is N(0, SCALE^2 + SIGMA_MAX^2), and is taken for N(0, 1 + SIGMA_MAX^2)
    found, true = ExactScore(2, width=8, depth=1).log_density(rows), log_normal(rows, math.hypot(SCALE, SIGMA_MIN))
    torch.testing.assert_close(found, true, atol=1e-2, rtol=0)


def test_noise_levels_fall_from_the_highest_to_the_lowest():
    levels = noise_levels(10)
    assert (levels[0], levels[-1]) == (pytest.approx(SIGMA_MAX), pytest.approx(SIGMA_MIN))
    assert all(first > second for first, second in itertools.pairwise(levels))


def test_one_time_for_all_rows_is_that_time_for_each():
    network = TimeMLP(3, width=8, depth=2)
    torch.nn.init.normal_(network.out.weight)
    rows = torch.randn(5, 3)
    torch.testing.assert_close(network(rows, torch.full((1, 1), 0.3)), network(rows, torch.full((5, 1), 0.3)))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "error"),
    [("nsf", 200, 0.05), ("realnvp", 200, 0.05), ("flow_matching", 500, 0.12), ("score", 500, 0.12)],
)
def test_a_fitted_peer_knows_the_gaussian(name, steps, error, gaussian, clock):
    (kind,) = (kind for kind in PEERS if kind.name == name)
    small = {"width": 64, "depth": 2, "hidden": [32, 32]}
    shape = {key: small.get(key, value) for key, value in kind.shape.items()}
    torch.manual_seed(0)
    model = kind.build(2, **shape)
    fit = fit_peer(
        model,
        gaussian.rows(8000, 0),
        gaussian.rows(1000, 1),
        PeerFitSettings(max_time_s=2 * steps, learning_rate=3e-3, batch_size=256),
        clock,
    )
    assert fit.num_steps == steps
    test = gaussian.rows(400, 2)
    with torch.no_grad():
        found = model.log_density(test).double().numpy()
    assert found.mean() == pytest.approx(gaussian.log_density(test).mean(), abs=error)
    for row in kind.samplers:
        with torch.inference_mode():
            samples = kind.sampler(model, row)(4000, generator()).numpy()
        assert samples.mean(axis=0) == pytest.approx(gaussian.mean, abs=0.08), row
        assert np.cov(samples.T) == pytest.approx(gaussian.covariance, abs=0.12), row


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["nsf", "realnvp"])
def test_a_flow_s_density_has_mass_one(name):
    (kind,) = (kind for kind in PEERS if kind.name == name)
    torch.manual_seed(3)
    model = kind.build(2, **kind.shape)
    axis = torch.linspace(-8, 8, 321)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = float(model.log_density(grid).exp().sum()) * float(axis[1] - axis[0]) ** 2
        # the map is inverted, not only evaluated: samples go back to where they came from
        samples = model.sample(100, generator())
        latents = model.flow().transform(samples)
    assert mass == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(latents, torch.randn(100, 2, generator=generator()), atol=1e-3, rtol=1e-3)


class Constant(torch.nn.Module):
    """One number fitted to the mean of the rows; counts the looks at the validation rows."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1))
        self.num_looks = 0

    def loss(self, rows):
        self.num_looks += not torch.is_grad_enabled()
        return (self.value - rows).square().mean()


@pytest.mark.slow
def test_the_best_look_is_kept_and_the_clock_is_kept_to(clock):
    model = Constant()
    rows, validation = torch.full((64, 1), 5.0), torch.full((8, 1), 1.0)
    settings = PeerFitSettings(max_time_s=2000, learning_rate=0.02, batch_size=32, marks_s=(250, 1000))
    fit = fit_peer(model, rows, validation, settings, clock)
    # the rows pull to 5, past the 1 that the validation rows want
    assert float(model.value.detach()) == pytest.approx(1, abs=0.5)
    assert 0 < fit.best_at_s < 1000
    assert fit.num_steps == 1000
    assert [seconds for seconds, _ in fit.snapshots] == pytest.approx([250, 1000], abs=2)
    assert model.num_looks >= 50


@pytest.mark.slow
def test_a_fit_that_is_never_finite_is_refused(clock):
    rows = torch.full((16, 1), math.nan)
    with pytest.raises(TrainingError, match=r"learning rate 0\.01"):
        fit_peer(Constant(), rows, rows, PeerFitSettings(max_time_s=20, learning_rate=0.01, batch_size=4), clock)
