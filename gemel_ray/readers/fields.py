"""What all forms share: a field's value and type, a mention and its place in the text.

Knows nothing of files and forms. What is wrong with a whole document is a BadRecord; what is wrong with one
of its mentions is that mention's `error`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]
NIL = "NIL"  # as target_id: the entity is known not to be in the knowledge base


class BadRecord(ValueError):
    """Why a row of the input is not a document."""


def typed(raw: Mapping[str, Any], field: str, kind: type | tuple[type, ...]) -> Any:
    """The field's value, or None where it has none. Raises BadRecord for another type."""
    value = raw.get(field)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise BadRecord(f"{field} cannot be {value!r:.60}")
    return sound(value, field)


def sound(value: Any, field: str) -> Any:
    """JSON can spell half a surrogate pair, which Arrow cannot hold."""
    if isinstance(value, str) and not is_unicode(value):
        raise BadRecord(f"{field} holds half a surrogate pair: it is not valid Unicode")
    return value


def short(value: object, most: int = 60) -> str:
    """A value as a message shows it: cut short, and a text in quotes that close."""
    whole = value if isinstance(value, str) else repr(value)
    whole = whole if len(whole) <= most else f"{whole[:most]}..."
    return repr(whole) if isinstance(value, str) else whole


def is_unicode(text: str) -> bool:
    """JSON can spell what UTF-8, and so Arrow, cannot hold."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def text_of(raw: Mapping[str, Any], field: str) -> str:
    """The document's text, as it stands. Raises BadRecord where there is none."""
    text = typed(raw, field, str)
    if text is None or not text.strip():
        raise BadRecord("the text is empty")
    return str(text)


def place(mention: str, text: str, near: int = 0) -> tuple[int, int] | None:
    """Where the mention stands, in characters, end exclusive: nearest to `near`, in its own case first."""
    for flags in (re.NOFLAG, re.IGNORECASE):
        found = [match.span() for match in re.finditer(re.escape(mention), text, flags)]
        if found:
            return min(found, key=lambda span: abs(span[0] - near))
    return None


def placed(mention: str, text: str, known: Mapping[str, Any]) -> Row:
    """The mention of a form that gives it as a string. It need not stand in the text (WikiMEL has "Elsie
    Wolfe" of "Elsie de Wolfe"): the prompt asks for the string, and such a mention has no place."""
    if not mention:
        raise BadRecord("the mention is empty")
    at = place(mention, text)
    start, end = at or (0, 1)
    found = made({**known, "start": start, "end": end}, text) | {"mention": mention}
    unplaced = {"mention_id": mention, "start": None, "end": None}
    return found if at else found | unplaced


def made(raw: Mapping[str, Any], text: str) -> Row:
    """A MENTION of `start`, `end` and what is known of its entity."""
    start, end = position(raw.get("start")), position(raw.get("end"))
    if start is None or end is None:
        return bad_mention(f"{raw!r:.60}")
    mention = {"mention_id": f"{start}-{end}", "mention": None, "start": start, "end": end}
    known = {name: raw.get(name) for name in ("target", "target_id", "type")}
    mention |= {n: v if isinstance(v, str) and is_unicode(v) else None for n, v in known.items()}
    mention["error"] = None
    if not 0 <= start < end <= len(text):
        mention["error"] = f"the mention {start}-{end} is outside its text of {len(text)} characters"
    else:
        mention["mention"] = text[start:end]
    return mention


def position(value: object) -> int | None:
    """A place in a text, as int32 holds it."""
    small = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    return value if small else None  # type: ignore[return-value]


def bad_mention(shown: str) -> Row:
    """A mention of which not even the place can be told."""
    return {"mention_id": shown, "error": f"a mention is an object with start and end, not {shown}"}


def each_once(mentions: Iterable[Row]) -> list[Row]:
    """The mentions; one whose span was there before is an error."""
    kept, seen = list(mentions), set()
    for mention in kept:
        if mention["mention_id"] in seen and not mention["error"]:
            mention["error"] = "the same span is given twice"
        seen.add(mention["mention_id"])
    return kept
