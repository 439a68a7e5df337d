"""A file's rows to DOCUMENT tables: which form a row has; one without a form is an error row."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gemel_ray.readers import forms
from gemel_ray.readers.columnar import ARROW, PARQUET, arrow_batches
from gemel_ray.readers.containers import is_whole, json_rows, rows
from gemel_ray.readers.delimited import TABLES, table_rows
from gemel_ray.readers.fields import (
    TEXTS,
    BadRecord,
    Numbered,
    first_line,
    identity,
    names_picture,
    short,
)
from gemel_ray.readers.opening import is_from_storage, lines, opened
from gemel_ray.readers.pictures import SourceFile, unread_counts, unread_lines
from gemel_ray.readers.shards import SHARDS
from gemel_ray.records import DOCUMENT, Row
from gemel_ray.stores import scheme

BATCH = 256
_TABLE_BYTES = 64 * 2**20  # bytes of pictures and texts in one table
_RARE = frozenset((float, BadRecord))  # types of values that may have to be left out
_NEEDED = ("mentions", "mention", "sentence", "table")


class Form(NamedTuple):
    """The form of rows of one origin: whether a row fits, and the document's columns."""

    fits: Callable[[Any], bool]
    columns: Callable[[Any, SourceFile], Row]


_FORMS = (  # the first that fits
    Form(forms.wikidiverse_fits, forms.wikidiverse_columns),
    Form(forms.melbench_fits, forms.melbench_columns),
    Form(forms.context_fits, forms.context_columns),
    Form(forms.gemel_fits, forms.gemel_columns),
    Form(forms.native_fits, forms.native_columns),
)
REST = "rest"  # in place of a row's number: the rest of a file, which another run may read


def documents(address: str, *, fetch_official_images: bool = False, batch: int = BATCH) -> Iterator[pa.Table]:
    """Documents of one file, `batch` rows at a time. Never raises for the file's content: where it cannot be
    read, one document with an error follows those that could be. Storage that fails is tried again, and
    reading goes on where it stopped."""
    at, made = SourceFile(address, fetch_official_images), list[Row]()
    source, number, size = rows_with_retries(address), 0, 0
    while True:
        try:
            number, raw = next(source)
        except StopIteration:
            break
        except Exception as fault:  # a truncated or foreign file, a lost connection
            position = REST if isinstance(fault, Unreachable) else number + 1
            reason = f"cannot read {address}: {first_line(fault)}"
            made.append(_row(at.name, f"{address}:{position}", error=reason))
            break
        made.append(_document(raw, at, number))
        size += len(made[-1].get("image") or b"") + len(made[-1].get("text") or "")
        if len(made) == batch or size > _TABLE_BYTES:
            yield pa.Table.from_pylist(made, DOCUMENT)
            made, size = [], 0
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
        form = next((form for form in _FORMS if form.fits(raw)), None)
        if form is None:
            what = short(raw if isinstance(raw, str) else repr(raw))
            raise BadRecord(f"line {number} is not a JSON object, nor an item of a known data set: {what}")
        name = _name(raw, name)
        raw = _readable(raw) if isinstance(raw, dict) else raw
        columns = form.columns(raw, at)
        for mention in columns["given"] or ():
            if mention["error"]:
                mention["error"] += _at_row(name, at, number)
        return _row(name, source, **columns)
    except (BadRecord, RecursionError) as fault:
        bad = "a value in it is nested too deeply" if isinstance(fault, RecursionError) else str(fault)
        return _row(name, source, error=f"{bad}{_at_row(name, at, number)}")


def _at_row(name: str, at: SourceFile, number: int) -> str:
    """Where the document is, if its name does not say so."""
    return "" if name.endswith(f":{number}") else f" ({at.name}:{number})"


def _readable(raw: Row) -> Row:
    """The row without unreadable values and without NaN, which is pandas' null. Raises BadRecord where the
    text, the mentions or the picture is unreadable."""
    if _RARE.isdisjoint(map(type, raw.values())):
        return raw
    for name, value in raw.items():
        if isinstance(value, BadRecord) and (name in TEXTS or name in _NEEDED or names_picture(name)):
            raise value
    return {n: v for n, v in raw.items() if not _is_none(v)}


