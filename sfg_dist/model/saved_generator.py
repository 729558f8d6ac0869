"""The parts of a generator, and the two files that hold them without any code.

model/
    model.safetensors   network.*, transform.*, calibration.*, encoder.* and mixture.* arrays
    generator.json      shapes, column names, the transform's names, the job and its figures
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sfg_dist.data import Transform
from sfg_dist.data.coding import are_plain
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.conditions import ColumnSplit
from sfg_dist.data.frames import CONTAINER_FIELDS, Container
from sfg_dist.data.tails import tails
from sfg_dist.job.errors import DataError, DocumentError, StoreError
from sfg_dist.job.paths import place_of
from sfg_dist.job.reader import LONG_BYTES, check_fields, read_json
from sfg_dist.job.version import __version__
from sfg_dist.job.words import as_line, shown
from sfg_dist.model.calibration import Calibration
from sfg_dist.model.cell_network import CellNetwork, Network
from sfg_dist.model.encoder import Encoder
from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.likelihood import MASS_FIELDS, Blend, Mass
from sfg_dist.model.saved import arrays_of, encoder_of, mixture_of, network_of, read_file, read_tensors, saved_bytes
from sfg_dist.store import Location, places_of

FORMAT_VERSION, LATER_VERSION = 1, 2
"""The second is that of generators that version 0.1.0 cannot read, or would read wrongly; see ``is_newer``."""
TENSORS_NAME, JSON_NAME = "model.safetensors", "generator.json"
_PARTS = ("network", "transform", "calibration", "encoder", "mixture")
_FIELDS = {
    "network": dict,
    "transform": dict,
    "condition?": [str],
    "job": dict,
    "metrics": dict,
    "encoder?": ({"network": dict, "mass": MASS_FIELDS, "mixture_share?": float}, None),
    "container?": CONTAINER_FIELDS,
}


@dataclass(frozen=True, repr=False)
class SavedGenerator:
    """What a generator consists of, and how it is saved and read."""

    # maps latents, conditions and noise to labels, shape (num_rows, num_inputs) in and (num_rows, dim) out
    network: Network
    transform: Transform  # between the user's rows and the flow's
    calibration: Calibration | None = None  # corrects what the network's mean squared error shrinks; None for none
    job: Mapping[str, Any] = field(default_factory=dict)  # the job that made it, as resolved
    # its figures, as in metrics.json; empty before it was evaluated
    metrics: Mapping[str, Any] = field(default_factory=dict)
    condition: tuple[str, ...] = ()  # names of the columns that a sample is given; the others are drawn
    encoder: Encoder | None = None  # maps labels to latents; None where train.encoder was false
    mass: Mass | None = None  # the integral of the encoder's density, by which ``log_prob`` divides
    blend: Blend | None = None  # what ``log_prob`` blends it with; None in earlier models
    container: Container | None = None  # what ``sample`` gives rows as; None, as of models of files, for arrays

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a sample."""
        return self.transform.columns

    @property
    def types(self) -> tuple[ColumnType, ...]:
        """What these columns were in the training table: tables of samples are written in these types."""
        return self.transform.types

    @property
    def is_mixed(self) -> bool:
        """Whether the network draws cells, or a column has categories, missing values or another that determines it."""
        is_plain = are_plain(self.transform.codings) and not self.transform.lookups
        return isinstance(self.network, CellNetwork) or not is_plain or any(type_.categories for type_ in self.types)

    @property
    def is_newer(self) -> bool:
        """Whether version 0.1.0, which knows no cells, experts, local maps, blends and laws of tails, would go wrong.

        A law counts where rows are mapped to the flow, for ``log_prob`` or as conditions, and where samples leave the
        training rows' range.
        """
        transform = self.transform
        each = zip(transform.curves, transform.bounds, transform.tails, strict=True) if transform.curves else ()
        has_laws = bool(transform.tails.any()) and (
            self.encoder is not None
            or len(self.condition) > 0
            or any(tail.is_drawn for column in each for tail in tails(*column))
        )
        has_maps = self.calibration is not None and len(self.calibration.local) > 0
        has_experts = isinstance(self.network, ExpertNetwork)
        return self.is_mixed or has_experts or has_maps or self.blend is not None or has_laws

    @property
    def digest(self) -> str:
        """sha256 of all its numbers, as ``save`` writes them."""
        return hashlib.sha256(self._tensors()).hexdigest()

    def _tensors(self) -> bytes:
        """The numbers as a safetensors file."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.encoder is not None:
            tensors |= {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        if self.blend is not None:
            tensors |= {f"mixture.{name}": tensor for name, tensor in self.blend.mixture.to_tensors().items()}
        arrays = {f"transform.{name}": array for name, array in self.transform.to_arrays().items()}
        if self.calibration is not None:
            arrays |= {f"calibration.{name}": array for name, array in self.calibration.to_arrays().items()}
        tensors |= {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        # Copies, because no two tensors of a file may share memory.
        return saved_bytes({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})

    def save(self, directory: str | Path) -> None:
        """Write the two files to a directory or an s3:// URL; each replaces an older one whole.

        Raises:
            StoreError: the place cannot be written.
        """
        location = Location(place_of("directory", directory), create=True)
        document = {
            "format": LATER_VERSION if self.is_newer else FORMAT_VERSION,
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
            share = {} if self.blend is None else {"mixture_share": self.blend.share}
            document["encoder"] = {"network": shape, "mass": asdict(self.mass), **share}
        if self.container is not None:
            document["container"] = self.container.to_document()
        location.write(TENSORS_NAME, self._tensors())
        location.write(JSON_NAME, json.dumps(_finite(document), indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a generator.

        Args:
            path: the model directory, or the output directory that holds ``model/``; a local path or an s3:// URL.

        Raises:
            StoreError: there is no generator, or its files do not fit together.
        """
        location = _find(place_of("path", path).rstrip("/"))
        try:
            document = read_json(
                location.read(JSON_NAME, LONG_BYTES),
                JSON_NAME,
                {"format": object},
                max_bytes=LONG_BYTES,
                allow_nan=True,
            )
            if document["format"] not in (FORMAT_VERSION, LATER_VERSION):
                found, place = shown(document["format"]), f"{location.url}/{JSON_NAME}"
                raise StoreError(f"{place} has format {found}, this version reads {FORMAT_VERSION} and {LATER_VERSION}")
            check_fields(document, _FIELDS, JSON_NAME)
            return cls._of(document, read_tensors(read_file(location, TENSORS_NAME), TENSORS_NAME))
        except (DocumentError, DataError) as error:
            raise StoreError(f"the generator in {location.url} is damaged or of another version: {error}") from error

    @classmethod
    def _of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The generator of a document, whose fields are checked, and its tensors.

        Raises:
            DocumentError, DataError: they do not fit together.
        """
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in _PARTS}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise DocumentError(f"{TENSORS_NAME}: tensor {as_line(name)} belongs to no part of a generator")
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
        container = None
        if (kept := document.get("container")) is not None:
            container = Container.from_document(kept, transform.columns)
        encoder, mass, blend = None, None, None
        if (saved := document.get("encoder")) is not None:
            encoder, mass = encoder_of(saved["network"], parts["encoder"]), Mass.of(saved["mass"])
            if encoder.dim != network.dim:
                raise DocumentError(f"encoder: dim = {encoder.dim}, and the network's is {network.dim}")
            if "mixture_share" in saved:
                if not 0 < (share := saved["mixture_share"]) < 1:
                    raise DocumentError(f"encoder.mixture_share is {share:g}, expected a number between 0 and 1")
                blend = Blend(share, mixture_of(parts["mixture"], encoder.dim))
        if parts["mixture"] and blend is None:
            raise DocumentError("encoder.mixture_share is missing, and the file has tensors of a mixture")
        return cls(
            network,
            transform,
            Calibration.from_arrays(arrays["calibration"], network.dim) if arrays["calibration"] else None,
            document["job"],
            document["metrics"],
            condition=condition,
            encoder=encoder,
            mass=mass,
            blend=blend,
            container=container,
        )


def _find(path: str) -> Location:
    """The place of a generator, ``path`` or ``path/model``, that has both files."""
    missing = JSON_NAME
    for location in places_of(path, "model"):
        lacking = [name for name in (JSON_NAME, TENSORS_NAME) if not location.exists(name)]
        if not lacking:
            return location
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
