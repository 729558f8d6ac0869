"""The program of a Slurm job: it starts a Ray cluster over the job's nodes, runs the stages of one job and ends both.

    python slurm_task.py SUBMISSION_FOLDER

``sfg submit`` copies this file into the submission's folder. It needs only the standard library, so that it runs on the
host's own Python where Ray and the package are in a container. ``ray symmetric-run`` would not do: it ends with status
0 when Ray does not start, waits for the workers half a minute at most, and stops every Ray of the user on a node.

    head        srun on the first node: ray start --head, at a port by the job's number, or another one if it is taken
    workers     srun on each other node
    driver      the stages, in this batch step; when the last one ends, Slurm ends the rest of the job
    USR2        comes some time before the limit: the stage commits what is done, and the job goes back to the queue

A token of this job keeps other users' processes out. It is in the environment, on no command line and in no log.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FIRST_PORT, NUM_PORTS = 20_000, 20_000
PORT_ATTEMPTS = 8
HEAD_TIMEOUT_S = 120.0
WORKER_TIMEOUT_S = 300.0
DRIVER_GRACE_S = 60.0  # for a stage to commit what is done
ENDING_S = 2.0  # the same when Slurm is about to kill the job
LATE_S = 20.0  # that Slurm's notice of the limit may be late
LEAST_ENDING_S = (
    10.0  # before the limit, a stage that still runs is killed, and a signal to end is taken for the limit's
)
TIDYING_S = 90.0  # before the limit, there is time to tidy up before the requeue
LOG_LINES = 15
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")  # as in sfg_dist/job/threads.py
LOOPBACK, MANY_MACHINES = "127.0.0.1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # as in sfg_dist/distributed/cluster.py
NO_DRAINING = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}  # else a node of Ray that is ended waits half a minute
RAY_TROUBLE = ("ddress already in use", "is already in use", "ailed to bind")
INTERRUPTED = 130
# Shell: $1 a folder, $2 a pattern of directories of ours in it to remove, $3 the directory to keep or to make.
SWEEP = 'find -H "$1" -maxdepth 1 -name "$2" -user "$(id -u)" ! -name "${3##*/}" -exec rm -rf {} +'
# A link that somebody put there is neither followed nor taken for ours.
MAKE = (
    'mkdir -p "${3%/*}"; mkdir -m 700 "$3" 2>/dev/null || { [ ! -L "$3" ] && [ -d "$3" ] && [ -O "$3" ]; } '
    '|| { echo "it is somebody else\'s" >&2; exit 1; }'
)


class LaunchError(Exception):
    """The job cannot go on; the message says why, and which log to read."""


def main(folder: Path) -> int:
    """Run the task of this Slurm job; its exit status."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    return SlurmTask(folder, task, dict(os.environ)).run()