def _is_none(value: Any) -> bool:
    return isinstance(value, BadRecord) or (isinstance(value, float) and math.isnan(value))


def _name(raw: Any, name: str) -> str:
    """The row's `id`, if it has a valid one, else `name`."""
    own = identity(raw.get("id")) if isinstance(raw, dict) else None
    if own is None and isinstance(raw, dict) and isinstance(raw.get("key"), str):
        own = identity(f"{name.rpartition(':')[0]}:{raw['key']}")  # img2dataset's
    return own or name


def _row(document_id: str, source: str, **values: Any) -> Row:
    """A row of DOCUMENT; missing values are null."""
    return {"document_id": document_id, "source": source, **values}


# A file's rows although its storage fails: it is opened again and read on after the last row.


_PAUSES = (0.5, 2.0, 8.0)  # seconds before a file is opened again


class Unreachable(OSError):
    """The rest of a file could not be read from its storage: another run may read it."""


def rows_with_retries(address: str) -> Iterator[Numbered]:
    """The file's rows, each once. Raises Unreachable if storage keeps failing, and its library's errors for a
    file that is of another kind or cut short."""
    seen = 0
    for pause in (*_PAUSES, None):
        try:
            for position, row in enumerate(rows(address)):
                if position >= seen:
                    seen += 1
                    yield row
            return
        except Exception as fault:
            if not is_from_storage(fault):
                raise
            if pause is None:
                raise Unreachable(str(fault)) from fault
            time.sleep(pause)


# A check of the first documents, to report what is not read before hours are spent.


_FILES = 16  # files that are looked into


def first_look(files: Sequence[str]) -> list[str]:
    """Messages about what is not read of the first documents of the first files."""
    looked, found = 0, {"unread": Counter[str](), "unread_pictures": Counter[str]()}
    for address in files[:_FILES]:
        table = next(documents(address, batch=BATCH), None)
        if table is None:
            continue
        looked += len(table)
        for name, counts in unread_counts(table).items():
            found[name].update(counts)
    return [f"of the first {looked:,} documents: {line}" for line in unread_lines(found)]


# How many documents a file has, where that is cheap to find out.


def count(address: str) -> int | None:
    """The number of documents of a file; None if it cannot be read, is a shard without statistics beside it,
    or would have to be read in full over a network."""
    name = address.lower()
    try:
        if name.endswith(SHARDS):
            return _counted_beside(address)
        if scheme(address) and not name.endswith(PARQUET):
            return None
        if name.endswith(TABLES):
            return sum(1 for _ in table_rows(address))
        if name.endswith((*PARQUET, *ARROW)):
            with fsspec.open(address, "rb") as file:
                if name.endswith(ARROW):
                    return sum(len(batch) for batch in arrow_batches(file))
                return int(pq.ParquetFile(file).metadata.num_rows)
        if is_whole(address):
            return sum(1 for _ in json_rows(address))
        with opened(address) as file:
            return sum(bool(line.strip()) for line in lines(file))
    except Exception:  # the reader reports why, as a row
        return None


def _counted_beside(shard: str) -> int | None:
    """The pairs that img2dataset put into a shard, by its 00000_stats.json or its Parquet of statuses."""
    stem = shard[: shard.lower().rindex(".tar" if ".tar" in shard.lower() else ".")]
    filesystem, path = fsspec.core.url_to_fs(stem)
    if filesystem.exists(f"{path}_stats.json"):
        with filesystem.open(f"{path}_stats.json") as file:
            return int(json.load(file)["successes"])
    if filesystem.exists(f"{path}.parquet"):
        with filesystem.open(f"{path}.parquet") as file:
            status = pq.read_table(file, columns=["status"])["status"]
        return int(pc.sum(pc.equal(status, "success")).as_py() or 0)
    return None
