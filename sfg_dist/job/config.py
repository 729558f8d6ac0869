"""The job file: one TOML document, read into frozen and checked models.

Every key has a default except ``data.source``. Unknown keys, wrong types and impossible combinations are refused
before any work starts; the message has the key, the file and the nearest valid key. Only ``pipeline``, ``distributed``
and the rooms above them see these models: the rooms below take plain arguments, but for the fit, whose settings are
``TrainConfig``.
"""

from __future__ import annotations

import codecs
import datetime as dt
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sfg_dist.job.arguments import MAX_COUNT
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.key_types import MustBe
from sfg_dist.job.paths import expanded, require_no_secrets
from sfg_dist.job.toml_documents import apply_override, checked, parse_document, read_document
from sfg_dist.job.words import printable, shown


def integral(value: Any) -> Any:
    """A count that TOML reads as a float, such as 1e6, as a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _iso(value: Any) -> Any:
    """A date or time of TOML as text."""
    return value.isoformat() if isinstance(value, (dt.date, dt.time)) else value


def _is_size(value: str) -> str:
    if re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", value, re.ASCII) is None:
        raise ValueError("a size is WIDTHxDEPTH, such as 64x3")
    return value


def _separator(value: Any) -> Any:
    if isinstance(value, str) and value not in ("auto", "tab", "space") and (len(value) != 1 or value in '"\r\n'):
        raise ValueError('separator must be one character, "tab", "space" or "auto"')
    return {"tab": "\t", "space": " "}.get(value, value) if isinstance(value, str) else value


def _encoding(value: str) -> str:
    if value != "auto":
        try:
            codecs.lookup(value)
        except (LookupError, ValueError):
            raise ValueError('encoding is none that Python knows, as "cp1252" and "utf-16" are') from None
    return value


PositiveInt = Annotated[int, BeforeValidator(integral), Field(gt=0, le=MAX_COUNT)]
Count = Annotated[int, BeforeValidator(integral), Field(ge=0, le=MAX_COUNT)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Threads = Annotated[int, BeforeValidator(integral), Field(gt=0, le=4096)]
Width = Annotated[int, BeforeValidator(integral), Field(gt=0, le=65_536)]
Depth = Annotated[int, BeforeValidator(integral), Field(gt=0, le=1000)]
Workers = Annotated[int, BeforeValidator(integral), Field(gt=0, le=1_000_000)]
Seed = Annotated[int, BeforeValidator(integral), Field(ge=0, lt=2**63)]
Place = Annotated[str, AfterValidator(expanded)]
End = Annotated[
    float | str, BeforeValidator(_iso), MustBe("a number, or of dates and times a text such as '2024-06-01'")
]
Range = Annotated[list[End], Field(min_length=2, max_length=2)]

METRICS = (
    "c2st_auc",
    "sliced_wasserstein",
    "energy_distance",
    "ks_mean",
    "marginal_kl_mean",
    "correlation_error",
    "nearest_train_distance",
    "kl",
)

COMPARE_METHODS = ("sfg", "published", "nsf", "realnvp", "flow_matching", "score_sde", "score_ode")

# Fixed grid: any; with labels.solver_tolerance: those with an error estimate of their own.
ADAPTIVE_SOLVER_NAMES = ("bs32", "dopri5", "tsit5", "exp_abm3", "exp_abm4", "exp_abm5")
SOLVER_NAMES = (
    *("euler", "midpoint", "heun", "ralston3", "kutta3", "rk4", "rk38", "exp_ab1", "exp_ab2", "exp_ab4"),
    *ADAPTIVE_SOLVER_NAMES,
)


# Keys of the data table that say how a .csv file is written. No identity has them: a fingerprint says what was read.
READING_KEYS = {"header", "separator", "decimal", "encoding", "index"}


class _Section(BaseModel):
    """One table of the job file: immutable, closed to unknown keys, strict about types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class SplitArrays(_Section):
    """Names of the arrays of a table that is split already."""

    train: str | list[str]
    validation: str | list[str] | None = None
    test: str | list[str]


