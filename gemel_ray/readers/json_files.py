"""Rows of JSON: lines, or one document that holds them."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from json import JSONDecoder
from typing import IO, Any

from gemel_ray.errors import Mistake
from gemel_ray.readers import opening
from gemel_ray.readers.cells import FIELD
from gemel_ray.readers.fields import TEXTS, BadRecord, Numbered, identity, not_json
from gemel_ray.readers.opening import PACKED, decoded, encoding, lines, opened
from gemel_ray.records import Row

JSON = tuple(
    kind + packed for kind in (".json", ".jsonl", ".ndjson", ".jl", ".jsonlines") for packed in PACKED
)
_HEAD = 2**16
_ARRAY = re.compile(r"\s*\[\s*[\[{]")
_OBJECT = re.compile(r"\s*\{")


def json_rows(address: str) -> Iterator[Numbered]:
    """The rows of a JSON file: one per line, or all in one document."""
    return whole_rows(address) if is_whole(address) else _lines(address)


def is_whole(address: str) -> bool:
    """Whether the file is one JSON document rather than lines: an array of objects or of arrays, or an
    object that is the whole file, or that spans lines. False for one that cannot be read: reading its lines
    reports why."""
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
    """Whether anything follows the current line of the file."""
    return any(line.strip() for number, line in enumerate(opening.bounded_lines(file)) if number)


def _goes_on(line: str) -> bool:
    """Whether a line begins an object that spans lines, rather than a broken one."""
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
            if len(line) > opening.LINE:
                yield number, BadRecord(f"line {number} has more than {opening.LINE:,} bytes")
                continue
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as fault:
                yield number, BadRecord(f"line {number} is not JSON: {not_json(fault)}")


# One JSON document that holds rows: which of its parts they are.
#
# An array of rows; rows by their id; a list of rows under one key (`data`, `annotations`); COCO's captions,
# with the pictures they are of; pandas' tables (`orient` index, columns, split, table); columns as lists side
# by side; one row, or several in sequence, that span lines. The text is read once and yielded row by row, so
# that only it and one row are in memory. Anything else is one row that says what was found.


_SPACE = re.compile(r"\s*")
_SHOWN = 8  # keys shown of a document of no known form
_LISTS = ("data", "annotations", "rows", "items", "documents", "examples", "images")  # the likeliest first
Outline = dict[str, tuple[int, str]]  # of an object: where each key's value begins, and its first character
_decode = JSONDecoder().raw_decode


def whole_rows(address: str) -> Iterator[Numbered]:
    """The document's rows, numbered from 1; where it breaks off, the last row is a BadRecord."""
    with opened(address) as file:
        text = decoded(opening.whole_bytes(file))
    number = 0
    try:
        for number, row in enumerate(_rows(text), 1):
            yield number, row
    except (ValueError, RecursionError) as fault:
        reason = f"item {number + 1} is not JSON, and nothing after it can be read: {not_json(fault)}"
        yield number + 1, BadRecord(reason)


def _rows(text: str) -> Iterator[Any]:
    at = _after(text, 0)
    if text[at] == "[":
        end = yield from _items(text, at)
        _ended(text, end)
        return
    while at < len(text):
        outline, end, fault = _outline(text, at)
        yield from _of_object(text, at, outline)
        if fault:
            raise fault
        at = _after(text, end)
        if text[at : at + 1] != "{":
            _ended(text, end)


def _of_object(text: str, at: int, outline: Outline) -> Iterator[Any]:
    """The rows of an object, or the object as one row."""
    kinds = {key: kind for key, (_, kind) in outline.items()}
    lists = [key for key, (place, kind) in outline.items() if kind == "[" and _holds_objects(text, place)]
    if (
        FIELD in kinds
        or any(kinds.get(name) == '"' for name in (*TEXTS, "sentence"))
        or not set(kinds.values()) & {"[", "{"}
    ):
        yield _decode(text, at)[0]
    elif {"images", "annotations"} <= set(lists):
        yield from _coco(text, outline)
    elif {"columns", "data"} <= kinds.keys() and {kinds["columns"], kinds["data"]} == {"["}:
        names = _decode(text, outline["columns"][0])[0]
        yield from (_zipped(names, values) for values in _items(text, outline["data"][0]))
    elif found := next((key for key in (*_LISTS, *lists[:1]) if key in lists), None):
        yield from _items(text, outline[found][0])
    elif kinds and set(kinds.values()) == {"{"}:
        yield from _by_key(text, outline)
    elif set(kinds.values()) == {"["} and not kinds.keys().isdisjoint(TEXTS):
        yield from _side_by_side(_decode(text, at)[0])
    else:
        yield BadRecord(_unknown(list(kinds)))


