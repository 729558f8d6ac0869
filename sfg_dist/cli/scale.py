"""The command that measures how a job scales, and says how it would elsewhere."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sfg_dist.cli.command import Debug, Json, Set, command, load, number, say, whole
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.values import as_line, shown

_number = functools.partial(typer.Option, metavar="NUMBER", parser=number)
_whole = functools.partial(typer.Option, metavar="NUMBER", parser=whole)
MAX_WORKERS, MAX_CASES, MAX_REPEATS = 1_000_000, 100, 1000
Numbers = Annotated[str | None, typer.Option("--workers", help="Numbers of workers to measure, such as 1,2,4.")]


@command
def scale(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    workers: Numbers = None,
    stages: Annotated[str, typer.Option("--stages", help="label, train or both.")] = "label,train",
    modes: Annotated[str, typer.Option("--modes", help="strong, weak or both.")] = "strong",
    repeats: Annotated[int, _whole("--repeats", help="Runs of each number.")] = 3,
    simulate: Annotated[
        str | None, typer.Option("--simulate", help="Numbers of workers to predict, such as 64,256,1024.")
    ] = None,
    shard_seconds: Annotated[
        str, typer.Option("--shard-seconds", help="Seconds of a shard in the prediction.")
    ] = "1,10,60",
    store_mb_per_s: Annotated[
        float | None, _number("--store-mb-per-s", help="What the store takes in a prediction, all together.")
    ] = None,
    store_requests_per_s: Annotated[
        float | None, _number("--store-requests-per-s", help="The same of requests.")
    ] = None,
    network_ms: Annotated[
        float, _number("--network-ms", help="From a worker to the driver or back, in a prediction.")
    ] = 2.0,
    worker_mb_per_s: Annotated[
        float | None, _number("--worker-mb-per-s", help="Of one worker's link to the store in a prediction.")
    ] = None,
    starts_per_s: Annotated[
        float | None, _number("--starts-per-s", help="Workers that the cluster brings up in a second.")
    ] = None,
    shard_mb: Annotated[
        float | None, _number("--shard-mb", help="What a shard of the study moves; as measured if not given.")
    ] = None,
    load_mb: Annotated[float, _number("--load-mb", help="What each worker reads at its start.")] = 0.0,
    driver_scale: Annotated[
        float, _number("--driver-scale", help="Time of the driver's loop there, in units of this machine's.")
    ] = 1.0,
    epochs: Annotated[int | None, _whole("--epochs", help="Of each fit; 5 or the job's own, if fewer.")] = None,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--no-gpu", help="Training workers on GPUs; where there is one for each.")
    ] = None,
    compare_with: Annotated[
        str | None, typer.Option("--compare-with", help="Another study's directory, URL or scale.json.")
    ] = None,
    set_: Set = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Measure strong and weak scaling of labels and training, and predict larger clusters.

    Writes scale/scale.html and scale.json in output.dir; finished runs are kept, so the same command goes on. A fit has
    a few epochs (--epochs), whatever time the job gives it.
    """
    from sfg_dist.studies.records import to_json
    from sfg_dist.studies.scale import ScaleSettings
    from sfg_dist.studies.scale import scale as run_study
    from sfg_dist.studies.scale.page import text_lines
    from sfg_dist.studies.scale.simulated_cluster import Limits
    from sfg_dist.studies.scale.study import NUM_EPOCHS

    resolved = load(job, set_, None)
    if not load_mb >= 0:
        raise ConfigError(f"--load-mb: expected a number of 0 or more, got {load_mb:g}")
    _require_positive(
        {"--store-mb-per-s": store_mb_per_s, "--store-requests-per-s": store_requests_per_s,
         "--worker-mb-per-s": worker_mb_per_s, "--starts-per-s": starts_per_s, "--driver-scale": driver_scale,
         "--network-ms": network_ms, "--shard-mb": shard_mb, "--epochs": epochs, "--repeats": repeats}
    )  # fmt: skip
    if repeats > MAX_REPEATS:
        raise ConfigError(f"--repeats: expected at most {MAX_REPEATS:,} runs of each number, got {repeats:,}")
    if workers is None and simulate is None and compare_with is None:
        raise ConfigError("say what to measure (--workers 1,2), to predict (--simulate 64,256) or --compare-with")
    settings = ScaleSettings(
        workers=[] if workers is None else _numbers("--workers", workers),
        stages=_words(stages),
        modes=_words(modes),
        repeats=repeats,
        num_epochs=epochs or NUM_EPOCHS,
        use_gpu=gpu,
        simulated_workers=[] if simulate is None else _numbers("--simulate", simulate),
        shard_seconds=_numbers("--shard-seconds", shard_seconds, float),
        limits=Limits(
            store_bytes_per_s=None if store_mb_per_s is None else 1e6 * store_mb_per_s,
            store_requests_per_s=store_requests_per_s,
            worker_bytes_per_s=None if worker_mb_per_s is None else 1e6 * worker_mb_per_s,
            starts_per_s=starts_per_s,
            shard_bytes=1e6 * (shard_mb or 0.0),
            load_bytes=1e6 * load_mb,
            driver_scale=driver_scale,
            answer_s=network_ms / 1000,
        ),
        compare_with=compare_with,
    )
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints of its own
        document = run_study(resolved, settings, listener=_show)
    if json_:
        print(json.dumps(to_json(document), indent=1))
    else:
        place = f"report: {resolved.output.dir.rstrip('/')}/scale/scale.html"
        say(False, {}, "\n".join([*text_lines(document), place]))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str, kind: type[Any] = int) -> list[Any]:
    parse, wanted, most = (whole, "whole numbers", MAX_WORKERS) if kind is int else (number, "numbers", 1e9)
    try:
        found = [parse(word) for word in text.split(",")]
    except typer.BadParameter:
        found = [0]
    if len(found) > MAX_CASES or not all(0 < each <= most for each in found):
        raise ConfigError(
            f"{option} {shown(text)}: expected {wanted} above 0 and at most {most:,.0f}, such as 1,2,4; at most "
            f"{MAX_CASES} of them"
        )
    return found


def _require_positive(options: Mapping[str, float | None]) -> None:
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name}: expected a number above 0, got {value:g}")


def _show(event: Mapping[str, Any]) -> None:
    """One line an event, on stderr."""
    if event["event"] in ("run_started", "run_finished", "run_kept"):
        name = f"{event['stage']}, {event['mode']}, {event['num_workers']} workers, run {event['repeat'] + 1}"
        text = "" if event["event"] == "run_started" else f": {event['wall_s']:.1f} s"
        print(as_line(f"{name}{text}{' (kept)' if event['event'] == 'run_kept' else ''}"), file=sys.stderr, flush=True)
