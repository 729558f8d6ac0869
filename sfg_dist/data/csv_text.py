"""The text of a .csv file: unpacked, decoded, with one kind of line end.

The bytes of a file say what it is, not its name. gzip, zstd and bzip2 are unpacked, a byte order mark names the
encoding, and a file of another format is refused by the name of that format. A text without a mark is UTF-8; any other
is refused, with what it would say in cp1252.
"""

from __future__ import annotations

import codecs
import zlib
from dataclasses import dataclass

from sfg_dist.data.declared_sizes import SMALL_BYTES
from sfg_dist.data.unpacking import GROWTH, pieces
from sfg_dist.job.errors import DataError
from sfg_dist.job.memory import usable_bytes
from sfg_dist.job.words import size_of

_PACKINGS = {  # by first bytes, with their names here and in ``unpacking``
    b"\x1f\x8b": ("gzip", "gzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd"),
    **dict.fromkeys((b"BZh%d1AY&SY" % level for level in range(1, 10)), ("bzip2", "bz2")),
}
_MOST_GROWTH = 200  # a text of numbers grows by less when it is unpacked

_MARKS = (  # the longer first: UTF-32 begins as UTF-16 does
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive, as Excel workbooks are: export it as .csv"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook: export it as .csv"),
    (b"PAR1", "a parquet file: name it .parquet"),
    (b"\x89HDF\r\n", "an HDF5 file: name it .h5"),
    (b"\x93NUMPY", "a .npy file: name it .npy"),
    (b"ARROW1", "an Arrow file: convert it to .parquet"),
    (b"SQLite format 3", "an SQLite database: export a table of it as .csv"),
    (b"\xfd7zXZ", "packed by xz: unpack it, or pack it by gzip or zstd"),
    (b"%PDF", "a PDF document"),
    (b"<!DOCTYPE", "an HTML page, perhaps of an error or a login: download the file itself"),
    (b"<html", "an HTML page, perhaps of an error or a login: download the file itself"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself by `git lfs pull`"),
    (b'{"', "JSON: export it as .csv"),
    (b"[{", "JSON: export it as .csv"),
    (b"<?xml", "an XML document: export it as .csv"),
)


@dataclass(frozen=True)
class Text:
    """A decoded file."""

    data: bytes  # UTF-8 without a mark, lines ended by ``\\n``
    notes: tuple[str, ...]  # what was done to get it, in words


def decode_text(source: str, raw: bytes, encoding: str = "auto") -> Text:
    """The text of a file; ``encoding`` is "auto", or the name of Python's codec."""
    notes = []
    for magic, (name, packing) in _PACKINGS.items():
        if raw.startswith(magic):
            try:
                raw = _unpacked(source, packing, raw)
            except DataError:
                raise
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise DataError(
                    f"{source} cannot be read as .csv: it is packed by {name}, and damaged or cut short"
                ) from error
            notes.append(name)
            break
    start = raw[:64].lstrip()
    for magic, what in _OTHER_FORMATS:
        if raw.startswith(magic) or (magic.startswith(b"<") and start.lower().startswith(magic.lower())):
            raise DataError(f"{source} cannot be read as .csv: it is {what}")
    data, found = _to_utf8(source, raw, encoding)
    if found != "utf-8":
        notes.append(found)
    data = data.removesuffix(b"\x1a")  # DOS ended files with this
    nul = data.find(b"\0")
    if nul >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise DataError(
            f"{source} cannot be read as .csv: line {line} holds a zero byte; the file is "
            'damaged or not text, or it is UTF-16 without a mark: set data.encoding = "utf-16-le"'
        )
    if b"\r" in data:
        if b"\n" not in data:
            notes.append("lines ended by CR")
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return Text(data, tuple(notes))


def check_text(source: str, num_bytes: int) -> None:
    """Refuse a text that memory does not hold together with the table that is made of it."""
    memory = usable_bytes()
    if num_bytes > memory // 2:
        raise DataError(
            f"{source} holds {size_of(num_bytes)} of text. The text and its table are in memory at once, and this "
            f"process may use {size_of(memory)}: convert it to .parquet, or to a folder of .parquet files"
        )


def _unpacked(source: str, packing: str, raw: bytes) -> bytes:
    """The text unpacked. One that might be too large is counted piece by piece."""
    if len(raw) * GROWTH[packing] <= usable_bytes() // 8:
        return b"".join(pieces(packing, raw))
    total, line_start, parts = 0, 0, []
    for piece in pieces(packing, raw):
        if (end := max(piece.rfind(b"\n"), piece.rfind(b"\r"))) >= 0:
            line_start = total + end
        total += len(piece)
        check_text(source, total)
        if total - line_start > SMALL_BYTES:
            raise DataError(f"{source} cannot be read as .csv: a line in it is longer than {size_of(SMALL_BYTES)}")
        # If it grows more than any table does, it is counted to its end before it is held.
        if total <= max(SMALL_BYTES, _MOST_GROWTH * len(raw)):
            parts.append(piece)
        else:
            parts.clear()
    return b"".join(parts if parts or not total else pieces(packing, raw))


def _to_utf8(source: str, raw: bytes, encoding: str) -> tuple[bytes, str]:
    """The text as UTF-8, and the encoding that it had."""
    marked = next(((mark, name) for mark, name in _MARKS if raw.startswith(mark)), None)
    if encoding == "auto":
        encoding = marked[1] if marked else "utf-8"
    name = codecs.lookup(encoding).name
    if name == "utf-8":
        data = raw
        while data.startswith(codecs.BOM_UTF8):  # of a file that was saved twice with a mark
            data = data.removeprefix(codecs.BOM_UTF8)
        if not data.isascii():
            _check_utf8(source, data)
        return data, name
    try:
        text = raw.decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source} cannot be read as .csv: it is not {encoding} at byte {error.start}; set data.encoding to the "
            "encoding that the file has"
        ) from error
    return text.encode(), name


def _check_utf8(source: str, data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        place = error.start
        line = data.count(b"\n", 0, place) + data.count(b"\r", 0, place) - data.count(b"\r\n", 0, place) + 1
        shown = _word_around(data, place).decode("cp1252", errors="replace")
        raise DataError(
            f"{source} cannot be read as .csv: it is not UTF-8 (byte 0x{data[place]:02x} in line {line}); "
            f'in cp1252 (Windows, latin-1) this reads {shown!r}: if that is right, set data.encoding = "cp1252", '
            "else set it to the encoding that the file has"
        ) from error


def _word_around(data: bytes, place: int) -> bytes:
    ends = b',;|\t\r\n "'
    first = place
    while first > max(0, place - 20) and data[first - 1] not in ends:
        first -= 1
    last = place
    while last < min(len(data), place + 20) and data[last] not in ends:
        last += 1
    return data[first:last]
