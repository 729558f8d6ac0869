"""The output of ``sfg plan``: a table on a terminal, else one line a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfg_dist.job.words import as_line, counted, duration, size_of

if TYPE_CHECKING:
    from sfg_dist.distributed.labels.requirements import ActorMemory
    from sfg_dist.distributed.labels.worker_count import DeviceKind
    from sfg_dist.studies.estimate.estimate import Estimate

_PLACES = {"cpu": "CPUs", "cuda": "GPUs"}


def show_estimate(estimate: Estimate) -> None:
    """Print an estimate on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    rows = estimate_rows(estimate)
    if not console.is_terminal:
        for name, text in rows:
            print(f"{name}: {as_line(text)}")
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(as_line(text)))
    Console(highlight=False).print(table)


def estimate_rows(estimate: Estimate) -> list[tuple[str, str]]:
    """The estimate in words, as (name, text)."""
    work, time = estimate.work, estimate.time
    rows = [
        ("output", estimate.output),
        ("pairs", f"{work.num_pairs:,} in {work.num_shards:,} shards, {work.dim} columns"),
        ("reference", f"{work.num_reference:,} rows, read and prepared in {duration(time.data_s)}"),
        ("workers", _workers(estimate)),
        ("memory", _memory(estimate)),
        ("disk", _disk(estimate)),
    ]
    if work.shards_left < work.num_shards:
        left = f"{work.shards_left:,} shards, {work.pairs_left:,} pairs" if work.shards_left else "nothing"
        rows.insert(2, ("left to do", left))
    told = [("read as", estimate.read_as)] if estimate.read_as else []
    rows[1:1] = told + [("columns", sentence.removesuffix(".")) for sentence in estimate.columns]
    if not work.shards_left:
        return rows + [("note", note) for note in estimate.notes]
    about = "" if work.is_counted else "about "
    rows += [
        (
            "work",
            f"{about}{count(work.score_evaluations)} score evaluations, and about {count(work.pairs_summed)} sums "
            "over a latent and a reference row",
        ),
        ("executor", f"labels {estimate.chosen}"),
        ("label time", f"about {duration(time.label_s)} (batches vary by {100 * time.spread:.0f} %)"),
        (
            "  of it",
            f"start {duration(time.start_s)}, integration {duration(time.integration_s)} in "
            f"{counted(time.waves, 'wave')}, writing {duration(time.writing_s)}",
        ),
    ]
    rows += [("calibration", text) for text in _calibrations(estimate)]
    if estimate.cost is not None:
        cost = estimate.cost
        rows.append(
            ("cost", f"{cost.total:,.2f} for {cost.actor_hours:,.2f} actor hours at {cost.price_per_hour:g} each")
        )
    return rows + [("note", note) for note in estimate.notes]


def _workers(estimate: Estimate) -> str:
    workers = estimate.workers
    threads = counted(workers.num_threads, "thread")
    if workers.executor == "inline":
        who = "this process" if workers.total == 1 else f"{workers.total} processes of this machine"
        return f"{who}, {threads}{' each' if workers.total > 1 else ''}"
    kinds = " and ".join(
        f"{counted(number, 'actor')} on {_PLACES[kind]}" for kind, number in workers.num_actors.items()
    )
    groups = f", in groups of {workers.actors_per_group}" if workers.actors_per_group > 1 else ""
    return f"{kinds}, {threads} each{groups}"


def _memory(estimate: Estimate) -> str:
    memory, is_alone = estimate.memory, estimate.workers.is_this_process
    who = "an actor" if estimate.workers.executor == "ray" else "the process" if is_alone else "a process"
    parts = [_actor_memory(estimate, kind, actor, who) for kind, actor in memory.actors.items()]
    if not is_alone:
        beside = "driver and Ray" if estimate.workers.executor == "ray" else "driver"
        parts.append(f"{size_of(memory.driver_bytes)} {beside}")
    return f"{', '.join(parts)}; in all {size_of(memory.total_bytes)} of {size_of(memory.limit_bytes)} here"


def _actor_memory(estimate: Estimate, kind: DeviceKind, actor: ActorMemory, who: str) -> str:
    pace = estimate.paces.get(kind)
    text = f"{size_of(actor.host_bytes)} {who}"
    if len(estimate.memory.actors) > 1:
        text += f" on {_PLACES[kind]}"
    if pace is not None and not estimate.workers.is_this_process:
        text += f" ({size_of(pace.host_bytes)} in the calibration)"
    return text + (f" and {size_of(actor.device_bytes)} of its GPU" if actor.device_bytes else "")


def _disk(estimate: Estimate) -> str:
    left = estimate.left
    named = {
        "latents and labels": left.latents + left.labels,
        "reference": left.reference,
        "its order": left.order,
        "transform": left.transform,
        "queries": left.queries,
    }
    arrays = ", ".join(f"{name} {size_of(number)}" for name, number in named.items() if number)
    records = f"; records and logs about {size_of(left.metadata + left.commits + left.logs)}"
    free = "" if estimate.free_bytes is None else f"; {size_of(estimate.free_bytes)} free"
    return f"{size_of(left.total)} to write: {arrays}{records}{free}" if arrays else f"nothing to write{free}"


def _calibrations(estimate: Estimate) -> list[str]:
    return [
        f"{1e3 * pace.seconds_per_row:.3g} ms a pair on {pace.device}, measured on {pace.num_rows:,} pairs by "
        + (f"{pace.num_workers} workers at once" if pace.num_workers > 1 else "one worker")
        for pace in estimate.paces.values()
    ]


def count(number: int) -> str:
    """A large number, shortened to three digits and a word."""
    for factor, word in ((10**15, " x 10^15"), (10**12, " trillion"), (10**9, " billion"), (10**6, " million")):
        if number >= factor:
            return f"{number / factor:.3g}{word}"
    return f"{number:,}"
