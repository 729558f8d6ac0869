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
from sfg_dist.job.words import as_line, shown


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
            raise ValueError('encoding must be a name that Python knows, such as "cp1252" or "utf-16"') from None
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

ColumnKind = Annotated[
    Literal["number", "integer", "category", "boolean", "datetime", "ordinal"]
    | Annotated[list[str | int | float | bool], Field(min_length=1, max_length=1000)],
    MustBe("number, integer, category, boolean, datetime, ordinal, or a list of values in their order"),
]

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

# What compare.methods = "auto" stands for: on tables of numbers, and on those with categories or missing values.
NUMBER_METHODS = ("sfg", "published", "nsf", "realnvp", "flow_matching", "score_sde", "score_ode")
MIXED_METHODS = ("sfg", "gaussian_copula", "tabddpm")
COMPARE_METHODS = (*NUMBER_METHODS, "gaussian_copula", "tabddpm", "ctgan", "tvae", "forest_diffusion")

# Fixed grid: any; with labels.solver_tolerance: those with an error estimate of their own.
ADAPTIVE_SOLVER_NAMES = ("bs32", "dopri5", "tsit5", "exp_abm3", "exp_abm4", "exp_abm5")
SOLVER_NAMES = (
    *("euler", "midpoint", "heun", "ralston3", "kutta3", "rk4", "rk38", "exp_ab1", "exp_ab2", "exp_ab4"),
    *ADAPTIVE_SOLVER_NAMES,
)


# Keys of the data table that say how a .csv file is written. No identity has them: a fingerprint says what was read.
READING_KEYS = {"header", "separator", "decimal", "encoding", "index", "null_values"}


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
    """The array that is read, in a file that has several."""
    append: list[str] = []
    """More arrays of the file, whose columns follow those of `array`."""
    arrays: SplitArrays | None = None
    """Names of the arrays of a table that is split already: `{train = "A", validation = "B", test = "C"}`."""
    columns: list[str] | None = None
    """The columns that are read, in this order. By default all are."""
    condition: Annotated[list[str], Field(min_length=1)] | None = None
    """Columns whose values are given when samples are drawn. The other columns are drawn for those values."""
    types: Literal["auto"] | dict[str, ColumnKind] = "auto"
    """What columns hold: as the file says (`auto`), or for each column that is named `number`, `integer`, `category`,
    `boolean`, `datetime`, `ordinal`, or the order of an ordinal one, such as `["low", "mid", "high"]`. Since 0.2."""
    missing: Literal["keep", "drop", "refuse"] = "keep"
    """Missing values: `keep` learns where they are and draws them too, `drop` leaves out the rows with one, `refuse`
    names them and ends."""
    dependencies: Literal["auto", "ignore"] = "auto"
    """A column that another one determines in all rows: `auto` leaves it out of the flow and looks it up, `ignore`
    takes it as any other. Since 0.2."""
    identifiers: Literal["refuse", "drop"] = "refuse"
    """Whole numbers that float64 cannot tell apart, text that differs from row to row, and text of more than 1000
    values: `refuse` names the column and ends, `drop` leaves it out. Since 0.2."""
    constant: Literal["refuse", "keep"] = "refuse"
    """Columns of one value: `refuse` names them and ends, `keep` puts the value back in samples."""
    dequantize: Literal["auto", "none"] | dict[str, PositiveFloat] = "auto"
    """Columns on a grid get noise of one step, and their samples are put back on the grid: the columns that are found
    (`auto`), none, or those named here with their steps."""
    bounds: Literal["observed", "none"] | dict[str, Range] = "observed"
    """The range that samples of a column may not leave: that of the training rows (`observed`), none, or `[low, high]`
    for each column that is named. Since 0.2."""
    max_rows: PositiveInt | None = None
    """The most rows that are read, from the start of the table on. By default all are."""
    header: Literal["auto"] | bool = "auto"
    """Whether the first line of a text file has the names of the columns. Since 0.2."""
    separator: Annotated[str, BeforeValidator(_separator)] = "auto"
    """What separates the cells of a text file: one character, `tab` or `space`. Since 0.2."""
    decimal: Literal["auto", ".", ","] = "auto"
    """The decimal mark of a text file. Since 0.2."""
    encoding: Annotated[str, AfterValidator(_encoding)] = "auto"
    """The encoding of a text file, by a name that Python knows. Since 0.2."""
    index: Literal["auto"] | bool = "auto"
    """Whether the first column of a text file only numbers the rows, and is left out. Since 0.2."""
    null_values: Literal["auto"] | list[str] = "auto"
    """The words of a text file that stand for a missing value, beside the empty cell: those in common use, such as
    `NA`, `NULL`, `None`, `nan`, `-` and `?` (`auto`), or a list of words, `[]` for none. Since 0.2."""
    split: list[float] = [0.8, 0.1, 0.1]
    """Shares of training, validation and test rows; they sum to 1."""
    shuffle: Literal["permutation", "legacy", "none"] = "permutation"
    """The order of rows before the split: a permutation by `seed`, `none`, or `legacy` as in the published code."""
    seed: Seed = 0
    """The seed of the permutation and of the noise on grids."""

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
            raise ValueError(f"condition names {missing[0]!r}, which is not among columns")
        return self


