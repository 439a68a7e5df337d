"""A file's bytes, unpacked as its name says, and its text, decoded as its first bytes say."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile
from typing import IO, Any, AnyStr, BinaryIO

import fsspec
import pyarrow as pa
from fsspec.compression import register_compression
from fsspec.spec import AbstractBufferedFile

from gemel_ray.errors import Mistake

# Limits on what is in memory at once, whatever a file unpacks to: a line, a document, some rows.


LINE = 64 * 2**20  # bytes of a line: a document with its picture
WHOLE = 512 * 2**20  # bytes of a file that is one JSON document
WAITING_BYTES = 256 * 2**20  # bytes of a shard's pairs that wait for the rest of their members
WAITING_PAIRS = 20_000  # such pairs
BATCH = 256  # rows


def bounded_lines(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """Each line. One that is too long is cut to LINE + 1."""
    while line := file.readline(LINE + 1):
        yield line
        while len(line) > LINE and line[-1:] not in (b"\n", "\n"):
            line = file.readline(LINE + 1)


def whole_bytes(file: BinaryIO) -> bytes:
    """The whole file. Raises ValueError if it is too large."""
    data = file.read(WHOLE + 1)
    if len(data) > WHOLE:
        raise Mistake(f"it has more than {WHOLE:,} bytes: write it as JSON lines")
    return data


PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
_CLIENTS = ("aiohttp", "azure", "botocore", "gcsfs", "google", "requests", "urllib3")
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, BadGzipFile)
_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def _zstd(file: Any, mode: str = "rb", **_: Any) -> Any:
    return io.BufferedReader(pa.CompressedInputStream(file, "zstd"))


register_compression("zstd", _zstd, "zst", force=True)  # by Arrow: needs no other package


@contextmanager
def opened(address: str) -> Iterator[Any]:
    """The file, unpacked by its ending, in any case."""
    with fsspec.open(address, "rb", compression="infer") as file:
        # `readline` of a remote file takes no limit.
        yield io.BufferedReader(file, 2**20) if isinstance(file, AbstractBufferedFile) else file


def encoding(head: bytes) -> str:
    """The encoding of a text that begins so: by its byte order mark, else UTF-8."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")


def decoded(data: bytes) -> str:
    """The whole text. Bytes that cannot be decoded become half surrogates, so that only their row fails."""
    kind = encoding(data[:4])
    return data.decode(kind, "surrogateescape" if kind.startswith("utf-8") else "surrogatepass")


def lines(file: IO[bytes]) -> Iterator[bytes | str]:
    """The lines of an opened file, cut as `bounded_lines` does: bytes in UTF-8, or the text of UTF-16, as
    PowerShell writes it."""
    first = next(bounded_lines(file), b"")
    kind = encoding(first)
    if kind.startswith("utf-8"):
        yield first.removeprefix(codecs.BOM_UTF8)
        yield from bounded_lines(file)
        return
    whole = io.BufferedReader(_Rejoined(first, file))
    yield from bounded_lines(io.TextIOWrapper(whole, kind, "surrogatepass", newline="\n"))


class _Rejoined(io.RawIOBase):
    """A file again from its start: what has been read of it, then the rest."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self.first, self.rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self.first[: len(buffer)] or self.rest.read(len(buffer))
        self.first = self.first[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def is_from_storage(fault: Exception) -> bool:
    """Whether reading the file again may succeed. Arrow reports damaged content as an OSError without a
    number; clients of object stores have different errors."""
    if isinstance(fault, _LASTING):
        return False
    if isinstance(fault, OSError):
        return fault.errno is not None or isinstance(fault, (ConnectionError, TimeoutError))
    return type(fault).__module__.partition(".")[0] in _CLIENTS