class DataConfig(_Section):
    """Where the table is and how it is cleaned and split."""

    source: Place = Field(min_length=1)
    """The table: a file, a folder or glob of files, an `s3://` URL, or a built-in name such as `moons`."""
    array: str = "X"
    """Of a file with several arrays, the one that is read."""
    append: list[str] = []
    """More arrays of the file, whose columns follow those of `array`."""
    arrays: SplitArrays | None = None
    """Names of the arrays of a table that comes split already: `{train = ..., validation = ..., test = ...}`."""
    columns: list[str] | None = None
    """The columns that are read, in this order; all where not given."""
    condition: Annotated[list[str], Field(min_length=1)] | None = None
    """Columns that are given when samples are drawn; the others are drawn given these."""
    missing: Literal["refuse", "drop"] = "refuse"
    """Rows with a missing value: `refuse` names them and ends, `drop` leaves them out."""
    identifiers: Literal["refuse", "drop"] = "refuse"
    """Whole numbers that float64 cannot tell apart: `refuse` names the column and ends, `drop` leaves it out. Since
    0.2."""
    constant: Literal["refuse", "keep"] = "refuse"
    """Columns of one value: `refuse` names them and ends, `keep` puts the value back in samples."""
    dequantize: Literal["auto", "none"] | dict[str, PositiveFloat] = "auto"
    """Noise on columns that lie on a grid: found (`auto`), none, or the step of each column."""
    bounds: Literal["observed", "none"] | dict[str, Range] = "observed"
    """The range that samples of a column may not leave: as in the training rows (`observed`), none, or `[low, high]` of
    each column. Since 0.2."""
    max_rows: PositiveInt | None = None
    """The first rows of the table, at most so many; all where not given."""
    header: Literal["auto"] | bool = "auto"
    """Of text files, whether the first line has names. Since 0.2."""
    separator: Annotated[str, BeforeValidator(_separator)] = "auto"
    """Of text files: one character, `tab` or `space`. Since 0.2."""
    decimal: Literal["auto", ".", ","] = "auto"
    """Of text files, the decimal mark. Since 0.2."""
    encoding: Annotated[str, AfterValidator(_encoding)] = "auto"
    """Of text files, an encoding that Python knows. Since 0.2."""
    index: Literal["auto"] | bool = "auto"
    """Of text files, whether the first column numbers the rows and is left out. Since 0.2."""
    split: list[float] = [0.8, 0.1, 0.1]
    """Shares of training, validation and test rows; they sum to 1."""
    shuffle: Literal["permutation", "legacy", "none"] = "permutation"
    """The order of rows before the split: a permutation by `seed`, `none`, or `legacy` as in the published code."""
    seed: Seed = 0
    """Of the permutation and of the noise on grids."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if len(self.split) != 3 or not (min(self.split) >= 0 and abs(sum(self.split) - 1) <= 1e-6):
            raise ValueError("split must be three fractions, train, validation and test, that sum to 1")
        if self.split[0] <= 0 or self.split[2] <= 0:
            raise ValueError("split must leave rows for training and for the test")
        if self.columns is not None and len(set(self.columns)) != len(self.columns):
            raise ValueError("columns names a column twice")
        if self.columns == []:
            raise ValueError("columns must name at least one column, or be left out for all")
        for name, (low, high) in ({} if isinstance(self.bounds, str) else self.bounds).items():
            if not isinstance(low, str) and not isinstance(high, str) and not low < high:
                raise ValueError(f"bounds.{name} is [{low:g}, {high:g}]: the first must be below the second")
        if self.condition is not None and len(set(self.condition)) != len(self.condition):
            raise ValueError("condition names a column twice")
        if missing := [name for name in self.condition or () if self.columns is not None and name not in self.columns]:
            raise ValueError(f"condition names {missing[0]!r}, which columns does not")
        return self


class TransformConfig(_Section):
    """How each column is mapped before the flow sees it."""

    kind: Literal["quantile", "standardize", "none"] = "quantile"
    """How columns are mapped before the flow: each to a normal law by its quantiles, each to mean 0 and spread 1, or
    not at all."""


class LabelsConfig(_Section):
    """How many pairs are made, and by which flow."""

    num_pairs: PositiveInt = 100_000
    """Pairs of latents and labels to make."""
    seed: Seed = 0
    """Of the latents."""
    t_min: Annotated[float, Field(ge=1e-30, lt=1)] | Literal["auto"] = 1e-3
    """The blur at which the flow ends, as a variance in units of the spread squared; `auto` chooses it by leave-one-out
    likelihood."""
    schedule: Literal["linear", "linear_floor"] = "linear"
    """`linear` is the paper's, `linear_floor` that of its authors' published code."""
    estimator: Literal["full", "minibatch"] = "full"
    """The score from all rows (`full`), or from a random mini-batch for each batch of latents, as published
    (`minibatch`)."""
    num_reference: PositiveInt = 1000
    """Rows of a mini-batch."""
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    """Certified bound of the posterior mean's error at every evaluation, in units of the spread; 0 sums over every row.
    """
    certificate: Literal["bound", "measured"] = "bound"
    """Whether the tolerance is a certified bound, or what errors keep as measured at 99 % of the evaluations; faster on
    large tables, on CPUs, with the table in memory."""
    solver: Literal[SOLVER_NAMES] = "exp_abm4"  # type: ignore[valid-type]
    """The method that integrates the flow."""
    solver_tolerance: PositiveFloat | None = None
    """Each row takes its own steps, to this error; for solvers that estimate their error."""
    num_evaluations: Annotated[int, BeforeValidator(integral), Field(gt=0, le=100_000)] = 22
    """Evaluations of the posterior mean on the way of a latent to its label."""
    time_grid: Literal["graded", "uniform", "fitted"] = "graded"
    """Where the evaluations lie; `fitted` moves them to where they lower the error most on this table, once, for the
    work of about 4600 labels."""
    num_threads: Threads = 1
    """CPU threads of an actor; they decide the last bits."""
    memory_gib: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    """Memory that an actor may hold in all, in GiB; a larger reference is streamed with the same bits."""
    direction: Literal["decode", "encode", "both"] = "decode"
    """Latents to labels (`decode`), rows to latents (`encode`), or shards of each in turn (`both`)."""
    latents: Place | None = None
    """A table of your own query points in place of random latents."""
    shard_rows: PositiveInt = 4096
    """Rows of a shard, the unit of work and of what is committed."""
    batch_size: PositiveInt = 1024
    """Rows that are integrated together; they decide the last bits."""
    gpu_batch_size: PositiveInt | None = None
    """The same on GPUs; `batch_size` where not given."""
    condition_neighbors: PositiveInt | None = None
    """With `data.condition`, the nearest rows that a condition's law is estimated from; 512 where not given."""
    condition_bandwidth: PositiveFloat | None = None
    """With `data.condition`, the width of their kernel; half the distance to the farthest of them where not given."""
    condition_adjust: Literal["linear", "none"] | None = None
    """With `data.condition`, whether they are carried to the condition along their linear regression."""

    @model_validator(mode="after")
    def _check(self) -> LabelsConfig:
        if self.latents is not None and self.direction == "both":
            raise ValueError('direction = "both" needs drawn latents: leave out latents or choose one direction')
        if self.solver_tolerance is not None and self.solver not in ADAPTIVE_SOLVER_NAMES:
            raise ValueError(
                f"solver_tolerance needs a solver that estimates its error ({', '.join(ADAPTIVE_SOLVER_NAMES)}), "
                f"got solver = {self.solver!r}"
            )
        if self.gpu_batch_size is not None and self.estimator != "full":
            raise ValueError('gpu_batch_size: each batch of estimator = "minibatch" has a reference of its own')
        if self.time_grid == "fitted" and self.solver_tolerance is not None:
            raise ValueError('time_grid = "fitted" is a grid for all rows; with solver_tolerance each row has its own')
        if self.time_grid == "fitted" and self.estimator != "full":
            raise ValueError('time_grid = "fitted" is fitted to all rows: it needs estimator = "full"')
        if self.certificate == "measured":
            for key, fits, advice in (
                ("estimator", self.estimator == "full", 'take "full"'),
                ("tolerance", self.tolerance > 0, "take a number above 0"),
                ("solver_tolerance", self.solver_tolerance is None, "leave it out"),
            ):
                if not fits:
                    value = getattr(self, key)
                    raise ValueError(f'{key} = {value!r} does not go with certificate = "measured": {advice}')
        return self


