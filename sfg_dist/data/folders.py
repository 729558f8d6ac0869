"""Many files as one table: a folder, or a glob such as ``part-*.parquet``, local or in S3.

The files are read in the order of their names, and must have the same columns. A file is hidden, and no part of the
table, if its name or that of a folder above it begins with a dot or an underscore. Folders named ``key=value`` (Hive's
partitions) give columns of numbers behind those of the files.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from sfg_dist.data.csv_columns import MAX_DIGITS, MAX_PLACES
from sfg_dist.data.declared_sizes import check_held
from sfg_dist.data.links import check_inside
from sfg_dist.data.naming import check_columns, listed
from sfg_dist.data.sources import AbsentError, local_path, open_bucket, reading, suffix_of
from sfg_dist.data.unfit import UnfitColumnsError, columns_are, each_fit
from sfg_dist.job.errors import DataError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.words import counted

_KINDS = ((".parquet",), (".csv", ".tsv"), (".txt",))
_MAGIC = re.compile(r"[*?\[]")
_WHOLE = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|nan|[+-]?inf(inity)?", re.IGNORECASE)
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Part:
    """A file of a folder."""

    source: str  # its path or URL
    keys: dict[str, str]  # columns that its folders' names give, as text


def is_folder(source: str) -> bool:
    """Whether a source is a folder of files, or a glob of them; a .zarr is one array."""
    if _MAGIC.search(source) and not (not is_url(source) and local_path(source).exists()):
        return True
    suffix = suffix_of(source)
    if is_url(source):
        return suffix != ".zarr" and (source.endswith("/") or not suffix)
    return suffix != ".zarr" and local_path(source).is_dir()


def is_prefix(source: str) -> bool:
    """Whether there are objects below a URL, such as s3://bucket/samples.parquet/part-0.parquet."""
    if not is_url(source):
        return False
    try:
        return bool(_listed_objects(source)[1])
    except DataError:
        return False


def parts_of(source: str) -> list[Part]:
    """The files of a folder or glob, in the order of their names; they must be of one format, with the same keys."""
    try:
        root, paths = _listed_objects(source) if is_url(source) else _listed_files(source)
    except OSError as error:
        raise DataError(
            f"{source}: {error.filename} in it cannot be looked at ({error.strerror}): name the files with a glob, for "
            f"example {source.rstrip('/')}/part-*.parquet"
        ) from error
    kept = [path for path in paths if not _is_hidden(path)]
    for mark, what in ((r"(.*/)?_delta_log/", "a Delta"), (r"(.*/)?metadata/.*\.metadata\.json$", "an Iceberg")):
        if any(re.match(mark, path) for path in paths):
            raise DataError(
                f"{source} is {what} table, and some of the files in it no longer belong to the table: export it as "
                ".parquet"
            )
    by_kind = [[path for path in kept if suffix_of(path) in kind] for kind in _KINDS]
    chosen = next((some for some in by_kind if some), [])
    if not chosen:
        found = Counter(suffix_of(path) or "no suffix" for path in kept)
        if "zarr.json" in kept:
            raise DataError(f"{source} holds a Zarr array or group: let its name end in .zarr")
        held = ", ".join(f"{number:,} with {suffix}" for suffix, number in found.most_common(5)) or "no file"
        raise DataError(f"{source} holds {held}: expected .parquet or .csv files; name a file of another format itself")
    if by_kind[0] and by_kind[1]:
        raise DataError(
            f"{source} holds {counted(len(by_kind[0]), '.parquet file')} and {counted(len(by_kind[1]), '.csv file')}: "
            f"name one kind, for example {source.rstrip('/')}/*.parquet"
        )
    parts = [Part(root + path, _keys_of(path)) for path in sorted(chosen)]
    for part in parts:
        if part.keys.keys() != parts[0].keys.keys():
            raise DataError(
                f"{part.source}: its folders name {listed(list(part.keys)) or 'no column'}, those of {parts[0].source} "
                f"{listed(list(parts[0].keys)) or 'none'}: expected the same; choose the files with a glob"
            )
    return parts


