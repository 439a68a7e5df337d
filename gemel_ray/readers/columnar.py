"""Rows of Parquet and Arrow: only the columns that a form reads, or that hold pictures.

A value that Python cannot represent (a time out of range, a struct with a duplicate field, a text that is not
UTF-8) is lost alone, not with its file. Texts that are stored as bytes are texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.errors import Mistake
from gemel_ray.readers import opening
from gemel_ray.readers.fields import BadRecord, Numbered, first_line, may_be_read, may_name_picture
from gemel_ray.readers.pictures import looks_like_picture
from gemel_ray.records import Row

PARQUET = (".parquet", ".pq", ".parq")
ARROW = (".arrow", ".feather", ".ipc")
NOT_READ = object()  # the value of a column that no form reads
_DECODED = 256 * 2**20  # bytes of a batch, where one value can be in all of its rows
_ROW = 64 * 2**20  # bytes of a row, or values in it
_INT = 0x15  # a field of Thrift's compact form: the next one, a number
_PEEKED = 8  # rows in which a column of an unknown name is searched for pictures


def parquet_rows(address: str) -> Iterator[Numbered]:
    """The rows of a Parquet file."""
    with fsspec.open(address, "rb") as file:
        source = checked(pq.ParquetFile(file))
        names = list(dict.fromkeys(source.schema_arrow.names))
        known = [name for name in names if may_be_read(name)]
        others = [name for name in names if name not in known and _may_hold(source.schema_arrow, name)]
        known += _of_pictures(source, others) if others else []
        yield from _numbered(batches_of(file, source, known), known, names)


def arrow_rows(address: str) -> Iterator[Numbered]:
    """The rows of Arrow files (Feather too) and Arrow streams, as Hugging Face's save_to_disk writes them."""
    with fsspec.open(address, "rb") as file:
        batches = arrow_batches(file)
        first = next(batches, None)
        if first is None:
            return
        names = list(dict.fromkeys(first.schema.names))
        head = first.slice(0, _PEEKED)
        known = [
            name for name in names if may_be_read(name) or any(map(looks_like_picture, _values(head, name)))
        ]
        slices = (
            batch.slice(at, opening.BATCH)
            for batch in chain([first], batches)
            for at in range(0, len(batch), opening.BATCH)
        )
        yield from _numbered(slices, known, names)


def arrow_batches(file: Any) -> Iterator[pa.RecordBatch]:
    """The batches of an opened file or stream."""
    try:
        source = pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        yield from pa.ipc.open_stream(file)
        return
    for number in range(source.num_record_batches):
        yield source.get_batch(number)


def _of_pictures(source: pq.ParquetFile, names: list[str]) -> list[str]:
    """The columns that have something like a picture in the first rows."""
    try:
        head = next(source.iter_batches(_PEEKED, columns=names), None)
    except Exception:  # a column that is not read must not fail the file
        return []
    return [name for name in names if head is not None and any(map(looks_like_picture, _values(head, name)))]


def _may_hold(schema: pa.Schema, name: str) -> bool:
    """Whether a column's type can be a picture or a picture's address."""
    kind = schema.field(schema.get_all_field_indices(name)[0]).type
    return bool(pa.types.is_nested(kind) or _is_bytes(kind) or pa.types.is_string(kind)
                or pa.types.is_large_string(kind))  # fmt: skip


def _numbered(batches: Iterable[pa.RecordBatch], known: list[str], names: list[str]) -> Iterator[Numbered]:
    others: Row = {name: NOT_READ for name in names if name not in known}
    number = 0
    for batch in batches:
        columns = [_values(batch, name) for name in known]
        for values in zip(*columns, strict=True) if known else [()] * len(batch):
            number += 1
            yield number, dict(zip(known, values, strict=True)) | others


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    """The column's values; a BadRecord replaces one that cannot be represented."""
    column = batch.column(batch.schema.get_all_field_indices(name)[0])
    try:
        values = column.to_pylist()
    except Exception:
        values = [_value(scalar, name) for scalar in column]
    if _is_bytes(column.type) and not may_name_picture(name):
        values = [_text(value, name) for value in values]
    return values


def _value(scalar: pa.Scalar, name: str) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as fault:
        return BadRecord(f"{name} is not valid Unicode: {first_line(fault)}")
    except Exception as fault:  # dates, time zones and structs each fail differently
        return BadRecord(f"{name} cannot be read: {first_line(fault)}")


def _text(value: Any, name: str) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as fault:
        return BadRecord(f"{name} is not valid Unicode: {first_line(fault)}")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


# However large a file unpacks to, only some of its rows are in memory at once.


def checked(source: pq.ParquetFile) -> pq.ParquetFile:
    """Raises ValueError for rows that are too large."""
    for column in (c for number in range(source.num_row_groups) for c in _columns(source, number)):
        size = max(column.total_uncompressed_size, column.num_values) / max(1, source.metadata.num_rows)
        if size > _ROW:
            raise Mistake(f"rows of {size:,.0f} bytes on average in {column.path_in_schema}")
    return source


def batches_of(file: BinaryIO, source: pq.ParquetFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows of these columns, as many at once as their dictionaries allow: a value that is stored once may be
    in every row."""
    for number in range(source.num_row_groups):
        columns = [c for c in _columns(source, number) if c.path_in_schema.partition(".")[0] in names]
        most = min((_rows(file, column) for column in columns), default=opening.BATCH)
        yield from source.iter_batches(most, row_groups=[number], columns=names)


def _columns(source: pq.ParquetFile, number: int) -> list[pq.ColumnChunkMetaData]:
    group = source.metadata.row_group(number)
    return [group.column(i) for i in range(group.num_columns)]


def _rows(file: BinaryIO, column: pq.ColumnChunkMetaData) -> int:
    """How many rows of this column may be read at once."""
    if "DELTA_BYTE_ARRAY" in column.encodings:  # a value is stored as its difference from the one before
        return 1
    if not column.has_dictionary_page:
        return opening.BATCH
    file.seek(column.dictionary_page_offset)
    return max(1, min(opening.BATCH, _DECODED // max(1, _page_size(file.read(32)))))


def _page_size(header: bytes) -> int:
    """Bytes of a page, unpacked: the second field of its header, which the reader relies on."""
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
