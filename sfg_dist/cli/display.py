"""What the command line shows of a run while it goes on."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sfg_dist.cli.lines import FREQUENT, lines_of, step_of
from sfg_dist.job.words import as_line, duration

SAY_AFTER_S, AGAIN_AFTER_S = 1.0, 60.0
"""A log has a line of a step that goes on for so long, and one more each time so long has passed again."""
LONG_S = 2.0
"""The time of a step is said at its end where it took longer."""


class Display:
    """Shows events: bars with rate and time left on a terminal, plain lines elsewhere.

    A step is work that says nothing until it is done, such as the start of Ray. A terminal shows it with a clock. The
    next event that has something to show ends it. The first step is what a command imports within the ``with`` block.

    Args:
        on_stderr: leave stdout to the result of the command.
    """

    def __init__(self, on_stderr: bool) -> None:
        from rich.console import Console

        self._console = Console(stderr=on_stderr, highlight=False, soft_wrap=True)
        self._stack = contextlib.ExitStack()
        self._on_stderr = on_stderr
        self._progress: Any = None
        self._task: Any = None
        self._step: _Step | None = None
        self._last_line = self._last_printed = 0.0
        self._checked_at: float | None = None
        self._rows = 0
        self._workers: set[str] = set()
        self._first: tuple[float, float] | None = None
        self._stage: Mapping[str, Any] = {}

    def __enter__(self) -> Display:
        if self._on_stderr:  # whatever a library prints meanwhile, such as Ray's news of a dead worker, is no document
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        self.step("loading the libraries")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end_step(is_done=kind is None)
        self._close_bar()
        self._stack.close()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show an event by its lines, or by the method of its name; kinds without either are passed over."""
        if event["event"] in FREQUENT:
            if event["time"] - self._last_printed < 10:
                return
            self._last_printed = event["time"]
        for line in lines_of(event):
            self._print(line)
        handler: Callable[[Mapping[str, Any]], None] | None = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)
        if (text := step_of(event)) is not None:
            self._begin_step(text)

    def tell(self, event: str, **details: Any) -> None:
        """Show an event that no log keeps."""
        self({"time": time.time(), "event": event, **details})

    def step(self, text: str) -> None:
        """Show what goes on from now until the next event."""
        self.tell("step", text=text)

    def _on_checked(self, event: Mapping[str, Any]) -> None:
        if self._checked_at is None:
            self._checked_at = event["time"]
        if event["time"] - max(self._checked_at, self._last_line) >= 5:
            self._last_line = event["time"]
            self._print(f"verify: {event['done']:,} of {event['total']:,} objects and shards")

    def _on_stage_started(self, event: Mapping[str, Any]) -> None:
        self._stage = event
        if event["stage"] == "label":
            missing = event["missing"]
            kept = event["total"] - missing
            self._print(
                f"label: {event['rows']:,} pairs in {event['total']:,} shards"
                + (f", {kept:,} done already" if kept else "")
            )
            if missing:
                self._open_bar("label", event["total"], kept)
        elif event["stage"] == "train":
            limit = f", at most {event['max_time_s']:g} s" if event["max_time_s"] else ""
            self._print(
                f"train: {event['num_epochs']:,} epochs{limit}"
                + ("" if event["fresh"] else ", from the last checkpoint")
            )
            self._open_bar("train", event["max_time_s"] or event["num_epochs"], 0)
        elif event["stage"] == "draw":
            self._open_bar("draw", event["total"], 0)

    def _on_stage_finished(self, event: Mapping[str, Any]) -> None:
        self._end_step()
        self._close_bar()
        if event["stage"] != "data":
            self._print(f"{event['stage']}: done in {event['seconds']:.1f} s")

    def _on_shard(self, event: Mapping[str, Any]) -> None:
        self._rows += event["rows"][1] - event["rows"][0]
        rate = self._rows / max(1e-3, event["time"] - self._stage["time"])
        line = f"label: {event['done']:,} of {event['total']:,} shards, {rate:,.0f} pairs/s"
        if len(self._workers) > 1:
            line += f", {len(self._workers):,} workers"
        self._advance(event["done"], line, event)

    def _on_worker_started(self, event: Mapping[str, Any]) -> None:
        self._workers.add(event["worker"])
        if len(self._workers) == 1 and not self._rows:
            self._begin_step("label: working on the first shards; on a new machine, kernels are compiled before")

    def _on_worker_lost(self, event: Mapping[str, Any]) -> None:
        self._workers.discard(event["worker"])

    def _on_epoch(self, event: Mapping[str, Any]) -> None:
        position = event["elapsed_s"] if self._stage.get("max_time_s") else event["epoch"]
        losses = f"loss {event['train_loss']:.4f}, held out {event['validation_loss']:.4f}"
        line = f"train: epoch {event['epoch']}, step {event['step']:,}, {losses}, {event['rows_per_s']:,.0f} rows/s"
        self._advance(position, line, event)

    def _on_live(self, event: Mapping[str, Any]) -> None:
        share = event["step_in_epoch"] / event["num_batches"]
        position = event["elapsed_s"] if self._stage.get("max_time_s") else event["epoch"] - 1 + share
        line = (
            f"train: epoch {event['epoch']} ({100 * share:.0f} %), step {event['step']:,}, "
            f"loss {event['train_loss']:.4f}, {event['rows_per_s']:,.0f} rows/s"
        )
        if event["num_workers"] > 1:
            line += f", {event['num_workers']:,} workers"
        self._advance(position, line, event)

    def _on_drawn(self, event: Mapping[str, Any]) -> None:
        rate = event["made"] / max(1e-3, event["time"] - self._stage["time"])
        self._advance(event["done"], f"draw: {event['done']:,} of {event['total']:,} rows, {rate:,.0f} rows/s", event)

    # Steps, lines and bars.

    def _begin_step(self, text: str) -> None:
        self._end_step()
        is_log = not self._console.is_terminal
        self._step = _Step(as_line(text), self._write, reminds=is_log)
        if self._progress is not None:
            self._progress.update(self._task, description=as_line(text))
        elif not is_log:
            self._open_progress(as_line(text), None, 0, with_bar=False)

    def _end_step(self, *, is_done: bool = True) -> None:
        if self._step is None:
            return
        step, self._step = self._step, None
        if self._progress is not None and self._progress.tasks[0].total is None:
            self._close_bar()
        step.end(is_done=is_done)

    def _print(self, text: str) -> None:
        line = as_line(text)
        self._end_step(is_done=self._step is None or not line.startswith(f"{self._step.text}:"))  # it has the time
        self._write(line)

    def _write(self, line: str) -> None:
        (self._progress.console if self._progress else self._console).print(line, markup=False, emoji=False)

    def _open_bar(self, name: str, total: float, completed: float) -> None:
        self._end_step()
        self._last_line, self._rows, self._first = 0.0, 0, None
        self._workers.clear()
        if self._console.is_terminal:
            self._open_progress(name, total, completed, with_bar=True)

    def _open_progress(self, text: str, total: float | None, completed: float, *, with_bar: bool) -> None:
        from rich import progress

        columns: list[progress.ProgressColumn] = [progress.TextColumn("{task.description}", markup=False)]
        if with_bar:
            columns += [progress.BarColumn(), progress.TaskProgressColumn(), progress.TimeElapsedColumn()]
            columns += [progress.TextColumn("left"), progress.TimeRemainingColumn(elapsed_when_finished=False)]
        else:
            columns += [progress.SpinnerColumn(), progress.TimeElapsedColumn()]
        self._progress = progress.Progress(*columns, console=self._console, transient=True)
        self._progress.start()
        self._task = self._progress.add_task(text, total=total, completed=completed)

    def _advance(self, completed: float, line: str, event: Mapping[str, Any]) -> None:
        self._end_step()
        if self._progress is not None:
            self._progress.update(self._task, completed=completed, description=as_line(line))
            return
        # Plain lines: at most one in five seconds, so that a log stays readable.
        now, left = event["time"], self._time_left(event, completed)
        if now - self._last_line >= 5 or completed == event.get("total"):
            self._last_line = now
            self._print(line + (f", about {left:.0f} s left" if left else ""))

    def _time_left(self, event: Mapping[str, Any], completed: float) -> float | None:
        """Seconds left at the pace since the first event; what went before was starting up."""
        limit = self._stage.get("max_time_s")
        if limit and "elapsed_s" in event:
            return max(0.0, float(limit) - float(event["elapsed_s"]))
        total = event.get("total") or self._stage.get("num_epochs")
        if self._first is None:
            self._first = (event["time"], completed)
        since, before = self._first
        if not total or completed <= before:
            return None
        return max(0.0, (event["time"] - since) * (total - completed) / (completed - before))

    def _close_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Step:
    """Work that says nothing until it is done, with its clock.

    Args:
        text: what goes on.
        say: prints a line.
        reminds: print the text once it has gone on for SAY_AFTER_S, and again after each AGAIN_AFTER_S.
    """

    def __init__(self, text: str, say: Callable[[str], None], *, reminds: bool) -> None:
        self.text, self._say, self._began = text, say, time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._remind, name="step", daemon=True) if reminds else None
        if self._thread is not None:
            self._thread.start()

    def end(self, *, is_done: bool) -> None:
        """Stop the clock, and say the time where it is long and the work is done."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
        if is_done and (took := self._lasted) >= LONG_S:
            self._say(f"{self.text}: took {duration(took)}")

    @property
    def _lasted(self) -> float:
        return time.monotonic() - self._began

    def _remind(self) -> None:
        if not self._is_over.wait(SAY_AFTER_S):
            self._say(self.text)
            while not self._is_over.wait(AGAIN_AFTER_S):
                self._say(f"{self.text}: {duration(self._lasted)} so far")
