"""Processes of this machine as the driver's pool, without Ray.

They are forked from a template (``worker_process``) that has imported what labels need. It can be started before there
is work for it. A process that dies is found by the end of its connection, and one that hangs can be killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from sfg_dist.distributed.executor import why_ray
from sfg_dist.distributed.failure import DIED, WORKER_LOST, Failure
from sfg_dist.distributed.labels import worker_process
from sfg_dist.distributed.labels.pool import Answered, Drain, Lost, PoolEvent, Ready, RealTime, Task, WorkerInfo
from sfg_dist.distributed.labels.shards import Maker
from sfg_dist.job.config import Job
from sfg_dist.job.errors import ClusterError
from sfg_dist.job.search_path import child_environment, python_command
from sfg_dist.job.threads import usable_cpus, wait_passively

FORKS = sys.platform == "linux"  # elsewhere the system's libraries may not survive it
EARLY_EVALUATIONS = 250_000  # of a row, from which on a template is started before the table is read
GPU_DRIVER = "/dev/nvidiactl"  # where it is, labels are most likely made on a GPU
LAST_BYTES = 4096
END_S = 5.0  # within which the template ends its workers and itself


class Template:
    """A process that workers are forked from; it and they end with this one at the latest.

    Args:
        num_threads: CPU threads of a worker.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, num_threads: int = 1) -> None:
        self._has_workers = False
        # The first as Ray has it for an actor; with the second numpy starts no thread, which a fork would lose.
        variables = child_environment() | {"OMP_NUM_THREADS": str(num_threads), "OPENBLAS_NUM_THREADS": "1"}
        wait_passively(variables)
        with contextlib.ExitStack() as stack:
            self._socket, theirs = map(stack.enter_context, socket.socketpair())
            self._log = stack.enter_context(tempfile.TemporaryFile())
            handle = theirs.fileno()
            self._process = subprocess.Popen(
                python_command(worker_process.__name__, str(handle), "fork" if FORKS else "serve"),
                env=variables,
                pass_fds=[handle],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C reaches this process alone
            )
            theirs.close()
            self._open = stack.pop_all()

    @property
    def can_start(self) -> bool:
        """Whether it has not ended, and may be asked for a worker."""
        return self._process.poll() is None

    def start(self) -> Connection:
        """A connection to a new worker, which starts as soon as the template is ready.

        Raises:
            OSError: the template has ended meanwhile.
        """
        ours, theirs = Pipe()
        with theirs:
            socket.send_fds(self._socket, [b"1"], [theirs.fileno()])
        self._has_workers = True
        return ours

    def last_words(self) -> str:
        """What it, or a worker of it, wrote last: the line of an error."""
        # Not by a seek, which would move the place where they write.
        said = os.pread(self._log.fileno(), LAST_BYTES, max(0, os.fstat(self._log.fileno()).st_size - LAST_BYTES))
        return said.decode(errors="replace").strip().rpartition("\n")[2]

    def close(self) -> None:
        """End it and its workers, and wait for that; nothing happens a second time."""
        if self._log.closed:
            return
        self._socket.close()
        if self._has_workers and FORKS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
        self._process.kill()
        self._process.wait()
        self._open.close()


@contextlib.contextmanager
def early_template(job: Job, *, overlap: bool, is_needed: bool) -> Iterator[Template | None]:
    """Within, a template starts beside other work, where the job's labels are so many that processes will pay.

    Args:
        job: what is to be labelled.
        overlap: whether a worker trains meanwhile.
        is_needed: whether there are labels to make.
    """
    labels, keys = job.labels, job.executor
    room = usable_cpus() // labels.num_threads
    has_room = min(room, keys.num_actors or room) > 1 and not os.path.exists(GPU_DRIVER)
    is_long = labels.num_pairs * labels.num_evaluations >= EARLY_EVALUATIONS
    why = why_ray(keys, num_workers=job.train.num_workers, overlap=overlap)
    if not (is_needed and has_room and is_long) or why is not None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        template = None
        with contextlib.suppress(OSError):  # where it cannot start now, the labels will say so
            template = stack.enter_context(contextlib.closing(Template(labels.num_threads)))
        yield template


