"""One rule for how texts and names are compared: Unicode's composed form (NFC), white space folded.

Names are stored in this form (`normal`). A text is kept unchanged, and is compared in a form that maps back
to places in it (`compared`, and `bare` for words with slightly different spelling). Knows nothing of files.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

Span = tuple[int, int]  # characters, end exclusive
Shape = tuple[str, list[int]]  # what is compared, and the place of each of its characters and of its end
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff"))  # not part of a word's spelling
_ENDS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "".join(map(chr, _INVISIBLE))
_UNEVEN = re.compile(r"[^\S ]|  ")  # white space that is not one space
# Scripts without spaces between words, or, as Korean, with particles after names: a name may end anywhere.
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
_JOINING = "\u200c\u200d\ufe0e\ufe0f"  # not separate characters: they belong to the one before


def normal(name: str) -> str:
    """A name, alias or target as it is stored and compared."""
    if not name.isascii():
        name = unicodedata.normalize("NFC", name).translate(_INVISIBLE)
    return " ".join(name.split())


def trimmed(text: str) -> str:
    """The text without white space and invisible characters at its ends, which copied addresses may have."""
    return text.strip(_ENDS)


def compared(text: str, any_case: bool) -> tuple[str, list[int] | None]:
    """The text in the form in which names are searched: normal, with one kind of apostrophe; and its places,
    or None if they are those of the text."""
    if text.isascii() and not _UNEVEN.search(text):
        return (text.lower() if any_case else text), None
    starts = [i for i, c in enumerate(text) if i == 0 or not _belongs(c, text[i - 1])]
    parts, origin = [], list[int]()
    for start, end in pairwise([*starts, len(text)]):
        part = unicodedata.normalize("NFC", text[start:end]).translate(_INVISIBLE).replace("\u2019", "'")
        part = " " if part.isspace() else part
        part = part.casefold() if any_case else part
        parts.append(part)
        origin += [start] * len(part)
    return "".join(parts), [*origin, len(text)]


def bare(text: str) -> Shape:
    """The text's letters and digits, in one case and without accents: independent of punctuation, quotes,
    dashes, white space and compatibility forms."""
    parts, origin = list[str](), list[int]()
    for place, character in enumerate(text):
        for part in unicodedata.normalize("NFKD", character).casefold():
            if part.isalnum():
                parts.append(part)
                origin.append(place)
    return "".join(parts), [*origin, len(text)]


def is_edge(text: str, at: int) -> bool:
    """Whether a name may begin or end here: the place is not inside a word or a combined character."""
    if at in (0, len(text)):
        return True
    left, right = text[at - 1], text[at]
    if continues(right) or left == "\u200d":
        return False
    return _is_unspaced(left) or _is_unspaced(right) or not (_is_word(left) and _is_word(right))


def continues(character: str) -> bool:
    """Whether it is a mark on the character before, or a separate vowel or end of a Korean syllable."""
    return not character.isascii() and (
        unicodedata.category(character).startswith("M")
        or character in _JOINING
        or "\u1160" <= character <= "\u11ff"
    )


def _belongs(character: str, before: str) -> bool:
    return continues(character) or (character.isspace() and before.isspace())


def _is_word(character: str) -> bool:
    return character.isalnum() or continues(character)


def _is_unspaced(character: str) -> bool:
    return not character.isascii() and any(a <= ord(character) <= b for a, b in _UNSPACED)
