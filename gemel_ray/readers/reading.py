"""A file's rows to DOCUMENT tables: which form a row has, and what becomes of one that has none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from gemel_ray.readers import context, melbench, official, own, wikidiverse
from gemel_ray.readers.again import Unreachable, steady_rows
from gemel_ray.readers.fields import BadRecord, Row, identity, plain, short
from gemel_ray.readers.names import TEXTS, names_picture
from gemel_ray.readers.pictures import Place
from gemel_ray.records import DOCUMENT

BATCH = 256
_HELD = 64 * 2**20  # bytes of pictures and texts in one table
_RARE = frozenset((float, BadRecord))  # types of values that may have to be left out
_NEEDED = ("mentions", "mention", "sentence", "table")
REST = "rest"  # in place of a row's number: what of a file could not be had, and may be another time
_FORMS = (wikidiverse, melbench, context, official, own)  # the first that fits


def documents(address: str, *, fetch_official_images: bool = False, batch: int = BATCH) -> Iterator[pa.Table]:
    """Documents of one file, `batch` rows at a time. Never raises for what the file holds: an
    unreadable file is one document with an error, after the rows that could be read. Storage that fails is
    asked again, and read on where it stopped."""
    at, made = Place(address, fetch_official_images), list[Row]()
    source, number, held = steady_rows(address), 0, 0
    while True:
        try:
            number, raw = next(source)
        except StopIteration:
            break
        except Exception as fault:  # a truncated or foreign file, a lost connection
            behind = REST if isinstance(fault, Unreachable) else number + 1
            reason = f"cannot read {address}: {plain(fault)}"
            made.append(_row(at.name, f"{address}:{behind}", error=reason))
            break
        made.append(_document(raw, at, number))
        held += len(made[-1].get("image") or b"") + len(made[-1].get("text") or "")
        if len(made) == batch or held > _HELD:
            yield pa.Table.from_pylist(made, DOCUMENT)
            made, held = [], 0
    if made:
        yield pa.Table.from_pylist(made, DOCUMENT)


def table(rows: Iterable[tuple[int, Any]], at: Place) -> pa.Table:
    """Numbered rows of any form, as a file at `at` would have them."""
    return pa.Table.from_pylist([_document(raw, at, number) for number, raw in rows], DOCUMENT)


def _document(raw: Any, at: Place, number: int) -> Row:
    name, source = f"{at.name}:{number}", f"{at.address}:{number}"
    try:
        if isinstance(raw, BadRecord):
            raise raw
        form = next((form for form in _FORMS if form.fits(raw)), None)
        if form is None:
            what = short(raw if isinstance(raw, str) else repr(raw))
            raise BadRecord(f"line {number} is not a JSON object, nor an item of a known data set: {what}")
        name = _name(raw, name)
        raw = _shown(raw) if isinstance(raw, dict) else raw
        columns = form.columns(raw, at)
        for mention in columns["given"] or ():
            if mention["error"]:
                mention["error"] += _at_row(name, at, number)
        return _row(name, source, **columns)
    except (BadRecord, RecursionError) as fault:
        bad = "a value in it is nested too deeply" if isinstance(fault, RecursionError) else str(fault)
        return _row(name, source, error=f"{bad}{_at_row(name, at, number)}")


def _at_row(name: str, at: Place, number: int) -> str:
    """Where the document stands, if its name does not say so."""
    return "" if name.endswith(f":{number}") else f" ({at.name}:{number})"


def _shown(raw: Row) -> Row:
    """The row without what its column cannot show, and without NaN, as pandas spells null. Raises BadRecord
    where the former is the text, the mentions or the picture."""
    if _RARE.isdisjoint(map(type, raw.values())):
        return raw
    for name, value in raw.items():
        if isinstance(value, BadRecord) and (name in TEXTS or name in _NEEDED or names_picture(name)):
            raise value
    return {n: v for n, v in raw.items() if not _is_none(v)}


def _is_none(value: Any) -> bool:
    return isinstance(value, BadRecord) or (isinstance(value, float) and math.isnan(value))


def _name(raw: Any, name: str) -> str:
    """The row's own id, where it has one that can be written."""
    own = identity(raw.get("id")) if isinstance(raw, dict) else None
    if own is None and isinstance(raw, dict) and isinstance(raw.get("key"), str):
        own = identity(f"{name.rpartition(':')[0]}:{raw['key']}")  # img2dataset's
    return own or name


def _row(document_id: str, source: str, **values: Any) -> Row:
    """A row of DOCUMENT; what it lacks is null."""
    return {"document_id": document_id, "source": source, **values}
