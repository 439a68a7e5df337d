"""The only door in: files of documents to DOCUMENT tables.

Whatever the source (JSON lines in the official GEMEL form or in ours, Parquet), a line that cannot be
understood is a document with an `error`, so that nothing that came in is lost. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from glob import has_magic
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.records import DOCUMENT

BATCH = 256
READ = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".pq")
Row = dict[str, Any]


class BadRecord(ValueError):
    """Why a row of the input is not a document."""


def documents(address: str, *, fetch_official_images: bool = False, batch: int = BATCH) -> Iterator[pa.Table]:
    """Documents of one file, `batch` rows at a time. Never raises for what the file holds: an
    unreadable file is one document with an error, after the rows that could be read."""
    rows: list[Row] = []
    reader = _parquet if address.endswith((".parquet", ".pq")) else _json_lines
    source = reader(address)
    while True:
        try:
            number, raw = next(source)
        except StopIteration:
            break
        except Exception as fault:  # a truncated or foreign file, a lost connection
            rows.append(_row(PurePosixPath(address).name, error=f"cannot read {address}: {_plain(fault)}"))
            break
        rows.append(_document(raw, address, number, fetch_official_images))
        if len(rows) == batch:
            yield pa.Table.from_pylist(rows, DOCUMENT)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, DOCUMENT)


def _json_lines(address: str) -> Iterator[tuple[int, Row | BadRecord]]:
    with fsspec.open(address, "rb", compression="infer") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                raw = json.loads(line)
            except (ValueError, RecursionError) as fault:
                yield number, BadRecord(f"line {number} is not JSON: {_plain(fault)}")
                continue
            yield number, raw if isinstance(raw, dict) else BadRecord(f"line {number} is not a JSON object")


def _parquet(address: str) -> Iterator[tuple[int, Row | BadRecord]]:
    number = 0
    with fsspec.open(address, "rb") as file:
        for part in pq.ParquetFile(file).iter_batches(BATCH):
            for raw in _rows(part):
                number += 1
                yield number, raw


def _rows(part: pa.RecordBatch) -> list[Row | BadRecord]:
    try:
        return part.to_pylist()
    except UnicodeDecodeError as fault:
        if len(part) == 1:
            return [BadRecord(f"the row is not valid Unicode: {_plain(fault)}")]
        return [row for i in range(len(part)) for row in _rows(part.slice(i, 1))]


def _document(raw: Row | BadRecord, address: str, number: int, fetch: bool) -> Row:
    name = f"{PurePosixPath(address).name}:{number}"
    if isinstance(raw, BadRecord):
        return _row(name, error=str(raw))
    try:
        identity = raw.get("id")
        name = name if identity in (None, "") or not _unicode(str(identity)) else str(identity)
        text = _typed(raw, "text", str)
        if text is None or not text.strip():
            raise BadRecord("the text is empty")
        if "mention" in raw:
            given: list[Row] | None = [_official_mention(raw, text)]
            picture = _official_picture(raw, address, fetch)
        else:
            given, picture = _mentions(raw, text), _picture(raw, address)
        return _row(name, text=text, given=given, **picture)
    except BadRecord as bad:
        return _row(name, error=str(bad))


def _row(document_id: str, **values: Any) -> Row:
    return {name: None for name in DOCUMENT.names} | {"document_id": document_id} | values


def _typed(raw: Mapping[str, Any], field: str, kind: type | tuple[type, ...]) -> Any:
    value = raw.get(field)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise BadRecord(f"{field} cannot be {value!r:.60}")
    return _whole(value, field)


def _whole(value: Any, field: str) -> Any:
    """JSON can spell half a surrogate pair, which Arrow cannot hold."""
    if isinstance(value, str) and not _unicode(value):
        raise BadRecord(f"{field} holds half a surrogate pair: it is not valid Unicode")
    return value


def _official_mention(raw: Row, text: str) -> Row:
    """The official form has one mention, as a string; `start` and `end` where somebody added them."""
    mention = _typed(raw, "mention", str)
    if not mention:
        raise BadRecord("the mention is empty")
    start, end = _typed(raw, "start", int), raw.get("end")
    if start is None:
        found = re.search(re.escape(mention), text) or re.search(re.escape(mention), text, re.IGNORECASE)
        if found is None:
            raise BadRecord(f"the mention {mention!r:.60} is not in the text")
        start, end = found.span()
    place = {"start": start, "end": start + len(mention) if end is None else end}
    made = _mention(place | {"target_id": raw.get("golden"), "type": raw.get("type")}, text)
    nil = raw.get("golden") == "NIL"  # the entity is known not to be in the knowledge base
    target = None if nil else _typed(raw, "target", str)
    return made | {"target": target} | ({} if made["error"] else {"mention": mention})


def _mentions(raw: Row, text: str) -> list[Row] | None:
    mentions = _typed(raw, "mentions", list)
    if mentions is None:
        return None
    made = [_mention(m, text) if isinstance(m, dict) else _bad_mention(f"{m!r:.60}") for m in mentions]
    seen: set[str] = set()
    for mention in made:
        if mention["mention_id"] in seen and not mention["error"]:
            mention["error"] = "the same span is given twice"
        seen.add(mention["mention_id"])
    return made


def _bad_mention(shown: str) -> Row:
    return {"mention_id": shown, "error": f"a mention is an object with start and end, not {shown}"}


def _mention(raw: Row, text: str) -> Row:
    start, end = _position(raw.get("start")), _position(raw.get("end"))
    if start is None or end is None:
        return _bad_mention(f"{raw!r:.60}")
    mention = {"mention_id": f"{start}-{end}", "mention": None, "start": start, "end": end}
    known = {name: raw.get(name) for name in ("target", "target_id", "type")}
    mention |= {n: v if isinstance(v, str) and _unicode(v) else None for n, v in known.items()}
    mention["error"] = None
    if not 0 <= start < end <= len(text):
        mention["error"] = f"the mention {start}-{end} is outside its text of {len(text)} characters"
    else:
        mention["mention"] = text[start:end]
    return mention


def _position(value: object) -> int | None:
    small = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    return value if small else None  # type: ignore[return-value]


def _picture(raw: Row, address: str) -> Row:
    image = raw.get("image")
    if isinstance(image, dict):  # Hugging Face and img2dataset write {bytes, path}
        image = image.get("bytes") or image.get("path")
    if image is None:
        return {}
    if isinstance(image, bytes):
        return {"image": image}
    if isinstance(_whole(image, "image"), str) and image:
        return {"image_address": image if _absolute(image) else _beside(address, image)}
    raise BadRecord(f"image cannot be {image!r:.60}: it is bytes, a path or a URL")


def _official_picture(raw: Row, address: str, fetch: bool) -> Row:
    """In the official form the picture is a key into a feature file. It is taken as a picture when a
    file of that name lies beside the input, or, if so configured, fetched when it is a URL."""
    key = _whole(raw.get("img_name") or raw.get("img_url"), "the picture's name")
    if not isinstance(key, str) or not key:
        return {}
    if "://" in key:
        return {"image_key": key, "image_address": key if fetch else None}
    path = _beside(address, key)
    filesystem, found = fsspec.core.url_to_fs(path)
    return {"image_key": key, "image_address": path if filesystem.isfile(found) else None}


def _unicode(text: str) -> bool:
    """JSON can spell what UTF-8, and so Arrow, cannot hold."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _absolute(address: str) -> bool:
    return "://" in address or address.startswith("/")


