"""From a column of text, of a dictionary, or of codes to the categories that it has.

A category column has at most 1000 different values, of at most 1000 letters. A column of text whose values are nearly
all different is an identifier, and one with more is free text: nothing can be learnt of their law.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sfg_dist.data.column_type import MAX_CATEGORIES, MAX_LETTERS, ColumnType, UnfitValueError
from sfg_dist.data.surveys import IdentifierError, Survey

if TYPE_CHECKING:
    import pyarrow as pa

Asked = str | Sequence[Any] | None

_LEAST_ROWS = 20  # a shorter column may have a category a row
_DAY = re.compile(r"\s*\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?\s*")
_MOST_DISTINCT = 0.5  # of the rows; text with more different values is an identifier


class CategorySurvey(Survey):
    """Looks at all of a category column, in one part or several, and finds its categories.

    ``order`` is that of an ordinal column, where the job gives it; with ``is_asked`` the job names the column.
    """

    def __init__(self, type_: ColumnType, *, order: Sequence[str] = (), is_asked: bool = False) -> None:
        super().__init__(type_)
        self._order, self._is_asked = dict.fromkeys(order), is_asked
        self._has_order = bool(order)  # else that of the dictionaries, or of the values
        self._below: dict[str, set[str]] = {}  # by the orders of all parts' dictionaries
        self._texts: dict[str, None] = {}
        self._num_values = 0
        self._excess = ""  # why it cannot be a category column

    @property
    def needs_values(self) -> bool:
        """The categories are the values."""
        return True

    def add(self, column: Any, repeats: Sequence[int] = ()) -> None:
        """Look at a part of the column, as an Arrow array; ``repeats`` are the rows of each value, where not one."""
        import pyarrow as pa

        from sfg_dist.data.categories import dictionaries_of, encoded
        from sfg_dist.data.orders import add_order

        if pa.types.is_null(column.type) or self._excess:
            return
        texts, places = encoded(column)
        counts = np.bincount(places[places >= 0], minlength=len(texts))
        self._num_values += int(np.array(repeats)[places >= 0].sum()) if len(repeats) else int(counts.sum())
        self._take(self._texts, texts.filter(pa.array(counts > 0)))
        if not self._by_dictionary:
            return
        for order in dictionaries_of(column):
            self._take(dict.fromkeys(self._below), order)
            if not self._excess:
                add_order(self._below, order.drop_null().to_pylist())

    @property
    def _by_dictionary(self) -> bool:
        """Whether the order is that of the parts' dictionaries."""
        import pyarrow as pa

        from sfg_dist.data.categories import named_type

        if self.type.kind != "ordinal" or self._has_order:
            return False
        found = named_type(self.type.dtype)
        return bool(pa.types.is_dictionary(found) and found.ordered)

    def _take(self, into: dict[str, None], texts: pa.Array) -> None:
        import pyarrow.compute as pc

        if len(texts) and (longest := pc.max(pc.utf8_length(texts)).as_py()) and longest > MAX_LETTERS:
            self._excess = f"with {longest:,} letters in one value"
            return
        if len(texts) > MAX_CATEGORIES:  # a dictionary may hold a value twice
            texts = texts.unique()
        is_free = len(texts) > MAX_CATEGORIES  # which takes much memory as Python's texts
        if is_free or len(into.keys() | set(texts.to_pylist())) > MAX_CATEGORIES:
            self._excess = f"more than {MAX_CATEGORIES:,} different values"
        else:
            into.update(dict.fromkeys(texts.to_pylist()))

    def join(self, other: Survey) -> None:
        """Take over what the survey of another part of the column has seen."""
        import pyarrow as pa

        assert isinstance(other, CategorySurvey)
        self._excess = self._excess or other._excess
        self._num_values += other._num_values
        if not self._excess:
            self._take(self._texts, pa.array(list(other._texts), pa.string()))
            for text, texts in other._below.items():
                self._below.setdefault(text, set()).update(texts)

    def result(self) -> ColumnType:
        """The type with its categories.

        Raises:
            IdentifierError: there are too many.
            UnfitValueError: all are days; one has no place in the order; or the parts' dictionaries have no common one.
        """
        from sfg_dist.data.categories import wide_enough

        number = len(self._texts)
        if not self._is_asked and number >= 2 and all(map(_DAY.fullmatch, self._texts)):
            raise UnfitValueError(
                f"holds days or stamps as text, such as {next(iter(self._texts))!r}: make them dates (in pandas by "
                'to_datetime), or say in data.types that the column is a "datetime", or a "category" as it stands'
            )
        if not self._excess and not self._is_asked and self._num_values >= _LEAST_ROWS:
            is_identifier = number > _MOST_DISTINCT * self._num_values
            self._excess = f"{number:,} different values in {self._num_values:,} rows" if is_identifier else ""
        if self._excess:
            raise IdentifierError(f"holds text, {self._excess}, as identifiers and free text do")
        return replace(self.type, dtype=wide_enough(self.type.dtype, number), categories=tuple(self._ordered()))

    def _ordered(self) -> list[str]:
        import pyarrow as pa
        import pyarrow.compute as pc

        from sfg_dist.data.categories import is_text, value_type
        from sfg_dist.data.orders import only_order

        try:
            order = only_order(self._below) if self._by_dictionary else list(self._order)
        except UnfitValueError as error:
            raise UnfitValueError(f'{error}; give one in data.types, such as ["low", "mid", "high"]') from None
        outside = [text for text in self._texts if text not in order] if order or self._by_dictionary else []
        if outside:
            where = "its order in data.types does" if self._has_order else "the dictionaries of its other parts do"
            raise UnfitValueError(f"holds {outside[0][:40]!r}, which {where} not have")
        if order:
            return [text for text in order if text in self._texts]
        kind = value_type(self.type)
        if is_text(kind):
            return sorted(self._texts)
        texts = pa.array(list(self._texts), pa.string())
        return [str(text) for text in texts.take(pc.sort_indices(texts.cast(kind))).to_pylist()]


