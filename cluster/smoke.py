#!/usr/bin/env python3
"""A first look at a new site: run it before anything else, on as many nodes as a job will have.

    srun --nodes=2 --ntasks-per-node=1 python cluster/smoke.py SHARED_DIR      Slurm
    python cluster/smoke.py SHARED_DIR                                         one machine

SHARED_DIR is where output.dir will be. Every node takes part and they meet by files in it. Checked are: what each node
has; that of two nodes which create one file exactly one succeeds (by open and by link: shards are committed so), that a
renamed file is seen whole by others, and how soon; fsync; how far clocks are apart; bandwidth; that Ray starts and all
nodes join it. The last lines are the verdict, and the exit status is 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NUM_RACES = 100
BLOCK = 1 << 20
MEETING_S = 120.0
SLOW_VISIBLE_S, MAX_SKEW_S, SLOW_FSYNC_S, SLOW_MB_PER_S = 5.0, 5.0, 0.2, 50.0
LEAST_PYTHON = (3, 11)


class Meeting:
    """Nodes that meet by files in a directory that they share.

    Args:
        folder: of this run alone.
        rank: of this node.
        size: number of nodes.
    """

    def __init__(self, folder: Path, rank: int, size: int) -> None:
        self.folder, self.rank, self.size = folder, rank, size

    def say(self, topic: str, value: object) -> None:
        """Leave word for the others, whole."""
        path = self.folder / f"{topic}.{self.rank}"
        part = path.with_suffix(f"{path.suffix}.part")
        with open(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            json.dump(value, file)
        part.rename(path)

    def hear(self, topic: str, rank: int, patience_s: float = MEETING_S):
        """What another node said; waits for it."""
        path, deadline = self.folder / f"{topic}.{rank}", time.monotonic() + patience_s
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, ValueError):
                return json.loads(path.read_text(encoding="utf-8"))
            os.listdir(self.folder)  # some clients look again only so
            time.sleep(0.05)
        raise TimeoutError(f"node {rank} did not say {topic!r} within {patience_s:.0f} s: are all on one file system?")

    def hear_all(self, topic: str, patience_s: float = MEETING_S) -> list:
        """What everybody said, in order."""
        return [self.hear(topic, rank, patience_s) for rank in range(self.size)]

    def meet(self, topic: str, patience_s: float = MEETING_S) -> None:
        """Wait until everybody is here."""
        self.say(topic, True)
        self.hear_all(topic, patience_s)


def describe() -> dict:
    """What this node has."""
    gpus, total = [], None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
        gpus = [line.partition(" (UUID")[0] for line in listed.stdout.splitlines() if line.startswith("GPU")]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = {}
    for name in ("sfg_dist", "torch", "ray", "zarr"):
        with contextlib.suppress(Exception):
            from importlib.metadata import version

            packages[name] = version(name)
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": None if total is None else round(total / 2**30, 1),
        "gpus": gpus,
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "packages": packages,
        "tmp_free_gib": round(shutil.disk_usage(tempfile.gettempdir()).free / 2**30, 1),
    }


def race(meeting: Meeting) -> dict:
    """Which files this node was the first to create: by open, and by link."""
    won: dict = {"open": [], "link": []}
    own = meeting.folder / f"own.{meeting.rank}"
    own.write_text(str(meeting.rank))
    meeting.meet("race")
    for number in range(NUM_RACES):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(meeting.folder / f"open-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            won["open"].append(number)
        with contextlib.suppress(FileExistsError):
            os.link(own, meeting.folder / f"link-{number}")
            won["link"].append(number)
    return won


def visibility(meeting: Meeting) -> list:
    """Seconds until a renamed file of each other node was seen, and whether it was whole at once."""
    content = os.urandom(BLOCK)
    part = meeting.folder / f"seen.{meeting.rank}.part"
    meeting.meet("visibility")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.rename(meeting.folder / f"seen.{meeting.rank}")
    started, found = time.monotonic(), []
    for rank in range(meeting.size):
        path = meeting.folder / f"seen.{rank}"
        while not path.exists():
            if time.monotonic() - started > MEETING_S:
                return [*found, [None, False]]
            time.sleep(0.005)
        found.append([time.monotonic() - started, path.stat().st_size == BLOCK and len(path.read_bytes()) == BLOCK])
    return found


def clock(meeting: Meeting) -> float:
    """This node's clock less the file system's, seconds."""
    path = meeting.folder / f"clock.{meeting.rank}.probe"
    offsets = []
    for _ in range(5):
        before = time.time()
        path.write_bytes(os.urandom(16))
        after = time.time()
        offsets.append((before + after) / 2 - path.stat().st_mtime)
    return sorted(offsets)[2]


def disk(meeting: Meeting, megabytes: int) -> dict:
    """fsync of small files, bandwidth of a large one, written here and read by the next node."""
    times = []
    for number in range(10):
        with (meeting.folder / f"small-{meeting.rank}-{number}").open("wb") as file:
            file.write(b"x" * 4096)
            started = time.perf_counter()
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    block = os.urandom(BLOCK)
    started = time.perf_counter()
    with (meeting.folder / f"bulk-{meeting.rank}").open("wb") as file:
        for _ in range(megabytes):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    write_s = time.perf_counter() - started
    meeting.meet("large")
    other = meeting.folder / f"bulk-{(meeting.rank + 1) % meeting.size}"
    started, size = time.perf_counter(), 0
    with other.open("rb") as file:
        while chunk := file.read(8 * BLOCK):
            size += len(chunk)
    read_s = time.perf_counter() - started
    meeting.meet("read")
    (meeting.folder / f"bulk-{meeting.rank}").unlink()
    return {
        "fsync_s": sorted(times)[len(times) // 2],
        "write_mb_per_s": megabytes * BLOCK / 1e6 / write_s,
        "read_mb_per_s": size / 1e6 / read_s,
    }


def start_ray(meeting: Meeting) -> dict:
    """Start Ray with a token of this run, on the first node and then on the others; seconds until all are there."""
    ray = [sys.executable, "-P", "-m", "ray.scripts.scripts"]
    scratch = tempfile.mkdtemp(prefix="sfgsmoke-", dir="/tmp" if os.path.isdir("/tmp") else None)
    log, is_alone = Path(scratch, "ray.log"), meeting.size == 1
    started = time.monotonic()
    common = ["--disable-usage-stats", "--block", "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=1"]
    if meeting.rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        host = "127.0.0.1" if is_alone else own_address()
        head = {"address": f"{host}:{port}", "token": secrets.token_hex(32), "scratch": scratch}
        meeting.say("ray", head)
        # Ray opens the directory that it is given to everybody: that is one behind a door that only we pass.
        words = ["start", "--head", f"--node-ip-address={host}", f"--port={port}", "--include-dashboard=false",
                 f"--temp-dir={scratch}/r"]  # fmt: skip
    else:
        head = meeting.hear("ray", 0)
        own_folder(Path(head["scratch"]))  # Ray makes its directory at the same place on every node
        words = ["start", f"--address={head['address']}"]
        time.sleep(2.0)
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head["token"]}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # else a node that is ended waits half a minute
    # Nodes reach each other by their own addresses; one node alone listens on loopback.
    environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0" if is_alone else "1"
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = without_working_directory(environment["PYTHONPATH"])
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*ray, *words, *common], env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        found: dict = {"seconds": None, "nodes": 0, "error": None}
        if meeting.rank == 0:
            found = count_nodes(head["address"], meeting.size, environment, started)
        meeting.meet("ray-done", 2 * MEETING_S)  # the first node may wait as long for the others
        if process.poll() is not None:
            found["error"] = " ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        return found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for path in {scratch, head["scratch"]}:
            shutil.rmtree(path, ignore_errors=True)


def own_folder(path: Path) -> None:
    """Make a directory that only this user enters, where another of our nodes has not made it already.

    Raises:
        OSError: something of that name is there that somebody else has made, or that others may enter.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    facts = path.lstat()
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o170077 != 0o040000:
        raise OSError(f"{path} is not a directory of this user alone: remove it, or name another directory")


