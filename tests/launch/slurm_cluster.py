"""A Slurm cluster of several nodes on this machine, for tests: its own daemons, ports, keys and files in one directory.

Needs Debian's slurm-wlm and munge. As root, munged runs as its own user.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from patience import patience

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def missing_program() -> str | None:
    """The first program that is not here."""
    return next((name for name in PROGRAMS if shutil.which(name, path=PATH) is None), None)


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class SlurmCluster:
    """Start with ``up``, end with ``down``.

    Args:
        base: an empty directory that every user may enter; its path is short.
        num_nodes: slurmd daemons.
        cpus: of each node, as Slurm counts them.
    """

    def __init__(self, base: Path, *, num_nodes: int = 2, cpus: int = 2, gpus: int = 2) -> None:
        self.base, self.num_nodes, self.cpus, self.gpus = base, num_nodes, cpus, gpus
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        self.environment = {"SLURM_CONF": str(base / "slurm.conf"), "PATH": PATH}

    def up(self) -> None:
        """Write the configuration, start the daemons, wait until every node is idle."""
        base = self.base
        for name in ("state", "log", "run", "gpu", "munge"):
            (base / name).mkdir(parents=True, exist_ok=True)
        base.chmod(0o755)
        self._start_munge()
        device = self._make_gpus()
        control, *ports = free_ports(1 + self.num_nodes)
        user, host = pwd.getpwuid(os.getuid()).pw_name, socket.gethostname().split(".")[0]
        lines = [
            "ClusterName=sfg", f"SlurmctldHost={host}(127.0.0.1)", f"SlurmctldPort={control}",
            # A job's directory in /tmp and its ports come from its number, so two clusters begin at numbers apart.
            f"FirstJobId={1 + secrets.randbelow(1 << 16)}",
            f"SlurmUser={user}", f"SlurmdUser={user}", "AuthType=auth/munge",
            # cred_expire is also how long a requeued job waits: 120 s if not set.
            f"AuthInfo=socket={base}/munge/socket,cred_expire=5",
            "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core", "MpiDefault=none", "ReturnToService=2",
            "SlurmdParameters=config_overrides", "KillWait=5", f"SlurmdTimeout={round(patience(10))}", "MinJobAge=300",
            "SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0",
            "PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE", f"StateSaveLocation={base}/state",
            f"SlurmdSpoolDir={base}/spool.%n", f"SlurmctldPidFile={base}/run/slurmctld.pid",
            f"SlurmdPidFile={base}/run/slurmd.%n.pid", f"SlurmctldLogFile={base}/log/slurmctld.log",
            f"SlurmdLogFile={base}/log/slurmd.%n.log", "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none", "JobCompType=jobcomp/none", "GresTypes=gpu",
        ]  # fmt: skip
        for name, port in zip(self.nodes, ports, strict=True):
            (base / f"spool.{name}").mkdir(exist_ok=True)
            lines.append(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} RealMemory=2000 "
                f"Gres=gpu:{self.gpus} State=UNKNOWN"
            )
        lines += [
            "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10",
            "PartitionName=spot Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=3",
        ]
        (base / "slurm.conf").write_text("\n".join(lines) + "\n")
        (base / "gres.conf").write_text(f"Name=gpu File={device}[0-{self.gpus - 1}]\n")
        self._run("slurmctld", "-c")
        for name in self.nodes:
            self._run("slurmd", "-N", name, "-c")
        deadline = time.monotonic() + patience(30)
        while time.monotonic() < deadline:
            idle = self.say("sinfo", "-h", "-N", "-p", "debug", "-t", "idle", "-o", "%N", check=False).split()
            if sorted(idle) == self.nodes:
                return
            time.sleep(0.2)
        log = (base / "log" / "slurmctld.log").read_text(errors="replace").splitlines()[-5:]
        raise RuntimeError(f"the cluster did not come up: {log}")

    def down(self) -> None:
        """Cancel everything, stop the daemons."""
        jobs = set(self.say("squeue", "-h", "-o", "%A", check=False).split())
        if jobs:
            self.say("scancel", *jobs, check=False)
        deadline = time.monotonic() + patience(20)
        while time.monotonic() < deadline and self.say("squeue", "-h", check=False).strip():
            time.sleep(0.2)  # else a slurmstepd outlives its slurmd
        for path in [*sorted((self.base / "run").glob("slurmd.*.pid")), self.base / "run/slurmctld.pid",
                     self.base / "munge/pid"]:  # fmt: skip
            with contextlib.suppress(OSError, ValueError):
                pid = int(path.read_text())
                os.kill(pid, signal.SIGTERM)
                while time.monotonic() < deadline + 10 and Path(f"/proc/{pid}").exists():
                    time.sleep(0.05)

    def say(self, *words: str, check: bool = True) -> str:
        """What a Slurm command prints."""
        done = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def _run(self, *words: str) -> None:
        subprocess.run(words, env=os.environ | self.environment, check=True, capture_output=True)

    def _start_munge(self) -> None:
        folder = self.base / "munge"
        folder.chmod(0o755)
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        words = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
        words += [f"--log-file={folder}/log", f"--seed-file={folder}/seed", "--num-threads=2"]
        if os.getuid() == 0:
            owner = pwd.getpwnam("munge")
            for path in (folder, key):
                os.chown(path, owner.pw_uid, owner.pw_gid)
            words = ["runuser", "-u", "munge", "--", *words]
        self._run(*words)

    def _make_gpus(self) -> str:
        """Character devices whose names end in a number are what Slurm takes for GPUs."""
        try:
            for number in range(self.gpus):
                os.mknod(self.base / "gpu" / f"gpu{number}", 0o20666, os.makedev(1, 3))
        except PermissionError:  # not root, or in a container that may make none
            return "/dev/tty"
        return str(self.base / "gpu" / "gpu")
