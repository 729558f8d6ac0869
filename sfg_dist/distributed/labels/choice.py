"""Who labels: this process, other processes of this machine, or Ray.

Ray takes seconds to start, and on one machine without GPUs it does no more than processes of its own do. So it is taken
where a key asks for it (``executor.why_ray``), and for labels on several GPUs that one of them would not finish before
Ray has started. The labels' rate is measured on a part of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfg_dist.distributed.labels.references import SHARED_BYTES, reference_memory
from sfg_dist.distributed.labels.shared_blocks import SHARED_MEMORY, free_bytes
from sfg_dist.distributed.labels.sizes import ACTOR_BYTES, shard_memory
from sfg_dist.flow.posterior.block_file import reference_bytes
from sfg_dist.job.config import ExecutorConfig
from sfg_dist.job.errors import SfgError
from sfg_dist.job.plan import Plan
from sfg_dist.job.words import GIB, counted, duration

if TYPE_CHECKING:
    from sfg_dist.distributed.labels.labeler import ShardLabeler
    from sfg_dist.distributed.machine import Machine
    from sfg_dist.store import Pairs

RAY_START_S = 8.0  # of Ray and its first actors: on 2 cores the quickstart's labels take 7 s longer by it
PROCESS_START_S = 2.0  # of the first process of this machine: it imports torch
FORK_START_S = 0.3  # of one that is forked from a template that is there
FEW_NUMBERS = 4e9  # rows times evaluations times numbers of the reference: a second or two at most, however busy it is
_MEASURED_PAIRS = 3e8  # of a latent and a reference row, in a batch that is measured


@dataclass(frozen=True)
class Choice:
    """Who labels."""

    executor: str  # "inline" or "ray"
    num_processes: int  # without Ray, processes beside this one; 0 where this one labels
    words: str  # who it is, and why


def choose(
    executor: ExecutorConfig,
    alone_s: float | None,
    *,
    num_processes: int,
    num_gpus: int = 0,
    start_s: float = PROCESS_START_S,
    why: str | None = None,
) -> Choice:
    """Who labels.

    Args:
        executor: the job's keys.
        alone_s: seconds that one worker would take; None where that was not measured, because it is long, and 0 where
            it is certainly short.
        num_processes: processes on CPUs that find a place.
        num_gpus: GPUs that torch sees.
        start_s: seconds until a process can begin.
        why: the key that asks for Ray, as ``why_ray`` says it.

    Examples:
        >>> choose(ExecutorConfig(), 20.0, num_processes=4).words
        'about 5.0 s in 4 processes of this machine, done before Ray would have started; --executor ray takes Ray'
    """
    if why is not None:
        return Choice("ray", 0, f"by Ray, since {why}")
    is_free = executor.kind == "auto"
    if num_gpus > 1 and is_free and (alone_s is None or alone_s > RAY_START_S):
        return Choice("ray", 0, f"by Ray, on {num_gpus} GPUs; --executor inline takes one of them without Ray")
    number = 0 if num_gpus or is_one(executor) else num_processes
    if alone_s is not None and number and alone_s * (1 - 1 / number) <= start_s:
        number = 0
    where = f"{counted(number, 'process')} of this machine" if number else "this process"
    where += " on a GPU" if num_gpus else ""
    seconds = None if alone_s is None else alone_s / max(1, number)
    words = f"about {duration(seconds)} in {where}" if seconds else f"in {where}"
    if is_free:
        is_short = seconds is not None and seconds < RAY_START_S
        words += ", done before Ray would have started" if is_short else ", where Ray would be no faster"
        words += "; --executor ray takes Ray"
    return Choice("inline", number, words)


def is_one(executor: ExecutorConfig) -> bool:
    """Whether the job asks for one worker without Ray, which is then this process itself."""
    return executor.kind == "inline" and executor.num_actors == 1


def num_processes(executor: ExecutorConfig, num_threads: int, machine: Machine, *, reserved_cpus: float = 0.0) -> int:
    """Processes that the machine's CPUs have room for, or as many as the job says where those are fewer; at least 1.

    Args:
        executor: the job's keys.
        num_threads: CPU threads of each.
        machine: this machine.
        reserved_cpus: CPUs that something else uses meanwhile.
    """
    room = int((machine.num_cpus - reserved_cpus) // num_threads)
    return max(1, min(room, executor.num_actors or room))


def num_fitting(
    plan: Plan, machine: Machine, memory_gib: float | None, *, num_reference: int, has_clusters: bool
) -> int:
    """Processes that the machine's free memory holds, each with its reference but for what they share; at least 1."""
    if memory_gib is not None:
        return max(1, machine.available_bytes // max(1, int(memory_gib * GIB)))
    whole = reference_bytes(num_reference, plan.dim, has_clusters=has_clusters, is_whole=plan.is_whole)
    shared = whole if SHARED_BYTES <= whole <= free_bytes(SHARED_MEMORY) else 0
    held = reference_memory(num_reference, plan.dim, has_clusters=has_clusters, is_whole=plan.is_whole).resident
    return max(1, (machine.available_bytes - shared) // (ACTOR_BYTES + shard_memory(plan) + held - shared))


def measured(pairs: Pairs, pending: Sequence[int], make: Callable[[], Any]) -> tuple[float | None, ShardLabeler | None]:
    """Seconds that one worker takes for shards of a store, from a part of one batch, and the labeler that measured it.

    None and None where opening the reference, or one batch, takes long by itself, or does not succeed; 0 and None where
    the labels are so few that nothing needs to be measured.
    """
    plan = pairs.plan
    num_evaluations = len(pending) * plan.shard_rows * plan.labels["num_evaluations"]
    if num_evaluations * pairs.num_reference * plan.dim <= FEW_NUMBERS:
        return 0.0, None
    if 4 * plan.dim * pairs.num_reference > SHARED_BYTES:
        return None, None
    batch_pairs = plan.labels["batch_size"] * plan.labels["num_evaluations"] * pairs.num_reference
    if not pairs.has_order and batch_pairs > _MEASURED_PAIRS:
        return None, None
    try:
        labeler: ShardLabeler = make()
        return len(pending) * labeler.seconds_a_shard(pending[0]), labeler
    except SfgError:
        raise
    except Exception:  # the run itself will say what is wrong, and where
        return None, None
