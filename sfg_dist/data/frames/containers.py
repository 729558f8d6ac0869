"""What a table in memory is, and how generated rows become such a table again."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import ColumnType, UnfitValueError
from sfg_dist.data.frames.kinds import KINDS, SOURCES, is_installed, kind_of, require
from sfg_dist.data.naming import check_columns
from sfg_dist.data.surveys import to_float
from sfg_dist.data.unfit import UnfitColumnsError, each_fit
from sfg_dist.job.errors import ConfigError, DocumentError, StoreError
from sfg_dist.job.words import shown

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[np.float64]

_LABEL = (str, range(-(2**63), 2**63))
CONTAINER_FIELDS = {
    "kind": set(KINDS),
    "columns": [
        {
            "name": str, "type": str, "nullable": bool, "metadata?": {str: str}, "dtype?": str, "label?": _LABEL,
            "dictionary?": [(*_LABEL, None)], "nan?": bool,
        }
    ],
    "metadata?": {str: str},
    "records?": bool,
}  # fmt: skip
"""What ``Container.to_document`` writes, for ``check_fields``."""

_DTYPE = re.compile(r"[\w\[\], :/+.<>|=-]{1,200}")


@dataclass(frozen=True, eq=False)
class Container:
    """The kind and the schema of a table in memory: with them generated rows become such a table again."""

    kind: str  # one of ``KINDS``
    schema: pa.Schema  # of its columns, in its order
    dictionaries: Mapping[str, pa.Array] = field(default_factory=dict)  # values of dictionary columns, used or not
    labels: tuple[str | int, ...] = ()  # of pandas: the names of the columns, some of which may be numbers
    dtypes: tuple[str, ...] = ()  # of pandas, polars and numpy: one a column, as text
    records: bool = False  # of numpy: whether the rows are records
    nans: frozenset[str] = frozenset()  # columns of numbers whose missing values are NaN, not null

    @property
    def source(self) -> str:
        """What messages call the table."""
        return SOURCES[self.kind]

    @property
    def is_default(self) -> bool:
        """Whether it is what ``sample`` of a model of a file gives: an array of float64."""
        return self.kind == "numpy" and not self.records and {*self.dtypes} <= {np.dtype(np.float64).str}

    @property
    def asked(self) -> dict[str, str]:
        """What ``data.types`` is to say of columns: those of a dictionary are categories, of whatever values."""
        from sfg_dist.data.frames.arrow_types import dictionary_type

        types = {name: dictionary_type(self.schema.field(name).type) for name in self.dictionaries}
        return {name: "ordinal" if type_ is not None and type_.ordered else "category" for name, type_ in types.items()}

    def select(self, columns: Iterable[str]) -> Container:
        """The container of some of the columns, which keep their order here."""
        wanted = set(columns)
        places = [place for place, name in enumerate(self.schema.names) if name in wanted]
        fields = [self.schema.field(place) for place in places]
        import pyarrow as pa

        return replace(
            self,
            schema=pa.schema(fields, self.schema.metadata),
            dictionaries={name: values for name, values in self.dictionaries.items() if name in wanted},
            labels=tuple(self.labels[place] for place in places) if self.labels else (),
            dtypes=tuple(self.dtypes[place] for place in places) if self.dtypes else (),
            nans=self.nans & wanted,
        )

    def give(self, table: pa.Table, kind: str | None = None, gaps: Collection[str] = ()) -> Any:
        """A table of the plain values of these columns, in any order, as the container itself or as another kind.

        ``gaps`` are as for ``plain_frame``. Without the library the Arrow table is given, with a warning.

        Raises:
            ConfigError: the other kind's library is not installed, or does not take a column.
            StoreError: what is kept of the container does not fit the values.
        """
        import pyarrow as pa

        from sfg_dist.data.frames.plain_columns import as_type, with_nan

        columns = []
        for place, name in enumerate(self.schema.names):
            try:
                type_ = self.schema.field(place).type
                column = as_type(table.column(name), type_, self.dictionaries.get(name))
                columns.append(with_nan(column) if name in self.nans and kind in (None, self.kind) else column)
            except (pa.ArrowException, ValueError, LookupError, OverflowError) as error:
                raise StoreError(f"column {name!r} cannot be given back as {type_}: {error}") from error
        typed = pa.table(columns, schema=self.schema)
        if kind is None and not is_installed(self.kind):
            warnings.warn(f"{self.kind} is not installed, so the rows are given as a table of pyarrow", stacklevel=3)
            return typed
        require(kind or self.kind)
        try:
            return self._give(typed, kind or self.kind, gaps)
        except Exception as error:  # whatever a library says of a dtype that is none of the column's
            if kind not in (None, self.kind):
                raise ConfigError(f"container = {kind!r}: {error}") from error
            raise StoreError(f"the generator's container is damaged: {error}") from error

    def _give(self, table: pa.Table, kind: str, gaps: Collection[str]) -> Any:
        if kind != self.kind or kind == "arrow":
            return plain_frame(table, kind, gaps)
        if kind == "numpy":
            from sfg_dist.data.frames.numpy_columns import array_of_columns

            return array_of_columns(table, self.dtypes, records=self.records)
        if kind == "pandas":
            from sfg_dist.data.frames.pandas_columns import pandas_of_columns

            return pandas_of_columns(table, self.labels, self.dtypes)
        from sfg_dist.data.frames.polars_columns import polars_of_columns

        return polars_of_columns(table, self.dictionaries, self.dtypes)

    def to_document(self) -> dict[str, Any]:
        """The container for JSON."""
        from sfg_dist.data.frames.arrow_types import bytes_to_words, words_of_type, words_of_values

        columns = []
        for place, field_ in enumerate(self.schema):
            words = {"name": field_.name, "type": words_of_type(field_.type), "nullable": field_.nullable}
            if field_.metadata:
                words["metadata"] = bytes_to_words(field_.metadata)
            if field_.name in self.dictionaries:
                words["dictionary"] = words_of_values(self.dictionaries[field_.name])
            if field_.name in self.nans:
                words["nan"] = True
            if self.dtypes:
                words["dtype"] = self.dtypes[place]
            if self.labels:
                words["label"] = self.labels[place]
            columns.append(words)
        metadata = bytes_to_words(self.schema.metadata)
        return {"kind": self.kind, "columns": columns, "metadata": metadata, "records": self.records}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], columns: Sequence[str]) -> Container:
        """What ``to_document`` wrote of a table with these columns; its fields are those of ``CONTAINER_FIELDS``.

        Raises:
            DocumentError: it does not fit together, or is of other columns.
        """
        import pyarrow as pa

        from sfg_dist.data.frames.arrow_types import bytes_of_words, dictionary_type, type_of_words, values_of_words

        kind, found = document["kind"], document["columns"]
        if sorted(words["name"] for words in found) != sorted(columns):
            raise DocumentError("container: it has other columns than the generator")
        for key, kinds in (("dtype", ("pandas", "polars", "numpy")), ("label", ("pandas",))):
            if any((key in words) != (kind in kinds) for words in found):
                raise DocumentError(f"container: a table of {kind} has {'a' if kind in kinds else 'no'} {key} a column")
        fields, dictionaries = [], {}
        for words in found:
            type_ = type_of_words(words["type"])
            metadata = bytes_of_words(words.get("metadata", {}))
            fields.append(pa.field(words["name"], type_, words["nullable"], metadata))
            if (inner := dictionary_type(type_)) is not None:
                dictionaries[words["name"]] = values_of_words(words.get("dictionary", []), inner.value_type)
        dtypes = tuple(words["dtype"] for words in found if "dtype" in words)
        if wrong := [dtype for dtype in dtypes if _DTYPE.fullmatch(dtype) is None]:
            raise DocumentError(f"container: there is no dtype {shown(wrong[0])}")
        return cls(
            kind,
            pa.schema(fields, bytes_of_words(document.get("metadata", {}))),
            dictionaries,
            tuple(words["label"] for words in found if "label" in words),
            dtypes,
            bool(document.get("records")),
            frozenset(words["name"] for words in found if words.get("nan")),
        )


def open_frame(frame: object, wanted: Sequence[str] | None = None) -> tuple[Container, pa.Table]:
    """The container of a table in memory, and its columns as plain values of Arrow.

    Args:
        frame: of pandas, polars, Arrow or numpy, or what gives a stream of Arrow.
        wanted: the columns to take, in this order; by default all.

    Raises:
        DataError: it is no such table, or a column is missing or cannot be carried.
    """
    import pyarrow as pa

    kind = kind_of(frame)
    source, records = SOURCES[kind], False
    labels: list[str | int] = []
    dtypes: list[str] = []
    if kind == "pandas":
        from sfg_dist.data.frames.pandas_columns import columns_of_pandas

        table, labels, dtypes = columns_of_pandas(source, frame, wanted)
    elif kind == "numpy":
        from sfg_dist.data.frames.numpy_columns import columns_of_array, words_of_dtype

        assert isinstance(frame, np.ndarray)
        table, records = columns_of_array(source, frame, wanted), frame.dtype.names is not None
        dtypes = [words_of_dtype(frame.dtype[name] if records else frame.dtype) for name in table.column_names]
    elif kind == "polars":
        from sfg_dist.data.frames.polars_columns import columns_of_polars

        table, dtypes = columns_of_polars(source, frame, wanted)
    else:
        table = pa.table(frame)
        table = table.select(list(check_columns(source, table.column_names, wanted)))
    plain = pa.table(each_fit(table.column_names, lambda name: _plain(source, name, table.column(name))))
    dictionaries = each_fit(
        table.column_names, lambda name: _kept_dictionary(source, table.schema.field(name), table.column(name))
    )
    container = Container(
        kind,
        table.schema,
        {name: values for name, values in dictionaries.items() if values is not None},
        tuple(labels),
        tuple(dtypes),
        records,
        frozenset(name for name in table.column_names if _has_nan_alone(source, name, table.column(name))),
    )
    return container, plain


def _has_nan_alone(source: str, name: str, column: Any) -> bool:
    """Whether the missing values of a column are NaN; beside null they come back as null, which is said."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_nan = pa.types.is_floating(column.type) and pc.any(pc.is_nan(column.cast(pa.float64()))).as_py() is True
    if is_nan and column.null_count:
        warnings.warn(
            f"{source}: column {name!r} holds NaN beside null: both are missing values, and come back as null",
            stacklevel=4,
        )
    return is_nan and not column.null_count


