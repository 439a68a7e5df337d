"""Image-caption pairs as data sets release them: a caption under one of its usual names, a picture's bytes
or URL, and no mentions.

LAION and CC (`TEXT`, `caption`, `URL`, `url`), Hugging Face's `image_url`, and what img2dataset writes of
them: Parquet with the bytes in `jpg`, tar shards, or files beside their Parquet (its README.md, "Output
format"). Beside a `text`, `url` may be that of the page: it is a picture's only beside a caption.
"""

from __future__ import annotations

from typing import Any

from gemel_ray.readers.fields import BadRecord, Row, sound, text_of, typed
from gemel_ray.readers.own import mentions_of
from gemel_ray.readers.pictures import Place

_CAPTIONS = ("caption", "TEXT", "alt_text")
_BYTES = ("jpg", "jpeg", "png", "webp", "image_bytes")
_OF_PICTURES = ("image_url", "imageUrl")
_URLS = ("url", "URL", *_OF_PICTURES)


def fits(raw: Any) -> bool:
    """A caption, or a picture that stands under a data set's name for it."""
    if not isinstance(raw, dict):
        return False
    names = (*_BYTES, *_OF_PICTURES) if "text" in raw else (*_BYTES, *_URLS, *_CAPTIONS, "key")
    return any(name in raw for name in names)


def columns(raw: Row, at: Place) -> Row:
    """The document's columns. Raises BadRecord."""
    field = next((n for n in ("text", *_CAPTIONS) if raw.get(n) is not None), "caption")
    text = text_of(raw, field)
    return {"text": text, "given": mentions_of(raw, text), **_picture(raw, at)}


def _picture(raw: Row, at: Place) -> Row:
    """The bytes, else the file that img2dataset put beside, else the URL."""
    for name in ("image", *_BYTES):
        held = raw.get(name)
        held = held.get("bytes") if isinstance(held, dict) else held
        if isinstance(held, bytes) and held:
            return {"image": held}
    status = raw.get("status")
    if status is not None and status != "success":
        why = raw.get("error_message")
        raise BadRecord(f"img2dataset could not get its picture: {why if isinstance(why, str) else status}")
    if status and isinstance(key := raw.get("key"), str) and (found := at.downloaded(key)):
        return {"image_address": found}
    if isinstance(path := raw.get("image"), str) and path:
        return {"image_address": at.own(str(sound(path, "image")))}
    url = next((raw[n] for n in (_OF_PICTURES if "text" in raw else _URLS) if raw.get(n)), None)
    if url is None:
        return {}
    return {"image_address": typed({"url": url}, "url", str)}
