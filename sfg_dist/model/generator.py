"""The saved generator: network, column transform, job and figures in two files that hold no code.

model/
    model.safetensors   network.*, transform.* and calibration.* arrays
    generator.json      shapes, column names, the transform's names, the job and its figures
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfg_dist._version import __version__
from sfg_dist.data import Transform
from sfg_dist.errors import StoreError
from sfg_dist.model.calibrate import Calibration
from sfg_dist.model.mlp import MLP, predict
from sfg_dist.plan import Stream, normal_rows

FORMAT_VERSION = 1
TENSORS_NAME, JSON_NAME = "model.safetensors", "generator.json"
SAMPLE_ROWS = 65536


@dataclass(frozen=True, repr=False)
class Generator:
    """A one-step generator of rows in the user's own columns and units.

    Attributes:
        network: maps latents to labels, shape (num_rows, dim) in and out.
        transform: between the user's rows and the flow's.
        calibration: corrects what the network's mean squared error shrinks; None for none.
        job: the job that made it, as resolved.
        metrics: its figures, as in metrics.json; empty before it was evaluated.

    Example:
        >>> generator = Generator.load("runs/quickstart/model")     # doctest: +SKIP
        >>> generator.sample(3, seed=0)                             # doctest: +SKIP
    """

    network: MLP
    transform: Transform
    calibration: Calibration | None = None
    job: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Generator({len(self.columns)} columns, {self.network.num_parameters} parameters)"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a sample."""
        return self.transform.columns

    def sample(self, n: int, seed: int = 0) -> NDArray[np.float64]:
        """Draw rows.

        Args:
            n: how many, >= 0.
            seed: of the latents; row i is the same for every n, up to the last bits of float32.

        Returns:
            Rows in the user's columns and units, float64, shape (n, number of columns).

        Raises:
            ValueError: n is negative.
        """
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        return np.concatenate([np.empty((0, len(self.columns))), *self.sample_parts(n, seed)])

    def sample_parts(self, n: int, seed: int = 0) -> Iterator[NDArray[np.float64]]:
        """The rows of ``sample`` in parts, for tables that do not fit in memory."""
        for first in range(0, n, SAMPLE_ROWS):
            yield self.decode(normal_rows(seed, Stream.SAMPLE, first, min(first + SAMPLE_ROWS, n), self.network.dim))

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.float64]:
        """Rows of given latents, shape (num_rows, dim) in and (num_rows, number of columns) out."""
        return self.transform.inverse(self.predict_labels(latents))

    def predict_labels(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Labels of latents in the flow's coordinates, before the transform is undone."""
        device = next(self.network.parameters()).device
        labels = (
            predict(self.network, torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(device)).cpu().numpy()
        )
        return labels if self.calibration is None else self.calibration(labels)

    def to(self, device: torch.device | str) -> Generator:
        """The same generator with its network on another device."""
        self.network.to(device)
        return self

    def save(self, directory: str | Path) -> None:
        """Write the two files; each replaces an older one whole."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {
            f"network.{name}": t.detach().cpu() for name, t in self.network.state_dict().items()
        }
        arrays = {f"transform.{name}": array for name, array in self.transform.to_arrays().items()}
        if self.calibration is not None:
            arrays |= {f"calibration.{name}": array for name, array in self.calibration.to_arrays().items()}
        tensors |= {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        document = {
            "format": FORMAT_VERSION,
            "sfg_dist": __version__,
            "network": {"dim": self.network.dim, **self.network.shape},
            "columns": list(self.columns),
            "transform": self.transform.to_metadata(),
            "job": self.job,
            "metrics": self.metrics,
        }
        partial = directory / f"{TENSORS_NAME}.partial"
        save_file({name: t.contiguous().clone() for name, t in tensors.items()}, partial)
        partial.replace(directory / TENSORS_NAME)
        partial = directory / f"{JSON_NAME}.partial"
        partial.write_text(json.dumps(document, indent=1))
        partial.replace(directory / JSON_NAME)

    @classmethod
    def load(cls, path: str | Path) -> Generator:
        """Read a generator.

        Args:
            path: the model directory, or the output directory that holds ``model/``.

        Raises:
            StoreError: there is no generator, or its files do not fit together.
        """
        directory = Path(path)
        if not (directory / JSON_NAME).exists() and (directory / "model" / JSON_NAME).exists():
            directory = directory / "model"
        try:
            document = json.loads((directory / JSON_NAME).read_text())
            tensors = load_file(directory / TENSORS_NAME)
        except FileNotFoundError as error:
            raise StoreError(
                f"{path} holds no generator: {Path(error.filename or directory).name} is missing"
            ) from None
        except (json.JSONDecodeError, SafetensorError, OSError) as error:
            raise StoreError(f"the generator in {directory} cannot be read: {error}") from error
        if document.get("format") != FORMAT_VERSION:
            raise StoreError(
                f"{directory / JSON_NAME} has format {document.get('format')}, this version reads {FORMAT_VERSION}"
            )
        try:
            network = MLP(**document["network"])
            network.load_state_dict(_part(tensors, "network."))
            arrays = {name: tensor.numpy() for name, tensor in _part(tensors, "transform.").items()}
            calibration = {name: tensor.numpy() for name, tensor in _part(tensors, "calibration.").items()}
            return cls(
                network.eval(),
                Transform.from_arrays(arrays, document["transform"]),
                Calibration.from_arrays(calibration) if calibration else None,
                document["job"],
                document["metrics"],
            )
        except (KeyError, TypeError, RuntimeError) as error:
            raise StoreError(f"the generator in {directory} is damaged or of another version: {error}") from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
