"""Labels and scores: accuracy, both directions, containers, and oracles."""

import numpy as np
import pytest
import torch
from oracle import GaussianOracle, MixtureOracle

from sfg_dist.flow import Flow, Reference, Schedule, integrate, label_latents, label_paths, score


@pytest.fixture(scope="module")
def exact_labels(moons):
    latents = np.random.default_rng(0).standard_normal((1000, 2))
    return latents, label_latents(latents, moons, num_evaluations=640, dtype=torch.float64, sigma_data=1.0)


@pytest.mark.long
@pytest.mark.slow
def test_float32_labels_with_32_evaluations(moons, exact_labels, device):
    latents, exact = exact_labels
    labels = label_latents(
        torch.from_numpy(latents).to(device), torch.from_numpy(moons).to(device), num_evaluations=32, sigma_data=1.0
    )
    error = np.linalg.norm(labels.cpu().numpy() - exact, axis=1)
    assert np.median(error) <= 5e-4
    assert np.quantile(error, 0.9) <= 5e-3


@pytest.mark.long
@pytest.mark.slow
def test_published_euler_is_far_worse_at_far_more_evaluations(moons, exact_labels):
    latents, exact = exact_labels
    labels = label_latents(
        latents[:300], moons, solver="euler", time_grid="uniform", num_evaluations=500, sigma_data=1.0
    )
    assert 3e-3 < np.median(np.linalg.norm(labels - exact[:300], axis=1)) < 5e-2


@pytest.mark.long
@pytest.mark.slow
def test_encode_inverts_decode(moons, exact_labels):
    latents, exact = exact_labels
    back = label_latents(
        exact[:200], moons, direction="encode", num_evaluations=320, dtype=torch.float64, sigma_data=1.0
    )
    assert np.median(np.abs(back - latents[:200])) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "linear_floor"])
def test_labels_follow_the_empirical_mixture(name, device):
    # The blurred empirical law is a mixture of equal Gaussians; its own oracle gives the same labels.
    centers = torch.tensor([[-1.0, 5.0], [0.5, 6.0], [2.0, 4.5]], dtype=torch.float64)
    oracle = MixtureOracle(torch.full((3,), 1 / 3, dtype=torch.float64), centers, torch.zeros_like(centers))
    schedule = Schedule(name, 0.02)

    latents = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = integrate(oracle.posterior_mean, latents, Flow(schedule, "rk4", 800))
    labels = label_latents(
        latents.to(device),
        centers.to(device),
        t_min=0.02,
        schedule=name,
        num_evaluations=800,
        dtype=torch.float64,
        sigma_data=1.0,
    )
    torch.testing.assert_close(labels.cpu(), z / schedule.alpha(schedule.t_end), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_labels_of_a_large_gaussian_sample_are_the_gaussians(device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, 2, generator=generator, dtype=torch.float64) * torch.tensor([0.5, 2.0]) + 1
    oracle = GaussianOracle(x.mean(0), x.var(0))
    latents = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    labels = label_latents(latents.to(device), x.to(device), t_min=0.05, sigma_data=1.0).cpu()
    expected = oracle.transport(latents, (0.0, 1.0), (0.95, 0.05)) / 0.95
    assert (labels - expected).norm(dim=1).median() < 0.05


@pytest.mark.parametrize("rows", [40, 1])
def test_row_bits_do_not_depend_on_the_number_of_rows(moons, rows):
    latents = np.random.default_rng(1).standard_normal((70, 2)).astype(np.float32)
    whole = label_latents(latents, moons, num_evaluations=8, batch_size=32, sigma_data=1.0)
    part = label_latents(latents[:rows], moons, num_evaluations=8, batch_size=32, sigma_data=1.0)
    assert np.array_equal(whole[:rows], part)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_container_dtype_and_device_are_kept(dtype, device):
    x = torch.tensor([[-3.0, 0.0], [5.0, 1.0]], dtype=dtype, device=device)
    latents = torch.tensor([[-1.0, 0.0], [1.0, 2.0]], dtype=dtype, device=device)
    labels = label_latents(latents, x, t_min=1e-3, sigma_data=1.0)
    assert (labels.dtype, labels.device, labels.shape) == (dtype, latents.device, (2, 2))
    array = label_latents(latents.cpu().numpy(), x.cpu().numpy(), t_min=1e-3, sigma_data=1.0)
    assert isinstance(array, np.ndarray)
    assert array.dtype == latents.cpu().numpy().dtype


def test_integers_read_only_and_strided_arrays_and_gradients():
    x = np.array([[-3, 0], [5, 1]])
    latents = np.array([[-1, 0], [1, 2]])
    expected = label_latents(latents.astype(np.float32), x.astype(np.float64), num_evaluations=8, sigma_data=1.0)
    labels = label_latents(latents, x, num_evaluations=8, sigma_data=1.0)
    assert labels.dtype == np.float32
    assert np.array_equal(labels, expected)
    frozen = np.asfortranarray(latents.astype(np.float32))
    frozen.flags.writeable = False
    assert np.array_equal(label_latents(frozen, x[::-1], num_evaluations=8, sigma_data=1.0), expected)
    tracked = torch.from_numpy(latents).float().requires_grad_()
    assert not label_latents(tracked, torch.from_numpy(x).float(), num_evaluations=8, sigma_data=1.0).requires_grad
    assert not score(tracked, x, t=0.5, sigma_data=1.0).requires_grad
    assert label_latents(np.zeros((0, 2)), x, num_evaluations=8, sigma_data=1.0).shape == (0, 2)
    assert score(np.zeros((0, 2)), x, t=0.5, sigma_data=1.0).shape == (0, 2)


def test_a_prepared_reference_gives_the_same_labels(moons):
    latents = np.random.default_rng(2).standard_normal((10, 2))
    assert np.array_equal(
        label_latents(latents, moons, num_evaluations=8, sigma_data=1.0),
        label_latents(latents, Reference(moons, sigma_data=1.0), num_evaluations=8, sigma_data=1.0),
    )


def test_paths_start_at_the_latents_and_end_at_the_labels(moons):
    latents = torch.randn(20, 2, generator=torch.Generator().manual_seed(3))
    beta_sq, states = label_paths(
        latents, Reference(moons, sigma_data=1.0), schedule=Schedule("linear", 1e-3), num_evaluations=32
    )
    labels = label_latents(latents, moons, t_min=1e-3, solver="rk4", num_evaluations=32, sigma_data=1.0)
    assert states.shape == (9, 20, 2)
    assert beta_sq[0] == 1
    torch.testing.assert_close(states[0], latents)
    torch.testing.assert_close(states[-1] / (1 - 1e-3), labels, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "linear_floor"])