@dataclass
class _Process:
    """A worker: its connection, its template and its id, which is None before it has told it and after its end."""

    connection: Connection
    template: Template
    pid: int | None = None


class ProcessPool(RealTime):
    """Workers of this machine.

    Args:
        make: makes the labeler of each, in its process.
        num_threads: CPU threads of each.
        template: one that was started before; it is closed with the pool.
    """

    def __init__(self, make: Maker, *, num_threads: int = 1, template: Template | None = None) -> None:
        self._make, self._num_threads = make, num_threads
        self._templates = [template] if template is not None else []
        self._processes: dict[str, _Process] = {}
        self._number = 0

    def start(self, role: str) -> str:
        """Have a worker forked; it tells that it is ready by an event.

        Raises:
            ClusterError: no process can be started.
        """
        self._number += 1
        name = f"{role}-{self._number}"
        try:
            connection = self._usable_template().start()
        except OSError:  # the template has gone since it was looked at
            template = self._new_template()
            try:
                connection = template.start()
            except OSError as error:
                raise ClusterError(f"no process can be started on this machine: {error}") from error
        self._processes[name] = _Process(connection, self._templates[-1])
        self._send(name, self._make)
        return name

    def _usable_template(self) -> Template:
        is_free = FORKS or len(self._templates) > len({id(each.template) for each in self._processes.values()})
        if not self._templates or not is_free or not self._templates[-1].can_start:
            return self._new_template()
        return self._templates[-1]

    def _new_template(self) -> Template:
        try:
            self._templates.append(Template(self._num_threads))
        except OSError as error:
            raise ClusterError(f"no process can be started on this machine: {error}") from error
        return self._templates[-1]

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        """Hand a call to a worker."""
        self._send(worker, tuple(tasks))

    def _send(self, worker: str, message: object) -> None:
        with contextlib.suppress(OSError):  # of one that is gone the end of its connection tells
            self._processes[worker].connection.send(message)

    def wait(self, timeout_s: float) -> list[PoolEvent]:
        """What the workers have said; waits for the first of them."""
        names = {process.connection: name for name, process in self._processes.items()}
        found = [(names[each], self._processes[names[each]]) for each in wait(list(names), timeout_s)]  # type: ignore[index]
        events: list[PoolEvent] = []
        for name, process in found:
            try:
                answer = process.connection.recv()
            except (EOFError, OSError):
                words = "" if process.pid is not None else process.template.last_words()
                process.pid = None
                events.append(Lost(name, Failure(WORKER_LOST, words or DIED)))
                continue
            if isinstance(answer, int):
                process.pid = answer
            else:
                events.append(_event(name, answer))
        return events

    def kill(self, worker: str) -> None:
        """End a worker at once."""
        process = self._processes.pop(worker, None)
        if process is None:
            return
        with contextlib.suppress(EOFError, OSError):
            if process.pid is None and process.connection.poll():
                process.pid = process.connection.recv()
            # Without its template the system may have given the id to another process: then the connection must tell.
            if isinstance(process.pid, int) and (process.template.can_start or not process.connection.poll()):
                os.kill(process.pid, signal.SIGKILL)
        process.connection.close()

    def close(self) -> None:
        """End all that is left, and remove what it held in shared memory."""
        from sfg_dist.distributed.labels.shared_blocks import sweep_node  # with torch, which the workers import

        for name in list(self._processes):
            self.kill(name)
        while self._templates:
            self._templates.pop().close()
        sweep_node()

    def draining(self) -> Mapping[str, Drain]:
        """Nothing: this machine's end reaches the driver by a signal."""
        return {}

    def resources(self) -> str:
        """What there is to run workers on."""
        return f"{usable_cpus()} CPUs of this machine"


def _event(worker: str, answer: Any) -> PoolEvent:
    if isinstance(answer, Failure):
        return Lost(worker, answer, is_refusal=True)
    return Ready(worker, answer) if isinstance(answer, WorkerInfo) else Answered(worker, answer)
