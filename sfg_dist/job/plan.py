"""The plan: what a store of pairs will hold, decided before any work and independent of who does it.

Rows are cut into shards of ``shard_rows``; a shard is one work unit and one storage object per array. Random numbers
belong to rows: block ``b`` of ``DRAW_ROWS`` rows draws from Philox keyed by (seed, stream, b), so a row's numbers do
not depend on the number of rows, shards or workers. The rows integrated together (``batch_size``) are part of the plan
too, because the shape of a matrix product changes its last bits.

A finished plan can be extended: each further record adds rows behind the last one on the same grid of shards. A ragged
last shard stays as it is; the rows that complete it are a shard of their own, with the next free number. So shard
numbers only ever go on, and nothing that is committed changes.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import ConfigError, DocumentError
from sfg_dist.job.plan_fields import check_plan
from sfg_dist.job.seal import FORMAT_VERSION, digest_of, seal, unseal

DRAW_ROWS = 1024
REFERENCE_BLOCK_ROWS = 2**20
"""Rows of a block of the reference: the clusters' order in the store is that of each block, block after block."""


MAX_SHARDS = 10_000_000
"""Of a store: whoever looks at it has some tens of bytes in memory for each."""


class Stream(enum.IntEnum):
    """Uses of randomness; each has its own Philox key space."""

    LATENTS = 0
    ENCODE = 1
    MINIBATCH = 2
    DEQUANTIZE = 4
    SAMPLE = 5
    TRAIN_ORDER = 6
    TOY = 7
    EVALUATE = 8
    CALIBRATE = 9
    EXPORT = 10
    CONDITION = 11
    ENCODER = 13
    CERTIFICATE = 14
    GATE = 15


