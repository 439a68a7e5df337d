"""Where words stand in a text, letter for letter or nearly, and places that count something else."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gemel_ray.characters import Span, bare, continues, is_edge, normal


def place(words: str, text: str, near: int = 0) -> Span | None:
    """Where the words stand, in characters, end exclusive: nearest to `near`, whole words first."""
    return min(places(words, text), key=lambda s: (not _whole(s, text), abs(s[0] - near)), default=None)


def places(words: str, text: str) -> list[Span]:
    """All places of the words, whole words first: in their own case; where there is none, in any; where there
    is none, in their letters and digits alone."""
    words = words.strip()
    for flags in (re.NOFLAG, re.IGNORECASE):
        spans = (match.span() for match in re.finditer(re.escape(words), text, flags))
        if found := [(a, b) for a, b in spans if b == len(text) or not continues(text[b])]:
            return sorted(found, key=lambda span: not _whole(span, text))
    return list(_bare_places(words, text))


def _bare_places(words: str, text: str) -> Iterator[Span]:
    """Of whole words only: bare of spaces, "to day" would be found in "to daylight"."""
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
    """The place in characters that was meant, where the words stand there, and what it was counted in."""
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
    """A place in an encoding's units as one in characters; None where it is within a character."""
    data = text.encode(encoding)
    try:
        before, inside = (
            data[: start * size].decode(encoding),
            data[start * size : end * size].decode(encoding),
        )
    except UnicodeDecodeError:
        return None
    return len(before), len(before) + len(inside)
