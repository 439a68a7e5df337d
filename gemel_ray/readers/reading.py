"""A file's rows to DOCUMENT tables, and the native form. The ending of the file's name decides how its rows
are read; a row's fields decide which form it has. A row without a form is an error row."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from gemel_ray.readers import cells, forms
from gemel_ray.readers.columnar import ARROW, PARQUET, arrow_rows, parquet_rows
from gemel_ray.readers.delimited import TABLES, table_rows
from gemel_ray.readers.fields import (
    NATIVE,
    TEXTS,
    BadRecord,
    Numbered,
    caption_of,
    first_line,
    identity,
    is_pair,
    names_picture,
    short,
    typed,
)
from gemel_ray.readers.json_files import json_rows
from gemel_ray.readers.mentions import SIDE_BY_SIDE, is_places, mentions, separated, side_by_side
from gemel_ray.readers.opening import is_from_storage
from gemel_ray.readers.pictures import SourceFile, columns_of, field_of, unread
from gemel_ray.readers.shards import SHARDS, tar_rows
from gemel_ray.records import DOCUMENT, Row

BATCH = 256
_TABLE_BYTES = 64 * 2**20  # bytes of pictures and texts in one table
_RARE = frozenset((float, BadRecord))  # types of values that may have to be left out
_NEEDED = ("mentions", "mention", "sentence", "table")
REST = "rest"  # in place of a row's number: the rest of a file, which another run may read


def documents(address: str, *, fetch_official_images: bool = False, batch: int = BATCH) -> Iterator[pa.Table]:
    """Documents of one file, `batch` rows at a time. Never raises for the file's content: where it cannot be
    read, one document with an error follows those that could be. Storage that fails is tried again, and
    reading goes on where it stopped."""
    at, made, size = SourceFile(address, fetch_official_images), list[Row](), 0
    try:
        for number, raw in _rows(address):
            made.append(_document(raw, at, number))
            size += len(made[-1].get("image") or b"") + len(made[-1].get("text") or "")
            if len(made) == batch or size > _TABLE_BYTES:
                yield pa.Table.from_pylist(made, DOCUMENT)
                made, size = [], 0
    except _Unread as fault:
        position, reason = fault.args
        made.append({"document_id": at.name, "source": f"{address}:{position}", "error": reason})
    if made:
        yield pa.Table.from_pylist(made, DOCUMENT)


def table(rows: Iterable[tuple[int, Any]], at: SourceFile) -> pa.Table:
    """Numbered rows of any form, as if read from the file `at`."""
    return pa.Table.from_pylist([_document(raw, at, number) for number, raw in rows], DOCUMENT)


def _document(raw: Any, at: SourceFile, number: int) -> Row:
    name, source = f"{at.name}:{number}", f"{at.address}:{number}"
    try:
        if isinstance(raw, BadRecord):
            raise raw
        form = _form(raw)
        if form is None:
            what = short(raw if isinstance(raw, str) else repr(raw))
            raise BadRecord(f"line {number} is not a JSON object, nor an item of a known data set: {what}")
        if isinstance(raw, dict):
            name = _name(raw, name)
            if not _RARE.isdisjoint(map(type, raw.values())):
                raw = _readable(raw)
        columns = form(raw, at)
        for mention in columns["given"] or ():
            if mention["error"]:
                mention["error"] += _at_row(name, at, number)
        return {"document_id": name, "source": source, **columns}
    except (BadRecord, RecursionError) as fault:
        bad = "a value in it is nested too deeply" if isinstance(fault, RecursionError) else str(fault)
        return {"document_id": name, "source": source, "error": f"{bad}{_at_row(name, at, number)}"}


def _form(raw: Any) -> Callable[[Any, SourceFile], Row] | None:
    """What makes a row's columns: the form of a released data set, by its fields, else the native one."""
    if not isinstance(raw, dict):
        return forms.wikidiverse_columns if forms.wikidiverse_fits(raw) else None
    if "sentence" in raw and "text" not in raw:
        return forms.melbench_columns
    marked = isinstance(text := raw.get("input"), str) and "[START_ENT]" in text
    between = "mention" in raw and ("context_left" in raw or "context_right" in raw)
    if marked or between or forms.ELSEWHERE in raw:
        return forms.context_columns
    return forms.gemel_columns if "mention" in raw else native_columns


def _at_row(name: str, at: SourceFile, number: int) -> str:
    """Where the document is, if its name does not say so."""
    return "" if name.endswith(f":{number}") else f" ({at.name}:{number})"


def _readable(raw: Row) -> Row:
    """The row without unreadable values and without NaN, which is pandas' null. Raises BadRecord where the
    text, the mentions or the picture is unreadable."""
    for name, value in raw.items():
        if isinstance(value, BadRecord) and (name in TEXTS or name in _NEEDED or names_picture(name)):
            raise value
    return {n: v for n, v in raw.items() if not _is_none(v)}


def _is_none(value: Any) -> bool:
    return isinstance(value, BadRecord) or (isinstance(value, float) and math.isnan(value))


def _name(raw: Row, name: str) -> str:
    """The row's `id`, if it has a valid one, else `name`."""
    given = identity(raw.get("id"))
    if given is None and isinstance(raw.get("key"), str):
        given = identity(f"{name.rpartition(':')[0]}:{raw['key']}")  # img2dataset's
    return given or name