def read_folder(
    source: str, columns: Sequence[str] | None, read: Callable[[str, Sequence[str] | None], tuple[Any, str]]
) -> tuple[Any, str]:
    """The wanted columns of all files as one Arrow table, and how they were read, in words.

    ``read`` gives the same of one file.
    """
    import pyarrow as pa

    parts = parts_of(source)
    keys = list(parts[0].keys)
    asked = None if columns is None else [name for name in columns if name not in keys]
    tables: list[Any] = []
    words: list[str] = []
    for part in parts:
        try:
            table, read_as = read(part.source, asked)
        except UnfitColumnsError as error:
            error.names += tuple(keys)
            raise
        if tables:
            check_same_columns(parts[0].source, tables[0].column_names, part.source, table.column_names)
            table = table.select(tables[0].column_names)
        words.append(read_as)
        tables.append(table)
        _check_memory(source, tables)
    names = [*tables[0].column_names, *keys]
    wanted = check_columns(source, names, columns)

    def column_of(name: str) -> Any:
        if name not in keys:
            return _joined(parts, name, [table.column(name) for table in tables])
        values = key_values(source, name, parts)
        return pa.chunked_array([pa.repeat(value, len(table)) for value, table in zip(values, tables, strict=True)])

    with columns_are(names):
        columns_read = each_fit(wanted, column_of)
    fields = [
        pa.field(name, column.type, metadata=None if name in keys else _said(name, tables))
        for name, column in columns_read.items()
    ]
    read_as = folder_words(len(parts), words[0], keys, len(set(words)) > 1)
    return pa.table(list(columns_read.values()), schema=pa.schema(fields)), read_as


