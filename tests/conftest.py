"""Fixtures that the rooms share: a device, one Ray for the session, small jobs and stores."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="torch device that the flow's tests run on: cpu or cuda")


def pytest_configure(config):
    # A suite started in the background of a script inherits an ignored SIGINT, and would pass it on to the processes
    # that the tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def device(request):
    import torch

    name = request.config.getoption("--device")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.exit("--device cuda: torch sees no GPU on this machine", returncode=2)
    return torch.device(name)


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray of 4 CPUs and 2 made-up GPUs, started once; Ray only counts what it is told it has."""
    from sfg_dist.distributed.cluster import local_environment

    with local_environment():
        import ray

        ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        yield
        ray.shutdown()


@pytest.fixture
def make_job(tmp_path):
    """A small two-moons job in a directory of its own; keyword arguments are tables that override its keys."""

    def make(directory: str = "run", **tables: dict[str, Any]):
        from sfg_dist.config import resolve_job

        document: dict[str, Any] = {
            "data": {"source": "moons", "max_rows": 600},
            "labels": {
                "num_pairs": 1000,
                "shard_rows": 128,
                "batch_size": 64,
                "num_evaluations": 8,
                "t_min": 1e-3,
            },
            "train": {"width": 16, "depth": 1, "num_epochs": 2, "batch_size": 64},
            "evaluate": {"num_samples": 200},
            "executor": {"kind": "inline"},
            "output": {"dir": str(tmp_path / directory)},
        }
        for name, keys in tables.items():
            document[name] = document.get(name, {}) | keys
        return resolve_job(document)

    return make


@pytest.fixture
def make_store(make_job):
    """The (still empty) store of a small job."""

    def make(directory: str = "run", **tables: dict[str, Any]):
        from sfg_dist.pipeline import Pipeline

        return Pipeline(make_job(directory, **tables))._open_store()

    return make


@pytest.fixture
def store_bytes():
    """Array bytes, plan and digests of a store: what two bit-equal stores share."""

    def read(path: Path) -> dict[str, Any]:
        import sfg_dist

        pairs = sfg_dist.open_pairs(path)
        objects = {
            str(file.relative_to(pairs.location.root)): file.read_bytes()
            for name in ("latents", "labels", "reference")
            for file in sorted((pairs.location.root / name).rglob("*"))
            if file.is_file()
        }
        digests = [pairs.commit_record(shard)["objects"] for shard in range(pairs.plan.num_shards)]
        return {"objects": objects, "digests": digests, "plan": pairs.plan.identity}

    return read


@pytest.fixture(scope="session")
def moons() -> np.ndarray:
    """Two moons, noise 0.05, standardised, 2000 rows: the case of the accuracy figures."""
    from sklearn.datasets import make_moons

    rows, _ = make_moons(2000, noise=0.05, random_state=0)
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)