# A file's rows although its storage fails: it is opened again and read on after the last row.


_PAUSES = (0.5, 2.0, 8.0)  # seconds before a file is opened again


_READERS = ((PARQUET, parquet_rows), (ARROW, arrow_rows), (TABLES, table_rows), (SHARDS, tar_rows))


class _Unread(Exception):
    """The position from which a file could not be read, and why: it is cut short, of another kind or missing,
    or, at REST, its storage keeps failing."""


def _rows(address: str) -> Iterator[Numbered]:
    """The file's rows, each once. Raises _Unread."""
    read = next((rows for ends, rows in _READERS if address.lower().endswith(ends)), json_rows)
    seen = last = 0
    for pause in (*_PAUSES, None):
        try:
            for position, (number, row) in enumerate(read(address)):
                if position >= seen:
                    seen, last = seen + 1, number
                    yield number, row
            return
        except Exception as fault:  # every library has its own
            lost = is_from_storage(fault)
            if not lost or pause is None:
                reason = f"cannot read {address}: {first_line(fault)}"
                raise _Unread(REST if lost else last + 1, reason) from fault
            time.sleep(pause)


# The native form, and image-caption pairs as data sets release them: an object with a text, `mentions`
# ([{start, end, target, ...}]; Detect finds them if there are none) and a picture under one of its usual
# names. A `table` (cells.py) may come with the text or replace it.
#
# LAION, CC and COYO (`TEXT`, `caption`, `text` with `URL`, `url`), Hugging Face's imagefolder and image
# columns, and what img2dataset writes: Parquet with the bytes in `jpg`, tar shards, or files beside their
# Parquet or JSON (its README.md, "Output format").


_ANNOTATIONS = ("entities", "spans", "ents", "label", "labels")  # spaCy's and Prodigy's, doccano's
_BESIDE = tuple(name for names in SIDE_BY_SIDE.values() for name in names)


def native_columns(raw: Row, at: SourceFile) -> Row:
    """The document's columns. Raises BadRecord."""
    table = raw.get(cells.FIELD)
    field, text = caption_of(raw) if table is None or any(raw.get(name) for name in TEXTS) else ("", "")
    picture, where = _native_picture(raw, at, pair=is_pair(raw, field))
    key = typed(raw, "image_key", str)
    if table is None:
        given = mentions_of(raw, text)
    else:
        text, given = cells.text_with_table(text, cells.in_file(table, at), raw.get("mentions"))
    return {
        "text": text, "given": given, "image_key": key, **picture,
        **unread(raw, NATIVE.union((field, where), _mention_fields(raw)), pictured=bool(picture or key)),
    }  # fmt: skip


def mentions_of(raw: Row, text: str) -> list[Row] | None:
    """The mentions that came with the text; None: Detect is to find them. Without `mentions`, lists of places
    under the names that annotation programs use. Raises BadRecord."""
    given = raw.get("mentions")
    if isinstance(given, str):
        given = _listed(given, text)
    if given is None:
        annotated = _annotated(raw)
        return mentions(raw[annotated[0]], text) if annotated else None
    if not isinstance(given, list):
        raise BadRecord(f"mentions is a list of mentions, not {short(given)}")
    if given and all(isinstance(m, str) for m in given):
        given = side_by_side(raw, given, "mentions")
    return mentions(given, text)


def _mention_fields(raw: Row) -> Sequence[str]:
    """The fields that are read beside `mentions` or instead of it."""
    return _annotated(raw) if raw.get("mentions") is None else _BESIDE


def _annotated(raw: Row) -> list[str]:
    """The fields with places, the likeliest first."""
    return [field for field in _ANNOTATIONS if field in raw and is_places(raw[field])]


def _listed(written: str, text: str) -> list[Any] | None:
    """The mentions in a text field, as in a CSV: JSON, the words of one mention, or of several."""
    if not written.strip():
        return None
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        return [written] if written in text else separated(written)
    return found if isinstance(found, list) else [written]


def _native_picture(raw: Row, at: SourceFile, *, pair: bool) -> tuple[Row, str]:
    """The picture's columns, and its field. Raises BadRecord if it could not be downloaded."""
    field = field_of(raw, pair=pair) or ""
    value = raw.get(field)
    if field == "filename" and isinstance(folder := raw.get("filepath"), str):  # Karpathy's splits
        value = f"{folder}/{value}"
    picture = columns_of(value, field, at)
    return (picture if "image" in picture else picture | _from_img2dataset(raw, at)), field


def _from_img2dataset(raw: Row, at: SourceFile) -> Row:
    """The column of the picture that img2dataset has downloaded for its row. Raises BadRecord if it could
    not."""
    key, status = raw.get("key"), raw.get("status")
    if "key" not in raw or not isinstance(status, str):  # not a row of img2dataset's
        return {}
    if status.startswith("failed"):
        why = raw.get("error_message")
        raise BadRecord(f"img2dataset could not get its picture: {why if isinstance(why, str) else status}")
    found = at.downloaded(key) if isinstance(key, str) else None
    return {"image_address": found} if found else {}
