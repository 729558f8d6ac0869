"""One run under faults injected at random from a seed: nothing may be lost, nothing made twice.

    python tests/distributed/chaos.py --shards 200 --seeds 3

Drivers are processes of their own, with four actors each, on a Ray that stays up between the seeds. Some faults come
from a labeler that fails on purpose on the shards that the seed names, once each; the others from outside, by signals,
each when so many shards are committed: the labelers hold there until it has happened. Where the system lets it, the
stores of even seeds are on small file systems in memory, and their disk is full in earnest; for the others the error is
made up. Afterwards the store must be clean by its own ``verify``, and bit-equal to one that was never disturbed, with
one commit a shard, and every planned fault must have happened.
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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from chaos_faults import ChaosLabeler, State, plan_faults

from sfg_dist.store import Pairs, open_pairs, sweep_partials, verify

SHARD_ROWS, BATCH_SIZE = 64, 64
SLOWNESS = float(os.environ.get("SFG_TEST_SLOWNESS", "1"))  # tests/patience.py measures it
TIMEOUT_S = 20.0 * SLOWNESS  # of a shard; longer than a driver takes to start, because labelers hold meanwhile
PATIENCE_S = 240.0 * SLOWNESS  # for anything that the harness waits for
STOPPED = 130
DISK_BYTES = 64 << 20  # of a small file system
FILLER = "filler"


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
                has_begun = self.state.path(f"driver-{driver.pid}").exists()
                driver.send_signal(signal.SIGTERM)
                code = driver.wait(PATIENCE_S)
                # One that took the place of a killed driver a moment ago may not have come to its own handler yet.
                fine = code == STOPPED or (code == -signal.SIGTERM and not has_begun)
                assert fine, f"a driver asked to stop ended with {code}:\n{self.log.read_text()[-3000:]}"
            self.start_driver()
            started = self.state.path(f"driver-{self.drivers[-1].pid}")
            self.wait_for(started.exists, "the second driver's first actor")
        else:
            hit = self.state.path("full disk hit")
            hit.unlink(missing_ok=True)
            with self.full_disk():
                self.state.write("hold", math.inf)
                self.wait_for(hit.exists, "a write that finds the disk full")
                time.sleep(0.5)

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """Within, the store's disk is full: in earnest where the store has one of its own."""
        filler = Path(self.pairs.location.url) / FILLER
        if os.path.ismount(filler.parent):
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(1 << 12)):
                    pass
            assert shutil.disk_usage(filler.parent).free == 0, "the disk did not become full"
        else:
            filler = self.state.path("full")
            self.state.write("full", True)
        yield
        filler.unlink()

    def check(self, undisturbed: Pairs) -> None:
        """Nothing lost, nothing double, the bytes of an undisturbed store.

        Raises:
            AssertionError: anything else.
        """
        total = self.pairs.plan.num_shards
        keys = [entry.key for entry in self.pairs.location.list("commits")]
        assert len(keys) == len(set(keys)) == total, "not one commit a shard"
        report = verify(self.pairs)
        assert report.is_clean, "\n".join(map(str, report.findings))
        assert not report.pending, f"pending: {report.pending}"
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
    from sfg_dist.job.config import resolve_job
    from sfg_dist.pipeline.pipeline import Pipeline

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
    return Pipeline(resolve_job(job)).open_store()


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """Within, a directory is a small file system of its own; False where the system does not let it be one."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    is_mounted = shutil.which("mount") is not None and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def running_ray(num_cpus: int) -> Iterator[str]:
    """A Ray of its own, whose address and token reach the drivers; it only counts CPUs."""
    from sfg_dist.distributed.cluster import local_environment

    # Workers import what stands beside this file, as no driver brings its own directory.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    # Else Ray starts a worker a CPU for this process, which needs none.
    with local_environment({"PYTHONPATH": path, "RAY_prestart_worker_first_driver": "0"}):
        import ray

        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()


def drive(url: str, address: str, num_actors: int) -> int:
    """A driver: what the harness starts, kills and starts again."""
    from sfg_dist.distributed.cluster import ray_session
    from sfg_dist.distributed.labels.actors import label_with_actors
    from sfg_dist.distributed.labels.events import LabelEvent
    from sfg_dist.distributed.labels.pool import Policy
    from sfg_dist.distributed.labels.settings import LabelSettings
    from sfg_dist.job.config import ExecutorConfig

    state, pairs = State(Path(url).parent), open_pairs(url)

    def on_event(event: LabelEvent) -> None:
        if event.name == "worker_started":
            state.once(f"driver-{os.getpid()}")
        print(os.getpid(), event.name, json.dumps(event.details()), flush=True)

    # Shards are short, and some of them meet several faults.
    policy = Policy(
        shard_timeout_s=TIMEOUT_S, max_attempts=8, full_wait_s=30.0 * SLOWNESS, refresh_s=1.0, seed=os.getpid()
    )
    try:
        with ray_session(address):
            sweep_partials(pairs)
            executor = ExecutorConfig(num_actors=num_actors).model_copy(update={"num_gpus_per_actor": 0})
            settings = LabelSettings(labeler=ChaosLabeler, on_event=on_event, policy=policy)
            label_with_actors(url, executor, settings)
            sweep_partials(pairs)
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
    from sfg_dist.distributed.labels.inline import label_inline

    with tempfile.TemporaryDirectory() as place, running_ray(4 * arguments.actors) as address:
        undisturbed = make_store(Path(place) / "undisturbed", arguments.shards)
        label_inline(undisturbed.location.url)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            directory = Path(place) / f"seed-{seed}"
            disk = small_disk(directory / "pairs.zarr") if seed % 2 == 0 else contextlib.nullcontext(False)
            with disk as is_disk:
                make_store(directory, arguments.shards)
                harness = Harness(directory, address, arguments.actors, seed)
                begun = time.monotonic()
                harness.run()
                harness.check(undisturbed)
            told = ", ".join(f"{count} x {kind}" for kind, count in sorted(harness.happened.items()))
            print(
                f"seed {seed}: {arguments.shards} shards, {harness.happened.total()} faults ({told}), the disk full "
                f"{'in earnest' if is_disk else 'by injection'}: nothing lost, nothing double, verify clean, in "
                f"{time.monotonic() - begun:.0f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