def _check_memory(source: str, tables: Sequence[Any]) -> None:
    """Refuse files that memory does not hold together, with the numbers that are made of them."""
    cells = sum(table.num_rows * table.num_columns for table in tables)
    check_held(source, f"{counted(len(tables), 'file')} of it", (cells + sum(table.nbytes for table in tables) // 8,))


def folder_words(num_files: int, first: str, keys: Sequence[str], differ: bool) -> str:
    """How a folder was read, in words, from those of its first file."""
    words = f"{counted(num_files, 'file')}, {'the first: ' if differ else 'each: '}{first}"
    return words + (f"; from the folders' names: {listed(list(keys))}" if keys else "")


def check_same_columns(first: str, names: Sequence[str], source: str, found: Sequence[str]) -> None:
    """Refuse a file whose columns are not those of the first file, in any order."""
    lacking = [name for name in names if name not in found]
    more = [name for name in found if name not in names]
    if lacking or more:
        what = f"lacks {listed(lacking)}" if lacking else ""
        what += (" and " if lacking and more else "") + (f"has {listed(more)} more" if more else "")
        raise DataError(
            f"{source} {what}, beside {first}: the files of a folder must have the same columns; choose them with "
            "data.columns, or the files with a glob"
        )


def key_values(source: str, key: str, parts: Sequence[Part]) -> list[Any]:
    """What folders' names give a column, one a file: int64, float64 or text scalars, null where there is none."""
    import pyarrow as pa

    texts = [part.keys[key] for part in parts]
    given = [text for text in texts if text != _NO_VALUE]
    kind: Any = pa.string()
    if all(map(_WHOLE.fullmatch, given)):
        is_padded = any(re.match("-?0.", text) for text in given) and any(len(text) != 2 for text in given)
        if not is_padded and all(len(text) < 19 for text in given):  # as in a .csv, 007 is a code, and 07 a month
            kind = pa.int64()
    elif all(map(_NUMBER.fullmatch, given)):
        kind = pa.float64()
    make = {pa.int64(): int, pa.float64(): float}.get(kind, str)
    return [pa.scalar(None if text == _NO_VALUE else make(text), kind) for text in texts]


def _joined(parts: Sequence[Part], name: str, columns: Sequence[Any]) -> Any:
    """The columns of all files one below the other, in a type that holds all of their values."""
    import pyarrow as pa

    from sfg_dist.data.categories import is_text

    kind = common_type(parts, name, [(column.type, len(column)) for column in columns])
    chunks = []
    for part, column in zip(parts, columns, strict=True):
        if not len(column):
            continue
        if is_text(kind):
            chunks += _dictionaries(column, kind)
            continue
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        is_rounded = kind == pa.float64() and not pa.types.is_integer(column.type)  # to the nearest double
        try:
            chunks += column.cast(kind, safe=not is_rounded).chunks
        except pa.ArrowInvalid as error:
            raise UnfitColumnsError(
                f"{part.source}: column {name!r} is {column.type}, beside files of other types, which are read as "
                f"{kind} together: {error}",
                {name: f"it is {column.type} in {part.source}, in other files {kind}"},
                "leave it out with data.columns",
            ) from None
    if is_text(kind):
        return pa.chunked_array(chunks, pa.dictionary(pa.int32(), kind))
    joined = pa.chunked_array(chunks, kind)
    is_mixed = len({chunk.type for chunk in columns if len(chunk)}) > 1
    if is_mixed and pa.types.is_decimal128(kind) and kind.precision > MAX_DIGITS and kind.scale <= MAX_PLACES:
        with contextlib.suppress(pa.ArrowInvalid):  # some value has more digits
            return joined.cast(pa.decimal128(MAX_DIGITS, kind.scale))
    return joined


def _dictionaries(column: Any, kind: Any) -> list[Any]:
    """A column of text, or without values, as chunks of dictionaries: text may repeat without end."""
    import pyarrow as pa

    from sfg_dist.data.categories import joined_dictionaries

    wanted = pa.dictionary(pa.int32(), kind)
    if pa.types.is_null(column.type):
        return [pa.nulls(len(column), wanted)]
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    values, indices = joined_dictionaries(encoded, kind)
    return [pa.DictionaryArray.from_arrays(some, values) for some in indices]


def _said(name: str, tables: Sequence[Any]) -> dict[bytes, bytes] | None:
    """What the files say of a column beside its type. How text wrote it counts only where all wrote it alike."""
    import pyarrow as pa

    from sfg_dist.data.categories import is_text

    fields = [table.schema.field(name) for table in tables]
    fields = [field for field in fields if not pa.types.is_null(field.type)]
    said = [field.metadata or {} for field in fields]
    if fields and is_text(decoded(fields[0].type)):  # the first file says what type text has
        return {b"stored": str(fields[0].type).encode(), **said[0]}
    if not said or all(each == said[0] for each in said):
        return said[0] if said else None
    return {b"text": b"1"} if all(b"text" in each for each in said) else None


def common_type(parts: Sequence[Part], name: str, found: Sequence[tuple[Any, int]]) -> Any:
    """The Arrow type that holds a column's values of all files.

    ``found`` has its type and number of rows in each file; the type of a column without values does not count.
    """
    import pyarrow as pa

    types = [decoded(kind) for kind, _ in found]
    valued = [bool(rows) and not pa.types.is_null(kind) for kind, (_, rows) in zip(types, found, strict=True)]
    kinds = [kind for kind, is_valued in zip(types, valued, strict=True) if is_valued]
    if not kinds:
        return next((kind for kind in types if not pa.types.is_null(kind)), pa.null())
    if len(set(kinds)) == 1:
        return kinds[0]
    if all(map(pa.types.is_integer, kinds)):
        is_wide = any(kind == pa.uint64() for kind in kinds)
        return pa.decimal128(38, 0) if is_wide else pa.int64()
    if all(map(pa.types.is_timestamp, kinds)) and len({kind.tz for kind in kinds}) == 1:
        return pa.timestamp("us", kinds[0].tz)  # which reach all years; nanoseconds that they lack are refused
    scale = max(getattr(kind, "scale", 0) for kind in kinds)
    if all(pa.types.is_integer(kind) or pa.types.is_decimal128(kind) for kind in kinds) and scale <= MAX_PLACES:
        return pa.decimal128(38, scale)
    if all(pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_floating(kind) for kind in kinds):
        return pa.float64()
    other, place = next((kind, place) for place, kind in enumerate(types) if valued[place] and kind != kinds[0])
    raise UnfitColumnsError(
        f"{parts[place].source}: column {name!r} is {other}, in the files before {kinds[0]}: expected one type",
        {name: f"it is {other} in {parts[place].source}, in the files before {kinds[0]}"},
        "write it with one type, or leave it out with data.columns",
    )


def decoded(kind: Any) -> Any:
    """An Arrow type, or that of the values of a dictionary."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _listed_files(source: str) -> tuple[str, list[str]]:
    """A folder, and the paths from there of the files below it or in a glob."""
    if _MAGIC.search(source) and not local_path(source).exists():
        found = [Path(path) for path in glob.glob(str(local_path(source)), recursive=True)]
        if not found:
            raise AbsentError(f"{source} matches no file (current directory: {Path.cwd()})")
        fixed = _MAGIC.split(source)[0].rpartition("/")[0]
        root = local_path(fixed or ("/" if source.startswith("/") else "."))
        paths = [*found, *(path for folder in found if folder.is_dir() for path in folder.rglob("*"))]
        prefix = f"{fixed}/" if fixed or source.startswith("/") else ""
    else:
        root = local_path(source)
        paths, prefix = list(root.rglob("*")), f"{source.rstrip('/')}/"
    for path in paths:
        check_inside(source, root, path)
    files = [path for path in paths if path.is_file()]
    return prefix, sorted(
        {path.relative_to(root).as_posix() if root != Path(".") else path.as_posix() for path in files}
    )


def _listed_objects(source: str) -> tuple[str, list[str]]:
    """A prefix in a bucket, and the keys from there of the objects below it."""
    import obstore

    bucket, _, key = source.partition("://")[2].partition("/")
    store, key = open_bucket(f"s3://{bucket}/.")[0], key.rstrip("/")
    prefix = _MAGIC.split(key)[0]
    prefix = prefix.rpartition("/")[0] if _MAGIC.search(key) else key
    with reading(source):
        objects = [item["path"] for batch in obstore.list(store, prefix=prefix or None) for item in batch]
    if _MAGIC.search(key):
        pattern = re.compile(_glob_pattern(key))
        objects = [path for path in objects if pattern.match(path)]
    else:
        objects = [path for path in objects if path.startswith(f"{prefix}/")]
    if not objects:
        raise AbsentError(f"{source} matches no object" if _MAGIC.search(key) else f"{source} does not exist")
    return f"s3://{bucket}/{prefix}/" if prefix else f"s3://{bucket}/", sorted(
        path[len(prefix) :].lstrip("/") for path in objects
    )


def _glob_pattern(pattern: str) -> str:
    """A regular expression for a glob: ``**/`` any folders, ``*`` and ``?`` within one, and what lies below a match."""
    pieces = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*|\?|\[[^\]]+\])", pattern)
    return "".join(pieces.get(part, part if part.startswith("[") else re.escape(part)) for part in parts) + "(?:/.*)?$"


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in PurePosixPath(path).parts)


def _keys_of(path: str) -> dict[str, str]:
    folders = PurePosixPath(path).parts[:-1]
    found = [folder.partition("=") for folder in folders if folder.count("=") == 1]
    return {unquote(key): unquote(value) for key, _, value in found}  # Hive writes São Paulo as S%C3%A3o%20Paulo
