"""A row's mentions, in any notation: places, words or both, as objects, pairs or lists side by side.

A place counts characters of the text, end exclusive. Where a mention has words, its place is checked against
them, and one that counts UTF-16 units, bytes or its last character is corrected; how a place was found is
`placed`. What is wrong with one mention is its `error`. Knows nothing of files and forms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gemel_ray.readers.fields import (
    NIL,
    BadRecord,
    Span,
    bare,
    continues,
    identity,
    is_edge,
    is_unicode,
    normal,
    short,
    valid_text,
    whole_number,
)
from gemel_ray.records import Row

WORDS = ("mention", "text", "surface", "surface_form", "mention_text")
STARTS = ("start", "begin", "offset", "start_char", "char_start", "start_pos", "start_offset")
ENDS = ("end", "stop", "end_char", "char_end", "end_pos", "end_offset")
PAIRS = ("span", "offsets", "position", "indices")
TARGETS = ("target", "entity", "entity_name", "entity_title", "title")
IDS = ("target_id", "golden", "answer", "entity_id", "kb_id", "qid", "wikidata_id")
TYPES = ("type", "label", "ner", "entity_type")
SIDE_BY_SIDE = {
    "target": ("targets", "target", "entities"),
    "target_id": ("target_ids", "target_id", "answer", "answers", "golden", "qids"),
}


def mentions(raws: Sequence[Any], text: str) -> list[Row]:
    """The mentions of one text, in order. Where mentions are words alone, the same words again mean the next
    place. A place that is given twice is an error."""
    taken, seen, found = list[Span](), set[str](), list[Row]()
    for raw in raws:
        one = _read(raw, text, taken)
        if one["mention_id"] in seen and not one["error"]:
            one["error"] = f"the mention {short(one['mention'] or one['mention_id'])} is given twice"
        elif not one["error"] and one["start"] is not None:
            taken.append((one["start"], one["end"]))
        seen.add(one["mention_id"])
        found.append(one)
    return found


def side_by_side(raw: Mapping[str, Any], words: Sequence[Any], field: str) -> list[Any]:
    """Mentions that are words, each with its target and id from the lists beside them. Raises BadRecord for
    lists of different lengths."""
    beside = {}
    for name, fields in SIDE_BY_SIDE.items():
        for other in (f for f in fields if f in raw and f != field):
            several = isinstance(raw[other], list) or len(words) > 1
            values = _items(raw[other], len(words)) if several else [raw[other]]
            if values is not None:
                beside[name] = _as_long(values, words, other, field)
                break
    return [
        {"mention": word, **{name: values[i] for name, values in beside.items()}}
        for i, word in enumerate(words)
    ]


def _items(values: Any, number: int) -> list[Any] | None:
    """The items of a list, or of a cell that has this number of them; None for a single value."""
    if isinstance(values, str) and len(parts := separated(values)) == number:
        return list(parts)
    return values if isinstance(values, list) else None


def separated(written: str) -> list[str]:
    """The words in one cell of a table: `New York | Boston`, or with semicolons."""
    parts = written.split("|" if "|" in written else ";")
    return [part.strip() for part in parts if part.strip()]


def _as_long(values: list[Any], words: Sequence[Any], other: str, field: str) -> list[Any]:
    if len(values) != len(words):
        raise BadRecord(
            f"{field} has {len(words)} items and {other} {len(values)}: lists side by side belong together "
            "by their order, so they must be of one length"
        )
    return values


def is_places(listed: Any) -> bool:
    """Whether these are annotations with places: objects with a start and an end, or [start, end, label]."""
    return (
        isinstance(listed, list)
        and bool(listed)
        and all(
            None not in _place(raw) if isinstance(raw, dict) else _pair(raw) is not None for raw in listed
        )
    )


def _pair(raw: Any) -> Row | None:
    """[start, end] or [start, end, type]."""
    if isinstance(raw, list) and len(raw) in (2, 3) and all(whole_number(n) is not None for n in raw[:2]):
        return dict(zip(("start", "end", "type"), raw, strict=False))
    return None


def _read(raw: Any, text: str, taken: list[Span]) -> Row:
    if isinstance(raw, BadRecord):
        return _row({}, short(raw, 40), error=str(raw))
    if isinstance(raw, str):
        raw = {"mention": raw}
    if isinstance(raw, list):
        raw = _pair(raw) or raw
    if not isinstance(raw, dict):
        return _bad(raw)
    try:
        return mention(raw, text, taken)
    except BadRecord as bad:
        return _row({}, short(raw, 40), error=str(bad))


def mention(raw: Mapping[str, Any], text: str, taken: Sequence[Span] = ()) -> Row:
    """The MENTION of an object with words (`mention`), a place (`start`, `end`) or both, and what is known of
    its entity. Words without a place get the first place that is not `taken`. Raises BadRecord for words that
    are not text."""
    start, end = _place(raw)
    words, known = _words(raw, placed=start is not None and end is not None), _known(raw)
    if words is None:
        if start is None or end is None:
            return _bad(raw)
        return _span(text, start, end, known)
    if start is None or start < 0:
        return _found(words, text, known, taken)
    span, how = _meant(words, text, start, start + len(words) if end is None else end)
    if span is None:
        return _row(known, f"{start}-{end}", error=_elsewhere(words, text, start, end or start))
    return _span(text, *span, known) | {"mention": words, "placed": how}


def _meant(words: str, text: str, start: int, end: int) -> tuple[Span | None, str | None]:
    """The place of the words in characters, and, if it differs from the given one, how that one was counted.
    A slightly different spelling is accepted at the given place only."""
    there = text[start:end] if end <= len(text) else ""
    if there and normal(there).casefold() == normal(words).casefold():
        return (start, end), None
    if found := counted_otherwise(words, text, start, end):
        return found
    if there and bare(there)[0] == bare(words)[0] != "":
        return (start, end), _spelled(there)
    return None, None


def _spelled(there: str) -> str:
    return f"its words are in the text as {short(there)}"


def _elsewhere(words: str, text: str, start: int, end: int) -> str:
    inside = start < end <= len(text)
    where = (
        f"{short(text[start:end], 40)} in the text"
        if inside
        else f"outside its text of {len(text)} characters"
    )
    return (
        f"the mention {short(words)} is {where} at {start}-{end}, whether characters, UTF-16 units or bytes "
        "are counted: give its place in characters, end exclusive, or its words alone"
    )


def _found(words: str, text: str, known: Row, taken: Sequence[Span]) -> Row:
    """The mention at the first free place of its words. They need not be in the text (WikiMEL has "Elsie
    Wolfe" for "Elsie de Wolfe"): the prompt asks for the words, and such a mention has no place."""
    spans = places(words, text)
    apart = (s for s in spans if all(s[1] <= a or b <= s[0] for a, b in taken))
    span = next(apart, None) or next((s for s in spans if s not in taken), None)
    if span is None:
        how = "its words are not in the text" if not spans else "its words have no further place"
        return _row(known, words, words) | {"placed": how}
    row = _row(known, f"{span[0]}-{span[1]}", words, *span)
    there = text[slice(*span)]
    return row | ({"placed": _spelled(there)} if there.casefold() != words.casefold() else {})


def _span(text: str, start: int, end: int, known: Row) -> Row:
    """The mention at a place: the text's words there, without white space at the ends."""
    if not 0 <= start < end <= len(text):
        outside = f"the mention {start}-{end} is outside its text of {len(text)} characters"
        return _row(known, f"{start}-{end}", error=outside)
    inside = text[start:end]
    if not inside.strip():
        return _row(known, f"{start}-{end}", error=f"the mention {start}-{end} is nothing but white space")
    first = start + len(inside) - len(inside.lstrip())
    last = end - len(inside) + len(inside.rstrip())
    return _row(known, f"{first}-{last}", text[first:last], first, last)


def _row(
    known: Row, identifier: str, words: str | None = None, start: int | None = None, end: int | None = None,
    error: str | None = None,
) -> Row:  # fmt: skip
    place = {"start": start, "end": end, "placed": None}
    return {"mention_id": identifier, "mention": words, **place, **known, "error": error}


def _bad(raw: Any) -> Row:
    """The error row of a mention with neither words nor a place."""
    what = "a mention is its words or an object with start and end"
    return _row({}, short(raw, 40), error=f"{what}, not {short(raw, 80)}")


def _first(raw: Mapping[str, Any], names: Iterable[str]) -> Any:
    for name in names:
        if (value := raw.get(name)) is not None:
            return value
    return None


def _words(raw: Mapping[str, Any], *, placed: bool) -> str | None:
    words = _first(raw, WORDS)
    if words is None or (placed and words == ""):  # as tables write a missing value
        return None
    if not isinstance(words, str):
        raise BadRecord(f"the words of a mention are text, not {short(words)}")
    if not valid_text(words, "a mention").strip():
        raise BadRecord("the mention is empty")
    return words.strip()


def _place(raw: Mapping[str, Any]) -> tuple[int | None, int | None]:
    pair = _first(raw, PAIRS)
    if isinstance(pair, list) and len(pair) == 2:
        return whole_number(pair[0]), whole_number(pair[1])
    start, end, length = (
        whole_number(_first(raw, STARTS)),
        whole_number(_first(raw, ENDS)),
        whole_number(raw.get("length")),
    )
    return start, start + length if end is None and start is not None and length is not None else end


def _known(raw: Mapping[str, Any]) -> Row:
    """What the row says of the entity: `target`, a name (or an id), and `target_id`."""
    target, entity_id = _first(raw, TARGETS), _first(raw, IDS)
    if isinstance(target, dict):
        entity_id = _first(target, ("id", *IDS)) if entity_id is None else entity_id
        target = _first(target, ("name", "label", *TARGETS))
    name = identity(target)
    return {
        "target": normal(name) or None if name and is_unicode(name) else None,
        "target_id": NIL
        if isinstance(entity_id, str) and entity_id.strip().upper() == NIL
        else identity(entity_id),
        "type": kind if isinstance(kind := _first(raw, TYPES), str) and is_unicode(kind) else None,
    }


# Where words are in a text, exactly or nearly, and places in other units than characters.


def place(words: str, text: str, near: int = 0) -> Span | None:
    """The place of the words, in characters, end exclusive: nearest to `near`, whole words first."""
    return min(places(words, text), key=lambda s: (not _whole(s, text), abs(s[0] - near)), default=None)


def places(words: str, text: str) -> list[Span]:
    """All places of the words, whole words first: as spelled; if there are none, in any case; if there are
    none, by letters and digits alone."""
    words = words.strip()
    for flags in (re.NOFLAG, re.IGNORECASE):
        spans = (match.span() for match in re.finditer(re.escape(words), text, flags))
        if found := [(a, b) for a, b in spans if b == len(text) or not continues(text[b])]:
            return sorted(found, key=lambda span: not _whole(span, text))
    return list(_bare_places(words, text))


def _bare_places(words: str, text: str) -> Iterator[Span]:
    """Places by letters and digits, of whole words only: without spaces, "to day" is in "to daylight"."""
    (wanted, _), (shape, origin) = bare(words), bare(text)
    at = shape.find(wanted) if wanted else -1
    while at >= 0:
        start, end = origin[at], origin[at + len(wanted) - 1] + 1
        while end < len(text) and continues(text[end]):
            end += 1
        if is_edge(text, start) and is_edge(text, end):
            yield start, end
            at += len(wanted) - 1
        at = shape.find(wanted, at + 1)


def _whole(span: Span, text: str) -> bool:
    return is_edge(text, span[0]) and is_edge(text, span[1])


def counted_otherwise(words: str, text: str, start: int, end: int) -> tuple[Span, str] | None:
    """The place in characters that was meant, if the words are there, and what it was counted in."""
    kinds = {
        "its place counts its last character": (start, end + 1),
        "its place counts UTF-16 units": _from_units(text, start, end, "utf-16-le", 2),
        "its place counts bytes": _from_units(text, start, end, "utf-8", 1),
        "its place counts UTF-16 units, the last one too": _from_units(text, start, end + 1, "utf-16-le", 2),
        "its place counts bytes, the last one too": _from_units(text, start, end + 1, "utf-8", 1),
        "its place counts from 1": (start - 1, end - 1),
        "its place counts from 1, and its last character": (start - 1, end),
    }
    meant = [(how, s) for how, s in kinds.items() if s and 0 <= s[0] < s[1] <= len(text)]
    for form in (str.casefold, lambda there: normal(there).casefold()):
        for how, span in meant:
            if form(text[slice(*span)]) == form(words):
                return span, how
    return None


def _from_units(text: str, start: int, end: int, encoding: str, size: int) -> Span | None:
    """A place in an encoding's units, converted to characters; None if it splits a character."""
    data = text.encode(encoding)
    try:
        before, inside = (
            data[: start * size].decode(encoding),
            data[start * size : end * size].decode(encoding),
        )
    except UnicodeDecodeError:
        return None
    return len(before), len(before) + len(inside)