class SlurmTask:
    """One attempt of one task of a submission, whose folder is on a file system that all nodes share.

    The task is task.json, as ``launch/slurm.py`` writes it; the environment is that of the batch step.
    """

    def __init__(self, folder: Path, task: dict, environment: dict) -> None:
        self.folder, self.task, self.environment = folder, task, environment
        self.job_id = environment["SLURM_JOB_ID"]
        # The environment may also name an array that the submitting shell was a task of.
        self.is_array = len(task["jobs"]) > 1
        self.index = int(environment["SLURM_ARRAY_TASK_ID"]) if self.is_array else 0
        self.is_alone = environment.get("SLURM_JOB_NUM_NODES") == "1"  # then nobody else needs to reach Ray
        self.attempt = int(environment.get("SLURM_RESTART_COUNT", "0"))
        self.root = Path(task["root"])
        self.logs = self.root / "logs"
        self.places: list = []
        self.processes: list = []
        self.nodes: list = []
        self.driver: subprocess.Popen[bytes] | None = None
        self.is_near_the_limit = self.is_ending = False
        self.ended_at = self.limit_at = 0.0

    def run(self) -> int:
        """Run all stages; the exit status of the first one that fails, or 0."""
        self.logs.mkdir(exist_ok=True)
        signal.signal(signal.SIGUSR2, self._on_limit)
        signal.signal(signal.SIGTERM, self._on_end)
        before = self._traces()
        self._note("started")
        try:
            with self._scratch() as scratch:
                status = self._run_stages(scratch)
                is_late = self.is_near_the_limit and time.monotonic() > self.limit_at - TIDYING_S
                if status and is_late and not self._is_cancelled():
                    return self._requeue(status, before)  # and tidy up in the seconds that Slurm leaves to ended steps
        except LaunchError as error:
            print(f"sfg: {error}", file=sys.stderr, flush=True)
            if self._is_preempted() or (self.is_near_the_limit and not self._is_cancelled()):
                return self._requeue(1, before)
            self._note("failed", reason=str(error))
            return 1
        if status and (self.is_near_the_limit or self._is_preempted()) and not self._is_cancelled():
            return self._requeue(status, before)
        self._note("ended", status=status)
        return status

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A directory of this attempt for Ray's sessions, which only this user may enter, on every node.

        Its path is short, since a socket's path has room for 107 bytes. Ray gives everybody access to the directory
        that it is told to use, so that is one within this.
        """
        base = self.task["scratch"] or ("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())
        base = os.path.abspath(os.path.expandvars(os.path.expanduser(base)))
        self.places = [base, f"sfg{self.job_id}-*"]  # of an attempt that went down with its node
        subprocess.run(["sh", "-c", SWEEP, "sh", *self.places, ""], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            path = Path(tempfile.mkdtemp(prefix=f"sfg{self.job_id}-", dir=base))
        except OSError as error:
            raise LaunchError(f"setup.scratch = {base}: no directory can be made there: {error.strerror}") from None
        try:
            yield path
        finally:
            self._stop_ray()
            self._on_nodes(self.nodes[1:], ["rm", "-rf", str(path)])
            shutil.rmtree(path, ignore_errors=True)

    def _on_nodes(self, nodes: list, command: list) -> dict:
        """Run a short command on several nodes at once; the complaints by node."""
        if not nodes:
            return {}
        with ThreadPoolExecutor(min(32, len(nodes))) as threads:
            said = list(threads.map(lambda node: self._on_node(node, command), nodes))
        return {node: trouble for node, trouble in zip(nodes, said) if trouble}  # noqa: B905 - Python 3.9

    def _on_node(self, node: str, command: list) -> str | None:
        """Run a short command as a step of one node; its complaint, or None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [*_srun(node), *command], env=self.environment, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=60,
            )  # fmt: skip
            return None if not done.returncode else done.stderr.strip() or f"exit status {done.returncode}"
        return "no answer within 60 s"

    # The stages.

    def _run_stages(self, scratch: Path) -> int:
        environment = dict(self.environment) | self.task["environment"]
        if "PYTHONPATH" in environment:
            environment["PYTHONPATH"] = _without_working_directory(environment["PYTHONPATH"])
        inside = dict(self.task["environment"])
        if not any(name in environment for name in WAITING):
            inside["OMP_WAIT_POLICY"] = environment["OMP_WAIT_POLICY"] = "PASSIVE"
        job = self.task["jobs"][self.index]
        more = []
        if self.task["needs_ray"]:
            given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            # Several nodes reach each other by their own addresses, one node by loopback, whatever the shell had set.
            given[MANY_MACHINES] = "0" if self.is_alone else "1"
            given |= NO_DRAINING
            environment |= given
            inside |= given
        for prefix in self.task["container_prefixes"]:  # reach the inside of a container with --cleanenv too
            environment.update((prefix + name, value) for name, value in inside.items())
        if self.task["needs_ray"]:
            more = ["--set", f"executor.address={self._start_ray(environment, scratch)}"]
        for stage in self.task["stages"]:
            if self.is_near_the_limit or self.is_ending:
                return INTERRUPTED
            words = [job if word == "{job}" else word for word in stage]
            status = self._run_driver([*self.task["sfg"], *words, *more], environment)
            if status:
                return status
        return 0

    def _run_driver(self, command: list, environment: dict) -> int:
        driver = self.driver = subprocess.Popen(command, env=environment)
        if self.is_near_the_limit or self.is_ending:  # the signal came while there was nobody to pass it to
            self._interrupt()
        while True:
            try:
                return driver.wait(0.5)
            except subprocess.TimeoutExpired:
                if self.is_ending and time.monotonic() > self.ended_at + ENDING_S:
                    driver.kill()
                if self.is_near_the_limit and time.monotonic() > self.limit_at - LEAST_ENDING_S:
                    driver.kill()  # what is committed is safe, and the job must still be requeued
                if not (self.is_near_the_limit or self.is_ending):
                    self._require_ray()

    def _on_limit(self, number: int, frame: object) -> None:
        """Slurm's notice: the time limit is near, and the stage commits what it has and ends."""
        self.is_near_the_limit = True
        self.limit_at = time.monotonic() + self.task["signal_before_s"] - LATE_S
        print("sfg: the time limit is near: what is done is committed, then the job is requeued", flush=True)
        self._interrupt()

    def _on_end(self, number: int, frame: object) -> None:
        """Slurm's signal at the end: the job is cancelled, preempted or at its limit."""
        self.is_ending, self.ended_at = True, time.monotonic()
        self._interrupt()

    def _interrupt(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.driver.send_signal(signal.SIGUSR2 if self.is_near_the_limit else signal.SIGTERM)

    def _requeue(self, status: int, before: str) -> int:
        is_idle = self.is_near_the_limit and self._traces() == before
        refusal = ""
        if self.is_near_the_limit and self.attempt >= self.task["max_requeues"]:
            refusal = f"requeued {self.attempt} times already (max_requeues)"
        elif is_idle and self._was_idle():
            refusal = (
                "two attempts one after the other met the time limit with nothing new to show (a shard, a checkpoint, "
                "a cell, a part of the samples): take a longer slurm.walltime, or smaller labels.shard_rows"
            )
        if refusal:
            self._note("ended", status=status, reason=refusal)
            print(f"sfg: {refusal}: the job is not requeued", file=sys.stderr, flush=True)
            return status
        name = f"{self.environment['SLURM_ARRAY_JOB_ID']}_{self.index}" if self.is_array else self.job_id
        self._note("requeued", is_idle=is_idle)
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
        if done.returncode:
            print(f"sfg: scontrol requeue {name}: {done.stderr.strip()}", file=sys.stderr, flush=True)
            self._note("ended", status=status, reason="scontrol requeue failed")
            return status
        # Slurm ends this step. A return before its signal would count as the job's own end.
        deadline = time.monotonic() + DRIVER_GRACE_S
        while not self.is_ending and time.monotonic() < deadline:
            time.sleep(0.2)
        return status

    def _traces(self) -> str:
        """A digest of the files in the output: another digest means progress.

        Nothing is known of an output in an object store, where every attempt counts as progress.
        """
        output = self.task["outputs"][self.index]
        if "://" in output:
            return secrets.token_hex(8)
        names = []
        for folder, folders, files in os.walk(output):
            if os.path.basename(folder) == "pairs.zarr":
                folders[:] = ["commits"]  # an array's chunks count once their shard is committed
            folders[:] = [name for name in folders if name not in ("tensorboard", "work")]
            # The encoder's checkpoint is one file that is written over; other files have new names.
            for name in files:
                if name.startswith("hold"):  # every attempt writes these
                    continue
                path, stamp = os.path.join(folder, name), 0.0
                if name == "encoder.safetensors":
                    with contextlib.suppress(OSError):
                        stamp = os.stat(path).st_mtime
                names.append(f"{path} {stamp}")
        return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()

    def _was_idle(self) -> bool:
        """Whether the attempt before this one noted that it made no progress."""
        own = []
        with contextlib.suppress(OSError):
            for line in self._attempts().read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    own.append(json.loads(line))
        own = [entry for entry in own if entry["event"] == "requeued"]
        return bool(own) and own[-1]["attempt"] == self.attempt - 1 and bool(own[-1].get("is_idle"))

    def _attempts(self) -> Path:
        """The notes of this task, a file of its own, since lines of several nodes overwrite each other on NFS."""
        return self.root / "attempts" / f"{self._part()}_{self.index}.jsonl"

    def _part(self) -> str:
        return self.environment["SLURM_ARRAY_JOB_ID"] if self.is_array else self.job_id

    def _is_preempted(self) -> bool:
        """Whether Slurm is taking the job off its nodes; it signals this batch script only at the end."""
        if self.is_ending:
            return False
        return self._slurms_words().get("PreemptTime", "None") not in ("None", "Unknown", "N/A", "")

    def _is_cancelled(self) -> bool:
        """Whether Slurm's signal to end means that somebody cancelled the job, and not the limit."""
        if not self.is_ending:
            return False
        words = self._slurms_words()
        said = f"{words.get('JobState')} {words.get('Reason')}"
        if "CANCELLED" in said or "TIMEOUT" in said or "TimeLimit" in said:
            return "CANCELLED" in said
        return not (self.is_near_the_limit and self.ended_at > self.limit_at - LEAST_ENDING_S)

    def _slurms_words(self) -> dict:
        return _show(["scontrol", "--oneliner", "show", "job", self.job_id])

    # Ray.

    def _start_ray(self, environment: dict, scratch: Path) -> str:
        """Start Ray on all nodes; the cluster's address, once every node has joined."""
        nodes = self.nodes = self._nodes()
        make = ["sh", "-c", f"{MAKE}; {SWEEP}", "sh", *self.places, str(scratch)]
        for node, trouble in self._on_nodes(nodes[1:], make).items():
            raise LaunchError(f"{scratch} cannot be made on {node}: {trouble}")
        address = self._start_head(nodes, environment, scratch)
        for number, node in enumerate(nodes[1:], start=1):
            self._step(
                node, f"ray-worker{number}", ["start", f"--address={address}", *self._ray_options()], environment
            )
        self._wait_for_nodes(address, len(nodes), environment)
        return address

    def _start_head(self, nodes: list, environment: dict, scratch: Path) -> str:
        node, host = nodes[0], LOOPBACK if self.is_alone else _address_of(*nodes[:2])
        find = "import importlib.util as i, sys; sys.exit(i.find_spec('grpc') is None)"
        probe = [*self.task["python"], "-P", "-c", find]
        asked = subprocess.run(probe, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
        for attempt in range(PORT_ATTEMPTS):
            port, client_port = (port_of(self.job_id, 2 * attempt + number) for number in (0, 1))
            process, log = self._step(
                node,
                "ray-head",
                [
                    "start", "--head", f"--node-ip-address={host}", f"--port={port}",
                    "--include-dashboard=false", f"--temp-dir={scratch / 'r'}", *self._ray_options(),
                    # Ray's client server, where it is installed, has by default one port for every Ray of a node.
                    *([f"--ray-client-server-port={client_port}"] if not asked.returncode else []),
                ],
                environment,
            )  # fmt: skip
            deadline = time.monotonic() + HEAD_TIMEOUT_S
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    break
                if _answers(host, port) and "Ray runtime started" in _read(log):
                    return f"{host}:{port}"
                time.sleep(0.2)
            else:
                raise LaunchError(f"Ray's head on {node} did not answer in {HEAD_TIMEOUT_S:.0f} s: {_tail(log)}")
            self.processes.remove((process, log, node))
            if not any(words in _read(log) for words in RAY_TROUBLE):
                raise LaunchError(f"`ray start --head` failed on {node} with status {process.returncode}: {_tail(log)}")
            print(f"sfg: port {port} is taken on {node}, trying another", file=sys.stderr, flush=True)
        raise LaunchError(f"no free port for Ray's head on {node} in {PORT_ATTEMPTS} tries: {_tail(log)}")

    def _ray_options(self) -> list:
        cpus, gpus = self.task["cpus_per_node"], self.task["gpus_per_node"]
        # Workers take any free ports, since every Ray on the node has the same default range.
        options = ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats", "--block"]
        return [*options, f"--num-cpus={cpus or self._own_cpus()}", f"--num-gpus={gpus}"]

    def _own_cpus(self) -> int:
        text = self.environment.get("SLURM_CPUS_ON_NODE", "")
        return int(text) if text.isdigit() else os.cpu_count() or 1

    def _step(self, node: str, name: str, arguments: list, environment: dict) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a job step on one node; its output goes to its own log."""
        log = self.logs / f"{self.job_id}-{self.attempt}-{name}.log"
        command = _srun(node)
        gpus = self.task["gpus_per_node"]
        if gpus:
            command.append(f"--gres={self.task['gres']}")
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, *self.task["ray"], *arguments],
                env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.processes.append((process, log, node))
        return process, log

    def _wait_for_nodes(self, address: str, number: int, environment: dict) -> None:
        command = [*self.task["wait"], address, str(number)]
        deadline = time.monotonic() + WORKER_TIMEOUT_S
        with tempfile.TemporaryFile("w+") as said:
            waiting = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
            try:
                while waiting.poll() is None:
                    self._require_ray()
                    if self.is_near_the_limit or self.is_ending:
                        return
                    if time.monotonic() > deadline:
                        logs = ", ".join(str(log) for _, log, _ in self.processes)
                        raise LaunchError(f"not all {number} nodes joined Ray in {WORKER_TIMEOUT_S:.0f} s: see {logs}")
                    time.sleep(0.2)
                if waiting.returncode:
                    said.seek(0)
                    raise LaunchError(f"Ray at {address} cannot be used: {said.read().strip()[-500:]}")
            finally:
                waiting.kill()
                waiting.wait()

    def _require_ray(self) -> None:
        """End the job if Ray's head has ended, or a worker before all have joined; later, others take over its work."""
        for process, log, node in self.processes:
            if process.poll() is None:
                continue
            is_head = (process, log, node) == self.processes[0]
            if is_head or self.driver is None:
                self._interrupt()
                consequence = ", and with it the cluster" if is_head else " before all nodes had joined"
                raise LaunchError(f"Ray on {node} ended with status {process.returncode}{consequence}: {_tail(log)}")

    def _stop_ray(self) -> None:
        """End this attempt's Ray processes, and no others."""
        # A cancelled job has seconds (KillWait) to clean up; what is committed is safe.
        patience_s, ray_s = (ENDING_S, ENDING_S / 2) if self.is_ending else (DRIVER_GRACE_S, 15.0)
        if self.driver is not None and self.driver.poll() is None:
            self._interrupt()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.driver.wait(patience_s)
            self.driver.kill()
        for process, _, _ in reversed(self.processes):
            process.terminate()
        deadline = time.monotonic() + ray_s
        for process, _, _ in self.processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _nodes(self) -> list:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", self.environment["SLURM_JOB_NODELIST"]],
            capture_output=True, text=True,
        )  # fmt: skip
        if listed.returncode:
            raise LaunchError(f"scontrol show hostnames: {listed.stderr.strip()}")
        return listed.stdout.split()

    def _note(self, event: str, **details: object) -> None:
        """Note an event of this attempt, for `sfg jobs`."""
        entry = {
            "event": event, "time": time.time(), "job_id": self.job_id, "task": self.index, "attempt": self.attempt,
            "part": self._part(),
        }  # fmt: skip
        with contextlib.suppress(OSError):
            self._attempts().parent.mkdir(exist_ok=True)
            with self._attempts().open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry | details) + "\n")


