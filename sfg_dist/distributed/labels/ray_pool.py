"""Ray's actors as the driver's pool: answers come through callbacks, so a thousand calls in flight cost no scan."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from sfg_dist.distributed.cluster import draining_nodes
from sfg_dist.distributed.failure import DIED, WORKER_LOST, Failure
from sfg_dist.distributed.labels.pool import Answered, Drain, Lost, PoolEvent, Ready, RealTime, Result, Task, WorkerInfo
from sfg_dist.distributed.labels.sharded_reference import ReferenceMember
from sfg_dist.distributed.labels.shards import Maker, label_tasks, worker_info
from sfg_dist.distributed.labels.shared_blocks import sweep_node
from sfg_dist.distributed.stopping import ignore_stops

REASON_CHARACTERS = 400
ENDING_S, KILL_S = 5.0, 1.0  # within which a process goes that Ray was asked to end, and one that was killed


@dataclass(frozen=True)
class Role:
    """What an actor of one role holds, of GPUs perhaps a fraction.

    The labeler of one that ``is_cpu`` is told to leave the GPUs alone, since Ray may show them to it all the same.
    """

    num_cpus: int
    num_gpus: float
    is_cpu: bool = False


class ShardActor:
    """A labeler in a process of its own; the driver hears signals to stop, and may let the shard at work end."""

    def __init__(self, make: Callable[[], Any], members: Sequence[Any] = ()) -> None:
        ignore_stops()
        self._make, self._members = make, members
        self._labeler: Any = None

    def open(self) -> tuple[WorkerInfo, list[ActorProcess]] | Failure:
        """Make the labeler: where it runs, with all processes of its group, or why it cannot."""
        import ray

        started = time.perf_counter()
        try:
            self._labeler = self._make()
            members = ray.get([member.__ray_call__.remote(process_of) for member in self._members])
        except Exception as error:
            return Failure.of(error)
        info = replace(worker_info(self._labeler), load_s=time.perf_counter() - started)
        return info, [process_of(self), *members]

    def label(self, tasks: Sequence[Task]) -> list[Result]:
        """Label some shards, one after the other."""
        return label_tasks(self._labeler, tasks)


@dataclass(frozen=True)
class ActorProcess:
    """A process of an actor: Ray's id of its node, its machine, its id there, and when it began in seconds since 1970.

    The last tells it from a later process with the same id.
    """

    node: str
    host: str
    pid: int
    created: float

    @property
    def is_here(self) -> bool:
        """Whether it is another process of this machine."""
        return self.host == socket.gethostname() and self.pid != os.getpid()

    def is_alive(self) -> bool:
        """Whether it runs still, or is stopped; for its own machine."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 0.01 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def kill(self) -> None:
        """End it, if it is alive; for its own machine."""
        if self.is_alive():
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


def process_of(actor: object) -> ActorProcess:
    """The process that this is called in, by an actor."""
    import psutil
    import ray

    node = ray.get_runtime_context().get_node_id()
    return ActorProcess(node, socket.gethostname(), os.getpid(), psutil.Process().create_time())


def see_off(process: ActorProcess, patience_s: float) -> None:
    """Wait for the end of a process of this machine, and kill it where that takes too long."""
    deadline = time.monotonic() + patience_s
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()


@dataclass
class _Actor:
    """An actor, the members of its group, and what is asked of it."""

    handle: Any
    members: list[Any]
    group: Any = None
    processes: Sequence[ActorProcess] = ()
    calls: deque[tuple[Any, Future[Any]]] = field(default_factory=deque)  # Ray forgets an answer that nobody refers to


