"""What the command line shows of a run while it goes on."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from sfg_dist.data.naming import listed, repeated_values
from sfg_dist.job.words import as_line, duration, failure_line


class Display:
    """Shows events: bars with rate and time left on a terminal, plain lines elsewhere.

    With ``--json`` all of it goes to stderr.
    """

    def __init__(self, as_json: bool) -> None:
        from rich.console import Console

        self._console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self._stack = contextlib.ExitStack()
        self._as_json = as_json
        self._progress: Any = None
        self._task: Any = None
        self._last_line = self._last_printed = 0.0
        self._checked_at: float | None = None
        self._rows = 0
        self._workers: set[str] = set()
        self._first: tuple[float, float] | None = None
        self._stage: Mapping[str, Any] = {}

    def __enter__(self) -> Display:
        if self._as_json:  # whatever a library prints meanwhile, such as Ray's news of a dead worker, is no document
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        return self

    def __exit__(self, *_: object) -> None:
        self._close_bar()
        self._stack.close()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show an event by the method of its name; kinds without one are passed over."""
        handler: Callable[[Mapping[str, Any]], None] | None = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def tell(self, event: str, **details: Any) -> None:
        """Show an event that no log keeps."""
        self({"time": time.time(), "event": event, **details})

    def _on_checked(self, event: Mapping[str, Any]) -> None:
        if self._checked_at is None:
            self._checked_at = event["time"]
        if event["time"] - max(self._checked_at, self._last_line) >= 5:
            self._last_line = event["time"]
            self._print(f"verify: {event['done']:,} of {event['total']:,} objects and shards")

    def _on_extended(self, event: Mapping[str, Any]) -> None:
        self._print(f"extend: from {event['before']:,} to {event['rows']:,} pairs")

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
        elif event["stage"] != "data":
            self._print(f"{event['stage']} ...")

    def _on_stage_finished(self, event: Mapping[str, Any]) -> None:
        self._close_bar()
        if event["stage"] != "data":
            self._print(f"{event['stage']}: done in {event['seconds']:.1f} s")

    def _on_table(self, event: Mapping[str, Any]) -> None:
        if event.get("read_as"):
            self._print(f"data: read as {event['read_as']}")
        sizes = event["split"]
        self._print(f"data: {sizes['train']:,} train, {sizes['validation']:,} validation, {sizes['test']:,} test rows")
        if event["num_rows_dropped"]:
            self._print(f"data: {event['num_rows_dropped']:,} incomplete rows dropped")
        if event["constant"]:
            self._print(f"data: constant columns kept aside: {', '.join(event['constant'])}")
        gridded = [name for name, tie in event["ties"].items() if tie.get("step")]
        if gridded:
            self._print(f"data: columns on a grid, dequantized by one step: {listed(gridded, limit=8)}")
        for what, is_held in (
            ("given back exactly", True),
            ("which this transform.kind cannot give back exactly", False),
        ):
            if repeated := repeated_values(event.get("atoms", {}), held=is_held):
                self._print(f"data: values that repeat, {what}: {repeated}")

    def _on_time_grid(self, event: Mapping[str, Any]) -> None:
        for direction in ("decode", "encode"):
            if direction in event:
                self._print(f"label: time grid of {len(event[direction]) - 1} steps fitted to the table ({direction})")

    def _on_shard(self, event: Mapping[str, Any]) -> None:
        self._rows += event["rows"][1] - event["rows"][0]
        rate = self._rows / max(1e-3, event["time"] - self._stage["time"])
        line = f"label: {event['done']:,} of {event['total']:,} shards, {rate:,.0f} pairs/s"
        if len(self._workers) > 1:
            line += f", {len(self._workers):,} workers"
        self._advance(event["done"], line, event)

    def _on_executor(self, event: Mapping[str, Any]) -> None:
        self._print(f"{event['stage']}: {event['words']}")

    def _on_worker_started(self, event: Mapping[str, Any]) -> None:
        self._workers.add(event["worker"])

    def _on_worker_lost(self, event: Mapping[str, Any]) -> None:
        self._workers.discard(event["worker"])
        self._print(f"label: lost worker {event['worker']}: {_one_line(event['reason'])}")

    def _on_attempt_failed(self, event: Mapping[str, Any]) -> None:
        self._print(f"label: {failure_line(event)}")

    def _on_backup(self, event: Mapping[str, Any]) -> None:
        self._print(f"label: shard {event['shard']} takes long: {event['worker']} does it too, the first one counts")

    def _on_draining(self, event: Mapping[str, Any]) -> None:
        left = f" in {duration(event['deadline'] - event['time'])}" if event.get("deadline") else ""
        self._print(f"label: node {event['node']} leaves{left}: its workers end what they can, others take the rest")

    def _on_stopping(self, event: Mapping[str, Any]) -> None:
        self._print(f"label: stopping: {_one_line(event['reason'])}")

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

    def _on_ahead(self, event: Mapping[str, Any]) -> None:
        if self._is_time_for_a_line(event):  # beside the bar of the labels, so a line of its own
            self._print(
                f"train: ahead of the labels on {event['rows']:,} pairs, step {event['step']:,}, "
                f"loss {event['train_loss']:.4f}, {event['rows_per_s']:,.0f} rows/s"
            )

    def _on_trained_ahead(self, event: Mapping[str, Any]) -> None:
        self._print(f"train: {event['step']:,} steps were done ahead of the labels")

    def _on_resumed_from(self, event: Mapping[str, Any]) -> None:
        self._print(f"train: goes on from {event['checkpoint']}")

    def _on_encoder(self, event: Mapping[str, Any]) -> None:
        if self._is_time_for_a_line(event):
            self._print(
                f"train: encoder, {event['step']:,} steps, log-likelihood {event['log_likelihood']:.3f} in the flow's "
                f"coordinates at a mass of {event['mass']:.3f}"
            )

    def _is_time_for_a_line(self, event: Mapping[str, Any]) -> bool:
        """Whether the last such line is ten seconds old; this one then counts as the last."""
        if event["time"] - self._last_printed < 10:
            return False
        self._last_printed = event["time"]
        return True

    def _on_measured(self, event: Mapping[str, Any]) -> None:
        auc = event.get("c2st_auc")
        if auc is not None:
            self._print(f"evaluate: {event['what']} against held-out rows, AUC {auc:.3f} (0.5 is perfect)")

    def _on_drawn(self, event: Mapping[str, Any]) -> None:
        rate = event["made"] / max(1e-3, event["time"] - self._stage["time"])
        self._advance(event["done"], f"draw: {event['done']:,} of {event['total']:,} rows, {rate:,.0f} rows/s", event)

    def _print(self, text: str) -> None:
        (self._progress.console if self._progress else self._console).print(as_line(text), markup=False, emoji=False)

    def _open_bar(self, name: str, total: float, completed: float) -> None:
        self._last_line, self._rows, self._first = 0.0, 0, None
        self._workers.clear()
        if not self._console.is_terminal:
            return
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(name, total=total, completed=completed)

    def _advance(self, completed: float, line: str, event: Mapping[str, Any]) -> None:
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


def _one_line(text: str) -> str:
    return " ".join(text.split())