def port_of(job_id: str, number: int) -> int:
    """The port of a job's n-th try, far from those of the next jobs."""
    return FIRST_PORT + (int(job_id) * 7 + 997 * number) % NUM_PORTS


def _srun(node: str) -> list:
    """The words that run a step of one task on a node, beside other steps.

    With --export=ALL the token reaches the step even where sbatch was told to export nothing. Without --cpu-bind=none a
    step of one task could use only one of the job's CPUs.
    """
    return [
        "srun", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--overlap", "--kill-on-bad-exit=0", "--export=ALL",
        "--cpu-bind=none",
    ]  # fmt: skip


def _without_working_directory(path: str) -> str:
    """A PYTHONPATH without the working directory under any name, since its files are the user's."""
    here = os.path.realpath(".")
    return os.pathsep.join(
        entry for entry in path.split(os.pathsep)
        if entry and (os.path.realpath(entry) != here or os.path.isdir(os.path.join(entry, "sfg_dist")))
    )  # fmt: skip


def _show(command: list) -> dict:
    """The WORD=VALUE pairs that scontrol prints."""
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    return dict(word.partition("=")[::2] for word in shown.split() if "=" in word)


def _address_of(node: str, other: str | None = None) -> str:
    """The node's address as Slurm knows it, or by its name; call this on the node itself.

    On Debian a node's own name means loopback (127.0.1.1). The address is then the one from which it reaches ``other``.
    """
    found, there = (socket.gethostbyname(_show(["scontrol", "show", "node", name]).get("NodeAddr") or name)
                    for name in (node, other or node))  # fmt: skip
    if found.startswith("127.") and not there.startswith("127."):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((there, 9))  # sends nothing
            found = probe.getsockname()[0]
    return found


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False


def _read(log: Path) -> str:
    try:
        return log.read_text(errors="replace")
    except OSError:
        return ""


def _tail(log: Path) -> str:
    lines = [line.rstrip() for line in _read(log).splitlines() if line.strip()]
    return "\n  ".join([f"the end of {log}:", *lines[-LOG_LINES:]])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
