"""What all forms share: a field's value and type, as text, id or number; and how texts are compared.

Knows nothing of files and forms. What is wrong with a whole document is a BadRecord.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

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
    """The document's text, unchanged. Raises BadRecord if there is none."""
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
            "label_title", "Wikipedia_title", "entity_title", "context_document_id", "entity", "entity_name",
            "entity_id", "kb_id", "qid", "wikidata_id"}  # fmt: skip
# Fields that come with the url of a picture, not of a page.
SIZES = {"width", "height", "WIDTH", "HEIGHT", "original_width", "original_height", "image_phash", "sha256",
         "similarity", "clip_similarity_vitb32"}  # fmt: skip
# Names of a text that say that it is a picture's.
_CAPTIONS = ("caption", "TEXT", "alt_text", "Caption", "CAPTION", "alttext", "image_caption", "raw_caption")
_SENTENCE = ("raw", "caption", "text", "sentence")  # of an object in a list of captions
_KINDS = "jpg|jpeg|jpe|jfif|png|webp|gif|bmp|tiff?|avif|heic|heif|svg"
_NOUN = "images?|imgs?|pictures?|pics?|photos?"
_PLACE = "path|file|filename|filepath|fname|url|uri|src|link|bytes|base64|b64"
_ANY = f"{_PLACE}|name|data|content|source|media|attachments?|location|original|coco|flickr"
_CERTAIN = re.compile(rf"(?=.*(?:{_NOUN}))(?:{_NOUN}|(?:{_PLACE})s?)+|{_KINDS}")
_LIKELY = re.compile(rf"(?:{_NOUN}|(?:{_ANY})s?|\d)+")
_ENDING = re.compile(rf"\.(?:{_KINDS}|img|ico|jp2|psd)(?=$|[?#!:@/_&])", re.IGNORECASE)


def caption_of(raw: Mapping[str, Any]) -> tuple[str, str]:
    """The text's field, and the text (the first of several). Raises BadRecord where there is none."""
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


def is_pair(raw: Mapping[str, Any], field: str) -> bool:
    """Whether the text in this field belongs to a picture, so that a `url` is the picture's."""
    return field in _CAPTIONS or bool(SIZES & raw.keys())


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


# One rule for how texts and names are compared: Unicode's composed form (NFC), white space folded.
#
# Names are stored in this form (`normal`). A text is kept unchanged, and is compared in a form that maps back
# to places in it (`compared`, and `bare` for words with slightly different spelling). Knows nothing of files.


Span = tuple[int, int]  # characters, end exclusive
Shape = tuple[str, list[int]]  # what is compared, and the place of each of its characters and of its end
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff"))  # not part of a word's spelling
_ENDS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "".join(map(chr, _INVISIBLE))
_UNEVEN = re.compile(r"[^\S ]|  ")  # white space that is not one space
# Scripts without spaces between words, or, as Korean, with particles after names: a name may end anywhere.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1100, 0x11FF),  # Korean, syllables in parts
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x9FFF),  # Chinese, Japanese
    (0xAC00, 0xD7AF),  # Korean
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_JOINING = "\u200c\u200d\ufe0e\ufe0f"  # not separate characters: they belong to the one before


def normal(name: str) -> str:
    """A name, alias or target as it is stored and compared."""
    if not name.isascii():
        name = unicodedata.normalize("NFC", name).translate(_INVISIBLE)
    return " ".join(name.split())


def trimmed(text: str) -> str:
    """The text without white space and invisible characters at its ends, which copied addresses may have."""
    return text.strip(_ENDS)


def compared(text: str, any_case: bool) -> tuple[str, list[int] | None]:
    """The text in the form in which names are searched: normal, with one kind of apostrophe; and its places,
    or None if they are those of the text."""
    if text.isascii() and not _UNEVEN.search(text):
        return (text.lower() if any_case else text), None
    starts = [i for i, c in enumerate(text) if i == 0 or not _belongs(c, text[i - 1])]
    parts, origin = [], list[int]()
    for start, end in pairwise([*starts, len(text)]):
        part = unicodedata.normalize("NFC", text[start:end]).translate(_INVISIBLE).replace("\u2019", "'")
        part = " " if part.isspace() else part
        part = part.casefold() if any_case else part
        parts.append(part)
        origin += [start] * len(part)
    return "".join(parts), [*origin, len(text)]


def bare(text: str) -> Shape:
    """The text's letters and digits, in one case and without accents: independent of punctuation, quotes,
    dashes, white space and compatibility forms."""
    parts, origin = list[str](), list[int]()
    for place, character in enumerate(text):
        for part in unicodedata.normalize("NFKD", character).casefold():
            if part.isalnum():
                parts.append(part)
                origin.append(place)
    return "".join(parts), [*origin, len(text)]


def is_edge(text: str, at: int) -> bool:
    """Whether a name may begin or end here: the place is not inside a word or a combined character."""
    if at in (0, len(text)):
        return True
    left, right = text[at - 1], text[at]
    if continues(right) or left == "\u200d":
        return False
    return _is_unspaced(left) or _is_unspaced(right) or not (_is_word(left) and _is_word(right))


def continues(character: str) -> bool:
    """Whether it is a mark on the character before, or a separate vowel or end of a Korean syllable."""
    return not character.isascii() and (
        unicodedata.category(character).startswith("M")
        or character in _JOINING
        or "\u1160" <= character <= "\u11ff"
    )


def _belongs(character: str, before: str) -> bool:
    return continues(character) or (character.isspace() and before.isspace())


def _is_word(character: str) -> bool:
    return character.isalnum() or continues(character)


def _is_unspaced(character: str) -> bool:
    return not character.isascii() and any(a <= ord(character) <= b for a, b in _UNSPACED)
