"""Commands on a store of pairs: how far it is, whether it is sound, and how to mend or extend it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfg_dist.command import Debug, Json, command
from sfg_dist.errors import ConfigError

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
        bool, typer.Option("--watch", help="Show it again and again until it is complete, or Ctrl-C.")
    ] = False,
    interval: Annotated[float, typer.Option("--interval", help="Seconds between two looks, with --watch.")] = 2.0,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print Prometheus' text format, for a textfile collector.")
    ] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Say how far a store of pairs is, and who works at it.

    Reads the store alone, so it works from any machine, while labels are made and after. With --watch and --json,
    prints one document a line.
    """
    from sfg_dist.store.status import StatusReader

    if sum((json_, prometheus)) > 1 or (prometheus and watch):
        raise ConfigError("--prometheus prints one document of its own: leave out --json and --watch")
    if not 0.1 <= interval <= 86_400:
        raise ConfigError(f"--interval must lie in 0.1 to 86400 seconds, got {interval:g}")
    reader = StatusReader(_open(store))
    if watch:
        from sfg_dist.statusview import watch as look_again_and_again

        look_again_and_again(reader, interval_s=interval, as_json=json_)
        return
    state = reader.read(time.time())
    if prometheus:
        from sfg_dist.prometheus import prometheus_text

        print(prometheus_text(state), end="")
    elif json_:
        print(json.dumps(state.to_json(), indent=1))
    else:
        from sfg_dist.statusview import open_console, status_page

        open_console().print(status_page(state), soft_wrap=True)


def _open(store: str) -> Pairs:
    from sfg_dist.store import open_pairs

    if "://" not in store and not Path(store).exists():
        raise ConfigError(f"{store} does not exist: name a pairs.zarr, or the output directory that holds it")
    return open_pairs(store)
