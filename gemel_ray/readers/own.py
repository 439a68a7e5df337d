"""Our own form: an object with `text`, `mentions` ([{start, end, target, ...}]) and `image`, or the
`image_key` of a ready-made feature."""

from __future__ import annotations

from typing import Any

from gemel_ray.readers.fields import BadRecord, Row, bad_mention, each_once, made, sound, text_of, typed
from gemel_ray.readers.pictures import Place


def fits(raw: Any) -> bool:
    """Any object may be meant so."""
    return isinstance(raw, dict)


def columns(raw: Row, at: Place) -> Row:
    """The document's columns. Raises BadRecord."""
    text = text_of(raw, "text")
    key = typed(raw, "image_key", str)
    return {"text": text, "given": mentions_of(raw, text), "image_key": key, **_picture(raw, at)}


def mentions_of(raw: Row, text: str) -> list[Row] | None:
    """The mentions that came with the text; None: they are to be found. Raises BadRecord."""
    mentions = typed(raw, "mentions", list)
    if mentions is None:
        return None
    return each_once(made(m, text) if isinstance(m, dict) else bad_mention(f"{m!r:.60}") for m in mentions)


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
