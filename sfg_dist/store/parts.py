"""Tables of samples in parts: each is one object, written whole, so a killed writer goes on and several share the work.

| table | parts | what says whose it is |
| --- | --- | --- |
| .zarr | the chunks of the array ``X`` | attributes of the group |
| .parquet at a URL, or named with a slash at its end | part-000000.parquet, ... | NAME.parquet.sample.json beside it |

A folder of .parquet holds its parts and nothing else, so that every reader takes it for a table; version 0.1.0 put
``_sample.json`` into it, which is still understood.

Which rows a part holds follows from the number of rows and columns alone. While parts are missing the table says
``making``: what it is made from; once all are there it says ``source`` in its place. A table of another source is
removed before the first part is written.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import FLOAT, ColumnType
from sfg_dist.job.errors import ConfigError, DocumentError, StoreError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.reader import LONG_BYTES, read_json
from sfg_dist.store.arrays import Layout, group_metadata, names_objects
from sfg_dist.store.local import PARTIAL
from sfg_dist.store.location import Location

PART_BYTES = 16 << 20
MAX_PART_ROWS, MIN_PART_ROWS = 1 << 20, 4096
MAX_PARTS = 10_000_000
OLD_SAMPLE_NAME = "_sample.json"
_PART = re.compile(r"part-\d{6,}\.parquet")

Draw = Callable[[Iterable[tuple[int, int]]], Iterator[NDArray[np.float64]]]
"""The rows of ranges of row numbers, in order, in arrays that do not cross the end of a range."""
Progress = Callable[[int], None]
"""Told how many rows were made since it was last told."""


class PartedTable(ABC):
    """A table of samples that is, or will be, at a place; ``source`` says what decides its rows."""

    def __init__(
        self, place: str | Path, columns: Sequence[str], num_rows: int, source: str, types: Sequence[ColumnType]
    ) -> None:
        self.location = Location(place, create=True)
        self.columns, self.num_rows, self.source, self.types = list(columns), num_rows, source, tuple(types)
        rows = MAX_PART_ROWS
        while rows > MIN_PART_ROWS and rows * len(self.columns) * 8 > PART_BYTES:
            rows //= 2
        self.part_rows = max(1, min(rows, num_rows))

    @property
    def num_parts(self) -> int:
        """Number of objects that hold rows."""
        return -(-self.num_rows // self.part_rows)

    def write(self, draw: Draw, *, share: tuple[int, int] = (0, 1), on_progress: Progress | None = None) -> int:
        """Make the parts that are missing; the rows that are there at the end, with the parts that others made.

        A ``share`` (k, m) makes parts k, k + m, k + 2 m, ... only, so that m processes share a table. ``on_progress``
        is told of rows as they are made or found.

        Raises:
            ConfigError: something else lies there; or, for one of several processes, an older table.
            StoreError: the place cannot be written.
        """
        if self.num_parts > MAX_PARTS:
            raise ConfigError(
                f"{self.location.url}: {self.num_rows:,} rows of {len(self.columns)} columns are {self.num_parts:,} "
                f"parts, and a table has {MAX_PARTS:,} at most: draw fewer rows"
            )
        self._begin(is_shared=share[1] > 1)
        there = self._there()
        mine = range(share[0], self.num_parts, share[1])
        missing = [part for part in mine if part not in there]
        if on_progress is not None:
            on_progress(sum(self._size(part) for part in mine) - sum(self._size(part) for part in missing))
        self.location.write_many(self._objects(draw, missing, on_progress))
        there = self._there()
        if len(there) == self.num_parts:
            self.location.remove_partials()  # readers of a folder would take one for a part
            self._mark({"source": self.source})
        return sum(map(self._size, there))

    def _objects(self, draw: Draw, parts: Sequence[int], on_progress: Progress | None) -> Iterator[tuple[str, bytes]]:
        starts = [part * self.part_rows for part in parts]
        drawn = draw((start, min(start + self.part_rows, self.num_rows)) for start in starts)
        for part in parts:
            rows, done = np.empty((self._size(part), len(self.columns))), 0
            while done < len(rows):
                some = next(drawn)
                rows[done : done + len(some)] = some
                done += len(some)
                if on_progress is not None:
                    on_progress(len(some))
            yield self._key(part), self._encode(rows)

    def _size(self, part: int) -> int:
        return min(self.part_rows, self.num_rows - part * self.part_rows)

    def _begin(self, *, is_shared: bool) -> None:
        found = self._state()
        if self.source in (found.get("source"), found.get("making")):
            return
        entries = []
        for entry in self.location.walk():
            if entry.oddity not in ("", PARTIAL):
                raise ConfigError(
                    f"{self.location.url}: {entry.key!r} {entry.oddity}: remove it, or choose another place"
                )
            entries += [] if entry.oddity else [entry]
        # Not by its columns alone: others call an attribute that, and what is here is about to be removed.
        is_samples = "columns" in found and any(state in found for state in ("source", "making", "removing"))
        is_samples = is_samples and all(self._is_own(entry.key) for entry in entries)
        if entries and not is_samples:
            raise ConfigError(f"{self.location.url} holds something else than a table of samples: choose another place")
        if entries and is_shared:
            raise ConfigError(
                f"{self.location.url} holds another table ({found.get('source') or found.get('making')}): remove it, "
                f"or choose another place; a command that writes a share of a table removes nothing"
            )
        if entries:
            self._mark({"removing": True})  # a killed removal is told from a table that was begun
            for entry in self.location.list():
                if entry.key != self._marker:
                    self.location.delete(entry.key)
            self.location.remove_partials()
        self._mark({"making": self.source})

    # What the two kinds do in their own way.

    _marker = ""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What the table says of itself; empty where there is none."""

    @abstractmethod
    def _mark(self, state: dict[str, Any]) -> None: ...

    @abstractmethod
    def _is_own(self, key: str) -> bool:
        """Whether a writer of such tables makes an object of this name."""

    @abstractmethod
    def _key(self, part: int) -> str: ...

    @abstractmethod
    def _encode(self, rows: NDArray[np.float64]) -> bytes: ...

    def _there(self) -> set[int]:
        """The parts that are there."""
        sizes = {entry.key: entry.bytes for entry in self.location.list()}
        return {part for part in range(self.num_parts) if self._is_whole(sizes.get(self._key(part)))}

    def _is_whole(self, size: int | None) -> bool:
        return size is not None