def _beside(address: str, name: str) -> str:
    return f"{address.rpartition('/')[0] or '.'}/{name}"


def _plain(fault: BaseException) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]


def files(inputs: Sequence[str]) -> list[str]:
    """The input's files: folders are searched for those a reader knows. Raises ValueError for what is not
    there or not readable by any reader."""
    found: list[str] = []
    for address in inputs:
        filesystem, path = fsspec.core.url_to_fs(address)
        if not filesystem.exists(path) and has_magic(path) and (matches := sorted(filesystem.glob(path))):
            found += files([filesystem.unstrip_protocol(p) if "://" in address else p for p in matches])
        elif filesystem.isdir(path):
            inside = sorted(p for p in filesystem.find(path) if p.endswith(READ))
            if not inside:
                raise ValueError(f"{address} holds no file that ends in {', '.join(READ)}")
            found += [filesystem.unstrip_protocol(p) if "://" in address else p for p in inside]
        elif not filesystem.exists(path):
            raise ValueError(f"there is no {address}")
        elif not address.endswith(READ):
            raise ValueError(f"{address}: a document file ends in {', '.join(READ)}")
        else:
            found.append(address)
    return found


def count(address: str) -> int | None:
    """Documents of a file, as far as can be told cheaply; None where it cannot be read."""
    try:
        with fsspec.open(address, "rb", compression="infer") as file:
            if address.endswith((".parquet", ".pq")):
                return int(pq.ParquetFile(file).metadata.num_rows)
            return sum(bool(line.strip()) for line in file)
    except Exception:  # the reader will say why, as a row
        return None
