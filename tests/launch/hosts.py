"""Several hosts on this machine: network namespaces with addresses of their own, joined by a bridge; needs root."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from patience import patience

UNHURRIED = Path(__file__).parent / "unhurried"


def why_not() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if sys.platform != "linux" or os.getuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    name = f"sfgprobe{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"network namespaces are not allowed here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None


class Hosts:
    """Hosts h1, h2, ... with addresses 10.88.N.1, .2, ...

    Args:
        number: of hosts.
    """

    def __init__(self, number: int) -> None:
        self.tag = secrets.token_hex(2)
        self.net = int(self.tag[:2], 16)
        self.names = [f"sfg{self.tag}h{index}" for index in range(1, number + 1)]
        self.addresses = [f"10.88.{self.net}.{index}" for index in range(1, number + 1)]
        self.bridge = f"sfgb{self.tag}"
        self.token = secrets.token_hex(32)
        self.processes: dict[int, subprocess.Popen] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="sfgh", dir="/tmp"))

    def up(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")
        for index, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            _ip("netns", "add", name)
            outside, inside = f"v{self.tag}{index}o", "eth0"
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
            _ip("link", "set", outside, "master", self.bridge, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", inside)
            _ip("-n", name, "link", "set", inside, "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def down(self) -> None:
        _end(list(self.processes.values()))
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for index, name in enumerate(self.names):
            _ip("link", "del", f"v{self.tag}{index}o", check=False)
            _ip("netns", "del", name, check=False)
        _ip("link", "del", self.bridge, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # a local Ray of the session's turns it off
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else a node that is ended waits half a minute
            "RAY_prestart_worker_first_driver": "0",  # else a worker a host for whoever waits for the hosts
            # Connections are given up after half of Ray's own times, so that half as long a cut meets them.
            "RAY_grpc_keepalive_time_ms": "5000", "RAY_grpc_keepalive_timeout_ms": str(round(patience(10_000))),
            "GLOO_SOCKET_IFNAME": "eth0",  # the machine's name is loopback to all of them
            # Workers that wait for a place on a host that is gone; to find one on a host that is there takes no time.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(patience(5)),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(UNHURRIED), *sys.path])),
            "SFG_TEST_UNHURRIED": str(self.folder / "seconds"),
        }  # fmt: skip

    @property
    def address(self) -> str:
        """Of the Ray cluster."""
        return f"{self.addresses[0]}:6399"

    def start_ray(self, index: int, *, num_cpus: int = 1) -> None:
        """Ray on one host: the head on the first, a worker on others."""
        scratch = self.folder / f"ray{index}"
        scratch.mkdir(exist_ok=True)
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
                 f"--num-cpus={num_cpus}", f"--node-ip-address={self.addresses[index]}",
                 "--object-store-memory=100000000", "--include-log-monitor=false"]  # fmt: skip
        if index == 0:
            words += ["--head", "--port=6399", "--include-dashboard=false", "--no-monitor", f"--temp-dir={scratch}"]
        else:
            words.append(f"--address={self.address}")
        with (self.folder / f"ray{index}.log").open("ab") as log:
            self.processes[index] = subprocess.Popen(
                self._within(index, words), env=self.environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def wait_for_start(self, index: int) -> None:
        """Until the first Ray of a host is up, by its own word; a program that asks would take as long again."""
        log, deadline = self.folder / f"ray{index}.log", time.monotonic() + patience(120)
        while "Ray runtime started" not in log.read_text(errors="replace"):
            if time.monotonic() > deadline or self.processes[index].poll() is not None:
                raise RuntimeError(log.read_text(errors="replace")[-2000:])
            time.sleep(0.1)

    def wait_for(self, number: int) -> None:
        """Until so many hosts are in the cluster."""
        words = [sys.executable, "-m", "sfg_dist.distributed.nodes", self.address, str(number)]
        deadline = time.monotonic() + patience(120)
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    self._within(0, words), env=self.environment, capture_output=True, timeout=patience(40)
                )
                if done.returncode == 0:
                    return
            time.sleep(0.5)
        raise RuntimeError((self.folder / "ray0.log").read_text(errors="replace")[-2000:])

    def start(self, index: int, *words: str, **options: object) -> subprocess.Popen:
        """A program on a host."""
        return subprocess.Popen(
            self._within(index, list(words)), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, **options,
        )  # fmt: skip

    def _within(self, index: int, words: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.names[index], *words]

    def runs(self, index: int, words: str) -> bool:
        """Whether a process of the host has these words in its command line."""
        pids = subprocess.run(["ip", "netns", "pids", self.names[index]], capture_output=True, text=True).stdout.split()
        for pid in pids:
            try:
                if words in Path(f"/proc/{pid}/cmdline").read_text():
                    return True
            except OSError:  # it has ended
                continue
        return False

    def slow_down(self, seconds: float) -> None:
        """Have every shard of labels take so long, at no cost, until `speed_up`."""
        (self.folder / "seconds").write_text(str(seconds))

    def speed_up(self) -> None:
        (self.folder / "seconds").unlink()

    def cut(self, index: int) -> None:
        """Pull the host's cable."""
        _ip("link", "set", f"v{self.tag}{index}o", "down")

    def mend(self, index: int) -> None:
        """Put it back; Ray is started anew where it has given up, as a site's supervisor does."""
        _ip("link", "set", f"v{self.tag}{index}o", "up")


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _end(processes: list[subprocess.Popen]) -> None:
    """All have the same seconds; what is still there then is killed with the rest of its host."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + patience(5)
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
