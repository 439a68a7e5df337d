"""GEMEL's own form: one mention a line, as a string, with `target`, `golden` and `img_url` or `img_name`."""

from __future__ import annotations

from typing import Any

from gemel_ray.readers.fields import NIL, BadRecord, Row, sound, text_of
from gemel_ray.readers.mentions import mention
from gemel_ray.readers.names import OURS
from gemel_ray.readers.pictures import Place, columns_of, field_of
from gemel_ray.readers.unread import unread

_FIELDS = ("mention", "start", "end", "target", "golden", "type")
_READ = {*OURS, "text", *_FIELDS} - {"mentions"}


def fits(raw: Any) -> bool:
    """The mention is what tells it from ours."""
    return isinstance(raw, dict) and "mention" in raw


def columns(raw: Row, at: Place) -> Row:
    """The document's columns. Raises BadRecord."""
    text = text_of(raw, "text")
    given = [_mention(raw, text)]
    return {"text": text, "given": given, **_picture(raw, at)}


def _picture(raw: Row, at: Place) -> Row:
    """Of the release's key, else of whatever other field there is."""
    key = sound(raw.get("img_name") or raw.get("img_url"), "the picture's name")
    if isinstance(key, str) and key:
        return at.keyed(key) | unread(raw, _READ | {"img_name", "img_url"}, pictured=True)
    field = field_of(raw, pair=False) or ""
    picture = columns_of(raw.get(field), field, at)
    return picture | unread(raw, _READ | {field}, pictured=bool(picture))


def _mention(raw: Row, text: str) -> Row:
    """`start` and `end` where somebody added them (-1: nowhere). The mention stands in the prompt as the file
    spells it."""
    if not raw["mention"]:
        raise BadRecord("the mention is empty")
    found = mention({name: raw.get(name) for name in _FIELDS}, text)
    return found | ({"target": None} if found["target_id"] == NIL else {})
