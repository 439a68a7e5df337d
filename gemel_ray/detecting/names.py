"""Names found in texts: whole words, the longest match, in one automaton pass for any number of names.

Texts and names are compared as readers/fields.py says, so that an accent, a Korean syllable, an apostrophe or
the space between two words may be written either way. Places are in characters of the original text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

from ahocorasick_rs import AhoCorasick, MatchKind

from gemel_ray.readers.fields import Span, compared, is_edge, normal


class Names:
    """Finds `forms`: with `any_case` in any case, else as they are spelled or in capitals."""

    def __init__(self, forms: Iterable[str], any_case: bool = False) -> None:
        self._any_case = any_case
        written = (f for form in forms for f in (form, *(() if any_case else (form.upper(),))))
        self._forms = sorted({compared(normal(form), any_case)[0] for form in written} - {""})
        self._automaton = AhoCorasick(self._forms, matchkind=MatchKind.Standard)

    def whole_words(self, text: str) -> Iterator[Span]:
        """All occurrences that neither begin nor end within a word, with overlapping ones."""
        shape, origin = compared(text, self._any_case)
        for _, start, end in self._automaton.find_matches_as_indexes(shape, overlapping=True):
            span = (origin[start], origin[end]) if origin else (start, end)
            if span[0] < span[1] and is_edge(text, span[0]) and is_edge(text, span[1]):
                yield span


def longest(spans: Iterable[Span]) -> Iterator[Span]:
    """The leftmost of overlapping spans, and the longest of those that begin together. (The automaton's
    longest match may end within a word where a shorter one does not.)"""
    free = 0
    for start, end in sorted(set(spans), key=lambda span: (span[0], -span[1])):
        if start >= free:
            yield start, end
            free = end


def width(form: str) -> int:
    """The length; a Chinese character and the like counts twice, since two of them can be a name."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in form)