def without_working_directory(path: str) -> str:
    """A PYTHONPATH without the working directory, whose files are no modules of Ray's."""
    here = os.path.realpath(".")
    return os.pathsep.join(
        entry
        for entry in path.split(os.pathsep)
        if entry and (os.path.realpath(entry) != here or os.path.isdir(os.path.join(entry, "sfg_dist")))
    )


def count_nodes(address: str, size: int, environment: dict, started: float) -> dict:
    """Wait until all nodes have joined."""
    waiting = [sys.executable, "-P", "-m", "sfg_dist.distributed.nodes", address, str(size)]
    deadline, said = time.monotonic() + MEETING_S, ""
    while time.monotonic() < deadline:
        try:
            done = subprocess.run(
                waiting, env=environment, capture_output=True, text=True, timeout=max(1.0, deadline - time.monotonic())
            )
        except subprocess.TimeoutExpired:
            break
        if done.returncode == 0:
            return {"seconds": time.monotonic() - started, "nodes": size, "error": None}
        said = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        time.sleep(1.0)
    return {"seconds": None, "nodes": 0, "error": said or f"not all {size} nodes joined in {MEETING_S:.0f} s"}


def own_address() -> str:
    """The address by which other nodes reach this one."""
    name = os.environ.get("SLURMD_NODENAME")
    if name and shutil.which("scontrol"):
        shown = subprocess.run(["scontrol", "show", "node", name], capture_output=True, text=True).stdout
        words = dict(word.partition("=")[::2] for word in shown.split() if "=" in word)
        with contextlib.suppress(OSError, KeyError):
            return socket.gethostbyname(words["NodeAddr"])
    with contextlib.suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return "127.0.0.1"