class ZarrTable(PartedTable):
    """A group with the array ``X``, float64, a crc32c a chunk; the array can be opened once it is whole."""

    _marker = "zarr.json"

    @cached_property
    def _layout(self) -> Layout:
        whole = self.part_rows * len(self.columns) * 8
        shape = (self.num_rows, len(self.columns))
        return Layout(shape, "float64", self.part_rows, max_chunk_bytes=whole, dims=("row", "column"))

    def _state(self) -> dict[str, Any]:
        return attributes_of(self.location)

    def _mark(self, state: dict[str, Any]) -> None:
        attributes: dict[str, Any] = {"columns": self.columns, **state}
        members: dict[str, bytes] | None = None
        if "source" in state:
            names = names_objects(self.columns)
            for key, content in {"X/zarr.json": self._layout.metadata, **names}.items():
                self.location.write(key, content)
            members = {"X": self._layout.metadata, "column": names["column/zarr.json"]}
            attributes["types"] = [type_.to_dict() for type_ in self.types]
            if any(type_.offset or type_.is_coded for type_ in self.types):
                attributes["note"] = (
                    "X holds value - offset, with the offset of each column in types, and of categories their places"
                )
        self.location.write(self._marker, group_metadata(attributes, members))

    def _is_own(self, key: str) -> bool:
        return key == self._marker or key.split("/")[0] in ("X", "column")

    def _key(self, part: int) -> str:
        return f"X/{self._layout.object_key(part)}"

    def _encode(self, rows: NDArray[np.float64]) -> bytes:
        content = self._layout.encode(rows)
        if content is None:  # Zarr leaves out a chunk of missing values alone, and an absent one counts as not made
            raise StoreError(f"{self.location.url}: a part of the table has no value at all: draw more rows")
        return content

    def _is_whole(self, size: int | None) -> bool:
        return size == self._layout.object_bytes(0, self.part_rows)


