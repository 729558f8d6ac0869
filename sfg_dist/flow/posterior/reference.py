"""The data behind the score, prepared once: centred, of spread 1, in blocks, with what the engines build over each.

A reference is cut into blocks of ``REFERENCE_BLOCK_ROWS`` rows in the order of its table. A posterior over several
blocks is defined block after block, and each has clusters of its own. So its bits are the same whether the blocks lie
in memory or come from a file one at a time.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.posterior.moments import PosteriorMoments, Request
from sfg_dist.flow.posterior.reference_block import ReferenceBlock
from sfg_dist.flow.spread import ColumnSpread, SigmaData, resolve_sigma_data
from sfg_dist.job.plan import REFERENCE_BLOCK_ROWS

if TYPE_CHECKING:
    from sfg_dist.flow.certificate import Measured
    from sfg_dist.flow.fitted_grid import FittedGrid

Rows: TypeAlias = Tensor | NDArray[np.floating]

LARGEST = 1e8  # of centred coordinates of spread 1 in float32
_CHUNK_ROWS = 1 << 16  # worked on in float64 at a time


def block_ranges(num_rows: int, *, is_whole: bool = False) -> list[tuple[int, int]]:
    """First row of each block of a reference, and the row after its last; one block if it is to be whole."""
    if is_whole:
        return [(0, num_rows)]
    return [(first, min(first + REFERENCE_BLOCK_ROWS, num_rows)) for first in range(0, num_rows, REFERENCE_BLOCK_ROWS)]


class PreparedReference(ABC):
    """A reference whose blocks hold (x - center) / scale, the coordinates of all below the public functions."""

    num_reference: int  # number of rows
    center: Tensor  # mean of the rows, in their own units, shape (dim,), float64 on the CPU
    scale: float  # sigma_data, the unit of the flow, in the rows' units; see ``spread``
    # standard deviation of each column, in the rows' units, float64, shape (dim,); None where it is not known, as of a
    # store, whose plan has the scale
    spreads: Tensor | None
    device: torch.device  # where the posterior is computed
    dtype: torch.dtype  # torch.float32 or torch.float64, the precision of all arithmetic
    is_whole: bool = False  # all rows are one block, whatever their number

    def __init__(self, scale: float = 1.0, spreads: Tensor | None = None) -> None:
        self.scale, self.spreads = scale, spreads
        # time grids that were fitted to these rows, by the settings of their labels
        self.fitted_grids: dict[tuple[object, ...], FittedGrid] = {}
        # measured certificates, in the same way
        self.certificates: dict[tuple[object, ...], Measured] = {}

    @property
    def dim(self) -> int:
        """Number of columns."""
        return len(self.center)

    @property
    def states_dtype(self) -> torch.dtype:
        """Precision in which rows are centred and scaled: float64 keeps the digits of rows that lie far from 0.

        With scale 1 it is the arithmetic's own: a transform has centred these rows, and labels in stores keep their
        bits.
        """
        return self.dtype if self.scale == 1 else torch.float64

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_ranges)

    @property
    def block_ranges(self) -> list[tuple[int, int]]:
        """First row of each block, and the row after its last."""
        return block_ranges(self.num_reference, is_whole=self.is_whole)

    @abstractmethod
    def blocks(self) -> Iterator[ReferenceBlock]:
        """The blocks in order, on the reference's device; a block is held no longer than the loop holds it."""

    @abstractmethod
    def take(self, index: NDArray[np.integer]) -> Tensor:
        """The rows at ``index`` in the reference's own coordinates, float64 on the CPU, shape (len(index), dim)."""

    def moments_elsewhere(self, request: Request, tolerance: float, *, is_sparse: bool) -> PosteriorMoments | None:
        """The posterior's moments where other processes hold the blocks, or None where this one does.

        ``tolerance`` is the certified bound of the mean's error, in units of ``scale``. ``is_sparse`` says whether
        clusters are used; else every row is summed.
        """
        return None

    def relieve(self) -> None:
        """Give up memory after an evaluation, where too much is held; see ``streaming``."""
        return

    def subset(self, index: Tensor | NDArray[np.integer]) -> Reference:
        """A reference of the rows at ``index``, in memory, centred about its own mean, with the scale of the whole."""
        numbers = index.cpu().numpy() if isinstance(index, Tensor) else index
        return Reference(self.take(numbers), device=self.device, dtype=self.dtype, sigma_data=self.scale)