REMOVED: Mapping[str, Any] = {"objective": "mse", "num_noise": 0}
"""Keys of train that earlier versions had. Their job files and models name them with these values, which still hold."""


def without_removed(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of train without those that are gone and have the value that still holds."""
    return {name: value for name, value in keys.items() if name not in REMOVED or value != REMOVED[name]}


class TrainConfig(_Section):
    """The network and how it is fitted."""

    width: Width = 192
    """Units of an inner layer."""
    depth: Depth = 3
    """Inner layers, or residual blocks."""
    block: Literal["residual", "plain"] = "residual"
    """Residual blocks with normalisation, or plain layers."""
    activation: Literal["silu", "gelu", "relu", "tanh"] = "gelu"
    """The nonlinearity."""
    linear_skip: bool = True
    """Whether a linear map from input to output is added."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the inner layers' matrices and AdamW for the rest, or AdamW for all."""
    batch_size: PositiveInt = 2048
    """Pairs of a step, over all workers."""
    learning_rate: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 6e-3
    """The largest learning rate."""
    learning_rate_schedule: Literal["cosine", "stable_decay", "constant"] = "cosine"
    """How the rate falls: as a cosine, at the end only, or never."""
    weight_decay: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.1
    """Decay of the weights, times the learning rate, a step."""
    num_epochs: PositiveInt = 50
    """Passes over the pairs, at most."""
    max_time_s: Seconds | None = None
    """Seconds of training, at most; the result then depends on the machine's speed."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the average of weights that is kept as the network."""
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of the pairs that is held out, 65,536 at most."""
    shuffle_rows: PositiveInt = 262_144
    """Rows of the window within which pairs are shuffled."""
    calibrate: bool = True
    """Whether maps are fitted after the network that undo the shrinking of its samples."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient."""
    patience: PositiveInt | None = None
    """Epochs without a lower held-out loss before the fit ends; the best weights are kept."""
    checkpoint_interval_s: Seconds = 30.0
    """Seconds between checkpoints."""
    keep_checkpoints: Annotated[int, BeforeValidator(integral), Field(ge=2, le=1_000_000)] = 2
    """Checkpoints that are kept."""
    num_workers: Workers | list[Workers] = 1
    """Ranks of the fit, or `[fewest, most]` to follow the cluster's nodes."""
    num_threads: Threads | None = None
    """CPU threads of the fit; all where not given."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; `auto` takes bfloat16 where the processor has units for it."""
    encoder: bool = False
    """Whether a second network learns the way back, for `log_prob` and `encode`."""
    encoder_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The encoder's share of `max_time_s`, where it is not fitted beside the generator."""
    encoder_steps: PositiveInt = 20_000
    """Steps of the encoder's fit, at most."""
    encoder_width: Width = 256
    """Units of an inner layer of the encoder."""
    encoder_depth: Depth = 3
    """Inner layers of the encoder."""
    seed: Seed = 0
    """Of the weights and of the order of the pairs."""

    @model_validator(mode="before")
    @classmethod
    def _check_removed(cls, keys: Any) -> Any:
        if not isinstance(keys, Mapping):
            return keys
        if found := [name for name in REMOVED if name in without_removed(keys)]:
            raise ValueError(f"leave out {' and '.join(found)}: every fit minimises the mean squared error now")
        return without_removed(keys)

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if isinstance(self.num_workers, list) and not (
            len(self.num_workers) == 2 and self.num_workers[0] <= self.num_workers[1]
        ):
            raise ValueError("num_workers must be a number, or [the fewest, the most]")
        return self


class EvaluateConfig(_Section):
    """What is measured on the samples and the labels."""

    num_samples: Annotated[int, BeforeValidator(integral), Field(ge=2, le=1_000_000_000)] = 10_000
    """Samples that are drawn and measured."""
    metrics: list[Literal[METRICS]] = Field(default=list(METRICS), min_length=1)  # type: ignore[valid-type]
    """The figures that are computed."""
    seed: Seed = 0
    """Of the samples and of the figures."""


class CompareConfig(_Section):
    """Which methods stand beside each other, and for how long each may work."""

    methods: list[Literal[COMPARE_METHODS]] = Field(default=list(COMPARE_METHODS), min_length=1)  # type: ignore[valid-type]
    """The methods that stand beside each other."""
    max_time_s: Seconds = 300.0
    """Seconds of labels and fit of each method."""
    num_seeds: Annotated[int, BeforeValidator(integral), Field(gt=0, le=10_000)] = 1
    """Fits of each method."""
    selection_time_s: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 15.0
    """Seconds of the shortest fits that choose a peer's transform and learning rate; 0 chooses nothing."""
    max_label_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The labels' share of the budget, at most."""
    num_threads: Threads | None = None
    """CPU threads; all where not given."""
    sizes: list[Annotated[str, AfterValidator(_is_size), MustBe("WIDTHxDEPTH, such as 64x3")]] = []
    """Ours again by other widths and depths."""

    @model_validator(mode="after")
    def _check(self) -> CompareConfig:
        for name, values in (("methods", self.methods), ("sizes", self.sizes)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names one twice")
        if self.sizes and "sfg" not in self.methods:
            raise ValueError('sizes are of "sfg", which is not among the methods')
        return self


class ExecutorConfig(_Section):
    """Where the work runs."""

    kind: Literal["ray", "inline"] = "ray"
    """Workers of Ray, or this process without Ray."""
    num_actors: Workers | None = None
    """Actors that make labels; as many as fit where not given."""
    num_gpus_per_actor: Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False)] | None = None
    """GPUs of an actor; below 1 several share one."""
    num_cpu_actors: Annotated[int, BeforeValidator(integral), Field(ge=0, le=1_000_000)] = 0
    """Actors on CPUs beside those on GPUs."""
    actors_per_group: PositiveInt = 1
    """Actors that share one reference, each a part of it."""
    shard_timeout_s: Seconds | None = None
    """Seconds after which a shard is taken to hang; ten times the median, a minute at least, where not given."""
    max_attempts: PositiveInt = 4
    """Attempts at a shard."""
    notice_s: Seconds | None = None
    """How long shards at work may go on after SIGUSR2; 30 s, and as a Slurm job as long as there is time, where not
    given."""
    price_per_hour: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    """Of one actor, for `sfg plan`."""
    address: Annotated[str, AfterValidator(require_no_secrets)] | None = None
    """Of a running Ray cluster. Taken from the command line alone, since your Ray token is sent there."""


