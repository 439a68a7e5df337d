"""The form of WikiMEL, Richpedia-MEL and MIMIC's releases: one mention an object.

    {"id", "sentence", "mentions": "a string", "entities": "its name", "answer": "Q42", "imgPath"}

Sources: season1blue/DWE, nel_model/prepare_wikipedia.py (an object of such objects by id, pictures at
imgPath) and prepare_richpedia.py (`img_list` in imgPath's place), data_process/*/build_text.py (`entities`
is the name of `answer`); pengfei-luo/MIMIC, codes/utils/dataset.py (an array of them, mentions
percent-encoded, imgPath empty without picture, answer "nil" for none). Read from that code, not from data.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from gemel_ray.readers.fields import NIL, BadRecord, Row, is_unicode, place, placed, sound, text_of, typed
from gemel_ray.readers.pictures import Place


def fits(raw: Any) -> bool:
    """`sentence` is its word for the text."""
    return isinstance(raw, dict) and "sentence" in raw and "text" not in raw


def columns(raw: Row, at: Place) -> Row:
    """The document's columns. Raises BadRecord."""
    text = text_of(raw, "sentence")
    key = _picture(raw)
    return {"text": text, "given": [_mention(raw, text)], **(at.released(key) if key else {})}


def _mention(raw: Row, text: str) -> Row:
    mention = typed(raw, "mentions", str)
    if not mention:
        raise BadRecord("the mention is empty")
    if place(mention, text) is None and is_unicode(decoded := unquote(mention)):
        mention = decoded
    answer = typed(raw, "answer", str) or None
    nil = answer is not None and answer.upper() == NIL
    target = None if nil else unquote(typed(raw, "entities", str) or "").strip() or None
    return placed(mention, text, {"target": target, "target_id": NIL if nil else answer})


def _picture(raw: Row) -> str | None:
    """Of several the first: a document has one."""
    several = typed(raw, "img_list", list) or [None]
    key = sound(raw.get("imgPath") or several[0], "the picture's name")
    return key if isinstance(key, str) and key else None
