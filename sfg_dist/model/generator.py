"""The one-step generator: it draws rows in the user's columns and units, and tells their density."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfg_dist.data.conditions import ColumnSplit, finite_conditions, read_given
from sfg_dist.data.frames import check_container, columns_of_rows, is_frame, plain_frame, rows_of_frame
from sfg_dist.data.naming import value_words
from sfg_dist.job.arguments import whole_number
from sfg_dist.job.errors import DataError, TrainingError
from sfg_dist.job.plan import Stream, normal_rows
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.likelihood import Mass, batch_rows_of, mapped_log_density
from sfg_dist.model.mlp import predict
from sfg_dist.model.sampling import SAMPLE_ROWS, draw_ranges, unit_ranges
from sfg_dist.model.saved_generator import SavedGenerator

PREDICT_ROWS = 2048  # whose activations stay in the cache, and in memory that the allocator keeps
FAR_CONDITION = 8.0  # in the flow's coordinates, where a column's spread is 1

Given = Any
"""What samples are conditioned on: values by column name, a table in memory, or an array; one row, or one for each."""


@dataclass(frozen=True, repr=False)
class Generator(SavedGenerator):
    """A one-step generator of rows in the user's own columns and units.

    Examples:
        >>> generator = Generator.load("runs/quickstart/model")     # doctest: +SKIP
        >>> generator.sample(3, seed=0)                             # doctest: +SKIP
    """

    def __repr__(self) -> str:
        given = f" given {', '.join(self.condition)}" if self.condition else ""
        return f"Generator({len(self.columns)} columns{given}, {self.network.num_parameters} parameters)"

    @functools.cached_property
    def _offsets(self) -> NDArray[np.float64]:
        return np.array([float(type_.offset) for type_ in self.types])

    @functools.cached_property
    def split(self) -> ColumnSplit:
        """Which columns are drawn and which are given."""
        return ColumnSplit.of(self.transform, self.condition)

    def sample(
        self, n: int, seed: int = 0, given: Given = None, *, start: int = 0, container: str | None = None
    ) -> Any:
        """Draw rows.

        Args:
            n: how many, >= 0.
            seed: of the latents; row i is the same for every n and start, to the bit on one machine.
            given: what a conditional generator's rows are drawn for, in the user's units: a mapping from each column of
                ``condition`` to a value or n values of its type (dates and times as ISO text, or as Python or numpy has
                them), a table in memory with these columns, or an array of one row or n rows in the order of
                ``condition``.
            start: the first row, >= 0.
            container: what to give the rows as: "pandas", "polars", "arrow" or "numpy". By default that is what
                ``sfg_dist.fit`` was given, and "numpy" for a model of a file.

        Returns:
            Rows ``start`` to ``start + n`` in the user's columns; what is given stands in its columns. A frame or a
            table has the types of the user's table, and also its order of columns. Whole numbers and truth values that
            may be missing have a nullable dtype of pandas, unless the user's table was of pandas itself. With "numpy"
            it is float64 in the user's units, shape (n, number of columns). Dates and times are then ticks of their
            ``types``' unit since 1970 or midnight; values beyond 2^53 are rounded to what float64 holds, where the
            others have them exactly. Categories are their places in the ``categories`` of their ``types``, and a
            missing value is NaN.

        Raises:
            ConfigError: n, seed or start is no whole number of 0 or more; ``given`` is missing, does not belong to
                this generator, or does not fit; or the container is unknown or its library not installed.

        Examples:
            >>> generator.sample(1000, given={"temperature": 20.5})     # doctest: +SKIP
        """
        n, seed, start = (whole_number(name, value) for name, value in (("n", n), ("seed", seed), ("start", start)))
        kind = check_container(container)
        conditions = self.conditions_of(given, n)
        parts = self.sample_ranges([(start, start + n)], seed, conditions, first=start)
        if kind != "numpy" and (kind is not None or self.container is not None):
            table = columns_of_rows(self.columns, self.types, parts)
            gaps = [name for name, may_miss in self._may_miss.items() if may_miss]
            if self.container is None:
                return plain_frame(table, kind or "arrow", gaps)
            return self.container.give(table, kind, gaps)
        rows, done = np.empty((n, len(self.columns))), 0
        for part in parts:
            rows[done : done + len(part)] = self._with_offsets(part)
            done += len(part)
        return rows

    def sample_ranges(
        self,
        ranges: Iterable[tuple[int, int]],
        seed: int = 0,
        conditions: NDArray[np.float64] | None = None,
        *,
        first: int = 0,
    ) -> Iterator[NDArray[np.float64]]:
        """Rows ``start`` to ``stop`` of ``sample`` for each range, made ahead by threads, in bounded memory.

        A range comes in several arrays, of value - offset where a column's type has one.

        Args:
            ranges: of row numbers.
            seed: of the latents.
            conditions: of ``conditions_of``: one row, or the rows from ``first`` on.
            first: see ``conditions``.
        """
        width = len(self.columns)
        parts = itertools.chain.from_iterable(unit_ranges(start, stop, width) for start, stop in ranges)
        return draw_ranges(functools.partial(self._block_rows, seed, conditions, first), parts, width)

    def _block_rows(
        self, seed: int, conditions: NDArray[np.float64] | None, start: int, block: int
    ) -> NDArray[np.float64]:
        first, num_latents = block * SAMPLE_ROWS, self.network.dim + self.network.num_noise
        drawn = normal_rows(seed, Stream.SAMPLE, first, first + SAMPLE_ROWS, num_latents)
        if conditions is not None:
            # A block is whole, though not all of its rows may be asked for: those beyond repeat the ends.
            conditions = conditions[np.clip(np.arange(first, first + SAMPLE_ROWS) - start, 0, len(conditions) - 1)]
        return self._decoded(drawn, conditions)

    def conditions_of(self, given: Given, n: int) -> NDArray[np.float64] | None:
        """``given`` as rows in the order of ``condition``, one or n of them; None for an unconditional generator.

        Warns where a value lies far outside the training rows, where the network has learnt nothing.

        Raises:
            ConfigError: as ``sample`` says.
        """
        types = [self.types[place] for place in self.split.places] if self.condition else []
        conditions = read_given(given, self.condition, n, types, [self._may_miss[name] for name in self.condition])
        return None if conditions is None else self.check_conditions(conditions)

    @functools.cached_property
    def _may_miss(self) -> dict[str, bool]:
        """Which columns may lack values."""
        found = dict.fromkeys(self.columns, False)
        for name, coding in zip(self.transform.flow_columns, self.transform.codings, strict=True):
            found[name] = not np.isnan(coding.missing)
        for lookup in self.transform.lookups:
            found[self.columns[lookup.column]] = bool(np.isnan(lookup.values).any())
        return found

    def check_conditions(self, conditions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows of conditions of value - offset as they are, after ``conditions_of``'s look at how far out they lie.

        Raises:
            ConfigError: a value is not finite.
        """
        finite_conditions(conditions, self.condition, [self._may_miss[name] for name in self.condition])
        if len(conditions):
            self._warn_of_far(conditions)
        return conditions

    def _warn_of_far(self, conditions: NDArray[np.float64]) -> None:
        if self.transform.kind != "quantile":  # elsewhere a heavy tail is as far out among the training rows themselves
            return
        if np.isnan(conditions).all(axis=0).any():
            return
        ends = np.stack([np.nanmin(conditions, axis=0), np.nanmax(conditions, axis=0)])
        places = np.abs(self.split.flow_conditions(self.transform, ends))
        if places.max() > FAR_CONDITION:
            row, column = np.unravel_index(places.argmax(), places.shape)
            shown = value_words(self.types[self.split.places[column]].shown(ends[row, column]))
            warnings.warn(
                f"given: {self.condition[column]!r} is {shown}, far outside the training rows: what the generator "
                f"draws for it is extrapolated",
                stacklevel=5,
            )

    def decode(
        self, latents: NDArray[np.float32], conditions: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Rows of given latents, shape (num_rows, number of columns).

        Args:
            latents: N(0, 1) numbers, shape (num_rows, dim + network.num_noise). Without the last ``num_noise`` columns,
                as of ``encode``, the noise by which a network draws cells is 0, its median.
            conditions: of ``conditions_of``, shape (num_rows, len(condition)), for a conditional generator.

        Raises:
            DataError: the shape of the latents is wrong.
        """
        latents, dim, num_noise = np.asarray(latents, dtype=np.float32), self.network.dim, self.network.num_noise
        if latents.ndim != 2 or latents.shape[1] not in (dim, dim + num_noise):
            noise = f", or (num_rows, {dim + num_noise}) with the noise" if num_noise else ""
            raise DataError(f"latents have shape {latents.shape}: expected (num_rows, {dim}){noise}")
        latents = np.pad(latents, ((0, 0), (0, dim + num_noise - latents.shape[1])))
        return self._with_offsets(self._decoded(latents, conditions))

    def _decoded(self, latents: NDArray[np.float32], conditions: NDArray[np.float64] | None) -> NDArray[np.float64]:
        labels = self.predict_labels(self.network_inputs(latents, conditions))
        return self.rows_of(labels, conditions)

    def _with_offsets(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return rows + self._offsets if self._offsets.any() else rows

    def network_inputs(
        self, latents: NDArray[np.float32], conditions: NDArray[np.float64] | None = None
    ) -> NDArray[np.float32]:
        """The network's input columns, shape (num_rows, num_inputs), of what ``decode`` takes."""
        if conditions is None:
            return latents
        drawn, noise = np.split(latents, [self.network.dim], axis=1)
        return np.concatenate([drawn, self.split.flow_conditions(self.transform, conditions), noise], axis=1)

    def predict_labels(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Labels of the network's inputs in the flow's coordinates, before the transform is undone."""
        return self.calibrate(self.predict_raw(inputs))

    def calibrate(self, labels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Labels after the calibration, where there is one."""
        return labels if self.calibration is None else self.calibration(labels)

    def predict_raw(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Labels before calibration."""
        device = next(self.network.parameters()).device
        tensor = torch.from_numpy(np.ascontiguousarray(inputs, np.float32)).to(device)
        return predict(self.network, tensor, PREDICT_ROWS).cpu().numpy()

    def rows_of(self, labels: NDArray[Any], conditions: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Rows in the user's columns of labels, value - offset, with the conditions in their columns."""
        if conditions is None:
            return self.transform.inverse(labels)
        return self.split.join(self.transform, labels, conditions)

    def encode(self, rows: Any, *, noise: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """Latents of rows, which ``decode`` takes back to about the same rows.

        A network that draws cells decodes a latent without noise to the median cell of each column in turn, which
        need not be the row's where several rows share the latent.

        Args:
            rows: in the user's columns and units, an array of shape (num_rows, number of columns); or a table in memory
                that has these columns, in any order.
            noise: where in its cell a value of a column on a grid lies, or in its interval one that repeats, in [0, 1),
                shape (num_rows, dim); None is the middle.

        Returns:
            Latents, float32, shape (num_rows, dim).

        Raises:
            TrainingError: the generator has no encoder.
            DataError: the shape is wrong, a column is missing, or a value is not finite.
        """
        encoder, _ = self._require_encoder()
        device = next(encoder.parameters()).device
        labels = torch.from_numpy(self.transform.forward(self._checked(rows), noise=noise)).to(device)
        return predict(encoder, labels).cpu().numpy()

    def log_prob(self, rows: Any, *, noise: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Log density of rows, by the encoder E and its exact Jacobian J.

            p(x) = ((1 - share) N(E(u); 0, I) |det J(u)| / mass + share q(u)) |du/dx|

        u is the row as the flow sees it. The mass is that of N(E(u)) |det J(u)|, estimated when the encoder was fitted
        (``mass``): the network need not be one-to-one. q is a mixture of t distributions (``blend``), which earlier
        models lack. A column on a grid counts as spread evenly over its cells, and a value that repeats beside a
        continuum as a point that has its share, as do a category and a missing value. A column that another one
        determines adds nothing. Beyond the training rows each column of a quantile transform has a law of its own,
        fitted to its largest and its smallest rows (``data/tails.py``). An end that is a value that repeats or a
        missing value has none: a row beyond it costs half the square of its score.

        Args:
            rows: as for ``encode``; memory does not grow with their number.
            noise: as for ``encode``.

        Returns:
            Nats per unit volume of the user's columns (constant ones left out), float64, shape (num_rows,); minus
            infinity where the encoder's determinant is zero.

        Raises:
            TrainingError: the generator has no encoder.
            DataError: the shape is wrong, a column is missing, a value is not finite or of no category, or a column has
                not the value that the one which determines it says.
        """
        return self.log_density(self._checked(rows), noise=noise)

    def log_density(
        self, rows: NDArray[np.float64], *, noise: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """``log_prob`` of rows of value - offset, as a prepared table has them."""
        encoder, mass = self._require_encoder()
        labels = torch.from_numpy(self.transform.forward(rows, noise=noise))
        values, _ = mapped_log_density(
            encoder.with_jacobian,
            labels,
            batch_rows=batch_rows_of(encoder.dim, encoder.shape["width"]),
            device=next(encoder.parameters()).device,
        )
        values -= math.log(mass.value)
        if self.blend is not None:
            values = self.blend.log_density(values, self.blend.mixture.log_density(labels))
        return values.numpy() + self.transform.log_det_jacobian(rows, noise=noise)

    def _checked(self, rows: Any) -> NDArray[np.float64]:
        """Rows of the user as value - offset, with pairs of values that some row of the table had."""
        rows = self._without_offsets(rows)
        if self.transform.lookups and rows.ndim == 2 and rows.shape[1] == len(self.columns):
            self.transform.check_lookups(rows)
        return rows

    def _without_offsets(self, rows: Any) -> NDArray[np.float64]:
        """Rows of the user, or the columns of a table in memory, as value - offset."""
        if is_frame(rows):
            return rows_of_frame(rows, self.columns, self.types)
        return np.asarray(rows, dtype=np.float64) - self._offsets if self._offsets.any() else rows

    def _require_encoder(self) -> tuple[Encoder, Mass]:
        if self.condition:
            raise TrainingError("a generator with data.condition has no encoder, and so no likelihood")
        if self.encoder is None or self.mass is None:
            raise TrainingError(
                "this generator has no encoder: set train.encoder = true in its job and run `sfg train` again"
            )
        return self.encoder, self.mass

    def to(self, device: torch.device | str) -> Generator:
        """The same generator with its networks on another device."""
        self.network.to(device)
        if self.encoder is not None:
            self.encoder.to(device)
        return self
