"""Our own form: an object with `text`, `mentions` ([{start, end, target, ...}]) and `image`, or the
`image_key` of a ready-made feature."""

from __future__ import annotations

import json
from typing import Any

from gemel_ray.readers.fields import BadRecord, Row, short, sound, text_of, typed
from gemel_ray.readers.mentions import is_places, mentions, side_by_side
from gemel_ray.readers.pictures import Place

_ANNOTATIONS = ("entities", "spans", "ents", "label", "labels")  # spaCy's and Prodigy's, doccano's


def fits(raw: Any) -> bool:
    """Any object may be meant so."""
    return isinstance(raw, dict)


def columns(raw: Row, at: Place) -> Row:
    """The document's columns. Raises BadRecord."""
    text = text_of(raw, "text")
    key = typed(raw, "image_key", str)
    return {"text": text, "given": mentions_of(raw, text), "image_key": key, **_picture(raw, at)}


def mentions_of(raw: Row, text: str) -> list[Row] | None:
    """The mentions that came with the text; None: they are to be found. Without `mentions`, lists of places
    under the names that annotation programs give them. Raises BadRecord."""
    given = raw.get("mentions")
    if isinstance(given, str):
        given = _listed(given)
    if given is None:
        field = next((f for f in _ANNOTATIONS if is_places(raw.get(f))), None)
        return mentions(raw[field], text) if field else None
    if not isinstance(given, list):
        raise BadRecord(f"mentions is a list of mentions, not {short(given)}")
    if given and all(isinstance(m, str) for m in given):
        given = side_by_side(raw, given, "mentions")
    return mentions(given, text)


def _listed(written: str) -> list[Any] | None:
    """The mentions of a field of text, as tables have it: JSON, or the words of one mention."""
    if not written.strip():
        return None
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        return [written]
    return found if isinstance(found, list) else [written]


def _picture(raw: Row, at: Place) -> Row:
    image = raw.get("image")
    if isinstance(image, dict):  # Hugging Face and img2dataset write {bytes, path}
        image = image.get("bytes") or image.get("path")
    if image is None:
        return {}
    if isinstance(image, bytes):
        return {"image": image}
    if isinstance(sound(image, "image"), str) and image:
        return {"image_address": at.own(image)}
    raise BadRecord(f"image cannot be {image!r:.60}: it is bytes, a path or a URL")
