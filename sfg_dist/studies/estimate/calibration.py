"""A calibration: the pace of this machine, from the real labeler at work on a real reference for a few seconds.

A store of its own is laid out in a temporary directory, with the plan's identity, reference and settings but shards of
one batch. As many processes as the run will have here, or as there are CPUs, open it as actors do, label for a while
all at once, so that they slow each other down as actors would, and write shards of the plan's own size. What a run pays
once (imports, opening, clusters, the first batch) is told apart. Nothing touches the job's own store.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import ConfigError, LabelingError
from sfg_dist.job.paths import free_disk
from sfg_dist.job.plan import REFERENCE_BLOCK_ROWS, Plan
from sfg_dist.job.search_path import child_environment, python_command
from sfg_dist.job.threads import wait_passively
from sfg_dist.store import Frame, create_store
from sfg_dist.studies.estimate import calibration_process
from sfg_dist.studies.estimate.calibration_process import PROBES, TRIAL_ROWS, with_batches, with_reference

CALIBRATION_S = 4.0
_QUERY_BATCHES = 64  # at least so many of the user's own query points, repeated where there are fewer
_PROBE_BYTES = 32 << 20  # of an array of a shard that is written as a probe
_ROOM = 64 << 20  # in the temporary directory, beside the reference and the probes


@dataclass(frozen=True)
class Pace:
    """How fast one worker of a kind is while the others work too.

    Attributes:
        device: what it ran on.
        seconds_per_row: integration, draws included.
        evaluations_per_row: of the posterior mean.
        pairs_per_row: pairs of a latent and a reference summed one by one.
        spread: half the width between the 10th and 90th percentile of single batches, relative to the mean.
        write_s: seconds to write, read back and commit a whole shard.
        check_s: seconds to check one committed shard.
        import_s: from the start of the process until everything is imported.
        open_s: until the store is open and the reference prepared.
        first_s: what the first batch took beyond a later one: compiled code, and what is built at first use.
        host_bytes: peak resident size of the process.
        device_bytes: peak memory reserved on its GPU; 0 on a CPU.
        commit_bytes: of a commit record.
        cpu_share: CPU time over time at work; what is missing to 1 went to other processes, or to waiting.
        num_rows: rows integrated, over all workers of the kind.
        num_workers: workers of the kind that ran at once.
    """

    device: str
    seconds_per_row: float
    evaluations_per_row: float
    pairs_per_row: float
    spread: float
    write_s: float
    check_s: float
    import_s: float
    open_s: float
    first_s: float
    host_bytes: int
    device_bytes: int
    commit_bytes: float
    cpu_share: float
    num_rows: int
    num_workers: int


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        paces: of one worker, by kind of device, "cpu" or "cuda".
        other_cpus: CPUs that processes of others kept busy meanwhile, on average.
    """

    paces: dict[str, Pace]
    other_cpus: float


