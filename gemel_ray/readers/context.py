"""One mention between its contexts: the rows of BLINK and of KILT.

    {"context_left", "mention", "context_right", "label_title" or "Wikipedia_title"}
    {"id", "input": "left [START_ENT] mention [END_ENT] right", "output": [{"answer": "its title"}]}

Sources: facebookresearch/BLINK, examples/zeshel/create_BLINK_zeshel_data.py (the first);
facebookresearch/KILT, README.md ("KILT data format") and kilt/datasets (the second). Read from that code, not
from data.
"""

from __future__ import annotations

import re
from typing import Any

from gemel_ray.readers.fields import BadRecord, Row, text_of, typed
from gemel_ray.readers.mentions import mention
from gemel_ray.readers.names import OURS
from gemel_ray.readers.pictures import Place, columns_of, field_of
from gemel_ray.readers.unread import unread

_MARKED = re.compile(r"\s*\[START_ENT\]\s*(.*?)\s*\[END_ENT\]\s*", re.DOTALL)
_TITLES = ("Wikipedia_title", "label_title", "entity_title")
_PARTS = ("context_left", "mention", "context_right")
_ELSEWHERE = "context_document_id"
_READ = {*OURS, *_PARTS, "input", "output", "meta", *_TITLES}


def fits(raw: Any) -> bool:
    """The contexts, or the marks, are what tells it."""
    if not isinstance(raw, dict):
        return False
    marked = isinstance(raw.get("input"), str) and "[START_ENT]" in raw["input"]
    between = "mention" in raw and ("context_left" in raw or "context_right" in raw)
    return marked or between or _ELSEWHERE in raw


def columns(raw: Row, at: Place) -> Row:
    """The document's columns. Raises BadRecord."""
    if _ELSEWHERE in raw:
        raise BadRecord(
            f"its text is a document of another file ({_ELSEWHERE}), which is not read: give rows with "
            "context_left, mention and context_right"
        )
    left, words, right, target = _between(raw) if "mention" in raw else _marked(raw)
    if not words.strip():
        raise BadRecord("the mention is empty")
    start = f"{left} " if left and not left[-1].isspace() else left
    text = f"{start}{words} {right}" if right[:1].isalnum() else f"{start}{words}{right}"
    place = {"mention": words, "start": len(start), "end": len(start) + len(words), "target": target}
    field = field_of(raw, pair=False) or ""
    picture = columns_of(raw.get(field), field, at)
    return {
        "text": text_of({"text": text}, "text"), "given": [mention(place, text)], **picture,
        **unread(raw, _READ | {field}, pictured=bool(picture)),
    }  # fmt: skip


def _between(raw: Row) -> tuple[str, str, str, Any]:
    left, words, right = (
        typed(raw, name, str) or "" for name in ("context_left", "mention", "context_right")
    )
    return left, words, right, next((raw[name] for name in _TITLES if raw.get(name)), None)


def _marked(raw: Row) -> tuple[str, str, str, Any]:
    text = text_of(raw, "input")
    found = _MARKED.search(text)
    if found is None:
        raise BadRecord("its input has [START_ENT] and no [END_ENT] after it")
    answers = [o["answer"] for o in raw.get("output") or () if isinstance(o, dict) and o.get("answer")]
    return text[: found.start()], found[1], text[found.end() :], answers[0] if answers else None
