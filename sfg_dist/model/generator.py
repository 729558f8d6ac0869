"""The saved generator: network, column transform, job and figures in two files that hold no code.

model/
    model.safetensors   network.*, transform.*, calibration.* and encoder.* arrays
    generator.json      shapes, column names, the transform's names, the job and its figures
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from sfg_dist.data import Transform
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.conditions import ColumnSplit, finite_conditions, read_given
from sfg_dist.data.naming import value_words
from sfg_dist.job.errors import DataError, DocumentError, StoreError, TrainingError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.paths import place_of
from sfg_dist.job.plan import Stream, normal_rows
from sfg_dist.job.reader import LONG_BYTES, check_fields, read_json
from sfg_dist.job.values import printable, shown, whole_number
from sfg_dist.job.version import __version__
from sfg_dist.model.calibrate import Calibration
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.likelihood import MASS_FIELDS, Mass, batch_rows_of, mapped_log_density
from sfg_dist.model.mlp import MLP, predict
from sfg_dist.model.sampling import BLOCK_ROWS, draw_ranges, units
from sfg_dist.model.saved import arrays_of, encoder_of, network_of, read_file, read_tensors
from sfg_dist.store import Location

FORMAT_VERSION = 1
FAR_CONDITION = 8.0  # in the flow's coordinates, where a column's spread is 1
TENSORS_NAME, JSON_NAME = "model.safetensors", "generator.json"
_PARTS = ("network", "transform", "calibration", "encoder")
_FIELDS = {
    "network": dict,
    "transform": dict,
    "condition?": [str],
    "job": dict,
    "metrics": dict,
    "encoder?": ({"network": dict, "mass": MASS_FIELDS}, None),
}


Given = Mapping[str, Any] | NDArray[Any] | None
"""What samples are conditioned on: values by column name, or an array; one row for all, or a row for each."""


@dataclass(frozen=True, repr=False)
class Generator:
    """A one-step generator of rows in the user's own columns and units.

    Attributes:
        network: maps latents, conditions and noise to labels, shape (num_rows, num_inputs) in and (num_rows, dim) out.
        transform: between the user's rows and the flow's.
        calibration: corrects what the network's mean squared error shrinks; None for none.
        job: the job that made it, as resolved.
        metrics: its figures, as in metrics.json; empty before it was evaluated.
        condition: names of the columns that a sample is given; the others are drawn.
        encoder: maps labels to latents; None where train.encoder was false.
        mass: the integral of the encoder's density, which ``log_prob`` takes off.

    Example:
        >>> generator = Generator.load("runs/quickstart/model")     # doctest: +SKIP
        >>> generator.sample(3, seed=0)                             # doctest: +SKIP
    """

    network: MLP
    transform: Transform
    calibration: Calibration | None = None
    job: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    condition: tuple[str, ...] = ()
    encoder: Encoder | None = None
    mass: Mass | None = None

    def __repr__(self) -> str:
        given = f" given {', '.join(self.condition)}" if self.condition else ""
        return f"Generator({len(self.columns)} columns{given}, {self.network.num_parameters} parameters)"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a sample."""
        return self.transform.columns

    @property
    def types(self) -> tuple[ColumnType, ...]:
        """What these columns were in the training table: tables of samples are written in these types."""
        return self.transform.types

    @functools.cached_property
    def _offsets(self) -> NDArray[np.float64]:
        return np.array([float(type_.offset) for type_ in self.types])

    @functools.cached_property
    def split(self) -> ColumnSplit:
        """Which columns are drawn and which are given."""
        return ColumnSplit.of(self.transform, self.condition)

    def sample(self, n: int, seed: int = 0, given: Given = None, *, start: int = 0) -> NDArray[np.float64]:
        """Draw rows.

        Args:
            n: how many, >= 0.
            seed: of the latents; row i is the same for every n and start, to the bit on one machine.
            given: what a conditional generator's rows are drawn for, in the user's units: a mapping from each column of
                ``condition`` to a value or n values of its type (dates and times as ISO text, or as Python or numpy has
                them), or an array of one row or n rows in the order of ``condition``.
            start: the first row, >= 0.

        Returns:
            Rows ``start`` to ``start + n`` in the user's columns and units, float64, shape (n, number of columns); what
            is given stands in its columns. Dates and times are ticks of their ``types``' unit since 1970 or midnight;
            values beyond 2^53 are rounded to what float64 holds, where ``sfg sample`` writes them exactly.

        Raises:
            ConfigError: n, seed or start is no whole number of 0 or more; or ``given`` is missing, does not belong to
                this generator, or does not fit.

        Example:
            >>> generator.sample(1000, given={"temperature": 20.5})     # doctest: +SKIP
        """
        n, seed, start = (whole_number(name, value) for name, value in (("n", n), ("seed", seed), ("start", start)))
        rows, done = np.empty((n, len(self.columns))), 0
        conditions = self.conditions_of(given, n)
        for part in self.sample_ranges([(start, start + n)], seed, conditions, first=start):
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
        parts = itertools.chain.from_iterable(units(start, stop, width) for start, stop in ranges)
        return draw_ranges(functools.partial(self._block_rows, seed, conditions, first), parts, width)

    def _block_rows(
        self, seed: int, conditions: NDArray[np.float64] | None, start: int, block: int
    ) -> NDArray[np.float64]:
        first, dim = block * BLOCK_ROWS, self.network.dim
        drawn = normal_rows(seed, Stream.SAMPLE, first, first + BLOCK_ROWS, dim + self.network.num_noise)
        if conditions is not None:
            # A block is whole, though not all of its rows may be asked for: those beyond repeat the ends.
            conditions = conditions[np.clip(np.arange(first, first + BLOCK_ROWS) - start, 0, len(conditions) - 1)]
        return self._decoded(drawn[:, :dim], conditions, drawn[:, dim:])

    def conditions_of(self, given: Given, n: int) -> NDArray[np.float64] | None:
        """``given`` as rows in the order of ``condition``, one or n of them; None for an unconditional generator.

        Warns where a value lies far outside the training rows, where the network has learnt nothing.

        Raises:
            ConfigError: as ``sample`` says.
        """
        types = [self.types[place] for place in self.split.places] if self.condition else []
        conditions = read_given(given, self.condition, n, types)
        return None if conditions is None else self.check_conditions(conditions)

    def check_conditions(self, conditions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows of conditions of value - offset as they are, after ``conditions_of``'s look at how far out they lie.

        Raises:
            ConfigError: a value is not finite.
        """
        finite_conditions(conditions, self.condition)
        if len(conditions):
            self._warn_of_far(conditions)
        return conditions

    def _warn_of_far(self, conditions: NDArray[np.float64]) -> None:
        if self.transform.kind != "quantile":  # elsewhere a heavy tail is as far out among the training rows themselves
            return
        ends = np.stack([conditions.min(axis=0), conditions.max(axis=0)])
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
        self,
        latents: NDArray[np.float32],
        conditions: NDArray[np.float64] | None = None,
        noise: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float64]:
        """Rows of given latents, shape (num_rows, dim) in and (num_rows, number of columns) out.

        Args:
            latents: N(0, 1) numbers.
            conditions: of ``conditions_of``, shape (num_rows, len(condition)), for a conditional generator.
            noise: shape (num_rows, network.num_noise), for a network with noise.
        """
        return self._with_offsets(self._decoded(latents, conditions, noise))

    def _decoded(
        self,
        latents: NDArray[np.float32],
        conditions: NDArray[np.float64] | None,
        noise: NDArray[np.float32] | None,
    ) -> NDArray[np.float64]:
        labels = self.predict_labels(self.network_inputs(latents, conditions, noise))
        return self.rows_of(labels, conditions)

    def _with_offsets(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return rows + self._offsets if self._offsets.any() else rows

    def network_inputs(
        self,
        latents: NDArray[np.float32],
        conditions: NDArray[np.float64] | None = None,
        noise: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """The network's input columns, of what ``decode`` takes; shape (num_rows, num_inputs)."""
        parts = [latents]
        if conditions is not None:
            parts.append(self.split.flow_conditions(self.transform, conditions))
        if noise is not None:
            parts.append(noise)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

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
        return predict(self.network, tensor).cpu().numpy()

    def rows_of(self, labels: NDArray[Any], conditions: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Rows in the user's columns of labels, value - offset, with the conditions in their columns."""
        if conditions is None:
            return self.transform.inverse(labels)
        return self.split.join(self.transform, labels, conditions)

    def encode(self, rows: NDArray[np.float64], *, noise: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """Latents of rows, which ``decode`` takes back to about the same rows.

        Args:
            rows: in the user's columns and units, shape (num_rows, number of columns).
            noise: where in its cell a value of a column on a grid lies, or in its interval one that repeats, in [0, 1),
                shape (num_rows, dim); None is the middle.

        Returns:
            Latents, float32, shape (num_rows, dim).

        Raises:
            TrainingError: the generator has no encoder.
            DataError: the shape is wrong, or a value is not finite.
        """
        encoder, _ = self._require_encoder()
        device = next(encoder.parameters()).device
        labels = torch.from_numpy(self.transform.forward(self._without_offsets(rows), noise=noise)).to(device)
        return predict(encoder, labels).cpu().numpy()

    def log_prob(self, rows: NDArray[np.float64], *, noise: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Log density of rows, by the encoder E and its exact Jacobian J.

            log p(x) = log N(E(u); 0, I) + log |det J(u)| - log mass + log |du/dx|,    u = the row as the flow sees it

        The mass is that of the first two terms, estimated when the encoder was fitted (``mass``): the network need not
        be one-to-one. A column on a grid counts as spread evenly over its cells, and a value that repeats beside a
        continuum as a point that has its share. Beyond the training rows the transform goes on straight, or into a
        wider range of data.bounds, and so does the encoder, so the tails are those of a normal law.

        Args:
            rows: as ``sample`` gives them, shape (num_rows, number of columns); memory does not grow with their number.
            noise: as for ``encode``.

        Returns:
            Nats per unit volume of the user's columns (constant ones left out), float64, shape (num_rows,); minus
            infinity where the encoder's determinant is zero.

        Raises:
            TrainingError: the generator has no encoder.
            DataError: the shape is wrong, or a value is not finite.
        """
        return self.log_density(self._without_offsets(rows), noise=noise)

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
        return values.numpy() - np.log(mass.value) + self.transform.log_det_jacobian(rows, noise=noise)

    def _without_offsets(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
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

    @property
    def digest(self) -> str:
        """sha256 of all its numbers, as ``save`` writes them."""
        return hashlib.sha256(self._tensors()).hexdigest()

    def _tensors(self) -> bytes:
        """The numbers as a safetensors file."""
        tensors: dict[str, Tensor] = {
            f"network.{name}": t.detach().cpu() for name, t in self.network.state_dict().items()
        }
        if self.encoder is not None:
            tensors |= {f"encoder.{name}": t.detach().cpu() for name, t in self.encoder.state_dict().items()}
        arrays = {f"transform.{name}": array for name, array in self.transform.to_arrays().items()}
        if self.calibration is not None:
            arrays |= {f"calibration.{name}": array for name, array in self.calibration.to_arrays().items()}
        tensors |= {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        return save({name: t.contiguous().clone() for name, t in tensors.items()})

    def save(self, directory: str | Path) -> None:
        """Write the two files to a directory or an s3:// URL; each replaces an older one whole.

        Raises:
            StoreError: the place cannot be written.
        """
        location = Location(place_of("directory", directory), create=True)
        document = {
            "format": FORMAT_VERSION,
            "sfg_dist": __version__,
            "network": {"dim": self.network.dim, **self.network.shape},
            "columns": list(self.columns),
            "condition": list(self.condition),
            "transform": self.transform.to_metadata(),
            "job": self.job,
            "metrics": self.metrics,
        }
        if self.encoder is not None and self.mass is not None:
            shape = {"dim": self.encoder.dim, **self.encoder.shape}
            document["encoder"] = {"network": shape, "mass": asdict(self.mass)}
        location.write(TENSORS_NAME, self._tensors())
        location.write(JSON_NAME, json.dumps(_finite(document), indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> Generator:
        """Read a generator.

        Args:
            path: the model directory, or the output directory that holds ``model/``; a local path or an s3:// URL.

        Raises:
            StoreError: there is no generator, or its files do not fit together.
        """
        place, location = _find(place_of("path", path).rstrip("/"))
        try:
            document = read_json(
                location.read(JSON_NAME, LONG_BYTES),
                JSON_NAME,
                {"format": object},
                max_bytes=LONG_BYTES,
                allow_nan=True,
            )
            if document["format"] != FORMAT_VERSION:
                raise StoreError(
                    f"{place}/{JSON_NAME} has format {shown(document['format'])}, this version reads {FORMAT_VERSION}"
                )
            check_fields(document, _FIELDS, JSON_NAME)
            return cls._of(document, read_tensors(read_file(location, TENSORS_NAME), TENSORS_NAME))
        except (DocumentError, DataError) as error:
            raise StoreError(f"the generator in {place} is damaged or of another version: {error}") from error

    @classmethod
    def _of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Generator:
        """The generator of a document and its tensors.

        Raises:
            DocumentError, DataError: they do not fit together.
        """
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in _PARTS}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise DocumentError(f"{TENSORS_NAME}: tensor {printable(name)} is of no part of a generator")
            parts[part][rest] = tensor
        arrays = {part: arrays_of(parts[part], part) for part in ("transform", "calibration")}
        network = network_of(document["network"], parts["network"], "network")
        transform = Transform.from_arrays(arrays["transform"], document["transform"])
        split = ColumnSplit.of(transform, condition := tuple(document.get("condition", ())))
        if (network.dim, network.num_conditions) != (len(split.targets), len(condition)):
            raise DocumentError(
                f"network: dim = {network.dim} and num_conditions = {network.num_conditions}, and the transform has "
                f"{len(split.targets)} columns to draw and {len(condition)} that are given"
            )
        encoder, mass = None, None
        if (saved := document.get("encoder")) is not None:
            encoder, mass = encoder_of(saved["network"], parts["encoder"], "encoder"), Mass(**saved["mass"])
            if encoder.dim != network.dim:
                raise DocumentError(f"encoder: dim = {encoder.dim}, and the network's is {network.dim}")
        return cls(
            network,
            transform,
            Calibration.from_arrays(arrays["calibration"], network.dim) if arrays["calibration"] else None,
            document["job"],
            document["metrics"],
            condition=condition,
            encoder=encoder,
            mass=mass,
        )


def _find(path: str) -> tuple[str, Location]:
    """The place of a generator, ``path`` or ``path/model``, that has both files."""
    missing = JSON_NAME
    for place in (path, f"{path}/model"):
        if not is_url(place) and not Path(place).is_dir():
            continue
        if place != path and not is_url(path):
            Location(path).look("model")  # refuses a link, which a directory from elsewhere may hold
        location = Location(place)
        lacking = [name for name in (JSON_NAME, TENSORS_NAME) if not location.exists(name)]
        if not lacking:
            return place, location
        if lacking == [TENSORS_NAME]:
            missing = TENSORS_NAME
    raise StoreError(f"{path} holds no generator: {missing} is missing")


def _finite(document: Any) -> Any:
    """A document with infinite numbers as text, since JSON has none."""
    if isinstance(document, dict):
        return {key: _finite(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_finite(value) for value in document]
    return str(document) if isinstance(document, float) and abs(document) == np.inf else document
