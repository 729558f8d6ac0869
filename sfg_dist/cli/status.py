"""The state of a store in words: lines, a table of the workers, and a view that is renewed until it is complete."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from sfg_dist.job.errors import StoreUnavailableError
from sfg_dist.job.words import as_line, counted, duration, failure_line, size_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from sfg_dist.store.snapshot import DriverStatus, WorkerStatus
    from sfg_dist.store.status import Provenance, StatusReader, StoreStatus
    from sfg_dist.store.verify import Report

MAX_WORKERS, MAX_GONE, MAX_FAILURES, MAX_GIVEN_UP = 40, 3, 5, 20
PIPE_WIDTH = 200  # columns of the table of workers where the output is no terminal
LINES_BESIDE_WORKERS = 16


def status_line(status: StoreStatus) -> str:
    """How far the store is, in one line."""
    parts = [f"{status.shards_done:,} of {status.shards:,} shards, {status.rows_done:,} of {status.rows:,} pairs"]
    if status.is_complete:
        return f"{parts[0]}; complete"
    if status.shards_running:
        parts.append(f"{len(status.shards_running):,} at work")
    if status.shards_failed:
        parts.append(f"{len(status.shards_failed):,} given up")
    if status.rows_per_s:
        parts.append(f"{status.rows_per_s:,.0f} pairs/s")
    if status.seconds_left is not None:
        parts.append(f"about {duration(status.seconds_left)} left")
    if not status.running:
        parts.append("no driver is at work")
    return ", ".join(parts)


def status_lines(status: StoreStatus) -> Iterator[str]:
    """The state of the store, how its finished rows were made, and the drivers."""
    head, complete, _ = status_line(status).partition("; complete")
    yield f"{status.store}: {head}, dim {status.dim}{complete}"
    if status.extended_at:
        yield "extended at " + ", ".join(f"{rows:,}" for rows in status.extended_at) + " pairs"
    yield from (
        f"shard {shard} was given up: {reason}" for shard, reason in islice(status.shards_failed.items(), MAX_GIVEN_UP)
    )
    yield from made_by(status.provenance, status.rows_done)
    gone = [driver for driver in status.drivers if driver.state != "running"]
    for driver in (*status.running, *gone[:MAX_GONE]):
        yield _driver_line(driver, status)
        if driver.state == "running" or (driver is gone[0] and not status.is_complete):
            yield from (f"  {failure_line(failure)}" for failure in driver.failures[-MAX_FAILURES:])
    if len(gone) > MAX_GONE:
        yield f"and {len(gone) - MAX_GONE:,} older drivers"


def made_by(provenance: Provenance, num_rows: int) -> Iterator[str]:
    """How ``num_rows`` finished rows were made; nothing where there are none."""
    if not num_rows:
        return
    parts = [f"{size_of(provenance.bytes)} on {_devices(provenance.devices)}"]
    parts.append(f"{duration(provenance.seconds)} of integration, {provenance.evaluations:g} evaluations a row")
    if provenance.tolerance_reached:
        parts.append(f"posterior mean within {provenance.tolerance_reached:.1e} of exact, certified")
    if provenance.measured:
        share = 1 - provenance.measured_over / provenance.measured
        parts.append(
            f"posterior mean as near as the plan expects at {share:.2%} of {provenance.measured:,} evaluations measured"
        )
    if provenance.rows_bounded:
        parts.append(f"{provenance.rows_bounded:,} rows by the certified bound")
    if provenance.step_control_exceeded:
        parts.append(f"{provenance.step_control_exceeded:,} rows above labels.solver_tolerance")
    if provenance.num_retried:
        parts.append(f"{counted(provenance.num_retried, 'shard')} took more than one attempt")
    yield "made: " + "; ".join(parts)
    yield "with " + ", ".join(f"{name} {version}" for name, version in provenance.versions.items())


def report_lines(report: Report) -> Iterator[str]:
    """The findings of ``verify``, a line each, and what to do."""
    read = f"{report.num_objects:,} objects, {size_of(report.num_bytes)} read"
    for finding in report.findings:
        yield f"{finding.kind}: {finding}"
    if report.pending:
        yield f"{counted(len(report.pending), 'shard')} of {report.num_shards:,} still to be labelled"
    if report.is_clean:
        yield f"{report.url}: {read}; nothing is wrong"
        return
    bad = f" in {counted(len(report.bad_shards), 'shard')}" if report.bad_shards else ""
    yield f"{report.url}: {read}; {counted(len(report.findings), 'finding')}{bad}: `sfg repair {report.url}` mends them"


def repair_lines(report: Report, num_shards: int, *, is_dry_run: bool) -> Iterator[str]:
    """What a repair did about each finding, or would do in a dry run."""
    for finding in report.findings:
        yield f"{finding.kind}: {finding}: {finding.repair}"
    if report.is_clean:
        yield f"{report.url}: nothing is wrong, and nothing was done"
    elif is_dry_run:
        yield f"{report.url}: {counted(num_shards, 'shard')} to be labelled again; nothing was changed"
    else:
        yield f"{report.url}: repaired, {counted(num_shards, 'shard')} labelled again"


def _driver_line(driver: DriverStatus, status: StoreStatus) -> str:
    failed = sum(driver.num_failures.values())
    tail = f", {counted(failed, 'failed attempt')}" if failed else ""
    age = duration(status.time - driver.updated)
    if driver.state == "running":
        rate = f", {driver.rows_per_s:,.0f} pairs/s" if driver.rows_per_s else ""
        number = len(driver.workers)
        workers = f"{number:,} worker{'s' if number != 1 else ''}"
        return (
            f"driver {driver.driver}: at work for {duration(status.time - driver.started)} with {workers}{rate}{tail}"
        )
    if driver.state == "ended":
        return f"driver {driver.driver}: ended {age} ago{tail}"
    then = (
        ""
        if status.is_complete
        else "; what it committed is kept, and `sfg label` with the same job goes on from there"
    )
    return f"driver {driver.driver}: silent for {age}, so it is gone or cut off from the store{then}{tail}"


def status_page(status: StoreStatus, *, max_workers: int = MAX_WORKERS) -> RenderableType:
    """The lines of ``status_lines`` and a table of at most ``max_workers`` running workers, longest at work first."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines: list[RenderableType] = [Text(as_line(line)) for line in status_lines(status)]
    workers = [(driver, worker) for driver in status.running for worker in driver.workers]
    workers.sort(key=lambda pair: (pair[1].shard is None, pair[1].since or 0.0))
    if not workers:
        return Group(*lines)
    table = Table(box=None, pad_edge=False)
    several = len({driver.driver for driver, _ in workers}) > 1
    for name in (*(["driver"] if several else []), "worker", "host", "device", "at work"):
        table.add_column(name, overflow="fold")
    for name in ("for", "done", "pairs/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for driver, worker in workers[:max_workers]:
        cells = (*([driver.driver] if several else []), *_cells(worker, status.time))
        table.add_row(*(Text(as_line(cell)) for cell in cells))
    lines += [Text(""), table]
    if len(workers) > max_workers:
        lines.append(Text(f"and {len(workers) - max_workers:,} more workers; --json lists all"))
    return Group(*lines)


def _cells(worker: WorkerStatus, now: float) -> tuple[str, ...]:
    at_work, since = worker.state, ""
    if worker.shard is not None:
        at_work = f"shard {worker.shard}" + (f", attempt {worker.attempt}" if (worker.attempt or 1) > 1 else "")
        since = duration(now - worker.since) if worker.since is not None else ""
    rate = f"{worker.rows_per_s:,.0f}" if worker.rows_per_s else ""
    return (worker.worker, worker.host, worker.device or worker.kind, at_work, since, f"{worker.done:,}", rate)


def _devices(devices: Mapping[str, int]) -> str:
    if len(devices) == 1:
        return str(next(iter(devices)))
    most = sorted(devices.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} ({number:,} shards)" for name, number in most)


def open_console() -> Console:
    """A console on stdout; in a pipe, wide enough for the table of workers."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def watch(reader: StatusReader, *, interval_s: float, as_json: bool = False) -> None:
    """Show the state every ``interval_s``: in place on a terminal, else as one line, or one JSON document a line.

    Ends when the store is complete, or on Ctrl-C, which stops nothing else.
    """
    from rich.live import Live

    console = open_console()
    in_place = console.is_terminal and not as_json
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=console, auto_refresh=False)) if in_place else None
        while True:
            try:
                state = reader.read(time.time())
            except StoreUnavailableError as error:  # as it may be for a minute in a run of days
                console.print(f"{time.strftime('%H:%M:%S')} {as_line(error)}", markup=False, emoji=False)
            else:
                if live is not None:
                    page = status_page(state, max_workers=max(3, console.height - LINES_BESIDE_WORKERS))
                    live.update(page, refresh=True)
                elif as_json:
                    print(json.dumps(state.to_json()), flush=True)
                else:
                    print(f"{time.strftime('%H:%M:%S')} {status_line(state)}", flush=True)
                if state.is_complete:
                    return
            time.sleep(interval_s)