@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_score_is_the_gradient_of_the_log_density(name, t, device):
    centers = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
    oracle = MixtureOracle(torch.full((30,), 1 / 30, dtype=torch.float64), centers, torch.zeros_like(centers))
    schedule = Schedule(name, 0.01)
    z = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(oracle.log_density(z, schedule.alpha(t), schedule.beta_sq(t)).sum(), z)
    got = score(z.detach().to(device), centers.to(device), t=t, schedule=name, dtype=torch.float64, sigma_data=1.0)
    torch.testing.assert_close(got.cpu(), gradient, rtol=1e-8, atol=1e-8)
    single = score(z.detach().float().to(device), centers.to(device), t=t, schedule=name, sigma_data=1.0)
    torch.testing.assert_close(single.cpu().double(), gradient, rtol=1e-4, atol=1e-3)


def test_score_takes_a_time_for_each_row(moons):
    z = np.random.default_rng(0).standard_normal((4, 2))
    times = np.array([0.1, 0.2, 0.5, 1.0])
    together = score(z, moons, t=times, sigma_data=1.0)
    one_by_one = np.concatenate([score(z[i : i + 1], moons, t=float(times[i]), sigma_data=1.0) for i in range(4)])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4, atol=1e-4)


def test_mixture_oracle_posterior_mean_against_its_score():
    oracle = MixtureOracle(
        torch.tensor([0.2, 0.8], dtype=torch.float64),
        torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64),
        torch.tensor([[0.3, 0.1], [0.2, 0.5]], dtype=torch.float64),
    )
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(oracle.log_density(z, 0.7, 0.3).sum(), z)
    torch.testing.assert_close(oracle.score(z.detach(), 0.7, 0.3), gradient)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: label_latents(np.zeros(3), x, sigma_data=1.0), "shape"),
        (lambda x: label_latents(np.zeros((3, 5)), x, sigma_data=1.0), "5 columns"),
        (lambda x: label_latents(np.array([[0.0, np.nan]]), x, sigma_data=1.0), "row 0"),
        (
            lambda x: label_latents(np.zeros((3, 2)), x, solver="rk4", num_evaluations=30, sigma_data=1.0),
            "multiple of 4",
        ),
        (lambda x: label_latents(np.zeros((3, 2)), x, t_min=2.0, sigma_data=1.0), "t_min"),
        (lambda x: label_latents(np.zeros((3, 2)), x, direction="sideways", sigma_data=1.0), "direction"),
        (lambda x: label_latents(np.zeros((3, 2)), x, time_grid="log", sigma_data=1.0), "time_grid"),
        (lambda x: label_latents(np.zeros((3, 2)), x, batch_size=0, sigma_data=1.0), "batch_size"),
        (lambda x: score(np.zeros((3, 2)), x, t=0.0, sigma_data=1.0), r"\(0, 1\]"),
        (lambda x: score(np.zeros((3, 2)), x, t=1.5, sigma_data=1.0), r"\(0, 1\]"),
        (lambda x: score(np.zeros((3, 2)), x, t=np.array([0.1, 0.2]), sigma_data=1.0), "shape"),
        (lambda x: score(np.zeros(3), x, t=0.5, sigma_data=1.0), "shape"),
        (lambda x: score(np.zeros((3, 5)), x, t=0.5, sigma_data=1.0), "5 columns"),
        (lambda x: score(np.array([[0.0, np.nan]]), x, t=0.5, sigma_data=1.0), "row 0"),
    ],
)
def test_refuses(call, message, moons):
    with pytest.raises(ValueError, match=message):
        call(moons)
