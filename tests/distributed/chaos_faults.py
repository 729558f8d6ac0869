"""The faults of chaos.py: which there are, how a seed spreads them over the shards, and a labeler that has them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from sfg_dist.distributed.labels.labeler import ShardLabeler
from sfg_dist.job.errors import NonFiniteLabelError, StoreFullError, StoreUnavailableError
from sfg_dist.store import Pairs
from sfg_dist.store.location import Location

# Of 40 faults. From inside: on a shard of their own. From outside: when so many shards are committed.
INSIDE = {"nan": 4, "hang": 2, "stopped actor": 2, "actor dies before its commit": 2, "failing write": 10}
OUTSIDE = {"SIGKILL of an actor": 12, "SIGKILL of the driver": 4, "two drivers": 2, "full disk": 2}
SHARDS_PER_FAULT = 5
SHARD_S = 0.1


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
        try:
            return super().label(shard, attempt)
        except StoreFullError:
            self.state.once("full disk hit")
            raise


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
