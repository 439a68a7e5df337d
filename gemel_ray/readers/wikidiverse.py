"""WikiDiverse's own forms (Wang et al., ACL 2022): arrays instead of objects.

    [sentence, image URL, topic, [[mention, type, start, end, entity URL], ...]]
    [sentence, image URL, mention, type, left, right, entity URL, candidates, topic, start, end]

Sources: wangxw5/wikiDiverse, README.md ("Data Format") for the first, eval_cands_recall.py for the second
(*_w_10cands.json), for "nil", and for the slips in front of some URLs (nhttps, ]https). Places are
characters, end exclusive. Read from there, not from the data.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from gemel_ray.readers.fields import NIL, BadRecord, Row, is_unicode, short, sound, text_of, whole
from gemel_ray.readers.mentions import mentions
from gemel_ray.readers.pictures import Place
from gemel_ray.readers.places import place


def fits(raw: Any) -> bool:
    """The list of mentions, or of candidates, stands where it should."""
    return isinstance(raw, list) and (_is_passage(raw) or _has_candidates(raw))


def _is_passage(raw: list[Any]) -> bool:
    return len(raw) == 4 and isinstance(raw[3], list)


def _has_candidates(raw: list[Any]) -> bool:
    return len(raw) == 11 and isinstance(raw[7], list)


def columns(raw: list[Any], at: Place) -> Row:
    """The document's columns. Raises BadRecord."""
    text, url = text_of({"sentence": raw[0]}, "sentence"), sound(raw[1], "the picture's name")
    if _is_passage(raw):
        topic, listed = raw[2], raw[3]
    else:
        mention, kind, _, _, entity, _, topic, start, end = raw[2:]
        listed = [[mention, kind, start, end, entity]]
    given = mentions([_mention(m, text, topic) for m in listed], text)
    return {"text": text, "given": given, **(at.released(url) if isinstance(url, str) and url else {})}


def _mention(raw: Any, text: str, topic: object) -> Row | BadRecord:
    """As `mentions` takes it. The place is where the mention's words are: nearest to the given one, if that
    holds other words."""
    if not isinstance(raw, list) or len(raw) < 5 or not isinstance(raw[0], str) or not raw[0].strip():
        return BadRecord(f"a mention is [mention, type, start, end, entity], not {short(raw, 80)}")
    words, kind, start, end, entity = raw[:5]
    near = whole(start)
    at: tuple[Any, Any] = (near, whole(end))
    if near is None or text[near : at[1] or near] != words:
        at = place(words, text, near or 0) or (None, None)
    kind = kind if isinstance(kind, str) and kind else topic
    return {"mention": words, "start": at[0], "end": at[1], "type": kind, **_target(entity)}


def _target(entity: object) -> Row:
    """The Wikipedia page's title: of https://en.wikipedia.org/wiki/Detroit_Lions, Detroit Lions."""
    if not isinstance(entity, str) or not is_unicode(entity):
        return {}
    if entity.strip().upper() == NIL:
        return {"target_id": NIL}
    page = entity.rpartition("/wiki/")[2].partition("#")[0]
    return {"target": " ".join(unquote(page).replace("_", " ").split()) or None}