def survey_as_asked(found: pa.DataType, type_: ColumnType | None, asked: Asked) -> Survey:
    """The survey of a column of an Arrow type as ``data.types`` asks; ``type_`` is what it would be else, if anything.

    Raises:
        UnfitValueError: a column of that type cannot be read so.
    """
    import pyarrow as pa

    from sfg_dist.data.categories import is_text

    values = found.value_type if pa.types.is_dictionary(found) else found
    if type_ is None:
        raise UnfitValueError(f"has type {found}: expected numbers, booleans, dates, times or text")
    if not isinstance(asked, str) or asked in ("category", "ordinal"):
        _check_text(values)
    if not isinstance(asked, str):
        return CategorySurvey(ColumnType("ordinal", str(found)), order=texts_of(asked or (), values), is_asked=True)
    if asked == "ordinal" and is_text(values) and not (pa.types.is_dictionary(found) and found.ordered):
        raise UnfitValueError('holds text without an order: give it in data.types, such as ["low", "mid", "high"]')
    if asked in ("category", "ordinal"):
        dtype = "string" if pa.types.is_null(values) else str(found)
        return CategorySurvey(ColumnType(asked, dtype), is_asked=True)
    of_values = ColumnType.of(values)
    wanted = {
        "number": (("float", "integer", "decimal"), ColumnType()),
        "integer": (("integer",), ColumnType("integer", "int64")),
        "boolean": (("boolean",), ColumnType("boolean", "bool")),
        "datetime": (("timestamp", "date"), ColumnType("timestamp", "timestamp[us]", unit="us")),
    }
    kinds, otherwise = wanted[asked]
    if of_values.kind in kinds:
        return Survey(of_values if type_.is_coded else type_)
    may_be = {"integer": ("float", "decimal", "boolean"), "boolean": ("integer",), "number": ("boolean",)}
    if not is_text(values) and of_values.kind not in may_be.get(asked, ()):
        raise UnfitValueError(f"holds {of_values.words}: data.types cannot make {asked} of it")
    return Survey(otherwise)


def _check_text(values: pa.DataType) -> None:
    """Refuse values that do not come back from their text, or have no order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from sfg_dist.data.categories import is_text

    if is_text(values) or pa.types.is_null(values):
        return
    try:
        pc.sort_indices(pa.array([], values).cast(pa.string()).cast(values))
    except pa.ArrowNotImplementedError:
        raise UnfitValueError(
            f"has type {values}, which cannot be read as categories: convert it to text, or to another type of numbers"
        ) from None


def texts_of(order: Sequence[Any], kind: pa.DataType) -> list[str]:
    """The values of an order that the job gives, as the texts of their categories, each of them once."""
    import pyarrow as pa

    from sfg_dist.data.categories import as_texts, is_text

    texts = [value if isinstance(value, str) else str(pa.scalar(value).cast(pa.string()).as_py()) for value in order]
    if not is_text(kind):
        try:
            texts = [str(text) for text in as_texts(pa.array(texts, pa.string()).cast(kind)).to_pylist()]
        except pa.ArrowInvalid:
            raise UnfitValueError(f"has type {kind}, which the order in data.types does not have") from None
    if twice := next((text for text in texts if texts.count(text) > 1), None):
        raise UnfitValueError(f"has an order in data.types that names {twice!r} twice: name each value once")
    return texts
