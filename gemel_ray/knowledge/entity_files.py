"""Files of entities, read as a stream: JSON lines, a JSON array with one item per line (Wikidata's dump), one
JSON document, Parquet, CSV and TSV; packed or not, one file or a folder of them.

What is not an entity is reported with its file, line and reason, and the next is read.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.errors import Mistake
from gemel_ray.knowledge.entities import Entity, Reject
from gemel_ray.knowledge.entity_rows import FIELDS, entity
from gemel_ray.readers.delimited import SEPARATORS
from gemel_ray.readers.fields import BadRecord, Numbered, first_line
from gemel_ray.readers.json_files import is_whole, json_rows
from gemel_ray.readers.opening import PACKED, decoded, lines, opened

_COLUMNAR = (".parquet", ".pq")
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_READ = (".json", ".jsonl", ".ndjson", *_COLUMNAR, *TABLES)
_BATCH = 4096
_HEAD = 2**20


def read(
    address: str, reject: Reject, refusal: Callable[[str], str | None] | None = None
) -> Iterator[Entity]:
    """The entities of a file or a folder, each with its `line`. `refusal` may give a reason against a name.
    Raises ValueError for what no reader knows."""
    for file in _files(address):
        for number, raw in whole(file, _rows(file)):
            try:
                if isinstance(raw, BadRecord):
                    raise raw
                made = entity(raw, partial(_located, reject, f"{file}:{number}"))
                if refusal is not None and (reason := refusal(made["name"])):
                    raise Mistake(f"{reason}: left out")
                yield made | {"line": number}
            except ValueError as fault:
                reject(f"{file}:{number}: {fault}")


def whole(address: str, source: Iterator[Numbered]) -> Iterator[Numbered]:
    """A file's rows. Raises if it is cut short: an incomplete knowledge base would go unnoticed."""
    number = 0
    while True:
        try:
            number, raw = next(source)
        except StopIteration:
            return
        except ValueError as fault:
            raise Mistake(f"{address}: {first_line(fault)}") from fault
        except Exception as fault:  # any error of a library for a damaged file
            raise Mistake(f"{address} cannot be read after row {number:,}: {first_line(fault)}") from fault
        yield number, raw


def _located(reject: Reject, where: str, reason: str) -> None:
    reject(f"{where}: {reason}")


def _files(address: str) -> list[str]:
    filesystem, path = fsspec.core.url_to_fs(address)
    if not filesystem.isdir(path):
        if not filesystem.exists(path):
            raise FileNotFoundError(f"there is no {address}")
        return [address]
    found = sorted(p for p in filesystem.find(path) if kind(p) in _READ)
    if not found:
        raise Mistake(f"{address} is a folder without a file that ends in {', '.join(_READ)}")
    return [filesystem.unstrip_protocol(p) if "://" in address else p for p in found]


def kind(address: str) -> str:
    """The ending of a file's format, without that of its compression."""
    name = address.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return f".{name.rpartition('.')[2]}"


def _rows(address: str) -> Iterator[Numbered]:
    ending = kind(address)
    if ending in _COLUMNAR:
        return _parquet(address)
    if ending in TABLES:
        return _table(address, TABLES[ending])
    with opened(address) as file:
        first, second = file.readline(_HEAD).strip(), file.readline(_HEAD).strip()
    if first.removeprefix(codecs.BOM_UTF8) == b"[" and _is_json(second.rstrip(b",")):
        return _array_lines(address)
    if first.removeprefix(codecs.BOM_UTF8).startswith(b"{") and is_whole(address):
        return _object(address)
    return json_rows(address)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return len(line) == _HEAD  # too long to be parsed here: a megabyte is taken for an item
    return True


def _array_lines(address: str) -> Iterator[Numbered]:
    with opened(address) as file:
        for number, whole in enumerate(lines(file), 1):
            line = (whole.encode() if isinstance(whole, str) else whole).strip()
            if line in (b"", b"[", b"]"):
                continue
            try:
                yield number, json.loads(line.removesuffix(b","))
            except (ValueError, RecursionError) as fault:
                yield number, BadRecord(f"the line is not JSON: {first_line(fault)}")


def _object(address: str) -> Iterator[Numbered]:
    """The entities of a JSON object: a list under one key, each under its id, or a single one."""
    with opened(address) as file:
        try:
            found = json.loads(decoded(file.read()))
        except (ValueError, RecursionError) as fault:
            yield 1, BadRecord(f"the file is not JSON: {first_line(fault)}")
            return
    if isinstance(found.get("results"), dict):  # of Wikidata's query service
        found = found["results"]
    lists = [value for value in found.values() if isinstance(value, list)]
    if {str(key).lower() for key in found}.intersection(FIELDS["id"]):
        items = [found]
    else:
        items = lists[0] if lists else [_with_id(key, value) for key, value in found.items()]
    yield from enumerate(items, 1)


def _with_id(key: str, value: Any) -> Any:
    return {"id": key} | value if isinstance(value, dict) else value


def _parquet(address: str) -> Iterator[Numbered]:
    known = {name for names in FIELDS.values() for name in names}
    with fsspec.open(address, "rb") as file:
        source = pq.ParquetFile(file)
        _with_columns(source.schema_arrow.names)
        columns = [name for name in source.schema_arrow.names if name.strip().lower() in known]
        number = 0
        for batch in source.iter_batches(_BATCH, columns=columns):
            for row in _of_batch(batch):
                number += 1
                yield number, row


def _of_batch(batch: pa.RecordBatch) -> list[Any]:
    """The batch's rows; a row that cannot be represented (bytes that are not UTF-8) becomes a BadRecord."""
    try:
        return list(batch.to_pylist())
    except Exception as fault:
        if len(batch) == 1:
            return [BadRecord(f"the row cannot be read: {first_line(fault)}")]
        return [row for place in range(len(batch)) for row in _of_batch(batch.slice(place, 1))]


def texts(file: BinaryIO) -> Iterator[str]:
    """A file's lines for csv. What is not UTF-8 becomes surrogates, for which the value is refused."""
    return (t.decode("utf-8", "surrogateescape") if isinstance(t, bytes) else t for t in lines(file))


def _table(address: str, separator: str) -> Iterator[Numbered]:
    with opened(address) as file:
        written = texts(file)
        first = next(written, "")
        if separator == ",":  # or a semicolon, as spreadsheets of many countries write it
            separator = max(SEPARATORS, key=first.count)
        rows = csv.DictReader(chain([first], written), delimiter=separator)
        _with_columns(rows.fieldnames or [])
        try:
            for row in rows:
                yield rows.line_num, row
        except csv.Error as fault:
            yield rows.line_num, BadRecord(f"nothing after this line can be read: {first_line(fault)}")


def _with_columns(names: Any) -> None:
    """Raises ValueError where the id or the name is missing."""
    have = {str(name).strip().lower() for name in names}
    for field in ("id", "name"):
        if not have.intersection(FIELDS[field]):
            raise Mistake(
                f"there is no column for an entity's {field} ({', '.join(FIELDS[field])}); "
                f"its columns are {', '.join(map(str, names))}"
            )