def random_generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """The generator of one block: Philox keyed by (seed, stream, index).

    Args:
        seed: the job's seed, 0 <= seed < 2^63.
        stream: what the numbers are for.
        index: the block within the stream, 0 <= index < 2^56.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, (stream << 56) | index], dtype=np.uint64)))


def random_rows(start: int, stop: int, draw: Callable[[int], NDArray[Any]]) -> NDArray[Any]:
    """Rows ``start`` to ``stop`` of an endless table whose blocks of ``DRAW_ROWS`` rows ``draw`` makes by number.

    Any two calls agree on the rows they share.
    """
    rows: NDArray[Any] | None = None
    for block in range(start // DRAW_ROWS, max(start // DRAW_ROWS + 1, -(-stop // DRAW_ROWS))):
        drawn, first = draw(block), block * DRAW_ROWS
        rows = np.empty((stop - start, *drawn.shape[1:]), drawn.dtype) if rows is None else rows
        low, high = max(start, first), min(stop, first + DRAW_ROWS)
        rows[low - start : high - start] = drawn[low - first : high - first]
    assert rows is not None
    return rows


def normal_rows(seed: int, stream: Stream, start: int, stop: int, dim: int) -> NDArray[np.float32]:
    """Rows ``start`` to ``stop`` of an endless table of N(0, 1) numbers, shape (stop - start, dim)."""
    shape = (DRAW_ROWS, dim)
    return random_rows(
        start, stop, lambda block: random_generator(seed, stream, block).standard_normal(shape, dtype=np.float32)
    )


@dataclass(frozen=True)
class Plan:
    """What a store of pairs holds, written once when it is created."""

    # what decides the bits: tables ``data``, ``transform`` and ``labels`` of the job without the keys that do not, the
    # fingerprints of the reference, of the debiased one if labels are made from it, and of the user's query points, and
    # what was chosen for the reference: t_min; sigma_data where no transform gives it spread 1; and for
    # ``labels.time_grid = "fitted"`` the grid of each direction; and for ``labels.certificate = "measured"`` the
    # thresholds of each direction
    identity: Mapping[str, Any]
    num_pairs: int  # rows of latents and of labels, in all records together
    # columns of latents and of labels, the flow's dimension; those of ``condition`` are the last, and the same in both
    dim: int
    shard_rows: int  # rows of a shard, the last one may be shorter
    columns: tuple[str, ...]  # the user's column names, in order
    source: str  # what the job called the table when the store was created; no part of the identity
    versions: Mapping[str, str]  # of this package, numpy and torch when the store was created; a difference warns
    format_version: int = FORMAT_VERSION  # of the layout on disk
    # num_pairs as it was before each extension, ascending; empty where the store was never extended
    earlier_ends: tuple[int, ...] = ()
    # sha256 of the manifest of the store's frame, empty before that is laid out; no part of the identity
    frame: str = field(default="", compare=False)
    # whether the store's arrays name their dimensions and its transform the types of columns; not so in a store of
    # version 0.1.0, whose objects are made again as they were. No part of the identity.
    has_names: bool = field(default=True, compare=False)

    @property
    def ends(self) -> tuple[int, ...]:
        """Number of rows at the end of each plan record; one number where the store was never extended."""
        return (*self.earlier_ends, self.num_pairs)

    @property
    def num_shards(self) -> int:
        """Number of shards, in all records together."""
        return self._shard_ends[-1]

    @cached_property
    def _shard_ends(self) -> tuple[int, ...]:
        """Number of shards at the end of each record."""
        sizes = (-(-stop // self.shard_rows) - start // self.shard_rows for start, stop in pairwise((0, *self.ends)))
        return tuple(accumulate(sizes))

    def record_of(self, shard: int) -> int:
        """The plan record that a shard belongs to: 0 the first, 1 the first extension.

        Raises:
            IndexError: the plan has no such shard.
        """
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"shard {shard}: the plan has shards 0 to {self.num_shards - 1}")
        return bisect_right(self._shard_ends, shard)

    def record_rows(self, record: int) -> tuple[int, int]:
        """First row of a record and the row after its last."""
        return (0, *self.ends)[record], self.ends[record]

    def record_shards(self, record: int) -> range:
        """The shards of a record."""
        return range((0, *self._shard_ends)[record], self._shard_ends[record])

    def record_plan(self, record: int) -> Plan:
        """The plan as it was when a record was its last."""
        return replace(self, num_pairs=self.ends[record], earlier_ends=self.ends[:record])

    def grid_shard(self, shard: int) -> int:
        """The place of a shard on the grid of ``shard_rows`` rows; a ragged shard and what completes it share one."""
        record = self.record_of(shard)
        return self.record_rows(record)[0] // self.shard_rows + shard - self.record_shards(record).start

    @property
    def condition(self) -> tuple[str, ...]:
        """The columns that labels are conditioned on: the last of latents, of labels and of the reference."""
        return tuple(self.identity.get("data", {}).get("condition", ()))

    @property
    def labels(self) -> Mapping[str, Any]:
        """The labels table of the job, as far as it decides the bits."""
        return self.identity["labels"]

    @property
    def t_min(self) -> float:
        """Where the flow ends: the job's number, or the one that was chosen for the table."""
        return float(self.identity["blur"]["t_min"])

    @property
    def is_debiased(self) -> bool:
        """Whether labels follow the score of a debiased reference, which the store holds beside the reference."""
        return "debiased" in self.identity

    @property
    def score_fingerprint(self) -> str:
        """Of the rows whose score labels follow: the debiased ones, or those of the reference."""
        return str(self.identity["debiased" if self.is_debiased else "reference"])

    @property
    def sigma_data(self) -> float:
        """The unit of the flow in the reference's units: its spread, or 1 where a transform gave it that.

        Stores of version 0.1.0 with transform.kind = "none" were made with 1 too, whatever their spread.
        """
        return float(self.identity.get("sigma_data", 1.0))

    def time_grid(self, direction: str) -> str | list[float]:
        """The solver's grid in a direction: the job's word for it, or the points that were fitted to the reference."""
        fitted: Mapping[str, list[float]] = self.identity.get("time_grid", {})
        return fitted[direction] if fitted else str(self.labels["time_grid"])

    @property
    def is_whole(self) -> bool:
        """Whether the reference is one block, whatever its number of rows."""
        return bool(self.labels.get("certificate") == "measured")

    def certificate(self, direction: str) -> Mapping[str, Any] | None:
        """The measured certificate of a direction; None where the tolerance is a certified bound."""
        measured: Mapping[str, Mapping[str, Any]] = self.identity.get("certificate", {})
        return measured.get(direction)

    @cached_property
    def run_id(self) -> str:
        """sha256 of identity and number of pairs at the end of each record; names the run in its commit records."""
        pairs = list(self.ends) if self.earlier_ends else self.num_pairs
        return digest_of([self.identity, pairs, self.format_version])

    @cached_property
    def record_run_ids(self) -> tuple[str, ...]:
        """The run id at the end of each record: what the commit records of its shards hold."""
        return tuple(self.record_plan(record).run_id for record in range(len(self.ends)))

    def extended(self, num_pairs: int) -> Plan:
        """The plan with a further record that adds the rows up to ``num_pairs``.

        Raises:
            ConfigError: that adds no rows, or the rows are the user's own query points.
        """
        if self.identity.get("queries"):
            raise ConfigError(
                "a store of labels.latents, your own query points, cannot be extended: label the further points in "
                "another output.dir"
            )
        if num_pairs <= self.num_pairs:
            raise ConfigError(
                f"labels.num_pairs = {num_pairs} adds nothing to the {self.num_pairs} pairs of the store: name a "
                f"larger number"
            )
        return replace(self, num_pairs=num_pairs, earlier_ends=self.ends)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First row of a shard and the row after its last."""
        first, end = self.record_rows(self.record_of(shard))
        start = self.grid_shard(shard) * self.shard_rows
        return max(first, start), min(start + self.shard_rows, end)

    @cached_property
    def shard_edges(self) -> NDArray[np.int64]:
        """First row of each shard and the end of the last, int64 (num_shards + 1,)."""
        edges = [np.zeros(1, np.int64)]
        for start, stop in pairwise((0, *self.ends)):
            grid = np.arange(start // self.shard_rows + 1, -(-stop // self.shard_rows) + 1, dtype=np.int64)
            edges.append(np.minimum(grid * self.shard_rows, stop))
        return np.concatenate(edges)

    def shard_direction(self, shard: int) -> str:
        """ "decode" or "encode"; with direction "both", even places of the grid decode and odd ones encode."""
        direction = self.labels["direction"]
        return direction if direction != "both" else ("decode", "encode")[self.grid_shard(shard) % 2]

    def batch_rows(self, device_type: str) -> int:
        """Rows integrated together on a device of a type: fixed for each type, because it decides the last bits.

        Args:
            device_type: as torch calls it; "cuda" takes ``gpu_batch_size`` where the job has one.
        """
        size = self.labels.get("gpu_batch_size") if device_type == "cuda" else None
        return int(size or self.labels["batch_size"])

    def batches(self, shard: int, device_type: str = "cpu") -> Iterator[tuple[int, int]]:
        """Row ranges integrated together for a shard, none longer than ``batch_rows`` of the device.

        The ranges lie on the grid of ``batch_rows``. The first range begins before the shard where the shard completes
        a ragged one.
        """
        start, stop = self.shard_range(shard)
        size = self.batch_rows(device_type)
        for first in range(start // size * size, stop, size):
            yield first, min(first + size, stop)

    def to_json(self) -> bytes:
        """The first record as a JSON document, sealed with a digest over all of it."""
        fields = asdict(self.record_plan(0))
        del fields["earlier_ends"]
        return seal(fields | {"run_id": self.record_plan(0).run_id})

    @classmethod
    def from_json(cls, document: bytes) -> Plan:
        """The plan of a first record.

        Raises:
            DocumentError: it is not a plan of this format, or was edited: its digest does not fit its content.
            ConfigError: it is the plan of a store that is too large.
        """
        try:
            fields = unseal(document)
            check_plan(fields)
        except DocumentError as error:
            raise DocumentError(f"not a plan: {error}") from None
        run_id = fields.pop("run_id")
        plan = cls(**({"has_names": False} | fields | {"columns": tuple(fields["columns"])}))
        if plan.dim > len(plan.columns):
            raise DocumentError(f"not a plan: dim = {plan.dim} of {len(plan.columns)} columns")
        plan.check_size()
        if plan.run_id != run_id:
            raise DocumentError("its run_id does not fit its content: it was edited")
        return plan

    def check_size(self) -> None:
        """Refuse a store of more shards than whoever looks at it can count.

        Raises:
            ConfigError: it has more than ``MAX_SHARDS``.
        """
        if self.num_shards > MAX_SHARDS:
            raise ConfigError(
                f"{self.num_pairs:,} pairs in shards of {self.shard_rows:,} are {self.num_shards:,} shards, and a "
                f"store may have {MAX_SHARDS:,}: take a larger labels.shard_rows"
            )

    def difference(self, other: Plan) -> list[str]:
        """One line for each thing in which ``other`` differs and the bits would too.

        A fitted time grid and a measured certificate are left out: they are functions of the rest, up to the last bits
        of the machine that fitted them.
        """
        mine = _flatten({"identity": self.identity, "num_pairs": self.num_pairs, "columns": list(self.columns)})
        theirs = _flatten({"identity": other.identity, "num_pairs": other.num_pairs, "columns": list(other.columns)})
        return [
            f"{name.removeprefix('identity.')}: {mine.get(name, 'absent')!r} -> {theirs.get(name, 'absent')!r}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
            and not name.startswith(("identity.time_grid.", "identity.certificate."))
        ]


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def check_shard_rows(shard_rows: int, batch_size: int, gpu_batch_size: int | None = None) -> None:
    """Refuse a shard that the integrator's batches do not divide.

    Raises:
        ConfigError: shard_rows is not a multiple of labels.batch_size or of labels.gpu_batch_size.
    """
    for key, size in (("gpu_batch_size", gpu_batch_size), ("batch_size", batch_size)):
        if size is not None and shard_rows % size:
            raise ConfigError(
                f"labels.shard_rows = {shard_rows} is not a multiple of labels.{key} = {size}: "
                f"take labels.shard_rows = {max(size, round(shard_rows / size) * size)}"
            )


def integer_rows(seed: int, stream: Stream, start: int, stop: int, high: int) -> NDArray[np.int64]:
    """Entries ``start`` to ``stop`` of an endless list of uniform integers in [0, high), shape (stop - start,)."""
    return random_rows(start, stop, lambda block: random_generator(seed, stream, block).integers(0, high, DRAW_ROWS))