class Reference(PreparedReference):
    """A reference set in memory, on one device.

    Args:
        rows: samples of the data, shape (num_reference, dim), a tensor or a numpy array, finite.
        device: where the work is done; the rows' own device by default.
        dtype: torch.float32 or torch.float64, the precision of all arithmetic.
        order: what ``clusters.build_order`` gave for each block, one after the other, where it was made earlier.
        sigma_data: the unit of the flow, in the rows' units: "auto" for the root mean square of the columns' spreads;
            1 for the plain process z = alpha x + beta eps.
        whole: one block whatever the number of rows, as a measured certificate needs it.

    Attributes:
        keys: (x - center) / scale with its squared norm as one more column, shape (num_reference, dim + 1).

    Raises:
        ValueError: the rows are not a finite, non-empty table.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        order: NDArray[np.int64] | None = None,
        sigma_data: SigmaData = "auto",
        whole: bool = False,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        table = to_tensor(rows, "the reference")
        if table.ndim != 2 or 0 in table.shape:
            raise ValueError(f"the reference must be a non-empty table of rows, got shape {tuple(table.shape)}")
        if not table.is_floating_point():
            table = table.to(torch.float64)
        self.num_reference = len(table)
        self.device = table.device if device is None else torch.device(device)
        self.dtype = dtype
        tally = ColumnSpread()
        self.center = center_of(lambda start, stop: tally.add(table[start:stop]).to(self.device), len(table))
        super().__init__(resolve_sigma_data(sigma_data, tally.result()), tally.result())
        self.keys = centred_keys(table.to(self.device), self.center, dtype, self.scale)
        self._order, self.is_whole = order, whole

    @cached_property
    def _blocks(self) -> list[ReferenceBlock]:
        order = self._order
        return [
            ReferenceBlock(self.keys[start:stop], order=None if order is None else order[start:stop])
            for start, stop in self.block_ranges
        ]

    def blocks(self) -> Iterator[ReferenceBlock]:
        """The blocks in order."""
        return iter(self._blocks)

    def take(self, index: NDArray[np.integer]) -> Tensor:
        """The rows at ``index`` in the reference's own coordinates, float64 on the CPU, shape (len(index), dim)."""
        return self.scale * self.keys[torch.as_tensor(index, device=self.device), :-1].double().cpu() + self.center


def center_of(read: Callable[[int, int], Tensor], num_rows: int) -> Tensor:
    """The mean of a table whose rows ``read(start, stop)`` gives, float64 on the CPU.

    Several blocks are summed one after the other, by one thread.

    Raises:
        ValueError: a row is not finite.
    """
    ranges = block_ranges(num_rows)
    total: NDArray[np.float64] | None = None
    for start, stop in ranges:
        rows = read(start, stop)
        for first in range(0, len(rows), _CHUNK_ROWS):
            finite = torch.isfinite(rows[first : first + _CHUNK_ROWS]).all(dim=1)
            if not bool(finite.all()):
                bad = first + int((~finite).nonzero()[0, 0])
                raise ValueError(f"the reference is not finite: row {start + bad} holds {rows[bad].tolist()}")
        if len(ranges) == 1:
            return rows.double().mean(dim=0).cpu()
        for first in range(0, len(rows), _CHUNK_ROWS):
            part = np.add.reduce(rows[first : first + _CHUNK_ROWS].double().cpu().numpy(), axis=0)
            total = part if total is None else total + part
        del rows  # before the next ones are read
    assert total is not None
    return torch.from_numpy(total / num_rows)


def centred_keys(rows: Tensor, center: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """(rows - center) / scale with its squared norm as one more column, shape (num_rows, dim + 1), of ``dtype``.

    Raises:
        ValueError: coordinates are too large for float32.
    """
    keys = torch.empty(len(rows), rows.shape[1] + 1, dtype=dtype, device=rows.device)
    center = center.to(rows.device)
    for start in range(0, len(rows), _CHUNK_ROWS):
        part = keys[start : start + _CHUNK_ROWS]
        part[:, :-1] = ((rows[start : start + _CHUNK_ROWS].double() - center) / scale).to(dtype)
        # The norm is taken of the rounded rows, so that key and norm belong to the same point.
        part[:, -1] = part[:, :-1].double().square().sum(dim=1).to(dtype)
        if dtype == torch.float32 and (reach := float(part[:, :-1].abs().max())) > LARGEST:
            raise ValueError(
                f"the reference reaches {reach:.3g} from its mean in units of sigma_data = {scale:.3g}, and float32 "
                f"serves up to {LARGEST:g}: rescale its columns"
            )
    return keys


def to_tensor(rows: Rows, name: str) -> Tensor:
    """Rows as a tensor without history; arrays that torch cannot share (read-only, strided, foreign) are copied.

    Raises:
        ValueError: they are no table of real numbers that float64 holds; the message calls them ``name``.
    """
    if isinstance(rows, Tensor):
        if rows.is_complex() or rows.layout != torch.strided:
            raise ValueError(f"{name}: expected a table of numbers, got a tensor of {rows.dtype}, {rows.layout}")
        return rows.detach()
    if isinstance(rows, np.ma.MaskedArray) and np.ma.is_masked(rows):
        raise ValueError(f"{name}: expected a table of numbers, got an array with masked values: fill them in")
    try:
        array: NDArray[Any] = np.asarray(rows)
    except ValueError as error:  # of lists of several lengths
        raise ValueError(f"{name}: expected a table of numbers: {error}") from error
    if array.dtype.kind == "O":  # frames of nullable columns, and of several types
        array = _numbers_of_objects(array, name)
    if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        raise ValueError(f"{name}: expected a table of numbers, got an array of {array.dtype}")
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size:
        if max(int(array.max()), -int(array.min())) > _LARGEST_INTEGER:
            raise ValueError(f"{name}: holds integers beyond 2^53, which float64 does not tell apart")
        array = array.astype(np.int64)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch knows little of the others
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), requirements=["C", "W"]))


