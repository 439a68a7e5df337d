"""What all forms share: a field's value and type, as text, id or number.

Knows nothing of files and forms. What is wrong with a whole document is a BadRecord.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from gemel_ray.errors import Mistake

Numbered = tuple[int, Any]  # a row's number in its file, from 1, and the row or the BadRecord in its place
_NEAR = 20  # characters shown before and after a fault
_WHOLE = re.compile(r"-?[0-9]{1,10}")
NIL = "NIL"  # as target_id: the entity is known not to be in the knowledge base


class BadRecord(Mistake):
    """Why a row of the input is not a document."""


def first_line(fault: BaseException) -> str:
    """A fault's first line."""
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]


def not_json(fault: BaseException) -> str:
    """Where and why a text could not be read as JSON."""
    if isinstance(fault, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {fault.start + 1}: save the file as UTF-8"
    if not isinstance(fault, json.JSONDecodeError):
        return first_line(fault)
    near = fault.doc[max(0, fault.pos - _NEAR) : fault.pos + _NEAR].strip()
    return f"{fault.msg.removesuffix(' at')} at character {fault.pos + 1}, near {short(near)}"


def typed(raw: Mapping[str, Any], field: str, kind: type | tuple[type, ...]) -> Any:
    """The field's value, or None where it has none. Raises BadRecord for another type."""
    value = raw.get(field)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise BadRecord(f"{field} cannot be {short(value)}")
    return valid_text(value, field)


def valid_text(value: Any, field: str) -> Any:
    """The value. Raises BadRecord for a text that Arrow cannot store: one with half a surrogate pair, which
    JSON can spell, and to which bytes that are not UTF-8 are decoded."""
    if isinstance(value, str) and not is_unicode(value):
        if any("\udc80" <= c <= "\udcff" for c in value):
            shown = short(value.encode("utf-8", "replace").decode())
            raise BadRecord(f"{field} is not UTF-8: {shown}; save the file as UTF-8")
        raise BadRecord(f"{field} holds half a surrogate pair: it is not valid Unicode")
    return value


def short(value: object, most: int = 60) -> str:
    """A value as messages show it: cut short, and a text in quotes."""
    whole = value if isinstance(value, str) else repr(value)
    whole = whole if len(whole) <= most else f"{whole[:most]}..."
    return repr(whole) if isinstance(value, str) else whole


def is_unicode(text: str) -> bool:
    """Whether UTF-8, and so Arrow, can store the text: JSON can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_of(raw: Mapping[str, Any], field: str) -> str:
    """The document's text, as it stands. Raises BadRecord where there is none."""
    text = typed(raw, field, str)
    if text is None or not text.strip():
        raise BadRecord("the text is empty")
    return str(text)


def identity(value: object) -> str | None:
    """An id, or a name used as one: text, or a whole number in any spelling (3.0 is 3)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() or None if isinstance(value, str) and is_unicode(value) else None


def whole_number(value: object) -> int | None:
    """A whole number that fits int32, in any spelling: 3, 3.0 or "3"."""
    written = identity(value)
    if written is None or not _WHOLE.fullmatch(written):
        return None
    number = int(written)
    return number if abs(number) < 2**31 else None


# What a field's name says: that it is the text, a picture, or unknown.


# The names of a text, the likeliest first.
TEXTS = (
    "text", "caption", "TEXT", "alt_text", "Text", "Caption", "CAPTION", "txt", "alttext", "altText", "alt",
    "caption_str", "image_caption", "raw_caption", "caption_reference_description",
    "caption_alt_text_description", "caption_attribution_description", "original_caption", "org_caption",
    "captions", "sentences", "description", "image_description", "photo_description", "ai_description",
)  # fmt: skip
NATIVE = {"id", "key", "mentions", "table", "image_key", "status", "error_message"}
RELEASED = {"mention", "target", "golden", "type", "start", "end", "img_name", "img_url", "sentence",
            "entities", "answer", "imgPath", "img_list", "spans", "ents", "label", "labels", "targets",
            "target_id", "target_ids", "answers", "qids", "context_left", "context_right", "input", "output",
            "label_title", "Wikipedia_title", "entity_title", "context_document_id"}  # fmt: skip
# Fields that come with the url of a picture, not of a page.
SIZES = {"width", "height", "WIDTH", "HEIGHT", "original_width", "original_height", "image_phash", "sha256",
         "similarity", "clip_similarity_vitb32"}  # fmt: skip
_KINDS = "jpg|jpeg|jpe|jfif|png|webp|gif|bmp|tiff?|avif|heic|heif|svg"
_NOUN = "images?|imgs?|pictures?|pics?|photos?"
_PLACE = "path|file|filename|filepath|fname|url|uri|src|link|bytes|base64|b64"
_ANY = f"{_PLACE}|name|data|content|source|media|attachments?|location|original|coco|flickr"
_CERTAIN = re.compile(rf"(?=.*(?:{_NOUN}))(?:{_NOUN}|(?:{_PLACE})s?)+|{_KINDS}")
_LIKELY = re.compile(rf"(?:{_NOUN}|(?:{_ANY})s?|\d)+")
_ENDING = re.compile(rf"\.(?:{_KINDS}|img|ico|jp2|psd)(?=$|[?#!:@/_&])", re.IGNORECASE)


@lru_cache(maxsize=4096)
def names_picture(name: str) -> bool:
    """Whether the name alone says that its value is a picture or its address: img, image_path, photoUrl."""
    return bool(_CERTAIN.fullmatch(_letters(name)))


@lru_cache(maxsize=4096)
def may_name_picture(name: str) -> bool:
    """Whether the value is a picture if it also looks like one: file_name, media, url."""
    return names_picture(name) or bool(_LIKELY.fullmatch(_letters(name)))


def is_not_called_image(name: str) -> bool:
    """Sort key: fields called image come before those called photo, which may be a web page."""
    return "im" not in _letters(name)


def ends_as_picture(value: str) -> bool:
    """Whether a path or URL names a picture's file."""
    return bool(_ENDING.search(value, max(0, len(value) - 300)))


@lru_cache(maxsize=4096)
def may_be_read(name: str) -> bool:
    """Whether any form reads a field of this name."""
    return name in TEXTS or name in NATIVE or name in RELEASED or name in SIZES or may_name_picture(name)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


# Pictures inside the row: bytes, base64 and data: URLs, for the job and the endpoint.


_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]+")
_LONGEST_PATH = 4096  # characters that a file's address may have
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"<svg", b"<?xml")


