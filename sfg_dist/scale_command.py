"""The command that measures how a job scales, and says how it would elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sfg_dist.command import Debug, Json, Set, command, load, say
from sfg_dist.errors import ConfigError

Numbers = Annotated[str | None, typer.Option("--workers", help="Numbers of workers to measure, such as 1,2,4.")]


@command
def scale(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    workers: Numbers = None,
    stages: Annotated[str, typer.Option("--stages", help="label, train or both.")] = "label,train",
    modes: Annotated[str, typer.Option("--modes", help="strong, weak or both.")] = "strong",
    repeats: Annotated[int, typer.Option("--repeats", help="Runs of each number.")] = 3,
    simulate: Annotated[
        str | None, typer.Option("--simulate", help="Numbers of workers to predict, such as 64,256,1024.")
    ] = None,
    shard_seconds: Annotated[
        str, typer.Option("--shard-seconds", help="Seconds of a shard in the prediction.")
    ] = "1,10,60",
    store_mb_per_s: Annotated[
        float | None, typer.Option("--store-mb-per-s", help="What the store takes in a prediction, all together.")
    ] = None,
    store_requests_per_s: Annotated[
        float | None, typer.Option("--store-requests-per-s", help="The same of requests.")
    ] = None,
    network_ms: Annotated[
        float, typer.Option("--network-ms", help="From a worker to the driver or back, in a prediction.")
    ] = 2.0,
    worker_mb_per_s: Annotated[
        float | None, typer.Option("--worker-mb-per-s", help="Of one worker's link to the store in a prediction.")
    ] = None,
    starts_per_s: Annotated[
        float | None, typer.Option("--starts-per-s", help="Workers that the cluster brings up in a second.")
    ] = None,
    shard_mb: Annotated[
        float | None, typer.Option("--shard-mb", help="What a shard of the study moves; as measured if not given.")
    ] = None,
    load_mb: Annotated[float, typer.Option("--load-mb", help="What each worker reads at its start.")] = 0.0,
    driver_scale: Annotated[
        float, typer.Option("--driver-scale", help="Time of the driver's loop there, in units of this machine's.")
    ] = 1.0,
    compare_with: Annotated[
        Path | None, typer.Option("--compare-with", help="Another study's scale.json: say which is faster.")
    ] = None,
    set_: Set = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Measure strong and weak scaling of labels and training, and predict larger clusters.

    Writes scale/scale.html and scale.json in output.dir; finished runs are kept, so the same command goes on.
    """
    from sfg_dist.distributed.simulation import Limits
    from sfg_dist.scale import compare_studies
    from sfg_dist.scale.study import Study, read_study

    resolved = load(job, set_, None)
    _require_positive(
        {"--store-mb-per-s": store_mb_per_s, "--store-requests-per-s": store_requests_per_s,
         "--worker-mb-per-s": worker_mb_per_s, "--starts-per-s": starts_per_s, "--driver-scale": driver_scale}
    )  # fmt: skip
    if workers is None and simulate is None and compare_with is None:
        raise ConfigError("say what to measure (--workers 1,2), to predict (--simulate 64,256) or --compare-with")
    if workers is not None:
        study = Study(
            resolved, _numbers("--workers", workers), stages=_words(stages), modes=_words(modes), repeats=repeats,
            listener=_show,
        )  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints of its own
            document = study.run()
    else:
        document = read_study(resolved.output.dir)
    if simulate is not None:
        from sfg_dist.scale.predict import predict, shard_bytes, validate
        from sfg_dist.scale.study import write_study

        limits = Limits(
            store_bytes_per_s=None if store_mb_per_s is None else 1e6 * store_mb_per_s,
            store_requests_per_s=store_requests_per_s,
            shard_bytes=shard_bytes(document) if shard_mb is None else 1e6 * shard_mb,
            worker_bytes_per_s=None if worker_mb_per_s is None else 1e6 * worker_mb_per_s,
            starts_per_s=starts_per_s,
            load_bytes=1e6 * load_mb,
            driver_scale=driver_scale,
        )
        document["validation"] = validate(document)
        document["predictions"] = predict(
            document,
            _numbers("--simulate", simulate),
            shard_seconds=_numbers("--shard-seconds", shard_seconds, float),
            limits=limits,
            answer_s=network_ms / 1000,
        )
        write_study(resolved, document)
    if compare_with is not None:
        document["comparison"] = compare_studies(compare_with, resolved.output.dir)
    if json_:
        print(json.dumps(document, indent=1))
    else:
        say(False, {}, "\n".join([*_lines(document), f"report: {resolved.output.dir.rstrip('/')}/scale/scale.html"]))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str, kind: type[Any] = int) -> list[Any]:
    try:
        return [kind(word) for word in _words(text)]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option} {text}: expected {wanted} such as 1,2,4") from None


def _require_positive(options: Mapping[str, float | None]) -> None:
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} {value:g}: expected a number above 0")


def _lines(document: Mapping[str, Any]) -> list[str]:
    from sfg_dist.scale.page import law_lines, prediction_table, verdict

    lines = [*verdict(document), *law_lines(document["fit"])]
    lines += [
        f"simulated {entry['num_workers']} workers: {entry['predicted_s']:.1f} s, measured {entry['measured_s']:.1f} s"
        for entry in document.get("validation", ())
    ]
    lines += [
        f"{row['workers']:>6} workers, shards of {row['shard']} s: efficiency {row['efficiency']} "
        f"({row['at_work']} without start-up), limited by {row['limit']}"
        for row in prediction_table(document.get("predictions", []))
    ]
    lines += [
        f"{entry['case']}, {entry['num_workers']} workers: {entry['ratio']:.2f} times as long "
        f"({entry['ratio_low']:.2f} to {entry['ratio_high']:.2f})"
        for entry in document.get("comparison", ())
    ]
    return lines


def _show(event: Mapping[str, Any]) -> None:
    """One line an event, on stderr."""
    if event["event"] in ("run_started", "run_finished", "run_kept"):
        name = f"{event['stage']}, {event['mode']}, {event['num_workers']} workers, run {event['repeat'] + 1}"
        text = "" if event["event"] == "run_started" else f": {event['wall_s']:.1f} s"
        print(f"{name}{text}{' (kept)' if event['event'] == 'run_kept' else ''}", file=sys.stderr, flush=True)