def verdict(nodes: list, races: list, seen: list, clocks: list, disks: list, ray: list) -> list:
    """(level, sentence) of every finding; levels are ok, warning and FAILED."""
    found = []

    def note(good: bool, text: str, *, level: str = "FAILED") -> None:
        found.append(("ok" if good else level, text))

    for node in nodes:
        gpus = f"{len(node['gpus'])} GPUs" + (f" ({node['gpus'][0]})" if node["gpus"] else "")
        packages = ", ".join(f"{name} {number}" for name, number in node["packages"].items()) or "no packages"
        found.append(("ok", f"{node['host']}: {node['cpus']} CPUs, {node['memory_gib']} GiB, {gpus}, {packages}"))
        python = tuple(int(part) for part in node["python"].split(".")[:2])
        note(python >= LEAST_PYTHON, f"{node['host']}: Python {node['python']}, needed is 3.11 or newer")
    versions = {json.dumps(node["packages"], sort_keys=True) for node in nodes}
    note(len(versions) == 1, "every node has the same packages" if len(versions) == 1 else "nodes differ in packages")
    note("sfg_dist" in nodes[0]["packages"], "the package is installed on the first node")
    for way in ("open", "link"):
        winners = [number for won in races for number in won[way]]
        exact = sorted(winners) == list(range(NUM_RACES))
        text = f"create-if-absent by {way}: " + (
            "exactly one node wins" if exact else f"{len(winners)} winners of {NUM_RACES} files"
        )
        # A file system without links is one on which commits are made by open.
        note(exact, text, level="FAILED" if way == "open" or len(winners) > NUM_RACES else "warning")
    whole = all(is_whole for one in seen for _, is_whole in one)
    note(whole, "a renamed file is seen whole" if whole else "a renamed file was seen in part, or never")
    slowest = max((seconds or MEETING_S) for one in seen for seconds, _ in one)
    note(slowest < SLOW_VISIBLE_S, f"other nodes see a new file after {slowest:.2f} s at most", level="warning")
    skew = max(clocks) - min(clocks)
    note(skew < MAX_SKEW_S, f"clocks are {skew:.2f} s apart", level="warning")
    fsync = max(one["fsync_s"] for one in disks)
    note(fsync < SLOW_FSYNC_S, f"fsync of a small file takes {1000 * fsync:.1f} ms", level="warning")
    for name in ("write", "read"):
        slow = min(one[f"{name}_mb_per_s"] for one in disks)
        note(slow > SLOW_MB_PER_S, f"{name}: {slow:,.0f} MB/s a node, all at once", level="warning")
    if ray:
        seconds, error = ray[0]["seconds"], next((one["error"] for one in ray if one["error"]), None)
        good = seconds is not None
        note(good, f"Ray: {len(nodes)} nodes in {seconds:.1f} s" if good else f"Ray does not start: {error}")
    return found


def main() -> int:
    """The check of this node; the first one prints the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path, help="a directory that all nodes share")
    parser.add_argument("--megabytes", type=int, default=256, help="size of the file for the bandwidth")
    parser.add_argument("--no-ray", action="store_true", help="leave Ray out")
    parser.add_argument("--json", action="store_true", help="print one document")
    options = parser.parse_args()
    rank, size = int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_NTASKS", "1"))
    run = os.environ.get("SLURM_JOB_ID", str(os.getpid())) + "-" + os.environ.get("SLURM_STEP_ID", "0")
    folder = options.shared.absolute() / f".sfg-smoke-{run}"
    try:
        own_folder(folder)
        meeting = Meeting(folder, rank, size)
        parts = {"node": describe(), "race": race(meeting), "seen": visibility(meeting), "clock": clock(meeting)}
        parts["disk"] = disk(meeting, options.megabytes)
        parts["ray"] = None if options.no_ray else start_ray(meeting)
        meeting.say("parts", parts)
        if rank:
            meeting.hear("over", 0)
            return 0
        everything = meeting.hear_all("parts")
    except (OSError, TimeoutError) as error:
        print(f"FAILED   {error}", flush=True)
        return 1
    columns = [[one[name] for one in everything] for name in ("node", "race", "seen", "clock", "disk")]
    ray = [one["ray"] for one in everything if one["ray"] is not None]
    found = verdict(*columns, ray)
    failed = sum(level == "FAILED" for level, _ in found)
    warned = sum(level == "warning" for level, _ in found)
    if options.json:
        print(json.dumps({"found": found, "parts": everything}, indent=1))
    else:
        for level, text in found:
            print(f"{level:<9}{text}")
        words = "" if not warned else ", with 1 warning" if warned == 1 else f", with {warned} warnings"
        print(
            f"This site will not do: {failed} of the above FAILED." if failed
            else f"This site will do{words}."
        )  # fmt: skip
    meeting.say("over", True)
    time.sleep(1.0)  # the others still read it
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