class OutputConfig(_Section):
    """Where everything that a run leaves is written."""

    dir: Place = Field(default="runs/job", min_length=1)
    """Where everything that a run leaves is written: a path, or `s3://bucket/prefix`; `runs/<job>` where not given."""


class Job(_Section):
    """A whole job, resolved: every key has its value."""

    data: DataConfig
    transform: TransformConfig = TransformConfig()
    labels: LabelsConfig = LabelsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    compare: CompareConfig = CompareConfig()
    executor: ExecutorConfig = ExecutorConfig()
    output: OutputConfig = OutputConfig()

    def to_toml(self) -> str:
        """The job as a TOML document; keys whose value is None are left out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))

    def changed(self, **tables: Mapping[str, Any]) -> Job:
        """The job with other keys in some of its tables, checked anew; None takes a key out.

        Example:
            >>> Job(data=DataConfig(source="moons")).changed(labels={"seed": 1}).labels.seed
            1

        Raises:
            ConfigError: a key is unknown or a value is wrong.
        """
        document = self.model_dump(exclude_none=True)
        return resolve_job(document | {name: document[name] | keys for name, keys in tables.items()})


def load_job(path: str | Path, overrides: Iterable[str] = ()) -> Job:
    """Read a job file and apply ``table.key=value`` overrides to it.

    A value such as that of ``"labels.num_pairs=1000"`` is TOML, or a bare string. ``output.dir`` is by default
    ``runs/<stem of the file>``.

    Raises:
        ConfigError: the file cannot be read, a key or value is wrong, or the file names a cluster.
    """
    path, overrides = Path(path), list(overrides)
    job = parse_job(read_document(path, "job file"), overrides, origin=str(path), default_dir=f"runs/{path.stem}")
    is_asked_for = any(assignment.partition("=")[0].strip() == "executor.address" for assignment in overrides)
    if job.executor.address is not None and job.executor.kind == "ray" and not is_asked_for:
        raise ConfigError(
            f"{printable(str(path))}: executor.address = {shown(job.executor.address)} is not taken from a file: a job "
            f"file may come from anywhere, and your Ray token would be sent there. To run on that cluster, leave the "
            f"key out and give --set executor.address=ADDRESS"
        )
    return job


def parse_job(text: str, overrides: Iterable[str] = (), *, origin: str, default_dir: str = "runs/job") -> Job:
    """A job from the text of a TOML document.

    Args:
        text: the document.
        overrides: as for ``load_job``.
        origin: what messages call the job.
        default_dir: ``output.dir`` where the document names none.

    Raises:
        ConfigError: the document is not TOML, or a key or value is wrong.
    """
    document = parse_document(text, f"job file {origin}")
    document.setdefault("output", {})
    if isinstance(document["output"], dict):
        document["output"].setdefault("dir", default_dir)
    for assignment in overrides:
        apply_override(document, assignment, Job)
    return resolve_job(document, origin=origin)


def resolve_job(document: Mapping[str, Any], *, origin: str = "job") -> Job:
    """A job from a mapping of tables; messages call it ``origin``.

    Raises:
        ConfigError: a key is unknown or a value is wrong; all problems are listed.
    """
    return checked(Job, document, origin)
