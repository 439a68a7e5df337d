"""Names found in texts: whole words, the longest match, one automaton pass however many names there are.

Texts and names are compared in Unicode's composed form (NFC), so that an accent or a Korean syllable may be
written either way, and so may an apostrophe;
what is found stands in characters of the text as it is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from itertools import pairwise

from ahocorasick_rs import AhoCorasick, MatchKind

Span = tuple[int, int]  # characters, end exclusive
# Scripts that put no spaces between words, or, as Korean, particles behind names: a name ends anywhere.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1100, 0x11FF),  # Korean, syllables in parts
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x9FFF),  # Chinese, Japanese
    (0xAC00, 0xD7AF),  # Korean
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_JOINING = "\u200c\u200d\ufe0e\ufe0f"  # no character of their own: they belong to the one before


class Names:
    """`forms` to be found; with `any_case` in any case of their letters, else in their own or in capitals."""

    def __init__(self, forms: Iterable[str], any_case: bool = False) -> None:
        self._any_case = any_case
        written = (f for form in forms for f in (form, *(() if any_case else (form.upper(),))))
        self._forms = sorted({folded(form, any_case)[0] for form in written} - {""})
        self._automaton = AhoCorasick(self._forms, matchkind=MatchKind.Standard)

    def whole_words(self, text: str) -> Iterator[Span]:
        """Every occurrence that neither begins nor ends within a word, overlapping ones too."""
        shape, origin = folded(text, self._any_case)
        for _, start, end in self._automaton.find_matches_as_indexes(shape, overlapping=True):
            span = (origin[start], origin[end]) if origin else (start, end)
            if span[0] < span[1] and is_edge(text, span[0]) and is_edge(text, span[1]):
                yield span


def longest(spans: Iterable[Span]) -> Iterator[Span]:
    """Of overlapping spans the leftmost, and of those that begin together the longest. (The automaton's own
    longest match may be cut off by a word's edge where a shorter one is not.)"""
    free = 0
    for start, end in sorted(set(spans), key=lambda span: (span[0], -span[1])):
        if start >= free:
            yield start, end
            free = end


def width(form: str) -> int:
    """Its length, a Chinese character and the like counted as two: two of them are a name."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in form)


def folded(text: str, any_case: bool) -> tuple[str, list[int] | None]:
    """The text as it is compared, and for each of its characters, and its end, the place in the text; no
    places where they are the same."""
    if text.isascii():
        return (text.lower() if any_case else text), None
    starts = [i for i, c in enumerate(text) if i == 0 or not _continues(c)]
    parts, origin = [], list[int]()
    for start, end in pairwise([*starts, len(text)]):
        part = unicodedata.normalize("NFC", text[start:end]).replace("\u2019", "'")
        part = part.casefold() if any_case else part
        parts.append(part)
        origin += [start] * len(part)
    return "".join(parts), [*origin, len(text)]


def is_edge(text: str, at: int) -> bool:
    """Whether a name may begin or end at this place: no word goes on across it, nor a single character."""
    if at in (0, len(text)):
        return True
    left, right = text[at - 1], text[at]
    if _continues(right) or left == "\u200d":
        return False
    return _is_unspaced(left) or _is_unspaced(right) or not (_is_word(left) and _is_word(right))


def _continues(character: str) -> bool:
    """A mark over, under or behind the character before, or a Korean syllable's vowel or end by itself."""
    return not character.isascii() and (
        unicodedata.category(character).startswith("M")
        or character in _JOINING
        or "\u1160" <= character <= "\u11ff"
    )


def _is_word(character: str) -> bool:
    return character.isalnum() or _continues(character)


def _is_unspaced(character: str) -> bool:
    return not character.isascii() and any(a <= ord(character) <= b for a, b in _UNSPACED)
