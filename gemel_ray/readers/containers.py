"""A file's rows, whatever its form: JSON lines, one JSON document (whole.py), tables of columns
(columnar.py, delimited.py), tar shards (shards.py). It is told by the end of the name, in any case."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO

from gemel_ray.readers import bounds
from gemel_ray.readers.columnar import ARROW, PARQUET, arrow_rows, parquet_rows
from gemel_ray.readers.delimited import TABLES, table_rows
from gemel_ray.readers.fields import BadRecord, Numbered, not_json
from gemel_ray.readers.opening import PACKED, encoding, lines, opened
from gemel_ray.readers.shards import SHARDS, tar_rows
from gemel_ray.readers.whole import whole_rows

JSON = tuple(
    kind + packed for kind in (".json", ".jsonl", ".ndjson", ".jl", ".jsonlines") for packed in PACKED
)
_HEAD = 2**16
_ARRAY = re.compile(r"\s*\[\s*[\[{]")
_OBJECT = re.compile(r"\s*\{")


def rows(address: str) -> Iterator[Numbered]:
    """The file's rows. Raises whatever a file that is truncated, foreign or gone makes its library raise."""
    name = address.lower()
    if name.endswith(PARQUET):
        return parquet_rows(address)
    if name.endswith(ARROW):
        return arrow_rows(address)
    if name.endswith(TABLES):
        return table_rows(address)
    if name.endswith(SHARDS):
        return tar_rows(address)
    return json_rows(address)


def json_rows(address: str) -> Iterator[Numbered]:
    """The rows of a JSON file, one a line or all in one document."""
    return whole_rows(address) if is_whole(address) else _lines(address)


def is_whole(address: str) -> bool:
    """Whether the file is one JSON document rather than lines: an array of objects or of arrays, or an
    object that is all there is, or that spans lines. One that cannot be read is left to be read as lines:
    that says why."""
    try:
        with opened(address) as file:
            head = file.read(_HEAD)
            text = head.decode(encoding(head), "replace")
            first, _, more = text.strip().partition("\n")
            more = more.strip()
            if more and _is_json(first):
                return False
            if not _OBJECT.match(text):
                spans = more and not more.startswith("]") and _goes_on(first)
                return bool(_ARRAY.match(text) or (text.lstrip().startswith("[") and spans))
            if more:
                return _goes_on(first) and not _is_json(more.partition("\n")[0])
            return len(head) < _HEAD or not _has_more(file)
    except Exception:
        return False


def _has_more(file: IO[bytes]) -> bool:
    """Whether anything stands behind the line that the file is in."""
    return any(line.strip() for number, line in enumerate(bounds.lines(file)) if number)


def _goes_on(line: str) -> bool:
    """Whether a line is the beginning of an object that spans lines, and not one that is broken."""
    try:
        json.loads(line)
    except json.JSONDecodeError as fault:
        return fault.pos >= len(line.rstrip())
    except (ValueError, RecursionError):
        return False
    return False


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(address: str) -> Iterator[Numbered]:
    with opened(address) as file:
        for number, line in enumerate(lines(file), 1):
            if len(line) > bounds.LINE:
                yield number, BadRecord(f"line {number} has more than {bounds.LINE:,} bytes")
                continue
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as fault:
                yield number, BadRecord(f"line {number} is not JSON: {not_json(fault)}")