class ParquetTable(PartedTable):
    """A folder of .parquet files."""

    def __init__(
        self, place: str | Path, columns: Sequence[str], num_rows: int, source: str, types: Sequence[ColumnType]
    ) -> None:
        if any(type_ != FLOAT for type_ in types):  # they decide the bytes, and a model's digest does not know them
            words = json.dumps([type_.to_dict() for type_ in types], sort_keys=True)
            source += f", types {hashlib.sha256(words.encode()).hexdigest()[:16]}"
        super().__init__(place, columns, num_rows, source, types)
        folder, _, name = str(place if is_url(place) else Path(place).absolute()).rstrip("/").rpartition("/")
        self._beside = Location(folder or "/", create=True)
        self._sample_name = f"{name}.sample.json"

    def _state(self) -> dict[str, Any]:
        content = self._beside.read(self._sample_name, LONG_BYTES) or self.location.read(OLD_SAMPLE_NAME, LONG_BYTES)
        found = _read_table(content)
        if content is not None and "columns" not in found:
            raise ConfigError(
                f"{self._beside.url}/{self._sample_name} does not belong to a table of samples: choose another place"
            )
        return found

    def _mark(self, state: dict[str, Any]) -> None:
        document = {"columns": self.columns, "rows": self.num_rows, "part_rows": self.part_rows, **state}
        self._beside.write(self._sample_name, json.dumps(document, indent=1).encode())
        if self.location.exists(OLD_SAMPLE_NAME):
            self.location.delete(OLD_SAMPLE_NAME)

    def _is_own(self, key: str) -> bool:
        return key == OLD_SAMPLE_NAME or _PART.fullmatch(key) is not None

    def _key(self, part: int) -> str:
        return f"part-{part:06d}.parquet"

    def _encode(self, rows: NDArray[np.float64]) -> bytes:
        stream = io.BytesIO()
        with ParquetWriter(stream, self.columns, self.types, rows) as writer:
            writer(rows)
        return stream.getvalue()


class ParquetWriter:
    """Writes tables of rows to one .parquet file, a path or a stream, within a ``with``.

    ``rows`` are the first ones, value - offset: a column that repeats its values there gets a dictionary. A dictionary
    of noise would only cost time.
    """

    def __init__(
        self, place: Any, columns: Sequence[str], types: Sequence[ColumnType], rows: NDArray[np.float64]
    ) -> None:
        import pyarrow
        from pyarrow import parquet

        head = rows[:4096]
        distinct = [len(np.unique(values)) for values in head.T]
        repeated = [
            name
            for name, number, type_ in zip(columns, distinct, types, strict=True)
            if number < len(head) / 4 or type_.is_coded  # an ordinal column's order stands in its dictionary alone
        ]
        self._types = types
        self._schema = pyarrow.schema([(name, type_.arrow) for name, type_ in zip(columns, types, strict=True)])
        self._writer = parquet.ParquetWriter(place, self._schema, use_dictionary=repeated or False)

    def __enter__(self) -> Callable[[NDArray[np.float64]], None]:
        return self._write

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def _write(self, rows: NDArray[np.float64]) -> None:
        import pyarrow

        columns = [type_.from_float(column) for type_, column in zip(self._types, rows.T, strict=True)]
        self._writer.write_table(pyarrow.table(columns, schema=self._schema))


def attributes_of(location: Location) -> dict[str, Any]:
    """The attributes of the Zarr group at a place, empty where there is none."""
    found = _read_table(location.read("zarr.json", LONG_BYTES)).get("attributes", {})
    return found if isinstance(found, dict) else {}


def _read_table(content: bytes | None) -> dict[str, Any]:
    """A document, empty where there is none."""
    try:
        return dict(read_json(content, "it", max_bytes=LONG_BYTES, allow_nan=True))
    except DocumentError:
        return {}
