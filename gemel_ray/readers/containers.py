"""A file's rows, whatever their form: JSON lines, one JSON document, Parquet, tar shards (shards.py).

One JSON document is an array of rows or an object of them by id. It is told by its first characters (a file
whose first line is JSON by itself, with more behind it, is lines), read once, and given row by row, so that
only its text and one row are in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json import JSONDecoder
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.readers.fields import BadRecord
from gemel_ray.readers.shards import SHARDS, tar_rows

Numbered = tuple[int, Any]  # the line or item, from 1, and the row or the BadRecord in its place
_BATCH = 256
_HEAD = 2**16
_ARRAY = re.compile(r"\s*\[\s*[\[{]")
_OBJECT = re.compile(r'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{')
_SENTENCE = re.compile(r'"(?:sentence|entity_name)"\s*:')  # of a release's items, as our own rows have it not
_SPACE = re.compile(r"\s*")


def rows(address: str) -> Iterator[Numbered]:
    """The file's rows. Raises whatever a file that is truncated, foreign or gone makes its library raise."""
    if address.endswith((".parquet", ".pq")):
        return _parquet(address)
    if address.endswith(SHARDS):
        return tar_rows(address)
    return json_rows(address)


def json_rows(address: str) -> Iterator[Numbered]:
    """The rows of a JSON file, one a line or all in one document."""
    return _whole(address) if is_whole(address) else _lines(address)


def is_whole(address: str) -> bool:
    """Whether the file is one JSON document that holds rows. One that cannot be read is left to be read
    as lines: that says why."""
    try:
        with fsspec.open(address, "rb", compression="infer") as file:
            head = file.read(_HEAD).decode("utf-8-sig", "replace")
    except Exception:
        return False
    first, _, more = head.strip().partition("\n")
    if more and _is_json(first):
        return False
    return bool(_ARRAY.match(head) or (_OBJECT.match(head) and _SENTENCE.search(head)))


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(address: str) -> Iterator[Numbered]:
    with fsspec.open(address, "rb", compression="infer") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as fault:
                yield number, BadRecord(f"line {number} is not JSON: {plain(fault)}")


def _whole(address: str) -> Iterator[Numbered]:
    with fsspec.open(address, "rb", compression="infer") as file:
        text = file.read().decode(
            "utf-8-sig", "surrogateescape"
        )  # bytes that are no text cost their row only
    number = 0
    try:
        for number, row in enumerate(_items(text), 1):
            yield number, row
    except (ValueError, RecursionError) as fault:
        reason = f"item {number + 1} is not JSON, and nothing behind it can be read: {plain(fault)}"
        yield number + 1, BadRecord(reason)


def _items(text: str) -> Iterator[Any]:
    """The items of a JSON array; of an object the values, with their keys as `id`."""
    decode, at = JSONDecoder().raw_decode, _after(text, 0)
    close = {"[": "]", "{": "}"}[text[at]]
    at = _after(text, at + 1)
    while text[at : at + 1] != close:
        key = None
        if close == "}":
            key, at = decode(text, at)
            at = _after(text, _expected(":", text, at) + 1)
        item, at = decode(text, at)
        yield item | {"id": key} if key is not None and isinstance(item, dict) else item
        at = _after(text, at)
        if text[at : at + 1] != close:
            at = _after(text, _expected(",", text, at) + 1)
    if _after(text, at + 1) != len(text):
        raise ValueError(f"there is more behind the closing {close}")


def _after(text: str, at: int) -> int:
    """The place of what comes behind white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _expected(mark: str, text: str, at: int) -> int:
    at = _after(text, at)
    if text[at : at + 1] != mark:
        raise ValueError(f"expected {mark!r} at character {at}")
    return at


def _parquet(address: str) -> Iterator[Numbered]:
    number = 0
    with fsspec.open(address, "rb") as file:
        for part in pq.ParquetFile(file).iter_batches(_BATCH):
            for raw in _of(part):
                number += 1
                yield number, raw


def _of(part: pa.RecordBatch) -> list[Any]:
    try:
        return list(part.to_pylist())
    except UnicodeDecodeError as fault:
        if len(part) == 1:
            return [BadRecord(f"the row is not valid Unicode: {plain(fault)}")]
        return [row for i in range(len(part)) for row in _of(part.slice(i, 1))]


def plain(fault: BaseException) -> str:
    """A fault's first line."""
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]
