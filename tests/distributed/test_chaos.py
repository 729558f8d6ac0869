"""The chaos harness at a size for every day; `chaos.py` itself runs any number of shards and seeds."""

import subprocess
import sys
from pathlib import Path

import pytest
from patience import patience

CHAOS = Path(__file__).with_name("chaos.py")


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
def test_nothing_is_lost_and_nothing_double_under_every_kind_of_fault():
    command = [sys.executable, str(CHAOS), "--shards", "16", "--actors", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(540))
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("seed 0")]
    assert "16 shards, 10 faults" in line
    for kind in ("nan", "hang", "stopped actor", "actor dies", "failing write", "two drivers", "full disk", "SIGKILL"):
        assert kind in line
