"""Our own form, and image-caption pairs as data sets release them: an object with a text, `mentions`
([{start, end, target, ...}]; without them they are to be found) and a picture under one of its usual names.
With or in place of the text a `table` (cells.py).

LAION, CC and COYO (`TEXT`, `caption`, `text` with `URL`, `url`), Hugging Face's imagefolder and image
columns, and what img2dataset writes: Parquet with the bytes in `jpg`, tar shards, or files beside their
Parquet or JSON (its README.md, "Output format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemel_ray.readers import cells
from gemel_ray.readers.fields import OURS, SIZES, TEXTS, BadRecord, Row, short, text_of, typed
from gemel_ray.readers.mentions import SIDE_BY_SIDE, is_places, mentions, side_by_side
from gemel_ray.readers.pictures import Place, columns_of, field_of, unread

_CAPTIONS = ("caption", "TEXT", "alt_text", "Caption", "CAPTION", "alttext", "image_caption", "raw_caption")
_ANNOTATIONS = ("entities", "spans", "ents", "label", "labels")  # spaCy's and Prodigy's, doccano's
_BESIDE = tuple(name for names in SIDE_BY_SIDE.values() for name in names)
_SENTENCE = ("raw", "caption", "text", "sentence")  # of an object in a list of captions


def fits(raw: Any) -> bool:
    """Any object may be meant so."""
    return isinstance(raw, dict)


def columns(raw: Row, at: Place) -> Row:
    """The document's columns. Raises BadRecord."""
    table = raw.get(cells.FIELD)
    field, text = _text(raw) if table is None or any(raw.get(name) for name in TEXTS) else ("", "")
    pair = field in _CAPTIONS or bool(SIZES & raw.keys())
    picture, where = _picture(raw, at, pair=pair)
    key = typed(raw, "image_key", str)
    if table is None:
        given = mentions_of(raw, text)
    else:
        text, given = cells.written(text, table, raw.get("mentions"))
    return {
        "text": text, "given": given, "image_key": key, **picture,
        **unread(raw, OURS.union((field, where), _of_mentions(raw)), pictured=bool(picture or key)),
    }  # fmt: skip


def mentions_of(raw: Row, text: str) -> list[Row] | None:
    """The mentions that came with the text; None: they are to be found. Without `mentions`, lists of places
    under the names that annotation programs give them. Raises BadRecord."""
    given = raw.get("mentions")
    if isinstance(given, str):
        given = _listed(given)
    if given is None:
        annotated = _annotated(raw)
        return mentions(raw[annotated[0]], text) if annotated else None
    if not isinstance(given, list):
        raise BadRecord(f"mentions is a list of mentions, not {short(given)}")
    if given and all(isinstance(m, str) for m in given):
        given = side_by_side(raw, given, "mentions")
    return mentions(given, text)


def _of_mentions(raw: Row) -> Sequence[str]:
    """The fields beside `mentions`, or in their place, that are read."""
    return _annotated(raw) if raw.get("mentions") is None else _BESIDE


def _annotated(raw: Row) -> list[str]:
    """The fields that hold places, the likeliest first."""
    return [field for field in _ANNOTATIONS if field in raw and is_places(raw[field])]


def _listed(written: str) -> list[Any] | None:
    """The mentions of a field of text, as tables have it: JSON, or the words of one mention."""
    if not written.strip():
        return None
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        return [written]
    return found if isinstance(found, list) else [written]


def _text(raw: Row) -> tuple[str, str]:
    """The text's field, and the text: of several the first. Raises BadRecord where there is none."""
    for field in TEXTS:
        if raw.get(field) is not None:
            break
    else:
        if named := next((name for name in TEXTS if name in raw), None):
            raise BadRecord(f"the text is empty: {named} is null")
        shown = ", ".join(f"{name!r:.40}" for name in list(raw)[:8]) or "none"
        raise BadRecord(f"the text is empty: there is no field text or caption; the fields are {shown}")
    value = raw[field]
    if isinstance(value, list):
        value = next((v for v in map(_sentence, value) if isinstance(v, str) and v.strip()), None)
    return field, text_of({field: value}, field)


def _sentence(item: Any) -> Any:
    return next((item[n] for n in _SENTENCE if n in item), None) if isinstance(item, Mapping) else item


def _picture(raw: Row, at: Place, *, pair: bool) -> tuple[Row, str]:
    """The picture's columns, and its field. Raises BadRecord for one that img2dataset could not get."""
    field = field_of(raw, pair=pair) or ""
    value = raw.get(field)
    if field == "filename" and isinstance(folder := raw.get("filepath"), str):  # Karpathy's splits
        value = f"{folder}/{value}"
    picture = columns_of(value, field, at)
    status = raw.get("status")
    if "image" in picture or not isinstance(status, str) or "key" not in raw:
        return picture, field
    if status.startswith("failed"):
        why = raw.get("error_message")
        raise BadRecord(f"img2dataset could not get its picture: {why if isinstance(why, str) else status}")
    found = at.downloaded(raw["key"]) if isinstance(raw["key"], str) else None
    return ({"image_address": found} if found else picture), field
