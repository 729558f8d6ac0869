"""Log densities against closed forms, and the two methods against each other."""

import math

import numpy as np
import pytest
import torch
from oracle import MixtureOracle

from sfg_dist.flow import Reference, Schedule
from sfg_dist.flow.density import log_density

METHODS = ["kernel", "ode"]
SCHEDULES = ["linear", "linear_floor"]


def blurred(rows, x, schedule):
    """Closed form: the rows blurred are a mixture of equal Gaussians; a label is z / alpha."""
    alpha, beta_sq = schedule.alpha(schedule.t_end), schedule.beta_sq(schedule.t_end)
    rows, x = torch.as_tensor(rows, dtype=torch.float64), torch.as_tensor(x, dtype=torch.float64)
    weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    oracle = MixtureOracle(weights, rows, torch.zeros_like(rows))
    return (oracle.log_density(alpha * x, alpha, beta_sq) + rows.shape[1] * math.log(alpha)).numpy()


def draws(rows, schedule, num_rows=60, seed=1):
    """Draws of the blurred law itself."""
    generator = np.random.default_rng(seed)
    sigma = schedule.beta_sq(schedule.t_end) ** 0.5 / schedule.alpha(schedule.t_end)
    x = rows[generator.integers(len(rows), size=num_rows)]
    return x + sigma * generator.standard_normal(x.shape)