def calibrate(
    plan: Plan,
    reference: NDArray[np.float32],
    *,
    order: NDArray[np.int64] | None = None,
    queries: NDArray[np.float32] | None = None,
    devices: Sequence[str],
    num_threads: int = 1,
    memory_gib: float | None = None,
    seconds: float = CALIBRATION_S,
    niceness: int = 0,
) -> Calibration:
    """Label real batches of a plan in processes of their own, all at once.

    Args:
        plan: the job's; its rows, solver and tolerance are used.
        reference: the transformed reference set, float32, shape (num_reference, dim).
        order: its order in clusters, where labels use some.
        queries: the user's own query points, or None.
        devices: of each process: "cpu", or "cuda:i"; a GPU may serve several.
        num_threads: CPU threads of each.
        memory_gib: budget of the reference in memory, where the job has one.
        seconds: how long to integrate once all are ready.
        niceness: scheduling priority of each, as the run's own workers will have.

    Returns:
        The pace of each kind of device that was asked for.

    Raises:
        ConfigError: the temporary directory has no room.
        LabelingError: a process failed.
    """
    probe_rows = max(1, min(plan.shard_rows, plan.num_pairs, _PROBE_BYTES // (4 * plan.dim)))
    probe_bytes = 8 * probe_rows * plan.dim * PROBES * len(devices)
    _require_room(reference.nbytes + (order.nbytes if order is not None else 0) + probe_bytes + _ROOM)
    if "cpu" in devices:
        _compile_kernels(plan)
    scale = min(plan.shard_rows, plan.num_pairs) / probe_rows
    if queries is not None:
        batches = max(_QUERY_BATCHES, 8 * len(devices))
        queries = np.resize(queries, (max(len(queries), batches * plan.labels["batch_size"]), plan.dim))
        plan = replace(plan, num_pairs=len(queries))
    with tempfile.TemporaryDirectory(prefix="sfg-plan-") as folder:
        settings = {
            "num_threads": num_threads,
            "memory_gib": memory_gib,
            "seconds": seconds,
            "probe_rows": probe_rows,
            "niceness": niceness,
        }
        trial = with_batches(with_reference(plan, reference), TRIAL_ROWS)
        cuts = range(REFERENCE_BLOCK_ROWS, len(reference), REFERENCE_BLOCK_ROWS)
        orders = iter([] if order is None else np.split(order, cuts))  # of each block
        create_store(
            Path(folder, "trial"),
            trial,
            Frame(
                reference, {}, {}, queries=queries, make_order=(lambda _: next(orders)) if order is not None else None
            ),
        )
        results, other_cpus = _run_workers(Path(folder), plan, devices, settings)
    kinds = sorted({device.partition(":")[0] for device in devices})
    paces = {
        kind: _pace_of(
            [result for result, device in zip(results, devices, strict=True) if device.startswith(kind)], scale=scale
        )
        for kind in kinds
    }
    return Calibration(paces, other_cpus)


def _require_room(needed: int) -> None:
    free = free_disk(Path(tempfile.gettempdir()))
    if free < needed:
        raise ConfigError(
            f"the calibration needs {needed / 2**30:.2f} GiB in the temporary directory {tempfile.gettempdir()}, which "
            f"has {free / 2**30:.2f} GiB free: set TMPDIR to a directory with more room"
        )


def _compile_kernels(plan: Plan) -> None:
    """Compile what labels of these columns use on the CPU and keep it for other processes, a run's own among them."""
    from sfg_dist.flow import label_latents
    from sfg_dist.flow.posterior.backends import SPARSE_ROWS

    rows = np.random.default_rng(0).standard_normal((2 * SPARSE_ROWS, plan.dim)).astype(np.float32)
    for tolerance in {plan.labels["tolerance"], 0.0}:
        label_latents(rows[:16], rows, t_min=plan.t_min, batch_size=16, tolerance=tolerance)


# The processes.


def _run_workers(
    folder: Path, plan: Plan, devices: Sequence[str], settings: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], float]:
    """Start a process a device and let all integrate at once when the last is ready; their results, others' CPUs."""
    with contextlib.ExitStack() as stack:
        workers = []
        for number, device in enumerate(devices):
            task = {**settings, "folder": str(folder), "number": number, "num_workers": len(devices), "device": device}
            (folder / f"{number}.json").write_text(json.dumps({**task, "plan": plan.to_json().decode()}))
            workers.append(stack.enter_context(_process(folder, number, device, settings)))
        for worker in workers:
            _read_line(worker, "ready")
        before, started = _busy_seconds(), time.perf_counter()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        results = [_read_line(worker, "result") for worker in workers]
        own = sum(result["cpu_s"] for result in results)
        return results, max(0.0, _busy_seconds() - before - own) / (time.perf_counter() - started)


def _busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used, and those that its host took away."""
    import psutil

    times = psutil.cpu_times()
    return float(sum(times[:3]) + sum(getattr(times, name, 0.0) for name in ("irq", "softirq", "steal")))


@contextlib.contextmanager
def _process(folder: Path, number: int, device: str, settings: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A worker with the environment that Ray gives an actor; ended with the block, whatever happens."""
    environment = child_environment() | {
        "OMP_NUM_THREADS": str(settings["num_threads"]),
        "SFG_CALIBRATION_STARTED": repr(time.time()),
    }
    wait_passively(environment)
    kind, _, index = device.partition(":")
    if kind == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if visible != [""] else index
    command = python_command(calibration_process.__name__, str(folder / f"{number}.json"))
    with (
        (folder / f"{number}.log").open("w") as log,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            if settings["niceness"] and hasattr(os, "setpriority"):
                os.setpriority(os.PRIO_PROCESS, process.pid, settings["niceness"])
            yield process
        finally:
            process.kill()


def _read_line(worker: subprocess.Popen[str], key: str) -> dict[str, Any]:
    """The worker's next answer.

    Raises:
        LabelingError: it ended instead; the message has the last line that it wrote.
    """
    assert worker.stdout is not None
    line = worker.stdout.readline()
    try:
        answer: dict[str, Any] = json.loads(line)[key]
        return answer
    except (ValueError, KeyError) as error:
        status = worker.wait()
        log = Path(worker.args[-1]).with_suffix(".log")  # type: ignore[index, arg-type]
        reason = (log.read_text(errors="replace").strip().splitlines() or [f"exit status {status}"])[-1]
        hint = "; most often the machine ran out of memory" if status == -9 else ""
        raise LabelingError(f"the calibration's process ended with status {status}: {reason}{hint}") from error


def _pace_of(results: Sequence[Mapping[str, Any]], scale: float) -> Pace:
    """One pace of all workers of a kind; ``scale`` is the rows of a shard over those of a probe."""
    batches = [batch for result in results for batch in result["batches"]]
    rows, seconds, evaluations, pairs = (sum(batch[place] for batch in batches) for place in range(4))
    each = [batch[1] / batch[0] for batch in batches]
    low, high = np.quantile(each, [0.1, 0.9])

    def middle(key: str) -> float:
        return statistics.median(result[key] for result in results)

    per_row = seconds / rows
    writes, others = ([value for result in results for value in result[key]] for key in ("writes", "others"))
    return Pace(
        device=results[0]["device"],
        seconds_per_row=per_row,
        evaluations_per_row=evaluations / rows,
        pairs_per_row=pairs / rows,
        spread=float(high - low) / 2 / per_row,
        # Between two integrations a write takes longer than after another, so those of single batches are a floor.
        write_s=max(scale * statistics.mean(writes), statistics.mean(others)),
        check_s=middle("check_s"),
        import_s=middle("import_s"),
        open_s=middle("open_s"),
        first_s=max(0.0, middle("first_s") - per_row * TRIAL_ROWS),
        host_bytes=max(result["host_bytes"] for result in results),
        device_bytes=max(result["device_bytes"] for result in results),
        commit_bytes=middle("commit_bytes"),
        cpu_share=min(1.0, sum(result["label_cpu_s"] for result in results) / seconds),
        num_rows=int(rows),
        num_workers=len(results),
    )
