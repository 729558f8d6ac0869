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
    """One run of a stage.

    Attributes:
        stage, mode: "label" or "train"; "strong" or "weak".
        num_workers: actors, or training workers.
        wall_s: of the whole stage, Ray's own start left out.
        rows: pairs made, or rows trained on.
        parts_s: mean seconds of a worker: start (process, imports), load (reference read and prepared), integrate,
            write (with reading back and the commit), wait (for the driver, and for others' last shards), end (until all
            processes are gone). For a fit: start, step, end.
        driver_s: processor time of the driver's thread from the first worker on.
        num_shards, shard_bytes: of the store, for a simulation; the bytes are written, and read back for the checksum.
        shard_s: integration of each whole shard that is not the first of its worker.
        warm_up_s: how much longer a worker's first shard took.
        load_average: of the machine before the run.
        worker: what a training worker holds.
    """

    stage: str
    mode: str
    num_workers: Positive
    wall_s: Finite
    repeat: int = 0
    rows: int = 0
    parts_s: Mapping[str, Finite] = field(default_factory=dict)
    driver_s: float = 0.0
    num_shards: int = 0
    shard_bytes: int = 0
    shard_s: Sequence[float] = ()
    warm_up_s: float = 0.0
    load_average: float = 0.0
    worker: str | None = None


@dataclass(frozen=True)
class Efficiency:
    """What one number of workers does: the median of its runs, and the fastest and slowest of them.

    Attributes:
        rows: of a run.
        efficiency: strong: n_0 T(n_0) / (n T(n)); weak: rows / T / n over that of n_0. n_0 is the least number.
        efficiency_low, efficiency_high: from the slowest run over the fastest base to the opposite.
        parts_s: of the run with the median time, the faster one of two.
    """

    num_workers: int
    num_runs: int
    wall_s: Finite
    wall_s_low: Finite
    wall_s_high: Finite
    rows: Finite
    rows_per_s: float
    efficiency: float
    efficiency_low: float
    efficiency_high: float
    mode: str
    parts_s: Mapping[str, float]


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
    """A law as fitted.

    Attributes:
        time_of_one_s: T_1.
        residual: the root mean square of log T.
        is_tested: whether there are more numbers of workers than the law has numbers.
    """

    time_of_one_s: Number
    residual: float
    is_tested: bool


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
    """The simulation beside the runs of one number of workers.

    Attributes:
        measured_s: median up to the last commit.
        predicted_s: by the costs of the fewest workers.
        predicted_own_s: by the costs of these very runs. Where this is right and predicted_s is not, workers slow each
            other down.
    """

    num_workers: int
    measured_s: float
    predicted_s: float
    predicted_own_s: float


@dataclass(frozen=True)
class Outcome:
    """Where the time of a simulated run went.

    Attributes:
        wall_s: from the first start to the last commit.
        ready_s: when a worker was ready, in the mean.
        parts_s: seconds of all workers together: start, load, integrate, write, link (added by their own link to the
            store), store (waiting for it), driver (idle until it hands out a shard), wait (for others, at the end).
        driver_share, store_share: of the time, how much the driver was busy, and how much the store was at its limit.
        limit: what keeps the run from being faster, in a word.
    """

    wall_s: float
    ready_s: float
    parts_s: Mapping[str, float]
    driver_share: float
    store_share: float
    limit: str


@dataclass(frozen=True, kw_only=True)
class Prediction(Outcome):
    """A simulated cluster.

    Attributes:
        shard_s: integration of a shard.
        efficiency: against workers with these costs that are at work from the first second to the last.
        efficiency_at_work: the same from when they are ready.
    """

    num_workers: int
    shard_s: float
    num_shards: int
    efficiency: float
    efficiency_at_work: float


@dataclass(frozen=True)
class ComparedCase:
    """A stage, mode and number of workers in two studies.

    Attributes:
        wall_s, rows: of the first study and of the second.
        ratio: time of a row, the second's over the first's, with its spread.
    """

    case: str
    num_workers: int
    wall_s: tuple[float, float]
    rows: tuple[float, float]
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class StudyComparison:
    """Two studies side by side.

    Attributes:
        of: where the first one is.
        cases: what both have.
        differences: of their jobs, machines and versions, "key: value -> value".
    """

    of: str
    cases: Sequence[ComparedCase]
    differences: Sequence[str]


@dataclass(frozen=True)
class StudyDocument:
    """What scale.json holds.

    Attributes:
        summary: by "stage, mode".
        fit: laws by stage, of strong scaling.
        facts: of the machine.
        job: as TOML.
        slowdown: of a shard where the most workers are at work, over one where the fewest are.
        assumptions: what the predictions depend on beside the measured costs, in words.
    """

    runs: Sequence[Run]
    summary: Mapping[str, Sequence[Efficiency]]
    facts: Mapping[str, str]
    job: str
    fit: Mapping[str, Laws] = field(default_factory=dict)
    validation: Sequence[Validation] | None = None
    slowdown: float | None = None
    assumptions: Mapping[str, str] | None = None
    predictions: Sequence[Prediction] | None = None
    comparison: StudyComparison | None = None