def is_picture(head: bytes) -> bool:
    """Whether bytes begin as a picture of a known kind does."""
    if head.startswith(_STARTS):
        return True
    bitmap = head.startswith(b"BM") and head[6:10] == b"\0\0\0\0"
    return bitmap or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:8] == b"ftyp"


def inline(value: str, field: str) -> bytes | None:
    """The picture in a data: URL, in base64, or in bytes that were decoded as Latin-1; None for an address.
    Raises BadRecord."""
    value = value.strip()
    if value[:5].lower() == "data:":
        kind, comma, rest = value.partition(",")
        if not comma or not kind.lower().endswith(";base64"):
            raise BadRecord(f"{field}: a data: URL of an image is in base64: data:image/jpeg;base64,...")
        return base64_bytes(unquote(rest), field)
    if looks_like_bytes(value):
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError as fault:
            raise BadRecord(f"{field}: its bytes were damaged on the way: write them as base64") from fault
    if looks_like_base64(value):
        return base64_bytes(value, field)
    if len(value) > _LONGEST_PATH:
        raise BadRecord(f"{field} cannot be {value[:40]!r}... ({len(value):,} characters): "
                        "it is neither a path or URL nor a picture in base64")  # fmt: skip
    return None


def looks_like_bytes(value: str) -> bool:
    """Whether the text is a picture's bytes decoded as Latin-1, as some exports to JSON write them."""
    return not value[:32].isprintable() and is_picture(value[:64].encode("latin-1", "replace").lstrip(b"<"))


def looks_like_base64(value: str) -> bool:
    """Whether the text is a picture in base64: by its first bytes and its alphabet."""
    if len(value) < 40 or not _BASE64.fullmatch(value, 0, 4096):
        return False
    try:
        return is_picture(base64.b64decode("".join(value[:100].split())[:64].translate(_PLAIN)))
    except (binascii.Error, ValueError):
        return False


def base64_bytes(value: str, field: str = "image") -> bytes:
    """The bytes of base64, also in the URL-safe alphabet, and of a picture also without padding. Raises
    BadRecord."""
    joined = "".join(value.split()).translate(_PLAIN)
    bare = joined.rstrip("=")
    try:
        data = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
        if len(joined) % 4 == 0 or is_picture(data):
            return data
    except (binascii.Error, ValueError):
        pass
    raise BadRecord(f"{field} is not base64: it begins with {value[:40]!r}")


_PLAIN = str.maketrans("-_", "+/")