class TransformConfig(_Section):
    """How each column is mapped before the flow sees it."""

    kind: Literal["quantile", "standardize", "none"] = "quantile"
    """How columns are mapped before the flow: each to a normal law by its quantiles, each to mean 0 and spread 1, or
    not at all."""


class LabelsConfig(_Section):
    """How many pairs are made, and by which flow."""

    num_pairs: PositiveInt = 100_000
    """The number of pairs of latents and labels."""
    seed: Seed = 0
    """The seed of the latents."""
    t_min: Annotated[float, Field(ge=1e-30, lt=1)] | Literal["auto"] | None = None
    """The blur at which the flow ends: a variance, in units of the squared spread of the data. By default it is 1e-3,
    and 1e-6 where the network draws cells and there is no condition: a wider blur mixes rare categories. `auto` chooses
    it by leave-one-out likelihood."""
    debias: bool | Literal["auto"] = False
    """Whether labels are made from moved rows: each goes half way to its posterior mean at the blur `t_min`. That
    removes the leading error of the blur. `auto` does so where it raises the leave-one-out likelihood, and needs the
    table in memory. Since 0.2."""
    schedule: Literal["linear", "linear_floor"] = "linear"
    """The noise schedule: that of the paper (`linear`), or that of its authors' published code (`linear_floor`)."""
    estimator: Literal["full", "minibatch"] = "full"
    """The rows that the score is summed over: all (`full`), or a random mini-batch for each batch of latents, as
    published (`minibatch`)."""
    num_reference: PositiveInt = 1000
    """The number of rows in such a mini-batch."""
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    """The error that sums over fewer than all rows may cause, in units of the spread; `certificate` says where it is
    counted. With 0 every row is summed."""
    certificate: Literal["bound", "measured"] = "bound"
    """What keeps the tolerance: the posterior mean at every evaluation, certified (`bound`), or the median of
    labels against those by exact sums, as measured (`measured`). The latter is faster on large tables, on CPUs."""
    solver: Literal[SOLVER_NAMES] = "exp_abm4"  # type: ignore[valid-type]
    """The method that integrates the flow."""
    solver_tolerance: PositiveFloat | None = None
    """The error to which each row takes steps of its own. It needs a solver that estimates its error."""
    num_evaluations: Annotated[int, BeforeValidator(integral), Field(gt=0, le=100_000)] = 22
    """The number of evaluations of the posterior mean between a latent and its label."""
    time_grid: Literal["graded", "uniform", "fitted"] = "graded"
    """Where the evaluations lie in time. `fitted` moves them once to where they lower the error most on this table,
    for the work of about 4600 labels."""
    num_threads: Threads = 1
    """The CPU threads of a worker. Their number decides the last bits of labels."""
    memory_gib: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    """The memory that a worker may hold, in GiB. A larger reference is streamed, with the same bits."""
    direction: Literal["decode", "encode", "both"] = "decode"
    """Where the flow leads: from latents to labels (`decode`), from rows to latents (`encode`), or both, shard by shard
    in turn (`both`)."""
    latents: Place | None = None
    """A table of your own query points, which take the place of random latents."""
    shard_rows: PositiveInt = 4096
    """The number of rows in a shard. A shard is what a worker does at once and what is committed."""
    batch_size: PositiveInt = 1024
    """The number of rows that are integrated together. It decides the last bits of labels."""
    gpu_batch_size: PositiveInt | None = None
    """The number of rows that are integrated together on a GPU; by default `batch_size`."""
    condition_neighbors: PositiveInt | None = None
    """With `data.condition`: the number of nearest rows that the law for a condition is estimated from; by default
    512."""
    condition_bandwidth: PositiveFloat | None = None
    """With `data.condition`: the width of the kernel that weighs those rows; by default half the distance to the
    farthest of them."""
    condition_adjust: Literal["linear", "none"] | None = None
    """With `data.condition`: whether those rows are moved to the condition along their linear regression."""

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
            raise ValueError('gpu_batch_size is for estimator = "full": leave it out')
        if self.time_grid == "fitted" and self.solver_tolerance is not None:
            raise ValueError('time_grid = "fitted" is a grid for all rows, and with solver_tolerance each row has its '
                             "own: leave one of them out")  # fmt: skip
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
    """The number of units in an inner layer."""
    depth: Depth = 3
    """The number of inner layers, or of residual blocks."""
    block: Literal["residual", "plain"] = "residual"
    """What the network is built of: residual blocks with normalisation, or plain layers."""
    activation: Literal["silu", "gelu", "relu", "tanh"] = "gelu"
    """The nonlinearity."""
    linear_skip: bool = True
    """Whether a linear map from the input is added to the output."""
    cells: Literal["auto"] | bool = "auto"
    """Whether the network draws a cell of each column in turn instead of giving values. `auto`: where the table has
    categories or missing values."""
    experts: Annotated[Literal[1, 2, 4, 8, 16, 32, 64], BeforeValidator(integral)] = 1
    """The number of networks of which a gate picks one for each row: 1, or a power of two up to 64. With more than one,
    `width` and `depth` are those of each; with 32, 64 and 2 are sensible. For tables of numbers."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """The optimiser: Muon for the matrices of inner layers and AdamW for the rest, or AdamW for all."""
    batch_size: PositiveInt = 2048
    """The number of pairs in a step, over all workers."""
    learning_rate: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 6e-3
    """The largest learning rate."""
    learning_rate_schedule: Literal["cosine", "stable_decay", "constant"] = "cosine"
    """How the learning rate falls: as a cosine, at the end only, or never."""
    weight_decay: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.1
    """The weight decay; a step takes it times the learning rate."""
    num_epochs: PositiveInt = 50
    """The most passes over the pairs."""
    max_looks: PositiveFloat = 100.0
    """The most looks at a row of the table on average, where the network draws cells: steps times batch over rows. With
    many more its samples become copies of rows."""
    max_time_s: Seconds | None = None
    """The most seconds of training. With a limit, the result depends on the speed of the machine."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """The decay of the running average of the weights. The average is what is kept as the network."""
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """The share of the pairs that is held out; at most 65,536 pairs are."""
    shuffle_rows: PositiveInt = 262_144
    """The number of pairs in the window that is shuffled at a time."""
    calibrate: bool = True
    """Whether maps that undo the shrinking of the samples are fitted after the network."""
    clip_norm: PositiveFloat | None = None
    """The largest norm of the gradient; a larger gradient is scaled down. By default none is."""
    patience: PositiveInt | None = None
    """The number of epochs without a lower held-out loss after which the fit ends, with the best weights. By default it
    does not end early."""
    checkpoint_interval_s: Seconds = 30.0
    """The seconds between checkpoints."""
    keep_checkpoints: Annotated[int, BeforeValidator(integral), Field(ge=2, le=1_000_000)] = 2
    """The number of checkpoints that are kept."""
    num_workers: Workers | list[Workers] = 1
    """The number of workers of the fit, or `[fewest, most]` to use nodes as they come and go."""
    num_threads: Threads | None = None
    """The CPU threads of the fit; by default all."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The precision of matrix products. `auto` takes bfloat16 where the processor has units for it."""
    encoder: bool = False
    """Whether a second network learns the way from rows to latents, for `log_prob` and `encode`."""
    encoder_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The encoder's share of `max_time_s`, where the two networks are fitted one after the other."""
    encoder_steps: PositiveInt = 20_000
    """The most steps of the encoder's fit."""
    encoder_width: Width = 256
    """The number of units in an inner layer of the encoder."""
    encoder_depth: Depth = 3
    """The number of inner layers of the encoder."""
    seed: Seed = 0
    """The seed of the weights and of the order of the pairs."""

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
        if self.experts > 1 and self.block != "residual":
            raise ValueError(f'block = {self.block!r} does not go with experts = {self.experts}: take "residual", or '
                             "experts = 1")  # fmt: skip
        if self.experts > 1 and self.cells is True:
            raise ValueError(f"cells = true does not go with experts = {self.experts}: take false, or experts = 1")
        if isinstance(self.num_workers, list) and not (
            len(self.num_workers) == 2 and self.num_workers[0] <= self.num_workers[1]
        ):
            raise ValueError("num_workers must be a number, or [the fewest, the most]")
        return self


