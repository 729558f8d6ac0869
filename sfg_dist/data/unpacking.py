"""Unpacks packed bytes piece by piece, so that their size is counted before they are held."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator

GROWTH = {"gzip": 1032, "zlib": 1032, "zstd": 1 << 17, "bz2": 1 << 16, "lzma": 1 << 14}
"""About the most bytes that one packed byte can become, by packing."""
PIECE_BYTES = 4 << 20


def pieces(packing: str, raw: bytes) -> Iterator[bytes]:
    """What packed bytes hold, in pieces; ``packing`` is a key of ``GROWTH``.

    Raises:
        OSError, EOFError, ValueError, zlib.error, lzma.LZMAError: they are damaged or cut short.
    """
    if packing == "zlib":
        unpacker, rest = zlib.decompressobj(), raw
        while not unpacker.eof:
            piece = unpacker.decompress(rest, PIECE_BYTES)
            rest = unpacker.unconsumed_tail
            if not piece and not rest:
                raise EOFError("the bytes are cut short")
            yield piece
        return
    with _stream(packing, raw) as stream:
        while piece := stream.read(PIECE_BYTES):
            yield bytes(piece)


def unpacked_bytes(packing: str, raw: bytes, most: int) -> int:
    """How many bytes come out, counted up to a little more than ``most``; they are not held."""
    total = 0
    for piece in pieces(packing, raw):
        total += len(piece)
        if total > most:
            break
    return total


def _stream(packing: str, raw: bytes) -> io.BufferedIOBase:
    if packing == "gzip":
        return gzip.GzipFile(fileobj=io.BytesIO(raw))
    if packing == "bz2":
        return bz2.BZ2File(io.BytesIO(raw))
    if packing == "lzma":
        return lzma.LZMAFile(io.BytesIO(raw))
    import pyarrow as pa

    found: io.BufferedIOBase = pa.CompressedInputStream(pa.BufferReader(raw), packing)
    return found