def places(rows, num_rows=60, seed=1):
    """Half near the rows, half anywhere about them."""
    generator = np.random.default_rng(seed)
    near = rows[generator.integers(len(rows), size=num_rows // 2)]
    x = np.concatenate([near, rows.mean(0) + np.zeros_like(near)])
    return x + generator.standard_normal(x.shape) * np.repeat([[0.1], [1.5]], num_rows // 2, axis=0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t_min", [1e-4, 0.05, 0.4])
@pytest.mark.parametrize(("dim", "offset"), [(1, 0.0), (3, 0.0), (3, 200.0), (20, 0.0)])
def test_kernel_is_the_blurred_rows(name, t_min, dim, offset, device):
    rows = np.random.default_rng(0).standard_normal((300, dim)) + offset
    x = places(rows)
    values = log_density(
        torch.from_numpy(x).to(device), torch.from_numpy(rows).to(device), t_min=t_min, schedule=name, sigma_data=1.0
    )
    np.testing.assert_allclose(values.cpu().numpy(), blurred(rows, x, Schedule(name, t_min)), rtol=1e-8, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_ode_is_the_blurred_rows(name, offset, device):
    rows = np.array([[-1.0, 5.0], [0.5, 6.0], [2.0, 4.5]]) + offset
    x = draws(rows, Schedule(name, 0.02), 40)
    values = log_density(
        torch.from_numpy(x).to(device),
        torch.from_numpy(rows).to(device),
        t_min=0.02,
        schedule=name,
        method="ode",
        num_evaluations=800,
        batch_size=64,
        sigma_data=1.0,
    )
    np.testing.assert_allclose(values.cpu().numpy(), blurred(rows, x, Schedule(name, 0.02)), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_large_gaussian_sample_has_the_gaussians_density(method, name):
    generator = torch.Generator().manual_seed(0)
    scale, t_min = torch.tensor([0.5, 2.0], dtype=torch.float64), 0.1
    rows = torch.randn(5000, 2, generator=generator, dtype=torch.float64) * scale + 1
    x = torch.randn(30, 2, generator=generator, dtype=torch.float64) * scale + 1
    schedule = Schedule(name, t_min)
    blur_sq = schedule.beta_sq(schedule.t_end) / schedule.alpha(schedule.t_end) ** 2
    oracle = MixtureOracle(torch.ones(1).double(), rows.mean(0, keepdim=True), rows.var(0, keepdim=True))
    values = log_density(
        x, rows, t_min=t_min, schedule=name, method=method, num_evaluations=40, batch_size=32, sigma_data=1.0
    )
    error = (values - oracle.log_density(x, 1.0, blur_sq)).abs()
    assert error.median() < 0.03
    assert error.max() < 0.5  # far out only a few of the sample's rows tell the density


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_methods_agree_on_moons(name, moons, device):
    x = torch.from_numpy(draws(moons, Schedule(name, 1e-2))).to(device)
    rows = torch.from_numpy(moons).to(device)
    kernel = log_density(x, rows, t_min=1e-2, schedule=name, sigma_data=1.0)
    ode = log_density(
        x, rows, t_min=1e-2, schedule=name, method="ode", num_evaluations=400, batch_size=64, sigma_data=1.0
    )
    assert (kernel - ode).abs().max() < 1e-3


def test_ode_converges_with_order_four(moons):
    x = moons[:25]
    exact = log_density(x, moons, t_min=0.05, sigma_data=1.0)
    error = [
        np.abs(
            log_density(x, moons, t_min=0.05, method="ode", num_evaluations=n, batch_size=32, sigma_data=1.0) - exact
        ).mean()
        for n in (64, 128)
    ]
    assert error[0] / error[1] > 2**3.3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_integrates_to_one(method, name):
    rows = np.array([[3.0], [4.5], [5.0]])
    grid = np.linspace(-6.0, 14.0, 2001)[:, None]
    values = log_density(grid, rows, t_min=0.05, schedule=name, method=method, num_evaluations=400, sigma_data=1.0)
    assert np.trapezoid(np.exp(values), grid[:, 0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("t_min", [1e-2, 1e-4])
def test_kernel_in_float32(t_min, moons, device):
    x = places(moons[:500], 200) + 20
    rows = moons + 20
    values = log_density(
        torch.from_numpy(x).to(device),
        Reference(rows, device=device, dtype=torch.float32, sigma_data=1.0),
        t_min=t_min,
        sigma_data=1.0,
    )
    expected = blurred(rows, x, Schedule("linear", t_min))
    np.testing.assert_allclose(values.cpu().numpy(), expected, rtol=1e-5, atol=2e-6 / t_min)


@pytest.mark.parametrize("method", METHODS)
def test_a_rows_bits_do_not_depend_on_the_number_of_rows(method, moons):
    settings = {"method": method, "num_evaluations": 16, "batch_size": 16}
    whole = log_density(moons[:37], moons, **settings, sigma_data=1.0)
    for num_rows in (1, 16, 21):
        np.testing.assert_array_equal(
            log_density(moons[:num_rows], moons, **settings, sigma_data=1.0), whole[:num_rows]
        )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_containers_and_types(method, device):
    rows = np.array([[-1.0, 0.0], [1.0, 2.0]])
    assert isinstance(log_density(rows, rows, method=method, sigma_data=1.0), np.ndarray)
    assert log_density(rows.astype(np.float32), rows, method=method, sigma_data=1.0).dtype == np.float32
    assert log_density(np.array([[0, 1]]), rows, method=method, sigma_data=1.0).dtype == np.float64
    assert log_density(np.zeros((0, 2)), rows, method=method, sigma_data=1.0).shape == (0,)
    values = log_density(
        torch.zeros(3, 2, device=device), Reference(rows, device=device, sigma_data=1.0), method=method, sigma_data=1.0
    )
    assert (values.device.type, values.dtype, tuple(values.shape)) == (device.type, torch.float32, (3,))


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        (np.zeros(3), {}, "shape"),
        (np.zeros((3, 3)), {}, "3 columns"),
        (np.array([[0.0, 0.0], [np.inf, 0.0]]), {}, "row 1"),
        (np.zeros((3, 2)), {"t_min": 0.0}, "t_min"),
        (np.zeros((3, 2)), {"t_min": 1.0}, "t_min"),
        (np.zeros((3, 2)), {"schedule": "cosine"}, "schedule"),
        (np.zeros((3, 2)), {"method": "exact"}, "method"),
        (np.zeros((3, 2)), {"method": "ode", "num_evaluations": 30}, "multiple of 4"),
        (np.zeros((3, 2)), {"batch_size": 0}, "batch_size"),
    ],
)
def test_refuses_bad_calls(x, settings, message):
    with pytest.raises(ValueError, match=message):
        log_density(x, np.zeros((4, 2)), **settings, sigma_data=1.0)