class EvaluateConfig(_Section):
    """What is measured on the samples and the labels."""

    num_samples: Annotated[int, BeforeValidator(integral), Field(ge=2, le=1_000_000_000)] = 10_000
    """The number of samples that are drawn and judged."""
    metrics: list[Literal[METRICS]] = Field(default=list(METRICS), min_length=1)  # type: ignore[valid-type]
    """The figures by which samples and labels are judged apart."""
    judge: bool = True
    """Whether the samples are also judged for fidelity, diversity, privacy and utility, with the errors of all figures.
    On 2 CPU cores this takes 10 to 60 s, by the table. With false the report has the table of labels and samples alone,
    and its verdict is that of one classifier. `sfg compare` judges in any case."""
    target: str | None = None
    """The column that utility predicts: a model that is trained on samples predicts it for held-out rows. Without one
    utility is not judged."""
    seed: Seed = 0
    """The seed of the samples and of the figures."""


class CompareConfig(_Section):
    """Which methods stand beside each other, and for how long each may work."""

    methods: Literal["auto"] | Annotated[list[Literal[COMPARE_METHODS]], Field(min_length=1)] = "auto"  # type: ignore[valid-type]
    """The methods that are compared. On tables of numbers `auto` takes `sfg`, `published`, `nsf`, `realnvp`,
    `flow_matching`, `score_sde` and `score_ode`. On tables with categories or missing values it takes `sfg`,
    `gaussian_copula` and `tabddpm`. `ctgan`, `tvae` and `forest_diffusion` need a package of their own."""
    max_time_s: Seconds = 300.0
    """The seconds that each method has, labels included."""
    num_seeds: Annotated[int, BeforeValidator(integral), Field(gt=0, le=10_000)] = 1
    """The number of fits of each method."""
    selection_time_s: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 15.0
    """The seconds of the shortest fits that choose a peer's transform and learning rate. With 0 nothing is chosen."""
    max_label_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The largest share of the time that labels may take."""
    num_threads: Threads | None = None
    """The CPU threads of every method; by default all."""
    sizes: list[Annotated[str, AfterValidator(_is_size), MustBe("WIDTHxDEPTH, such as 64x3")]] = []
    """Other sizes of this package's network that are compared too, such as `64x3`."""

    @model_validator(mode="after")
    def _check(self) -> CompareConfig:
        methods = MIXED_METHODS if self.methods == "auto" else self.methods
        for name, values in (("methods", methods), ("sizes", self.sizes)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has an entry twice")
        if self.sizes and "sfg" not in methods:
            raise ValueError('sizes are of the method "sfg": add it to methods, or leave sizes out')
        return self


class ExecutorConfig(_Section):
    """Where the work runs."""

    kind: Literal["auto", "ray", "inline"] = "auto"
    """Actors of Ray (`ray`), or this process and others of this machine (`inline`). `auto` takes Ray where another key
    asks for it, and for long labels on several GPUs."""
    num_actors: Workers | None = None
    """The number of actors that make labels; with `inline` the most processes. By default as many as fit."""
    num_gpus_per_actor: Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False)] | None = None
    """The GPUs of an actor. Below 1, several actors share one."""
    num_cpu_actors: Annotated[int, BeforeValidator(integral), Field(ge=0, le=1_000_000)] = 0
    """The number of actors on CPUs beside those on GPUs."""
    actors_per_group: PositiveInt = 1
    """The number of actors that hold one reference together, each a part of it."""
    shard_timeout_s: Seconds | None = None
    """The seconds after which a shard is taken to hang; by default ten times the median, and at least a minute."""
    max_attempts: PositiveInt = 4
    """The number of attempts at a shard."""
    notice_s: Seconds | None = None
    """The seconds that shards at work may go on after SIGUSR2; by default 30, and in a Slurm job as long as there is
    time."""
    price_per_hour: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    """The price of an hour of one actor, for `sfg plan`."""
    address: Annotated[str, AfterValidator(require_no_secrets)] | None = None
    """The address of a running Ray cluster. It is taken from the command line alone, since your Ray token is sent
    there."""


class OutputConfig(_Section):
    """Where everything that a run leaves is written."""

    dir: Place = Field(default="runs/job", min_length=1)
    """Where a run writes everything: a path, or `s3://bucket/prefix`; by default `runs/<job>`."""


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

        Examples:
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
    path = Path(path)
    text = read_document(path, "job file")
    return stored_job(text, overrides, origin=str(path), default_dir=f"runs/{path.stem}")


def stored_job(text: str, overrides: Iterable[str], *, origin: str, default_dir: str) -> Job:
    """``parse_job`` of a text that may come from anywhere, and so may not name a cluster."""
    overrides = list(overrides)
    job = parse_job(text, overrides, origin=origin, default_dir=default_dir)
    is_asked_for = any(assignment.partition("=")[0].strip() == "executor.address" for assignment in overrides)
    if job.executor.address is not None and job.executor.kind != "inline" and not is_asked_for:
        raise ConfigError(
            f"{as_line(origin)}: executor.address = {shown(job.executor.address)} is not taken from a file: a job "
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
