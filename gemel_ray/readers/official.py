"""GEMEL's own form: one mention a line, as a string, with `target`, `golden` and `img_url` or `img_name`."""

from __future__ import annotations

from typing import Any

from gemel_ray.readers.fields import NIL, BadRecord, Row, made, placed, sound, text_of, typed
from gemel_ray.readers.pictures import Place


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
    mention = typed(raw, "mention", str)
    if not mention:
        raise BadRecord("the mention is empty")
    target = None if raw.get("golden") == NIL else typed(raw, "target", str)
    known = {"target": target, "target_id": raw.get("golden"), "type": raw.get("type")}
    start, end = typed(raw, "start", int), raw.get("end")
    if start is None or start < 0:
        return placed(mention, text, known)
    found = made(known | {"start": start, "end": start + len(mention) if end is None else end}, text)
    return found | ({} if found["error"] else {"mention": mention})
