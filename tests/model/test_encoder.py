"""The encoder: its Jacobian, the mass of its density, its fit, and what the generator says with it."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from oracle import GaussianOracle, MixtureOracle

from sfg_dist.data import Transform
from sfg_dist.flow import label_latents
from sfg_dist.job.errors import DataError, TrainingError
from sfg_dist.model import MLP, Generator
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.encoder_trainer import MAX_LOG_WEIGHT, EncoderTrainer, Tables, _bounded_exp
from sfg_dist.model.likelihood import Blend, Mass, Mixture, estimate_mass, mapped_log_density


def random_encoder(dim, *, depth=2, width=16, scale=0.5, seed=0):
    torch.manual_seed(seed)
    encoder = Encoder(dim, width=width, depth=depth)
    torch.nn.init.normal_(encoder.out.weight, std=scale)
    return encoder


def normal_rows(num_rows, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32)


# The Jacobian.


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_jacobian_is_autograds(depth):
    encoder = random_encoder(4, depth=depth).double()
    rows = 3 * torch.randn(6, 4, dtype=torch.float64)
    latents, jacobians = encoder.with_jacobian(rows)
    expected = torch.stack([torch.autograd.functional.jacobian(lambda x: encoder(x[None])[0], row) for row in rows])
    torch.testing.assert_close(latents, encoder(rows))
    torch.testing.assert_close(jacobians, expected)


def test_an_encoder_starts_near_the_identity_and_is_affine_far_out():
    encoder = Encoder(3, width=16, depth=2)
    rows = torch.randn(50, 3)
    assert (encoder(rows) - rows).abs().max() < 0.1
    _, jacobians = random_encoder(3).with_jacobian(200 * torch.ones(1, 3))
    torch.testing.assert_close(jacobians[0], torch.eye(3))


# The mass.


def integral(encoder, degree=None):
    """Mass in one dimension, by a fine grid."""
    places = torch.linspace(-60, 60, 60_001)[:, None]
    values, signs = mapped_log_density(encoder.with_jacobian, places, batch_rows=20_000)
    weights = values.exp() if degree is None else values.exp() * (signs == degree)
    return float(weights.sum()) * 120 / 60_000


@pytest.mark.parametrize("seed", [0, 7])
def test_the_mass_of_a_folding_encoder_is_its_integral(seed):
    encoder = random_encoder(1, width=32, scale=8.0, seed=seed)
    expected = integral(encoder)
    assert expected > 1.5  # it folds
    assert integral(encoder, encoder.degree) == pytest.approx((expected + 1) / 2, abs=0.01)
    proposal = Mixture(torch.ones(1).double(), torch.zeros(1, 1).double(), torch.full((1, 1, 1), 6.0).double(), 5.0)
    mass = estimate_mass(encoder.with_jacobian, proposal, degree=encoder.degree, num_rows=100_000)
    assert abs(mass.value - expected) < 4 * mass.standard_error + 1e-3
    assert abs(mass.plain - expected) < 4 * mass.plain_error + 1e-3
    assert mass.is_established


def test_a_mirrored_encoder_has_degree_minus_one_and_the_same_mass():
    encoder = random_encoder(1, width=32, scale=8.0, seed=7)
    mirrored = random_encoder(1, width=32, scale=8.0, seed=7)
    with torch.no_grad():
        for module in (mirrored.out, mirrored.skip):
            module.weight.neg_()
            module.bias.neg_()
    assert (encoder.degree, mirrored.degree) == (1, -1)
    proposal = Mixture.fit(normal_rows(500, 1), seed=0).widened()
    masses = [estimate_mass(e.with_jacobian, proposal, degree=e.degree).value for e in (encoder, mirrored)]
    assert masses[0] == pytest.approx(masses[1], rel=1e-6)


@pytest.mark.slow
def test_a_map_that_covers_the_plane_twice_has_mass_two():
    """The square of a complex number: no folds, det J > 0 nearly everywhere, and each latent has two preimages."""

    def squared(rows):
        a, b = rows[:, 0], rows[:, 1]
        jacobians = 2 * torch.stack([torch.stack([a, -b], dim=1), torch.stack([b, a], dim=1)], dim=1)
        return torch.stack([a * a - b * b, 2 * a * b], dim=1), jacobians

    proposal = Mixture.fit(normal_rows(2000, 2), seed=0).widened()
    mass = estimate_mass(squared, proposal, degree=None, num_rows=100_000)
    assert mass.value == pytest.approx(2, abs=0.03)
    assert mass.standard_error < 0.01


def test_a_mass_that_the_proposal_misses_is_not_established():
    narrow = Mixture(torch.ones(1).double(), torch.full((1, 2), 9.0).double(), 0.1 * torch.eye(2)[None].double(), 50.0)
    encoder = Encoder(2, width=8, depth=1)
    mass = estimate_mass(encoder.with_jacobian, narrow, degree=1, num_rows=2000)
    assert mass.value == 1  # no row that it draws lies on a fold
    assert not mass.is_established


def test_the_proposal_is_normalised_and_covers_the_data():
    rows = np.concatenate([normal_rows(1500, 2) * 0.1 - 2, normal_rows(1500, 2, 1) * [1.0, 0.05] + 1]).astype(
        np.float32
    )
    proposal = Mixture.fit(rows, seed=0, num_components=8)
    axis = torch.linspace(-40, 40, 801).double()
    grid = torch.cartesian_prod(axis, axis)
    assert float(proposal.log_density(grid).exp().sum()) * 0.1**2 == pytest.approx(1, abs=0.01)
    drawn, log_density = proposal.draw(5000, seed=1)
    torch.testing.assert_close(log_density, proposal.log_density(drawn))
    assert float(proposal.log_density(torch.from_numpy(rows)).mean()) > -1.5  # one normal law for all gives -3.4


def test_no_component_is_a_row():
    """Rows far from all others would have components of their own, whose means are these rows."""
    rows = np.concatenate([normal_rows(600, 2), 30 + 9 * normal_rows(3, 2, seed=1)]).astype(np.float32)
    means = Mixture.fit(rows, seed=0).means
    assert len(means) > 5
    assert torch.cdist(means, torch.from_numpy(rows[-3:]).double()).min() > 1


def test_a_proposal_of_few_rows_has_one_component():
    proposal = Mixture.fit(normal_rows(12, 5), seed=0)
    assert len(proposal.weights) == 1
    assert bool(torch.isfinite(proposal.log_density(torch.zeros(1, 5))).all())


def test_the_share_of_a_blend_is_the_best_one():
    draw = torch.Generator().manual_seed(0)
    of_encoder, of_mixture = (torch.randn(400, generator=draw, dtype=torch.float64) - 3 for _ in range(2))
    mixture = Mixture.fit(normal_rows(50, 2), seed=0)

    def likelihood(share):
        return float(Blend(share, mixture).log_density(of_encoder, of_mixture).mean())

    best = Blend.fit(mixture, of_encoder, of_mixture).share
    assert likelihood(best) > max(likelihood(best - 0.02), likelihood(best + 0.02))
    assert Blend.fit(mixture, of_encoder, of_encoder - 50).share == 1e-3
    assert Blend.fit(mixture, of_encoder - math.inf, of_encoder).share == 1 - 1e-3


@pytest.mark.slow
def test_a_blend_holds_what_an_encoder_that_knows_too_little_loses():
    """Few rows of many columns, after a few steps: three heaps, and held-out rows between them."""
    random = np.random.default_rng(0)
    rows = (random.standard_normal((900, 8)) * 0.3 + random.integers(-1, 2, (900, 1))).astype(np.float32)
    trainer = trainer_of(rows[:600], rows, rows, rows[600:700])
    encoder, mass, blend = fit(trainer, 40)
    held_out = torch.from_numpy(rows[700:])
    alone = torch.from_numpy(np.asarray(log_densities(encoder, mass, rows[700:])))
    blended = blend.log_density(alone, blend.mixture.log_density(held_out))
    assert blended.mean() > alone.mean() + 0.5
    assert trainer.progress.share == blend.share


# The fit.


def trainer_of(reference, latents, labels, validation, *, width=32, seed=0):
    torch.manual_seed(seed)
    encoder = Encoder(reference.shape[1], width=width, depth=2)
    return EncoderTrainer(encoder, Tables(reference, latents, labels, validation), seed=seed)


def fit(trainer, num_steps):
    for number in range(num_steps):
        trainer.step(number / num_steps)
        if (number + 1) % (num_steps // 5) == 0:
            trainer.check()
    return trainer.encoder, *trainer.finish()


def log_densities(encoder, mass, rows):
    values, _ = mapped_log_density(encoder.with_jacobian, torch.from_numpy(rows), batch_rows=4096)
    return values - math.log(mass.value)


def imitation_error(encoder, latents, labels):
    with torch.no_grad():
        return float((encoder(torch.from_numpy(labels)) - torch.from_numpy(latents)).square().mean())


@pytest.mark.long
@pytest.mark.slow
def test_the_density_of_a_normal_law():
    oracle = GaussianOracle(torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.3, 1.0, 2.0]))
    latents = normal_rows(6000, 3, seed=1)
    labels = oracle.transport(torch.from_numpy(latents), (0.0, 1.0), (1.0, 0.0)).numpy()
    rows = oracle.transport(torch.from_numpy(normal_rows(6000, 3, seed=2)), (0.0, 1.0), (1.0, 0.0)).numpy()
    encoder, mass, _ = fit(trainer_of(rows[:5000], latents, labels, rows[5000:5500]), 400)
    truth = MixtureOracle(torch.ones(1), oracle.mean[None], oracle.variance[None]).log_density(
        torch.from_numpy(rows[5500:])
    )
    error = log_densities(encoder, mass, rows[5500:]) - truth
    assert abs(mass.value - 1) < 0.02
    assert float(error.abs().mean()) < 0.1
    assert imitation_error(encoder, latents, labels) < 0.01


def mixture_rows(num_rows, seed):
    oracle = MixtureOracle(
        torch.tensor([0.3, 0.7]), torch.tensor([[-1.2, 0.5], [0.8, -0.3]]), torch.tensor([[0.1, 0.4], [0.3, 0.05]])
    )
    return oracle, oracle.sample(num_rows, torch.Generator().manual_seed(seed)).numpy()


@pytest.fixture(scope="module")
def mixture_fit():
    """An encoder of a mixture of two, from pairs that the flow made."""
    oracle, rows = mixture_rows(5000, 0)
    latents = normal_rows(4000, 2, seed=3)
    labels = label_latents(latents, rows[:2500], t_min=1e-2, num_evaluations=12)
    trainer = trainer_of(rows[:4000], latents, labels, rows[4000:4500], width=48)
    encoder, mass, _ = fit(trainer, 1000)
    return oracle, encoder, mass, latents, labels


@pytest.mark.long
@pytest.mark.slow
def test_the_density_of_a_mixture(mixture_fit):
    oracle, encoder, mass, latents, labels = mixture_fit
    _, rows = mixture_rows(4000, 7)
    error = log_densities(encoder, mass, rows) - oracle.log_density(torch.from_numpy(rows))
    assert abs(mass.value - 1) < 0.02
    assert mass.is_established
    assert abs(mass.plain - 1) < 0.02 + 3 * mass.plain_error
    # The mean is minus the KL of the truth to the encoder's law: one normal law for all has 0.45.
    assert -0.1 < float(error.mean()) < 0.02
    assert float(error.abs().median()) < 0.15
    assert imitation_error(encoder, latents, labels) < 0.05


@pytest.mark.long
@pytest.mark.slow
def test_the_mass_of_the_fit_is_its_integral(mixture_fit):
    _, encoder, mass, _, _ = mixture_fit
    axis = torch.linspace(-8, 8, 401)
    values, _ = mapped_log_density(encoder.with_jacobian, torch.cartesian_prod(axis, axis), batch_rows=20_000)
    assert float(values.exp().sum()) * 0.04**2 == pytest.approx(mass.value, abs=0.01)


@pytest.mark.slow
def test_a_resumed_fit_ends_with_the_same_bits():
    rows, latents = normal_rows(500, 2), normal_rows(400, 2, seed=1)
    arguments = (rows[:400], latents, latents * 0.5, rows[400:])
    whole, cut = trainer_of(*arguments), trainer_of(*arguments)
    for number in range(40):
        whole.step(number / 40)
        if number == 25:
            whole.check()
    for number in range(27):
        cut.step(number / 40)
        if number == 25:
            cut.check()
    content = cut.state({"pairs": "a"})
    resumed = trainer_of(*arguments)
    assert resumed.load_state(content, {"pairs": "a"})
    assert resumed.progress == cut.progress
    for number in range(27, 40):
        resumed.step(number / 40)
    assert whole.state({}) == resumed.state({})


def test_a_checkpoint_of_another_fit_or_a_torn_one_is_not_taken_up():
    rows = normal_rows(100, 2)
    trainer = trainer_of(rows, rows, rows, rows)
    before = trainer.state({})
    content = trainer.state({"pairs": "a"})
    assert not trainer.load_state(content, {"pairs": "b"})
    assert not trainer.load_state(content[: len(content) // 2], {"pairs": "a"})
    assert trainer.state({}) == before


def test_a_fit_that_leaves_the_range_ends():
    rows = normal_rows(100, 2)
    trainer = trainer_of(rows, rows, rows, rows)
    trainer.step(0.0)
    with torch.no_grad():
        trainer._average[0].fill_(math.nan)
    with pytest.raises(TrainingError, match="loss is not finite"):
        trainer.check()


# The generator.


def make_generator(kind="quantile", dim=2, *, with_encoder=True, steps=None, scale=0.05):
    rows = np.exp(np.random.default_rng(0).standard_normal((2000, dim))) + 5
    columns = [f"c{index}" for index in range(dim)]
    transform = Transform.fit(rows, columns, kind=kind, steps=steps)
    encoder = random_encoder(dim, scale=scale).eval() if with_encoder else None
    mass = Mass(1.25, 0.01, 1.2, 0.05, 1000) if with_encoder else None
    return Generator(MLP(dim, width=8, depth=1).eval(), transform, encoder=encoder, mass=mass), rows


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
def test_log_prob_integrates_over_the_users_units_to_one_over_the_mass(kind):
    generator, _ = make_generator(kind, dim=1)
    expected = integral(generator.encoder) / generator.mass.value
    places = np.linspace(-400, 400, 2_000_001)[:, None]
    assert np.exp(generator.log_prob(places)).sum() * 4e-4 == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("kind", ["quantile", "standardize"])
def test_tails_beyond_the_training_rows_are_finite_and_fall(kind):
    generator, rows = make_generator(kind)
    far = rows.max() + np.geomspace(10, 1e4, 20)[:, None] * np.ones((1, 2))
    values = generator.log_prob(far)
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert (np.diff(values) < 0).all()


def test_a_few_rows_far_out_do_not_decide_the_mean():
    """Heavy tails and a clip at one end."""
    rows = np.random.default_rng(1).standard_t(1.5, (5000, 3))
    rows[:, 1] = rows[:, 1].clip(-1, None)
    transform = Transform.fit(rows[:1000], list("abc"), atoms={"b": np.array([-1.0])})
    encoder, mass = Encoder(3, width=8, depth=1).eval(), Mass(1.0, 0.01, 1.0, 0.01, 1000)
    generator = Generator(MLP(3, width=8, depth=1).eval(), transform, encoder=encoder, mass=mass)
    values = generator.log_prob(rows[1000:])
    assert values.min() > -60
    assert values.mean() == pytest.approx(np.median(values), abs=1.5)


def test_log_prob_of_many_rows_is_that_of_their_parts():
    generator, rows = make_generator()
    whole = generator.log_prob(rows)
    assert whole.shape == (2000,)
    parts = np.concatenate([generator.log_prob(part) for part in np.array_split(rows, 7)])
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    assert generator.log_prob(rows[:0]).shape == (0,)
    assert generator.encode(rows[:0]).shape == (0, 2)


def test_a_column_on_a_grid_counts_as_spread_over_its_cells():
    generator, _ = make_generator()
    steps = Transform.fit(np.round(np.random.default_rng(0).normal(size=(2000, 2)), 1), ["a", "b"], steps={"a": 0.1})
    generator = Generator(generator.network, steps, encoder=generator.encoder, mass=generator.mass)
    row = np.array([[0.3, 0.123]])
    low = generator.log_prob(row, noise=np.array([[0.1, 0.0]]))
    middle, half = generator.log_prob(row), generator.log_prob(row, noise=np.array([[0.5, 0.0]]))
    assert middle == pytest.approx(half)
    assert low != pytest.approx(middle, abs=1e-6)
    assert generator.encode(row).shape == (1, 2)


@pytest.mark.parametrize("has_blend", [True, False], ids=["blended", "of an earlier version"])
def test_save_and_load_keep_encoder_mass_and_blend(has_blend, tmp_path):
    generator, rows = make_generator()
    if has_blend:
        plain, mixture = generator.log_prob(rows), Mixture.fit(generator.transform.forward(rows), seed=0)
        generator = dataclasses.replace(generator, blend=Blend(0.4, mixture))
        assert np.abs(generator.log_prob(rows) - plain).max() > 0.1
    generator.save(tmp_path / "model")
    loaded = Generator.load(tmp_path)
    assert loaded.mass == generator.mass
    np.testing.assert_array_equal(loaded.log_prob(rows), generator.log_prob(rows))
    np.testing.assert_array_equal(loaded.encode(rows), generator.encode(rows))


def test_without_an_encoder_the_error_says_what_to_do(tmp_path):
    generator, rows = make_generator(with_encoder=False)
    generator.save(tmp_path / "model")
    for question in (Generator.load(tmp_path).log_prob, generator.encode):
        with pytest.raises(TrainingError, match=r"train\.encoder = true"):
            question(rows)


def test_rows_that_are_not_finite_or_too_wide_are_refused():
    generator, rows = make_generator()
    rows[3, 1] = np.nan
    with pytest.raises(DataError, match="column 'c1' has no value in row 3"):
        generator.log_prob(rows)
    with pytest.raises(DataError, match="expected"):
        generator.encode(rows[:, :1])


def test_a_large_weight_has_a_gradient_and_no_decisive_value():
    """A fold where the proposal hardly goes must be pushed down all the same."""
    log_weights = torch.tensor([-2.0, MAX_LOG_WEIGHT, MAX_LOG_WEIGHT + 3], requires_grad=True)
    bounded = _bounded_exp(log_weights)
    bounded.sum().backward()
    edge = math.exp(MAX_LOG_WEIGHT)
    assert bounded.tolist() == pytest.approx([math.exp(-2), edge, 4 * edge], rel=1e-5)
    assert log_weights.grad.tolist() == pytest.approx([math.exp(-2), edge, edge], rel=1e-5)
