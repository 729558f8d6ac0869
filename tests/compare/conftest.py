"""A clock that counts, so that fits take the same steps on any machine, and a Gaussian whose law is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch


class CountingClock:
    """Seconds that pass by one a look; a fit looks twice a step."""

    def __init__(self):
        self.looks = 0

    def __call__(self):
        self.looks += 1
        return float(self.looks)


class Gaussian:
    """N(mean, C) in two columns."""

    mean = np.array([0.3, -0.2])
    covariance = np.array([[1.0, 0.7], [0.7, 0.8]])

    def rows(self, num_rows, seed):
        drawn = np.random.default_rng(seed).multivariate_normal(self.mean, self.covariance, num_rows)
        return torch.from_numpy(drawn.astype(np.float32))

    def log_density(self, rows):
        centred = rows.double().numpy() - self.mean
        quadratic = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(self.covariance), centred)
        return -0.5 * (quadratic + math.log(np.linalg.det(self.covariance)) + 2 * math.log(2 * math.pi))


@pytest.fixture
def clock():
    return CountingClock()


@pytest.fixture
def gaussian():
    return Gaussian()


@pytest.fixture
def make_compare_job(make_job, monkeypatch):
    """A job of few rows whose methods take few steps, have few figures, and are timed but once, on few rows."""
    from sfg_dist.studies.compare import judged, judging, run
    from sfg_dist.studies.compare.peers import flow_matching, score_matching

    for module, name, number in (
        (score_matching, "NUM_SDE_STEPS", 60),
        (score_matching, "NUM_ODE_STEPS", 10),
        (score_matching, "NUM_LIKELIHOOD_STEPS", 8),
        (flow_matching, "NUM_LIKELIHOOD_STEPS", 8),
        (run, "MARKS", (0.5,)),
        (judged, "SHOWN_FIGURES", ("shape", "c2st_trees_held_out", "attack_auc")),
    ):
        monkeypatch.setattr(module, name, number)
    monkeypatch.setattr(judging, "TIMED_S", 0.0)
    monkeypatch.setattr(judging, "TIMED_ROWS", 256)

    def make(directory="run", **tables):
        keys = {
            "data": {"source": "moons", "max_rows": 1500},
            "labels": {"num_pairs": 256},
            "train": {"width": 16, "depth": 1, "num_epochs": 2, "batch_size": 64},
            "evaluate": {"num_samples": 150, "metrics": ["c2st_auc", "marginal_kl_mean"]},
            "compare": {"max_time_s": 3.0, "selection_time_s": 0, "num_threads": 1},
        }
        for name, changed in tables.items():
            keys[name] = keys.get(name, {}) | changed
        return make_job(directory, **keys)

    return make