def _plain(source: str, name: str, column: Any) -> Any:
    """A column in plain values, whose chunks have one dictionary."""
    from sfg_dist.data.frames.plain_columns import one_dictionary, plain_values

    try:
        return one_dictionary(plain_values(column))
    except UnfitValueError as error:
        raise UnfitColumnsError(
            f"{source}: column {name!r} {error}; give all chunks one dictionary", {name: f"it {error}"}
        ) from None


def _kept_dictionary(source: str, field_: pa.Field, column: Any) -> pa.Array | None:
    """The values of a dictionary column, None for other columns; the container must be able to keep its type."""
    from sfg_dist.data.frames.plain_columns import dictionary_values

    values = dictionary_values(column)
    if what := _not_kept(field_.type, values):
        raise UnfitColumnsError(
            f"{source}: column {field_.name!r} has {what}: make it numbers, dates, times or text, or leave it out with "
            f"data.columns",
            {field_.name: f"it has {what}"},
        )
    return values


def _not_kept(type_: pa.DataType, values: pa.Array | None) -> str:
    """What a container cannot keep of a type and the values of its dictionary, in words; empty where it keeps all."""
    from sfg_dist.data.categories import has_indices
    from sfg_dist.data.frames.arrow_types import dictionary_type, words_of_type, words_of_values

    kind = dictionary_type(type_)
    if values is not None and kind is not None:
        if not has_indices(kind, len(values)):  # of parts with dictionaries of their own
            return f"{len(values):,} categories, more than its index of type {kind.index_type} can tell apart"
        try:
            words_of_values(values)
        except DocumentError:
            return f"categories of type {values.type}"
    try:
        words_of_type(type_)
    except DocumentError:
        return f"type {type_}"
    return ""