def _numbers_of_objects(objects: NDArray[Any], name: str) -> NDArray[Any]:
    """Python's numbers as an array of one type; objects that are none as they were, which have no type."""
    array: NDArray[Any] = np.array(objects.tolist())
    if array.dtype.kind == "O" and any(str(value) in ("None", "<NA>") for value in objects.flat):
        raise ValueError(f"{name}: expected a table of numbers, got an array with missing values: fill them in")
    if array.dtype.kind == "f" and any(isinstance(value, int) for value in objects[np.abs(array) > _LARGEST_INTEGER]):
        raise ValueError(f"{name}: holds integers beyond 2^53, which float64 does not tell apart")
    return array


def finite_table(rows: Rows, name: str) -> Tensor:
    """Rows as a tensor of shape (num_rows, dim), finite.

    Raises:
        ValueError: they are no such table; the message calls them ``name``.
    """
    table = to_tensor(rows, name)
    if table.ndim != 2:
        raise ValueError(f"{name} must be a table of shape (num_rows, dim), got {tuple(table.shape)}")
    finite = torch.isfinite(table).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0, 0])
        raise ValueError(f"{name} must be finite: row {bad} holds {table[bad].tolist()}")
    return table


def rows_and_reference(
    rows: Rows,
    name: str,
    reference: Rows | PreparedReference,
    dtype: torch.dtype,
    sigma_data: SigmaData,
    *,
    whole: bool = False,
) -> tuple[Tensor, PreparedReference]:
    """A table of finite rows as a tensor, and the reference as a prepared one on its device; see ``as_reference``.

    Raises:
        ValueError: rows and reference do not fit together, or a row is not finite; the message calls the rows ``name``.
    """
    table = finite_table(rows, name)
    prepared = as_reference(reference, table, dtype, sigma_data, whole=whole)
    if table.shape[1] != prepared.dim:
        raise ValueError(f"{name} must have {prepared.dim} columns like the reference, got {table.shape[1]} columns")
    return table, prepared


def as_reference(
    reference: Rows | PreparedReference,
    like: Tensor,
    dtype: torch.dtype,
    sigma_data: SigmaData = "auto",
    *,
    whole: bool = False,
) -> PreparedReference:
    """``reference`` as a prepared one on the device of ``like``; one that is prepared is taken as it stands.

    The last few references are kept with what was built over them, and found again by their content.

    Raises:
        ValueError: a prepared one lies elsewhere, or was prepared with another sigma_data.
    """
    if isinstance(reference, PreparedReference):
        if reference.device != like.device:
            raise ValueError(f"the reference is on {reference.device}, the rows are on {like.device}")
        if sigma_data != "auto" and sigma_data != reference.scale:
            raise ValueError(
                f"sigma_data = {sigma_data} is not that of the prepared reference, {reference.scale:g}: give it where "
                f"the reference is prepared"
            )
        return reference
    table = to_tensor(reference, "the reference")
    content = hashlib.blake2b(table.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
    # the size of a block is here for tests, which cut smaller ones
    key = (content, tuple(table.shape), table.dtype, like.device, dtype, sigma_data, whole, REFERENCE_BLOCK_ROWS)
    with _kept_lock:
        if (kept := _kept.pop(key, None)) is None:
            kept = Reference(table, device=like.device, dtype=dtype, sigma_data=sigma_data, whole=whole)
        _kept[key] = kept  # last in the order of use
        while len(_kept) > _NUM_KEPT:
            del _kept[next(iter(_kept))]
    return kept


_LARGEST_INTEGER = 2**53
_NUM_KEPT = 4
_kept: dict[tuple[object, ...], Reference] = {}
_kept_lock = threading.Lock()
