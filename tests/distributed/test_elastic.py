"""Another number of workers in the middle of a fit: a rank that dies, a node that comes and goes."""

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import patience
from test_training import make_settings, weights

from sfg_dist.distributed import training
from sfg_dist.distributed.training import fit_inline, fit_with_workers
from sfg_dist.model.fit import Trainer


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_rank_of_two_is_replaced_and_one_rank_may_go_on_from_there(ray_cluster, url, tmp_path, monkeypatch):
    worker = training._ray_worker
    marker = tmp_path / "killed"

    def dying_worker(config):
        step = Trainer.step

        def step_or_die(self, latents, labels, global_rows, done):
            if torch.distributed.get_rank() == 1 and self.progress.step == 20 and not marker.exists():
                marker.write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, latents, labels, global_rows, done)

        Trainer.step = step_or_die
        worker(config)

    monkeypatch.setattr(training, "_ray_worker", dying_worker)
    settings = make_settings(checkpoint_interval_s=0.0, num_epochs=2, learning_rate_schedule="constant")
    _, history = fit_with_workers(url, tmp_path / "c", settings, num_workers=2, use_gpu=False)
    assert marker.exists()
    assert [entry["step"] for entry in history] == [15, 30]
    longer = make_settings(num_epochs=3, learning_rate_schedule="constant")
    model, history = fit_inline(url, tmp_path / "c", longer)
    assert [entry["step"] for entry in history] == [15, 30, 45]
    alone, _ = fit_inline(url, tmp_path / "alone", longer)
    # The same global batches, so the same fit up to the order in which two ranks add up a gradient.
    torch.testing.assert_close(weights(model), weights(alone), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_elastic_fit_takes_a_node_that_comes_and_outlives_its_loss(make_store, tmp_path):
    """One worker, two when a second node is there, one again when it is lost; each goes on where the last one was."""
    pairs = make_store(labels={"num_pairs": 40_960, "shard_rows": 4096, "batch_size": 1024})
    for shard in range(pairs.plan.num_shards):
        rows = np.random.default_rng(shard).standard_normal((4096, 2)).astype(np.float32)
        pairs.write_shard(shard, rows, 2 * rows)
    settings = make_settings(batch_size=32, num_epochs=100_000, max_time_s=60.0, checkpoint_interval_s=1.0)
    script = Path(__file__).parent / "elastic.py"
    done = subprocess.run(
        [sys.executable, str(script), pairs.location.url, str(tmp_path / "c"), json.dumps(asdict(settings))],
        capture_output=True, text=True, timeout=patience(500),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    workers = [number for number, _ in itertools.groupby(seen["workers"])]
    assert workers == [1, 2, 1]
    epochs = seen["history"]
    assert [entry["epoch"] for entry in epochs] == list(range(1, len(epochs) + 1))
    # Every whole epoch is 1152 batches, also those in which the number of workers changed.
    assert {two["step"] - one["step"] for one, two in itertools.pairwise(epochs[:-1])} == {1152}
