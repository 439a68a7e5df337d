"""The form of WikiMEL, Richpedia-MEL and MIMIC's releases: one mention an object, or several side by side.

    {"id", "sentence", "mentions": "a string", "entities": "its name", "answer": "Q42", "imgPath"}

Sources: season1blue/DWE, nel_model/prepare_wikipedia.py (an object of such objects by id, pictures at
imgPath) and prepare_richpedia.py (`img_list` in imgPath's place), data_process/*/build_text.py (`entities`
is the name of `answer`); pengfei-luo/MIMIC, codes/utils/dataset.py (an array of them, mentions
percent-encoded, imgPath empty without picture, answer "nil" for none). Read from that code, not from data.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from gemel_ray.readers.fields import NIL, BadRecord, Row, is_unicode, sound, text_of, typed
from gemel_ray.readers.mentions import mentions, side_by_side
from gemel_ray.readers.names import OURS
from gemel_ray.readers.pictures import Place, columns_of, field_of
from gemel_ray.readers.places import places
from gemel_ray.readers.unread import unread

_READ = {*OURS, "sentence", "entities", "answer"}


def fits(raw: Any) -> bool:
    """`sentence` is its word for the text."""
    return isinstance(raw, dict) and "sentence" in raw and "text" not in raw


def columns(raw: Row, at: Place) -> Row:
    """The document's columns. Raises BadRecord."""
    text = text_of(raw, "sentence")
    return {"text": text, "given": _mentions(raw, text), **_picture(raw, at)}


def _mentions(raw: Row, text: str) -> list[Row]:
    given = raw.get("mentions")
    if not isinstance(given, list):
        given = [typed(raw, "mentions", str)]
        if not given[0]:
            raise BadRecord("the mention is empty")
    spelled = [_decoded(word, text) if isinstance(word, str) else word for word in given]
    return mentions([_entity(m) for m in side_by_side(raw, spelled, "mentions")], text)


def _decoded(word: str, text: str) -> str:
    decoded = unquote(word)
    return decoded if decoded != word and is_unicode(decoded) and not places(word, text) else word


def _entity(mention: Row) -> Row:
    """With its `target` percent-decoded, and none beside an answer "nil"."""
    target, answer = mention.get("target"), mention.get("target_id")
    if isinstance(answer, str) and answer.strip().upper() == NIL:
        target = None
    return mention | {"target": unquote(target) if isinstance(target, str) else target}


def _picture(raw: Row, at: Place) -> Row:
    """Of the release's key, of several the first, since a document has one; else of whatever other field
    there is."""
    several = typed(raw, "img_list", list) or [None]
    key = sound(raw.get("imgPath") or several[0], "the picture's name")
    if isinstance(key, str) and key:
        return at.released(key) | unread(raw, _READ | {"imgPath", "img_list"}, pictured=True)
    field = field_of(raw, pair=False) or ""
    picture = columns_of(raw.get(field), field, at)
    return picture | unread(raw, _READ | {field}, pictured=bool(picture))
