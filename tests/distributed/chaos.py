"""One run under faults injected at random from a seed: nothing may be lost, nothing made twice.

    python tests/distributed/chaos.py --shards 200 --seeds 3

Drivers are processes of their own, with four actors each, on a Ray that stays up between the seeds. Some faults come
from a labeler that fails on purpose on the shards that the seed names, once each; the others from outside, by signals,
each when so many shards are committed: the labelers hold there until it has happened. Afterwards the store must be
bit-equal to one that was never disturbed, with one commit a shard, and every planned fault must have happened.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sfg_dist.distributed.labeler import ShardLabeler
from sfg_dist.errors import NonFiniteLabelError, StoreFullError, StoreUnavailableError
from sfg_dist.store import Pairs, open_pairs
from sfg_dist.store.location import Location

# Of 40 faults. From inside: on a shard of their own. From outside: when so many shards are committed.
INSIDE = {"nan": 4, "hang": 2, "stopped actor": 2, "actor dies before its commit": 2, "failing write": 10}
OUTSIDE = {"SIGKILL of an actor": 12, "SIGKILL of the driver": 4, "two drivers": 2, "full disk": 2}
SHARDS_PER_FAULT = 5
SHARD_ROWS, BATCH_SIZE = 64, 64
TIMEOUT_S = 20.0  # of a shard; longer than a driver takes to start, because labelers hold meanwhile
PATIENCE_S = 240.0  # for anything that the harness waits for
SHARD_S = 0.1
STOPPED = 130


class ChaosLocation(Location):
    """A place that fails, or ends its process, when told to before it creates an object; it notes commits it makes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.fails_at: str | None = None
        self.kills_at: str | None = None

    def create(self, key: str, content: bytes) -> bool:
        if self.fails_at is not None and key.startswith(self.fails_at):
            self.fails_at = None
            raise StoreUnavailableError(f"{key}: injected")
        if self.kills_at is not None and key.startswith(self.kills_at):
            os.kill(os.getpid(), signal.SIGKILL)
        is_new = super().create(key, content)
        if is_new and key.startswith("commits/"):
            with (Path(self.url).parent / "made").open("a") as file:
                file.write(f"{key}\n")
        return is_new


class ChaosLabeler(ShardLabeler):
    """Fails on purpose, once on each shard that the plan of faults names."""

    def __init__(self, url: str, *, num_threads: int = 1) -> None:
        super().__init__(url, num_threads=num_threads)
        self.place = ChaosLocation(url)
        self.pairs = Pairs(self.place, self.plan)
        self.state = State(Path(url).parent)
        self.faults = {int(shard): kind for shard, kind in self.state.read("faults").items()}
        self.state.note_actor()

    def label(self, shard: int, attempt: int = 1) -> dict[str, Any]:
        kind = self.faults.get(shard)
        if kind is not None and not self.state.once(f"{kind} {shard}"):
            kind = None
        time.sleep(SHARD_S)
        self.state.hold(self.pairs)
        if kind == "nan":
            raise NonFiniteLabelError(f"shard {shard}: injected")
        if kind == "hang":
            time.sleep(3600)
        if kind == "stopped actor":
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "failing write":
            self.place.fails_at = random.Random(shard).choice(("latents/", "labels/", "commits/"))
        if kind == "actor dies before its commit":
            self.place.kills_at = "commits/"
        if self.state.path("full").exists():
            self.state.once("full disk hit")
            raise StoreFullError("no space left on the device: injected")
        return super().label(shard, attempt)


