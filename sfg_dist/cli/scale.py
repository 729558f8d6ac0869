"""The command that measures how a job scales, and says how it would elsewhere."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfg_dist.cli.command import Debug, Json, Set, command, load, number, say, whole
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.values import as_line, shown

if TYPE_CHECKING:
    from sfg_dist.studies.scale.simulation import Limits

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
        float | None,
        _number("--store-mb-per-s", help="What the store takes in a prediction, all together."),
    ] = None,
    store_requests_per_s: Annotated[
        float | None, _number("--store-requests-per-s", help="The same of requests.")
    ] = None,
    network_ms: Annotated[
        float,
        _number("--network-ms", help="From a worker to the driver or back, in a prediction."),
    ] = 2.0,
    worker_mb_per_s: Annotated[
        float | None,
        _number("--worker-mb-per-s", help="Of one worker's link to the store in a prediction."),
    ] = None,
    starts_per_s: Annotated[
        float | None,
        _number("--starts-per-s", help="Workers that the cluster brings up in a second."),
    ] = None,
    shard_mb: Annotated[
        float | None,
        _number("--shard-mb", help="What a shard of the study moves; as measured if not given."),
    ] = None,
    load_mb: Annotated[float, _number("--load-mb", help="What each worker reads at its start.")] = 0.0,
    driver_scale: Annotated[
        float,
        _number("--driver-scale", help="Time of the driver's loop there, in units of this machine's."),
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
    from sfg_dist.studies.scale import compare_studies
    from sfg_dist.studies.scale.document import read_study, write_study
    from sfg_dist.studies.scale.simulation import Limits
    from sfg_dist.studies.scale.study import NUM_EPOCHS, Study

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
    # All that can be wrong with the words is found before anything is measured.
    larger = [] if simulate is None else _numbers("--simulate", simulate)
    lengths = _numbers("--shard-seconds", shard_seconds, float)
    if compare_with is not None:
        read_study(compare_with)
    if workers is not None:
        study = Study(
            resolved, _numbers("--workers", workers), stages=_words(stages), modes=_words(modes), repeats=repeats,
            num_epochs=epochs or NUM_EPOCHS, use_gpu=gpu, listener=_show,
        )  # fmt: skip
        if larger and "label" not in _words(stages) and not study.has_labels:
            raise ConfigError("--simulate takes its costs from label runs, of which there are none: add --stages label")
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints of its own
            document = study.run()
    else:
        document = read_study(resolved.output.dir)
    if larger:
        from sfg_dist.studies.scale.predict import predict, shard_bytes, slowdown, validate

        limits = Limits(
            store_bytes_per_s=None if store_mb_per_s is None else 1e6 * store_mb_per_s,
            store_requests_per_s=store_requests_per_s,
            shard_bytes=shard_bytes(document) if shard_mb is None else 1e6 * shard_mb,
            worker_bytes_per_s=None if worker_mb_per_s is None else 1e6 * worker_mb_per_s,
            starts_per_s=starts_per_s,
            load_bytes=1e6 * load_mb,
            driver_scale=driver_scale,
        )
        document |= {"validation": validate(document), "slowdown": slowdown(document)}
        document["assumptions"] = _assumptions(limits, network_ms)
        document["predictions"] = predict(
            document, larger, shard_seconds=lengths, limits=limits, answer_s=network_ms / 1000
        )
    if compare_with is not None:
        document["comparison"] = compare_studies(compare_with, resolved.output.dir)
    if larger or compare_with is not None:
        write_study(resolved.output.dir, document)
    if json_:
        print(json.dumps(document, indent=1))
    else:
        say(False, {}, "\n".join([*_lines(document), f"report: {resolved.output.dir.rstrip('/')}/scale/scale.html"]))


def _assumptions(limits: Limits, network_ms: float) -> dict[str, str]:
    """What a prediction depends on beside the measured costs, in words."""

    def shown(value: float | None, unit: str, scale: float = 1.0) -> str:
        return "no limit" if value is None else f"{value / scale:g} {unit}"

    return {
        "the store's bandwidth": shown(limits.store_bytes_per_s, "MB/s", 1e6),
        "its requests": shown(limits.store_requests_per_s, "a second"),
        "a worker's link": shown(limits.worker_bytes_per_s, "MB/s", 1e6),
        "workers brought up": "all at once" if limits.starts_per_s is None else f"{limits.starts_per_s:g} a second",
        "a shard of the study": f"{limits.shard_bytes / 1e6:.3g} MB",
        "read by each worker at its start": f"{limits.load_bytes / 1e6:g} MB",
        "to the driver or back": f"{network_ms:g} ms",
        "the driver's machine": f"{limits.driver_scale:g} times the time of this one",
    }


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


def _lines(document: Mapping[str, Any]) -> list[str]:
    from sfg_dist.studies.scale.page import comparison_lines, law_lines, prediction_table, validation_lines, verdict

    lines = [*verdict(document), *law_lines(document["fit"]), *validation_lines(document)]
    lines += [
        f"{row['workers']:>6} workers, shards of {row['shard']} s: efficiency {row['efficiency']} "
        f"({row['at_work']} without start-up), limited by {row['limit']}"
        for row in prediction_table(document.get("predictions", []))
    ]
    lines += comparison_lines(document)
    return lines


def _show(event: Mapping[str, Any]) -> None:
    """One line an event, on stderr."""
    if event["event"] in ("run_started", "run_finished", "run_kept"):
        name = f"{event['stage']}, {event['mode']}, {event['num_workers']} workers, run {event['repeat'] + 1}"
        text = "" if event["event"] == "run_started" else f": {event['wall_s']:.1f} s"
        print(as_line(f"{name}{text}{' (kept)' if event['event'] == 'run_kept' else ''}"), file=sys.stderr, flush=True)