class RayPool(RealTime):
    """Actors of the running Ray session.

    Args:
        url: the store.
        labeler: the class of the labelers.
        roles: what an actor of each role holds.
        arguments: keyword arguments of each labeler.
        actors_per_group: actors that share one reference; with more than one, each worker is a leader with members.
        member: the class of the members.
    """

    def __init__(
        self,
        url: str,
        labeler: Callable[..., Any],
        roles: Mapping[str, Role],
        arguments: Mapping[str, Any],
        *,
        actors_per_group: int = 1,
        member: Callable[..., Any] = ReferenceMember,
    ) -> None:
        self._member = member
        self._url, self._labeler, self._roles, self._arguments = url, labeler, roles, dict(arguments)
        self._group_size = actors_per_group
        self._actors: dict[str, _Actor] = {}
        self._number = 0
        self._ending: list[tuple[float, ActorProcess]] = []  # when they must be gone, and the process on this machine
        self._elsewhere: set[str] = set()  # other machines' nodes that had an actor
        self._tasks: list[Any] = []  # on those
        # SimpleQueue: a signal handler may put into it while the main thread is inside it.
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # who has answered

    def start(self, role: str) -> str:
        """Ask Ray for an actor, or a group of them; it may wait for a place."""
        import ray

        self._number += 1
        name = f"{role}-{self._number}"
        resources = self._roles[role]
        options: dict[str, Any] = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "max_restarts": 0,
            "max_concurrency": 1,
        }
        arguments = dict(self._arguments)
        if resources.is_cpu:
            import torch

            arguments["device"] = torch.device("cpu")
        members: list[Any] = []
        group = None
        if self._group_size > 1:
            group, members = self._start_members(options, arguments)
            arguments["members"] = tuple(members)
            # The leader integrates on its CPU while the members wait, and waits while they work: it needs no place.
            options |= {"num_cpus": 0, "num_gpus": 0}
            if resources.num_gpus:
                import torch

                arguments["device"] = torch.device("cpu")
        make = Maker(self._labeler, self._url, arguments)
        handle = ray.remote(ShardActor).options(**options).remote(make, members)
        self._actors[name] = _Actor(handle, members, group)
        self._listen(name, handle.open.remote())  # type: ignore[attr-defined]
        return name

    def _start_members(self, options: dict[str, Any], arguments: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """The members of a group, one a part of the reference; its leader holds none.

        Places are asked for all at once, so that two half groups never wait for each other.
        """
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = {"CPU": float(options["num_cpus"])}
        if options["num_gpus"]:
            place["GPU"] = options["num_gpus"]
        group = placement_group([place] * self._group_size, strategy="PACK")
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
        remote_class = ray.remote(self._member).options(**options)
        parts = range(self._group_size)
        return group, [remote_class.remote(self._url, part, self._group_size, **arguments) for part in parts]

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        """Hand a call to an actor."""
        self._listen(worker, self._actors[worker].handle.label.remote(tuple(tasks)))

    def _listen(self, worker: str, call: Any) -> None:
        future = call.future()
        self._actors[worker].calls.append((call, future))
        future.add_done_callback(lambda _: self._answers.put(worker))

    def wake(self) -> None:
        """Let ``wait`` return; may be called from a signal handler."""
        self._answers.put(None)

    def wait(self, timeout_s: float) -> list[PoolEvent]:
        """All answers that have come; waits for the first of them."""
        self._end_overdue()
        events: list[PoolEvent] = []
        try:
            worker = self._answers.get(timeout=timeout_s) if timeout_s > 0 else self._answers.get_nowait()
            while True:
                if worker in self._actors:
                    events += self._events(worker, self._actors[worker])
                worker = self._answers.get_nowait()
        except queue.Empty:
            return events

    def _events(self, worker: str, actor: _Actor) -> Iterator[PoolEvent]:
        """The answers of an actor in the order of its calls: Ray tells of two that end together in any order."""
        while actor.calls and actor.calls[0][1].done():
            future = actor.calls[0][1]
            if (error := future.exception()) is not None:
                yield Lost(worker, Failure(WORKER_LOST, _loss(error)))
                return
            actor.calls.popleft()
            yield self._event(worker, actor, future.result())

    def _event(self, worker: str, actor: _Actor, answer: Any) -> PoolEvent:
        if isinstance(answer, Failure):
            return Lost(worker, answer, is_refusal=True)
        if isinstance(answer, list):
            return Answered(worker, answer)
        info, actor.processes = answer
        if actor.members:  # a group is a kind of its own: its leader's device says nothing of its pace and its bits
            info = replace(info, device=f"{len(actor.members)} x {worker.rpartition('-')[0]}")
        return Ready(worker, info)

    def kill(self, worker: str) -> None:
        """Have Ray end an actor and its members. One that is stopped and does not hear Ray is killed later.

        It is not killed at once: Ray would tell the user that a worker died.
        """
        import ray

        actor = self._actors.pop(worker, None)
        if actor is None:
            return
        for handle in (actor.handle, *actor.members):
            ray.kill(handle)
        if actor.group is not None:
            from ray.util.placement_group import remove_placement_group

            remove_placement_group(actor.group)
        for process in actor.processes:
            if process.is_here:
                self._ending.append((time.monotonic() + ENDING_S, process))
                continue
            self._elsewhere.add(process.node)
            if actor.calls:  # an idle one hears Ray, so that this task and its process are not needed
                self._on_node(process.node, see_off, process, ENDING_S)

    def close(self) -> None:
        """Wait until the processes of ended actors are gone, and kill those that stay; this takes seconds at most.

        What they left in the shared memory of their nodes is removed then, since an actor that Ray ends cannot do it.
        """
        while self._ending:
            self._end_overdue()
            time.sleep(0.01)
        self._wait_for_tasks()
        sweep_node()
        for node in self._elsewhere:
            self._on_node(node, sweep_node)
        self._wait_for_tasks()

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for deadline, process in self._ending:
            if now >= deadline:
                process.kill()
        self._ending = [(at, process) for at, process in self._ending if now < at + KILL_S and process.is_alive()]

    def _on_node(self, node: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a function called on a node, as long as that is there."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        remote = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
        self._tasks.append(remote.remote(*arguments))

    def _wait_for_tasks(self) -> None:
        import ray

        if self._tasks:
            ray.wait(self._tasks, num_returns=len(self._tasks), timeout=2 * ENDING_S)
            self._tasks.clear()

    def draining(self) -> Mapping[str, Drain]:
        """Actors on nodes that Ray says will go away."""
        nodes = draining_nodes()
        if not nodes:
            return {}
        to_clock = time.monotonic() - time.time()
        return {
            name: Drain(node, nodes[node] + to_clock)
            for name, actor in self._actors.items()
            if actor.processes and (node := actor.processes[0].node) in nodes
        }

    def resources(self) -> str:
        """What the cluster has, and what an actor needs."""
        import ray

        def words(resources: Mapping[str, float]) -> str:
            return f"{resources.get('CPU', 0.0):g} CPUs, {resources.get('GPU', 0.0):g} GPUs"

        needs = "; ".join(
            f"a {name} actor needs {role.num_cpus} CPUs, {role.num_gpus:g} GPUs" for name, role in self._roles.items()
        )
        return (
            f"the cluster has {words(ray.cluster_resources())}, of which {words(ray.available_resources())} are free; "
            f"{needs}"
        )


def _loss(error: BaseException) -> str:
    """Why an actor is gone, in one line; Ray's own text is a page."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError" or "memory monitor" in text or "OOM killer: " in text:
        return "Ray's memory monitor ended it, because its machine was nearly out of memory"
    if "node" in text and ("died" in text or "dead" in text) and "worker process has died" not in text:
        return "its machine is gone"
    if "process has died" in text or "connection error code" in text:
        return DIED
    return f"{type(error).__name__}: {text}"[:REASON_CHARACTERS]
