"""An open file of named arrays, whatever its format.

Values are decoded as the attributes of their array say (``cf``). Chunks that were never written are no data: an array
that lacks some is refused, unless its fill value is declared to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.cf import Packing, packing_of, unread_words
from sfg_dist.data.column_type import ColumnType, UnfitValueError
from sfg_dist.data.sources import suffix_of
from sfg_dist.data.surveys import type_of_numpy
from sfg_dist.job.errors import DataError

DEFAULT_ARRAY = "X"
_WRITE_THEM = "write them (zarr.config.set({'array.write_empty_chunks': True}))"


@dataclass(frozen=True)
class ArrayFile:
    """An open file of named arrays; a file with one unnamed array calls it X."""

    source: str  # path or URL, for messages
    names: tuple[str, ...]  # of the arrays
    read: Callable[[str], NDArray[Any]]  # gives an array by name; numbers as stored, text as str
    describe: Callable[[str], str]  # shape and type of an array, for messages
    shape: Callable[[str], tuple[int, ...]]  # of an array
    dtype: Callable[[str], Any]  # of an array as it is stored; text is of kind U, S or T
    # gives an array of which slices are read, where the format can do that (.zarr)
    node: Callable[[str], Any] | None = None
    types: tuple[ColumnType, ...] | None = None  # of the columns of X, in a table of samples that ``sfg sample`` wrote
    attributes: Callable[[str], Mapping[str, Any]] = lambda _: {}  # of an array, by name
    # names of an array's columns by its own coordinates, or None
    labels: Callable[[str], tuple[str, ...] | None] = lambda _: None
    # the number of stored chunks of an array, of all of its chunks, and its fill value
    written: Callable[[str], tuple[int, int, Any]] = lambda _: (1, 1, None)
    # the stored number that is missing where attributes name none, by type
    default_fill: Callable[[Any], Any] = lambda _: None
    notes: list[str] = field(default_factory=list)  # what was done to read the file, in words

    def matrix(self, name: str) -> NDArray[Any]:
        """The values of an array, of shape (num_rows, num_columns); an array of one dimension is one column.

        Missing values are NaN, and masked where they are whole numbers.

        An array of records has one dimension, and its fields are the columns.
        """
        if name not in self.names:
            raise DataError(f"{self.source} has no array {name!r}; {self.listing()}")
        dtype, shape = self.dtype(name), self.shape(name)
        label = f"{self.source}: array {name!r}"
        if "values_block_0" in (dtype.names or ()):
            raise DataError(f"{label} is a table of pandas: write it with format='fixed', or as .parquet")
        if dtype.names is not None and len(shape) == 1:
            return self.read(name)
        try:
            type_of_numpy(dtype)
        except UnfitValueError as error:
            raise DataError(f"{label} {error}") from None
        if len(shape) not in (1, 2):
            raise DataError(f"{label} has shape {shape}: expected one or two dimensions, with one row for each sample")
        packing = self.packing(name, dtype)
        values = self.read(name)
        if values.ndim == 1 or values.size:
            values = values.reshape(len(values), -1 if values.size else 1)
        return values if packing is None else packing.unpack(values)

    def packing(self, name: str, dtype: Any) -> Packing | None:
        """How an array's stored numbers stand for values; None if they are the values."""
        label = f"{self.source}: array {name!r}"
        attributes = self.attributes(name)
        for words in unread_words(attributes):
            self.note(f"{name!r} read as {words}")
        packing = packing_of(label, attributes, dtype, self.default_fill(dtype))
        if packing is not None and packing.words:
            self.note(f"{', '.join(packing.words)} of {name!r} applied")
        stored, total, fill = self.written(name)
        if stored < total:
            how_many = f"{total - stored:,} of {total:,} chunks"
            is_missing = fill is not None and (np.isnan(fill) or (packing is not None and packing.is_missing(fill)))
            if not is_missing:
                why, remedy = (
                    (f", or hold nothing but the fill value {fill}, which Zarr leaves out", _WRITE_THEM)
                    if suffix_of(self.source) == ".zarr"
                    else ("", "write them")
                )
                raise DataError(
                    f"{label} lacks {how_many}: they were never written{why}; {remedy}. If absent chunks stand for "
                    "missing values, make the fill value NaN, or name it in the attribute _FillValue"
                )
            self.note(f"{how_many} of {name!r} were never written: missing values")
        return packing

    def note(self, words: str) -> None:
        """Keep what was done, once."""
        if words not in self.notes:
            self.notes.append(words)

    def column_names(self, name: str, appended: Sequence[tuple[str, int]] = ()) -> tuple[str, ...]:
        """Names of the columns of an array and of those put behind it.

        They come from the array ``columns``, from the texts of the array's own coordinate, or from the name of an array
        of one dimension; all others are c0, c1 and so on. ``appended`` has the name and the number of columns of each
        array put behind it.
        """
        shape = self.shape(name)
        width = shape[1] if len(shape) > 1 else 1
        behind = [f"{more}_{index}" if number > 1 else more for more, number in appended for index in range(number)]
        if (labels := self.labels(name)) is not None:
            return (*labels, *behind)
        if "columns" in self.names and name != "columns":
            stored: NDArray[Any] = self.read("columns")
            if stored.dtype.kind in "US" and stored.ndim == 1:
                found = np.char.decode(stored, "utf-8") if stored.dtype.kind == "S" else stored
                texts = tuple(str(text) for text in found)
                if len(texts) == width + len(behind) and behind:
                    return texts
                if len(texts) == width:
                    return (*texts, *behind)
                self.note(f"the array 'columns' not used: it has {len(texts):,} names, {name!r} has {width:,} columns")
        if len(shape) == 1 and name != DEFAULT_ARRAY:
            return (name.rpartition("/")[2], *behind)
        return (*(f"c{index}" for index in range(width)), *behind)

    def find(self, name: str) -> str:
        """The array meant by ``data.array``: itself, or for the default X the only table there is."""
        if name.lstrip("/") in self.names:
            return name.lstrip("/")
        if name != DEFAULT_ARRAY:
            return name
        tables = [other for other in self.names if self.describe(other).startswith("2-D")]
        frames = [other for other in tables if self.describe(other).endswith("of pandas")]
        tables = frames or tables
        if len(tables) == 1:
            return tables[0]
        return self.names[0] if len(self.names) == 1 else name

    def listing(self) -> str:
        """The arrays present, in words."""
        if not self.names:
            return "the file holds no array"
        shown = ", ".join(f"{name} ({self.describe(name)})" for name in self.names[:20])
        more = f" and {len(self.names) - 20} more" if len(self.names) > 20 else ""
        return f"set data.array to one of: {shown}{more}"


def object_message(source: str, name: str) -> str:
    """The refusal of an array of Python objects, in words."""
    return (
        f"{source}: array {name!r} holds Python objects, which would have to be unpickled: "
        "save it as plain numbers or text, for example with .astype(float) or .astype(str)"
    )


def shape_text(shape: tuple[int, ...], dtype: Any) -> str:
    """Shape and type of an array, in words."""
    return f"{len(shape)}-D {' x '.join(map(str, shape))} {dtype}".replace("  ", " ")
