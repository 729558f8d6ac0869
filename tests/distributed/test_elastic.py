"""Another number of workers in the middle of a fit: a node that comes and goes."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import patience
from test_training import make_settings

from sfg_dist.distributed.fit.checkpoints import newest_step
from sfg_dist.distributed.fit.training import fit_inline

EPOCH_STEPS = 1152


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
def test_an_elastic_fit_takes_a_node_that_comes_and_outlives_its_loss(make_store, tmp_path):
    """One worker, two when a second node is there, one again when it is lost; each goes on where the last one was."""
    pairs = make_store(labels={"num_pairs": 40_960, "shard_rows": 4096, "batch_size": 1024})
    for shard in range(pairs.plan.num_shards):
        rows = np.random.default_rng(shard).standard_normal((4096, 2)).astype(np.float32)
        pairs.write_shard(shard, rows, 2 * rows)
    settings = make_settings(batch_size=32, num_epochs=100_000, checkpoint_interval_s=1.0)
    script = Path(__file__).parent / "elastic.py"
    done = subprocess.run(
        [sys.executable, str(script), pairs.location.url, str(tmp_path / "c"), settings.model_dump_json()],
        capture_output=True, text=True, timeout=patience(500),
    )  # fmt: skip
    # What the process ends with is Ray's affair: its thread goes on with the fit while Ray is shut down.
    told = re.search(r"^workers: (.+)$", done.stdout, re.MULTILINE)
    assert told, done.stderr[-2000:]
    assert [number for number, _ in itertools.groupby(json.loads(told[1]))] == [1, 2, 1]
    # The last epochs are done here: the history has all of them then.
    settings = settings.model_copy(update={"num_epochs": newest_step(tmp_path / "c") // EPOCH_STEPS + 2})
    _, epochs = fit_inline(pairs.location.url, tmp_path / "c", settings)
    assert [entry["epoch"] for entry in epochs] == list(range(1, len(epochs) + 1))
    # Every whole epoch is so many batches, also those in which the number of workers changed.
    assert {two["step"] - one["step"] for one, two in itertools.pairwise([{"step": 0}, *epochs])} == {EPOCH_STEPS}
