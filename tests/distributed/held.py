"""`sfg` that waits for its end at a known point, for tests that kill it there.

    python tests/distributed/held.py shards 3 label job.toml

labels three shards in this process and goes no further; `steps 20 train job.toml` trains twenty steps.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def held_sfg(*words: object, shards: int = 0, steps: int = 0) -> subprocess.Popen[bytes]:
    """The command in a process and a session of its own."""
    point = ["shards", str(shards)] if shards else ["steps", str(steps)]
    command = [sys.executable, __file__, *point, *map(str, words)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def wait_for(driver: subprocess.Popen[Any], condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something is so; the process must not end before."""
    from patience import patience  # which the script itself cannot see

    deadline = time.monotonic() + patience(seconds)
    while not condition():
        assert time.monotonic() < deadline
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.01)


def main() -> None:
    from sfg_dist.cli import main as cli
    from sfg_dist.distributed.labels.labeler import ShardLabeler
    from sfg_dist.model.trainer import Trainer

    kind, number = sys.argv.pop(1), int(sys.argv.pop(1))
    of, name = (ShardLabeler, "label") if kind == "shards" else (Trainer, "step")
    whole, calls = getattr(of, name), []

    def held(*arguments: Any, **keywords: Any) -> Any:
        if len(calls) == number:
            threading.Event().wait()
        calls.append(None)
        return whole(*arguments, **keywords)

    setattr(of, name, held)
    cli.main()


if __name__ == "__main__":
    main()
