"""Rows of Parquet and Arrow: only the columns that a form reads, or that hold pictures.

What cannot be shown in Python (a time beyond its years, a struct that has a field twice, a text that is no
UTF-8) costs its value, not the file. Texts that are stored as bytes are texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.readers import bounds
from gemel_ray.readers.fields import BadRecord, Numbered, Row, plain
from gemel_ray.readers.names import may_be_read, may_name_picture
from gemel_ray.readers.pictures import looks

PARQUET = (".parquet", ".pq", ".parq")
ARROW = (".arrow", ".feather", ".ipc")
NOT_READ = object()  # the value of a column that no form reads
_PEEKED = 8  # rows in which a column of an unknown name is looked at for pictures


def parquet_rows(address: str) -> Iterator[Numbered]:
    """The rows of a Parquet file."""
    with fsspec.open(address, "rb") as file:
        source = bounds.checked(pq.ParquetFile(file))
        names = list(dict.fromkeys(source.schema_arrow.names))
        known = [name for name in names if may_be_read(name)]
        others = [name for name in names if name not in known]
        known += _of_pictures(source, [name for name in others if _may_hold(source.schema_arrow, name)])
        yield from _numbered(bounds.batches(file, source, known), known, names)


def arrow_rows(address: str) -> Iterator[Numbered]:
    """Of Arrow's files (Feather is one), and of its streams, as Hugging Face's save_to_disk writes."""
    with fsspec.open(address, "rb") as file:
        batches = arrow_batches(file)
        first = next(batches, None)
        if first is None:
            return
        names = list(dict.fromkeys(first.schema.names))
        head = first.slice(0, _PEEKED)
        known = [name for name in names if may_be_read(name) or any(map(looks, _values(head, name)))]
        slices = (
            batch.slice(at, bounds.BATCH)
            for batch in chain([first], batches)
            for at in range(0, len(batch), bounds.BATCH)
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
    """Those of the columns that hold something like a picture in the first rows."""
    try:
        head = next(source.iter_batches(_PEEKED, columns=names), None) if names else None
    except Exception:  # a column that nobody reads costs nothing
        return []
    return [name for name in names if head is not None and any(map(looks, _values(head, name)))]


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
    """The column's values; in place of one that cannot be shown, a BadRecord that says why."""
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
        return BadRecord(f"{name} is not valid Unicode: {plain(fault)}")
    except Exception as fault:  # dates, time zones and structs fail each in their own way
        return BadRecord(f"{name} cannot be read: {plain(fault)}")


def _text(value: Any, name: str) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as fault:
        return BadRecord(f"{name} is not valid Unicode: {plain(fault)}")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