def _unknown(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN:,} more" if len(keys) > _SHOWN else ""
    return (
        f"one JSON object with the keys {', '.join(f'{key!r:.40}' for key in keys[:_SHOWN])}{more}: rows are "
        "read from lines, from an array, from a list of objects under one key, or from an object by id"
    )


def _coco(text: str, outline: Outline) -> Iterator[Row]:
    """COCO's captions (and NoCaps'): each annotation, with its picture's file or address."""
    pictures = {}
    for picture in _items(text, outline["images"][0]):
        if isinstance(picture, dict):
            pictures[identity(picture.get("id"))] = picture.get("file_name") or picture.get("coco_url")
    for item in _items(text, outline["annotations"][0]):
        known = identity(item.get("image_id")) if isinstance(item, dict) else None
        yield {"image": pictures[known]} | item if known in pictures and known else item


def _by_key(text: str, outline: Outline) -> Iterator[Any]:
    """Objects by their id, or, where the keys are columns, pandas' cells by row."""
    if not outline.keys().isdisjoint(TEXTS):
        columns = {key: _decode(text, place)[0] for key, (place, _) in outline.items()}
        for index in dict.fromkeys(index for cells in columns.values() for index in cells):
            yield {key: cells.get(index) for key, cells in columns.items()}
        return
    for key, (place, _) in outline.items():
        row = _decode(text, place)[0]
        # MELBench's items have an `id`, which several share.
        yield {"id": key} | row if "sentence" not in row else row | {"id": key}


def _side_by_side(columns: dict[str, list[Any]]) -> Iterator[Any]:
    """SBU's captions: a list for each column."""
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key:.40} has {length:,}" for key, length in list(lengths.items())[:_SHOWN])
        yield BadRecord(f"its lists do not belong together, since they differ in length: {shown}")
        return
    yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _zipped(names: Any, values: Any) -> Any:
    if not isinstance(names, list) or not isinstance(values, list) or len(names) != len(values):
        return BadRecord(f"a row of {len(names):,} columns cannot be {values!r:.60}")
    return dict(zip(map(str, names), values, strict=True))


def _holds_objects(text: str, at: int) -> bool:
    at = _after(text, at + 1)
    return text[at : at + 1] == "{"


def _outline(text: str, at: int) -> tuple[Outline, int, ValueError | RecursionError | None]:
    """An object's keys, the position after it, and what is wrong with it. Where it breaks off, the last key
    is included."""
    found: Outline = {}
    try:
        at = _after(text, at + 1)
        while text[at : at + 1] != "}":
            key, at = _decode(text, at)
            at = _after(text, _expected(":", text, at) + 1)
            found[str(key)] = (at, text[at : at + 1])
            at = _after(text, _skipped(text, at))
            if text[at : at + 1] != "}":
                at = _after(text, _expected(",", text, at) + 1)
    except (ValueError, RecursionError) as fault:
        return found, len(text), fault
    return found, at + 1, None


def _items(text: str, at: int) -> Generator[Any, None, int]:
    """Yield the items of an array; return the position after it."""
    at = _after(text, at + 1)
    while text[at : at + 1] != "]":
        item, at = _decode(text, at)
        yield item
        at = _after(text, at)
        if text[at : at + 1] != "]":
            at = _after(text, _expected(",", text, at) + 1)
    return at + 1


def _skipped(text: str, at: int) -> int:
    """The position after a value; of an array only one item at a time is in memory."""
    if text[at : at + 1] != "[":
        return _decode(text, at)[1]
    items = _items(text, at)
    while True:
        try:
            next(items)
        except StopIteration as end:
            return int(end.value)


def _ended(text: str, at: int) -> None:
    if _after(text, at) != len(text):
        raise Mistake(f"there is more after the closing {text[at - 1 : at] or 'bracket'}")


def _after(text: str, at: int) -> int:
    """The position after white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _expected(mark: str, text: str, at: int) -> int:
    at = _after(text, at)
    if text[at : at + 1] != mark:
        raise Mistake(f"expected {mark!r} at character {at}")
    return at
