"""Measured certificates: nodes as normal laws, thresholds fitted on pilots, and what catches those that do not hold."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from families import EVERY_FAMILY, FAMILIES
from scipy import stats

from sfg_dist.flow import Effort, Flow, Reference, Schedule, label_batch, label_latents, posterior_moments
from sfg_dist.flow.certificate import (
    MULTIPLES,
    NUM_FRESH,
    SHARES,
    Measured,
    fit_certificate,
    most_over,
    share_limit,
)
from sfg_dist.flow.posterior.clusters import build_clusters
from sfg_dist.flow.posterior.cpu.normal_laws import law_rows
from sfg_dist.flow.posterior.cpu.normal_series import index_table
from sfg_dist.flow.posterior.normals import NormalNodes

TOLERANCE = 1e-3
SCHEDULE = Schedule("linear", 1e-3)


def mixture(seed, n=20_000, dim=2):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((20, dim))
    return centers[rng.integers(0, 20, n)] + 0.15 * rng.standard_normal((n, dim))


def states(reference, alpha, beta_sq, n, seed):
    rng = np.random.default_rng(seed)
    rows = reference.keys[rng.integers(0, reference.num_reference, n), :-1]
    noise = torch.from_numpy(rng.standard_normal(tuple(rows.shape)).astype(np.float32))
    return alpha * rows + beta_sq**0.5 * noise


def errors(reference, alpha, beta_sq, threshold, n=256, seed=3):
    z = states(reference, alpha, beta_sq, n, seed)
    given = {"alpha": alpha, "beta_sq": beta_sq, "variance": False}
    exact = posterior_moments(z, reference, backend="dense", **given).mean
    found = posterior_moments(z, reference, backend="sparse", tolerance=TOLERANCE, threshold=threshold, **given)
    return torch.linalg.vector_norm(found.mean - exact, dim=1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("dim", [3, pytest.param(21, marks=pytest.mark.long)])
def test_laws_are_those_of_the_nodes_rows(dim):
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((5000, 3)) * [1, 0.7, 0.5] @ np.linalg.qr(rng.standard_normal((dim, 3)))[0].T
    rows = (rows + 0.02 * rng.standard_normal((5000, dim))).astype(np.float32)
    clusters = build_clusters(rows)
    sigma_sq = 0.3
    nodes = NormalNodes(clusters)
    node = int(clusters.offsets[1])  # the first one above the leaves: 256 rows
    own = np.float64(clusters.blocks[:8, :dim].transpose(0, 2, 1).reshape(-1, dim))
    covariance = np.cov(own.T, bias=True)
    whole = covariance + sigma_sq * np.eye(dim)
    law = nodes.at(sigma_sq)[0].reshape(-1, law_rows(dim, len(nodes.rank)), 8)[node // 8, :, node % 8]
    if dim == 3:
        shrink = np.zeros((3, 3))
        shrink[np.triu_indices(3)] = law[:6]
        shrink += np.triu(shrink, 1).T
    else:  # four axes, and what the others share
        axes = nodes.vectors.reshape(-1, 4, dim, 8)[node // 8, :, :, node % 8]
        shrink = law[0] * np.eye(dim) + np.einsum("k,ki,kj->ij", law[1:5], axes, axes)
    assert np.allclose(shrink, covariance @ np.linalg.inv(whole), atol=1e-3 if dim > 3 else 1e-5)
    expected = 256 * np.sqrt(sigma_sq**dim / np.linalg.det(whole))
    assert np.isclose(law[-5], expected, rtol=1e-2 if dim > 3 else 1e-5)


@pytest.mark.slow
def test_cumulants_are_those_of_the_nodes_rows():
    rows = np.random.default_rng(1).gamma(2.0, size=(6000, 3)).astype(np.float32)
    clusters, index = build_clusters(rows - rows.mean(axis=0)), index_table(3)
    table = NormalNodes(clusters).cumulants.reshape(-1, len(index), 8)
    ordered = np.float64((rows - rows.mean(axis=0))[clusters.order])
    for level, number in ((1, 0), (1, 23), (2, 0), (2, 2)):  # the last ones are shorter
        span = 32 * 8**level
        step = ordered[number * span : (number + 1) * span]
        step = step - step.mean(axis=0)
        covariance = step.T @ step / len(step)
        found = table[(clusters.offsets[level] + number) // 8 - clusters.offsets[1] // 8, :, number % 8]
        for (i, j, k, m), value in zip(index, found, strict=True):
            expected = np.mean(step[:, i] * step[:, j] * step[:, k] * (1 if m < 0 else step[:, m]))
            if m >= 0:
                expected -= covariance[i, j] * covariance[k, m]
                expected -= covariance[i, k] * covariance[j, m] + covariance[i, m] * covariance[j, k]
            assert np.isclose(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_cumulants_lower_the_error_of_nodes():
    reference = Reference(np.random.default_rng(1).gamma(2.0, size=(6000, 3)))
    (block,) = reference.blocks()
    with_series = errors(reference, 0.1, 0.9, 1e-3)
    block.normals.series = ()
    assert np.median(with_series) < np.median(errors(reference, 0.1, 0.9, 1e-3)) / 3


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_FAMILY)
@pytest.mark.parametrize("beta_sq", [0.9, 0.3, 0.03, 1e-3])
def test_a_small_threshold_is_exact(name, beta_sq):
    rows = FAMILIES[name](np.random.default_rng(1), 5000)
    if rows.shape[1] > 32:
        pytest.skip("no second moments are kept in so many columns")
    reference = Reference(rows)
    assert errors(reference, 1 - beta_sq, beta_sq, 1e-12, n=64).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_the_share_over_the_tolerance_is_what_is_stated(name):
    rows = FAMILIES[name](np.random.default_rng(1), 6000)
    if rows.shape[1] > 32:
        pytest.skip("no second moments are kept in so many columns")
    reference, flow = Reference(rows), Flow(SCHEDULE, num_evaluations=5)
    measured = fit_certificate(reference, flow, tolerance=TOLERANCE)
    latents = torch.from_numpy(np.random.default_rng(11).standard_normal((256, rows.shape[1])))
    effort = Effort()
    found = label_batch(latents, reference, flow, tolerance=TOLERANCE, effort=effort, measured=measured)
    exact = label_batch(latents, reference, flow, backend="dense")
    error = (found - exact).norm(dim=1) / (TOLERANCE * reference.scale)
    assert effort.bounded == 0
    for multiple, share in zip(MULTIPLES, SHARES, strict=True):
        assert int((error > multiple).sum()) <= stats.binom.ppf(1 - 1e-4, len(latents), 1 - share)


@pytest.mark.slow
def test_labels_differ_little_from_those_by_the_bound_and_sum_fewer_pairs():
    rows, latents = mixture(1, 40_000), np.random.default_rng(2).standard_normal((256, 2))
    exact = label_latents(latents, rows, t_min=1e-3, tolerance=0.0, backend="dense")
    efforts = {name: Effort() for name in ("bound", "measured")}
    error = {
        name: np.linalg.norm(label_latents(latents, rows, t_min=1e-3, certificate=name, effort=effort) - exact, axis=1)
        for name, effort in efforts.items()
    }
    assert np.median(error["measured"]) < TOLERANCE
    assert np.quantile(error["measured"], 0.9) < 10 * TOLERANCE
    assert efforts["measured"].pairs < efforts["bound"].pairs
    assert efforts["measured"].measured == 21  # of one row each, in turn
    assert efforts["measured"].bounded == 0


@pytest.mark.slow
def test_a_certificate_of_another_table_is_caught():
    latents = torch.from_numpy(np.random.default_rng(2).standard_normal((64, 2)))
    flow = Flow(SCHEDULE)
    measured = fit_certificate(Reference(mixture(1)), flow, tolerance=TOLERANCE)
    drifted = Reference(np.random.default_rng(5).integers(0, 40, (20_000, 2)).astype(float) ** 2)
    loose = dataclasses.replace(measured, thresholds=tuple(64 * value for value in measured.thresholds))
    effort = Effort()
    ends = label_batch(latents, drifted, flow, tolerance=TOLERANCE, effort=effort, measured=loose)
    assert effort.over > most_over(effort.measured)
    assert effort.bounded == len(latents)
    assert torch.equal(ends, label_batch(latents, drifted, flow, tolerance=TOLERANCE))


@pytest.mark.slow
def test_a_row_has_its_own_bits_whatever_is_beside_it():
    reference, flow = Reference(mixture(1)), Flow(SCHEDULE)
    measured = fit_certificate(reference, flow, tolerance=TOLERANCE)
    latents = torch.from_numpy(np.random.default_rng(2).standard_normal((200, 2)))
    together = label_batch(latents, reference, flow, tolerance=TOLERANCE, measured=measured)
    apart = [label_batch(part, reference, flow, tolerance=TOLERANCE, measured=measured) for part in latents.split(67)]
    assert torch.equal(together, torch.cat(apart))
    again = fit_certificate(Reference(mixture(1)), flow, tolerance=TOLERANCE)
    assert again == measured
    assert Measured.from_record(measured.to_record()) == measured


def test_thresholds_between_times_are_the_lower_ones():
    measured = Measured(1e-3, (0.9, 0.5, 0.1), (3e-4, 1e-4, 2e-4), (2e-3, 6e-3, 4e-3))
    assert measured.threshold(0.5) == 1e-4
    assert measured.threshold(0.7) == measured.threshold(0.2) == 1e-4
    assert measured.threshold(0.95) == measured.threshold(0.05) == 0
    assert (measured.expected_at(0.9), measured.expected_at(0.7), measured.expected_at(0.2)) == (2e-3, 6e-3, 6e-3)
    assert measured.expected_at(0.95) == measured.expected_at(0.05) == 1e-3


def test_a_record_of_an_earlier_plan_expects_the_tolerance_at_all_times():
    record = {"seed": 0, "quantile": 0.99, "confidence": 0.95, "tolerance": 1e-3, "beta_sq": [0.9, 0.5],
              "thresholds": [3e-4, 1e-4], "num_fresh": 512, "num_over": [0, 1], "largest": 9e-4}  # fmt: skip
    measured = Measured.from_record(record)
    assert measured.expected == (1e-3, 1e-3)
    assert measured.thresholds == (3e-4, 1e-4)


def test_limits_of_a_share():
    assert share_limit(NUM_FRESH, NUM_FRESH) == 1
    assert share_limit(0, 512) == pytest.approx(1 - 0.05 ** (1 / 512))
    assert share_limit(1, 512) < 0.01 < share_limit(2, 512)
    assert share_limit(12, NUM_FRESH) < 1 - SHARES[1] < share_limit(13, NUM_FRESH)


@pytest.mark.parametrize(
    ("rows", "given", "words"),
    [
        (np.zeros((100, 2)), {}, "pays from 4096 rows on"),
        (np.random.default_rng(0).standard_normal((5000, 40)), {}, "up to 32 columns"),
        (np.random.default_rng(0).standard_normal((5000, 2)), {"tolerance": 0.0}, "a tolerance above 0"),
        (np.random.default_rng(0).standard_normal((5000, 2)), {"solver_tolerance": 1e-3}, "times that all rows share"),
        (np.random.default_rng(0).standard_normal((5000, 2)), {"dtype": torch.float64}, "works in float32 on the CPU"),
    ],
)
def test_what_it_does_not_serve_is_refused(rows, given, words):
    with pytest.raises(ValueError, match=words):
        label_latents(np.zeros((4, rows.shape[1])), rows, certificate="measured", **given)


@pytest.mark.slow
def test_a_row_far_from_the_others_of_its_node_is_not_lost():
    rng = np.random.default_rng(4)
    # With the far row 4096 rows are two nodes of 2048, apart from the others, among which the greedy descent ends.
    near, others = 0.05 * rng.standard_normal((4095, 2)), [2.9, 0] + 0.05 * rng.standard_normal((4096, 2))
    rows = np.vstack([near, [[0.9, 0]], others])
    reference = Reference(rows, sigma_data=1.0)
    place = torch.tensor([[1.8, 0.0]]) - reference.center.float()
    given = {"alpha": 1.0, "beta_sq": 0.01, "variance": False}
    exact = posterior_moments(place, reference, backend="dense", **given).mean
    found = posterior_moments(place, reference, backend="sparse", tolerance=TOLERANCE, threshold=1e-4, **given).mean
    assert torch.allclose(found, exact, atol=1e-3)


@pytest.mark.slow
def test_a_row_that_opens_too_many_nodes_goes_by_the_bound(monkeypatch):
    reference, given = Reference(mixture(1)), {"alpha": 0.7, "beta_sq": 0.3, "variance": False}
    place = states(reference, 0.7, 0.3, 32, 4)
    bound = posterior_moments(place, reference, backend="sparse", tolerance=TOLERANCE, **given)
    monkeypatch.setattr("sfg_dist.flow.posterior.cpu.normal_engine._room", threading.local())
    monkeypatch.setattr("sfg_dist.flow.posterior.cpu.normal_engine.MOST_OPEN", 16)
    found = posterior_moments(place, reference, backend="sparse", tolerance=TOLERANCE, threshold=1e-9, **given)
    assert torch.equal(found.mean, bound.mean)
