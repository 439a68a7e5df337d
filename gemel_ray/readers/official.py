"""GEMEL's own form: one mention a line, as a string, with `target`, `golden` and `img_url` or `img_name`."""

from __future__ import annotations

from typing import Any

from gemel_ray.readers.fields import NIL, BadRecord, Row, sound, text_of
from gemel_ray.readers.mentions import mention
from gemel_ray.readers.pictures import Place

_FIELDS = ("mention", "start", "end", "target", "golden", "type")


def fits(raw: Any) -> bool:
    """The mention is what tells it from ours."""
    return isinstance(raw, dict) and "mention" in raw


def columns(raw: Row, at: Place) -> Row:
    """The document's columns. Raises BadRecord."""
    text = text_of(raw, "text")
    given = [_mention(raw, text)]
    key = sound(raw.get("img_name") or raw.get("img_url"), "the picture's name")
    return {"text": text, "given": given, **(at.keyed(key) if isinstance(key, str) and key else {})}


def _mention(raw: Row, text: str) -> Row:
    """`start` and `end` where somebody added them (-1: nowhere). The mention stands in the prompt as the file
    spells it."""
    if not raw["mention"]:
        raise BadRecord("the mention is empty")
    found = mention({name: raw.get(name) for name in _FIELDS}, text)
    return found | ({"target": None} if found["target_id"] == NIL else {})
