"""Commands on a store of pairs: its progress, its check, its repair and its extension."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfg_dist.cli.command import Executor, JobPath, Json, Set, command, load, number, say
from sfg_dist.cli.display import Display
from sfg_dist.cli.status import repair_lines, report_lines
from sfg_dist.job.errors import ConfigError, StoreError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.words import counted

if TYPE_CHECKING:
    from sfg_dist.store import Pairs

StoreName = Annotated[
    str,
    typer.Argument(metavar="STORE", help="pairs.zarr, or the output directory that holds it; a path or an s3:// URL."),
]


@command
def status(
    store: StoreName,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again until the store is complete, or Ctrl-C.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval", metavar="SECONDS", parser=number, help="With --watch: the seconds between two looks."
        ),
    ] = 2.0,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print Prometheus' text format, for a textfile collector.")
    ] = False,
    json_: Json = False,
) -> None:
    """Show how much of a store is labelled, and which workers are at work.

    It reads only the store, so it works from any machine, during a run and after it. With --watch and --json it prints
    one document on each line.
    """
    from sfg_dist.store.status import StatusReader

    if sum((json_, prometheus)) > 1 or (prometheus and watch):
        raise ConfigError("--prometheus prints one document of its own: leave out --json and --watch")
    if not 0.1 <= interval <= 86_400:
        raise ConfigError(f"--interval: expected 0.1 to 86400 seconds, got {interval:g}")
    reader = StatusReader(_open(store))
    if watch:
        from sfg_dist.cli.status import watch as look_again_and_again

        look_again_and_again(reader, interval_s=interval, as_json=json_)
        return
    state = reader.read(time.time())
    if prometheus:
        from sfg_dist.cli.prometheus import prometheus_text

        print(prometheus_text(state), end="")
    elif json_:
        print(json.dumps(state.to_json(), indent=1))
    else:
        from sfg_dist.cli.status import open_console, status_page

        open_console().print(status_page(state), soft_wrap=True)


@command
def verify(store: StoreName, json_: Json = False) -> None:
    """Read all of a store again, and name what is wrong.

    The exit status is 1 if something is wrong, else 0. Shards that are still to be labelled are not wrong.
    """
    with Display(json_) as display:
        from sfg_dist.store.verify import verify as verify_store

        pairs = _open(store, from_copies=True)
        display.step("verify: reading the store")
        report = verify_store(pairs, on_progress=lambda done, total: display.tell("checked", done=done, total=total))
    say(json_, report.to_dict(), "\n".join(report_lines(report)))
    if not report.is_clean:
        raise typer.Exit(1)


@command
def repair(
    store: StoreName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and change nothing.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="EXECUTOR.KEY=VALUE", help="Override a key of the executor; repeatable."),
    ] = None,
    executor: Executor = None,
    json_: Json = False,
) -> None:
    """Make the bad parts of a store again; sound parts are not touched.

    The executor of the job.toml beside the store labels bad shards again, but on a cluster only where --set
    executor.address says so. A damaged reference or transform is made again from the table of that job.
    """
    overrides = [*(set_ or []), *([f"executor.kind={executor}"] if executor is not None else [])]
    with Display(json_) as display:
        from sfg_dist.pipeline.repair import job_beside, mend

        pairs = _open(store, from_copies=True)
        display.step("verify: reading the store")
        mended = mend(pairs, job_beside(pairs, overrides), dry_run=dry_run, emit=display.tell)
    document = {**mended.report.to_dict(), "is_dry_run": dry_run, "shards": mended.shards, "frame": mended.frame}
    say(json_, document, "\n".join(repair_lines(mended.report, len(mended.shards), is_dry_run=dry_run)))


@command
def extend(job: JobPath, set_: Set = None, executor: Executor = None, json_: Json = False) -> None:
    """Add pairs to a finished store, up to the job's labels.num_pairs.

    The old pairs stay as they are. The new pairs are those that a longer run would have made.
    """
    resolved = load(job, set_, executor)
    with Display(json_) as display:
        from sfg_dist.pipeline.pipeline import Pipeline

        pairs = Pipeline(resolved, display).extend()
    document = {"output": resolved.output.dir, "pairs": pairs.plan.num_pairs, "store": pairs.location.url}
    say(json_, document, f"store: {pairs.location.url}")


def _open(store: str, *, from_copies: bool = False) -> Pairs:
    from sfg_dist.store import Location, open_pairs

    if is_url(store):
        Location(store)  # refuses a URL without a bucket as such
    elif not Path(store).exists():
        raise ConfigError(f"{store} does not exist: name a pairs.zarr, or the output directory that holds it")
    try:
        return open_pairs(store, from_copies=from_copies)
    except StoreError as error:
        if type(error) is StoreError and (lost := _lost_plan(store)):
            raise StoreError(lost) from error
        raise


def _lost_plan(store: str) -> str:
    """Advice for a store that has commits and has lost both its plan and the plan's copy; empty for other stores."""
    from sfg_dist.store import Location
    from sfg_dist.store.records import record_key

    for place in (store.rstrip("/"), f"{store.rstrip('/')}/pairs.zarr"):
        if not is_url(place) and not Path(place).is_dir():
            continue
        location = Location(place)
        records = [record_key(0), record_key(0, copy=True)]
        number = 0 if any(map(location.exists, records)) else sum(1 for _ in location.list("commits"))
        if number:
            return (
                f"{location.url} holds {counted(number, 'commit')} and no plan: {records[0]} and {records[1]} are both "
                f"lost. `sfg label` with the same job writes them again, and keeps what is committed"
            )
    return ""
