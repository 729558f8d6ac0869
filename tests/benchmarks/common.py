"""What the measurements share: equal threads, contestants in turn, tables of ratios, and a JSON file each."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import passive  # noqa: F401
import torch
from rich.console import Console
from rich.table import Table

import sfg_dist
from sfg_dist.flow import label_latents
from sfg_dist.flow.posterior.backends import SPARSE_ROWS, Backend

OUTPUT = Path("runs/bench")
PAUSE_S = 0.02  # lets the last contestant's idle threads stop spinning
console = Console(width=118, highlight=False)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every script takes; ``start`` puts them into force."""
    options = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    options.add_argument("--quick", action="store_true", help="smaller and fewer: a check that it runs, not a figure")
    options.add_argument("--threads", type=int, default=int(os.environ.get("SFG_BENCH_THREADS", "2")))
    options.add_argument("--output", type=Path, default=OUTPUT, help="folder of the JSON files and the picture")
    return options


def start(threads: int) -> None:
    """The same cores and threads for all: jax counts the cores it may use, KeOps reads OMP_NUM_THREADS when loaded."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the host."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "cpu": model,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "sfg_dist": sfg_dist.__version__,
    }


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; the order turns by one from round to round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    if warm:
        for call in calls.values():
            call()
    for number in range(rounds):
        names = list(calls)
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(PAUSE_S)
            times[name].append(seconds(calls[name]))
    return times


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def supported(function: Callable[..., object], **keywords: object) -> dict[str, Any]:
    """The keywords that ``function`` knows and that are not None."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in keywords.items() if name in known and value is not None}


def dense_backend() -> str:
    """The name under which the engine that sums over every pair is forced."""
    names = get_args(Backend)
    return "dense" if "dense" in names else "fused"


def timed_reference(table: torch.Tensor, latents: torch.Tensor, **keywords: Any) -> tuple[sfg_dist.Reference, float]:
    """A prepared reference, and the seconds of building it; what is built or fitted at first use counts too."""
    few, whole = latents[:16], keywords.get("certificate") == "measured"
    keywords = {**supported(label_latents, batch_size=len(few)), **keywords}
    label_latents(few, table[: 2 * SPARSE_ROWS], **keywords)  # threads and compiled code are not the reference's
    started = time.perf_counter()
    reference = sfg_dist.Reference(table, whole=whole)
    built = time.perf_counter() - started

    def call() -> None:
        label_latents(few, reference, **keywords)

    first = seconds(call)
    return reference, built + max(0.0, first - seconds(call))


def add_label_options(options: argparse.ArgumentParser) -> None:
    """Overrides of the package's defaults, for trials; figures are quoted without them."""
    options.add_argument("--tolerance", type=float)
    options.add_argument("--solver")
    options.add_argument("--num-evaluations", type=int)
    options.add_argument("--time-grid")
    options.add_argument("--backend")
    options.add_argument("--certificate", choices=("bound", "measured"))


def label_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("tolerance", "solver", "num_evaluations", "time_grid", "backend", "certificate")
    return supported(label_latents, **{name: getattr(arguments, name) for name in names})


@dataclass(frozen=True)
class Verdict:
    """One target line: ``value`` at least (sense ">=") or at most ("<=") ``bound``; a goal may fail and say so."""

    what: str
    value: float
    sense: str
    bound: float

    @property
    def passed(self) -> bool:
        return self.value >= self.bound if self.sense == ">=" else self.value <= self.bound


def show(title: str, columns: list[str], rows: Iterable[Iterable[object]]) -> None:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def finish(name: str, output: Path, *, rows: list[dict[str, Any]], verdicts: list[Verdict], **more: Any) -> None:
    """Print the target lines and write ``output/name.json``."""
    for verdict in verdicts:
        word = "[green]PASS[/green]" if verdict.passed else "[red]FAIL[/red]"
        console.print(f"{word}  {verdict.what}: {verdict.value:.3g} (target {verdict.sense} {verdict.bound:g})")
    output.mkdir(parents=True, exist_ok=True)
    record = {
        "name": name,
        "machine": machine(),
        **more,
        "rows": rows,
        "targets": [{**asdict(verdict), "passed": verdict.passed} for verdict in verdicts],
    }
    path = output / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=True) + "\n")
    console.print(f"written: {path}\n")
