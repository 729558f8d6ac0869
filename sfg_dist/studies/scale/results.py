"""What a scaling study finds, as scale.json holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1, lt=1 << 30)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Run:
    """One run of a stage."""

    stage: str  # "label" or "train"
    mode: str  # "strong" or "weak"
    num_workers: Positive  # actors, or training workers
    wall_s: Finite  # of the whole stage, Ray's own start left out
    repeat: int = 0
    rows: int = 0  # pairs made, or rows trained on
    # mean seconds of a worker: start (process, imports), load (reference read and prepared), integrate, write (with
    # reading back and the commit), wait (for the driver, and for others' last shards), end (until all processes are
    # gone). For a fit: start, step, end.
    parts_s: Mapping[str, Finite] = field(default_factory=dict)
    driver_s: float = 0.0  # processor time of the driver's thread from the first worker on
    # of the store, for a simulation; the bytes are written, and read back for the checksum
    num_shards: int = 0
    shard_bytes: int = 0
    shard_s: Sequence[float] = ()  # integration of each whole shard that is not the first of its worker
    warm_up_s: float = 0.0  # how much longer a worker's first shard took
    load_average: float = 0.0  # of the machine before the run
    worker: str | None = None  # what a training worker holds


@dataclass(frozen=True)
class Efficiency:
    """What one number of workers does: the median of its runs, and the fastest and slowest of them."""

    num_workers: int
    num_runs: int
    wall_s: Finite
    wall_s_low: Finite
    wall_s_high: Finite
    rows: Finite  # of a run
    rows_per_s: float
    efficiency: float  # strong: n_0 T(n_0) / (n T(n)); weak: rows / T / n over that of n_0. n_0 is the least number.
    efficiency_low: float  # from the slowest run over the fastest base to the opposite
    efficiency_high: float
    mode: str
    parts_s: Mapping[str, float]  # of the run with the median time, the faster one of two


@dataclass(frozen=True)
class Number:
    """A fitted number and its interval, which is None without runs to spare."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MissingLaw:
    """Why a law could not be fitted."""

    missing: str


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """A law as fitted."""

    time_of_one_s: Number  # T_1
    residual: float  # the root mean square of log T
    is_tested: bool  # whether there are more numbers of workers than the law has numbers


@dataclass(frozen=True, kw_only=True)
class AmdahlFit(LawFit):
    """Amdahl's law as fitted."""

    serial_share: Number


@dataclass(frozen=True, kw_only=True)
class UniversalFit(LawFit):
    """The universal law as fitted; beyond the peak more workers do less. It is None where the coherence may be 0."""

    contention: Number
    coherence: Number
    peak: float | None


@dataclass(frozen=True)
class Laws:
    """Both laws of a stage."""

    amdahl: AmdahlFit | MissingLaw
    universal: UniversalFit | MissingLaw


@dataclass(frozen=True)
class Validation:
    """The simulation beside the runs of one number of workers."""

    num_workers: int
    measured_s: float  # median up to the last commit
    predicted_s: float  # by the costs of the fewest workers
    # by the costs of these very runs. Where this is right and predicted_s is not, workers slow each other down.
    predicted_own_s: float


@dataclass(frozen=True)
class Outcome:
    """Where the time of a simulated run went."""

    wall_s: float  # from the first start to the last commit
    ready_s: float  # when a worker was ready, in the mean
    # seconds of all workers together: start, load, integrate, write, link (added by their own link to the store), store
    # (waiting for it), driver (idle until it hands out a shard), wait (for others, at the end)
    parts_s: Mapping[str, float]
    # of the time, how much the driver was busy, and how much the store was at its limit
    driver_share: float
    store_share: float
    limit: str  # what keeps the run from being faster, in a word


@dataclass(frozen=True, kw_only=True)
class Prediction(Outcome):
    """A simulated cluster."""

    num_workers: int
    shard_s: float  # integration of a shard
    num_shards: int
    efficiency: float  # against workers with these costs that are at work from the first second to the last
    efficiency_at_work: float  # the same from when they are ready


@dataclass(frozen=True)
class ComparedCase:
    """A stage, mode and number of workers in two studies."""

    case: str
    num_workers: int
    wall_s: tuple[float, float]  # of the first study and of the second
    rows: tuple[float, float]
    ratio: float  # time of a row, the second's over the first's, with its spread
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class StudyComparison:
    """Two studies side by side."""

    of: str  # where the first one is
    cases: Sequence[ComparedCase]  # what both have
    differences: Sequence[str]  # of their jobs, machines and versions, "key: value -> value"


@dataclass(frozen=True)
class StudyDocument:
    """What scale.json holds."""

    runs: Sequence[Run]
    summary: Mapping[str, Sequence[Efficiency]]  # by "stage, mode"
    facts: Mapping[str, str]  # of the machine
    job: str  # as TOML
    fit: Mapping[str, Laws] = field(default_factory=dict)  # laws by stage, of strong scaling
    validation: Sequence[Validation] | None = None
    slowdown: float | None = None  # of a shard where the most workers are at work, over one where the fewest are
    assumptions: Mapping[str, str] | None = None  # what the predictions depend on beside the measured costs, in words
    predictions: Sequence[Prediction] | None = None
    comparison: StudyComparison | None = None
