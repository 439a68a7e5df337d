"""How much of a file is in memory at once, whatever it unpacks to: a line, a document, some rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, AnyStr, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.errors import Mistake

LINE = 64 * 2**20  # bytes of a line, which is a document with its picture
WHOLE = 512 * 2**20  # bytes of a file that is one JSON document
APART = 256 * 2**20  # bytes of a shard's pairs that wait for the rest of their members
PAIRS = 20_000  # of them
BATCH = 256  # rows
_DECODED = 256 * 2**20  # bytes of a batch, where one value can stand in all of its rows
_ROW = 64 * 2**20  # bytes of a row, or values in it
_INT = 0x15  # a field of Thrift's compact form: the next one, a number


def lines(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """Each line. One that is too long is cut: it is as long as LINE + 1, and nothing more of it is kept."""
    while line := file.readline(LINE + 1):
        yield line
        while len(line) > LINE and line[-1:] not in (b"\n", "\n"):
            line = file.readline(LINE + 1)


def whole(file: BinaryIO) -> bytes:
    """All of it. Raises ValueError where that is too much."""
    data = file.read(WHOLE + 1)
    if len(data) > WHOLE:
        raise Mistake(f"it has more than {WHOLE:,} bytes: write it as JSON lines")
    return data


def checked(source: pq.ParquetFile) -> pq.ParquetFile:
    """Raises ValueError for rows that are too large."""
    for column in (c for number in range(source.num_row_groups) for c in _columns(source, number)):
        size = max(column.total_uncompressed_size, column.num_values) / max(1, source.metadata.num_rows)
        if size > _ROW:
            raise Mistake(f"rows of {size:,.0f} bytes on average in {column.path_in_schema}")
    return source


def batches(file: BinaryIO, source: pq.ParquetFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows of these columns, as many at once as their dictionaries allow: a value that stands there once may
    be in every row."""
    for number in range(source.num_row_groups):
        columns = [c for c in _columns(source, number) if c.path_in_schema.partition(".")[0] in names]
        most = min((_rows(file, column) for column in columns), default=BATCH)
        yield from source.iter_batches(most, row_groups=[number], columns=names)


def _columns(source: pq.ParquetFile, number: int) -> list[pq.ColumnChunkMetaData]:
    group = source.metadata.row_group(number)
    return [group.column(i) for i in range(group.num_columns)]


def _rows(file: BinaryIO, column: pq.ColumnChunkMetaData) -> int:
    """Of a batch, as far as this column is concerned."""
    if "DELTA_BYTE_ARRAY" in column.encodings:  # a value is told by how it differs from the one before
        return 1
    if not column.has_dictionary_page:
        return BATCH
    file.seek(column.dictionary_page_offset)
    return max(1, min(BATCH, _DECODED // max(1, _page_size(file.read(32)))))


def _page_size(header: bytes) -> int:
    """Bytes of a page, unpacked: the second field of its header, and what the reader goes by."""
    at, numbers = 0, list[int]()
    for _ in range(2):
        number = shift = 0
        if header[at : at + 1] != bytes([_INT]):
            raise Mistake("the header of a dictionary is damaged")
        while True:
            at += 1
            number |= (header[at] & 0x7F) << shift
            shift += 7
            if header[at] < 0x80:
                break
        numbers.append(number >> 1)
        at += 1
    return numbers[1]