class State:
    """What harness, drivers and actors tell each other: files beside the store.

    Args:
        directory: where they are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str) -> Path:
        return self.directory / "chaos" / name.replace(" ", "_")

    def read(self, name: str) -> Any:
        return json.loads(self.path(name).read_text())

    def write(self, name: str, value: Any) -> None:
        self.path(name).parent.mkdir(exist_ok=True, parents=True)
        part = self.path(f"{name}.part")
        part.write_text(json.dumps(value))
        part.replace(self.path(name))

    def once(self, name: str) -> bool:
        """Note that something happens; False where it has happened before."""
        with contextlib.suppress(FileExistsError):
            self.path(name).touch(exist_ok=False)
            return True
        return False

    def hold(self, pairs: Pairs) -> None:
        """Wait while as many shards are committed as the harness wants for its next fault."""
        while len(list((Path(pairs.location.url) / "commits").glob("*.json"))) >= self.read("hold"):
            time.sleep(0.02)

    def note_actor(self) -> None:
        self.write(f"actor-{os.getpid()}", psutil.Process().create_time())

    def actors(self) -> list[psutil.Process]:
        """Actors that are alive."""
        found = []
        for file in self.path("").glob("actor-*[0-9]"):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(file.name.rpartition("-")[2]))
                if process.create_time() == json.loads(file.read_text()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def plan_faults(num_shards: int, seed: int) -> tuple[dict[int, str], list[tuple[int, str]]]:
    """Faults from inside by shard, and from outside with the number of commits at which they come."""
    total = max(len(INSIDE) + len(OUTSIDE), num_shards // SHARDS_PER_FAULT)
    weights = {**INSIDE, **OUTSIDE}
    counts = {kind: max(1, round(total * weight / sum(weights.values()))) for kind, weight in weights.items()}
    counts["SIGKILL of an actor"] = max(1, counts["SIGKILL of an actor"] + total - sum(counts.values()))
    chance = random.Random(seed)
    inside = [kind for kind in INSIDE for _ in range(counts[kind])]
    outside = [kind for kind in OUTSIDE for _ in range(counts[kind])]
    chance.shuffle(outside)
    shards = chance.sample(range(num_shards), len(inside))
    at = sorted(chance.sample(range(1, max(len(outside) + 1, num_shards - 8)), len(outside)))
    return dict(zip(shards, inside, strict=True)), list(zip(at, outside, strict=True))


class Harness:
    """One seed: the drivers, the faults, and the check of what is left.

    Args:
        directory: of this run; holds an empty store.
        address: of the running Ray.
        num_actors: of each driver.
        seed: of the faults.
    """

    def __init__(self, directory: Path, address: str, num_actors: int, seed: int) -> None:
        self.pairs = open_pairs(directory)
        self.state = State(directory)
        self.command = [sys.executable, __file__, "drive", str(self.pairs.location.url), address, str(num_actors)]
        self.log = directory / "drivers.log"
        self.chance = random.Random(seed + 1)
        self.inside, self.outside = plan_faults(self.pairs.plan.num_shards, seed)
        self.drivers: list[subprocess.Popen[bytes]] = []
        self.happened: collections.Counter[str] = collections.Counter()

    def run(self) -> None:
        """Have the store labelled under faults.

        Raises:
            AssertionError: a driver failed, something took too long, or a planned fault never happened.
        """
        self.state.write("hold", 0)
        self.state.write("faults", self.inside)
        self.start_driver()
        try:
            for at, kind in self.outside:
                self.state.write("hold", at)
                self.wait_for(lambda at=at: len(self.pairs.committed()) >= at, f"{at} commits")
                self.act(kind)
                self.happened[kind] += 1
            self.state.write("hold", math.inf)
            self.wait_for(lambda: all(driver.poll() is not None for driver in self.drivers), "the end of the drivers")
        finally:
            for driver in self.drivers:
                driver.kill()
                driver.wait()
        for kind in self.inside.values():
            self.happened[kind] += 0
        for shard, kind in self.inside.items():
            self.happened[kind] += self.state.path(f"{kind} {shard}").exists()
        planned = collections.Counter([*self.inside.values(), *(kind for _, kind in self.outside)])
        assert self.happened == planned, f"planned {dict(planned)}, happened {dict(self.happened)}"

    def start_driver(self) -> None:
        with self.log.open("ab") as log:
            driver = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        self.drivers.append(driver)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            for driver in self.drivers:
                assert driver.poll() in (None, 0), f"a driver failed:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def act(self, kind: str) -> None:
        if kind == "SIGKILL of an actor":
            self.wait_for(lambda: bool(self.state.actors()), "an actor")
            self.chance.choice(self.state.actors()).kill()
        elif kind == "SIGKILL of the driver":
            driver = self.drivers.pop(0)
            driver.kill()
            driver.wait()
            self.start_driver()
        elif kind == "two drivers":
            if len(self.drivers) > 1:  # one of them is asked to stop, and must within seconds
                driver = self.drivers.pop()
                driver.send_signal(signal.SIGTERM)
                assert driver.wait(PATIENCE_S) in (0, STOPPED), self.log.read_text()[-3000:]
            self.start_driver()
            started = self.state.path(f"driver-{self.drivers[-1].pid}")
            self.wait_for(started.exists, "the second driver's first actor")
        else:
            hit = self.state.path("full disk hit")
            hit.unlink(missing_ok=True)
            self.state.write("full", True)
            self.state.write("hold", math.inf)
            self.wait_for(hit.exists, "a write that finds the disk full")
            time.sleep(0.5)
            self.state.path("full").unlink()

    def check(self, undisturbed: Pairs) -> None:
        """Nothing lost, nothing double, the bytes of an undisturbed store.

        Raises:
            AssertionError: anything else.
        """
        total = self.pairs.plan.num_shards
        keys = [entry.key for entry in self.pairs.location.list("commits")]
        assert len(keys) == len(set(keys)) == total, "not one commit a shard"
        made = collections.Counter((self.log.parent / "made").read_text().split())
        assert max(made.values()) == 1, "a commit was made twice"
        for shard in range(total):
            record, expected = self.pairs.commit_record(shard), undisturbed.commit_record(shard)
            assert None not in (record, expected), f"shard {shard} has no commit"
            start, stop = self.pairs.plan.shard_range(shard)
            for name in ("latents", "labels"):
                rows = np.ascontiguousarray(self.pairs.group[name][start:stop])  # type: ignore[index]
                digest = hashlib.sha256(rows.data).hexdigest()
                assert digest == record["objects"][name]["sha256"], f"shard {shard}: {name} are not the committed ones"
                assert record["objects"][name] == expected["objects"][name], f"shard {shard}: {name} differ"
        for name in ("latents", "labels"):
            paths = [Path(pairs.location.url) / name for pairs in (self.pairs, undisturbed)]
            mine, theirs = ({f.relative_to(p): f.read_bytes() for f in p.rglob("*") if f.is_file()} for p in paths)
            assert mine == theirs, f"{name}: other objects than in the undisturbed store"


def make_store(directory: Path, num_shards: int) -> Pairs:
    """An empty store of a small job."""
    from sfg_dist.config import resolve_job
    from sfg_dist.pipeline import Pipeline

    job = {
        "data": {"source": "moons", "max_rows": 600},
        "labels": {
            "num_pairs": num_shards * SHARD_ROWS - 9,
            "shard_rows": SHARD_ROWS,
            "batch_size": BATCH_SIZE,
            "num_evaluations": 8,
        },
        "executor": {"kind": "inline"},
        "output": {"dir": str(directory)},
    }
    return Pipeline(resolve_job(job))._open_store()


@contextlib.contextmanager
def running_ray(num_cpus: int) -> Iterator[str]:
    """A Ray of its own, whose address and token reach the drivers; it only counts CPUs."""
    from sfg_dist.distributed.cluster import local_environment

    with local_environment():
        import ray

        ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()


def drive(url: str, address: str, num_actors: int) -> int:
    """A driver: what the harness starts, kills and starts again."""
    from sfg_dist.distributed.actors import label_with_actors
    from sfg_dist.distributed.cluster import ray_session
    from sfg_dist.distributed.pool import Policy

    state = State(Path(url).parent)

    def on_event(event: str, **details: Any) -> None:
        if event == "worker_started":
            state.once(f"driver-{os.getpid()}")
        print(os.getpid(), event, json.dumps(details), flush=True)

    # Shards are short, and some of them meet several faults.
    policy = Policy(shard_timeout_s=TIMEOUT_S, max_attempts=8, full_wait_s=30.0, refresh_s=1.0, seed=os.getpid())
    try:
        with ray_session(address):
            label_with_actors(
                url,
                num_actors=num_actors,
                num_gpus_per_actor=0,
                labeler=ChaosLabeler,
                on_event=on_event,
                policy=policy,
            )
    except KeyboardInterrupt:
        return STOPPED
    return 0


def main() -> int:
    if sys.argv[1:2] == ["drive"]:
        return drive(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--shards", type=int, default=40)
    options.add_argument("--seeds", type=int, default=1, help="how many")
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--actors", type=int, default=4)
    arguments = options.parse_args()
    from sfg_dist.distributed.inline import label_inline

    with tempfile.TemporaryDirectory() as place, running_ray(4 * arguments.actors) as address:
        undisturbed = make_store(Path(place) / "undisturbed", arguments.shards)
        label_inline(undisturbed.location.url)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            directory = Path(place) / f"seed-{seed}"
            make_store(directory, arguments.shards)
            harness = Harness(directory, address, arguments.actors, seed)
            begun = time.monotonic()
            harness.run()
            harness.check(undisturbed)
            told = ", ".join(f"{count} x {kind}" for kind, count in sorted(harness.happened.items()))
            print(
                f"seed {seed}: {arguments.shards} shards, {harness.happened.total()} faults ({told}): nothing lost, "
                f"nothing double, in {time.monotonic() - begun:.0f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