def columns_of_rows(columns: Sequence[str], types: Sequence[ColumnType], parts: Iterable[Array]) -> pa.Table:
    """Rows of value - offset, in parts, as columns of the types of their file."""
    import pyarrow as pa

    chunks: list[list[Any]] = [[type_.from_float(np.empty(0))] for type_ in types]
    for part in parts:
        for place, type_ in enumerate(types):
            chunks[place].append(type_.from_float(np.ascontiguousarray(part[:, place])))
    return pa.table([pa.chunked_array(each) for each in chunks], names=list(columns))


def rows_of_frame(frame: object, columns: Sequence[str], types: Sequence[ColumnType]) -> Array:
    """Some columns of a table in memory as rows of value - offset, shape (num_rows, len(columns)).

    Raises:
        DataError: a column is missing, or a value is none of its type.
    """
    container, table = open_frame(frame, columns)
    rows = np.empty((table.num_rows, len(columns)))
    for place, (name, type_) in enumerate(zip(columns, types, strict=True)):
        rows[:, place] = to_float(container.source, name, type_, table.column(name))
    return rows


def plain_frame(table: pa.Table, kind: str, gaps: Collection[str] = ()) -> Any:
    """An Arrow table, of any types, as what a library makes of it: "arrow", "pandas" or "polars".

    ``gaps`` are the columns that may lack values, whether they do here or not.

    Raises:
        ConfigError: the library is not installed.
        DocumentError: the library does not take a column.
    """
    require(kind)
    if kind == "arrow":
        return table
    if kind == "pandas":
        from sfg_dist.data.frames.pandas_columns import pandas_of_table

        return pandas_of_table(table, gaps)
    from sfg_dist.data.frames.polars_columns import polars_of_columns

    return polars_of_columns(table)
