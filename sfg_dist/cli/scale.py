"""The command that measures how a job scales, and predicts how it would scale on larger clusters."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfg_dist.cli.command import JobPath, Json, Set, command, load, number, option, say, whole
from sfg_dist.cli.display import Display
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.words import shown

if TYPE_CHECKING:
    from sfg_dist.studies.scale import ScaleSettings

_number = functools.partial(option, takes="NUMBER", parser=number)
_whole = functools.partial(option, takes="NUMBER", parser=whole)
MAX_WORKERS, MAX_CASES, MAX_REPEATS = 1_000_000, 100, 1000
POSITIVE = ("store_mb_per_s", "store_requests_per_s", "worker_mb_per_s", "starts_per_s", "driver_scale", "network_ms",
            "shard_mb", "epochs", "repeats")  # fmt: skip
Text = str | None
Number = float | None


@dataclass(frozen=True)
class ScaleOptions:
    """What to measure, to predict and to compare with."""

    workers: Annotated[Text, option("--workers", "NUMBERS", "The numbers of workers to measure, such as 1,2,4.")] = None
    stages: Annotated[str, option("--stages", "STAGES", "What to measure: label, train, or label,train.")] = (
        "label,train"
    )
    modes: Annotated[str, option("--modes", "MODES", "The scaling: strong, weak, or strong,weak.")] = "strong"
    repeats: Annotated[int, _whole("--repeats", help="The runs of each number of workers.")] = 3
    simulate: Annotated[Text, option("--simulate", "NUMBERS", "The numbers of workers to predict, such as 64,256.")] = (
        None
    )
    shard_seconds: Annotated[str, option("--shard-seconds", "NUMBERS", "Predicted: seconds of a shard.")] = "1,10,60"
    store_mb_per_s: Annotated[Number, _number("--store-mb-per-s", help="Predicted: the store's MB a second.")] = None
    store_requests_per_s: Annotated[
        Number, _number("--store-requests-per-s", help="Predicted: the store's requests a second.")
    ] = None
    network_ms: Annotated[float, _number("--network-ms", help="Predicted: milliseconds of a message.")] = 2.0
    worker_mb_per_s: Annotated[Number, _number("--worker-mb-per-s", help="Predicted: one worker's MB a second.")] = None
    starts_per_s: Annotated[Number, _number("--starts-per-s", help="Predicted: workers started in a second.")] = None
    shard_mb: Annotated[Number, _number("--shard-mb", help="Predicted: MB of a shard; by default as measured.")] = None
    load_mb: Annotated[float, _number("--load-mb", help="Predicted: MB that each worker reads at its start.")] = 0.0
    driver_scale: Annotated[
        float, _number("--driver-scale", help="Predicted: how slow the driver is; here it is 1.")
    ] = 1.0
    epochs: Annotated[int | None, _whole("--epochs", help="The epochs of a fit; by default 5, or the job's.")] = None
    gpu: Annotated[bool | None, typer.Option(help="Whether workers train on GPUs; by default if each has one.")] = None
    compare_with: Annotated[Text, option("--compare-with", "STUDY", "A directory, URL or scale.json of another.")] = (
        None
    )

    def settings(self) -> ScaleSettings:
        """The options checked and in the study's units.

        Raises:
            ConfigError: an option is wrong.
        """
        from sfg_dist.studies.scale import ScaleSettings
        from sfg_dist.studies.scale.simulated_cluster import Limits
        from sfg_dist.studies.scale.study import NUM_EPOCHS

        if not self.load_mb >= 0:
            raise ConfigError(f"--load-mb: expected a number of 0 or more, got {self.load_mb:g}")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"--{name.replace('_', '-')}: expected a number above 0, got {value:g}")
        if self.repeats > MAX_REPEATS:
            raise ConfigError(f"--repeats: expected at most {MAX_REPEATS:,} runs of each number, got {self.repeats:,}")
        if self.workers is None and self.simulate is None and self.compare_with is None:
            raise ConfigError(
                "nothing was asked for: give --workers 1,2 to measure, --simulate 64,256 to predict, or --compare-with"
            )
        limits = Limits(
            store_bytes_per_s=_bytes(self.store_mb_per_s),
            store_requests_per_s=self.store_requests_per_s,
            shard_bytes=_bytes(self.shard_mb) or 0.0,
            worker_bytes_per_s=_bytes(self.worker_mb_per_s),
            starts_per_s=self.starts_per_s,
            load_bytes=1e6 * self.load_mb,
            driver_scale=self.driver_scale,
            answer_s=self.network_ms / 1000,
        )
        return ScaleSettings(
            workers=() if self.workers is None else _numbers("--workers", self.workers),
            stages=_words(self.stages),
            modes=_words(self.modes),
            repeats=self.repeats,
            num_epochs=self.epochs or NUM_EPOCHS,
            use_gpu=self.gpu,
            simulated_workers=() if self.simulate is None else _numbers("--simulate", self.simulate),
            shard_seconds=_numbers("--shard-seconds", self.shard_seconds, float),
            limits=limits,
            compare_with=self.compare_with,
        )


@command
def scale(job: JobPath, options: ScaleOptions, set_: Set = None, json_: Json = False) -> None:
    """Measure strong and weak scaling of labels and training, and predict larger clusters.

    It writes scale/scale.html and scale.json in output.dir. Finished runs are kept, so the same command goes on. Each
    fit has a few epochs (--epochs), whatever time the job gives it.
    """
    resolved = load(job, set_, None)
    with Display(on_stderr=True) as display:  # Ray prints of its own
        from sfg_dist.studies.records import to_json
        from sfg_dist.studies.scale import scale as run_study
        from sfg_dist.studies.scale.page import text_lines

        document = run_study(resolved, options.settings(), listener=display)
    report = f"report: {resolved.output.dir.rstrip('/')}/scale/scale.html"
    say(json_, to_json(document), "\n".join([*text_lines(document), report]))


def _bytes(megabytes: float | None) -> float | None:
    return None if megabytes is None else 1e6 * megabytes


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
